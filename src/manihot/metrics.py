"""Metrics of a classifier with bootstrap intervals, from labels (N,) and pred_probs (N, K).

Rows whose label is -1 (unlabelled) are left out everywhere. Every metric also takes weights (..., N), counts
of how often each row is drawn, and then gives one value for each leading index: that is how the bootstrap
works on many resamples at once.

Sources: bootstrap percentile interval, Efron and Tibshirani 1993; cluster bootstrap (groups drawn whole),
Davison and Hinkley 1997; ECE, Guo et al. 2017 (arXiv 1706.04599); exact binomial bound, Clopper and Pearson
1934.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import betaincinv

from manihot.errors import DataError
from manihot.records.probabilities import check_labels, check_probs, log_probs

ECE_BINS = 15
REPEATS = 1000
LEVEL = 0.95
CHUNK = 1_000_000  # weights held in memory at once

Value = float | np.ndarray  # a float without weights, an array over the resamples with them
Metric = Callable[..., Value]


def accuracy(labels: np.ndarray, pred_probs: np.ndarray, weights: np.ndarray | None = None) -> Value:
    """Share of rows whose most probable class is the label; NaN without a labelled row."""
    y, p, w = _labelled(labels, pred_probs, weights)
    return _like(weights, _ratio(w @ (p.argmax(1) == y), w.sum(1)))


def balanced_accuracy(labels: np.ndarray, pred_probs: np.ndarray, weights: np.ndarray | None = None) -> Value:
    """Mean recall over the classes that occur among the labels."""
    return _like(weights, _nanmean(np.atleast_2d(recall(labels, pred_probs, weights))))


def macro_f1(labels: np.ndarray, pred_probs: np.ndarray, weights: np.ndarray | None = None) -> Value:
    """Mean F1 over the classes that occur among the labels or the predictions."""
    return _like(weights, _nanmean(np.atleast_2d(f1(labels, pred_probs, weights))))


def roc_auc(labels: np.ndarray, pred_probs: np.ndarray, weights: np.ndarray | None = None) -> Value:
    """Mean one-vs-rest area under the ROC curve over the classes where it is defined; NaN without one."""
    return _like(weights, _nanmean(np.atleast_2d(roc_auc_per_class(labels, pred_probs, weights))))


def log_loss(labels: np.ndarray, pred_probs: np.ndarray, weights: np.ndarray | None = None) -> Value:
    """Mean of -log of the label's probability, in nats; probabilities are floored at 1e-12."""
    y, p, w = _labelled(labels, pred_probs, weights)
    return _like(weights, _ratio(w @ -log_probs(p[np.arange(len(y)), y]), w.sum(1)))


def ece(labels: np.ndarray, pred_probs: np.ndarray, weights: np.ndarray | None = None) -> Value:
    """Expected calibration error: mean gap of confidence and accuracy over 15 bins of the top probability.

    Bins are ((m-1)/15, m/15], equally wide, each weighed by its share of rows. The estimate is biased upwards
    on small samples: a perfectly calibrated model on a few hundred rows shows some hundredths.
    """
    y, p, w = _labelled(labels, pred_probs, weights)
    confidence = p.max(1)
    gap = np.zeros((len(y), ECE_BINS))
    gap[np.arange(len(y)), _bin(confidence)] = (p.argmax(1) == y) - confidence
    return _like(weights, _ratio(np.abs(w @ gap).sum(1), w.sum(1)))


def confusion(labels: np.ndarray, pred_probs: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Counts (K, K): row = label, column = predicted class; (..., K, K) with weights."""
    y, p, w = _labelled(labels, pred_probs, weights)
    k = p.shape[1]
    cell = y * k + p.argmax(1)
    if weights is None:
        return np.bincount(cell, minlength=k * k).reshape(k, k)
    counts = np.stack([np.bincount(cell, row, minlength=k * k) for row in w])
    return counts.reshape(*np.shape(weights)[:-1], k, k)


def precision(labels: np.ndarray, pred_probs: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Right among those predicted as each class, (K,); NaN for a class that is never predicted."""
    counts = confusion(labels, pred_probs, weights)
    return _ratio(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-2))


def recall(labels: np.ndarray, pred_probs: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Found among those labelled as each class, (K,); NaN for a class without a label."""
    counts = confusion(labels, pred_probs, weights)
    return _ratio(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1))


def f1(labels: np.ndarray, pred_probs: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Harmonic mean of precision and recall, (K,); NaN for a class neither labelled nor predicted."""
    counts = confusion(labels, pred_probs, weights)
    return _ratio(2 * np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1) + counts.sum(-2))


def roc_auc_per_class(labels: np.ndarray, pred_probs: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """One-vs-rest area under the ROC curve of each class, (K,); NaN where all or no rows have the class."""
    y, p, w = _labelled(labels, pred_probs, weights)
    area = np.full((len(w), p.shape[1]), np.nan)
    for k in range(p.shape[1]):
        positive = y == k
        if positive.any() and not positive.all():
            area[:, k] = _area(p[:, k], positive, w)
    return area[0] if weights is None else area.reshape(*np.shape(weights)[:-1], -1)


def reliability(labels: np.ndarray, pred_probs: np.ndarray) -> dict[str, list[Any]]:
    """The bins behind `ece`: edges (16); count, mean confidence and accuracy (15; None in an empty bin)."""
    y, p, _ = _labelled(labels, pred_probs, None)
    confidence = p.max(1)
    bins = _bin(confidence)
    count = np.bincount(bins, minlength=ECE_BINS)
    return {
        "edges": [m / ECE_BINS for m in range(ECE_BINS + 1)],
        "count": count.tolist(),
        "confidence": _plain(_ratio(np.bincount(bins, confidence, ECE_BINS), count)),
        "accuracy": _plain(_ratio(np.bincount(bins, p.argmax(1) == y, ECE_BINS), count)),
    }


def bootstrap_intervals(
    labels: np.ndarray,
    pred_probs: np.ndarray,
    metrics: Sequence[str] | Mapping[str, Metric] | None = None,
    groups: np.ndarray | None = None,
    repeats: int = REPEATS,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, tuple[Any, Any, Any]]:
    """Each metric as (value, low, high): all of METRICS, some of their names, or functions like them.

    groups: (N,) names of plants or duplicate groups, drawn whole; '' stands alone. Without groups rows are
    drawn. The interval is the bootstrap's percentile interval moved so that its median stands on the value,
    and lengthened by that shift on the other side: drawing few rows raises ECE by itself, in the resamples as
    in the sample. Simulated with 400 rows, 95 % intervals held the truth in 94 to 95 %, that of ECE in 86 %.
    They speak of photographs like these and of this model; what another training or another field would
    change is not in them. A share that no resample changes (everything right) gets the exact binomial bound
    over its rows or groups instead of a width of zero. Values are arrays (K,) for per-class metrics. Raises
    DataError for labels, probabilities or groups that don't fit.
    """
    y, p, _ = _labelled(labels, pred_probs, None)
    chosen = _chosen(metrics)
    unit = _units(groups, np.asarray(labels) >= 0)
    values = {name: np.asarray(metric(y, p), dtype=float) for name, metric in chosen.items()}
    if len(y) == 0:
        return {name: (_scalar(v), _scalar(v), _scalar(v)) for name, v in values.items()}
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in chosen}
    for weights in _resamples(unit, repeats, seed):
        for name, metric in chosen.items():
            drawn[name].append(np.asarray(metric(y, p, weights)))
    out = {}
    for name, metric in chosen.items():
        low, high = _interval(values[name], np.concatenate(drawn[name]), level, upper=UPPER.get(metric, 1.0))
        if metric in SHARES:
            low, high = _widen(values[name], low, high, SHARES[metric](y, p, unit), level)
        out[name] = (_scalar(values[name]), _scalar(low), _scalar(high))
    return out


def paired_difference(
    labels: np.ndarray,
    probs_a: np.ndarray,
    probs_b: np.ndarray,
    metric: str | Metric = "accuracy",
    groups: np.ndarray | None = None,
    repeats: int = REPEATS,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Metric of a minus metric of b on the same photographs, (difference, low, high) of a paired bootstrap.

    Both are judged on the same resamples, so an interval without 0 says that they differ even where their own
    intervals overlap.
    """
    score = _chosen([metric])[metric] if isinstance(metric, str) else metric
    y, a, _ = _labelled(labels, probs_a, None)
    _, b, _ = _labelled(labels, probs_b, None)
    difference = np.asarray(score(y, a)) - np.asarray(score(y, b))
    if len(y) == 0:
        return (float("nan"),) * 3
    unit = _units(groups, np.asarray(labels) >= 0)
    drawn = np.concatenate(
        [np.asarray(score(y, a, w)) - np.asarray(score(y, b, w)) for w in _resamples(unit, repeats, seed)]
    )
    low, high = _interval(difference, drawn, level, lower=-np.inf, upper=np.inf)
    return float(difference), float(low), float(high)


def evaluate(
    labels: np.ndarray,
    pred_probs: np.ndarray,
    classes: Sequence[str],
    groups: np.ndarray | None = None,
    seed: int = 0,
    repeats: int = REPEATS,
    level: float = LEVEL,
) -> dict[str, Any]:
    """Everything about predictions as plain JSON values; NaN becomes None.

    n, unlabelled, classes; metrics {name: {value, low, high}}; per_class [{class, support, predicted, and
    precision, recall, f1, roc_auc as {value, low, high}}]; confusion counts (row = label); reliability bins;
    majority {class, share}; interval {level, repeats, units, n_units}.
    """
    y, p, _ = _labelled(labels, pred_probs, None)
    if len(classes) != p.shape[1]:
        raise DataError(f"{len(classes)} class names for {p.shape[1]} columns of probabilities")
    found, found_per_class = (
        bootstrap_intervals(labels, pred_probs, metrics, groups, repeats, level, seed)
        for metrics in (METRICS, PER_CLASS)
    )
    counts = confusion(y, p)
    support = counts.sum(1)
    per_class = []
    for k, name in enumerate(classes):
        row = {"class": str(name), "support": int(support[k]), "predicted": int(counts[:, k].sum())}
        values = {column: _triple(*(part[k] for part in found_per_class[column])) for column in PER_CLASS}
        per_class.append({**row, **values})
    units = len(np.unique(_units(groups, np.asarray(labels) >= 0)))
    largest = int(support.argmax())
    return {
        "n": len(y),
        "unlabelled": len(np.asarray(labels)) - len(y),
        "classes": [str(name) for name in classes],
        "metrics": {name: _triple(*found[name]) for name in METRICS},
        "per_class": per_class,
        "confusion": counts.tolist(),
        "reliability": reliability(y, p),
        "majority": {"class": str(classes[largest]), "share": support[largest] / len(y)} if len(y) else None,
        "interval": {
            "level": level,
            "repeats": repeats,
            "units": "photographs" if units == len(y) else "groups",
            "n_units": units,
        },
    }


def _labelled(
    labels: np.ndarray, pred_probs: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The labelled rows, checked: labels (n,), float64 probabilities (n, K), weights (R, n)."""
    p = check_probs(pred_probs)
    y = check_labels(labels, *p.shape)
    keep = y >= 0
    y, p = y[keep], p[keep]
    if weights is None:
        return y, p, np.ones((1, len(y)))
    w = np.asarray(weights, dtype=np.float64)
    w = w.reshape(-1, w.shape[-1])
    return y, p, w if keep.all() else w[:, keep]


def _like(weights: np.ndarray | None, values: np.ndarray) -> Value:
    return float(values[0]) if weights is None else values.reshape(np.shape(weights)[:-1])


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    found: np.ndarray = np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole > 0)
    return found


def _nanmean(values: np.ndarray) -> np.ndarray:
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0).sum(-1), defined.sum(-1))


def _bin(confidence: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    return found


def _area(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted Mann-Whitney statistic, ties counted half: (R,) for weights (R, N)."""
    order = np.argsort(score, kind="stable")
    sorted_score = score[order]
    starts = np.flatnonzero(np.r_[True, sorted_score[1:] != sorted_score[:-1]])
    all_of = weights[:, order]
    pos = all_of * positive[order]
    if len(starts) < len(score):
        all_of, pos = (np.add.reduceat(a, starts, axis=1) for a in (all_of, pos))
    neg = all_of - pos
    below = np.cumsum(neg, axis=1)
    total_neg = below[:, -1].copy()
    below -= neg / 2
    return _ratio(np.einsum("rn,rn->r", pos, below), pos.sum(1) * total_neg)


def _chosen(metrics: Sequence[str] | Mapping[str, Metric] | None) -> dict[str, Metric]:
    if isinstance(metrics, Mapping):
        return dict(metrics)
    names = list(METRICS if metrics is None else metrics)
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise DataError(f"unknown metric {unknown[0]!r}", f"one of: {', '.join(METRICS)}")
    return {name: METRICS[name] for name in names}


def _units(groups: np.ndarray | None, labelled: np.ndarray) -> np.ndarray:
    """Number of the unit that each labelled row is drawn with, 0..U-1."""
    n = int(labelled.sum())
    if groups is None:
        return np.arange(n)
    if len(groups) != len(labelled):
        raise DataError(f"{len(groups)} groups for {len(labelled)} labels", "one per row; '' stands alone")
    names = np.asarray(groups)[labelled].astype(str)
    _, unit = np.unique(names, return_inverse=True)
    alone = names == ""
    unit[alone] = len(unit) + np.arange(alone.sum())
    return np.unique(unit, return_inverse=True)[1]


def _resamples(unit: np.ndarray, repeats: int, seed: int) -> Any:
    """Weights (R, N) in chunks: how often each row's unit comes when U of the U units are drawn."""
    rng = np.random.default_rng(seed)
    units = int(unit.max()) + 1
    own = units == len(unit) and np.array_equal(unit, np.arange(units))
    step = max(1, min(repeats, CHUNK // len(unit)))
    for start in range(0, repeats, step):
        rows = min(step, repeats - start)
        draws = rng.integers(0, units, size=(rows, units)) + units * np.arange(rows)[:, None]
        weights = np.bincount(draws.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float64)
        yield weights if own else weights[:, unit]


def _interval(
    value: np.ndarray, drawn: np.ndarray, level: float, lower: float = 0.0, upper: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of the resamples (R, ...) about `value`, longer on the side that the bias points to."""
    if not 0 < level < 1:
        raise DataError(f"level {level} of an interval", "a number between 0 and 1, for example 0.95")
    tail = (1 - level) / 2
    undefined = np.isnan(drawn).all(axis=0)
    quantiles = np.nanquantile(np.where(undefined, 0.0, drawn), [tail, 0.5, 1 - tail], axis=0)
    low, middle, high = np.where(undefined, np.nan, quantiles)
    bias = middle - value
    low, high = low - middle - np.maximum(bias, 0), high - middle - np.minimum(bias, 0)
    return np.clip(value + low, lower, upper), np.clip(value + high, lower, upper)


def _widen(
    value: np.ndarray, low: np.ndarray, high: np.ndarray, units: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """The exact binomial bound where all of `units` agree, so that no resample differs."""
    tail = (1 - level) / 2
    n = np.maximum(units, 1)
    low = np.where((value == 1) & (units > 0), betaincinv(n, 1, tail), low)
    high = np.where((value == 0) & (units > 0), betaincinv(1, n, 1 - tail), high)
    return low, high


def _units_of_each(index: np.ndarray, unit: np.ndarray, k: int) -> np.ndarray:
    pairs = np.unique(np.stack([index, unit]), axis=1)
    return np.bincount(pairs[0], minlength=k)


def _triple(value: float, low: float, high: float) -> dict[str, float | None]:
    value, low, high = _plain(np.array([value, low, high], dtype=float))
    return {"value": value, "low": low, "high": high}


def _plain(values: np.ndarray) -> list[Any]:
    return [None if np.isnan(v) else float(v) for v in values]


def _scalar(value: np.ndarray) -> Any:
    return float(value) if np.ndim(value) == 0 else value


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "roc_auc": roc_auc,
    "log_loss": log_loss,
    "ece": ece,
}
PER_CLASS: dict[str, Metric] = {"precision": precision, "recall": recall, "f1": f1, "roc_auc": roc_auc_per_class}
UPPER: dict[Metric, float] = {log_loss: np.inf}
# shares of independent rows or groups, with the number of them behind each share
SHARES: dict[Metric, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    accuracy: lambda y, p, unit: np.asarray(unit.max() + 1),
    recall: lambda y, p, unit: _units_of_each(y, unit, p.shape[1]),
    precision: lambda y, p, unit: _units_of_each(p.argmax(1), unit, p.shape[1]),
}
