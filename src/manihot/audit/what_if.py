"""Is cleaning worth it? The same folds and seeds under each way of cleaning, judged on photographs that nobody changed.

Within the training part of each fold a linear head on the features finds doubtful labels (cross-validated once
more, so that it never judges a label it has learned); every arm then cleans in its way, learns, and answers
for the held-out photographs, whose labels stay as given. Careless cleaning made the lecture's models worse, so
the answer may be `hurts`. The first repeat splits as the run did, whose folds are the ones that its scores are of; the
others draw as many new folds, since a single split separates the arms less well.

Intervals are paired and over photographs (or groups of them): each one's share of right answers over the repeats under
an arm, less that under `keep`. They don't know how far other training photographs would have changed the models, which
benchmarks/what_if.py checks: without planted errors no claim in 20 trials, on which the interval was chosen too. (The
corrected resampled t-test of Nadeau and Bengio 2003 found half of the gains that this finds.) An arm's verdict counts
only where the mean of all arms, `together`, has the same one: a single test stands before any claim, so that several
arms don't make several chances of a false one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler

from manihot.audit.label_errors import find_label_errors
from manihot.errors import DataError
from manihot.progress import say, track
from manihot.records.groups import group_numbers

COMPONENTS = 256
FOLDS, INNER_FOLDS, REPEATS = 5, 4, 3
STRENGTHS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
TOGETHER = "together"
DOUBTFUL_WEIGHT = 0.25  # weight of a doubtful label under `down_weight`

Cleaned = tuple[np.ndarray, np.ndarray]  # targets (n, K), weights (n,)


@dataclass(frozen=True)
class WhatIf:
    """table: one row an arm and judge: arm, judged_on, photographs, changed, accuracy, gain, low, high, verdict.

    run_folds: whether the folds that were given are the first repeat's.
    """

    table: pd.DataFrame
    level: float
    run_folds: bool = False

    def sentence(self) -> str:
        """The answer in words, from the held-out photographs, or the trusted ones where there are some."""
        judge = "trusted" if (self.table["judged_on"] == "trusted").any() else "held out"
        rows = self.table[(self.table["judged_on"] == judge) & (self.table["arm"] != "keep")]
        single = rows[(rows["arm"] != TOGETHER) & rows["verdict"].isin(["helps", "hurts"])]
        rows = single if len(single) else rows
        helps = rows[rows["verdict"] == "helps"].sort_values("gain", ascending=False)
        hurts = rows[rows["verdict"] == "hurts"]
        if len(helps):
            best = helps.iloc[0]
            return (
                f"Cleaning helps: {best['arm']} gains {best['gain']:+.1%} "
                f"({best['low']:+.1%} to {best['high']:+.1%}) on {judge} photographs."
            )
        if len(hurts):
            return f"Leave the labels as they are: {', '.join(hurts['arm'])} hurt on {judge} photographs."
        return f"No effect of cleaning can be shown on {judge} photographs: leave the labels as they are."


def what_if(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    trusted: np.ndarray | None = None,
    fold: np.ndarray | None = None,
    arms: Sequence[str] = ("drop", "relabel", "soft", "down_weight"),
    repeats: int = REPEATS,
    folds: int = FOLDS,
    level: float = 0.95,
    seed: int = 0,
) -> WhatIf:
    """What each way of cleaning is worth against keeping all labels, with paired intervals.

    features: float (N, D), one row per photograph. labels: int (N,), -1 left out. groups: object (N,), '' alone; never
    torn. trusted: bool (N,), photographs whose labels are known to be right; they are scored apart too, and their
    labels are never cleaned. fold: int (N,), the run's own folds, which the first repeat takes and whose number holds
    for all (instead of `folds`); where they split groups or leave too little to learn from, which is reported, all are
    new. arms: names of ARMS. Every arm sees the same folds, doubtful labels and seeds. Raises DataError.
    """
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown:
        raise DataError(f"there is no way of cleaning {unknown[0]!r}", f"one of: {', '.join(ARMS)}")
    known = np.flatnonzero(np.asarray(labels) >= 0)
    names, y = np.unique(np.asarray(labels)[known], return_inverse=True)
    units = group_numbers(None if groups is None else np.asarray(groups)[known], len(known))
    first = None if fold is None else _given_folds(np.asarray(fold)[known], y, units)
    folds = folds if first is None else len(first)
    if len(names) < 2 or np.bincount(y).min() < folds:
        raise DataError(
            f"what-if needs {folds} photographs of each of two classes or more",
            "leave small classes out, or label more",
        )
    x = _reduce(np.asarray(features, dtype=np.float64)[known], seed)
    safe = np.zeros(len(known), dtype=bool) if trusted is None else np.asarray(trusted, dtype=bool)[known]
    strength = _choose_strength(x, y, units, seed)
    right: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {arm: [] for arm in ("keep", *arms)}
    changed = dict.fromkeys(right, 0.0)
    splits = [first if first and r == 0 else _split(y, units, folds, seed + r) for r in range(repeats)]
    jobs = [(r, *split) for r, found in enumerate(splits) for split in found]
    for r, inside, outside in track(jobs, "Is cleaning worth it"):
        doubtful, probs = _find_doubtful(x[inside], y[inside], units[inside], strength, seed + r)
        doubtful &= ~safe[inside]
        for arm, found in right.items():
            targets, weights = ARMS[arm](np.eye(len(names))[y[inside]], doubtful, probs)
            answers = _fit(x[inside], targets, weights, strength, x[outside])
            found.append((outside, answers.argmax(axis=1) == y[outside]))
            changed[arm] += 0.0 if arm == "keep" else doubtful.mean() / len(jobs)
    judges = {"held out": np.ones(len(y), dtype=bool)} | ({"trusted": safe} if safe.any() else {})
    rows = [row for judge, mask in judges.items() for row in _judge(judge, mask, right, changed, level, units)]
    return WhatIf(pd.DataFrame(rows), level, first is not None)


def _judge(
    judge: str,
    mask: np.ndarray,
    right: dict[str, list[tuple[np.ndarray, np.ndarray]]],
    changed: dict[str, float],
    level: float,
    units: np.ndarray,
) -> list[dict[str, object]]:
    """One row an arm, and one for the mean of the arms, which alone decides whether anything is claimed."""
    accuracy = {}
    for arm, parts in right.items():
        times, hits = np.zeros(len(mask)), np.zeros(len(mask))
        for place, found in parts:
            times[place] += 1
            hits[place] += found
        accuracy[arm] = (hits / times)[mask]
    arms = [arm for arm in right if arm != "keep"]
    accuracy[TOGETHER] = np.mean([accuracy[arm] for arm in arms], axis=0)
    base = accuracy["keep"]
    intervals = {arm: paired_interval(found - base, units[mask], level) for arm, found in accuracy.items()}
    claim = _verdict(intervals[TOGETHER])
    rows = []
    for arm, (gain, low, high) in intervals.items():
        verdict = _verdict((gain, low, high))
        share = changed[arm] if arm in changed else float(np.mean([changed[one] for one in arms]))
        rows.append(
            {
                "arm": arm,
                "judged_on": judge,
                "photographs": int(mask.sum()),
                "changed": share,
                "accuracy": float(accuracy[arm].mean()),
                "gain": gain,
                "low": low,
                "high": high,
                "verdict": "" if arm == "keep" else verdict if verdict == claim else "cannot tell",
            }
        )
    return rows


def _verdict(interval: tuple[float, float, float]) -> str:
    _, low, high = interval
    return "helps" if low > 0 else "hurts" if high < 0 else "cannot tell"


def paired_interval(gains: np.ndarray, units: np.ndarray, level: float) -> tuple[float, float, float]:
    """Mean of paired gains (n,) of photographs and its interval, units (n,) of them being independent.

    Student's t on the units' sums, so that photographs of one group count as one observation.
    """
    mean = float(gains.mean())
    sums = np.bincount(units, weights=gains - mean)[np.bincount(units) > 0]
    if len(sums) < 2 or not gains.any():
        return mean, mean, mean
    deviation = float(np.sqrt(np.square(sums).sum() * len(sums) / (len(sums) - 1))) / len(gains)
    half = float(stats.t.ppf((1 + level) / 2, len(sums) - 1)) * deviation
    return mean, mean - half, mean + half


def _reduce(x: np.ndarray, seed: int) -> np.ndarray:
    scaled = StandardScaler().fit_transform(x)
    if min(scaled.shape) <= COMPONENTS:
        found: np.ndarray = scaled
        return found
    found = PCA(COMPONENTS, svd_solver="randomized", random_state=seed).fit_transform(scaled)
    return found


def _split(y: np.ndarray, units: np.ndarray, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    if len(np.unique(units)) == len(units):
        return list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(y, y))
    return list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(y, y, units))


def _given_folds(fold: np.ndarray, y: np.ndarray, units: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """The splits that given folds (n,) make; None, and why in words, where they can't serve."""
    numbers = np.unique(fold)
    splits = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in numbers]
    torn = (pd.Series(fold).groupby(units).nunique() > 1).any()
    why = ""
    if len(numbers) < 2 or numbers[0] < 0:
        why = "don't hold out every photograph once"
    elif torn:
        why = "split groups"
    elif min(np.bincount(y[inside], minlength=y.max() + 1).min() for inside, _ in splits) < INNER_FOLDS:
        why = f"leave fewer than {INNER_FOLDS} photographs of a class to learn from"
    if why:
        say(f"What-if: the run's folds {why}; others are drawn")
    return None if why else splits


def _choose_strength(x: np.ndarray, y: np.ndarray, units: np.ndarray, seed: int) -> float:
    """The head's strength for all arms: lowest log loss with the labels as they are."""
    inside, outside = _split(y, units, INNER_FOLDS, seed)[0]
    eye = np.eye(y.max() + 1)
    ones, every = np.ones(len(inside)), range(len(eye))
    losses = [
        log_loss(y[outside], _fit(x[inside], eye[y[inside]], ones, c, x[outside]), labels=every) for c in STRENGTHS
    ]
    return STRENGTHS[int(np.argmin(losses))]


def _find_doubtful(
    x: np.ndarray, y: np.ndarray, units: np.ndarray, strength: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which labels of a training part are doubtful, bool (n,), and its own out-of-fold probabilities (n, K)."""
    eye = np.eye(y.max() + 1)
    probs = np.zeros((len(y), len(eye)))
    for inside, outside in _split(y, units, INNER_FOLDS, seed):
        probs[outside] = _fit(x[inside], eye[y[inside]], np.ones(len(inside)), strength, x[outside])
    issues = find_label_errors(y, probs, combine="probabilities")
    doubtful = np.zeros(len(y), dtype=bool)
    doubtful[issues["image_id"].to_numpy(dtype=np.int64)] = issues["is_label_issue"].to_numpy()
    return doubtful, probs


def _fit(x: np.ndarray, targets: np.ndarray, weights: np.ndarray, strength: float, new: np.ndarray) -> np.ndarray:
    """Probabilities (n', K) of a logistic regression fitted on soft targets (n, K): a row per class with a share."""
    row, k = np.nonzero(targets > 1e-3)
    weight = targets[row, k] * weights[row]
    use = weight > 0
    model = LogisticRegression(C=strength, max_iter=200, tol=1e-3).fit(x[row[use]], k[use], sample_weight=weight[use])
    probs = np.full((len(new), targets.shape[1]), 1e-9)
    probs[:, model.classes_] = model.predict_proba(new)
    found: np.ndarray = probs / probs.sum(axis=1, keepdims=True)
    return found


def keep(targets: np.ndarray, doubtful: np.ndarray, probs: np.ndarray) -> Cleaned:
    """All labels as given."""
    return targets, np.ones(len(targets))


def drop(targets: np.ndarray, doubtful: np.ndarray, probs: np.ndarray) -> Cleaned:
    """Doubtful photographs are not learned from."""
    return targets, np.where(doubtful, 0.0, 1.0)


def relabel(targets: np.ndarray, doubtful: np.ndarray, probs: np.ndarray) -> Cleaned:
    """Doubtful labels are replaced by the model's answer."""
    return np.where(doubtful[:, None], np.eye(probs.shape[1])[probs.argmax(axis=1)], targets), np.ones(len(targets))


def soft(targets: np.ndarray, doubtful: np.ndarray, probs: np.ndarray) -> Cleaned:
    """Doubtful labels become half the given one, half the model's probabilities."""
    return np.where(doubtful[:, None], (targets + probs) / 2, targets), np.ones(len(targets))


def down_weight(targets: np.ndarray, doubtful: np.ndarray, probs: np.ndarray) -> Cleaned:
    """Doubtful photographs count a quarter."""
    return targets, np.where(doubtful, DOUBTFUL_WEIGHT, 1.0)


ARMS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], Cleaned]] = {
    "keep": keep,
    "drop": drop,
    "relabel": relabel,
    "soft": soft,
    "down_weight": down_weight,
}
