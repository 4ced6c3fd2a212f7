"""Class shares of photographs nobody has labelled, and what to do when they differ from the training ones.

Leaderboard probing: a submission that says class k everywhere scores the share of k, so K - 1 submissions
give all shares. EM: Saerens, Latinne and Decaestecker, Neural Computation 2002. BBSE: Lipton, Wang and Smola
2018 (arXiv 1802.03916). Both assume that the photographs of a class look the same as in training and only the
shares moved; EM needs calibrated probabilities besides, BBSE does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import nnls
from scipy.stats import norm

from manihot.errors import DataError
from manihot.metrics import confusion
from manihot.records.probabilities import TINY, check_probs
from manihot.trust.calibrate import fit_calibrator, labelled


def check_prior(prior: Sequence[float] | np.ndarray, k: int, what: str = "class shares") -> np.ndarray:
    """Class shares float64 (K,) that sum to 1; negative, all-zero or another number of classes: DataError."""
    values = np.asarray(prior, dtype=np.float64)
    if values.shape != (k,) or not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
        raise DataError(f"{what} {np.array2string(values, precision=3)} don't fit {k} classes", "one share per class")
    found: np.ndarray = values / values.sum()
    return found


def count_prior(labels: np.ndarray, k: int) -> np.ndarray:
    """Shares of the classes among labels (N,), -1 left out; float64 (K,)."""
    labels = np.asarray(labels)
    counts = np.bincount(labels[labels >= 0], minlength=k)
    return check_prior(counts, k, "labels with class shares")


def probe_shares(
    scores: Mapping[str, float],
    classes: Sequence[str],
    photographs: int,
    digits: int | None = None,
    level: float = 0.95,
) -> pd.DataFrame:
    """Class shares from the accuracies of constant submissions, with binomial errors.

    scores: class name -> accuracy of the submission that says this class everywhere, for all classes or all
    but one, whose share is what is left. photographs: how many the score is computed on. digits: decimals
    that the leaderboard shows; half a unit of the last is added to each error. Columns: class, probed, share,
    error (standard error as an estimate of the shares beyond these photographs), low, high. Raises DataError
    where the scores can't be shares.
    """
    unknown = set(scores) - set(classes)
    missing = [name for name in classes if name not in scores]
    if unknown or len(missing) > 1 or photographs < 1:
        raise DataError(
            f"probes of {', '.join(scores)} don't give the shares of {', '.join(classes)}",
            "one constant submission for each class, or for all but one",
        )
    rounding = 0.0 if digits is None else 0.5 * 10.0**-digits
    total = float(sum(scores.values()))
    slack = rounding * len(scores) + 1e-9
    if (
        any(not 0 <= value <= 1 for value in scores.values())
        or total > 1 + slack
        or (not missing and total < 1 - slack)
    ):
        raise DataError(
            f"the probes add up to {total:.4f}", "each is a share in [0, 1], and all classes together make 1"
        )
    z = norm.ppf(0.5 + level / 2)
    rows = []
    for name in classes:
        share = scores[name] if name in scores else max(0.0, 1.0 - total)
        known_to = rounding if name in scores else rounding * len(scores)
        error = float(np.sqrt(share * (1 - share) / photographs))
        # Wilson 1927: stays within [0, 1] and has a width even where the score is 0
        centre = (share + z * z / (2 * photographs)) / (1 + z * z / photographs)
        half = z / (1 + z * z / photographs) * np.sqrt(error**2 + z * z / (4 * photographs**2))
        low, high = max(0.0, centre - half - known_to), min(1.0, centre + half + known_to)
        rows.append(
            {
                "class": name,
                "probed": name in scores,
                "share": share,
                "error": error + known_to,
                "low": low,
                "high": high,
            }
        )
    return pd.DataFrame(rows)


def reweight(pred_probs: np.ndarray, train_prior: np.ndarray, new_prior: np.ndarray) -> np.ndarray:
    """Probabilities (N, K) for a place with other class shares: p * new / train, rows scaled to sum to 1."""
    probs = check_probs(pred_probs, least=2)
    k = probs.shape[1]
    old, new = check_prior(train_prior, k), check_prior(new_prior, k)
    if (new[old == 0] > 0).any():
        raise DataError("a class without training photographs can't be given a share", "set its new share to 0")
    out = probs * np.where(old > 0, new / np.where(old > 0, old, 1.0), 0.0)
    total = out.sum(axis=1, keepdims=True)
    return np.where(total > 0, out / np.where(total > 0, total, 1.0), new)


@dataclass(frozen=True)
class PriorEstimate:
    """prior: class shares (K,). low, high: 95 % bootstrap interval (K,), NaN where none was asked for."""

    prior: np.ndarray
    low: np.ndarray
    high: np.ndarray


def fit_prior_em(
    pred_probs: np.ndarray, train_prior: np.ndarray, steps: int = 1000, tolerance: float = 1e-7
) -> np.ndarray:
    """Class shares (K,) of unlabelled photographs by Saerens' EM.

    pred_probs: calibrated (N, K). train_prior: (K,) shares of the labels that the probabilities were fitted
    on.
    """
    probs = check_probs(pred_probs, least=2)
    old = check_prior(train_prior, probs.shape[1])
    ratio = np.where(old > 0, probs / np.where(old > 0, old, 1.0), 0.0)
    prior = old
    for _ in range(steps):
        weighted = ratio * prior
        updated = (weighted / np.maximum(weighted.sum(axis=1, keepdims=True), TINY)).mean(axis=0)
        moved = np.abs(updated - prior).max()
        prior = updated / updated.sum()
        if moved < tolerance:
            break
    return prior


def fit_prior_bbse(
    oof_probs: np.ndarray, oof_labels: np.ndarray, new_probs: np.ndarray, soft: bool = True
) -> np.ndarray:
    """Class shares (K,) of unlabelled photographs by black-box shift estimation.

    Solves C prior = mean prediction, C the mean prediction of each true class out-of-fold, for prior >= 0
    with sum 1. soft: predictions are probabilities; otherwise argmax counts. Raises DataError for a class
    without labels.
    """
    probs, y = labelled(oof_probs, oof_labels)
    new = check_probs(new_probs, least=2)
    k = probs.shape[1]
    counts = np.bincount(y, minlength=k)
    if (counts == 0).any() or new.shape[1] != k:
        raise DataError(
            f"classes {np.flatnonzero(counts == 0).tolist()} have no labelled photograph, or classes differ",
            "estimate over the classes that occur",
        )
    if soft:
        columns = np.stack([probs[y == c].mean(axis=0) for c in range(k)], axis=1)
        seen = new.mean(axis=0)
    else:
        columns = confusion(y, probs).T / counts
        seen = np.bincount(new.argmax(axis=1), minlength=k) / len(new)
    heavy = 1e3  # the row that makes the shares sum to 1
    solved, _ = nnls(np.vstack([columns, np.full(k, heavy)]), np.append(seen, heavy))
    found: np.ndarray = solved / solved.sum()
    return found


def estimate_prior(
    oof_probs: np.ndarray,
    oof_labels: np.ndarray,
    new_probs: np.ndarray,
    method: str = "em",
    draws: int = 0,
    seed: int = 0,
) -> PriorEstimate:
    """Class shares of unlabelled photographs (N', K) by 'em' or 'bbse', with a bootstrap interval if draws >
    0.

    For 'em' the probabilities are first calibrated on the out-of-fold ones (N, K), by vector scaling.
    """
    probs, y = labelled(oof_probs, oof_labels)
    new = check_probs(new_probs, least=2)
    if method not in ("em", "bbse"):
        raise DataError(f"class shares can't be estimated by {method!r}", "one of: em, bbse")
    old = count_prior(y, probs.shape[1])
    calibrated = fit_calibrator(probs, y, "vector")(new) if method == "em" else new
    rng = np.random.default_rng(seed)

    def estimate(rows: np.ndarray | slice, own: np.ndarray | slice) -> np.ndarray:
        if method == "em":
            return fit_prior_em(calibrated[rows], old, tolerance=1e-6)
        return fit_prior_bbse(probs[own], y[own], new[rows])

    prior = estimate(slice(None), slice(None))
    if draws <= 0:
        nothing = np.full(len(prior), np.nan)
        return PriorEstimate(prior, nothing, nothing)
    drawn = []
    for _ in range(draws):
        own = np.concatenate([rng.choice(np.flatnonzero(y == c), (y == c).sum()) for c in np.unique(y)])
        drawn.append(estimate(rng.integers(0, len(new), len(new)), own))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return PriorEstimate(prior, low, high)
