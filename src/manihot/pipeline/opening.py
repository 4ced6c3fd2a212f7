"""What comes before any photograph is read: the recipe checked, the run folder's settings kept or refused, weights."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from manihot.engines import check_weights, choose_recipe
from manihot.ensemble.stages import needs_torch as stacks_need_torch
from manihot.errors import RunFolderError
from manihot.extras import need_train
from manihot.records.run_folder import RunFolder
from manihot.settings import Recipe, load_recipe, merge
from manihot.settings.groups import NOT_OF_MEMBERS
from manihot.settings.options import TableOptions

SHARED = {"description", "source", "seed", "sources", "refit", "save_views"}  # of all members of a run
PACKAGES = ("manihot", "numpy", "opencv-python-headless", "scikit-learn", "onnxruntime", "torch", "timm")


def resolve(recipe: str | Recipe | None, overrides: Sequence[str], device: str) -> Recipe:
    """The whole recipe, its names and settings checked."""
    if recipe is None:
        recipe = choose_recipe(device)
    resolved = with_beside(recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides))
    check_settings(resolved)
    return resolved


def with_beside(recipe: Recipe) -> Recipe:
    """The recipe with the one that it names in `beside` as a second member, of which the better one answers.

    Better: by out-of-fold log loss. A recipe with members of its own stays as it is. SettingsError for no such recipe.
    """
    if recipe.beside == "none" or recipe.members:
        return recipe
    own, other = recipe.resolved(), load_recipe(recipe.beside).resolved()
    changes = {k: v for k, v in other.items() if k not in SHARED.union(NOT_OF_MEMBERS) and v != own.get(k)}
    members = {"main": {}, Path(recipe.beside).stem: changes}
    blend = {**own["blend"], "method": "best_member"} if own["blend"] == Recipe().resolved()["blend"] else own["blend"]
    made = Recipe.model_validate({**own, "beside": "none", "members": members, "blend": blend})
    made._lines.update(recipe._lines)
    return made


def check_settings(recipe: Recipe, classes: Sequence[str] | None = None) -> None:
    """SettingsError for a recipe that can't be run, with torch's part of it where the recipe trains networks.

    classes: the photographs', once they are known; then what depends on them is checked. Raises MissingExtraError
    where the recipe needs torch and it isn't installed.
    """
    from manihot.members import check

    if classes is None:
        check.check_recipe(recipe)
    else:
        check.check_classes(recipe, classes)
    if stacks_need_torch(recipe.blend):
        need_train(f"recipe {recipe.name!r} stacks by a CNN, which")
    why = check.needs_train(recipe)
    if why:
        need_train(why)
        from manihot.train import check as check_with_torch

        if classes is None:
            check_with_torch.check_recipe(recipe)
        else:
            check_with_torch.check_classes(recipe, classes)


def open_run(folder: RunFolder, recipe: Recipe, photos: Any, columns: TableOptions, update: bool) -> None:
    known, wanted = folder.record.get("recipe"), recipe.resolved()
    if known is not None:  # what an older manihot did not know yet was as its default is
        known = merge({**Recipe().resolved(), "name": known.get("name")}, known)
    sources = [str(p) for p in ([photos] if isinstance(photos, (str, os.PathLike)) else photos)]
    options = columns.given()
    if known is not None and not update:
        changed = sorted(_differences(known, wanted))
        changed += _differences(folder.record.get("photos"), sources, "photos")
        changed += _differences(folder.record.get("scan_options"), options, "scan")
        if changed:
            raise RunFolderError(
                f"{folder.path} contains a run with other settings: {', '.join(changed[:6])}",
                "choose another folder with --out, or redo what they change in this one with --update",
            )
    versions = {"python": platform.python_version(), **{name: found for name in PACKAGES if (found := _version(name))}}
    folder.update_record(
        recipe_name=recipe.name,
        recipe=wanted,
        seed=recipe.seed,
        photos=sources,
        scan_options=options,
        versions=versions,
        command=list(sys.argv),
        system=f"{platform.system()} {platform.machine()}",
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def have_weights(folder: RunFolder, recipe: Recipe) -> None:
    """WeightsError before hours of work where a member's weights can't be had; a run is asked for them once."""
    had = folder.record.get("weights")
    if had is None and "finished" in folder.record:  # of an older manihot
        return
    wanted = {(one.model.backbone, one.model.pretrained) for one in recipe.member_recipes().values()}
    for name, pretrained in sorted(wanted, key=str):
        if [name, pretrained] in (had or []):
            continue
        check_weights(name, pretrained)
    folder.update_record(weights=[list(pair) for pair in sorted(wanted, key=str)])


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [_differences(old.get(k), new.get(k), f"{key}.{k}".strip(".")) for k in {**old, **new}]
        return [text for part in parts for text in part]
    return [] if old == new else [f"{key} ({old} -> {new})"]
