"""Losses on logits: `LOSSES[name](logits, target, **settings)`, or `make_loss` for the training.

Every loss takes logits (N,K) of any float type and target int (N,) or soft (N,K), and the shared settings
`class_weights`, `smoothing`, `smoothing_over`, `reduction` and `sample_weights`; see `contract.Loss`. Losses
that need more than logits say so in `needs`:

    loss_fn = make_loss("cross_entropy", {"smoothing": 0.2}, classes=5, photographs=21397)
    loss_fn.start_epoch(epoch, epochs)
    loss_fn(logits, target, **{name: available[name] for name in loss_fn.needs})
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from manihot.errors import SettingsError
from manihot.settings import suggest
from manihot.train.optim.losses.bi_tempered import bi_tempered
from manihot.train.optim.losses.contract import Loss, Row, WeightedSum, check
from manihot.train.optim.losses.correction import backward_correction, forward_correction
from manihot.train.optim.losses.distillation import Distillation
from manihot.train.optim.losses.entropy import (
    cosine_focal,
    cross_entropy,
    focal,
    focal_cosine,
    focal_of_mean,
    taylor_ce,
    taylor_series_ce,
)
from manihot.train.optim.losses.feature_losses import Isda, Triplet
from manihot.train.optim.losses.memory_losses import Elr, Sop
from manihot.train.optim.losses.robust import Gjs, gce, nce, nce_rce, rce, symmetric_ce

__all__ = ["LOSSES", "Loss", "Row", "WeightedSum", "effective_number_weights", "make_loss"]


def make_loss(
    name: str,
    settings: Mapping[str, Any] | None = None,
    *,
    classes: int,
    photographs: int | None = None,
    class_counts: Sequence[float] | None = None,
) -> Loss | WeightedSum:
    """A loss as a module: `forward(logits, target, *, sample_weights=None, **extra)`, `needs`, `start_epoch`.

    photographs: how many there are in the training part, for losses that remember each one (their `index`
    runs from 0 to photographs - 1). What they remember is in the module's state_dict. class_counts:
    photographs a class in the training part, for `class_balanced`. Raises SettingsError.

    Losses that remember learn in training mode: a second pass over the same batch (SAM) goes with `eval()`,
    and validation takes `cross_entropy`, whatever the training's loss.
    """
    if name not in LOSSES:
        raise SettingsError(f"there is no loss {name!r}", suggest(name, list(LOSSES)))
    return LOSSES[name].build(settings or {}, classes, photographs, class_counts, name)


def combo(
    *,
    classes: int,
    photographs: int | None,
    class_counts: Sequence[float] | None,
    terms: Sequence[Mapping[str, Any]],
    **shared: Any,
) -> Loss | WeightedSum:
    """The weighted sum of losses: `terms: [{name: nce, weight: 0.17}, {name: focal, gamma: 2.0}]`.

    A weight is 1 when left out; the weights need not sum to 1. Shared settings of the combo (class weights,
    smoothing) hold for every term that doesn't set its own.
    """
    check("combo", "terms", terms, len(terms) > 0, "a list of losses, each with name, weight and its settings")
    losses, weights = [], []
    for term in terms:
        fine = isinstance(term, Mapping) and "name" in term and isinstance(term.get("weight", 1.0), (int, float))
        check("combo", "terms", term, fine, "a list of losses, each with name, weight and its settings")
        own = {key: value for key, value in term.items() if key not in ("name", "weight", "reduction")}
        known: dict[str, Any] = {"classes": classes, "photographs": photographs, "class_counts": class_counts}
        losses.append(make_loss(term["name"], {**shared, **own}, **known))
        weights.append(float(term.get("weight", 1.0)))
    return WeightedSum(losses, weights)


def class_balanced(
    *,
    classes: int,
    photographs: int | None,
    class_counts: Sequence[float] | None,
    counts: Sequence[float] | None = None,
    beta: float = 0.9999,
    inner: str | Mapping[str, Any] = "cross_entropy",
    **shared: Any,
) -> Loss | WeightedSum:
    """The loss `inner` (a name, or name and settings) with the weights of `effective_number_weights`.

    counts: photographs a class; those of the training part (`class_counts`) when left out.
    """
    counts = class_counts if counts is None else counts
    if counts is None or len(counts) != classes:
        raise SettingsError(f"loss class_balanced: counts = {counts}", f"counts are {classes} numbers, one per class")
    inner = {"name": inner} if isinstance(inner, str) else dict(inner)
    name = inner.pop("name", "cross_entropy")
    taken = shared.get("class_weights") is not None or "class_weights" in inner
    check("class_balanced", "class_weights", "given", not taken, "what this loss finds itself; leave it out")
    settings = {**shared, **inner, "class_weights": effective_number_weights(counts, beta)}
    return make_loss(name, settings, classes=classes, photographs=photographs, class_counts=class_counts)


def effective_number_weights(counts: Sequence[float], beta: float) -> list[float]:
    """Class weights (1 - beta)/(1 - beta^n_c), normalised to sum K (arXiv 1901.05555).

    beta 0 weighs all alike, beta -> 1 by 1/n_c. A class without photographs weighs 0; the others sum to K.
    """
    check("class_balanced", "beta", beta, 0 <= beta < 1, "a number from 0 to below 1")
    fine = all(isinstance(n, Real) and n >= 0 for n in counts) and sum(counts) > 0  # NumPy's numbers too
    check("class_balanced", "counts", counts, fine, "numbers from 0, not all 0")
    log_beta = math.log(beta) if beta > 0 else -math.inf
    raw = [1 / -math.expm1(n * log_beta) if n > 0 else 0.0 for n in counts]
    return [len(raw) * weight / sum(raw) for weight in raw]


LOSSES: dict[str, Row] = {
    "cross_entropy": Row(cross_entropy),
    "label_smoothing": Row(cross_entropy, {"smoothing": 0.1}, other_names={"over": "smoothing_over"}),
    "focal": Row(focal),
    "focal_of_mean": Row(focal_of_mean),
    "focal_cosine": Row(focal_cosine),
    "cosine_focal": Row(cosine_focal),
    "symmetric_ce": Row(symmetric_ce),
    "taylor_ce": Row(taylor_ce),
    "taylor_series_ce": Row(taylor_series_ce),
    "bi_tempered": Row(bi_tempered, {"smoothing_over": "K-1"}),  # as its authors smooth
    "nce": Row(nce),
    "rce": Row(rce),
    "gce": Row(gce),
    "nce_rce": Row(nce_rce),
    "forward_correction": Row(forward_correction),
    "backward_correction": Row(backward_correction),
    "gjs": Row(Gjs),
    "isda": Row(Isda),
    "triplet": Row(Triplet),
    "distillation": Row(Distillation),
    "elr": Row(Elr),
    "sop": Row(Sop),
    "class_balanced": Row(class_balanced, made_of_losses=True),
    "combo": Row(combo, made_of_losses=True),
}
