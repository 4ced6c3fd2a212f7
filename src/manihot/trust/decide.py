"""From probabilities to decisions when mistakes don't cost the same: a missed mosaic costs more than a false
alarm.

Least expected cost: Elkan, The foundations of cost-sensitive learning, IJCAI 2001. A threshold per class: the
smallest probability at which answers of that class were right often enough, out-of-fold; below it, no answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from manihot.errors import DataError, SettingsError
from manihot.trust.calibrate import labelled
from manihot.trust.conformal import binomial_interval


def check_costs(costs: np.ndarray | Sequence[Sequence[float]], k: int) -> np.ndarray:
    """Costs float64 (K, K), row = true class, column = answer, not negative, 0 on the diagonal
    (DataError).
    """
    matrix = np.asarray(costs, dtype=np.float64)
    if matrix.shape != (k, k):
        raise DataError(
            f"a cost matrix of shape {matrix.shape} doesn't fit {k} classes",
            "a row per true class, a column per answer",
        )
    wrong = ~np.isfinite(matrix) | (matrix < 0) | ((matrix != 0) & np.eye(k, dtype=bool))
    if wrong.any():
        true, answer = np.argwhere(wrong)[0]
        raise DataError(
            f"the cost of the answer {answer} to the true class {true} is {matrix[true, answer]:g}",
            "costs cannot be negative, and a right answer costs 0",
        )
    return matrix


def mean_cost(labels: np.ndarray, answers: np.ndarray, costs: np.ndarray) -> float:
    """Mean cost of answers int (N,) to photographs with labels (N,), -1 left out."""
    labels, answers = np.asarray(labels), np.asarray(answers)
    known = labels >= 0
    return float(np.asarray(costs)[labels[known], answers[known]].mean())


def cost_sensitive_accuracy(labels: np.ndarray, answers: np.ndarray, costs: np.ndarray) -> float:
    """1 - cost / cost of the worst answers: 1 is all right, 0 the dearest mistake everywhere.

    With all mistakes at one price it is accuracy.
    """
    matrix = np.asarray(costs)
    labels = np.asarray(labels)
    worst = matrix.max(axis=1)[labels[labels >= 0]].mean()
    if worst == 0:
        raise DataError("these costs make no mistake cost anything", "at least one cost above 0")
    return 1.0 - mean_cost(labels, answers, matrix) / float(worst)


def fit_class_thresholds(
    pred_probs: np.ndarray, labels: np.ndarray, precision: float = 0.9, classes: Sequence[str] | None = None
) -> pd.DataFrame:
    """For each class the smallest top probability from which its answers are right at the rate asked for.

    pred_probs: out-of-fold (N, K). precision: in (0, 1]. Columns: class, threshold (infinite where no answer
    of the class is good enough), answered (share of its answers kept), precision, low, high (exact binomial;
    the threshold was chosen on the same photographs, so expect a little less on new ones).
    """
    probs, y = labelled(pred_probs, labels)
    if not 0 < precision <= 1:
        raise SettingsError(f"a precision of {precision} is not a share", "above 0, at most 1")
    top, answer = probs.max(axis=1), probs.argmax(axis=1)
    names = [str(name) for name in (range(probs.shape[1]) if classes is None else classes)]
    rows = []
    for c, name in enumerate(names):
        mine = np.flatnonzero(answer == c)
        mine = mine[np.argsort(-top[mine], kind="stable")]
        right = np.cumsum(y[mine] == c)
        last_of_tie = np.r_[top[mine][1:] != top[mine][:-1], True] if len(mine) else np.zeros(0, dtype=bool)
        good = np.flatnonzero(last_of_tie & (right >= precision * np.arange(1, len(mine) + 1)))
        n = int(good[-1]) + 1 if len(good) else 0
        hits = int(right[n - 1]) if n else 0
        low, high = binomial_interval(np.array(hits), np.array(n))
        rows.append(
            {
                "class": name,
                "threshold": float(top[mine[n - 1]]) if n else float("inf"),
                "answered": n / len(mine) if len(mine) else 0.0,
                "precision": hits / n if n else float("nan"),
                "low": float(low),
                "high": float(high),
            }
        )
    return pd.DataFrame(rows)
