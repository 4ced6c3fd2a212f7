"""Learning-rate schedules, stepped after every batch: a factor on each group's rate.

`warmup` is the share of the training in which the factor rises in a line from 0 to where the schedule begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from inspect import signature

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from manihot.errors import SettingsError
from manihot.settings import Choice, suggest


def constant(epoch: float, epochs: int) -> float:
    """1 all the way."""
    return 1.0


def cosine(epoch: float, epochs: int, floor: float = 0.0) -> float:
    """From 1 to `floor` along half a cosine (arXiv 1608.03983)."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / epochs)))


def cosine_restarts(epoch: float, epochs: int, period: float = 10.0, floor: float = 0.01) -> float:
    """A cosine from 1 to `floor` every `period` epochs (arXiv 1608.03983)."""
    return cosine((epoch % period) / period, 1, floor)


def inverse_epoch(epoch: float, epochs: int) -> float:
    """1 / (1 + whole epochs), the third place's of Cassava 2020."""
    return 1.0 / (1 + math.floor(epoch))


def step_factor(step: int, choice: Choice, epochs: int, steps_per_epoch: int) -> float:
    """The factor at a step (from 0), with the choice's settings and warm-up."""
    settings = choice.settings  # a copy
    warm = float(settings.pop("warmup", 0.0)) * epochs
    epoch = step / steps_per_epoch
    if epoch < warm:
        return (step + 1) / (warm * steps_per_epoch + 1)
    return SCHEDULES[choice.name](epoch - warm, max(1e-9, epochs - warm), **settings)


def check_schedule(choice: Choice, where: str) -> None:
    """SettingsError for an unknown schedule or setting."""
    if choice.name not in SCHEDULES:
        raise SettingsError(f"{where}: unknown schedule {choice.name!r}", suggest(choice.name, list(SCHEDULES)))
    known = ["warmup", *list(signature(SCHEDULES[choice.name]).parameters)[2:]]
    for key in choice.settings:
        if key not in known:
            raise SettingsError(f"{where}: schedule {choice.name} has no setting {key!r}", suggest(key, known))
    for key, value in choice.settings.items():
        low, high = LIMITS[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise SettingsError(f"{where}: {key} = {value!r}", f"{key} is a number from {low:g} to {high:g}")


def make_schedule(optimizer: Optimizer, choice: Choice, epochs: int, steps_per_epoch: int) -> LambdaLR:
    """The scheduler to step after every batch."""
    check_schedule(choice, "schedule")
    return LambdaLR(optimizer, partial(step_factor, choice=choice, epochs=epochs, steps_per_epoch=steps_per_epoch))


LIMITS = {"warmup": (0.0, 1.0), "floor": (0.0, 1.0), "period": (0.01, 1e6)}

SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "cosine": cosine,
    "cosine_restarts": cosine_restarts,
    "inverse_epoch": inverse_epoch,
}
