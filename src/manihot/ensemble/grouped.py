"""Groups: members that become one answer first, and then take part in the run's blend as if they were one member.

The first place of Cassava Leaf Disease Classification averaged two networks to one before it searched weights, the
78th averaged four local ensembles. What is fitted inside a group is fitted the way the blend itself is: rows that are
judged, or that the blend around it learns from, come from photographs that were held out; and where the blend around
it is fitted too, the group is refitted without the labels that are away (`Grouped.without`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from manihot.ensemble.blend import blend
from manihot.ensemble.files import second_level_folds
from manihot.ensemble.members import Members, check_weights
from manihot.ensemble.nested import predict_held_out
from manihot.ensemble.search import SEARCHES
from manihot.ensemble.second_level import Combination, as_weighted
from manihot.ensemble.stack import Without, fit_stack, mean_of_stacks
from manihot.settings import BlendGroup, BlendSettings

WEIGHTS_OF_STACK = "differential_evolution"  # the 37th place's weights, which join the mean of its stackers
N_FOLDS = 5  # in which a group is fitted, where the first level's folds don't serve


@dataclass(frozen=True)
class Grouped:
    """Members as the blend around the groups sees them: `members` and `tests` hold a group in place of its members.

    without: as in `fit_stack`; None where no group is fitted. fitted: each group, for photographs to come. about: what
    is to be reported about each group.
    """

    members: Members
    tests: Members | None
    without: Without | None
    fitted: dict[str, Combination]
    about: dict[str, dict[str, Any]]


def stackers_of(settings: BlendSettings) -> list[str]:
    """Names whose mean a stack is: its stackers, and the search whose weights join them."""
    return [*(settings.stackers or ("logistic",)), *([WEIGHTS_OF_STACK] if settings.with_weights else [])]


def is_fitted(settings: BlendSettings) -> bool:
    """Whether a way of blending learns from labels."""
    return not settings.weights and settings.method != "uniform"


def group_members(
    members: Members,
    tests: Members | None,
    parts: list[str],
    groups: Mapping[str, BlendGroup],
    duplicates: np.ndarray | None = None,
    seed: int = 0,
) -> Grouped:
    """Blend each group of labelled members; parts: names of members and groups, in the order of the blend's members.

    duplicates: the photographs' groups (N,), which no division cuts. Raises DataError where there are too few
    photographs to fit on.
    """
    inside = {name: members.subset(groups[name].members) for name in parts if name in groups}
    held_out, fitted, about = {}, {}, {}
    for name, own in inside.items():
        held_out[name], fitted[name] = fit_group(own, groups[name], duplicates, seed)
        right = held_out[name].argmax(axis=1) == members.labels
        about[name] = _describe(groups[name], own.names, fitted[name]) | {"accuracy": float(right.mean())}
    kept: dict[bytes, np.ndarray] = {}

    def without(away: np.ndarray) -> np.ndarray:
        if (key := np.packbits(away).tobytes()) not in kept:
            kept[key] = _without(members, parts, inside, groups, duplicates, away, seed)
        return kept[key]

    together = _side_by_side(members, parts, held_out)
    told = None if tests is None else {name: _answer(one, tests) for name, one in fitted.items()}
    return Grouped(
        together,
        None if tests is None or told is None else _side_by_side(tests, parts, told),
        without if any(is_fitted(groups[name]) for name in inside) else None,
        fitted,
        about,
    )


def fit_group(
    members: Members, settings: BlendSettings, duplicates: np.ndarray | None = None, seed: int = 0
) -> tuple[np.ndarray, Combination]:
    """Answers (N, K) on labelled photographs, each by what was fitted without it, and the group fitted on all."""
    probs, labels, names = members.pred_probs, members.labels, members.names
    if not is_fitted(settings):
        weights = check_weights([settings.weights[name] for name in names] if settings.weights else None, len(names))
        reference = probs if settings.mean == "rank" else None
        fitted = as_weighted(names, members.classes, weights, settings.mean, reference)
        return blend(probs, weights, settings.mean), fitted
    folds, _ = second_level_folds(members, duplicates, N_FOLDS, seed)
    if settings.method == "stack":
        stacks = [fit_stack(probs, labels, one, None, folds, duplicates, seed=seed) for one in stackers_of(settings)]
        stacked = mean_of_stacks(stacks)
        return stacked.oof, Combination(names, members.classes, stacked.fitted)
    held_out = predict_held_out(settings.method, probs, labels, folds, seed)
    return held_out, as_weighted(names, members.classes, SEARCHES[settings.method](probs, labels, seed))


def group_means(
    groups: Mapping[str, BlendGroup], parts: Sequence[str], classes: Sequence[str]
) -> dict[str, tuple[Combination, dict[str, Any]]]:
    """Groups that fit nothing, each with what to report about it, where there are no labels to judge them by."""
    out = {}
    for name in (name for name in parts if name in groups):
        settings, own = groups[name], groups[name].members
        weights = check_weights([settings.weights[one] for one in own] if settings.weights else None, len(own))
        made = as_weighted(own, classes, weights, settings.mean)
        out[name] = made, _describe(settings, own, made)
    return out


def _without(
    members: Members,
    parts: list[str],
    inside: Mapping[str, Members],
    groups: Mapping[str, BlendGroup],
    duplicates: np.ndarray | None,
    away: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Parts (P, N, K) to which the labels of the photographs `away` taught nothing."""
    out = np.empty((len(parts), *members.pred_probs.shape[1:]), dtype=np.float32)
    for number, name in enumerate(parts):
        if name not in inside:
            out[number] = members.pred_probs[members.names.index(name)]
            continue
        rest = None if duplicates is None else duplicates[~away]
        out[number, ~away], fitted = fit_group(inside[name].take(~away), groups[name], rest, seed)
        out[number, away] = _answer(fitted, inside[name].take(away))
    return out


def _answer(fitted: Combination, members: Members) -> np.ndarray:
    return fitted(members.subset(fitted.members).pred_probs)


def _side_by_side(members: Members, parts: list[str], answers: Mapping[str, np.ndarray]) -> Members:
    probs = [answers[one] if one in answers else members.pred_probs[members.names.index(one)] for one in parts]
    return replace(members, names=tuple(parts), pred_probs=np.stack(probs).astype(np.float32))


def _describe(settings: BlendGroup, names: tuple[str, ...], fitted: Combination) -> dict[str, Any]:
    about: dict[str, Any] = {"members": list(names), "method": "fixed" if settings.weights else settings.method}
    if settings.method == "stack":
        return about | {"stackers": stackers_of(settings)}
    (((part,),),) = (fitted.parts,)
    weights = dict(zip(fitted.members, map(float, part.arrays["weights"])))
    return about | {"mean": settings.mean, "weights": {name: weights.get(name, 0.0) for name in names}}
