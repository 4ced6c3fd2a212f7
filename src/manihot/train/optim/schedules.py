"""Learning-rate schedules, stepped after every step: a factor on each group's rate.

`warmup` is the share of the training in which the factor rises in a line from 0 to where the schedule begins.
A schedule is a function of time alone, or of the held-out scores so far (`plateau`): nothing else must be
remembered, so a resumed training goes on as one that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any

from torch.optim import Optimizer

from manihot.errors import SettingsError
from manihot.settings import Choice, suggest


def constant(epoch: float, epochs: int) -> float:
    """1 all the way."""
    return 1.0


def cosine(epoch: float, epochs: float, floor: float = 0.0, until: float = 1.0) -> float:
    """From 1 to `floor` along half a cosine (arXiv 1608.03983) by the share `until` of the training, then `floor`."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / (epochs * until))))


def cosine_restarts(epoch: float, epochs: int, period: float = 10.0, floor: float = 0.01) -> float:
    """A cosine from 1 to `floor` every `period` epochs (arXiv 1608.03983); it rises where `floor` is above 1."""
    return cosine((epoch % period) / period, 1, floor)


def inverse_epoch(epoch: float, epochs: int) -> float:
    """1 / (1 + whole epochs), the third place's of Cassava 2020."""
    return 1.0 / (1 + math.floor(epoch))


def step(epoch: float, epochs: float, every: float = 10.0, drop: float = 0.1) -> float:
    """`drop` to the power of how often `every` epochs have passed."""
    return drop ** math.floor(epoch / every + 1e-9)


def multistep(epoch: float, epochs: float, at: Sequence[float] = (0.5, 0.75), drop: float = 0.1) -> float:
    """`drop` to the power of how many of the shares `at` of the training have passed."""
    return drop ** sum(epoch >= share * epochs - 1e-9 for share in at)


def one_cycle(
    epoch: float,
    epochs: float,
    peak: float = 0.3,
    start: float = 0.04,
    floor: float = 4e-6,
    momentum_low: float = 0.85,
    momentum_high: float = 0.95,
) -> float:
    """From `start` along half a cosine up to 1 at the share `peak`, then down to `floor` (arXiv 1708.07120).

    The momentum (Adam's first beta) goes the other way, from `momentum_high` to `momentum_low` and back.
    """
    return _cycle(epoch, epochs, peak, start, 1.0, floor)


def one_cycle_momentum(
    epoch: float,
    epochs: float,
    peak: float = 0.3,
    momentum_low: float = 0.85,
    momentum_high: float = 0.95,
    **others: float,
) -> float:
    """The momentum that goes with `one_cycle`."""
    return _cycle(epoch, epochs, peak, momentum_high, momentum_low, momentum_high)


def _cycle(epoch: float, epochs: float, peak: float, first: float, middle: float, last: float) -> float:
    """Half a cosine from `first` to `middle` at the share `peak`, another one to `last` at the end."""
    share = min(1.0, epoch / epochs)
    if share < peak:
        return middle + (first - middle) * 0.5 * (1 + math.cos(math.pi * share / peak))
    left = (share - peak) / (1 - peak) if peak < 1 else 1.0
    return last + (middle - last) * 0.5 * (1 + math.cos(math.pi * left))


def plateau(
    epoch: float,
    epochs: float,
    scores: Sequence[float] = (),
    drop: float = 0.1,
    patience: int = 10,
    threshold: float = 1e-4,
    floor: float = 0.0,
    watch: str = "",
) -> float:
    """Times `drop` after more than `patience` epochs in a row without gain on the held-out photographs.

    scores: what is watched (`watched_score`) after each epoch so far, lower is better. A gain is a relative one of
    `threshold`. torch's ReduceLROnPlateau.
    """
    factor, best, bad = 1.0, math.inf, 0
    for score in scores:
        if best == math.inf or score < best - threshold * abs(best):
            best, bad = score, 0
        else:
            bad += 1
        if bad > patience:
            factor, bad = max(floor, factor * drop), 0
    return factor


def watched_score(choice: Choice, monitor: str, scores: Mapping[str, float]) -> float:
    """What the schedule watches of an epoch's `scores`, lower better: its own `watch`, or the `monitor` of training."""
    name = choice.settings.get("watch", monitor)
    return -scores[name] if name == "accuracy" else scores[name]


def step_factor(step: int, choice: Choice, epochs: int, steps_per_epoch: int, scores: Sequence[float] = ()) -> float:
    """The factor at a step (from 0), with the choice's settings, warm-up and the held-out scores so far."""
    settings, warm, epoch = _place(step, choice, epochs, steps_per_epoch)
    if choice.name in NEEDS_SCORES:
        settings["scores"] = scores
    row, length = SCHEDULES[choice.name], max(1e-9, epochs - warm)
    if epoch < warm:
        return (step + 1) / (warm * steps_per_epoch + 1) * row(0.0, length, **settings)
    return row(epoch - warm, length, **settings)


def _place(step: int, choice: Choice, epochs: int, steps_per_epoch: int) -> tuple[dict[str, Any], float, float]:
    """The choice's settings without warm-up, the epochs of warm-up, the epoch as a float."""
    settings = choice.settings  # a copy
    warm = float(settings.pop("warmup", 0.0)) * epochs
    return settings, warm, step / steps_per_epoch


class Schedule:
    """Writes rates, and momenta where the schedule has them, into the optimiser's groups; step it after a step."""

    def __init__(self, optimizer: Optimizer, choice: Choice, epochs: int, steps_per_epoch: int) -> None:
        self.optimizer = optimizer
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.steps = 0
        self.scores: list[float] = []  # held-out scores, lower is better
        self._factor = partial(step_factor, choice=choice, epochs=epochs, steps_per_epoch=steps_per_epoch)
        self._momentum = partial(step_momentum, choice=choice, epochs=epochs, steps_per_epoch=steps_per_epoch)
        self._write()

    def step(self) -> None:
        """The rates of the next step."""
        self.steps += 1
        self._write()

    def after_epoch(self, score: float) -> None:
        """Take note of a held-out score, lower is better."""
        self.scores.append(score)
        self._write()

    def _write(self) -> None:
        factor, momentum = self._factor(self.steps, scores=self.scores), self._momentum(self.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * factor
            if momentum is not None and "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif momentum is not None and "momentum" in group:
                group["momentum"] = momentum

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold: how far it is, and the scores."""
        return {"steps": self.steps, "scores": self.scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.steps, self.scores = state["steps"], list(state["scores"])
        self._write()


def step_momentum(step: int, choice: Choice, epochs: int, steps_per_epoch: int) -> float | None:
    """The momentum at a step; None where the schedule leaves the optimiser's own."""
    if choice.name not in MOMENTA:
        return None
    settings, warm, epoch = _place(step, choice, epochs, steps_per_epoch)
    return MOMENTA[choice.name](max(0.0, epoch - warm), max(1e-9, epochs - warm), **settings)


def check_schedule(choice: Choice, where: str) -> None:
    """SettingsError for an unknown schedule or setting."""
    if choice.name not in SCHEDULES:
        raise SettingsError(f"{where}: unknown schedule {choice.name!r}", suggest(choice.name, list(SCHEDULES)))
    known = ["warmup", *list(signature(SCHEDULES[choice.name]).parameters)[2:]]
    known = [key for key in known if key != "scores"]
    for key in choice.settings:
        if key not in known:
            raise SettingsError(f"{where}: schedule {choice.name} has no setting {key!r}", suggest(key, known))
    for key, value in choice.settings.items():
        if key == "watch":
            if value not in WATCHED:
                raise SettingsError(f"{where}: watch = {value!r}", suggest(str(value), WATCHED))
            continue
        low, high = LIMITS[key]
        values = value if key == "at" and isinstance(value, list | tuple) else [] if key == "at" else [value]
        fine = all(isinstance(v, int | float) and not isinstance(v, bool) and low <= v <= high for v in values)
        if not fine or not values or (key == "patience" and value != int(value)):
            wanted = "a list of numbers" if key == "at" else "a number"
            raise SettingsError(f"{where}: {key} = {value!r}", f"{key} is {wanted} from {low:g} to {high:g}")


def make_schedule(optimizer: Optimizer, choice: Choice, epochs: int, steps_per_epoch: int) -> Schedule:
    """The scheduler to step after every step of the optimiser; SettingsError."""
    check_schedule(choice, "schedule")
    return Schedule(optimizer, choice, epochs, steps_per_epoch)


LIMITS = {
    "warmup": (0.0, 1.0),
    "floor": (0.0, 100.0),  # above 1: the first place's ViT schedule, which rises
    "period": (0.01, 1e6),
    "every": (0.01, 1e6),
    "at": (0.0, 1.0),
    "drop": (0.0, 1.0),
    "patience": (0, 1e6),
    "threshold": (0.0, 1.0),
    "peak": (0.0, 1.0),
    "start": (0.0, 1.0),
    "until": (0.01, 1.0),
    "momentum_low": (0.0, 0.999),
    "momentum_high": (0.0, 0.999),
}
NEEDS_SCORES = ("plateau",)  # watch the held-out photographs
WATCHED = ("loss", "accuracy")

SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "cosine": cosine,
    "cosine_restarts": cosine_restarts,
    "inverse_epoch": inverse_epoch,
    "step": step,
    "multistep": multistep,
    "one_cycle": one_cycle,
    "plateau": plateau,
}
MOMENTA: dict[str, Callable[..., float]] = {"one_cycle": one_cycle_momentum}
