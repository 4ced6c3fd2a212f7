"""Checks of a recipe that need torch: settings of losses, mixes, optimisers, schedules, averages and steps."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from manihot.errors import SettingsError
from manihot.members.check import check_classes as check_sampled_classes
from manihot.members.check import check_recipe as check_without_torch
from manihot.members.check import stages_of
from manihot.members.training_labels import clusters
from manihot.members.transition import asks_for_transition, with_transition
from manihot.settings import Recipe
from manihot.train.data.mixing import Mixer
from manihot.train.data.negatives import check_negatives
from manihot.train.networks.backbones import gives_maps
from manihot.train.optim.averaging import averaging_begins, check_averaging
from manihot.train.optim.losses import make_loss
from manihot.train.optim.losses.contract import PER_CLASS
from manihot.train.optim.optimizers import find_optimizer
from manihot.train.optim.schedules import NEEDS_SCORES, check_schedule
from manihot.train.steps import TWO_NETWORKS, check_step, dividing_begins

NOT_MIXED = ("none", "cutout")  # rows of the mixes that show one photograph alone


def check_recipe(recipe: Recipe) -> None:
    """SettingsError with file and line for the first technique or setting of a recipe that can't be."""
    check_without_torch(recipe)
    for stage in stages_of(recipe):
        own, where = stage.recipe, stage.where
        find_optimizer(own.optimizer.name, where("optimizer"))
        check_step(own.step, where("step"))
        check_negatives(own.negatives, where("negatives"))
        check_schedule(own.schedule, where("schedule"))
        check_averaging(own.averaging, where("averaging"))
        if own.method == "finetune":
            check_training(own, where("train"), where("schedule"), where("optimizer"))
            check_mixing(own, where("mixing"))
            check_loss(own, where("loss"))
        if own.step.name in TWO_NETWORKS:
            check_two_networks(own, bool(stage.member.stages), where("step"))


def check_classes(recipe: Recipe, classes: Sequence[str]) -> None:
    """SettingsError where a sampling names a class that the photographs don't have, or a loss counts others."""
    check_sampled_classes(recipe, classes)
    for stage in stages_of(recipe):
        if stage.recipe.method != "finetune":
            continue
        known = (len(classes), f"{len(classes)} classes: {', '.join(classes)}")
        if stage.recipe.labels.name == "clusters":
            k = stage.recipe.labels.settings.get("k", inspect.signature(clusters).parameters["k"].default)
            known = (k, f"{k} clusters")
        check_loss(stage.recipe, stage.where("loss"), known)


def check_two_networks(recipe: Recipe, staged: bool, where: str) -> None:
    """SettingsError for what two networks that learn together don't go with."""
    name = recipe.step.name
    wrong = {
        "stages": staged,
        "mixing": bool(recipe.mixing),  # a mixed photograph has two labels, and dividemix mixes itself
        "model.unknown": recipe.model.unknown,
        "train.snapshots": bool(recipe.train.snapshots),
        "train.compile": recipe.train.compile,
    }
    found = [what for what, there in wrong.items() if there]
    if found:
        raise SettingsError(
            f"{where}: {name} trains two networks, which doesn't go with {', '.join(found)}",
            "leave that out, or use step: {name: supervised}",
        )
    warmup = dividing_begins(recipe.step)
    if name == "dividemix" and warmup >= recipe.train.epochs:
        raise SettingsError(
            f"{where}: dividemix begins after {warmup} epochs of warm-up, and the training has {recipe.train.epochs}",
            "lower warmup, or train longer",
        )


def check_snapshots(member: Recipe, where: str) -> None:
    """SettingsError for epochs that are not reached, or that contradict the one that is kept."""
    asked, epochs = member.train.snapshots, member.train.epochs
    for epoch in asked:
        if not -epochs <= epoch < epochs:
            raise SettingsError(
                f"{where}: snapshots: there is no epoch {epoch}", f"from 0 to {epochs - 1}, or from -1 down"
            )
    if asked and (member.train.keep == "best" or member.train.patience):
        key = "keep: best" if member.train.keep == "best" else f"patience: {member.train.patience}"
        raise SettingsError(
            f"{where}: snapshots name the epochs that answer, and {key} chooses one by its score",
            "leave one of them out",
        )


def check_training(member: Recipe, train: str, schedule: str, optimizer: str) -> None:
    """SettingsError for settings of the loop that contradict each other; the texts say where each stands."""
    if member.train.keep == "best" and member.averaging.name == "swa":
        raise SettingsError(
            f"{train}: keep 'best' would keep the weights of one epoch and not the average of averaging 'swa'",
            "use train.keep: last, which keeps the average, or averaging: {name: ema}, which best can choose from",
        )
    check_snapshots(member, train)
    begin = averaging_begins(member.averaging, member.train.epochs)
    if 0 < member.train.patience < begin and member.folds.kind != "none":
        raise SettingsError(
            f"{train}: patience {member.train.patience} can stop the training before averaging 'swa' begins, "
            f"after {begin} epochs, and nothing would be averaged",
            f"use train.patience: {begin} or more, a lower averaging.start, or averaging: {{name: ema}}",
        )
    if member.folds.kind == "none" and member.schedule.name in NEEDS_SCORES:
        raise SettingsError(
            f"{schedule}: {member.schedule.name} watches held-out photographs, but folds.kind is 'none'",
            "use schedule: {name: cosine}, or hold photographs out",
        )
    if member.refit and member.folds.kind != "none" and member.schedule.name in NEEDS_SCORES:
        raise SettingsError(
            f"{schedule}: {member.schedule.name} watches held-out photographs, and refit trains without any",
            "use schedule: {name: cosine}, or refit: false",
        )
    if member.optimizer.lookahead and member.optimizer.name == "ranger":
        raise SettingsError(
            f"{optimizer}: ranger has its own Lookahead",
            "use optimizer.name: radam with lookahead, or optimizer.lookahead: 0",
        )


def check_mixing(member: Recipe, where: str) -> None:
    """SettingsError for a mix, a setting or probabilities that can't be."""
    try:
        if member.mixing:
            mixer = Mixer(member.mixing, 1, 0, epochs=member.train.epochs, cams=lambda images, targets: images[:, 0])
            if mixer.needs_cams and (
                member.model.pooling != "avg" or member.model.taps or member.model.power or member.model.tiles != (1, 1)
            ):
                raise SettingsError(
                    "SnapMix needs the activation map of average-pooled features",
                    "model.pooling: avg, without taps, power and tiles",
                )
            if mixer.needs_cams and not gives_maps(member.model.backbone):
                raise SettingsError(
                    f"SnapMix needs feature maps (N, C, H, W), which {member.model.backbone} doesn't give",
                    "use another mix, for example cutmix, or a convolutional backbone",
                )
    except SettingsError as error:
        raise SettingsError(f"{where}: {error.what}", error.remedy) from error


def check_loss(member: Recipe, where: str, known: tuple[int, str] | None = None) -> None:
    """SettingsError for a loss or setting that doesn't exist, or one that needs what no step has.

    known: how many classes the photographs have, as a number and in words; before they are scanned the lists of a
    number per class say how many.
    """
    settings = with_transition(member.loss.settings, None)  # estimated when the training begins
    of_classes = [value for key, value in _settings_within(settings) if key in PER_CLASS]
    lists = [value for value in of_classes if isinstance(value, (list, tuple))]
    classes = known[0] if known else next(map(len, lists), 5)
    try:
        loss = make_loss(member.loss.name, settings, classes=classes, photographs=1, class_counts=[1] * classes)
    except SettingsError as error:
        told = f"{error.remedy}; there are {known[1]}" if known and lists else error.remedy
        raise SettingsError(f"{where}: {error.what}", told) from error
    for key, value in _settings_within(settings):
        if key == "reduction" and value != "mean":
            raise SettingsError(
                f"{where}: reduction = {value!r} gives a number per photograph, and a training needs their mean",
                "leave reduction out; weights of photographs come from the manifest, of classes from class_weights",
            )
    if asks_for_transition(member.loss.settings) and (member.model.unknown or member.labels.name == "clusters"):
        raise SettingsError(
            f"{where}: transition: estimate is of the classes of the labels alone",
            "leave out model.unknown and labels: clusters, or give the matrix",
        )
    if loss.needs and member.step.name in TWO_NETWORKS:
        raise SettingsError(
            f"{where}: {member.loss.name} wants {', '.join(loss.needs)}, and the two networks of step "
            f"{member.step.name} give logits alone",
            "use another loss, for example cross_entropy",
        )
    missing = set(loss.needs) - {"features", "index", "weight", "view_logits"}
    if "view_logits" in loss.needs and member.mixing:
        raise SettingsError(
            f"{where}: {member.loss.name} compares several views of one photograph, which mixing would mix with others",
            "use mixing: [], or one view",
        )
    if "index" in loss.needs and any(choice.name not in NOT_MIXED for choice in member.mixing):
        raise SettingsError(
            f"{where}: {member.loss.name} remembers each photograph, and a mixed one is two",
            "use mixing: [] (augmentations such as cutout may stay), or another loss",
        )
    if "teacher" in missing and member.labels.name != "teacher":
        raise SettingsError(
            f"{where}: {member.loss.name} needs a teacher", "name a member: labels: {name: teacher, of: MEMBER}"
        )
    if missing - {"teacher"}:
        raise SettingsError(
            f"{where}: {member.loss.name} needs {', '.join(sorted(missing))}, which no recipe can give yet"
        )


def _settings_within(settings: Any) -> Iterator[tuple[str, Any]]:
    """Every setting of a loss and of the losses inside it, by name."""
    for value in settings if isinstance(settings, (list, tuple)) else ():
        yield from _settings_within(value)
    for key, value in settings.items() if isinstance(settings, Mapping) else ():
        yield key, value
        yield from _settings_within(value)
