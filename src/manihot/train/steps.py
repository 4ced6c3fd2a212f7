"""Steps: one batch to its loss. A step is a function `(model, batch, state) -> {"loss": ..., ...}`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from manihot.data.dataset import Batch
from manihot.infer.runners import Normalise


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


Step = Callable[[nn.Module, Batch, StepState], dict[str, Tensor]]


def supervised(model: nn.Module, batch: Batch, state: StepState) -> dict[str, Tensor]:
    """The loss of labelled photographs, after mixing where the recipe mixes."""
    moved = {name: value.to(state.device, non_blocking=True) for name, value in batch.items()}
    images = state.normalise(moved["image"], moved["colour"])
    targets = moved["target"]
    if state.mixer is not None:
        mixed = state.mixer(images, targets, state.epoch, state.batch_number)
        images, targets = mixed.images, mixed.targets
    with torch.autocast(state.device.type, state.dtype, enabled=state.dtype != torch.float32):
        features = model.embed(images)  # type: ignore[operator]
        logits = model.classify(features)  # type: ignore[operator]
    available = {"features": features, "index": moved["index"], "weight": model.head.weight}  # type: ignore[union-attr]
    extra = {name: available[name] for name in state.loss.needs}
    return {"loss": state.loss(logits.float(), targets, sample_weights=moved["weight"], **extra)}


STEPS: dict[str, Step] = {"supervised": supervised}
