"""Losses that wrong labels pull less. z = logits, p = softmax(z).

Terms give (N,K), the loss for each possible label; `Gjs` takes the label distribution whole and gives (N,).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from manihot.train.optim.losses.contract import check

LOG_ZERO = math.log(1e-4)  # what log 0 stands for in the reverse cross-entropy


def rce(logits: Tensor, target: Tensor, *, log_zero: float = LOG_ZERO) -> Tensor:
    """Reverse cross-entropy -sum_k p_k log t_k with log 0 := log_zero, that is -log_zero (1 - p_y)."""
    check("rce", "log_zero", log_zero, log_zero < 0, "a number below 0")
    return -log_zero * (1 - logits.softmax(1))


def symmetric_ce(
    logits: Tensor, target: Tensor, *, alpha: float = 0.1, beta: float = 1.0, log_zero: float = LOG_ZERO
) -> Tensor:
    """alpha CE + beta RCE (arXiv 1908.06112)."""
    return -alpha * logits.log_softmax(1) + beta * rce(logits, target, log_zero=log_zero)


def nce(logits: Tensor, target: Tensor) -> Tensor:
    """Normalised cross-entropy log p_y / sum_k log p_k (arXiv 2006.13554)."""
    log_p = logits.log_softmax(1)
    return log_p / log_p.sum(1, keepdim=True)


def nce_rce(
    logits: Tensor, target: Tensor, *, alpha: float = 1.0, beta: float = 1.0, log_zero: float = LOG_ZERO
) -> Tensor:
    """Active passive loss alpha NCE + beta RCE (arXiv 2006.13554)."""
    return alpha * nce(logits, target) + beta * rce(logits, target, log_zero=log_zero)


def gce(logits: Tensor, target: Tensor, *, q: float = 0.7) -> Tensor:
    """(1 - p_y^q) / q (arXiv 1805.07836): cross-entropy for q = 0, 1 - p_y for q = 1."""
    check("gce", "q", q, 0 <= q <= 1, "a number from 0 to 1")
    log_p = logits.log_softmax(1)
    return -log_p if q == 0 else -torch.expm1(q * log_p) / q


class Gjs(nn.Module):
    """Generalised Jensen-Shannon divergence between label and predictions, over -(1-pi) log(1-pi).

    arXiv 2105.04522. pi: weight of the label; the predictions share the rest. views: predictions of one
    photograph; 1 is the JS loss, more want `view_logits` (views - 1, N, K), the logits of other augmentations
    of the same photographs. pi -> 0 is cross-entropy, pi -> 1 is half the mean absolute error.
    """

    def __init__(self, *, classes: int, photographs: int | None = None, pi: float = 0.5, views: int = 1) -> None:
        super().__init__()
        check("gjs", "pi", pi, 0 < pi < 1, "a number between 0 and 1")
        check("gjs", "views", views, views >= 1, "a whole number from 1")
        self.pi, self.views = pi, views
        self.needs = () if views == 1 else ("view_logits",)

    def forward(self, logits: Tensor, target: Tensor, view_logits: Tensor | None = None) -> Tensor:
        """(N,) values."""
        every = logits.unsqueeze(0)
        if view_logits is not None:
            check("gjs", "views", self.views, len(view_logits) == self.views - 1, f"{len(view_logits) + 1} here")
            every = torch.cat([every, view_logits.to(logits)])
        log_p = every.log_softmax(2)
        share = (1 - self.pi) / self.views
        mean = self.pi * target + share * log_p.exp().sum(0)
        divergence = entropy(mean) - self.pi * entropy(target) + share * (log_p.exp() * log_p).sum((0, 2))
        return divergence / (-(1 - self.pi) * math.log1p(-self.pi))


def entropy(p: Tensor) -> Tensor:
    """-sum p log p of rows (N,K) in nats, with a finite gradient where p is 0."""
    floor = p.clamp_min(torch.finfo(p.dtype).tiny)
    return -(floor * floor.log()).sum(1)
