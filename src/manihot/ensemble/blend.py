"""Blends: one opinion out of several members' or several views', without fitting anything.

Arithmetic mean = linear opinion pool (Stone 1961), geometric mean = logarithmic opinion pool (Genest and
Zidek 1986); the power mean holds both, at power 1 and 0. The rank mean averages the rank of a probability
among all N x K of its member: it ignores how bold each member is, and keeps each member's own argmax.
(Ranking a class at a time, as for ROC-AUC, would take the class prior away.) Its result orders classes; it is
no calibrated probability.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import rankdata

from manihot.ensemble.members import check_members, check_weights, row_blocks
from manihot.errors import DataError, SettingsError
from manihot.records.probabilities import TINY, log_probs
from manihot.settings import suggest


def mean_arithmetic(pred_probs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted arithmetic mean, (M, N, K) -> (N, K)."""
    out = np.zeros(pred_probs.shape[1:])
    for weight, probs in zip(weights, pred_probs):
        if weight:
            out += weight * probs
    return out


def mean_geometric(pred_probs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted geometric mean, (M, N, K) -> (N, K): the mean of log-probabilities; a floor of 1e-12 a
    probability.
    """
    out = np.zeros(pred_probs.shape[1:])
    for weight, probs in zip(weights, pred_probs):
        if weight:
            out += weight * log_probs(probs)
    found: np.ndarray = np.exp(out - out.max(axis=1, keepdims=True))
    return found


def mean_power(pred_probs: np.ndarray, weights: np.ndarray, power: float = 0.5) -> np.ndarray:
    """Weighted power mean, (M, N, K) -> (N, K): 1 is the arithmetic mean, 0 the geometric, large the
    maximum.
    """
    if power == 0:
        return mean_geometric(pred_probs, weights)
    out = np.zeros(pred_probs.shape[1:])
    top = np.maximum(pred_probs.max(axis=(0, 2)).astype(np.float64), TINY)[:, None]  # no under- or overflow
    for weight, probs in zip(weights, pred_probs):
        if weight:
            out += weight * np.maximum(probs / top, TINY) ** power
    return out ** (1.0 / power)


def mean_rank(pred_probs: np.ndarray, weights: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
    """Weighted mean of the share of probabilities of the same member that are smaller, (M, N, K) -> (N, K).

    reference: (M, N', K), the predictions that ranks are taken among (out-of-fold ones, so that a single new
    photograph has a rank too); pred_probs themselves when None.
    """
    out = np.zeros(pred_probs.shape[1:])
    for member, (weight, probs) in enumerate(zip(weights, pred_probs)):
        if not weight:
            continue
        if reference is None:
            out += weight * (rankdata(probs, axis=None).reshape(probs.shape) - 0.5) / probs.size
        else:
            known = np.sort(reference[member], axis=None)
            places = np.searchsorted(known, probs, "left") + np.searchsorted(known, probs, "right")
            out += weight * (places + 1.0) / (2.0 * (known.size + 1.0))
    return out


def blend(
    pred_probs: np.ndarray,
    weights: np.ndarray | Sequence[float] | None = None,
    mean: str = "arithmetic",
    **settings: object,
) -> np.ndarray:
    """Blend members (M, N, K) into probabilities float64 (N, K); rows sum to 1.

    weights: (M,) non-negative, any sum; equal when None. mean: a name of MEANS; settings go to it (power,
    reference). Raises DataError for what doesn't fit, SettingsError for an unknown mean.
    """
    pred_probs, _ = check_members(pred_probs)
    if mean not in MEANS:
        raise SettingsError(f"there is no mean {mean!r}", suggest(mean, list(MEANS)))
    chosen = check_weights(weights, len(pred_probs))
    out = np.empty(pred_probs.shape[1:])
    if mean == "rank":
        out = MEANS[mean](pred_probs, chosen, **settings)
    else:
        for rows in row_blocks(len(out)):
            out[rows] = MEANS[mean](pred_probs[:, rows], chosen, **settings)
    total = out.sum(axis=1, keepdims=True)
    if (total <= 0).any():
        raise DataError(
            f"{int((total <= 0).sum())} photographs have no probability left in the blend",
            "check that every member's rows sum to 1",
        )
    found: np.ndarray = out / total
    return found


def blend_views(
    pred_probs: np.ndarray, weights: np.ndarray | Sequence[float] | None = None, mean: str = "arithmetic"
) -> np.ndarray:
    """Test-time views (V, N, K) of one member into (N, K), a weight per view (77th place); never votes."""
    return blend(pred_probs, weights, mean)


Mean = Callable[..., np.ndarray]  # (pred_probs (M, N, K), weights (M,)) -> (N, K), rows not yet scaled
MEANS: dict[str, Mean] = {
    "arithmetic": mean_arithmetic,
    "geometric": mean_geometric,
    "power": mean_power,
    "rank": mean_rank,
}
