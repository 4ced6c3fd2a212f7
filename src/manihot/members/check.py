"""Checks of a recipe before anything is computed, as far as they need no torch: names, labels, sampling, views, blend.

Settings of losses, mixes, optimisers, schedules and steps are checked by `manihot.train.check`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from manihot.augment.augmenter import build_ops
from manihot.augment.views import check_views
from manihot.ensemble.stages import check_blend
from manihot.errors import SettingsError
from manihot.members.label_settings import check_among, check_labels
from manihot.members.sampling import check_sampling, class_number, named_classes, with_class_numbers
from manihot.networks.weights import EMBEDDED, is_embedded, split_backbone
from manihot.settings import Recipe
from manihot.settings.techniques import check_name, check_optimizer, named_within

Where = Callable[[str], str]  # a key to the place in a file that set it, in words


@dataclass(frozen=True)
class Stage:
    """A stage of a member's training, `number` of `count`, and where its keys come from."""

    name: str
    member: Recipe
    recipe: Recipe
    number: int
    count: int
    where: Where


def stages_of(recipe: Recipe) -> Iterator[Stage]:
    """Every stage of every member."""
    for name, member in recipe.member_recipes().items():
        below = ("members", name) if recipe.members else ()
        stages = member.stage_recipes()
        for number, stage in enumerate(stages):
            where = _where(recipe, below, number if len(stages) > 1 else None)
            yield Stage(name, member, stage, number, len(stages), where)


def check_recipe(recipe: Recipe) -> None:
    """SettingsError with file and line for the first technique that doesn't exist or setting that can't be."""
    check_blend(recipe)
    members = recipe.member_recipes()
    for name, member in members.items():
        where = _where(recipe, ("members", name) if recipe.members else ())
        check_name("pooling", member.model.pooling, where("model.pooling"))
        check_name("tile attention", member.model.tile_attention, where("model.tile_attention"))
        check_views(member.tta, where("tta"))
        if member.method == "features":
            check_features(member, where)
        joined = split_backbone(member.model.backbone)
        if len(joined) > 1 and (member.method == "finetune" or not is_embedded(member.model.backbone)):
            raise SettingsError(
                f"{where('model.backbone')}: {member.model.backbone}: only embedded networks are joined by '+', and "
                "only with method: features",
                f"name one of them, or use method: features with some of {', '.join(EMBEDDED)}",
            )
    for stage in stages_of(recipe):
        others = [other for other in recipe.members if other != stage.name]
        first, last = stage.number == 0, stage.number == stage.count - 1
        check_labels(stage.recipe.labels, stage.where("labels"), first=first, last=last, members=others)
        check_among(stage.recipe, members, stage.where("labels"))
        check_source_use(recipe, stage.recipe, stage.where("sources"))
        check_techniques(stage.recipe, stage.where)


def needs_train(recipe: Recipe) -> str:
    """Why a recipe needs the extra `train`, as the beginning of a sentence; '' where the core will do."""
    for member in recipe.member_recipes().values():
        if member.method == "finetune":
            return f"recipe {recipe.name!r} fine-tunes a network, which"
        model = member.model
        if not is_embedded(model.backbone) or model.pretrained not in ("embedded", False):
            return f"recipe {recipe.name!r} turns the backbone {model.backbone!r} into ONNX, which"
    return ""


def _where(recipe: Recipe, below: tuple[str, ...], number: int | None = None) -> Where:
    """Where a member, or one of its stages, got a key from."""

    def where(key: str) -> str:
        group, *inner = key.split(".")
        member = recipe.members[below[1]] if below else {}
        stages = member.get("stages", recipe.stages)
        if number is not None and group in stages[number]:
            above = below if "stages" in member else ()
            return f"{recipe.where(*above, 'stages', number, group, *inner)}: stage {number + 1}, {key}"
        above = below if group in member else ()
        return f"{recipe.where(*above, group, *inner)}: {key}"

    return where


def check_features(member: Recipe, where: Where) -> None:
    """SettingsError for what the method `features` can't do."""
    if member.photo.test_size is not None:
        raise SettingsError(
            f"{where('photo.test_size')}: the method 'features' learns from the features that it predicts with",
            "set photo.size instead",
        )
    if member.model.tiles != (1, 1):
        raise SettingsError(
            f"{where('model')}: the method 'features' can't learn the attention over tiles",
            "use method: finetune, or model.tiles: [1, 1]",
        )
    if member.stages:
        raise SettingsError(f"{where('stages')}: the method 'features' has no stages", "use method: finetune")
    if member.model.unknown:
        raise SettingsError(f"{where('model')}: the method 'features' has no output `unknown`", "use method: finetune")
    if member.step.name != "supervised":
        raise SettingsError(f"{where('step')}: the method 'features' has no steps", "use method: finetune")


def check_classes(recipe: Recipe, classes: Sequence[str]) -> None:
    """SettingsError where a sampling or a rule on labels names a class that the photographs don't have."""
    for stage in stages_of(recipe):
        with_class_numbers(stage.recipe.sampling, classes, stage.where("sampling"))
        for one in stage.recipe.labels.settings.get("classes", ()):
            class_number(one, classes, stage.where("labels"))


def check_source_use(recipe: Recipe, stage: Recipe, where: str) -> None:
    """SettingsError where a member or stage wants a source that the run leaves out."""
    for name, settings in stage.sources.items():
        if settings.use != "ignore" and name in recipe.sources and recipe.sources[name].use == "ignore":
            raise SettingsError(
                f"{where}: source {name!r} is left out of the whole run by the recipe's own `sources`",
                "use it there, and let the other members ignore it",
            )


def check_techniques(stage: Recipe, where: Where) -> None:
    """SettingsError for a technique that doesn't exist, a wrong augmentation or sampling, or a contradiction."""
    check_optimizer(stage.optimizer.name, where("optimizer"))
    for kind, key, name in (
        ("step", "step", stage.step.name),
        ("negatives", "negatives", stage.negatives.name),
        ("schedule", "schedule", stage.schedule.name),
        ("averaging", "averaging", stage.averaging.name),
        *(("mix", "mixing", name) for mix in stage.mixing for name in named_within(mix.model_dump())),
        *(("loss", "loss", name) for name in named_within(stage.loss.model_dump())),
    ):
        check_name(kind, name, where(key))
    if stage.model.unknown != (stage.negatives.name != "none"):
        missing, key = ("negatives", "model") if stage.model.unknown else ("model.unknown", "negatives")
        raise SettingsError(
            f"{where(key)}: the output `unknown` and its `negatives` go together, and {missing} is not set",
            "set model.unknown: true and negatives: {name: drawn, share: 0.1}, or neither",
        )
    check_sampling(stage.sampling, where("sampling"))
    if named_classes(stage.sampling) and stage.labels.name == "clusters":
        raise SettingsError(
            f"{where('sampling')}: it names classes, but labels 'clusters' are learned",
            "leave classes and times out, or set another sampling in that stage",
        )
    try:
        build_ops(stage.augment)
    except SettingsError as error:
        raise SettingsError(f"{where('augment')}: {error.what.removeprefix('augment: ')}", error.remedy) from error
