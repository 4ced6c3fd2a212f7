"""What every loss shares: precision, labels, smoothing, class and sample weights, reduction.

A loss is written once, as a *term*: a function `(logits (N,K), target (N,K), **settings)`, or an nn.Module
with such a forward, that gives

* (N,K): the loss each photograph would have if its label were class k. Most losses are of this kind; soft
  labels are then the expectation over the label, as MixUp's `l L(a) + (1-l) L(b)`.
* (N,): the loss of each photograph, for terms that use the label distribution itself (bi-tempered, GJS, SOP).

`Loss` does the rest. A row of the registry (`Row`) makes a `Loss`, or is called directly.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from manihot.errors import DataError, SettingsError
from manihot.settings import suggest

COMMON = ("class_weights", "smoothing", "smoothing_over", "reduction")
ENOUGH_ROWS = 8  # of random logits of 2 classes one in 270 looks like probabilities; 8 together one in 10^19
PER_CLASS = ("class_weights", "alpha", "counts")  # settings that may be a list of one number per class
PLAIN: dict[str, tuple[type, ...]] = {
    "float": (float, int),
    "int": (int,),
    "str": (str,),
    "bool": (bool,),
    "Sequence[float]": (list, tuple),
    "Sequence[Mapping[str, Any]]": (list, tuple),
    "str | Mapping[str, Any]": (str, dict),
    "float | Sequence[float]": (float, int, list, tuple),
}


class Loss(nn.Module):
    """A term with class weights, smoothing and reduction.

    class_weights: (K,). The mean divides by the sum of the photographs' weights, as torch does for int
    labels; the same for soft labels (torch divides by N there), so that a one-hot row equals its int label.
    smoothing: `smoothing_over="K"` spreads it over all classes (torch), `"K-1"` over the others (the
    lecture); s over K-1 equals sK/(K-1) over K.
    reduction: "mean", or "none" for (N,) weighted values.
    `needs` names the extra keyword tensors that forward wants beside logits and target.
    """

    term: Callable[..., Tensor]
    class_weights: Tensor | None

    def __init__(
        self,
        name: str,
        term: Callable[..., Tensor],
        classes: int,
        class_weights: Tensor | Sequence[float] | None = None,
        smoothing: float = 0.0,
        smoothing_over: str = "K",
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if classes < 2:
            raise SettingsError(f"loss {name}: {classes} classes; at least 2 are needed", "check the labels")
        check(name, "smoothing", smoothing, 0 <= smoothing < 1, "a number from 0 to below 1")
        check(name, "smoothing_over", smoothing_over, smoothing_over in ("K", "K-1"), "'K' or 'K-1'")
        check(name, "reduction", reduction, reduction in ("mean", "none"), "'mean' or 'none'")
        self.name, self.term, self.classes = name, term, classes
        self.smoothing, self.smoothing_over, self.reduction = smoothing, smoothing_over, reduction
        self.needs: tuple[str, ...] = tuple(getattr(term, "needs", ()))
        self._seen = False
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float64)
        if weights is not None:
            fine = weights.shape == (classes,) and bool(((weights >= 0) & weights.isfinite()).all())
            check(name, "class_weights", class_weights, fine, f"{classes} numbers from 0, one per class")
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(
        self, logits: Tensor, target: Tensor, *, sample_weights: Tensor | None = None, **extra: Tensor
    ) -> Tensor:
        """The loss of logits (N,K), any float type, for target int (N,) or soft (N,K); a scalar or (N,).

        A soft row that doesn't sum to 1 (SnapMix) counts by its sum. sample_weights: (N,), not negative.
        Computed in float32, or in float64 for float64 logits. Raises DataError for probabilities in the place
        of logits (a softmax of a softmax confines the loss to [0.905, 1.905] for 5 classes) and for shapes
        that don't fit. Probabilities are looked for in the first call only, where it has ENOUGH_ROWS: logits of one
        or a few photographs look like them now and then. On a GPU all values are looked at in the first call only,
        as looking waits for the device.
        """
        self._check(logits, target, extra)
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            rows = soft_labels(target, self.classes, logits.dtype)
            mass = rows.sum(1)
            rows = rows / mass.clamp_min(torch.finfo(rows.dtype).tiny).unsqueeze(1)
            smoothed = smooth(rows, self.smoothing, self.smoothing_over)
            values = self.term(logits, smoothed, **extra)
            return self._reduce(values, rows, smoothed, mass, sample_weights)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Tell terms whose strength grows over the training (ISDA) that epoch `epoch` of `epochs` begins."""
        told = getattr(self.term, "start_epoch", None)
        if told is not None:
            told(epoch, epochs)

    def _reduce(
        self, values: Tensor, rows: Tensor, smoothed: Tensor, mass: Tensor, sample_weights: Tensor | None
    ) -> Tensor:
        counted = torch.ones_like(mass) if sample_weights is None else sample_weights.to(mass)
        weights = torch.ones_like(rows[0]) if self.class_weights is None else self.class_weights.to(rows)
        weight = rows @ weights
        values = (values * smoothed * weights).sum(1) if values.ndim == 2 else values * weight
        values = values * mass * counted
        if self.reduction == "none":
            return values
        total = (weight * counted).sum()
        return values.sum() / torch.where(total > 0, total, torch.ones_like(total))

    def _check(self, logits: Tensor, target: Tensor, extra: Mapping[str, Tensor]) -> None:
        n, k = logits.shape if logits.ndim == 2 else (0, 0)
        if k != self.classes or n < 1 or not logits.is_floating_point():
            raise DataError(
                f"loss {self.name}: logits of shape {tuple(logits.shape)} and type {logits.dtype}, expected "
                f"(photographs, {self.classes}) and a float type"
            )
        if target.shape != ((n, k) if target.is_floating_point() else (n,)):
            raise DataError(
                f"loss {self.name}: target of shape {tuple(target.shape)} and type {target.dtype} for {n} photographs",
                f"int labels ({n},) or soft labels ({n}, {k}) of a float type",
            )
        missing = [name for name in self.needs if name not in extra]
        if missing or len(extra) > len(self.needs):
            raise DataError(
                f"loss {self.name} needs {', '.join(self.needs) or 'nothing'} beside logits and target, "
                f"got {', '.join(extra) or 'nothing'}",
                "pass exactly the tensors that the loss lists in `needs`",
            )
        if self._seen and logits.device.type != "cpu":
            return
        look_at_labels(self.name, k, target)
        if not self._seen:
            look_for_probabilities(self.name, logits.detach())
        self._seen = True


class WeightedSum(nn.Module):
    """The weighted sum of losses, each with its own settings; used as `Loss`, with the `needs` of all."""

    def __init__(self, losses: Sequence[Loss | WeightedSum], weights: Sequence[float]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.weights = tuple(weights)
        self.needs: tuple[str, ...] = tuple(dict.fromkeys(name for loss in losses for name in loss.needs))

    def forward(
        self, logits: Tensor, target: Tensor, *, sample_weights: Tensor | None = None, **extra: Tensor
    ) -> Tensor:
        """As `Loss.forward`."""
        values = []
        for weight, loss in zip(self.weights, self._losses()):
            own = {name: extra[name] for name in loss.needs if name in extra}
            values.append(weight * loss(logits, target, sample_weights=sample_weights, **own))
        found: Tensor = sum(values[1:], values[0])
        return found

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """As `Loss.start_epoch`."""
        for loss in self._losses():
            loss.start_epoch(epoch, epochs)

    def _losses(self) -> list[Loss | WeightedSum]:
        return [loss for loss in self.losses if isinstance(loss, (Loss, WeightedSum))]


def look_at_labels(name: str, classes: int, target: Tensor) -> None:
    """Raise DataError for labels out of range."""
    if target.is_floating_point():
        if bool((target < 0).any()) or not bool(target.isfinite().all()):
            raise DataError(f"loss {name}: a soft label is negative or not finite")
    elif int(target.min()) < 0 or int(target.max()) >= classes:
        raise DataError(
            f"loss {name}: labels run from {int(target.min())} to {int(target.max())}, but there are {classes} classes",
            "labels are 0 to K-1; leave photographs without a label (-1) out of the training",
        )


def look_for_probabilities(name: str, logits: Tensor) -> None:
    """Raise DataError for probabilities in the place of logits, where there are enough rows to tell."""
    enough = len(logits) >= ENOUGH_ROWS
    if enough and bool((logits >= 0).all()) and bool(((logits.float().sum(1) - 1).abs() < 1e-2).all()):
        raise DataError(
            f"loss {name} was given probabilities; it wants logits",
            "leave the softmax out, or pass the logarithm of the probabilities",
        )


def soft_labels(target: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Int (N,) or soft (N,K) labels as soft labels (N,K) of `dtype`."""
    if target.is_floating_point():
        return target.to(dtype)
    return torch.nn.functional.one_hot(target.long(), classes).to(dtype)


def smooth(rows: Tensor, amount: float, over: str) -> Tensor:
    """Label smoothing of rows (N,K) that sum to 1: `over` all "K" classes, or the "K-1" others."""
    if amount == 0:
        return rows
    k = rows.shape[1]
    share = amount if over == "K" else amount * k / (k - 1)
    return rows * (1 - share) + share / k


def check(name: str, setting: str, value: object, fine: bool, wanted: str) -> None:
    """Raise SettingsError that names loss, setting and what it may be, unless `fine`."""
    if not fine:
        raise SettingsError(f"loss {name}: {setting} = {value!r}", f"{setting} is {wanted}")


@dataclass(frozen=True)
class Row:
    """A row of the registry: `row(logits, target, **settings)` is the loss, `row.build` a module of it.

    term: the function or nn.Module class that gives the values (see the module's head); its keyword-only
    arguments are the settings. Where `made_of_losses`, a function that gives a whole module, with the shared
    settings among its arguments.
    defaults: shared settings that differ for this loss. other_names: of settings, by which they may be given too.
    """

    term: Callable[..., Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    made_of_losses: bool = False
    other_names: Mapping[str, str] = field(default_factory=dict)

    def __call__(
        self, logits: Tensor, target: Tensor, *, sample_weights: Tensor | None = None, **settings: Any
    ) -> Tensor:
        """The loss once, without keeping state; tensors that the loss `needs` stand beside the settings.

        Raises SettingsError for a setting that isn't known or out of range, DataError as `Loss.forward`.
        """
        known = self.settings
        extra = {key: v for key, v in settings.items() if isinstance(v, Tensor) and key not in known}
        own = {key: value for key, value in settings.items() if key not in extra}
        photographs = int(extra["index"].max()) + 1 if "index" in extra else None
        loss = self.build(own, logits.shape[-1], photographs).to(logits.device)
        result: Tensor = loss(logits, target, sample_weights=sample_weights, **extra)
        return result

    @property
    def settings(self) -> dict[str, inspect.Parameter]:
        """Name -> parameter of every setting this loss takes, the shared ones too."""
        own = {
            key: p
            for key, p in inspect.signature(self.term).parameters.items()
            if p.kind is p.KEYWORD_ONLY and key not in ("classes", "photographs", "class_counts")
        }
        shared = inspect.signature(Loss.__init__).parameters
        return own | {key: shared[key] for key in COMMON}

    def build(
        self,
        settings: Mapping[str, Any],
        classes: int,
        photographs: int | None = None,
        class_counts: Sequence[float] | None = None,
        name: str = "",
    ) -> Loss | WeightedSum:
        """A module of this loss; settings are checked here, so that a mistake shows before the training."""
        name = name or self.term.__name__
        settings = {**self.defaults, **self._by_own_name(name, settings)}
        check_names_and_kinds(name, settings, self.settings)
        try:
            return self._build(name, settings, classes, photographs, class_counts)
        except (TypeError, ValueError) as error:  # a text among numbers, say
            raise SettingsError(f"loss {name} can't use its settings {settings} ({error})") from error

    def _by_own_name(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        for other, own in self.other_names.items():
            check(name, other, settings.get(other), not {other, own} <= set(settings), f"the same as {own}; give one")
        return {self.other_names.get(key, key): value for key, value in settings.items()}

    def _build(
        self,
        name: str,
        settings: Mapping[str, Any],
        classes: int,
        photographs: int | None,
        class_counts: Sequence[float] | None,
    ) -> Loss | WeightedSum:
        shared = {key: value for key, value in settings.items() if key in COMMON}
        own = {key: value for key, value in settings.items() if key not in COMMON}
        if self.made_of_losses:
            known = {"classes": classes, "photographs": photographs, "class_counts": class_counts}
            made: Loss | WeightedSum = self.term(**known, **own, **shared)
            return made
        if isinstance(self.term, type):
            make: Callable[..., Any] = self.term
            return Loss(name, make(classes=classes, photographs=photographs, **own), classes, **shared)
        loss = Loss(name, partial(self.term, **own), classes, **shared)
        loss.term(torch.zeros(1, classes), torch.full((1, classes), 1 / classes))  # it checks its own ranges
        return loss


def check_names_and_kinds(name: str, settings: Mapping[str, Any], known: Mapping[str, inspect.Parameter]) -> None:
    """Raise SettingsError for an unknown setting, a missing one, or a text where a number belongs."""
    for key, value in settings.items():
        if key not in known:
            raise SettingsError(f"loss {name} has no setting {key!r}", suggest(key, list(known)))
        kinds = PLAIN.get(str(known[key].annotation), (object,))
        fine = isinstance(value, kinds) and not (isinstance(value, bool) and int in kinds)
        check(name, key, value, fine, f"of type {known[key].annotation}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in settings:
            raise SettingsError(f"loss {name} needs the setting {key!r}")
