"""Losses on logits: `LOSSES[name](logits, target, **settings)`, or `make_loss` for the training.

Every loss takes logits (N,K) of any float type and target int (N,) or soft (N,K), and the shared settings
`class_weights`, `smoothing`, `smoothing_over`, `reduction` and `sample_weights`; see `contract.Loss`. Losses
that need more than logits say so in `needs`:

    loss_fn = make_loss("cross_entropy", {"smoothing": 0.2}, classes=5, photographs=21397)
    loss_fn.start_epoch(epoch, epochs)
    loss_fn(logits, target, **{name: available[name] for name in loss_fn.needs})
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from manihot.errors import SettingsError
from manihot.optim.losses.contract import Loss, Row
from manihot.optim.losses.entropy import cross_entropy
from manihot.settings import suggest

__all__ = ["LOSSES", "Loss", "Row", "make_loss"]


def make_loss(
    name: str, settings: Mapping[str, Any] | None = None, *, classes: int, photographs: int | None = None
) -> nn.Module:
    """A loss as a module: `forward(logits, target, *, sample_weights=None, **extra)`, `needs`, `start_epoch`.

    photographs: how many there are in the training part, for losses that remember each one (their `index`
    runs from 0 to photographs - 1). What they remember is in the module's state_dict. Raises SettingsError.
    """
    if name not in LOSSES:
        raise SettingsError(f"there is no loss {name!r}", suggest(name, list(LOSSES)))
    return LOSSES[name].build(settings or {}, classes, photographs, name)


LOSSES: dict[str, Row] = {
    "cross_entropy": Row(cross_entropy),
    "label_smoothing": Row(cross_entropy, {"smoothing": 0.1}),
}
