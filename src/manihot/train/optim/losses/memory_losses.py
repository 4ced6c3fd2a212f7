"""Losses that remember each photograph: early-learning regularisation and sparse over-parametrisation.

Both need `index`, the photograph's number in the training part, and learn in training mode only. What they
remember lies in buffers and so in the checkpoint. A mixed photograph has two
numbers: leave mixing out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manihot.errors import SettingsError
from manihot.train.optim.losses.contract import check


class Elr(nn.Module):
    """CE + lam log(1 - <t_i, p_i>), t_i the running mean of photograph i's p_i with factor beta.

    arXiv 2007.00151: t_i keeps what the network believed before it began to memorise wrong labels.
    """

    needs = ("index",)

    def __init__(self, *, classes: int, photographs: int | None = None, lam: float = 3.0, beta: float = 0.7) -> None:
        super().__init__()
        check("elr", "lam", lam, lam >= 0, "a number from 0")
        check("elr", "beta", beta, 0 <= beta < 1, "a number from 0 to below 1")
        self.lam, self.beta = lam, beta
        self.belief: Tensor
        self.register_buffer("belief", torch.zeros(known(photographs, "elr"), classes))

    def forward(self, logits: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """(N,K) values; index (N,) int."""
        log_p = logits.log_softmax(1)
        belief = self.belief[index].to(logits)
        if self.training:
            belief = self.beta * belief + (1 - self.beta) * log_p.detach().exp()
            self.belief[index] = belief.to(self.belief)
        # 1 - <t, p> = sum (1 - t_k) p_k; below 1e-4 its logarithm would run away
        apart = torch.log1p(-belief.clamp_max(1 - 1e-4))
        return self.lam * (log_p + apart).logsumexp(1, keepdim=True) - log_p


class Sop(nn.Module):
    """Cross-entropy of p_i + s_i; s_i = u_i^2 y - v_i^2 (1-y) models the label's error (arXiv 2202.14026).

    u descends the cross-entropy and v the squared error |p + s - y|^2, by plain gradient steps inside forward
    (rates lr_u and lr_v for the batch's mean, the authors' numbers), so the optimiser knows nothing of them.
    Both begin at 1e-8 times normal noise from `seed` and stay in [-1, 1]. The authors' SOP+ adds a
    consistency and a balance term, which are not part of this.
    """

    needs = ("index",)
    floor = 1e-4  # smallest share of a class in p + s

    def __init__(
        self, *, classes: int, photographs: int | None = None, lr_u: float = 10.0, lr_v: float = 10.0, seed: int = 0
    ) -> None:
        super().__init__()
        check("sop", "lr_u", lr_u, lr_u >= 0, "a number from 0")
        check("sop", "lr_v", lr_v, lr_v >= 0, "a number from 0")
        self.lr_u, self.lr_v = lr_u, lr_v
        generator = torch.Generator().manual_seed(seed)
        n = known(photographs, "sop")
        self.u: Tensor
        self.v: Tensor
        self.register_buffer("u", 1e-8 * torch.randn(n, classes, generator=generator))
        self.register_buffer("v", 1e-8 * torch.randn(n, classes, generator=generator))

    def forward(self, logits: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """(N,) values; index (N,) int."""
        p = logits.softmax(1)
        u, v = self.u[index].to(p), self.v[index].to(p)
        if self.training:
            self._learn(p.detach(), target, u, v, index)
        return self._cross_entropy(p, target, u, v)

    def _cross_entropy(self, p: Tensor, target: Tensor, u: Tensor, v: Tensor) -> Tensor:
        corrected = (p + u**2 * target - v**2 * (1 - target)).clamp_min(self.floor)
        return -(target * (corrected / corrected.sum(1, keepdim=True)).log()).sum(1)

    def _learn(self, p: Tensor, target: Tensor, u: Tensor, v: Tensor, index: Tensor) -> None:
        with torch.enable_grad():
            u, v = u.detach().requires_grad_(), v.detach().requires_grad_()
            (by_u,) = torch.autograd.grad(self._cross_entropy(p, target, u, v.detach()).mean(), u)
            error = p + u.detach() ** 2 * target - v**2 * (1 - target) - target
            (by_v,) = torch.autograd.grad(error.square().sum(1).mean(), v)
        self.u[index] = (u.detach() - self.lr_u * by_u).clamp(-1, 1).to(self.u)
        self.v[index] = (v.detach() - self.lr_v * by_v).clamp(-1, 1).to(self.v)


def known(photographs: int | None, name: str) -> int:
    """How many photographs to remember; a SettingsError where nobody said."""
    if photographs is None:
        raise SettingsError(
            f"loss {name} remembers each photograph and must know how many there are", "make_loss(..., photographs=N)"
        )
    return photographs
