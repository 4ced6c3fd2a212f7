"""Cross-entropy and its close kin: focal, cosine and Taylor forms. z = logits, p = softmax(z).

Terms give (N,K), the loss for each possible label; see `contract`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from manihot.train.optim.losses.contract import check

LEAST_SQUARE = 1e-6  # beside |z|^2: logits that are all 0 have no direction, and the slope 1 / |z| must stay finite


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-log p_y; with `smoothing` the label smoothing of arXiv 1512.00567."""
    return -logits.log_softmax(1)


def focal(logits: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float | Sequence[float] = 1.0) -> Tensor:
    """alpha_y (1 - p_y)^gamma (-log p_y) (arXiv 1708.02002); alpha is one number or one per class.

    The mean is over photographs only; some popular code divides by K as well.
    """
    check("focal", "gamma", gamma, gamma >= 0, "a number from 0")
    factor = torch.as_tensor(alpha, dtype=logits.dtype, device=logits.device)
    fits = factor.ndim == 0 or factor.shape == logits.shape[1:]
    check("focal", "alpha", alpha, fits and bool((factor >= 0).all()), "one number from 0, or one per class")
    return -factor * (gamma * log_one_minus_softmax(logits)).exp() * logits.log_softmax(1)


def focal_of_mean(logits: Tensor, target: Tensor, *, gamma: float = 2.0) -> Tensor:
    """(1 - e^-L)^gamma L of the batch's mean cross-entropy L, as a public notebook has "focal loss".

    The factor is one number for the whole batch, so it turns no attention to hard photographs: this is what the
    lecture's verdict on focal loss is about, and no loss to choose. Here (N,), each photograph's share of the mean.
    """
    check("focal_of_mean", "gamma", gamma, gamma >= 0, "a number from 0")
    own = -(target * logits.log_softmax(1)).sum(1)
    return own * (-torch.expm1(-own.mean())) ** gamma


def log_one_minus_softmax(logits: Tensor) -> Tensor:
    """log(1 - p) (N,K) without cancellation: 1 - p of the largest logit is summed from the others."""
    top = logits.argmax(1, keepdim=True)
    others = logits.scatter(1, top, -math.inf).logsumexp(1, keepdim=True)
    rest = torch.log1p(-logits.softmax(1).scatter(1, top, 0.0))
    return rest.scatter(1, top, others - logits.logsumexp(1, keepdim=True))


def focal_cosine(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 1.0,
    gamma: float = 2.0,
    xent: float = 0.1,
    focal_on: str = "normalised",
) -> Tensor:
    """1 - cos(z, onehot) + xent alpha (1 - p_y)^gamma CE(z/|z|) (arXiv 2007.07805).

    focal_on: p_y in the focal factor is exp(-CE) of the same normalised logits in the paper ("normalised");
    "logits" takes the softmax of z itself. |z| is sqrt(sum z^2 + 1e-6).
    """
    check("focal_cosine", "gamma", gamma, gamma >= 0, "a number from 0")
    check("focal_cosine", "focal_on", focal_on, focal_on in ("normalised", "logits"), "'normalised' or 'logits'")
    cosine = logits * (logits.square().sum(1, keepdim=True) + LEAST_SQUARE).rsqrt()
    hardness = log_one_minus_softmax(cosine if focal_on == "normalised" else logits)
    return 1 - cosine - xent * alpha * (gamma * hardness).exp() * cosine.log_softmax(1)


def cosine_focal(logits: Tensor, target: Tensor, *, gamma: float = 2.0) -> Tensor:
    """-cos(p_y)^gamma log p_y, the lecture's slide; p_y in radians: the factor runs from 1 to .54^gamma."""
    check("cosine_focal", "gamma", gamma, gamma >= 0, "a number from 0")
    return -(logits.softmax(1).cos() ** gamma) * logits.log_softmax(1)


def taylor_ce(logits: Tensor, target: Tensor, *, n: int = 2) -> Tensor:
    """-log of the Taylor softmax f(z_y) / sum_k f(z_k), f(z) = sum_{j<=n} z^j/j! (arXiv 2011.11538)."""
    check("taylor_ce", "n", n, n >= 2 and n % 2 == 0, "an even number from 2 (only those keep f positive)")
    dtype = logits.dtype
    if n > 6:
        logits = logits.double()  # the terms of f cancel: at z = -8, n = 20 nothing of float32 would be left
    # far from 0 the sum is taken in powers of 1/z, so that neither z^n overflows nor its logarithm is lost
    far = logits.abs() > 1
    near = torch.where(far, torch.ones_like(logits), logits)
    inverse = 1 / torch.where(far, logits, torch.ones_like(logits))
    small = sum((near**j / math.factorial(j) for j in range(n + 1)), torch.zeros_like(near))
    large = sum((inverse ** (n - j) / math.factorial(j) for j in range(n + 1)), torch.zeros_like(near))
    log_f = torch.where(far, large.log() - n * inverse.abs().log(), small.log())
    return (log_f.logsumexp(1, keepdim=True) - log_f).to(dtype)


def taylor_series_ce(logits: Tensor, target: Tensor, *, t: int = 2) -> Tensor:
    """sum_{i<=t} (1 - p_y)^i/i, the cut-off series of -log p_y (Feng et al., IJCAI 2020); 1 - p_y at t=1."""
    check("taylor_series_ce", "t", t, t >= 1, "a whole number from 1")
    wrong = log_one_minus_softmax(logits).exp()
    return sum((wrong**i / i for i in range(1, t + 1)), torch.zeros_like(wrong))
