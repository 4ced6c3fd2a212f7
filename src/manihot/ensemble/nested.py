"""What a way of combining members is worth on fresh photographs, beside what it claims on those it was fitted
on.

Nested cross-validation: the members' out-of-fold probabilities are divided once more, groups of duplicates
whole; each method is fitted on all parts but one and scored on that one, against plain averaging on the same
photographs. Fitted weights look better in-sample always and are worse on fresh photographs often, so plain
averaging stays the default unless a method's gain holds against three doubts:

- paired bootstrap over groups (Efron and Tibshirani 1993), its lower bound above zero at a family-wise 0.1 %
over
  all methods tried (Bonferroni);
- for accuracy, the exact sign test over the groups that changed (McNemar 1947), since a bootstrap of a
handful of
  changed answers is too sure of itself;
- for a stacker, the same against the stacker fitted on the plain average alone: what recalibrating the
average
  gives is no merit of the combination.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from manihot.ensemble.blend import MEANS, blend
from manihot.ensemble.members import check_members
from manihot.ensemble.search import MAX_SUBSET_MEMBERS, SEARCHES
from manihot.ensemble.stack import STACKERS, Predictor, Without, check_folds
from manihot.errors import SettingsError
from manihot.progress import track
from manihot.records.folds import make_folds
from manihot.records.groups import group_numbers
from manihot.records.probabilities import log_probs
from manihot.settings import suggest
from manihot.trust.calibrate import fit_temperature, scale_temperature

FAMILY_ERROR = 0.001  # chance that any method is called a gain where none is
DRAWS = 20_000  # bootstrap draws where few distinct values make them cheap
DRAWS_CONTINUOUS = 4_000
DEFAULT_METHODS = ("geometric", "best_subset", "greedy", "simplex", "nelder_mead", "differential_evolution")


def fit_method(name: str, pred_probs: np.ndarray, labels: np.ndarray, seed: int = 0) -> Predictor:
    """Fit a mean, a search or a stacker by its name on members (M, N, K); returns a predictor (M, N', K) ->
    (N', K).
    """
    if name in SEARCHES:
        weights = SEARCHES[name](pred_probs, labels, seed)
        return lambda new: blend(new, weights)
    if name in STACKERS:
        return STACKERS[name](pred_probs, labels, seed)
    if name == "rank":
        return lambda new: blend(new, None, "rank", reference=pred_probs)
    if name in MEANS:
        return lambda new: blend(new, None, name)
    raise SettingsError(f"unknown way of combining members: {name!r}", suggest(name, method_names()))


def method_names() -> list[str]:
    """All names that `fit_method` knows."""
    return [*dict.fromkeys([*MEANS, *SEARCHES, *STACKERS])]


def predict_held_out(
    name: str,
    pred_probs: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    seed: int = 0,
    without: Without | None = None,
) -> np.ndarray:
    """Probabilities (N, K), each row by the method fitted on the other folds; folds int (N,).

    without: as in `fit_stack`.
    """
    out = np.empty(pred_probs.shape[1:])
    for fold in np.unique(folds):
        away = folds == fold
        seen = pred_probs if without is None else without(away)
        out[away] = fit_method(name, seen[:, ~away], labels[~away], seed)(seen[:, away])
    return out


@dataclass(frozen=True)
class NestedResult:
    """table: one row a method, columns as in `nested_cv`. chosen: the method to use, 'uniform' unless a gain
    is shown.
    """

    table: pd.DataFrame
    chosen: str
    metric: str


def nested_cv(
    pred_probs: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None = None,
    methods: Sequence[str] = DEFAULT_METHODS,
    metric: str = "accuracy",
    n_folds: int = 5,
    repeats: int = 1,
    seed: int = 0,
    without: Without | None = None,
) -> NestedResult:
    """What each method claims in-sample and what it is worth on held-out photographs, against plain
    averaging.

    pred_probs: out-of-fold (M, N, K). labels: (N,). groups: (N,), duplicates together. metric: 'accuracy' or
    'log_loss'; for the latter every blend is given the temperature that fits the training part, so that
    boldness alone is no gain. repeats: how many divisions are averaged. without: as in `fit_stack`.

    Columns: method, claimed (fitted and scored on everything), fresh (held out), plain (plain averaging, the
    same way), gain = fresh against plain with its 95 % interval low, high (positive is better),
    changed_groups, is_gain. Raises DataError for what doesn't fit, SettingsError for an unknown method or
    metric.
    """
    pred_probs, labels = check_members(pred_probs, labels)
    if metric not in ("accuracy", "log_loss"):
        raise SettingsError(f"methods can't be chosen by {metric!r}", suggest(metric, ["accuracy", "log_loss"]))
    names = [name for name in dict.fromkeys(methods) if name not in ("uniform", "arithmetic")]
    if len(pred_probs) > MAX_SUBSET_MEMBERS:
        names = [name for name in names if name not in ("best_subset", "subset_evolution")]
    for name in names:
        if name not in method_names():
            raise SettingsError(f"unknown way of combining members: {name!r}", suggest(name, method_names()))
    divisions = [make_folds(labels, groups, n_folds, seed + repeat) for repeat in range(repeats)]
    for folds in divisions:
        check_folds(folds, groups, len(labels))
    units = group_numbers(groups, len(labels))
    scores = {name: np.zeros(len(labels)) for name in ["uniform", *names]}
    alone = {name: np.zeros(len(labels)) for name in names if name in STACKERS}
    work = [(name, folds, fold) for folds in divisions for fold in np.unique(folds) for name in scores]
    for name, folds, fold in track(work, "Nested cross-validation", len(work)):
        away = folds == fold
        seen = pred_probs if without is None else without(away)
        fit, new, y = seen[:, ~away], seen[:, away], labels[~away]
        scores[name][away] += _score_rows(_fresh(name, fit, y, new, metric, seed), labels[away], metric) / repeats
        if name in alone:
            mean_fit, mean_new = (part.mean(axis=0, dtype=np.float64)[None] for part in (fit, new))
            alone_probs = _fresh(name, mean_fit, y, mean_new, metric, seed)
            alone[name][away] += _score_rows(alone_probs, labels[away], metric) / repeats
    tail = FAMILY_ERROR / max(1, len(names))
    rows = []
    for name in scores:
        claimed = _score_rows(_fresh(name, pred_probs, labels, pred_probs, metric, seed), labels, metric).mean()
        rows.append({"method": name, "claimed": claimed, **_compare(scores, alone, name, units, tail, metric, seed)})
    table = pd.DataFrame(rows)
    if metric == "log_loss":
        table[["claimed", "fresh", "plain"]] *= -1.0
    gains = table[table["is_gain"]]
    chosen = str(gains.loc[gains["gain"].idxmax(), "method"]) if len(gains) else "uniform"
    return NestedResult(table, chosen, metric)


def _fresh(name: str, fit: np.ndarray, labels: np.ndarray, new: np.ndarray, metric: str, seed: int) -> np.ndarray:
    predict = fit_method(name, fit, labels, seed)
    probs = predict(new)
    if metric == "log_loss" and name not in STACKERS:
        probs = scale_temperature(probs, fit_temperature(predict(fit), labels))
    return probs


def _score_rows(probs: np.ndarray, labels: np.ndarray, metric: str) -> np.ndarray:
    """Right or wrong, or log p(label): larger is better, (N,)."""
    if metric == "accuracy":
        found: np.ndarray = (probs.argmax(axis=1) == labels).astype(np.float64)
        return found
    return log_probs(probs[np.arange(len(labels)), labels])


def _compare(
    scores: dict[str, np.ndarray],
    alone: dict[str, np.ndarray],
    name: str,
    units: np.ndarray,
    tail: float,
    metric: str,
    seed: int,
) -> dict[str, object]:
    difference = scores[name] - scores["uniform"]
    low, high = paired_interval(difference, units, (0.025, 0.975), seed)
    is_gain = name != "uniform" and shows_gain(difference, units, tail, seed, metric == "accuracy")
    if is_gain and name in alone:
        is_gain = shows_gain(scores[name] - alone[name], units, tail, seed, metric == "accuracy")
    changed = np.bincount(units, np.abs(difference)) > 0
    return {
        "fresh": scores[name].mean(),
        "plain": scores["uniform"].mean(),
        "gain": difference.mean(),
        "low": low,
        "high": high,
        "changed_groups": int(changed.sum()),
        "is_gain": bool(is_gain),
    }


def shows_gain(difference: np.ndarray, units: np.ndarray, tail: float, seed: int = 0, sign_test: bool = True) -> bool:
    """Whether mean(difference) > 0 beyond chance: bootstrap bound at `tail`, and the exact sign test over
    groups.

    difference: (N,) per photograph, larger is better. units: int (N,) 0..G-1.
    """
    if difference.mean() <= 0:
        return False
    if sign_test:
        net = np.bincount(units, difference)
        better, worse = int((net > 0).sum()), int((net < 0).sum())
        if binomtest(better, better + worse, alternative="greater").pvalue > tail:
            return False
    (low,) = paired_interval(difference, units, (tail,), seed)
    return low > 0


def paired_interval(
    difference: np.ndarray, units: np.ndarray, quantiles: Sequence[float], seed: int = 0
) -> tuple[float, ...]:
    """Quantiles of the mean difference when groups are drawn with replacement; difference (N,), units int
    (N,).

    Groups with the same sum and size are interchangeable, so where few kinds exist their counts are drawn at
    once from a multinomial: the same bootstrap, at a cost that doesn't grow with N.
    """
    sums, sizes = np.bincount(units, difference), np.bincount(units)
    kinds, counts = np.unique(np.column_stack([np.round(sums, 9), sizes]), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    g = len(sums)
    if len(kinds) <= 256:
        drawn = rng.multinomial(g, counts / g, size=DRAWS)
        means = (drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1])
    else:
        draws = DRAWS_CONTINUOUS
        means = np.empty(draws)
        for draw in range(draws):
            times = np.bincount(rng.integers(0, g, g), minlength=g)
            means[draw] = (times @ sums) / (times @ sizes)
    return tuple(float(value) for value in np.quantile(means, quantiles))
