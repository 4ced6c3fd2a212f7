"""What a fold's training needs: a fresh network, its batches, its loss and mixing, its precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timm.layers import resample_abs_pos_embed

from manihot.augment.augmenter import Augmenter
from manihot.errors import SettingsError
from manihot.members.member import Member
from manihot.members.sampling import draw_epoch, with_class_numbers
from manihot.members.training_labels import TrainingLabels
from manihot.members.transition import with_transition
from manihot.records.columns import UNLABELLED
from manihot.records.files import digest_value, one_at_a_time
from manihot.settings import Model, Recipe
from manihot.train.data.dataset import TrainingPhotos, make_loader
from manihot.train.data.mixing import Mixer, class_activation
from manihot.train.data.negatives import Extended, Material, make_negatives, write_negatives
from manihot.train.data.unlabelled import UnlabelledPhotos
from manihot.train.distributed import SEED_OF_PROCESS, from_first, rank, world
from manihot.train.gradients import Training
from manihot.train.margins import Margins
from manihot.train.networks.backbones import are_maps, make_model, set_training
from manihot.train.networks.heads import Classifier, Snapshots
from manihot.train.optim.losses import make_loss
from manihot.train.optim.losses.contract import PER_CLASS
from manihot.train.probe import choose_way
from manihot.train.runners import PRECISIONS, Normalise, choose_device
from manihot.train.steps import (
    NEEDS_UNLABELLED,
    TWO_NETWORKS,
    StepState,
    dividing_begins,
    make_step,
    unlabelled_settings,
)
from manihot.train.two_networks import SEED_OF_SECOND, Divider

SURELY_NOT = float(np.log(1e-7))  # a teacher's logit of what a photograph doesn't show


def make_training(
    member: Member,
    fold: int,
    training_labels: TrainingLabels,
    before: Classifier | None = None,
    same_classes: bool = True,
) -> Training:
    """A network, and all that training it on these labels needs, as the recipe says.

    before: the network of the stage before, whose weights are taken over; its head too, where it has the same classes.
    """
    recipe, device = member.recipe, choose_device(member.tools.device)
    seed, size = member.seed(fold), member.preprocess.size
    model = make_model(recipe.model, training_labels.classes, size, seed)
    if before is not None:
        take_over(model, before, same_classes)
    model = model.to(device)
    precision, channels_last = from_first(lambda: choose_way(recipe, model, size, device))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    learned = training_labels
    training_labels, photos = with_negatives(member, fold, training_labels)
    augmenter = Augmenter(recipe.augment, size, seed, recipe.train.epochs, member.preprocess.last_fit)
    # a class without photographs here must not weigh without bound
    counts = np.maximum(training_labels.targets.sum(0), 1)
    settings = with_transition(recipe.loss.settings, learned.transition)
    if recipe.model.unknown:
        settings = one_more_class(settings, training_labels.classes - 1, float(counts[-1]))
    loss = make_loss(
        recipe.loss.name,
        settings,
        classes=training_labels.classes,
        photographs=len(training_labels.rows),
        class_counts=counts,
    ).to(device)
    dataset = TrainingPhotos(
        photos,
        training_labels.rows,
        training_labels.targets,
        training_labels.weights,
        augmenter,
        training_labels.teacher,
        find_unlabelled(member, fold),
        2 if recipe.step.name == "dividemix" else max(getattr(term, "views", 1) for term in loss.modules()),
    )
    sampling = with_class_numbers(recipe.sampling, member.manifest.classes)
    loader, batches = make_loader(
        dataset,
        recipe.train.batch,
        seed,
        recipe.train.workers,
        device.type == "cuda",
        lambda epoch: draw_epoch(sampling, training_labels.labels, seed, epoch),
        (rank(), world()),
    )
    mixer = make_mixer(recipe, len(batches), seed, model)
    normalise = Normalise(member.preprocess, channels_last).to(device)
    state = StepState(device, normalise, loss, PRECISIONS[precision], mixer)
    if recipe.labels.name != "clusters":
        state.margins = make_margins(member, learned, len(training_labels.rows))
    if recipe.train.compile:
        state.embed = compiled(model)
    if recipe.step.name in TWO_NETWORKS:
        trained = with_second(model, recipe, training_labels.classes, size, seed).to(memory_format=layout)
        if recipe.step.name == "dividemix":
            state.divide = Divider(member, fold, learned, dividing_begins(recipe.step), precision, channels_last)
        return Training(trained, loader, batches, make_step(recipe.step), state, precision, channels_last)
    return Training(model, loader, batches, make_step(recipe.step), state, precision, channels_last)


def with_second(model: Classifier, recipe: Recipe, classes: int, size: tuple[int, int], seed: int) -> Snapshots:
    """A network and another of the same kind, whose head, or all of it without pretraining, begins elsewhere."""
    if world() > 1:
        raise SettingsError(
            f"step: {recipe.step.name} chooses among the photographs of a whole batch, which several processes share",
            "train it in one process",
        )
    second = make_model(recipe.model, classes, size, seed + SEED_OF_SECOND)
    return Snapshots([model, second.to(next(model.parameters()).device)])


def make_margins(member: Member, training_labels: TrainingLabels, photographs: int) -> Margins:
    """Records the margins of the labelled photographs; those after them show no class and have no margin."""
    manifest, n = member.manifest, len(training_labels.rows)
    image_id, given = np.full(photographs, "", dtype=object), np.full(photographs, UNLABELLED)
    image_id[:n], given[:n] = manifest.image_id[training_labels.rows], manifest.labels[training_labels.rows]
    return Margins(image_id, given, len(manifest.classes), choose_device(member.tools.device))


def find_unlabelled(member: Member, fold: int) -> UnlabelledPhotos | None:
    """The photographs without a label that the recipe's step learns from; SettingsError where there are none."""
    recipe = member.recipe
    if recipe.step.name not in NEEDS_UNLABELLED:
        return None
    rows = member.unlabelled_rows(fold)
    if not len(rows):
        raise SettingsError(
            f"{member.name}: step {recipe.step.name!r} found no photographs without a label",
            "add some, or mark a source: sources: {NAME: {use: unlabelled}}",
        )
    settings = unlabelled_settings(recipe.step)
    size, seed, epochs = member.preprocess.size, member.seed(fold), recipe.train.epochs
    return UnlabelledPhotos(member.to_augment, rows, size, seed, epochs, member.preprocess.last_fit, **settings)


def with_negatives(member: Member, fold: int, training_labels: TrainingLabels) -> tuple[TrainingLabels, Any]:
    """The labels with the class `unknown` after the others, and the photographs with those that show it.

    As they are where the model has no such output.
    """
    recipe, seed = member.recipe, member.seed(fold)
    if not recipe.model.unknown:
        return training_labels, member.to_augment
    size = member.preprocess.for_store.size
    material = Material(member.photos, size, training_labels.rows, member.rows_by_source(fold))
    made, photos = make_negatives(recipe.negatives, material), member.to_augment
    rows = made.rows
    if made.count:
        ids = member.manifest.table[["image_id", "sha256"]].to_numpy()[training_labels.rows].tolist()
        fit = member.preprocess.for_store.fit
        name = digest_value([recipe.negatives.model_dump(mode="json"), size, fit, seed, ids])[:16]
        path = member.run.negatives(name)
        with one_at_a_time(path):
            photos = Extended(photos, write_negatives(path, made, size, seed))
        rows = np.concatenate([rows, len(member.photos) + np.arange(made.count)])
    n, k = len(rows), training_labels.classes
    targets = np.zeros((len(training_labels.rows) + n, k + 1), dtype=np.float32)
    targets[: len(training_labels.rows), :k], targets[len(training_labels.rows) :, k] = training_labels.targets, 1
    taught = training_labels.teacher
    if taught is not None:  # a teacher of K classes is sure that a leaf is one, and that the others are none
        taught = np.full(targets.shape, SURELY_NOT, dtype=np.float32)
        taught[: len(training_labels.rows), :k], taught[len(training_labels.rows) :, k] = training_labels.teacher, 0
    weights = np.concatenate([training_labels.weights, np.ones(n, dtype=training_labels.weights.dtype)])
    return TrainingLabels(np.concatenate([training_labels.rows, rows]), targets, weights, taught), photos


def one_more_class(settings: Any, classes: int, count: float) -> Any:
    """A loss's settings for `classes` and one more: lists of a number per class get 1, `counts` gets `count`."""
    if isinstance(settings, (list, tuple)):
        return [one_more_class(term, classes, count) for term in settings]
    if not isinstance(settings, dict):
        return settings
    out = {}
    for key, value in settings.items():
        if key in PER_CLASS and isinstance(value, (list, tuple)) and len(value) == classes:
            out[key] = [*value, count if key == "counts" else 1.0]
        else:
            out[key] = one_more_class(value, classes, count)
    return out


def take_over(model: Classifier, before: Classifier, same_classes: bool = True) -> None:
    """Give `model` the weights of `before`; position embeddings are resized to the new input.

    The head stays fresh where the stage before learned other classes. Raises SettingsError where the backbone can't
    change its input's size.
    """
    own, taken = model.state_dict(), before.state_dict()
    place = "backbone.pos_embed"
    if place in own and own[place].shape != taken[place].shape:
        backbone = model.backbone
        taken[place] = resample_abs_pos_embed(
            taken[place],
            list(backbone.patch_embed.grid_size),
            list(before.backbone.patch_embed.grid_size),
            num_prefix_tokens=backbone.num_prefix_tokens,
        )
    if not same_classes:  # as many clusters as classes would fit, and mean nothing
        taken = {name: value for name, value in taken.items() if not name.startswith("head.")}
    fits = {name: value for name, value in taken.items() if name in own and own[name].shape == value.shape}
    lost = [name for name in own if name not in fits and not name.startswith(("head.", "attention."))]
    if lost:
        raise SettingsError(
            f"stages: {lost[0]} of the stage before doesn't fit an input of this size", "give all stages one photo.size"
        )
    model.load_state_dict(fits, strict=False)


def at_size(network: Classifier, settings: Model, size: tuple[int, int]) -> Classifier:
    """The same network for an input of another (height, width), ready to predict; see `take_over`."""
    classes = network.head.out_features - network.unknown
    made = make_model(settings.model_copy(update={"pretrained": False}), classes, size)
    take_over(made, network)
    return made.eval().requires_grad_(False)


def make_mixer(recipe: Recipe, batches: int, seed: int, model: Classifier) -> Mixer | None:
    """The recipe's mixing, with the network's own activation maps for SnapMix; each process draws its own."""
    if not recipe.mixing:
        return None

    @torch.no_grad()
    def cams(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        model.eval()  # the pass over the unmixed photographs leaves batch-norm statistics as they are
        maps = model.backbone.forward_features(images)
        set_training(model, recipe.model.freeze_norm)
        if not are_maps(model.backbone, maps):
            raise SettingsError(
                f"mixing: SnapMix needs feature maps (N, C, H, W), which {recipe.model.backbone} doesn't give",
                "use another mix, for example cutmix, or a convolutional backbone",
            )
        return class_activation(maps, model.head.weight, targets.argmax(1))

    epochs = recipe.train.epochs
    return Mixer(recipe.mixing, batches * epochs, seed + SEED_OF_PROCESS * rank(), epochs=epochs, cams=cams)


def compiled(model: Classifier) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network's `embed` through torch.compile, from its own weights; SettingsError at its first call if that fails.

    Not the network itself, which averages copy and checkpoints save: a copy of a compiled method would go on to use
    the weights of the original.
    """
    from torch._dynamo.exc import TorchDynamoException  # takes seconds

    embed = torch.compile(model.embed)

    def run(images: torch.Tensor) -> torch.Tensor:
        try:
            features: torch.Tensor = embed(images)
            return features
        except TorchDynamoException as error:
            first = next(line for line in str(error).splitlines() if line.strip())
            raise SettingsError(
                f"train.compile: torch.compile failed here ({type(error).__name__}: {first})",
                "install a C++ compiler (g++; MSVC on Windows) where there is none, or set train.compile: false",
            ) from error

    return run
