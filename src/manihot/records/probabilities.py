"""Labels and probabilities as arrays: the one check of them, and the floor of a probability before its logarithm."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from manihot.errors import DataError
from manihot.records.tables import shown

TINY = 1e-12  # floor of a probability before its logarithm
SLACK = 0.01  # by which a row may miss the sum of 1: tables are written with two or three decimals
ROUNDING = 1e-6  # below 0, of arithmetic in single precision

RowName = Callable[[int], str]


def log_probs(pred_probs: np.ndarray) -> np.ndarray:
    """Logarithms, float64, of probabilities no smaller than TINY."""
    return np.log(np.maximum(np.asarray(pred_probs, dtype=np.float64), TINY))


def check_probs(
    pred_probs: np.ndarray,
    *,
    least: int = 1,
    any_scale: bool = False,
    what: str = "pred_probs",
    classes: Sequence[str] | None = None,
    row: RowName | None = None,
) -> np.ndarray:
    """Probabilities float64 (N, K): finite, not negative, rows that sum to 1 within SLACK.

    least: the fewest classes. any_scale: finite is enough, so that logits will do too. what, classes, row: names of the
    array, of its columns and of a row in the message. Raises DataError with the first row that is wrong, its column,
    and what was found there.
    """
    probs = np.asarray(pred_probs)
    probs = probs if np.issubdtype(probs.dtype, np.floating) else probs.astype(np.float64)
    if probs.ndim != 2 or probs.shape[1] < least:
        raise DataError(f"{what} has the shape {probs.shape}", f"a row per photograph, {least} columns or more")
    total = probs.sum(axis=1)
    lowest, good_sum = (-np.inf, np.isfinite(total)) if any_scale else (-ROUNDING, np.abs(total - 1) <= SLACK)
    if good_sum.all() and (any_scale or (probs >= lowest).all()):  # NaN and infinity have no good sum
        return probs.astype(np.float64, copy=False)
    bad = ~np.isfinite(probs) | (probs < lowest)
    wrong = bad.any(axis=1) | ~good_sum
    first = int(np.flatnonzero(wrong)[0])
    if bad[first].any():
        k = int(np.flatnonzero(bad[first])[0])
        found = f"column {k if classes is None else shown(classes[k])} holds {probs[first, k]:g}"
    else:
        found = f"{shown(', '.join(f'{p:.4g}' for p in probs[first]))} sum to {total[first]:.4g}"
    kind, name = "finite" if any_scale else "probabilities", f"row {first}" if row is None else row(first)
    raise DataError(
        f"{what}: {int(wrong.sum())} rows are not {kind}, first in {name}: {found}",
        "predict again, or leave it out"
        if any_scale
        else "no value may be negative or missing, and each row must sum to 1; apply the softmax to logits first",
    )


def check_labels(
    labels: np.ndarray, n: int, k: int, *, all_known: bool = False, row: RowName | None = None
) -> np.ndarray:
    """Labels as int64 (N,): whole numbers from 0 to K - 1, -1 where none is known, unless all must be known.

    row: the name of a row in the message. Raises DataError with the first row that is wrong and what was found there.
    """
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise DataError(f"labels of shape {labels.shape} don't fit {n} photographs", "one label per photograph")
    if not np.issubdtype(labels.dtype, np.number):
        raise DataError(f"labels are {labels.dtype}, not numbers", f"class numbers from 0 to {k - 1}, -1 for none")
    wrong = ~((labels >= -1) & (labels < k) & (labels % 1 == 0))
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        name = f"row {first}" if row is None else row(first)
        raise DataError(
            f"{name} has label {labels[first]}, but there are {k} classes",
            f"labels are class numbers from 0 to {k - 1}, -1 where none is known",
        )
    if all_known and (labels < 0).any():
        raise DataError(
            f"{int((labels < 0).sum())} of {n} photographs have no label among the {k} classes",
            "leave photographs without a label out before fitting or scoring",
        )
    return labels.astype(np.int64)
