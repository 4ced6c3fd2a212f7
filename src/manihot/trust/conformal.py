"""Conformal sets: for each photograph the classes that can't be ruled out, right as often as the user asked.

Split conformal prediction (Vovk, Gammerman and Shafer 2005; least ambiguous sets, Sadinle, Lei and Wasserman
2019, arXiv 1609.00451), one threshold per class for the Mondrian (class-conditional) kind, APS (Romano, Sesia
and Candes 2020, arXiv 2006.02544) and RAPS (Angelopoulos et al. 2021, arXiv 2009.14193). Fitted on
out-of-fold predictions, they promise: of new photographs like these (exchangeable), the set holds the label
for `coverage` of them, of each class where per_class is set. They promise nothing for photographs from
elsewhere.

Boosted stacks and small models give thousands of photographs the very same probabilities. Where a threshold
falls on such a value, taking all of them covers too many and none too few; so ties are broken at random
(smoothed conformal predictors, Vovk et al., ch. 2), by numbers that a photograph's id fixes or a seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field, FiniteFloat, NonNegativeInt, model_validator
from scipy.stats import beta

from manihot.errors import DataError, SettingsError
from manihot.records.files import save_json
from manihot.records.probabilities import check_probs
from manihot.records.readers import read_json, reading
from manihot.settings import suggest
from manihot.trust.calibrate import labelled

DECIMALS = 9  # scores that agree so far are a tie: the rest is the noise of writing and reading files


def score_lac(probs: np.ndarray, uniforms: np.ndarray, penalty: float = 0.0, free: int = 0) -> np.ndarray:
    """1 - p, (N, K): the sets are the smallest on average."""
    return 1.0 - probs


def score_aps(probs: np.ndarray, uniforms: np.ndarray, penalty: float = 0.0, free: int = 0) -> np.ndarray:
    """Probability of all likelier classes plus a random share of the class's own, (N, K); sets adapt to
    difficulty.
    """
    order = np.argsort(-probs, axis=1, kind="stable")
    descending = np.take_along_axis(probs, order, axis=1)
    above = np.cumsum(descending, axis=1) - descending
    scores = above + uniforms[:, None] * descending
    if penalty:
        scores = scores + penalty * np.maximum(np.arange(1, probs.shape[1] + 1) - free, 0)
    out = np.empty_like(scores)
    np.put_along_axis(out, order, scores, axis=1)
    found: np.ndarray = out
    return found


def score_raps(probs: np.ndarray, uniforms: np.ndarray, penalty: float = 0.1, free: int = 1) -> np.ndarray:
    """APS with a penalty for each class after the first `free` ones, (N, K): no long tails in the sets."""
    return score_aps(probs, uniforms, penalty, free)


def uniforms_from_ids(image_id: Sequence[str] | np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each id, always the same, so that a photograph's set doesn't change between
    calls.
    """
    digests = (hashlib.blake2b(str(name).encode("utf-8"), digest_size=8).digest() for name in image_id)
    numbers = np.frombuffer(b"".join(digests), dtype="<u8")
    return (numbers >> np.uint64(11)) * 2.0**-53


class Saved(BaseModel):
    """What `ConformalSets.to_json` gives."""

    kind: Literal["lac", "aps", "raps"]
    coverage: Annotated[float, Field(gt=0, lt=1)]
    per_class: bool
    thresholds: list[FiniteFloat | None]
    tie_shares: list[Annotated[float, Field(ge=0, le=1)]]
    counts: list[NonNegativeInt]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    settings: dict[Literal["penalty", "free"], FiniteFloat]
    classes: tuple[str, ...]

    @model_validator(mode="after")
    def _fit(self) -> Saved:
        if not len(self.thresholds) == len(self.tie_shares) == len(self.counts):
            raise ValueError("thresholds, tie_shares and counts of different lengths")
        if self.classes and len(self.classes) != len(self.thresholds):
            raise ValueError(f"{len(self.thresholds)} thresholds for {len(self.classes)} classes")
        return self


@dataclass(frozen=True)
class ConformalSets:
    """A fitted rule that gives each photograph a set of classes.

    thresholds, tie_shares: (K,), largest score let in a class, and the share of photographs let in exactly on
    it. counts: (K,) photographs behind each threshold (all of them where per_class is False). A threshold of
    infinity lets the class in always: too few photographs to promise the coverage otherwise.
    """

    kind: str
    coverage: float
    per_class: bool
    thresholds: np.ndarray
    tie_shares: np.ndarray
    counts: np.ndarray
    seed: int = 0
    settings: dict[str, float] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    def predict_sets(self, pred_probs: np.ndarray, uniforms: np.ndarray | None = None) -> np.ndarray:
        """Which classes can't be ruled out: bool (N, K); a row may be empty (stranger than anything covered).

        uniforms: (N,) in [0, 1), for ties and for APS and RAPS, as from `uniforms_from_ids`; from the seed
        when None, and then a photograph's place in the array matters.
        """
        probs = check_probs(pred_probs, least=2)
        if probs.shape[1] != len(self.thresholds):
            raise DataError(f"sets fitted on {len(self.thresholds)} classes can't be used on {probs.shape[1]}")
        shared, ties = _uniforms(len(probs), uniforms, self.seed + 1)
        scores = np.round(SCORES[self.kind](probs, shared, **self.settings), DECIMALS)
        tied = (scores == self.thresholds) & (ties[:, None] < self.tie_shares)
        found: np.ndarray = (scores < self.thresholds) | tied
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values for a model's metadata; None stands for an infinite threshold."""
        return {
            "kind": self.kind,
            "coverage": self.coverage,
            "per_class": self.per_class,
            "thresholds": [float(t) if np.isfinite(t) else None for t in self.thresholds],
            "tie_shares": self.tie_shares.tolist(),
            "counts": self.counts.tolist(),
            "seed": self.seed,
            "settings": self.settings,
            "classes": list(self.classes),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ConformalSets:
        """The inverse of `to_json`; pydantic's ValidationError for anything else."""
        saved = Saved.model_validate(values)
        thresholds = np.array([np.inf if t is None else t for t in saved.thresholds])
        return cls(
            saved.kind,
            saved.coverage,
            saved.per_class,
            thresholds,
            np.array(saved.tie_shares),
            np.array(saved.counts),
            saved.seed,
            {str(name): value for name, value in saved.settings.items()},
            saved.classes,
        )

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        save_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> ConformalSets:
        """Read what `save` wrote; anything else is a DataError that names the field."""
        what, remedy = "saved conformal sets", "fit them again: manihot calibrate, or the same manihot run"
        values = read_json(path, what, remedy, DataError)
        with reading(path, what, remedy, DataError):
            return cls.from_json(values)


def fit_sets(
    pred_probs: np.ndarray,
    labels: np.ndarray,
    coverage: float = 0.9,
    per_class: bool = True,
    kind: str = "lac",
    ties: str = "random",
    seed: int = 0,
    classes: Sequence[str] = (),
    **settings: float,
) -> ConformalSets:
    """Fit sets that hold the label for `coverage` of new photographs, of each class where per_class.

    pred_probs: out-of-fold (N, K). labels: (N,), -1 left out. coverage: in (0, 1). kind: a name of SCORES.
    ties: 'random' covers exactly as asked, 'all' takes every photograph on the threshold (more than asked).
    settings: `penalty` and `free` of RAPS. Raises DataError or SettingsError for what doesn't fit.
    """
    if kind not in SCORES:
        raise SettingsError(f"there are no conformal sets of kind {kind!r}", suggest(kind, list(SCORES)))
    if not 0 < coverage < 1:
        raise SettingsError(f"coverage {coverage} is not a share", "a number between 0 and 1, for example 0.9")
    if ties not in ("random", "all"):
        raise SettingsError(f"ties can't be broken by {ties!r}", suggest(ties, ["random", "all"]))
    probs, y = labelled(pred_probs, labels)
    if kind == "raps":
        settings = {"penalty": 0.1, "free": 1, **settings}
    k = probs.shape[1]
    shared, _ = _uniforms(len(y), None, seed)
    own = np.round(SCORES[kind](probs, shared, **settings)[np.arange(len(y)), y], DECIMALS)
    parts = [own[y == c] for c in range(k)] if per_class else [own] * k
    fitted = [_threshold(part, coverage) for part in parts]
    shares = np.array([share if ties == "random" else 1.0 for _, share in fitted])
    return ConformalSets(
        kind,
        coverage,
        per_class,
        np.array([threshold for threshold, _ in fitted]),
        shares,
        np.array([len(part) for part in parts]),
        seed,
        dict(settings),
        tuple(classes),
    )


def _threshold(scores: np.ndarray, coverage: float) -> tuple[float, float]:
    """The score up to which classes are let in, and the share let in exactly on it.

    With n scores and one new one, the new one is let in when at most (n + 1) * coverage of the n + 1 stand
    before it in random order; the fractional part of that number is let in by chance as well.
    """
    n = len(scores)
    places = (n + 1) * coverage
    if places >= n:
        return np.inf, 1.0
    ordered = np.sort(scores)
    threshold = float(ordered[int(np.ceil(places - 1e-9)) - 1])
    below = int(np.searchsorted(ordered, threshold, "left"))
    equal = int(np.searchsorted(ordered, threshold, "right")) - below
    if equal == 1:  # no tie: the usual rule, at least the coverage asked for
        return threshold, 1.0
    return threshold, (places - below) / (equal + 1)


def _uniforms(n: int, uniforms: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two numbers per photograph in [0, 1), for the score and for ties; the second is derived from given
    ones.
    """
    if uniforms is None:
        rng = np.random.default_rng(seed)
        return rng.random(n), rng.random(n)
    uniforms = np.asarray(uniforms, dtype=np.float64)
    if uniforms.shape != (n,):
        raise DataError(f"{len(uniforms)} numbers for the ties of {n} photographs", "one per photograph, in [0, 1)")
    return uniforms, (uniforms * 7919.0) % 1.0


def binomial_interval(successes: np.ndarray, n: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Exact interval of a share (Clopper and Pearson 1934); 0 to 1 where n is 0."""
    successes, n = np.asarray(successes, dtype=float), np.asarray(n, dtype=float)
    tail = (1 - level) / 2
    low = np.where(successes > 0, beta.ppf(tail, np.maximum(successes, 1e-9), n - successes + 1), 0.0)
    high = np.where(successes < n, beta.ppf(1 - tail, successes + 1, np.maximum(n - successes, 1e-9)), 1.0)
    return low, high


def measure_coverage(
    sets: np.ndarray, labels: np.ndarray, classes: Sequence[str] | None = None, level: float = 0.95
) -> pd.DataFrame:
    """Coverage of sets bool (N, K) for each class and for all, with exact intervals, and the sets' sizes.

    Columns: class, photographs, coverage, low, high, mean_size, single (share of sets with one class), empty.
    """
    sets, labels = np.asarray(sets, dtype=bool), np.asarray(labels)
    if sets.ndim != 2 or labels.shape != sets.shape[:1]:
        raise DataError(
            f"sets of shape {sets.shape} for labels of shape {labels.shape}", "a set and a label per photograph"
        )
    known = labels >= 0
    sets, y = sets[known], labels[known]
    names = [str(c) for c in (range(sets.shape[1]) if classes is None else classes)]
    size = sets.sum(axis=1)
    hit = sets[np.arange(len(y)), y]
    rows = []
    for name, part in [*((names[c], y == c) for c in range(sets.shape[1])), ("all", np.ones(len(y), dtype=bool))]:
        n = int(part.sum())
        low, high = binomial_interval(np.array(hit[part].sum()), np.array(n), level)
        rows.append(
            {
                "class": name,
                "photographs": n,
                "coverage": _mean(hit[part]),
                "low": float(low),
                "high": float(high),
                "mean_size": _mean(size[part]),
                "single": _mean(size[part] == 1),
                "empty": _mean(size[part] == 0),
            }
        )
    return pd.DataFrame(rows)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def measure_abstention(
    pred_probs: np.ndarray,
    labels: np.ndarray,
    shares: Sequence[float] = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5),
    level: float = 0.95,
) -> pd.DataFrame:
    """The price of "cannot say, show an expert": accuracy on the surest shares of the photographs.

    Columns: answered (share), threshold (smallest top probability answered), to_expert (photographs),
    accuracy, low, high (exact binomial), wrong_answered (errors that still reach the farmer). Photographs
    tied on the threshold count with the mean of their tie.
    """
    probs, y = labelled(pred_probs, labels)
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == y
    order = np.argsort(-confidence, kind="stable")
    confidence, right = confidence[order], right[order].astype(float)
    starts = np.flatnonzero(np.r_[True, confidence[1:] != confidence[:-1]])
    sizes = np.diff(np.r_[starts, len(right)])
    cumulative = np.r_[0.0, np.cumsum(np.repeat(np.add.reduceat(right, starts) / sizes, sizes))]
    rows = []
    for share in shares:
        if not 0 < share <= 1:
            raise SettingsError(f"a share of {share} can't be answered", "a number above 0, at most 1")
        n = max(1, round(share * len(right)))
        low, high = binomial_interval(np.array(cumulative[n]), np.array(n), level)
        rows.append(
            {
                "answered": n / len(right),
                "threshold": float(confidence[n - 1]),
                "to_expert": len(right) - n,
                "accuracy": cumulative[n] / n,
                "low": float(low),
                "high": float(high),
                "wrong_answered": n - cumulative[n],
            }
        )
    return pd.DataFrame(rows)


Score = Callable[..., np.ndarray]  # (probs (N, K), uniforms (N,), penalty, free) -> (N, K), larger is stranger
SCORES: dict[str, Score] = {"lac": score_lac, "aps": score_aps, "raps": score_raps}
