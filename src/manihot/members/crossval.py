"""Cross-validation: every member of a recipe on every fold, each fold a stage that is done once.

A fold leaves members/NAME/foldK/ with best.safetensors, oof.parquet (the photographs it held out) and, where
there are test photographs, test.parquet. Together they become predictions/NAME.oof.parquet and
NAME.test.parquet. With `refit` a training on everything follows, in members/NAME/refit/: its network answers test
photographs and new ones, and the folds say what the member is worth.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from manihot.errors import SettingsError
from manihot.infer.models import network_of, open_network
from manihot.members.check import check_classes
from manihot.members.member import Member, held_folds, make_member
from manihot.members.outputs import keeps_views, predict_fold
from manihot.members.toolbox import Toolbox
from manihot.members.training_labels import duplicate_groups, members_asked
from manihot.records.files import digest_file, digest_value, one_at_a_time, write_atomic
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.run_folder import WHOLE, Files, RunFolder
from manihot.records.run_parts import FoldFolder
from manihot.records.run_places import view_of
from manihot.settings import Recipe

DECIDES = (
    "method",
    "seed",
    "photo",
    "model",
    "sampling",
    "augment",
    "mixing",
    "loss",
    "optimizer",
    "schedule",
    "averaging",
    "train",
    "features",
    "tta",
    "sources",
    "labels",
    "step",
    "negatives",
    "stages",
)


def train_members(run: RunFolder, recipe: Recipe, manifest: Manifest, tools: Toolbox, workers: int = 2) -> list[str]:
    """Train every member on every fold and write its predictions; returns the members' names."""
    recipes = recipe.member_recipes()
    check_classes(recipe, manifest.classes)
    for name in in_order(recipes):
        member = make_member(run, name, recipes[name], manifest, tools, workers)
        for fold in folds_of(member.recipe, manifest):
            train_fold(member, fold)
        if not is_refitted(member.recipe, manifest):  # of a run that was refitted before `--update`
            shutil.rmtree(member.folder(WHOLE), ignore_errors=True)
        _look_at_views(member)
        collect(member, member.folds)
    return list(recipes)


def folds_of(recipe: Recipe, manifest: Manifest) -> list[int]:
    """What a member of this recipe is trained on, in order: its folds, and WHOLE behind them where it is refitted."""
    return (held_folds(recipe, manifest) or [0]) + ([WHOLE] if is_refitted(recipe, manifest) else [])


def is_refitted(recipe: Recipe, manifest: Manifest) -> bool:
    """Whether a member is trained on everything beside its folds; without folds it is trained so anyway."""
    return recipe.refit and bool(held_folds(recipe, manifest))


def in_order(recipes: dict[str, Recipe]) -> list[str]:
    """Members' names, each after those that it takes labels from; SettingsError for a circle."""
    done: list[str] = []
    waiting = list(recipes)
    while waiting:
        ready = [name for name in waiting if set(members_asked(recipes[name])) <= set(done)]
        if not ready:
            raise SettingsError(f"members: {', '.join(waiting)} take labels from each other in a circle")
        done.append(ready[0])
        waiting.remove(ready[0])
    return done


def train_fold(member: Member, fold: int, notify: Callable[[bool], object] = bool) -> bool:
    """One fold, unless it is done: train, save the network, predict held-out and test photographs; whether it was due.

    fold: WHOLE trains on everything, which comes after the folds. Where another process is at the same fold, this one
    waits for it. notify: is called once with whether it is due, for the other processes of one training.
    """
    place = FoldFolder(member.folder(fold))
    name = member.run.relative(place.path)
    train, held = member.rows(fold)

    def work() -> Files:
        notify(True)
        _clear_unless_resumable(place.path, digest_value(inputs))
        member.tools.methods[member.recipe.method].fit(member, fold, train, held)
        made = [path for path, rows in ((place.oof, held), (place.test, member.test_rows)) if len(rows)]
        return [*made, *_networks(member, fold)]

    with one_at_a_time(place.path, f"{member.what(fold)}: another process is at it; waiting"):
        inputs = fold_inputs(member, fold)
        due = member.run.stage(name, inputs, work)
    if not due:
        notify(False)
    return due


def fold_inputs(member: Member, fold: int) -> dict[str, Any]:
    """All that decides what a fold's training gives, JSON-like."""
    settings = member.recipe.resolved()
    inputs = {
        "settings": {key: settings[key] for key in DECIDES},
        "photographs": _digest_rows(member.manifest),
        "fold": fold,
        "size": member.preprocess.to_json(),
        "asked": [digest_file(member.run.oof(name)) for name in members_asked(member.recipe)],
    }
    if any(stage.labels.settings.get("one_a_group") for stage in member.recipe.stage_recipes()):
        copies = duplicate_groups(member)
        inputs["copies"] = None if copies is None else digest_value(copies.tolist())
    return inputs | member.tools.methods[member.recipe.method].inputs(member, fold)


def _look_at_views(member: Member) -> None:
    """Predictions of each view by the networks of folds that were trained before the recipe kept them."""
    for fold in folds_of(member.recipe, member.manifest) if keeps_views(member.recipe) else ():
        place, held = FoldFolder(member.folder(fold)), member.rows(fold)[1]
        kinds = [kind for kind, rows in (("oof", held), ("test", member.test_rows)) if len(rows)]
        if all(place.view(kind, v).is_file() for kind in kinds for v in range(len(member.recipe.tta))):
            continue
        path = network_of(place.path)
        assert path is not None, place.path  # of a fold that is done
        runner = open_network(path, member.tools.device, member.tools.opener)
        predict_fold(member, fold, held, runner, views_alone=True)


def _networks(member: Member, fold: int) -> list[Path]:
    """The files of the fold's network."""
    own = FoldFolder(member.folder(fold))
    return [path for path in (own.network, own.head, own.torch_network, own.backbone) if path.is_file()]


def collect(member: Member, folds: list[int]) -> None:
    """Join the folds' predictions, and those of each view where the recipe keeps them."""
    views = range(len(member.recipe.tta)) if keeps_views(member.recipe) else ()
    for kind in ("oof", "test"):  # of before, when they may have been more
        for name in member.run.views(kind, member.name):
            member.run.predictions(name, kind).unlink(missing_ok=True)
    for view in (None, *views):
        _collect(member, folds, view)


def _collect(member: Member, folds: list[int], view: int | None) -> None:
    """Held-out predictions in the manifest's order, those of test photographs averaged over the folds.

    Of a member that was refitted on everything, that network's answers on test photographs are the member's.
    """
    name = member.name if view is None else view_of(member.name, view)

    def file(fold: int, kind: str) -> Path:
        place = FoldFolder(member.folder(fold))
        return {"oof": place.oof, "test": place.test}[kind] if view is None else place.view(kind, view)

    parts = [Predictions.load(file(k, "oof")) for k in folds if file(k, "oof").exists()]
    if parts:
        order = np.isin(member.manifest.image_id, np.concatenate([part.image_id for part in parts]))
        embeddings = [p.embeddings for p in parts if p.embeddings is not None]
        joined = Predictions(
            np.concatenate([p.image_id for p in parts]),
            np.concatenate([p.logits for p in parts]),
            parts[0].classes,
            np.concatenate([p.labels for p in parts]),
            np.concatenate([p.fold for p in parts]),
            np.concatenate(embeddings) if len(embeddings) == len(parts) else None,
            None if parts[0].unknown is None else np.concatenate([p.unknown for p in parts if p.unknown is not None]),
            parts[0].numbers,
        )
        joined.align(member.manifest.image_id[order]).save(member.run.oof(name))
    if len(member.test_rows):
        answering = [WHOLE] if is_refitted(member.recipe, member.manifest) else folds or [0]
        tests = [Predictions.load(file(k, "test")) for k in answering]
        mean = np.mean([p.pred_probs for p in tests], axis=0)
        unknown = [p.unknown for p in tests if p.unknown is not None]
        test = Predictions.from_probs(
            tests[0].image_id,
            mean,
            tests[0].classes,
            tests[0].labels,
            unknown=np.mean(unknown, axis=0) if unknown else None,
            numbers=tests[0].numbers,
        )
        test.save(member.run.test(name))


def _clear_unless_resumable(folder: Path, digest: str) -> None:
    """Remove what another recipe's or other photographs' unfinished training left in the fold's folder."""
    mark = FoldFolder(folder).inputs
    if folder.exists() and (not mark.exists() or mark.read_bytes() != digest.encode()):
        shutil.rmtree(folder)
    write_atomic(mark, digest)


def _digest_rows(manifest: Manifest) -> str:
    columns = ["image_id", "sha256", "label", "split", "fold", "group", "weight"]
    soft = None if manifest.soft_labels is None else manifest.soft_labels.tolist()
    return digest_value([manifest.table[columns].to_numpy().tolist(), list(manifest.classes), soft])
