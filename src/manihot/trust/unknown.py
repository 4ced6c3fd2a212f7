"""Photographs that show nothing the model knows: a score of strangeness, and a threshold with a price.

Energy: Liu et al. 2020 (arXiv 2010.03759). Maximum logit: Hendrycks et al. 2022 (arXiv 1911.11132). Maximum
probability: Hendrycks and Gimpel 2017 (arXiv 1610.02136). k nearest neighbours on unit-length embeddings: Sun
et al. 2022 (arXiv 2204.06507). Mahalanobis distance to the nearest class: Lee et al. 2018 (arXiv 1807.03888).
Or the model's own unknown class (the second place's CropNet). In every score, larger is stranger.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field
from scipy.special import logsumexp
from scipy.stats import rankdata
from sklearn.covariance import ledoit_wolf

from manihot.errors import DataError, SettingsError
from manihot.records.files import atomic_path
from manihot.records.predictions import Predictions
from manihot.records.readers import about_of, read_arrays, reading
from manihot.settings import suggest

BLOCK = 1024  # photographs whose distances are held at once
LARGEST = 1e18  # of a saved value, so that squares of single precision stay finite
KNOWN_LIMIT = 20_000  # training photographs kept as neighbours


def score_max_prob(logits: np.ndarray) -> np.ndarray:
    """1 - the largest probability, (N,), from logits (N, K)."""
    found: np.ndarray = 1.0 - np.exp(logits.max(axis=1) - logsumexp(logits, axis=1))
    return found


def score_max_logit(logits: np.ndarray) -> np.ndarray:
    """Minus the largest logit, (N,); needs a model's own logits (DataError for logarithms of
    probabilities).
    """
    _check_raw(logits)
    found: np.ndarray = -logits.max(axis=1)
    return found


def score_energy(logits: np.ndarray) -> np.ndarray:
    """Minus log sum exp of the logits, (N,); needs a model's own logits (DataError for logarithms of
    probabilities).
    """
    _check_raw(logits)
    return -np.asarray(logsumexp(logits, axis=1))


def _check_raw(logits: np.ndarray) -> None:
    if len(logits) and np.abs(logsumexp(logits, axis=1)).max() < 1e-3:
        raise DataError(
            "these logits are logarithms of probabilities: their size says nothing about strangeness",
            "predict with the model itself (a CSV has lost the logits), or use another score",
        )


def score_knn(known: np.ndarray, new: np.ndarray, k: int = 10) -> np.ndarray:
    """Distance to the k-th nearest of the known embeddings (N, D), both scaled to unit length; (N',)."""
    known, new = _unit(known), _unit(new)
    if not 1 <= k <= len(known):
        raise DataError(f"there are {len(known)} known photographs, too few for neighbour number {k}", "a smaller k")
    out = np.empty(len(new))
    for start in range(0, len(new), BLOCK):
        similarity = new[start : start + BLOCK] @ known.T
        nearest = np.partition(similarity, len(known) - k, axis=1)[:, len(known) - k]
        out[start : start + BLOCK] = np.sqrt(np.maximum(0.0, 2.0 - 2.0 * nearest))
    return out


def _unit(embeddings: np.ndarray) -> np.ndarray:
    values = np.asarray(embeddings, dtype=np.float32)
    found: np.ndarray = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return found


@dataclass(frozen=True)
class ClassClouds:
    """Class means (K', D) and the shared precision matrix (D, D), for Mahalanobis distances."""

    means: np.ndarray
    precision: np.ndarray

    def distance(self, embeddings: np.ndarray) -> np.ndarray:
        """Squared Mahalanobis distance to the nearest class, (N,)."""
        best = np.full(len(embeddings), np.inf)
        for mean in self.means:
            away = np.asarray(embeddings, dtype=np.float64) - mean
            best = np.minimum(best, np.einsum("nd,nd->n", away @ self.precision, away))
        return best


def fit_clouds(embeddings: np.ndarray, labels: np.ndarray) -> ClassClouds:
    """Class means and a shared covariance, shrunk after Ledoit and Wolf (2004); embeddings (N, D), labels
    (N,).
    """
    labels = np.asarray(labels)
    known = labels >= 0
    values, y = np.asarray(embeddings, dtype=np.float64)[known], labels[known]
    if len(y) < 2:
        raise DataError("no labelled photograph to measure distances from", "give out-of-fold predictions with labels")
    present = np.unique(y)
    means = np.stack([values[y == c].mean(axis=0) for c in present])
    within = values - means[np.searchsorted(present, y)]
    covariance, _ = ledoit_wolf(within, assume_centered=True)
    return ClassClouds(means, np.linalg.inv(covariance + 1e-9 * np.trace(covariance) * np.eye(len(covariance))))


def fit_threshold(known_scores: np.ndarray, false_rejection: float = 0.05) -> float:
    """The score above which a photograph is called unknown, so that known ones are at no more than this rate.

    known_scores: (N,) of photographs the model did not train on. The finite-sample quantile of conformal
    prediction: a new known photograph is rejected with at most this probability; infinite where N is too
    small to promise that.
    """
    scores = np.sort(np.asarray(known_scores, dtype=np.float64))
    if not 0 < false_rejection < 1:
        raise SettingsError(f"a false-rejection rate of {false_rejection} is not a share", "for example 0.05")
    place = int(np.ceil((len(scores) + 1) * (1 - false_rejection) - 1e-9))
    return float(scores[place - 1]) if place <= len(scores) else float("inf")


def auroc(known_scores: np.ndarray, unknown_scores: np.ndarray) -> float:
    """Chance that an unknown photograph scores stranger than a known one, ties half (Mann and Whitney
    1947).
    """
    n, m = len(known_scores), len(unknown_scores)
    if not n or not m:
        raise DataError("AUROC needs both known and unknown photographs", "give at least one of each")
    ranks = rankdata(np.concatenate([known_scores, unknown_scores]))
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


class Saved(BaseModel):
    """What is stored in a saved detector beside its arrays."""

    kind: Literal["max_prob", "max_logit", "energy", "knn", "mahalanobis", "output"]
    threshold: float
    false_rejection: Annotated[float, Field(gt=0, lt=1)]
    column: Annotated[int, Field(ge=-1, lt=2**31)] = -1
    k: Annotated[int, Field(ge=1, lt=2**31)] = 10


def _table(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """An array (N, D) of finite numbers; KeyError, ValueError or TypeError for anything else."""
    array = arrays[name]
    if array.dtype.kind != "f" or array.ndim != 2 or not array.size:
        raise TypeError(f"the array {name} is {array.dtype} {array.shape}, expected numbers (N, D)")
    array = array.astype(np.float32) if array.dtype == np.float16 else array
    if not (np.abs(array) < LARGEST).all():
        raise ValueError(f"the array {name} contains values that are not finite or beyond {LARGEST}")
    return array


@dataclass(frozen=True)
class UnknownDetector:
    """A fitted score with its threshold. known: embeddings for 'knn'; clouds for 'mahalanobis'; column for
    'output'.
    """

    kind: str
    threshold: float
    false_rejection: float
    known: np.ndarray | None = None
    clouds: ClassClouds | None = None
    column: int = -1
    k: int = 10

    def score(self, predictions: Predictions) -> np.ndarray:
        """Strangeness (N,), larger is stranger."""
        return _score(self.kind, predictions, self.known, self.clouds, self.column, self.k)

    def is_unknown(self, predictions: Predictions) -> np.ndarray:
        """Which photographs show nothing the model knows, bool (N,)."""
        return self.score(predictions) > self.threshold

    def save(self, path: Path) -> None:
        """Write as .npz, atomically."""
        about: dict[str, Any] = {
            "kind": self.kind,
            "threshold": self.threshold,
            "false_rejection": self.false_rejection,
        }
        about |= {"column": self.column, "k": self.k}
        arrays: dict[str, Any] = {"about": np.array(json.dumps(about))}
        if self.known is not None:
            half = self.known.astype(np.float16)  # embeddings from a file are no more precise
            arrays["known"] = half if np.array_equal(half, self.known) else self.known
        if self.clouds is not None:
            arrays |= {"means": self.clouds.means, "precision": self.clouds.precision}
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            np.savez_compressed(handle, **arrays)

    @classmethod
    def load(cls, path: Path) -> UnknownDetector:
        """Read what `save` wrote; anything else is a DataError."""
        what, remedy = "a saved detector of unknown photographs", "fit it again: the same manihot run"
        arrays = read_arrays(path, what, ("about",), remedy)
        with reading(path, what, remedy, DataError):
            about = about_of(arrays, Saved)
            clouds = None
            if about.kind == "mahalanobis":
                clouds = ClassClouds(_table(arrays, "means"), _table(arrays, "precision"))
                if clouds.precision.shape != (clouds.means.shape[1],) * 2:
                    raise ValueError(f"means {clouds.means.shape} and precision {clouds.precision.shape}")
            known = _table(arrays, "known") if about.kind == "knn" else None
            if known is not None and about.k > len(known):
                raise ValueError(f"neighbour number {about.k} of {len(known)}")
            return cls(known=known, clouds=clouds, **about.model_dump())


def fit_unknown(
    kind: str,
    predictions: Predictions,
    false_rejection: float = 0.05,
    unknown_class: str = "unknown",
    k: int = 10,
    seed: int = 0,
) -> UnknownDetector:
    """Fit a detector on known photographs: out-of-fold or held-out predictions, with embeddings for knn and
    mahalanobis.

    For scores on embeddings one half of the photographs is the memory and the other sets the threshold, since
    a photograph is no stranger to itself. kind: a name of KINDS. Raises SettingsError or DataError.
    """
    if kind not in KINDS:
        raise SettingsError(f"no outlier score is called {kind!r}", suggest(kind, list(KINDS)))
    column = -1
    if kind == "output":
        if unknown_class not in predictions.classes:
            raise DataError(
                f"the model has no class {unknown_class!r}", f"one of its classes: {', '.join(predictions.classes)}"
            )
        column = predictions.classes.index(unknown_class)
        if len(predictions.labels) and (predictions.labels == column).any():
            predictions = predictions.take(predictions.labels != column)
    if kind not in ("knn", "mahalanobis"):
        threshold = fit_threshold(_score(kind, predictions, None, None, column, k), false_rejection)
        return UnknownDetector(kind, threshold, false_rejection, column=column, k=k)
    embeddings = _embeddings(predictions)
    order = np.random.default_rng(seed).permutation(len(predictions))
    memory, judged = np.sort(order[: (len(order) + 1) // 2]), np.sort(order[(len(order) + 1) // 2 :])
    memory = memory[:: max(1, -(-len(memory) // KNOWN_LIMIT))]
    known = embeddings[memory] if kind == "knn" else None
    clouds = fit_clouds(embeddings[memory], predictions.labels[memory]) if kind == "mahalanobis" else None
    threshold = fit_threshold(_score(kind, predictions.take(judged), known, clouds, column, k), false_rejection)
    return UnknownDetector(kind, threshold, false_rejection, known, clouds, column, k)


def _embeddings(predictions: Predictions) -> np.ndarray:
    if predictions.embeddings is None:
        raise DataError("these predictions have no embeddings", "predict with embeddings, or use energy or max_logit")
    return predictions.embeddings


def _score(
    kind: str, predictions: Predictions, known: np.ndarray | None, clouds: ClassClouds | None, column: int, k: int
) -> np.ndarray:
    if kind == "knn" and known is not None:
        return score_knn(known, _embeddings(predictions), min(k, len(known)))
    if kind == "mahalanobis" and clouds is not None:
        return clouds.distance(_embeddings(predictions))
    if kind == "output":
        return predictions.pred_probs[:, column].astype(np.float64)
    return LOGIT_SCORES[kind](predictions.logits.astype(np.float64))


LOGIT_SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "max_prob": score_max_prob,
    "max_logit": score_max_logit,
    "energy": score_energy,
}
KINDS = (*LOGIT_SCORES, "knn", "mahalanobis", "output")
