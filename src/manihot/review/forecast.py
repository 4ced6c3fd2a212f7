"""The stop rule: how many wrong labels the next photographs are expected to hold, by the answers given so far.

The audit's chance that a label is wrong is recalibrated while people answer: logistic regression of "the answer
differs from the given label" on the log-odds of the chance (Platt scaling), with a Gaussian prior, which is all there
is before the first answer. The prior says what planted errors taught: chances near a half are too high. It was settled
on seeds 100 to 102 of benchmarks/review.py, which reports others. review/page/logic.js does the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

PRIOR = (-1.0, 0.9)  # intercept and slope
SPREAD = (1.0, 0.25)  # their standard deviations
STEPS = 60  # of Newton's method, at most; ten or so are needed
CLOSE = 1e-9
WIDTH = 1.96  # standard deviations of the interval
STOP = 1.0  # wrong labels expected in the next batch, below which the page says that one can stop


@dataclass(frozen=True)
class Forecast:
    """Wrong labels expected among `photographs`, with a 95 % prediction interval in whole labels."""

    photographs: int
    expected: float
    low: int
    high: int


def forecast(chance: np.ndarray, wrong: np.ndarray, ahead: np.ndarray) -> Forecast:
    """What photographs with chances `ahead` (n,) are expected to hold.

    chance: of the photographs answered so far, (A,). wrong: whether the answer differs from the given label, (A,).
    """
    at = np.array(PRIOR)
    x, y = _design(chance), np.asarray(wrong, dtype=np.float64)
    precision = np.diag(1 / np.square(SPREAD))

    def cost(where: np.ndarray) -> float:
        odds, off = x @ where, where - PRIOR
        return float(np.logaddexp(0, odds).sum() - y @ odds + off @ precision @ off / 2)

    for _ in range(STEPS):
        p = expit(x @ at)
        slope = x.T @ (y - p) - precision @ (at - PRIOR)
        curve = (x * (p * (1 - p))[:, None]).T @ x + precision
        step = np.linalg.solve(curve, slope)
        if np.abs(step).max() < CLOSE:
            break
        before = cost(at)
        while cost(at + step) > before and np.abs(step).max() > CLOSE:  # too far where all wrong labels come first
            step = step / 2
        at = at + step
    p = expit(_design(ahead) @ at)
    spread = p * (1 - p)
    pull = spread @ _design(ahead)
    variance = float(spread.sum() + pull @ np.linalg.solve(curve, pull))
    expected, half = float(p.sum()), WIDTH * variance**0.5
    low = max(0, int(np.ceil(expected - half - 0.5)))
    return Forecast(len(p), expected, low, min(len(p), int(np.floor(expected + half + 0.5))))


def _design(chance: np.ndarray) -> np.ndarray:
    odds = logit(np.clip(np.asarray(chance, dtype=np.float64), 1e-4, 1 - 1e-4))
    return np.stack([np.ones_like(odds), odds], axis=1)
