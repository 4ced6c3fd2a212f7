"""Optimisers and parameter groups: weight decay on matrices alone, rates by stage, the head's own rate.

AdamP is timm's class called directly: `create_optimizer_v2("adamp")` turns Nesterov momentum on, which the
paper (arXiv 2006.08217) doesn't have. Lookahead is our own: timm's begins its slow weights at the first
synchronisation, which does nothing then, and keeps them in the base's state, which RAdam and others take for
their own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from timm.optim import SGDP, AdamP
from torch.optim import Optimizer as TorchOptimizer

from manihot.errors import SettingsError
from manihot.settings import Optimizer, suggest
from manihot.settings.techniques import OPTIMIZER_PACKAGE as PACKAGE
from manihot.settings.techniques import check_optimizer
from manihot.train.networks.backbones import stages_of
from manihot.train.networks.heads import Classifier, Snapshots


def sgd(groups: list[dict[str, Any]], lr: float) -> TorchOptimizer:
    """SGD with Nesterov momentum .9."""
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)


class Lookahead(TorchOptimizer):
    """Slow weights that go a share of the way to where k steps of `base` led (arXiv 1907.08610).

    The slow weights begin where the training begins; between synchronisations the network's are the fast ones.
    """

    def __init__(self, base: TorchOptimizer, k: int = 6, alpha: float = 0.5) -> None:
        # Not Optimizer.__init__: the groups, and the rates that a schedule writes into them, are the base's.
        self.base, self.k, self.alpha = base, k, alpha
        self.steps = 0
        self.slow = [[p.detach().clone() for p in group["params"]] for group in base.param_groups]
        self._optimizer_step_pre_hooks = base._optimizer_step_pre_hooks
        self._optimizer_step_post_hooks = base._optimizer_step_post_hooks

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base's groups."""
        return self.base.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base's state."""
        return self.base.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The base's defaults."""
        return self.base.defaults

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the base."""
        self.base.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """A step of the base; after every k-th the slow weights follow, and become the network's."""
        loss = self.base.step(closure)
        self.steps += 1
        if self.steps % self.k == 0:
            for group, slow in zip(self.base.param_groups, self.slow):
                torch._foreach_lerp_(slow, group["params"], self.alpha)
                torch._foreach_copy_(group["params"], slow)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold, beside the base's state."""
        return {"base": self.base.state_dict(), "steps": self.steps, "slow": self.slow}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; KeyError or ValueError for another optimiser's."""
        self.base.load_state_dict(state["base"])
        self.steps = state["steps"]
        for own, saved in zip(self.slow, state["slow"]):
            torch._foreach_copy_(own, [s.to(o) for s, o in zip(saved, own)])


def sgdp(groups: list[dict[str, Any]], lr: float) -> TorchOptimizer:
    """SGDP with Nesterov momentum .9."""
    return SGDP(groups, lr=lr, momentum=0.9, nesterov=True)


def ranger(groups: list[dict[str, Any]], lr: float) -> TorchOptimizer:
    """Lookahead (6 steps, half of the way) over RAdam."""
    return Lookahead(torch.optim.RAdam(groups, lr=lr), k=6, alpha=0.5)


def parameter_groups(model: Classifier | Snapshots, settings: Optimizer) -> list[dict[str, Any]]:
    """Groups of trained parameters: rate lr * layer_decay^(stages below the head), weight decay on matrices."""
    stages = stages_of(model)
    spared = kept_from_decay(model)
    top = max(stages.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        stage, decays = stages[name], parameter.ndim > 1 and name not in spared
        rate = settings.lr * settings.layer_decay ** max(0, top - 1 - stage)
        if stage == top and settings.head_lr is not None:
            rate = settings.head_lr
        group = groups.setdefault(
            (stage, decays), {"params": [], "lr": rate, "weight_decay": settings.weight_decay if decays else 0.0}
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def kept_from_decay(model: Classifier | Snapshots) -> set[str]:
    """Parameters of two or more dimensions that are no weight of a layer, and those that timm's model names.

    So the position embeddings, class tokens, tables of relative positions, gammas of layer scale, gains and
    temperatures of every timm family; several of them timm's own `no_weight_decay()` leaves out.
    """
    if isinstance(model, Snapshots):
        each = [kept_from_decay(network) for network in model.networks]  # type: ignore[arg-type]
        return {f"networks.{number}.{name}" for number, names in enumerate(each) for name in names}
    named = getattr(model.backbone, "no_weight_decay", None)
    spared = {f"backbone.{name}" for name in named()} if callable(named) else set()
    return spared | {name for name, _ in model.named_parameters() if not name.rpartition(".")[2].startswith("weight")}


def make_optimizer(model: Classifier | Snapshots, settings: Optimizer) -> TorchOptimizer:
    """The recipe's optimiser over the model's parameter groups; SettingsError for an unknown name."""
    optimizer = find_optimizer(settings.name)(parameter_groups(model, settings), settings.lr)
    if settings.lookahead:
        return Lookahead(optimizer, settings.lookahead, settings.lookahead_share)
    return optimizer


def find_optimizer(name: str, where: str = "optimizer.name") -> Make:
    """A row of the registry, or `pytorch_optimizer:NAME` from that package; SettingsError for what is neither."""
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    check_optimizer(name, where)
    other = name.partition(":")[2]
    if find_spec(PACKAGE) is None:
        raise SettingsError(
            f"{where}: {name!r} needs the package {PACKAGE}, which is not installed",
            "pip install 'manihot[optim]', or use a row of the optimisers",
        )
    return _from_package(other, where)


def _from_package(name: str, where: str) -> Make:
    """An optimiser of pytorch_optimizer with its own defaults, tried on a small matrix."""
    package = import_module(PACKAGE)
    known = [str(one) for one in package.get_supported_optimizers()]
    if name not in known:
        raise SettingsError(f"{where}: {PACKAGE} has no {name!r}", suggest(name, known))
    make: Make = package.load_optimizer(name)
    weight = torch.nn.Parameter(torch.ones(4, 4))
    try:
        tried = make([{"params": [weight], "lr": 1e-3, "weight_decay": 0.0}], 1e-3)
        weight.grad = torch.ones(4, 4)
        tried.step()
    except Exception as error:  # whatever a class of the package needs that a training here doesn't give
        raise SettingsError(
            f"{where}: {PACKAGE}'s {name} can't be used here ({type(error).__name__}: {error})", "use another one"
        ) from error
    if hasattr(tried, "eval"):
        raise SettingsError(
            f"{where}: {PACKAGE}'s {name} keeps other weights for training than for use", "use another one"
        )
    return make


Make = Callable[[list[dict[str, Any]], float], TorchOptimizer]
OPTIMIZERS: dict[str, Make] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamp": AdamP,
    "adamp_nesterov": partial(AdamP, nesterov=True),
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "ranger": ranger,
    "sgd": sgd,
    "sgdp": sgdp,
}
