"""The blend as a stage of a run: what a recipe's `blend` asks for, checked before training and done after it.

Left in RUN: predictions/ensemble.oof.parquet and ensemble.test.parquet, and in blend/ what
`manihot.ensemble.files` writes, under the name `blend` whatever the method, but for the submission, which the run
writes for all its test photographs (`infer/outputs.py`). Where one member alone is left it is the run's answer, and
there is no ensemble.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from manihot.ensemble.blend import MEANS
from manihot.ensemble.files import blend_members, load_tests, stack_level
from manihot.ensemble.grouped import group_means, group_members, stackers_of
from manihot.ensemble.members import check_weights, load_members
from manihot.ensemble.search import SEARCHES
from manihot.ensemble.second_level import Combination, as_weighted, with_groups
from manihot.ensemble.stack import FITTED_BY_TORCH, STACKERS
from manihot.errors import MissingExtraError, SettingsError
from manihot.progress import say
from manihot.records.files import digest_file, save_json
from manihot.records.groups import load_groups
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.run_folder import ENSEMBLE, Files, RunFolder
from manihot.records.run_places import member_of
from manihot.settings import Blend, BlendSettings, Recipe, suggest

Refuse = Callable[..., NoReturn]  # (what, remedy, *key)
# ways of combining that need a package, and the extra that brings it
EXTRAS = {
    "lightgbm": ("lightgbm", "ensemble"),
    "optuna": ("optuna", "ensemble"),
    **{name: ("torch", "train") for name in FITTED_BY_TORCH},
}


def parts_of_blend(names: Sequence[str], settings: Blend) -> list[str]:
    """What is blended: members and groups of them, in the order of the recipe, a group at its first member's place."""
    return [part for part in _all_parts(names, settings) if not settings.members or part in settings.members]


def members_of_blend(names: Sequence[str], settings: Blend) -> list[str]:
    """Those of the members `names` that become one answer, in the order of the recipe."""
    parts = parts_of_blend(names, settings)
    inside = {one for part in parts if part in settings.groups for one in settings.groups[part].members}
    return [name for name in names if name in parts or name in inside]


def _all_parts(names: Sequence[str], settings: Blend) -> list[str]:
    group_of = {one: group for group, about in settings.groups.items() for one in about.members}
    return list(dict.fromkeys(group_of.get(name, name) for name in names))


def check_blend(recipe: Recipe) -> None:
    """SettingsError with file and line for what `blend` asks that can't be: names, members, contradictions."""
    own, names = recipe.blend, list(recipe.member_recipes())
    for group, way in own.groups.items():
        _check_group(recipe, group, names)
        refuse = _refusal(recipe, "groups", group)
        _check_settings(way, [*way.members], refuse, ["uniform", "stack", *SEARCHES])
        _check_together(way, [*way.members], refuse, recipe.folds.kind)
    refuse = _refusal(recipe)
    known = _all_parts(names, own)
    named = [*(("members", at, name) for at, name in enumerate(own.members)), *(("weights", n, n) for n in own.weights)]
    for key, at, name in named:
        group = next((group for group, way in own.groups.items() if name in way.members), "")
        if group:
            refuse(f"{name!r} is in the group {group!r}", f"name the group: {group}", key, at)
    for at, name in enumerate(own.members):
        if name not in known:
            refuse(f"the recipe has no member {name!r}", suggest(name, known), "members", at)
    _check_settings(own, known, refuse, ["auto", "stack", *SEARCHES])
    _check_together(own, parts_of_blend(names, own), refuse, recipe.folds.kind)


def _refusal(recipe: Recipe, *above: str) -> Refuse:
    """What raises the SettingsError for a key below `blend` and `above`."""

    def refuse(what: str, remedy: str, *key: str | int) -> NoReturn:
        place = ("blend", *above, *key)
        raise SettingsError(f"{recipe.where(*place)}: {'.'.join(map(str, place))}: {what}", remedy)

    return refuse


def _check_group(recipe: Recipe, group: str, names: Sequence[str]) -> None:
    """SettingsError where a group's name or members can't be."""
    own, refuse = recipe.blend.groups, _refusal(recipe, "groups", group)
    if group in names:
        refuse("the recipe has a member of that name", "give the group another name")
    if not own[group].members:
        refuse("the group has no members", f"members: some of {', '.join(names)}")
    for at, name in enumerate(own[group].members):
        if name in own:
            refuse(f"{name!r} is a group, and groups hold members", "name its members", "members", at)
        if name not in names:
            refuse(f"the recipe has no member {name!r}", suggest(name, names), "members", at)
        if name in own[group].members[:at]:
            refuse(f"{name!r} appears twice", "name each member once", "members", at)
        other = next((one for one, way in own.items() if one != group and name in way.members), "")
        if other:
            refuse(f"{name!r} is in the group {other!r} too", "a member belongs to one group", "members", at)


def _check_settings(own: BlendSettings, known: Sequence[str], refuse: Refuse, methods: Sequence[str]) -> None:
    """Names that exist, and packages that are there; known: what may be given a weight."""
    if own.method in MEANS:
        refuse(f"{own.method!r} is a mean", f"method: uniform with mean: {own.method}", "method")
    if own.method not in methods:
        refuse(f"there is no way of blending called {own.method!r}", suggest(own.method, methods), "method")
    if own.mean not in MEANS:
        refuse(f"there is no mean {own.mean!r}", suggest(own.mean, list(MEANS)), "mean")
    for at, name in enumerate(own.stackers):
        if name not in STACKERS:
            refuse(f"there is no stacker {name!r}", suggest(name, list(STACKERS)), "stackers", at)
    for name in own.weights:
        if name not in known:
            refuse(f"the blend has no member {name!r}", suggest(name, known), "weights", name)
    for name in {own.method, *own.stackers} & set(EXTRAS):
        package, extra = EXTRAS[name]
        if find_spec(package) is None:
            missing = MissingExtraError(repr(name), extra)
            refuse(missing.what, missing.remedy, "method" if name == own.method else "stackers")


def needs_torch(settings: Blend) -> bool:
    """Whether a stacker that torch fits takes part, so that `manihot.train.stackers` must be imported."""
    ways = [settings, *settings.groups.values()]
    return any(way.method == "stack" and set(way.stackers) & set(FITTED_BY_TORCH) for way in ways)


def _check_together(own: BlendSettings, blended: Sequence[str], refuse: Refuse, folds: str) -> None:
    """What is wrong only beside another setting; folds: their kind."""
    fitted = own.method not in ("auto", "uniform")
    if own.weights:
        if own.method != type(own)().method:
            refuse(f"is set together with the method {own.method!r}", "fixed weights need no method", "weights")
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
            "use it with method: uniform, or with fixed weights",
            "mean",
        )
    if own.method != "stack" and (own.stackers or own.with_weights):
        key = "stackers" if own.stackers else "with_weights"
        refuse(f"belongs to the method 'stack', not {own.method!r}", "method: stack", key)
    if isinstance(own, Blend) and own.views and (own.groups or own.weights):
        key = "groups" if own.groups else "weights"
        refuse("is set together with blend.views, by which the method weighs each view", "leave one of them out", key)
    if fitted and len(blended) == 1 and not (isinstance(own, Blend) and own.views):
        refuse(f"{own.method!r} of one member, {blended[0]!r}", "blend two members or more", "method")
    if own.mean == "rank" and folds == "none":
        refuse("ranks are taken among held-out photographs, but folds.kind is 'none'", "mean: arithmetic", "mean")
    if fitted and folds == "none":
        refuse(
            f"{own.method!r} is fitted on held-out photographs, but folds.kind is 'none'",
            "use method: uniform or fixed weights, or hold photographs out",
            "method",
        )


def blend_stage(folder: RunFolder, names: Sequence[str], settings: Blend, seed: int) -> str:
    """Make one answer of the members' predictions as the recipe says; returns whose predictions are the run's.

    'ensemble', or the one member that is left. With `views` each view of each member takes part by itself. Out-of-fold
    rows of anything fitted come from parts that were held out, duplicates kept together.
    """
    blended, parts = members_of_blend(names, settings), parts_of_blend(names, settings)
    if settings.views:
        kind = "oof" if folder.views("oof") else "test"
        blended = parts = [view for name in blended for view in folder.views(kind, name)]
    if len(blended) == 1:
        _leave_one(folder, member_of(blended[0]), names)
        return member_of(blended[0])
    oof, test = ([folder.predictions(name, kind) for name in blended] for kind in ("oof", "test"))
    if not all(path.exists() for path in oof):
        oof = []
    tests = test if all(path.exists() for path in test) else []
    kinds = [kind for kind, files in (("oof", oof), ("test", tests)) if files]

    def work() -> Files:
        folder.blend.clear()  # of other members or another method
        found = _combine(folder, parts, oof, tests, settings, seed)
        for kind in kinds:
            made = Predictions.load(folder.blend.predictions(kind))
            made.save(folder.predictions(ENSEMBLE, kind))
        folder.blend.submission.unlink(missing_ok=True)  # the run's own covers unreadable photographs too
        say(f"Blend of {len(blended)} {'views' if settings.views else 'members'}: {found['method']}")
        return outputs

    asked = settings.model_dump(mode="json", exclude=set() if settings.groups else {"groups"})
    inputs = [[digest_file(path) for path in (*oof, *tests, folder.folds)], blended, asked, seed]
    outputs = [folder.blend.summary, folder.blend.combination, *(folder.predictions(ENSEMBLE, kind) for kind in kinds)]
    folder.stage("blend", inputs, work)
    return "ensemble"


def _combine(
    folder: RunFolder, parts: list[str], oof: list[Path], tests: list[Path], settings: Blend, seed: int
) -> dict[str, Any]:
    out = folder.blend.path
    weights = [settings.weights[name] for name in parts] if settings.weights else None
    if not oof:
        found = _without_labels(folder, parts, tests, settings, weights)
        save_json(folder.blend.summary, found)
        return found
    members = load_members(oof)
    members = members.labelled() if settings.method == "stack" or settings.groups else members
    test = load_tests(tests, members)
    groups = load_groups(folder.folds, members.image_id)
    grouped = group_members(members, test, parts, settings.groups, groups, seed) if settings.groups else None
    without = None if grouped is None else grouped.without
    if grouped is not None:
        members, test = grouped.members, grouped.tests
    if settings.method == "stack":
        found = stack_level(members, out, test, stackers_of(settings), groups, seed=seed, stem="blend", without=without)
        found = {**found, "asked": "stack", "method": f"stack of {found['method']}", "weights": None}
    else:
        found = blend_members(
            members, out, test, settings.method, weights, settings.mean, groups, seed=seed, without=without
        )
    if grouped is not None:
        with_groups(Combination.load(folder.blend.combination), grouped.fitted).save(folder.blend.combination)
        found["groups"] = {name: grouped.about[name] for name in parts if name in grouped.about}
    save_json(folder.blend.summary, found)
    return found


def _without_labels(
    folder: RunFolder, parts: list[str], tests: list[Path], settings: Blend, weights: list[float] | None
) -> dict[str, Any]:
    """Averaging of the test photographs and of those to come, where nothing was held out to judge or fit by."""
    classes = Manifest.load(folder.folds).classes
    used = check_weights(weights, len(parts))
    groups = group_means(settings.groups, parts, classes)
    fitted = {name: one for name, (one, _) in groups.items()}
    whole = with_groups(as_weighted(parts, classes, used, settings.mean), fitted)
    whole.save(folder.blend.combination)
    if tests:
        members = load_members(tests)
        probs = whole(members.subset(whole.members).pred_probs)
        made = Predictions.from_probs(
            members.image_id, probs, classes, members.labels, unknown=members.unknown, numbers=members.numbers
        )
        made.save(folder.blend.predictions("test"))
    about = {"groups": {name: told for name, (_, told) in groups.items()}} if groups else {}
    return {
        "members": parts,
        "classes": list(classes),
        "asked": settings.method,
        "note": "no photograph was held out, so nothing says what the blend is worth",
        "method": "uniform" if weights is None else "fixed",
        "mean": settings.mean,
        "weights": dict(zip(parts, map(float, used))),
        **about,
    }


def _leave_one(folder: RunFolder, name: str, names: Sequence[str]) -> None:
    """One member is the run's answer: say so for `predict`, and take away an older ensemble."""
    if len(names) == 1 and not (folder.blend.summary.exists() or folder.blend.combination.exists()):
        return

    def work() -> Files:
        folder.blend.clear()
        for kind in ("oof", "test"):
            folder.predictions(ENSEMBLE, kind).unlink(missing_ok=True)
        classes = Manifest.load(folder.folds).classes
        as_weighted([name], classes, np.ones(1)).save(folder.blend.combination)
        about = {"asked": "one member", "method": "one member", "mean": "arithmetic", "weights": {name: 1.0}}
        save_json(folder.blend.summary, {"members": [name], "classes": list(classes), **about})
        say(f"No blend: the run's answers are those of {name}")
        return [folder.blend.summary]

    folder.stage("blend", [name, digest_file(folder.folds)], work)
