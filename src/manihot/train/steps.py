"""Steps: one batch to its loss. A step is a function `(model, batch, state, *, settings) -> {"loss": ..., ...}`.

FixMatch: arXiv 2001.07685, as its authors' code does it; the lecture's single model with the highest score.
The steps of two networks: see `two_networks`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from manihot.augment.augmenter import build_ops
from manihot.errors import SettingsError
from manihot.settings import Choice, suggest
from manihot.train.data.dataset import Batch
from manihot.train.data.unlabelled import UnlabelledPhotos
from manihot.train.runners import Normalise
from manihot.train.two_networks import kept_share, mix_all, mixed_loss, refine, sharpen, smallest

T = TypeVar("T")


@dataclass
class StepState:
    """What a step needs beside the model and the batch."""

    device: torch.device
    normalise: Normalise
    loss: Any  # of manihot.train.optim.losses.make_loss
    dtype: torch.dtype
    mixer: Any = None  # of manihot.train.data.mixing, or None
    epoch: int = 0
    batch_number: int = 0
    counts: dict[str, tuple[Tensor, int]] = field(default_factory=dict)  # of this epoch: how many, of how many
    kept: dict[Any, Any] | None = None  # by batch number; what SAM's second pass sees again
    margins: Any = None  # of manihot.train.margins, or None: notes how far ahead the given labels are
    embed: Callable[[Tensor], Tensor] | None = None  # the trained network's `embed`, compiled
    divide: Callable[[Any, int], Tensor | None] | None = None  # `two_networks.Divider`, called when an epoch begins
    clean: Tensor | None = None  # what it found for this epoch
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext  # several processes don't exchange gradients here

    def once(self, make: Callable[[], T], what: str = "batch") -> T:
        """What `make` gives; in SAM's second pass what it gave for this batch in the first."""
        if self.kept is None:
            return make()
        if (self.batch_number, what) not in self.kept:
            self.kept[self.batch_number, what] = make()
        found: T = self.kept[self.batch_number, what]
        return found

    def note_margins(self, moved: Batch, logits: Tensor, targets: Tensor) -> None:
        """Note how far ahead the given labels of a batch are, in the first pass; not where labels were mixed."""
        if self.margins is not None:
            mixed = targets is not moved["target"]
            self.once(lambda: self.margins.note(moved["index"], logits, mixed), "margins")

    def note_right(self, logits: Tensor, targets: Tensor) -> None:
        """Count, in the first pass, how much of each label (N, K) the likeliest class of the logits hits.

        1 or 0 of a photograph with one label, its share of a mixed or soft one: the accuracy of what is trained on.
        """

        def hit() -> None:
            said = logits.detach().argmax(1, keepdim=True)
            self.count("train_accuracy", targets.gather(1, said)[:, 0] / targets.sum(1).clamp_min(1e-12))

        self.once(hit, "right")

    def count(self, name: str, chosen: Tensor) -> None:
        """Note how many of a batch were chosen, bool or shares (n,); nothing is waited for."""
        many, all_of = self.counts.get(name, (torch.zeros((), device=chosen.device), 0))
        self.counts[name] = many + chosen.sum(), all_of + len(chosen)

    def shares(self) -> dict[str, float]:
        """The share of what was counted since the last call, by name."""
        found = {name: round(float(many) / max(1, all_of), 4) for name, (many, all_of) in self.counts.items()}
        self.counts = {}
        return found


Step = Callable[..., dict[str, Tensor]]  # (model, batch, state), and settings by name


def mixed_batch(image: Tensor, moved: Batch, state: StepState) -> tuple[Tensor, Tensor]:
    """Normalised images and soft labels on the device, mixed where the recipe mixes."""
    images = state.normalise(image.to(state.device, non_blocking=True), moved["colour"])
    if state.mixer is None:
        return images, moved["target"]
    images, targets = state.mixer(images, moved["target"], state.epoch, state.batch_number)
    return images, targets


def supervised(model: nn.Module, batch: Batch, state: StepState) -> dict[str, Tensor]:
    """The loss of labelled photographs, after mixing where the recipe mixes."""
    moved = on_device(batch, state)
    images, targets = state.once(lambda: mixed_batch(batch["image"], moved, state))
    features, logits = forward(model, [images, *views_of(moved, "view", state)], state)
    return {"loss": labelled_loss(model, features, logits, targets, moved, state)}


def fixmatch(
    model: nn.Module,
    batch: Batch,
    state: StepState,
    *,
    threshold: float = 0.85,
    temperature: float = 1.0,
    weight: float = 1.0,
) -> dict[str, Tensor]:
    """`supervised`, and photographs without a label whose weak view the network is sure of.

    The mean over them of 1[max p >= threshold] CE(argmax p, strong view), times `weight`; p is the softmax of the weak
    view's logits over `temperature`, without gradient. As the authors' code, and unlike the usual copies of it, all
    photographs go through the network at once, so that batch norms see one mixture of the three.
    """
    moved = on_device(batch, state)
    images, targets = state.once(lambda: mixed_batch(batch["image"], moved, state))
    [weak], [strong] = (views_of(moved, f"unlabelled_{name}", state) for name in ("weak", "strong"))
    n = len(strong)
    seen = [images, *views_of(moved, "view", state), weak, strong]
    features, logits = forward(model, seen, state)

    def told() -> tuple[Tensor, Tensor]:
        sure, label = (logits[-2 * n : -n].detach() / temperature).softmax(1).max(1)
        state.count("confident", sure >= threshold)
        return sure >= threshold, label

    chosen, label = state.once(told, "pseudo-labels")
    loss = labelled_loss(model, features[: -2 * n], logits[: -2 * n], targets, moved, state)
    unlabelled = (cross_entropy(logits[-n:], label, reduction="none") * chosen).mean()
    return {"loss": loss + weight * unlabelled, "unlabelled": unlabelled.detach()}


def co_teaching(
    model: nn.Module, batch: Batch, state: StepState, *, wrong: float = 0.2, ramp: int = 10
) -> dict[str, Tensor]:
    """Each of two networks learns the photographs of a batch that the other has the smallest cross-entropy of.

    A share of 1 - wrong min(t / ramp, 1) of them, t epochs finished: networks learn right labels first.
    """
    moved = on_device(batch, state)
    images, targets = mixed_batch(batch["image"], moved, state)  # check_recipe lets it mix nothing
    logits = [forward(network, [images], state)[1] for network in networks_of(model)]
    note_both(logits, targets, moved, state)

    def choose() -> list[Tensor]:
        share = kept_share(state.epoch, wrong, ramp)
        return [smallest(cross_entropy(own.detach(), targets, reduction="none"), share) for own in logits]

    chosen = state.once(choose, "chosen")
    losses = [
        state.loss(own[of], targets[of], sample_weights=moved["weight"][of]) for own, of in zip(logits, chosen[::-1])
    ]
    return {"loss": losses[0] + losses[1]}


def dividemix(
    model: nn.Module,
    batch: Batch,
    state: StepState,
    *,
    warmup: int = 10,
    threshold: float = 0.5,
    temperature: float = 0.5,
    alpha: float = 4.0,
    weight: float = 25.0,
    ramp: int = 16,
) -> dict[str, Tensor]:
    """Each of two networks learns the labels that the other's losses speak for, and guesses in place of the others.

    After `warmup` epochs with the recipe's loss. `weight` of the guesses grows over `ramp` epochs from there.
    """
    moved = on_device(batch, state)
    images, targets = mixed_batch(batch["image"], moved, state)  # check_recipe lets it mix nothing
    networks = networks_of(model)
    if state.clean is None:
        logits = [forward(network, [images], state)[1] for network in networks]
        note_both(logits, targets, moved, state)
        losses = [state.loss(own, targets, sample_weights=moved["weight"]) for own in logits]
        return {"loss": losses[0] + losses[1]}
    views, clean = [images, *views_of(moved, "view", state)], state.clean[:, moved["index"]]

    def guess() -> list[Tensor]:
        with torch.no_grad():
            logits = [forward(network, views, state)[1] for network in networks]
        first = [own[: len(targets)] for own in logits]
        note_both(first, targets, moved, state)
        return [own.softmax(1).unflatten(0, (-1, len(targets))).mean(0) for own in logits]

    probs = state.once(guess, "guesses")
    guessed, seen = sharpen((probs[0] + probs[1]) / 2, temperature), torch.cat(views)
    strength = weight * min(max(state.epoch - warmup, 0) / ramp, 1)
    losses = []
    for number, network in enumerate(networks):
        trust = clean[1 - number]  # what the other network says
        labelled = trust >= threshold
        state.once(lambda told=labelled: state.count("clean", told), f"clean {number}")  # type: ignore[misc]
        learned = refine(targets, probs[number], trust, temperature).where(labelled[:, None], guessed)
        both = learned.repeat(len(seen) // len(learned), 1)
        mixed, wanted = state.once(lambda to=both: mix_all(seen, to, alpha), f"mix {number}")  # type: ignore[misc]
        own = forward(network, [mixed], state)[1]
        times = len(seen) // len(labelled)
        losses.append(mixed_loss(own, wanted, labelled.repeat(times), moved["weight"].repeat(times), strength))
    return {"loss": losses[0] + losses[1]}


def dividing_begins(choice: Choice) -> int:
    """Epochs of warm-up of `dividemix`."""
    found: int = choice.settings.get("warmup", inspect.signature(dividemix).parameters["warmup"].default)
    return found


def networks_of(model: nn.Module) -> list[nn.Module]:
    """The two networks of a pair."""
    return list(model.networks)  # type: ignore[arg-type]


def note_both(logits: list[Tensor], targets: Tensor, moved: Batch, state: StepState) -> None:
    """Note margins and what is right by the mean of two networks' logits."""
    mean = (logits[0] + logits[1]) / 2
    state.note_margins(moved, mean, targets)
    state.note_right(mean, targets)


def on_device(batch: Batch, state: StepState) -> Batch:
    """All of a batch but the photographs themselves, which may be mixed already, on the device."""
    return {name: value.to(state.device, non_blocking=True) for name, value in batch.items() if name != "image"}


def views_of(moved: Batch, name: str, state: StepState) -> list[Tensor]:
    """Normalised other views (V N, 3, h, w), the first ones of all N photographs first; none where there are none."""
    if name not in moved:
        return []
    images, colour = moved[name].transpose(0, 1).flatten(0, 1), moved[f"{name}_colour"].transpose(0, 1).flatten(0, 1)
    return [state.normalise(images, colour)]


def forward(model: nn.Module, images: list[Tensor], state: StepState) -> tuple[Tensor, Tensor]:
    """Features (N, D) and float32 logits (N, K) of all the images, in one pass."""
    seen = images[0] if len(images) == 1 else torch.cat(images)
    with torch.autocast(state.device.type, state.dtype, enabled=state.dtype != torch.float32):
        features = (state.embed or model.embed)(seen)  # type: ignore[operator]
        logits = model.classify(features)  # type: ignore[operator]
    return features, logits.float()


def labelled_loss(
    model: nn.Module, features: Tensor, logits: Tensor, targets: Tensor, moved: Batch, state: StepState
) -> Tensor:
    """The recipe's loss; logits (N, K) of the photographs, and behind them those of their other views."""
    n = len(targets)
    state.note_margins(moved, logits[:n], targets)
    state.note_right(logits[:n], targets)
    available = {**moved, "features": features[:n], "weight": model.head.weight}  # type: ignore[union-attr]
    if "view_logits" in state.loss.needs:
        available["view_logits"] = logits[n:].unflatten(0, (-1, n))
    extra = {name: available[name] for name in state.loss.needs}
    found: Tensor = state.loss(logits[:n], targets, sample_weights=moved["weight"], **extra)
    return found


def step_settings(name: str) -> dict[str, inspect.Parameter]:
    """Name -> parameter of all that `step` may set: the step's own, and how photographs without a label are seen."""
    known = dict(inspect.signature(STEPS[name]).parameters)
    if name in NEEDS_UNLABELLED:
        known |= inspect.signature(UnlabelledPhotos).parameters
    return {key: parameter for key, parameter in known.items() if parameter.kind is parameter.KEYWORD_ONLY}


def make_step(choice: Choice) -> Step:
    """The recipe's step with its own settings."""
    own = inspect.signature(STEPS[choice.name]).parameters
    return partial(STEPS[choice.name], **{key: value for key, value in choice.settings.items() if key in own})


def unlabelled_settings(choice: Choice) -> dict[str, Any]:
    """Those of a step's settings that say how photographs without a label are seen."""
    own = inspect.signature(UnlabelledPhotos).parameters
    return {key: value for key, value in choice.settings.items() if key in own}


def check_step(choice: Choice, where: str) -> None:
    """SettingsError for a step or a setting that doesn't exist, or a value that makes no sense."""
    if choice.name not in STEPS:
        raise SettingsError(f"{where}: unknown {choice.name!r}", suggest(choice.name, list(STEPS)))
    known = step_settings(choice.name)
    for key, value in choice.settings.items():
        if key not in known:
            raise SettingsError(
                f"{where}: {choice.name} has no setting {key!r}", suggest(key, [*known]) if known else "it has none"
            )
        if key in ("weak", "strong"):
            try:
                build_ops(value)
            except SettingsError as error:
                raise SettingsError(f"{where}: {key}: {error.what}", error.remedy) from error
            continue
        fine, wanted = RANGES[key]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not fine(value):
            raise SettingsError(f"{where}: {key} = {value!r}", wanted)


RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "threshold": (lambda value: 0 <= value <= 1, "a probability, for example 0.95"),
    "temperature": (lambda value: value > 0, "a number above 0; 1 leaves the probabilities as they are"),
    "weight": (lambda value: value >= 0, "a number from 0"),
    "wrong": (lambda value: 0 <= value < 1, "the share of wrong labels that is expected, for example 0.2"),
    "ramp": (lambda value: value >= 1, "epochs, from 1"),
    "warmup": (lambda value: isinstance(value, int) and value >= 0, "a whole number of epochs, from 0"),
    "alpha": (lambda value: value > 0, "a number above 0"),
    "mu": (lambda value: isinstance(value, int) and 1 <= value <= 64, "a whole number from 1 to 64"),
}
STEPS: dict[str, Step] = {
    "supervised": supervised,
    "fixmatch": fixmatch,
    "co_teaching": co_teaching,
    "dividemix": dividemix,
}
TWO_NETWORKS = ("co_teaching", "dividemix")
NEEDS_UNLABELLED = ("fixmatch",)
