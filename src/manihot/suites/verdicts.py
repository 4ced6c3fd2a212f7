"""What the arms of a suite did on photographs that were held out, and whether that agrees with what was reported.

Two arms are judged on the same photographs. The interval of their difference is a bootstrap over photographs, groups
of copies drawn whole (Davison and Hinkley 1997). With few photographs that only one of the two gets right it is too
narrow, so a claim also needs the sign-flip test (Fisher's randomisation; McNemar's exact test where every photograph
stands alone): the signs of the units' differences are turned at random, as if it did not matter which arm was which.
Holm (1979) says which differences stand when all comparisons of the suite are taken together.

The interval of the difference in log loss is Student's t over units. None of it knows how far another training of the
same arm would have come out: arms that differ by chance alone show that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from manihot.audit.what_if import paired_interval
from manihot.records.groups import group_numbers
from manihot.records.predictions import Predictions
from manihot.records.probabilities import log_probs

REPEATS = 10_000
LEVEL = 0.95

AGREES, CONTRADICTS, CANNOT_TELL = "agrees", "contradicts", "cannot tell"


@dataclass(frozen=True)
class Effect:
    """An arm less another one on n photographs in `units` independent units; log loss: below 0 is better.

    low, high: of the difference in accuracy. p: that it is 0. holm: p for all comparisons together.
    """

    n: int
    units: int
    accuracy: float
    accuracy_against: float
    difference: float
    low: float
    high: float
    p: float
    holm: float
    log_loss: float
    log_loss_low: float
    log_loss_high: float

    def direction(self, level: float = LEVEL) -> int:
        """1 where the arm is better, -1 where it is worse, 0 where that can't be told."""
        if self.p > 1 - level:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def compare_pairs(
    predictions: Mapping[str, Predictions],
    pairs: Sequence[tuple[str, str]],
    groups: np.ndarray | None = None,
    *,
    repeats: int = REPEATS,
    level: float = LEVEL,
    seed: int = 0,
) -> list[Effect]:
    """The first less the second of each pair of arms, judged on the same photographs and the same resamples.

    predictions: by arm, all of the same photographs in the same order. groups: (N,) names, '' alone, drawn whole.
    """
    if not pairs:
        return []
    first = predictions[pairs[0][0]]
    known = first.labels >= 0
    y, rows = first.labels[known], np.arange(int(known.sum()))
    units = group_numbers(None if groups is None else np.asarray(groups)[known], len(rows))
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    probs = {name: predictions[name].pred_probs[known] for name in names}
    right = {name: (p.argmax(1) == y).astype(np.float64) for name, p in probs.items()}
    price = {name: -log_probs(p[rows, y]) for name, p in probs.items()}
    found = []
    for a, b in pairs:
        gains = right[a] - right[b]
        low, high = bootstrap(gains, units, repeats, level, seed)
        dearer, less, more = paired_interval(price[a] - price[b], units, level)
        found.append(
            Effect(
                len(y),
                int(units.max()) + 1,
                float(right[a].mean()),
                float(right[b].mean()),
                float(gains.mean()),
                low,
                high,
                sign_flip(gains, units, repeats, seed),
                1.0,
                dearer,
                less,
                more,
            )
        )
    together = holm(np.array([effect.p for effect in found]))
    return [replace(effect, holm=float(p)) for effect, p in zip(found, together, strict=True)]


def bootstrap(
    gains: np.ndarray, units: np.ndarray, repeats: int = REPEATS, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of paired gains (n,), units (n,) of photographs drawn whole.

    Units that gain alike are drawn as one kind: how often each kind comes is multinomial, which is the same and fast.
    """
    kinds, counts = np.unique(_sums(gains, units), axis=0, return_counts=True)
    rng = np.random.default_rng([seed, 1])
    times = rng.multinomial(counts.sum(), counts / counts.sum(), size=repeats)
    low, high = np.quantile((times @ kinds[:, 0]) / (times @ kinds[:, 1]), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def sign_flip(gains: np.ndarray, units: np.ndarray, repeats: int = REPEATS, seed: int = 0) -> float:
    """Two-sided p of the mean of paired gains (n,) being 0, by turning the signs of units' sums at random."""
    sums = _sums(gains, units)[:, 0]
    sizes, counts = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    if not len(sizes):
        return 1.0
    rng = np.random.default_rng([seed, 2])
    turned = (2.0 * rng.binomial(counts, 0.5, (repeats, len(counts))) - counts) @ sizes
    beyond = int((np.abs(turned) >= abs(sums.sum()) * (1 - 1e-9)).sum())
    return (1 + beyond) / (1 + repeats)


def holm(p: np.ndarray) -> np.ndarray:
    """p (C,) corrected for being C in number (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    corrected = np.minimum(1.0, np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))))
    out = np.empty(len(p))
    out[order] = corrected
    return out


def _sums(gains: np.ndarray, units: np.ndarray) -> np.ndarray:
    """What each unit gains in all, and how many photographs it has, (U, 2)."""
    return np.stack([np.bincount(units, gains), np.bincount(units)], axis=1)


def judge(verdict: str, effect: Effect, margin: float, level: float = LEVEL) -> str:
    """Whether what was measured agrees with what was reported; '' where nothing was reported.

    better, worse: the whole interval lies on that side of 0, or on the other, and the sign-flip test says so too. no
    change: the whole interval lies within `margin` of 0, or beyond. no better: below `margin`, or above.
    """
    return JUDGES[verdict](effect, margin, level) if verdict in JUDGES else ""


def _side(wanted: int, effect: Effect, level: float) -> str:
    found = effect.direction(level)
    return CANNOT_TELL if not found else AGREES if found == wanted else CONTRADICTS


def _no_change(effect: Effect, margin: float, level: float) -> str:
    if -margin <= effect.low and effect.high <= margin:
        return AGREES
    beyond = effect.low > margin or effect.high < -margin
    return CONTRADICTS if beyond and effect.direction(level) else CANNOT_TELL


def _no_better(effect: Effect, margin: float, level: float) -> str:
    if effect.high <= margin:
        return AGREES
    return CONTRADICTS if effect.low > margin and effect.direction(level) else CANNOT_TELL


JUDGES = {
    "better": lambda effect, margin, level: _side(1, effect, level),
    "worse": lambda effect, margin, level: _side(-1, effect, level),
    "no change": _no_change,
    "no better": _no_better,
}
