"""Sharpness-aware minimisation over any optimiser (SAM, arXiv 2010.01412; adaptive: ASAM, arXiv 2102.11600).

The step's gradient is taken where the loss is worst nearby: at w + e, e = rho g / |g|. For ASAM each weight's
neighbourhood has its own size: e = rho w^2 g / | |w| g |. Both are the same for a scaled gradient, so a
GradScaler's factor needs no unscaling before the perturbation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from manihot.train.networks.backbones import NORMS


class Sam:
    """The walk to the worst place nearby and back; the optimiser steps in between, from where it was.

    rho: radius, above 0 (the paper: .05; ASAM's: .5 and more). adaptive: ASAM's neighbourhood.
    """

    def __init__(self, parameters: Iterable[Tensor], rho: float, adaptive: bool = False) -> None:
        self.parameters = list(parameters)
        self.rho, self.adaptive = rho, adaptive
        self._before: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def perturb(self) -> bool:
        """Move the weights along the gradients they hold; False, and nothing moved, for a zero or infinite one."""
        moved = [p for p in self.parameters if p.grad is not None]
        if not moved:
            return False
        norm = gradient_norm(p.grad * p.abs() if self.adaptive else p.grad for p in moved if p.grad is not None)
        if not torch.isfinite(norm) or norm == 0:
            return False
        scale = self.rho / norm
        self._before = [(p, p.clone()) for p in moved]
        for p in moved:
            assert p.grad is not None
            step = p.grad * p.square() if self.adaptive else p.grad
            p.add_((step * scale).to(p.dtype))
        return True

    @torch.no_grad()
    def restore(self) -> None:
        """The weights as they were, to the bit; the gradients stay those of the worst place."""
        for parameter, before in self._before:
            parameter.copy_(before)
        self._before = []


def gradient_norm(gradients: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of all of them together, float32 scalar."""
    found: Tensor = torch.stack([g.norm().float() for g in gradients]).norm()
    return found


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms normalise by the batch as ever, but its statistics don't enter their running ones.

    Otherwise SAM's second pass would move them a second time, by batches seen with other weights.
    """
    norms = [m for m in model.modules() if isinstance(m, NORMS) and m.training and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
