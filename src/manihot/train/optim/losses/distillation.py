"""Learning from a teacher's answers beside the labels (arXiv 1503.02531)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manihot.train.optim.losses.contract import check


class Distillation(nn.Module):
    """lam T^2 KL(teacher || student) + (1 - lam) CE, both softened by T; the KL is summed over the classes.

    The mean is over photographs (torch's `batchmean`; its `mean` is K times too small). `teacher` (N,K) holds
    logits, or probabilities where teacher_gives="probabilities" (an OOF table).
    """

    needs = ("teacher",)

    def __init__(
        self,
        *,
        classes: int,
        photographs: int | None = None,
        lam: float = 0.5,
        temperature: float = 2.0,
        teacher_gives: str = "logits",
    ) -> None:
        super().__init__()
        check("distillation", "lam", lam, 0 <= lam <= 1, "a number from 0 to 1")
        check("distillation", "temperature", temperature, temperature > 0, "a number above 0")
        kinds = ("logits", "probabilities")
        check("distillation", "teacher_gives", teacher_gives, teacher_gives in kinds, " or ".join(kinds))
        self.lam, self.temperature, self.teacher_gives = lam, temperature, teacher_gives

    def forward(self, logits: Tensor, target: Tensor, teacher: Tensor) -> Tensor:
        """(N,K) values."""
        teacher = teacher.detach().to(logits)
        if self.teacher_gives == "probabilities":
            teacher = teacher.clamp_min(torch.finfo(teacher.dtype).tiny).log()
        known = (teacher / self.temperature).log_softmax(1)
        told = (logits / self.temperature).log_softmax(1)
        divergence = (known.exp() * (known - told)).sum(1, keepdim=True)
        return self.lam * self.temperature**2 * divergence - (1 - self.lam) * logits.log_softmax(1)
