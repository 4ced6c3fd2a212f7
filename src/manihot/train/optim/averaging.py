"""Averaging of weights over the training.

EMA: a running mean after every step (timm's ModelEmaV3). SWA: the plain mean of the weights at the end of
each epoch from `start` on, with batch-norm statistics recomputed (arXiv 1803.05407). Averaging SWA after
every step, as the lecture's team did by mistake, gives another model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from typing import Any, Protocol

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from manihot.errors import SettingsError
from manihot.settings import Choice, suggest
from manihot.train.networks.backbones import NORMS


class Averaging(Protocol):
    """What the loop needs of an average."""

    def after_step(self, model: nn.Module, step: int) -> None: ...
    def after_epoch(self, model: nn.Module, epoch: int) -> None: ...
    def model(self, model: nn.Module) -> nn.Module: ...
    def finish(self, model: nn.Module, inputs: Callable[[], Iterable[Tensor]]) -> nn.Module: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class NoAveraging:
    """The weights as they are."""

    def __init__(self, model: nn.Module, epochs: int) -> None:
        pass

    def after_step(self, model: nn.Module, step: int) -> None:
        """Nothing."""

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        """Nothing."""

    def model(self, model: nn.Module) -> nn.Module:
        """The network to judge now."""
        return model

    def finish(self, model: nn.Module, inputs: Callable[[], Iterable[Tensor]]) -> nn.Module:
        """The network to keep."""
        return model

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take back."""


class Ema(NoAveraging):
    """decay: share of the old average kept at a step; with `warmup` it grows to that in the first steps."""

    def __init__(self, model: nn.Module, epochs: int, decay: float = 0.999, warmup: bool = True) -> None:
        self.average = ModelEmaV3(model, decay=decay, use_warmup=warmup)

    def after_step(self, model: nn.Module, step: int) -> None:
        self.average.update(model, step=step)

    def model(self, model: nn.Module) -> nn.Module:
        found: nn.Module = self.average.module
        return found

    def finish(self, model: nn.Module, inputs: Callable[[], Iterable[Tensor]]) -> nn.Module:
        found: nn.Module = self.average.module
        return found

    def state_dict(self) -> dict[str, Any]:
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state)


class Swa(NoAveraging):
    """start: share of the epochs after which averaging begins (.5: the second half)."""

    def __init__(self, model: nn.Module, epochs: int, start: float = 0.5) -> None:
        self.first = first_averaged(epochs, start)
        self.average = AveragedModel(model)
        self.norms: list[str] = []  # batch norms whose statistics the training measures

    def after_step(self, model: nn.Module, step: int) -> None:
        if not self.norms:  # asked here, where the model stands in training mode
            self.norms = [n for n, m in model.named_modules() if isinstance(m, NORMS) and m.training]

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        if epoch >= self.first:
            self.average.update_parameters(model)

    def model(self, model: nn.Module) -> nn.Module:
        return model  # its batch-norm statistics are measured only once, in `finish`

    def finish(self, model: nn.Module, inputs: Callable[[], Iterable[Tensor]]) -> nn.Module:
        if int(self.average.n_averaged) == 0:
            return model
        measure_norms(self.average.module, self.norms, inputs())
        return self.average.module

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average.state_dict(), "norms": self.norms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state["average"])
        self.norms = list(state["norms"])


def first_averaged(epochs: int, start: float = 0.5) -> int:
    """Number of the first epoch that SWA averages, counted from 0."""
    return int(epochs * start)


def averaging_begins(choice: Choice, epochs: int) -> int:
    """After how many epochs the kept network is an average; 0 where it is one from the start, or never one."""
    return first_averaged(epochs, **choice.settings) if choice.name == "swa" else 0


@torch.no_grad()
def measure_norms(model: nn.Module, norms: Sequence[str], inputs: Iterable[Tensor]) -> None:
    """Recompute the statistics of the batch norms named `norms`, as the mean over batches of `inputs`.

    torch's update_bn would also overwrite those of frozen stages, and drop out features while it measures.
    """
    if not norms:
        return
    model.eval()
    momenta = {}
    for name in norms:
        norm: Any = model.get_submodule(name)
        momenta[name] = norm.momentum
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        norm.train()
    for images in inputs:
        model(images)
    for name in norms:
        norm = model.get_submodule(name)
        norm.momentum = momenta[name]
        norm.eval()


def check_averaging(choice: Choice, where: str) -> None:
    """SettingsError for an unknown kind or setting."""
    if choice.name not in AVERAGING:
        raise SettingsError(f"{where}: unknown averaging {choice.name!r}", suggest(choice.name, list(AVERAGING)))
    known = list(signature(AVERAGING[choice.name]).parameters)[2:]
    for key in choice.settings:
        if key not in known:
            raise SettingsError(f"{where}: averaging {choice.name} has no setting {key!r}", suggest(key, known))
    for key, value in choice.settings.items():
        fine, wanted = LIMITS[key]
        if not fine(value):
            raise SettingsError(f"{where}: {key} = {value!r}", f"{key} is {wanted}")


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


LIMITS: dict[str, tuple[Callable[[object], bool], str]] = {
    "decay": (_is_share, "a number from 0 to below 1"),
    "start": (_is_share, "a share of the epochs, from 0 to below 1"),
    "warmup": (lambda value: isinstance(value, bool), "true or false"),
}

AVERAGING: dict[str, Callable[..., Averaging]] = {"none": NoAveraging, "ema": Ema, "swa": Swa}
