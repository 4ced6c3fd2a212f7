"""How far several people agree: Cohen's kappa of a pair, Krippendorff's alpha of all, both for unordered answers.

Cohen 1960 (doi 10.1177/001316446002000104); Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", which
takes any number of people and photographs that not everybody answered. Intervals: percentile bootstrap over
photographs. Photographs that were chosen for review because they are doubtful are harder than others, and so both
figures speak of these photographs alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

REPEATS = 2000
LEVEL = 0.95
CHUNK = 4_000_000  # weights held in memory at once
NOBODY = -1  # in place of an answer


@dataclass(frozen=True)
class Agreement:
    """value with its interval, None where it isn't defined (only one answer was ever used); over `photographs`."""

    photographs: int
    same: float | None
    value: float | None
    low: float | None
    high: float | None


def cohen(a: np.ndarray, b: np.ndarray, seed: int = 0) -> Agreement:
    """Cohen's kappa of answers a, b int (N,), NOBODY where one is missing (left out); `same`: share that agrees."""
    both = (a != NOBODY) & (b != NOBODY)
    first, second = a[both], b[both]
    k = int(max(first.max(initial=0), second.max(initial=0))) + 1
    parts = np.concatenate([(first == second)[:, None], np.eye(k)[first], np.eye(k)[second]], axis=1)

    def kappa(sums: np.ndarray) -> np.ndarray:
        n = sums[:, 1 : k + 1].sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            by_chance = (sums[:, 1 : k + 1] * sums[:, k + 1 :]).sum(axis=1) / n**2
            found: np.ndarray = (sums[:, 0] / n - by_chance) / (1 - by_chance)
        return found

    same = float((first == second).mean()) if both.any() else None
    return _with_interval(parts, kappa, same, seed)


def krippendorff(answers: np.ndarray, seed: int = 0) -> Agreement:
    """Krippendorff's alpha of answers int (R, N) of R people, NOBODY where one is missing.

    Photographs with fewer than two answers are left out; `same`: share of pairs of answers that agree.
    """
    k = int(answers.max(initial=0)) + 1
    counts = np.stack([(answers == c).sum(axis=0) for c in range(k)], axis=1).astype(np.float64)
    counts = counts[counts.sum(axis=1) >= 2]
    people = counts.sum(axis=1)
    torn = (people**2 - (counts**2).sum(axis=1)) / np.maximum(people - 1, 1)
    parts = np.concatenate([torn[:, None], counts], axis=1)

    def alpha(sums: np.ndarray) -> np.ndarray:
        n = sums[:, 1:].sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            expected = (n**2 - (sums[:, 1:] ** 2).sum(axis=1)) / (n - 1)
            found: np.ndarray = 1 - sums[:, 0] / expected
        return found

    pairs = float((people * (people - 1)).sum())
    same = float((counts * (counts - 1)).sum() / pairs) if pairs else None
    return _with_interval(parts, alpha, same, seed)


def by_class(answers: np.ndarray, classes: int, seed: int = 0) -> list[Agreement]:
    """Krippendorff's alpha of each class against all other answers; `same`: given one such answer, another agrees."""
    found = []
    for c in range(classes):
        one = np.where(answers == NOBODY, NOBODY, (answers == c).astype(np.int64))
        alpha = krippendorff(one, seed)
        people = (one != NOBODY).sum(axis=0)
        own, others = (one == 1).sum(axis=0)[people >= 2], people[people >= 2] - 1
        said = float((own * others).sum())
        same = float((own * (own - 1)).sum() / said) if said else None
        shown = int((own > 0).sum())
        found.append(Agreement(shown, same, alpha.value, alpha.low, alpha.high))
    return found


def pairs(people: list[str], answers: np.ndarray, seed: int = 0) -> list[tuple[str, str, Agreement]]:
    """`cohen` of every two people who answered a photograph both."""
    found = [
        (people[i], people[j], cohen(answers[i], answers[j], seed)) for i, j in combinations(range(len(people)), 2)
    ]
    return [one for one in found if one[2].photographs]


def _with_interval(parts: np.ndarray, figure: object, same: float | None, seed: int) -> Agreement:
    """A figure of sums over photographs, `parts` (N, P), and its interval from resampled photographs."""
    n = len(parts)
    if not n:
        return Agreement(0, None, None, None, None)
    assert callable(figure)
    value = float(figure(parts.sum(axis=0, keepdims=True))[0])
    if not np.isfinite(value):
        return Agreement(n, same, None, None, None)
    rng, drawn, size = np.random.default_rng(seed), [], max(1, CHUNK // n)
    for start in range(0, REPEATS, size):
        weights = rng.multinomial(n, np.full(n, 1 / n), size=min(size, REPEATS - start))
        drawn.append(figure(weights @ parts))
    found = np.concatenate(drawn)
    found = found[np.isfinite(found)]
    if not len(found):
        return Agreement(n, same, value, None, None)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Agreement(n, same, value, float(low), float(high))
