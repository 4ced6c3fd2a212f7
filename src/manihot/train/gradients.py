"""The gradient of a step: of a group of batches, at the weights or, with `optimizer.sam`, at the worst place nearby."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manihot.errors import DataError
from manihot.settings import Recipe
from manihot.train.networks.heads import Classifier, Snapshots
from manihot.train.optim.sam import Sam, frozen_statistics
from manihot.train.steps import Step, StepState


@dataclass(frozen=True)
class Training:
    """What the training of a fold or stage works on: a network, its batches, its step and the step's state.

    precision: by name; channels_last: the memory layout of images.
    """

    model: Classifier | Snapshots
    loader: Any
    batches: Any
    step: Step
    state: StepState
    precision: str = "fp32"
    channels_last: bool = False


class Gradients:
    """Makes the gradients of one training's steps."""

    def __init__(self, training: Training, recipe: Recipe, optimizer: Any, scaler: Any, what: str) -> None:
        self.training, self.optimizer, self.scaler, self.what = training, optimizer, scaler, what
        self.trained = [p for group in optimizer.param_groups for p in group["params"]]
        radius = recipe.optimizer.sam
        self.sam = Sam(self.trained, radius, recipe.optimizer.sam_adaptive) if radius else None

    def make(self, group: Sequence[Any], first: int, strict: bool = True) -> float:
        """Make the gradient of a group of batches, weighted by photographs; the sum of this process's losses.

        first: number in the epoch of the group's first batch. With SAM the loss is the first pass's. Raises DataError
        when the loss is no longer finite, if `strict`.
        """
        if self.sam is None:
            return self._gradient(group, first, strict)
        state = self.training.state
        state.kept, before = {}, _random_state(state.device)
        try:
            loss_sum = self._gradient(group, first, strict)
            if not self.sam.perturb():
                return loss_sum  # without a direction: zero, or not finite, which the caller sees
            self.optimizer.zero_grad(set_to_none=True)
            _set_random_state(state.device, before)
            state.loss.eval()
            try:
                with frozen_statistics(self.training.model):
                    self._gradient(group, first, strict=False)
            finally:
                state.loss.train()
                self.sam.restore()
            return loss_sum
        finally:
            state.kept = None

    def _gradient(self, group: Sequence[Any], first: int, strict: bool) -> float:
        model, step, state = self.training.model, self.training.step, self.training.state
        sizes, loss_sum = [len(batch["image"]) for batch in group], 0.0
        for offset, batch in enumerate(group):
            state.batch_number = first + offset
            with state.no_sync() if offset + 1 < len(group) else nullcontext():
                loss = step(model, batch, state)["loss"]
                share = sizes[offset] / sum(sizes)  # weighted by photographs, not by batches
                self.scaler.scale(loss * share).backward()
            loss_sum += float(loss.detach()) * sizes[offset]
        if strict and not math.isfinite(loss_sum):
            raise DataError(
                f"{self.what}: the loss is {loss_sum}",
                "lower optimizer.lr"
                + (", or set train.precision=fp32" if state.dtype != torch.float32 else "")
                + ", and where train.clip is 0, set it to 5",
            )
        return loss_sum


def _random_state(device: torch.device) -> list[Tensor]:
    if device.type == "cpu":
        return [torch.get_rng_state()]
    which = [device] if device.type == "cuda" else []  # other kinds have one generator
    return [torch.get_rng_state(), torch.get_device_module(device).get_rng_state(*which)]


def _set_random_state(device: torch.device, state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if device.type != "cpu":
        which = [device] if device.type == "cuda" else []
        torch.get_device_module(device).set_rng_state(state[1], *which)
