"""Mixing of a batch: photographs and labels together, on the device where the batch lies.

`MIXES[name](images, targets, generator, **settings) -> Mixed`: images float or uint8 (N,C,H,W), targets
soft (N,K) float; the same types come back. `generator` is a numpy Generator: the few numbers of a batch are
drawn on the host, all that is heavy runs on the images' device. Labels are the true shares, of pixels or
(SnapMix) of the activation map. The partner of a photograph is never itself where the batch has two. `Mixer`
chooses among them for each batch. Where `in_place`, a mix may write into `images`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from manihot.errors import DataError, SettingsError
from manihot.settings import Choice, suggest
from manihot.train.data.mix_regions import (
    Box,
    activation_share,
    class_activation,
    fourier_mask,
    inside,
    partners,
    pixels,
    random_box,
    resized,
)

__all__ = ["MIXES", "Mixed", "Mixer", "Position", "class_activation"]

Cams = Tensor | Callable[[Tensor, Tensor], Tensor]


class Mixed(NamedTuple):
    """images (N,C,H,W) and targets (N,K) of a mixed batch; SnapMix's rows need not sum to 1."""

    images: Tensor
    targets: Tensor


class Position(NamedTuple):
    """Mini-batch `batch`, from 0, of `total` in the whole training."""

    batch: int
    total: int


def no_mix(images: Tensor, targets: Tensor, generator: np.random.Generator, *, in_place: bool = False) -> Mixed:
    """The batch as it is."""
    check_batch(images, targets)
    return Mixed(images, targets)


def mixup(
    images: Tensor, targets: Tensor, generator: np.random.Generator, *, alpha: float = 1.0, in_place: bool = False
) -> Mixed:
    """l x_a + (1-l) x_b with l ~ Beta(alpha, alpha) (arXiv 1710.09412)."""
    check("mixup", "alpha", alpha, alpha > 0, "a number above 0")
    check_batch(images, targets)
    other = partners(len(images), generator, images.device)
    share = 1 - float(generator.beta(alpha, alpha))
    if images.is_floating_point():
        blend = images[other].lerp_(images, 1 - share)
    else:
        blend = torch.lerp(images.float(), images[other].float(), share).round_().to(images.dtype)
    return Mixed(blend, targets.lerp(targets[other], share))


def cutmix(
    images: Tensor, targets: Tensor, generator: np.random.Generator, *, alpha: float = 1.0, in_place: bool = False
) -> Mixed:
    """A box of x_b pasted at the same place of x_a; labels by its area after clipping (arXiv 1905.04899)."""
    check("cutmix", "alpha", alpha, alpha > 0, "a number above 0")
    check_batch(images, targets)
    images = images if in_place else images.clone()
    other = partners(len(images), generator, images.device)
    box = random_box(images, 1 - float(generator.beta(alpha, alpha)), generator)
    # the right side copies the box alone; cloning the batch would take five times as long
    inside(images, box).copy_(inside(images, box)[other])
    return Mixed(images, targets.lerp(targets[other], box.area / pixels(images)))


def fmix(
    images: Tensor,
    targets: Tensor,
    generator: np.random.Generator,
    *,
    alpha: float = 1.0,
    decay: float = 3.0,
    in_place: bool = False,
) -> Mixed:
    """x_b shows through a mask of low-frequency blobs (arXiv 2002.12047); labels by the mask's true share.

    The mask is the top share of pixels of noise whose spectrum falls as 1/f^decay;
    share ~ Beta(alpha, alpha).
    """
    check("fmix", "alpha", alpha, alpha > 0, "a number above 0")
    check("fmix", "decay", decay, decay >= 0, "a number from 0")
    check_batch(images, targets)
    other = partners(len(images), generator, images.device)
    mask = fourier_mask(images.shape[-2:], 1 - float(generator.beta(alpha, alpha)), decay, generator)
    if images.is_floating_point():  # a blend with 0 and 1 is exact, and several times faster than choosing
        kept = torch.from_numpy(~mask).to(images)
        shown = images[other].lerp_(images, kept)
    else:
        shown = torch.where(torch.from_numpy(mask).to(images.device), images[other], images)
    return Mixed(shown, targets.lerp(targets[other], float(mask.mean())))


def snapmix(
    images: Tensor,
    targets: Tensor,
    generator: np.random.Generator,
    *,
    cams: Cams,
    alpha: float = 5.0,
    in_place: bool = False,
) -> Mixed:
    """A box of x_b resized into another box of x_a; labels by the activation inside (arXiv 2012.04846).

    cams: (N,h,w) activation maps of any size, not negative, or a function of (images, targets) that
    gives them (see `class_activation`). x_a weighs 1 - the activation share of its box, x_b the share of its
    own box, so a row need not sum to 1. A pair of one label sums to 1 (the authors' code counts it twice).
    """
    check("snapmix", "alpha", alpha, alpha > 0, "a number above 0")
    check_batch(images, targets)
    images = images if in_place else images.clone()
    maps = cams if isinstance(cams, Tensor) else cams(images, targets)
    if maps.ndim != 3 or len(maps) != len(images):
        raise DataError(f"snapmix: activation maps of shape {tuple(maps.shape)} for {len(images)} photographs")
    other = partners(len(images), generator, images.device)
    ours = random_box(images, 1 - float(generator.beta(alpha, alpha)), generator)
    theirs = random_box(images, 1 - float(generator.beta(alpha, alpha)), generator)
    if not ours.area or not theirs.area:
        return Mixed(images, targets)
    size = (ours.bottom - ours.top, ours.right - ours.left)
    inside(images, ours).copy_(resized(inside(images, theirs)[other], size))
    mine = 1 - activation_share(maps, ours, images.shape[-2:]).to(targets)
    others = activation_share(maps, theirs, images.shape[-2:])[other].to(targets)
    rows = mine[:, None] * targets + others[:, None] * targets[other]
    same = targets.argmax(1) == targets[other].argmax(1)
    total = (mine + others)[:, None]
    even = torch.where(total > 0, rows / total.clamp_min(1e-12), targets)
    return Mixed(images, torch.where(same[:, None], even, rows))


def resizemix(
    images: Tensor,
    targets: Tensor,
    generator: np.random.Generator,
    *,
    low: float = 0.1,
    high: float = 0.8,
    in_place: bool = False,
) -> Mixed:
    """The whole x_b, made smaller by a factor from U(low, high), pasted into x_a (arXiv 2012.11101)."""
    check("resizemix", "low", low, 0 < low <= high, "a number above 0, not above `high`")
    check("resizemix", "high", high, high <= 1, "a number up to 1")
    check_batch(images, targets)
    images = images if in_place else images.clone()
    other = partners(len(images), generator, images.device)
    scale = generator.uniform(low, high)
    height, width = (max(1, round(scale * edge)) for edge in images.shape[-2:])
    top = int(generator.integers(images.shape[-2] - height + 1))
    left = int(generator.integers(images.shape[-1] - width + 1))
    box = Box(top, top + height, left, left + width)
    small = resized(images, (height, width))
    inside(images, box).copy_(small[other])
    return Mixed(images, targets.lerp(targets[other], box.area / pixels(images)))


def cutout(
    images: Tensor,
    targets: Tensor,
    generator: np.random.Generator,
    *,
    edge: float = 0.5,
    fill: float | str = "mean",
    in_place: bool = False,
) -> Mixed:
    """A box blanked at another place of each photograph; the labels stay (arXiv 1708.04552).

    edge: the box's edges over the photograph's; its centre lies anywhere, so part of it may fall outside.
    fill: "mean", the batch's mean colour, or a number in the images' own units.
    """
    check("cutout", "edge", edge, 0 < edge <= 1, "a number above 0 and up to 1")
    check("cutout", "fill", fill, fill == "mean" or isinstance(fill, (int, float)), "a number or 'mean'")
    check_batch(images, targets)
    if isinstance(fill, str):
        colour = images.mean((0, 2, 3), dtype=torch.float32).view(-1, 1, 1)
    else:
        colour = torch.tensor(float(fill), device=images.device)
    if not images.is_floating_point():
        colour = colour.round().clamp(0, 255)
    images = images if in_place else images.clone()
    for image in images:
        box = random_box(images, edge**2, generator)
        image[:, box.top : box.bottom, box.left : box.right] = colour.to(images.dtype)
    return Mixed(images, targets)


def mixup_without_hesitation(
    images: Tensor,
    targets: Tensor,
    generator: np.random.Generator,
    *,
    position: Position,
    always_until: float = 0.6,
    alternate_until: float = 0.9,
    inner: str | Mapping[str, Any] = "mixup",
    in_place: bool = False,
) -> Mixed:
    """The mix `inner` always, then in every other mini-batch, then ever more rarely (arXiv 2101.04342).

    always_until, alternate_until: shares of the training's mini-batches; after the second the probability
    falls from 1 to 0. The paper alternates mini-batches, its repository epochs: this follows the paper.
    inner: a mix by name, or name and settings.
    """
    name = "mixup_without_hesitation"
    fine = 0 <= always_until <= alternate_until <= 1
    check(name, "always_until", always_until, fine, "a share from 0, not above alternate_until, itself up to 1")
    settings = {"name": inner} if isinstance(inner, str) else dict(inner)
    mix = settings.pop("name", "mixup")
    known = [key for key in MIXES if key not in NEEDS]
    check(name, "inner", inner, mix in known, f"one of {', '.join(known)}")
    done = position.batch / position.total
    if done < always_until:
        mixes = True
    elif done < alternate_until:
        mixes = position.batch % 2 == 0
    else:
        mixes = generator.random() * (1 - alternate_until) < 1 - done
    if not mixes:
        return no_mix(images, targets, generator)
    return MIXES[mix](images, targets, generator, in_place=in_place, **settings)


@dataclass(frozen=True)
class Scheduled:
    """A mix, its settings, and the probability of its being chosen in each epoch."""

    name: str
    settings: Mapping[str, Any]
    probability: tuple[float, ...]


class Mixer:
    """Chooses one mix for each batch by a recipe's probabilities, the same for the same (seed, epoch, batch).

    choices: rows of a recipe, each a name and the mix's settings, with
      p: probability, or [start, end] to rise or fall linearly over the epochs; 1/len(choices) when left out.
         What the choices leave to 1 is no mixing.
      from_epoch, until_epoch: epochs from 0 in which it may be chosen; until_epoch is the first one without.
    total_batches: mini-batches of the whole training, over `epochs`.
    cams: function of (images, targets) that gives the activation maps for SnapMix.
    Raises SettingsError for whatever in `choices` can't be used, at once.
    """

    def __init__(
        self,
        choices: Sequence[Choice | Mapping[str, Any]],
        total_batches: int,
        seed: int,
        *,
        epochs: int = 1,
        cams: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        rows = [choice if isinstance(choice, Choice) else Choice(**choice) for choice in choices]
        self.choices = tuple(scheduled(row, 1 / len(rows), epochs) for row in rows)
        self.total_batches, self.epochs, self.seed, self.cams = total_batches, epochs, seed, cams
        for epoch in range(epochs):
            total = sum(choice.probability[epoch] for choice in self.choices)
            if total > 1 + 1e-9:
                raise SettingsError(
                    f"mixing: the probabilities sum to {total:.3g} in epoch {epoch}", "lower some p; 1 is the most"
                )

    @property
    def needs_cams(self) -> bool:
        """Whether any choice wants activation maps."""
        return any("cams" in NEEDS.get(choice.name, ()) for choice in self.choices)

    def choose(self, epoch: int, batch: int) -> Scheduled | None:
        """The mix of a batch, numbered from 0 in its epoch; None for no mixing."""
        return self._draw(epoch, batch)[0]

    def __call__(self, images: Tensor, targets: Tensor, epoch: int, batch: int, *, in_place: bool = True) -> Mixed:
        """Mix a batch; `images` is written into unless in_place is false.

        images float or uint8 (N,C,H,W), targets soft (N,K).
        """
        choice, generator = self._draw(epoch, batch)
        if choice is None:
            return Mixed(images, targets)
        extra: dict[str, Any] = {}
        if "cams" in NEEDS.get(choice.name, ()):
            if self.cams is None:
                raise SettingsError(f"mixing {choice.name} needs activation maps, and this model gives none")
            extra["cams"] = self.cams
        if "position" in NEEDS.get(choice.name, ()):
            at = round(epoch * self.total_batches / self.epochs) + batch
            extra["position"] = Position(min(at, self.total_batches - 1), self.total_batches)
        return MIXES[choice.name](images, targets, generator, in_place=in_place, **choice.settings, **extra)

    def _draw(self, epoch: int, batch: int) -> tuple[Scheduled | None, np.random.Generator]:
        generator = np.random.default_rng([self.seed, epoch, batch])
        left = generator.random()
        for choice in self.choices:
            left -= choice.probability[min(epoch, self.epochs - 1)]
            if left < 0:
                return choice, generator
        return None, generator


def scheduled(choice: Choice, share: float, epochs: int) -> Scheduled:
    """A recipe's row, checked and tried on a small batch; `share` is its probability when it names none."""
    name, settings = choice.name, choice.settings
    if name not in MIXES:
        raise SettingsError(f"there is no mixing {name!r}", suggest(name, list(MIXES)))
    p = settings.pop("p", share)
    begin, end = settings.pop("from_epoch", 0), settings.pop("until_epoch", epochs)
    ramp = list(p) if isinstance(p, (list, tuple)) else [p, p]
    fine = len(ramp) == 2 and all(isinstance(x, (int, float)) and 0 <= x <= 1 for x in ramp)
    check(name, "p", p, fine, "a probability, or [start, end] of a ramp over the epochs")
    for setting, value in (("from_epoch", begin), ("until_epoch", end)):
        check(name, setting, value, isinstance(value, int) and value >= 0, "an epoch, counted from 0")
    steps = max(1, min(end, epochs) - begin - 1)
    probability = tuple(
        ramp[0] + (ramp[1] - ramp[0]) * (epoch - begin) / steps if begin <= epoch < end else 0.0
        for epoch in range(epochs)
    )
    known = inspect.signature(MIXES[name]).parameters
    given = [key for key, parameter in known.items() if parameter.kind is parameter.KEYWORD_ONLY]
    own = [key for key in given if key not in ("in_place", *NEEDS.get(name, ()))]
    for key in settings:
        if key not in own:
            options = [*own, "p", "from_epoch", "until_epoch"]
            raise SettingsError(f"mixing {name} has no setting {key!r}", suggest(key, options))
    dummy = {"cams": torch.ones(2, 2, 2), "position": Position(0, 1)}
    extra = {need: dummy[need] for need in NEEDS.get(name, ())}
    try:
        MIXES[name](torch.zeros(2, 3, 8, 8), torch.eye(2), np.random.default_rng(0), **settings, **extra)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"mixing {name} can't use its settings {settings} ({error})") from error
    return Scheduled(name, settings, probability)


def check_batch(images: Tensor, targets: Tensor) -> None:
    """Raise DataError for images or labels that can't be mixed."""
    fits = images.ndim == 4 and (images.is_floating_point() or images.dtype == torch.uint8)
    if not fits:
        raise DataError(f"mixing wants float or uint8 images (N,C,H,W), got {tuple(images.shape)} {images.dtype}")
    if targets.ndim != 2 or len(targets) != len(images) or not targets.is_floating_point():
        raise DataError(
            f"mixing wants soft labels ({len(images)}, K), got {tuple(targets.shape)} {targets.dtype}",
            "one_hot(labels, K).float() makes soft labels of int ones",
        )


def check(name: str, setting: str, value: object, fine: bool, wanted: str) -> None:
    """Raise SettingsError that names mix, setting and what it may be, unless `fine`."""
    if not fine:
        raise SettingsError(f"mixing {name}: {setting} = {value!r}", f"{setting} is {wanted}")


# what a mix wants from the training beside its settings
NEEDS: dict[str, tuple[str, ...]] = {"snapmix": ("cams",), "mixup_without_hesitation": ("position",)}

MIXES: dict[str, Callable[..., Mixed]] = {
    "none": no_mix,
    "mixup": mixup,
    "cutmix": cutmix,
    "fmix": fmix,
    "snapmix": snapmix,
    "resizemix": resizemix,
    "cutout": cutout,
    "mixup_without_hesitation": mixup_without_hesitation,
}
