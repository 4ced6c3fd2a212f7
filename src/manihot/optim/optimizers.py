"""Optimisers and parameter groups: no weight decay on norms and biases, rates by stage, the head's own rate.

AdamP is timm's class called directly: `create_optimizer_v2("adamp")` turns Nesterov momentum on, which the
paper (arXiv 2006.08217) doesn't have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.optim import AdamP
from torch.optim import Optimizer as TorchOptimizer

from manihot.errors import SettingsError
from manihot.models.backbones import stages_of
from manihot.models.heads import Classifier
from manihot.settings import Optimizer, suggest


def sgd(groups: list[dict[str, Any]], lr: float) -> TorchOptimizer:
    """SGD with Nesterov momentum .9."""
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)


def parameter_groups(model: Classifier, settings: Optimizer) -> list[dict[str, Any]]:
    """Groups of trained parameters: rate lr * layer_decay^(stages below the head), decay on matrices only."""
    stages = stages_of(model)
    top = max(stages.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        stage, decays = stages[name], parameter.ndim > 1
        rate = settings.lr * settings.layer_decay ** max(0, top - 1 - stage)
        if stage == top and settings.head_lr is not None:
            rate = settings.head_lr
        group = groups.setdefault(
            (stage, decays),
            {"params": [], "lr": rate, "weight_decay": settings.weight_decay if decays else 0.0},
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def make_optimizer(model: Classifier, settings: Optimizer) -> TorchOptimizer:
    """The recipe's optimiser over the model's parameter groups; SettingsError for an unknown name."""
    if settings.name not in OPTIMIZERS:
        raise SettingsError(
            f"optimizer.name: unknown {settings.name!r}", suggest(settings.name, list(OPTIMIZERS))
        )
    return OPTIMIZERS[settings.name](parameter_groups(model, settings), settings.lr)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], float], TorchOptimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamp": AdamP,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "sgd": sgd,
}
