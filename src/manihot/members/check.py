"""Checks of a recipe against the registries, before anything is computed: names, settings, views."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from manihot.augment.augmenter import build_ops
from manihot.augment.views import check_views
from manihot.ensemble.stages import check_blend
from manihot.errors import SettingsError
from manihot.members.sampling import check_sampling, named_classes, with_class_numbers
from manihot.members.training_labels import check_among, check_labels, clusters
from manihot.settings import Recipe, suggest
from manihot.train.data.mixing import Mixer
from manihot.train.data.negatives import check_negatives
from manihot.train.networks.backbones import gives_maps
from manihot.train.networks.heads import POOLING, TILE_ATTENTION
from manihot.train.optim.averaging import averaging_begins, check_averaging
from manihot.train.optim.losses import make_loss
from manihot.train.optim.losses.contract import PER_CLASS
from manihot.train.optim.optimizers import find_optimizer
from manihot.train.optim.schedules import NEEDS_SCORES, check_schedule
from manihot.train.steps import check_step

NOT_MIXED = ("none", "cutout")  # rows of the mixes that show one photograph alone
Where = Callable[[str], str]  # a key to the place in a file that set it, in words


def check_recipe(recipe: Recipe) -> None:
    """SettingsError with file and line for the first technique or setting that doesn't exist."""
    check_blend(recipe)
    members = recipe.member_recipes()
    for name, member in members.items():
        below = ("members", name) if recipe.members else ()
        where = _where(recipe, below)
        for key, known, value in (
            ("model", POOLING, member.model.pooling),
            ("model", TILE_ATTENTION, member.model.tile_attention),
        ):
            if value not in known:
                raise SettingsError(f"{where(key)}: unknown {value!r}", suggest(value, list(known)))
        check_views(member.tta, where("tta"))
        stages = member.stage_recipes()
        if member.method == "features":
            check_features(member, where)
        others = [other for other in recipe.members if other != name]
        for number, stage in enumerate(stages):
            own = _where(recipe, below, number) if len(stages) > 1 else where
            check_labels(
                stage.labels, own("labels"), first=number == 0, last=number == len(stages) - 1, members=others
            )
            check_among(stage, members, own("labels"))
            check_source_use(recipe, stage, own("sources"))
            check_techniques(stage, own)


def _where(recipe: Recipe, below: tuple[str, ...], number: int | None = None) -> Where:
    """Where a member, or one of its stages, got a key from."""

    def where(key: str) -> str:
        member = recipe.members[below[1]] if below else {}
        stages = member.get("stages", recipe.stages)
        if number is not None and key in stages[number]:
            above = below if "stages" in member else ()
            return f"{recipe.where(*above, 'stages', number, key)}: stage {number + 1}, {key}"
        return f"{recipe.where(*below, key) if key in member else recipe.where(key)}: {key}"

    return where


def check_features(member: Recipe, where: Where) -> None:
    """SettingsError for what the method `features` can't do."""
    if member.model.tiles != (1, 1):
        raise SettingsError(
            f"{where('model')}: the method 'features' can't learn the attention over tiles",
            "use method: finetune, or model.tiles: [1, 1]",
        )
    if member.stages:
        raise SettingsError(f"{where('stages')}: the method 'features' has no stages", "use method: finetune")
    if member.model.unknown:
        raise SettingsError(
            f"{where('model')}: the method 'features' has no output `unknown`", "use method: finetune"
        )
    if member.step.name != "supervised":
        raise SettingsError(f"{where('step')}: the method 'features' has no steps", "use method: finetune")


def check_classes(recipe: Recipe, classes: Sequence[str]) -> None:
    """SettingsError where a sampling names a class that the photographs don't have, or a loss counts others."""
    for name, member in recipe.member_recipes().items():
        below = ("members", name) if recipe.members else ()
        stages = member.stage_recipes()
        for number, stage in enumerate(stages):
            where = _where(recipe, below, number if len(stages) > 1 else None)
            with_class_numbers(stage.sampling, classes, where("sampling"))
            if stage.method != "finetune":
                continue
            if stage.labels.name == "clusters":
                k = stage.labels.settings.get("k", inspect.signature(clusters).parameters["k"].default)
                check_loss(stage, where("loss"), (k, f"{k} clusters"))
            else:
                check_loss(stage, where("loss"), (len(classes), f"{len(classes)} classes: {', '.join(classes)}"))


def check_source_use(recipe: Recipe, stage: Recipe, where: str) -> None:
    """SettingsError where a member or stage wants a source that the run leaves out."""
    for name, settings in stage.sources.items():
        if settings.use != "ignore" and name in recipe.sources and recipe.sources[name].use == "ignore":
            raise SettingsError(
                f"{where}: source {name!r} is left out of the whole run by the recipe's own `sources`",
                "use it there, and let the other members ignore it",
            )


def check_techniques(stage: Recipe, where: Where) -> None:
    """SettingsError for a technique of training that doesn't exist, or settings that contradict each other."""
    find_optimizer(stage.optimizer.name, where("optimizer"))
    check_step(stage.step, where("step"))
    check_negatives(stage.negatives, where("negatives"))
    if stage.model.unknown != (stage.negatives.name != "none"):
        missing, key = ("negatives", "model") if stage.model.unknown else ("model.unknown", "negatives")
        raise SettingsError(
            f"{where(key)}: the output `unknown` and its `negatives` go together, and {missing} is not set",
            "set model.unknown: true and negatives: {name: drawn, share: 0.1}, or neither",
        )
    check_schedule(stage.schedule, where("schedule"))
    check_averaging(stage.averaging, where("averaging"))
    check_sampling(stage.sampling, where("sampling"))
    if named_classes(stage.sampling) and stage.labels.name == "clusters":
        raise SettingsError(
            f"{where('sampling')}: it names classes, but labels 'clusters' are learned",
            "leave classes and times out, or set another sampling in that stage",
        )
    try:
        build_ops(stage.augment)
    except SettingsError as error:
        raise SettingsError(f"{where('augment')}: {error.what}", error.remedy) from error
    if stage.method == "finetune":
        check_training(stage, where("train"), where("schedule"), where("optimizer"))
        check_mixing(stage, where("mixing"))
        check_loss(stage, where("loss"))


def check_training(member: Recipe, train: str, schedule: str, optimizer: str) -> None:
    """SettingsError for settings of the loop that contradict each other; the texts say where each stands."""
    if member.train.keep == "best" and member.averaging.name == "swa":
        raise SettingsError(
            f"{train}: keep 'best' would keep the weights of one epoch and not the average of averaging 'swa'",
            "use train.keep: last, which keeps the average, or averaging: {name: ema}, which best can choose from",
        )
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
            mixer = Mixer(
                member.mixing, 1, 0, epochs=member.train.epochs, cams=lambda images, targets: images[:, 0]
            )
            if mixer.needs_cams and (
                member.model.pooling != "avg"
                or member.model.taps
                or member.model.power
                or member.model.tiles != (1, 1)
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
    number a class say how many.
    """
    settings = member.loss.settings
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
                f"{where}: reduction = {value!r} gives a number a photograph, and a training needs their mean",
                "leave reduction out; weights of photographs come from the manifest, of classes from class_weights",
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
