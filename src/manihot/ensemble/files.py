"""From prediction files to a blend or a stack on disk: what `manihot blend` and `manihot stack` do.

Written into the output folder: blend.json (what was done and what it is worth), blend.oof.parquet,
blend.test.parquet and submission.csv where there are test predictions, members.csv (every metric of each
member and of the blend), subsets.csv (the best subsets, averaged), nested.csv (what each method claims and is worth),
diversity.png, diversity.csv,
combination.npz (how new members' predictions become one). For a stack the same names with `stack` instead of
`blend`. Out-of-fold rows of anything fitted come from parts
that were held out, so later stages may fit on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from manihot.ensemble.blend import MEANS, blend
from manihot.ensemble.diversity import draw_diversity, measure_leave_one_out
from manihot.ensemble.members import Members, check_weights, load_members
from manihot.ensemble.nested import (
    DEFAULT_METHODS,
    FAMILY_ERROR,
    method_names,
    nested_cv,
    paired_interval,
    predict_held_out,
    shows_gain,
)
from manihot.ensemble.plans import load_plan
from manihot.ensemble.search import SEARCHES, rank_subsets, score_subsets
from manihot.ensemble.second_level import Combination, as_weighted
from manihot.ensemble.stack import STACKERS, Without, check_folds, fit_stack, mean_of_stacks
from manihot.errors import DataError, SettingsError
from manihot.metrics import METRICS, PER_CLASS, evaluate
from manihot.records.csv_files import save_csv
from manihot.records.files import save_json
from manihot.records.folds import make_folds
from manihot.records.groups import group_numbers, load_groups
from manihot.records.predictions import Predictions
from manihot.records.run_parts import BlendFolder
from manihot.records.run_places import RunPlaces
from manihot.records.submissions import save_submission
from manihot.settings import suggest

MOST_RANKED = 14  # members whose subsets are all ranked: 2^14, seconds
FEWEST_A_FOLD = 4  # photographs in each fold of a nested cross-validation
INTERVALS_UP_TO = 200_000  # photographs; beyond, the intervals are narrower than anything that matters


def blend_files(
    oof: Sequence[Path],
    out: Path,
    test: Sequence[Path] = (),
    method: str = "auto",
    weights: Sequence[float] | None = None,
    mean: str = "arithmetic",
    manifest: Path | None = None,
    methods: Sequence[str] = DEFAULT_METHODS,
    metric: str = "accuracy",
    n_folds: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Blend members' out-of-fold (and test) predictions into the folder `out`; returns what blend.json says.

    method: 'auto' (plain averaging unless nested cross-validation shows a gain of one of `methods`),
    'uniform', or a name of MEANS or SEARCHES. weights: fixed ones instead, a number per member. mean: how
    'uniform' and fixed weights average. manifest: parquet whose groups keep duplicates together. Raises
    DataError or SettingsError.
    """
    members = load_members(oof)
    tests = load_tests(test, members)
    return blend_members(
        members,
        out,
        tests,
        method,
        weights,
        mean,
        load_groups(manifest, members.image_id),
        methods,
        metric,
        n_folds,
        seed,
    )


def views_of_run(run: Path) -> tuple[list[Path], list[Path]]:
    """The out-of-fold and the test predictions of each view of a run's members; DataError where it saved none."""
    places = RunPlaces(Path(run))
    oof, test = (places.views(kind) for kind in ("oof", "test"))
    if not oof:
        raise DataError(
            f"{run}: no predictions of single views",
            "run the recipe again with --set save_views=true --update, which retrains nothing",
        )
    tests = [places.predictions(name, "test") for name in oof] if test == oof else []
    return [places.predictions(name, "oof") for name in oof], tests


def blend_plan(
    plan: str | Path, folder: Path, out: Path, manifest: Path | None = None, seed: int = 0
) -> dict[str, Any]:
    """Blend as a plan says (`manihot.ensemble.plans`), from prediction files under a run folder.

    manifest: parquet whose groups keep duplicates together; the run's own folds.parquet when left out and there.
    """
    chosen, own = load_plan(plan), RunPlaces(Path(folder)).folds
    manifest = own if manifest is None and own.is_file() else manifest
    members = chosen.load(folder, "oof")
    tests = chosen.load(folder, "test") if chosen.has_files(folder, "test") else None
    groups = load_groups(manifest, members.image_id)
    return blend_members(members, out, tests, "fixed", chosen.weights, chosen.mean, groups, seed=seed, plan=chosen.name)


def blend_members(
    members: Members,
    out: Path,
    tests: Members | None = None,
    method: str = "auto",
    weights: Sequence[float] | None = None,
    mean: str = "arithmetic",
    groups: np.ndarray | None = None,
    methods: Sequence[str] = DEFAULT_METHODS,
    metric: str = "accuracy",
    n_folds: int = 5,
    seed: int = 0,
    plan: str | None = None,
    without: Without | None = None,
) -> dict[str, Any]:
    """`blend_files` for members already read; groups: (N,) or None. without: as in `fit_stack`."""
    known = members.labels >= 0
    names = ["auto", "uniform", "fixed", *(n for n in method_names() if n not in STACKERS)]
    if method not in names:
        hint = "stackers have their own command, `manihot stack`" if method in STACKERS else suggest(method, names)
        raise SettingsError(f"members can't be blended by {method!r}", hint)
    if mean not in MEANS:
        raise SettingsError(f"there is no mean {mean!r}", suggest(mean, list(MEANS)))
    if weights is not None:
        method = "fixed"
    elif method == "fixed":
        raise SettingsError("fixed weights need their numbers", "give one weight per member")
    elif method != "uniform" and mean != "arithmetic":
        raise SettingsError(
            f"the mean {mean!r} is for averaging, and the method {method!r} chooses weights of the arithmetic mean",
            f"use the method uniform with the mean {mean!r}, or leave the mean out",
        )
    record: dict[str, Any] = {"asked": method, "plan": plan, "seed": seed}
    note = _why_plain(members, groups, n_folds)
    if method == "auto" and note:
        record["note"], method = note, "uniform"
    elif method == "auto":
        own = members.labelled()
        own_groups = None if groups is None else groups[known]
        nested = nested_cv(own.pred_probs, own.labels, own_groups, methods, metric, n_folds, seed=seed, without=without)
        save_csv(nested.table, Path(out) / "nested.csv")
        record["nested"] = nested.table.to_dict("records")
        method = nested.chosen
    probs, test_probs, used = _apply(members, tests, method, weights, mean, groups, n_folds, seed, without)
    kind = method if method in MEANS else mean if method in ("uniform", "fixed") else "arithmetic"
    reference = members.pred_probs if kind == "rank" else None
    as_weighted(members.names, members.classes, used, kind, reference).save(BlendFolder(Path(out)).combination)
    record |= {"method": method, "mean": kind, "weights": dict(zip(members.names, map(float, used)))}
    _write_diversity(members, groups, Path(out), seed)
    if ranked := _rank(members):
        record["subsets"] = ranked
        rows = [{**row, "members": " + ".join(row["members"])} for row in ranked]
        save_csv(pd.DataFrame(rows), Path(out) / "subsets.csv")
    return _write(Path(out), "blend", members, probs, tests, test_probs, record, groups)


def _rank(members: Members) -> list[dict[str, Any]]:
    """The 50 subsets whose plain average is right most often, on the photographs that they are chosen by, best first.

    None where there are no labels, one member, or more than MOST_RANKED.
    """
    own = members.labelled() if (members.labels >= 0).any() else None
    if own is None or not 2 <= len(own.names) <= MOST_RANKED:
        return []
    return [
        {"members": [own.names[k] for k in chosen], "right": right, "accuracy": right / len(own.labels)}
        for chosen, right in rank_subsets(score_subsets(own.pred_probs, own.labels))
    ]


def _write_diversity(members: Members, groups: np.ndarray | None, out: Path, seed: int) -> None:
    """How the members differ, as a table and a picture, where there are several and labels."""
    known = members.labels >= 0
    if not known.any() or len(members.names) == 1:
        return
    own, own_groups = members.labelled(), None if groups is None else groups[known]
    table = measure_leave_one_out(own.pred_probs, own.labels, own.names, own_groups, seed)
    save_csv(table, out / "diversity.csv")
    draw_diversity(own.pred_probs, own.labels, own.names, out / "diversity.png")


def _why_plain(members: Members, groups: np.ndarray | None, n_folds: int) -> str:
    """Why nothing but plain averaging can be judged, or ''."""
    known = members.labels >= 0
    if len(members.names) == 1:
        return "one member only"
    if not known.any():
        return "no labels to fit or judge with"
    units = len(np.unique(group_numbers(None if groups is None else groups[known], int(known.sum()))))
    if units < FEWEST_A_FOLD * n_folds:
        return f"{units} photographs, counting duplicates once, are too few to judge a fitted blend on"
    return ""


def _apply(
    members: Members,
    tests: Members | None,
    method: str,
    weights: Sequence[float] | None,
    mean: str,
    groups: np.ndarray | None,
    n_folds: int,
    seed: int,
    without: Without | None = None,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Out-of-fold (held-out where fitted) and test probabilities, and the weights in use."""
    if method in SEARCHES and method != "uniform":
        known = members.labels >= 0
        own = members.labelled()
        used = SEARCHES[method](own.pred_probs, own.labels, seed)
        folds = make_folds(own.labels, None if groups is None else groups[known], n_folds, seed)
        probs = blend(members.pred_probs, used)
        probs[known] = predict_held_out(method, own.pred_probs, own.labels, folds, seed, without)
        return probs, None if tests is None else blend(tests.pred_probs, used), used
    kind = method if method in MEANS else mean
    used = check_weights(weights if method == "fixed" else None, len(members.names))
    settings = {"reference": members.pred_probs} if kind == "rank" else {}
    test_probs = None if tests is None else blend(tests.pred_probs, used, kind, **settings)
    return blend(members.pred_probs, used, kind), test_probs, used


def stack_files(
    oof: Sequence[Path],
    out: Path,
    test: Sequence[Path] = (),
    methods: Sequence[str] = ("logistic",),
    manifest: Path | None = None,
    n_folds: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Stack members' out-of-fold (and test) predictions into the folder `out`; returns what stack.json says.

    methods: names of STACKERS; several are averaged. Second-level folds are the first level's where the files
    hold them, else made from the manifest's groups. `gain` says whether the stack is better than plain
    averaging, and than the same stacker on the plain average, beyond chance. Raises DataError or
    SettingsError.
    """
    members = load_members(oof).labelled()
    tests = load_tests(test, members)
    return stack_level(members, out, tests, methods, load_groups(manifest, members.image_id), n_folds, seed)


def stack_level(
    members: Members,
    out: Path,
    tests: Members | None = None,
    methods: Sequence[str] = ("logistic",),
    groups: np.ndarray | None = None,
    n_folds: int = 5,
    seed: int = 0,
    stem: str = "stack",
    without: Without | None = None,
) -> dict[str, Any]:
    """`stack_files` for labelled members already read; groups: (N,) or None. methods may hold names of SEARCHES:
    their weights then join the mean of the stackers (37th place). without: as in `fit_stack`.
    """
    if not methods:
        raise SettingsError("no stacker is named", f"one or more of: {', '.join(STACKERS)}")
    folds, said = second_level_folds(members, groups, n_folds, seed)
    test_probs = None if tests is None else tests.pred_probs
    stacks = [
        fit_stack(members.pred_probs, members.labels, m, test_probs, folds, groups, seed=seed, without=without)
        for m in methods
    ]
    stacked = mean_of_stacks(stacks)
    average = blend(members.pred_probs)
    alone = mean_of_stacks(
        [fit_stack(average[None], members.labels, m, None, folds, groups, seed=seed) for m in methods]
    ).oof
    units = group_numbers(groups, len(members.labels))
    right = [(p.argmax(axis=1) == members.labels).astype(float) for p in (stacked.oof, average, alone)]
    low, high = paired_interval(right[0] - right[1], units, (0.025, 0.975), seed)
    record: dict[str, Any] = {
        "method": stacked.method,
        "folds": said,
        "accuracy": float(right[0].mean()),
        "plain_accuracy": float(right[1].mean()),
        "difference": {"value": float((right[0] - right[1]).mean()), "low": low, "high": high},
        "stacked_average_accuracy": float(right[2].mean()),
        "gain": all(shows_gain(right[0] - other, units, FAMILY_ERROR, seed) for other in right[1:]),
        "seed": seed,
    }
    Combination(members.names, members.classes, stacked.fitted).save(BlendFolder(Path(out)).combination)
    _write_diversity(members, groups, Path(out), seed)
    return _write(Path(out), stem, members, stacked.oof, tests, stacked.test, record, groups, folds)


def second_level_folds(members: Members, groups: np.ndarray | None, n_folds: int, seed: int) -> tuple[np.ndarray, str]:
    """Folds (N,) that cut no group: the first level's where they are known and do that; and where they come from."""
    if members.has_folds:
        try:
            check_folds(members.fold, groups, len(members.labels))
            return members.fold, "first level's"
        except DataError:  # a user's own folds may part duplicates; the second level's must not
            said = "made from groups, which the first level's cut"
    else:
        said = "made" if groups is None else "made from groups"
    return make_folds(members.labels, groups, n_folds, seed), said


def load_tests(paths: Sequence[Path], members: Members) -> Members | None:
    """Test predictions of the same members in the same order, or None for no paths (DataError where they
    differ).
    """
    if not paths:
        return None
    tests = load_members(paths, members.classes)
    if len(tests.names) != len(members.names) or tests.classes != members.classes:
        raise DataError(
            f"{len(tests.names)} test files with classes {', '.join(tests.classes)} don't fit "
            f"{len(members.names)} members with classes {', '.join(members.classes)}",
            "give one test file per member, in the same order",
        )
    if set(tests.names) == set(members.names) and tests.names != members.names:
        raise DataError(
            f"test files come in the order {', '.join(tests.names)}, members in {', '.join(members.names)}",
            "give both in the same order",
        )
    return tests


def _write(
    out: Path,
    stem: str,
    members: Members,
    probs: np.ndarray,
    tests: Members | None,
    test_probs: np.ndarray | None,
    record: Mapping[str, Any],
    groups: np.ndarray | None,
    folds: np.ndarray | None = None,
) -> dict[str, Any]:
    record = {"members": list(members.names), "classes": list(members.classes), **record}
    fold = members.fold if folds is None else folds
    made = Predictions.from_probs(
        members.image_id, probs, members.classes, members.labels, fold, unknown=members.unknown, numbers=members.numbers
    )
    made.save(BlendFolder(out).predictions("oof", stem))
    if tests is not None and test_probs is not None:
        test = Predictions.from_probs(
            tests.image_id, test_probs, members.classes, tests.labels, unknown=tests.unknown, numbers=tests.numbers
        )
        test.save(BlendFolder(out).predictions("test", stem))
        save_submission(test, BlendFolder(out).submission)
    known = members.labels >= 0
    if known.any():
        y = members.labels[known]
        rows = [(name, member[known]) for name, member in zip(members.names, members.pred_probs)]
        rows.append((stem, probs[known]))
        table = pd.DataFrame([{"member": n, **measure_all(y, p, members.classes)} for n, p in rows])
        save_csv(table, out / "members.csv")
        if len(y) <= INTERVALS_UP_TO:
            own_groups = None if groups is None else groups[known]
            record["metrics"] = evaluate(y, probs[known], members.classes, own_groups, repeats=200)
        else:
            values = table.loc[len(table) - 1, list(METRICS)]
            plain = {str(key): None if np.isnan(value) else float(value) for key, value in values.items()}
            record["metrics"] = {"n": len(y), "metrics": plain}
    save_json(out / f"{stem}.json", record)
    return record


def measure_all(labels: np.ndarray, pred_probs: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Every metric, and every metric of a class as `name[class]`, as one row of a table."""
    row: dict[str, Any] = {name: metric(labels, pred_probs) for name, metric in METRICS.items()}
    for name, metric in PER_CLASS.items():
        values = np.asarray(metric(labels, pred_probs))
        row |= {f"{name}[{c}]": float(value) for c, value in zip(classes, values)}
    return row
