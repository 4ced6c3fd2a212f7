"""The blend as a stage of a run: what a recipe's `blend` asks for, checked before training and done after it.

Left in RUN: predictions/ensemble.oof.parquet and ensemble.test.parquet, and in blend/ what
`manihot.ensemble.files` writes, under the name `blend` whatever the method. Where one member alone is left it is
the run's answer, and there is no ensemble.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from manihot.ensemble.blend import MEANS, blend
from manihot.ensemble.files import COMBINATION, blend_members, load_groups, load_tests, stack_level
from manihot.ensemble.members import check_weights, load_members
from manihot.ensemble.search import SEARCHES
from manihot.ensemble.second_level import as_weighted
from manihot.ensemble.stack import STACKERS
from manihot.errors import SettingsError
from manihot.progress import say
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.runs import RunFolder, digest_file, save_json
from manihot.settings import Blend, Recipe, suggest

WEIGHTS_OF_STACK = "differential_evolution"  # the 37th place's weights, which join the mean of its stackers
EXTRAS = {"lightgbm": "lightgbm", "optuna": "optuna"}  # ways of combining and the package that each needs


def members_of_blend(names: Sequence[str], settings: Blend) -> list[str]:
    """Those of the members `names` that become one answer, in the order of the recipe."""
    return [name for name in names if not settings.members or name in settings.members]


def check_blend(recipe: Recipe) -> None:
    """SettingsError with file and line for what `blend` asks that can't be: names, members, contradictions."""
    own, names = recipe.blend, list(recipe.member_recipes())

    def refuse(what: str, remedy: str, *key: str | int) -> None:
        dotted = ".".join(["blend", *map(str, key)])
        raise SettingsError(f"{recipe.where('blend', *key)}: {dotted}: {what}", remedy)

    methods = ["auto", "stack", *SEARCHES]
    if own.method in MEANS:
        refuse(f"{own.method!r} is a mean", f"method: uniform with mean: {own.method}", "method")
    if own.method not in methods:
        refuse(f"there is no way of blending called {own.method!r}", suggest(own.method, methods), "method")
    if own.mean not in MEANS:
        refuse(f"there is no mean {own.mean!r}", suggest(own.mean, list(MEANS)), "mean")
    for at, name in enumerate(own.members):
        if name not in names:
            refuse(f"the recipe has no member {name!r}", suggest(name, names), "members", at)
    for at, name in enumerate(own.stackers):
        if name not in STACKERS:
            refuse(f"there is no stacker {name!r}", suggest(name, list(STACKERS)), "stackers", at)
    for name in own.weights:
        if name not in names:
            refuse(f"the recipe has no member {name!r}", suggest(name, names), "weights", name)
    for name in {own.method, *own.stackers} & set(EXTRAS):
        if find_spec(EXTRAS[name]) is None:
            refuse(f"{name!r} needs the package {EXTRAS[name]}", "pip install 'manihot[ensemble]'", "method")
    _check_together(recipe, members_of_blend(names, own), refuse)


def _check_together(recipe: Recipe, blended: list[str], refuse: Any) -> None:
    """What is wrong only beside another setting."""
    own = recipe.blend
    fitted = own.method not in ("auto", "uniform")
    if own.weights:
        if own.method != "auto":
            refuse(f"stands beside the method {own.method!r}", "fixed weights need no method", "weights")
        missing = [name for name in blended if name not in own.weights]
        left_out = [name for name in own.weights if name not in blended]
        if missing or left_out:
            refuse(
                f"no weight for {', '.join(missing)}" if missing else f"{', '.join(left_out)} is not in blend.members",
                "give each member of the blend a weight (0 leaves it out), or name those to blend in blend.members",
                "weights",
            )
        if not sum(own.weights.values()):
            refuse("all weights are 0", "one above 0 at least", "weights")
    elif own.mean != "arithmetic" and own.method != "uniform":
        refuse(
            f"{own.mean!r} is for averaging, and the method {own.method!r} chooses weights of the arithmetic mean",
            "use it with method: uniform, or with fixed weights", "mean",
        )  # fmt: skip
    if own.method != "stack" and (own.stackers or own.with_weights):
        key = "stackers" if own.stackers else "with_weights"
        refuse(f"belongs to the method 'stack', not {own.method!r}", "method: stack", key)
    if fitted and len(blended) == 1:
        refuse(f"{own.method!r} of one member, {blended[0]!r}", "blend two members or more", "method")
    if own.mean == "rank" and recipe.folds.kind == "none":
        refuse("ranks are taken among held-out photographs, but folds.kind is 'none'", "mean: arithmetic", "mean")
    if fitted and recipe.folds.kind == "none":
        refuse(
            f"{own.method!r} is fitted on held-out photographs, but folds.kind is 'none'",
            "use method: uniform or fixed weights, or hold photographs out", "method",
        )  # fmt: skip


def blend_stage(folder: RunFolder, names: Sequence[str], settings: Blend, seed: int) -> str:
    """Make one answer of the members' predictions as the recipe says; returns whose predictions are the run's.

    'ensemble', or the one member that is left. Out-of-fold rows of anything fitted come from parts that were held
    out, duplicates kept together.
    """
    blended = members_of_blend(names, settings)
    if len(blended) == 1:
        _leave_one(folder, blended[0], names)
        return blended[0]
    oof, test = ([folder / f"predictions/{name}.{kind}.parquet" for name in blended] for kind in ("oof", "test"))
    if not all(path.exists() for path in oof):
        oof = []
    tests = test if all(path.exists() for path in test) else []
    kinds = [kind for kind, files in (("oof", oof), ("test", tests)) if files]

    def work() -> None:
        if (folder / "blend").exists():  # of other members or another method
            shutil.rmtree(folder / "blend")
        found = _combine(folder, blended, oof, tests, settings, seed)
        for kind in kinds:
            made = Predictions.load(folder / f"blend/blend.{kind}.parquet")
            made.save(folder / f"predictions/ensemble.{kind}.parquet")
        say(f"Blend of {len(blended)} members: {found['method']}")

    asked = settings.model_dump(mode="json")
    inputs = [[digest_file(path) for path in (*oof, *tests, folder / "folds.parquet")], blended, asked, seed]
    outputs = ["blend/blend.json", f"blend/{COMBINATION}"] + [f"predictions/ensemble.{kind}.parquet" for kind in kinds]
    folder.stage("blend", inputs, outputs, work)
    return "ensemble"


def _combine(
    folder: RunFolder, names: list[str], oof: list[Path], tests: list[Path], settings: Blend, seed: int
) -> dict[str, Any]:
    out = folder / "blend"
    weights = [settings.weights[name] for name in names] if settings.weights else None
    if not oof:
        found = _without_labels(folder, names, tests, settings, weights)
        save_json(out / "blend.json", found)
        return found
    members = load_members(oof)
    members = members.labelled() if settings.method == "stack" else members
    test = load_tests(tests, members)
    groups = load_groups(folder / "folds.parquet", members)
    if settings.method == "stack":
        stackers = [*(settings.stackers or ("logistic",)), *([WEIGHTS_OF_STACK] if settings.with_weights else [])]
        found = stack_level(members, out, test, stackers, groups, seed=seed, stem="blend")
        found = {**found, "asked": "stack", "method": f"stack of {found['method']}", "weights": None}
    else:
        found = blend_members(members, out, test, settings.method, weights, settings.mean, groups, seed=seed)
    save_json(out / "blend.json", found)
    return found


def _without_labels(
    folder: RunFolder, names: list[str], tests: list[Path], settings: Blend, weights: list[float] | None
) -> dict[str, Any]:
    """Averaging of the test photographs and of those to come, where nothing was held out to judge or fit by."""
    out, classes = folder / "blend", Manifest.load(folder / "folds.parquet").classes
    used = check_weights(weights, len(names))
    as_weighted(names, classes, used, settings.mean).save(out / COMBINATION)
    if tests:
        members = load_members(tests)
        probs = blend(members.pred_probs, used, settings.mean)
        made = Predictions.from_probs(members.image_id, probs, classes, members.labels, unknown=members.unknown)
        made.save(out / "blend.test.parquet")
        made.save_submission(out / "submission.csv")
    return {
        "members": names,
        "classes": list(classes),
        "asked": settings.method,
        "note": "no photograph was held out, so nothing says what the blend is worth",
        "method": "uniform" if weights is None else "fixed",
        "mean": settings.mean,
        "weights": dict(zip(names, map(float, used))),
    }


def _leave_one(folder: RunFolder, name: str, names: Sequence[str]) -> None:
    """One member is the run's answer: say so for `predict`, and take away an older ensemble."""
    if len(names) == 1 and not (folder / "blend").exists():
        return

    def work() -> None:
        shutil.rmtree(folder / "blend", ignore_errors=True)
        for kind in ("oof", "test"):
            (folder / f"predictions/ensemble.{kind}.parquet").unlink(missing_ok=True)
        classes = Manifest.load(folder / "folds.parquet").classes
        as_weighted([name], classes, np.ones(1)).save(folder / f"blend/{COMBINATION}")
        about = {"asked": "one member", "method": "one member", "mean": "arithmetic", "weights": {name: 1.0}}
        save_json(folder / "blend/blend.json", {"members": [name], "classes": list(classes), **about})
        say(f"No blend: the run's answers are those of {name}")

    folder.stage("blend", [name, digest_file(folder / "folds.parquet")], ["blend/blend.json"], work)
