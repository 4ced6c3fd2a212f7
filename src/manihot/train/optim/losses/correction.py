"""Loss correction by a transition matrix T, T[i][j] the probability that a photograph of class i is labelled j.

Patrini, Rozza, Menon, Nock and Qu 2017 (arXiv 1609.03683). Forward: the prediction goes through T before it is held
against the label, so that the network beneath predicts true classes. Backward: the loss is unmixed by the inverse of T;
its mean over noisy labels is the loss of the true ones, and single values may be negative.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from manihot.train.optim.losses.contract import check

TINY = 1e-12


def forward_correction(
    logits: Tensor, target: Tensor, *, transition: Sequence[Sequence[float]] = (), rate: float = 0.2
) -> Tensor:
    """-log (T^t p)_y; without `transition` a share `rate` of each class's labels falls on all others alike."""
    matrix = _matrix("forward_correction", transition, rate, logits)
    return -(logits.softmax(1) @ matrix).clamp_min(TINY).log()


def backward_correction(
    logits: Tensor, target: Tensor, *, transition: Sequence[Sequence[float]] = (), rate: float = 0.2
) -> Tensor:
    """(T^-1 l)_y with l the cross-entropy of each label; `transition` and `rate` as for `forward_correction`."""
    matrix = _matrix("backward_correction", transition, rate, logits)
    inverse, singular = torch.linalg.inv_ex(matrix.double())
    fine = int(singular) == 0 and bool(inverse.isfinite().all()) and float(inverse.abs().max()) < 1e6
    check("backward_correction", "transition", matrix.tolist(), fine, "a matrix that has an inverse")
    found: Tensor = -logits.log_softmax(1) @ inverse.to(logits).T
    return found


def _matrix(name: str, transition: Sequence[Sequence[float]], rate: float, logits: Tensor) -> Tensor:
    """T (K, K) as a tensor; SettingsError where its rows are no probabilities of K labels."""
    k = logits.shape[1]
    if not len(transition):
        check(
            name, "rate", rate, 0 <= rate < 1 - 1 / k, f"a share from 0 to below {1 - 1 / k:.3g}, which is pure chance"
        )
        even = torch.full((k, k), rate / (k - 1), dtype=logits.dtype, device=logits.device)
        return even.fill_diagonal_(1 - rate)
    words = f"{k} rows of {k} probabilities that sum to 1, a row a true class"
    check(name, "transition", transition, [len(row) for row in transition] == [k] * k, words)
    matrix = torch.as_tensor(transition, dtype=logits.dtype, device=logits.device)
    fine = bool((matrix >= 0).all()) and bool(((matrix.sum(1) - 1).abs() < 1e-3).all())
    check(name, "transition", transition, fine, words)
    return matrix
