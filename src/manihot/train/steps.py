"""Steps: one batch to its loss. A step is a function `(model, batch, state) -> {"loss": ..., ...}`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from manihot.data.dataset import Batch
from manihot.infer.runners import Normalise

T = TypeVar("T")


@dataclass
class StepState:
    """What a step needs beside the model and the batch."""

    device: torch.device
    normalise: Normalise
    loss: Any  # of manihot.optim.losses.make_loss
    dtype: torch.dtype
    mixer: Any = None  # of manihot.data.mixing, or None
    epoch: int = 0
    batch_number: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    kept: dict[int, Any] | None = None  # by batch number; what SAM's second pass sees again

    def once(self, make: Callable[[], T]) -> T:
        """What `make` gives; in SAM's second pass what it gave for this batch in the first."""
        if self.kept is None:
            return make()
        if self.batch_number not in self.kept:
            self.kept[self.batch_number] = make()
        return self.kept[self.batch_number]


Step = Callable[[nn.Module, Batch, StepState], dict[str, Tensor]]


def mixed_batch(image: Tensor, moved: Batch, state: StepState) -> tuple[Tensor, Tensor]:
    """Normalised images and soft labels on the device, mixed where the recipe mixes."""
    images = state.normalise(image.to(state.device, non_blocking=True), moved["colour"])
    if state.mixer is None:
        return images, moved["target"]
    return state.mixer(images, moved["target"], state.epoch, state.batch_number)


def supervised(model: nn.Module, batch: Batch, state: StepState) -> dict[str, Tensor]:
    """The loss of labelled photographs, after mixing where the recipe mixes."""
    moved = {name: value.to(state.device, non_blocking=True) for name, value in batch.items() if name != "image"}
    images, targets = state.once(lambda: mixed_batch(batch["image"], moved, state))
    with torch.autocast(state.device.type, state.dtype, enabled=state.dtype != torch.float32):
        features = model.embed(images)  # type: ignore[operator]
        logits = model.classify(features)  # type: ignore[operator]
    available = {**moved, "features": features, "weight": model.head.weight}  # type: ignore[union-attr]
    extra = {name: available[name] for name in state.loss.needs}
    return {"loss": state.loss(logits.float(), targets, sample_weights=moved["weight"], **extra)}


STEPS: dict[str, Step] = {"supervised": supervised}
