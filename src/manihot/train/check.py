"""Checks of a recipe against the registries, before anything is computed: names, settings, views."""

from __future__ import annotations

from manihot.data.augment import build_ops
from manihot.data.mixing import Mixer
from manihot.data.sampling import check_sampling
from manihot.data.views import check_views
from manihot.errors import SettingsError
from manihot.models.heads import POOLING, TILE_ATTENTION
from manihot.optim.averaging import check_averaging
from manihot.optim.losses import make_loss
from manihot.optim.optimizers import OPTIMIZERS
from manihot.optim.schedules import NEEDS_SCORES, check_schedule
from manihot.settings import Recipe, suggest


def check_recipe(recipe: Recipe) -> None:
    """SettingsError with file and line for the first technique or setting that doesn't exist."""
    for name, member in recipe.member_recipes().items():
        below = ("members", name) if recipe.members else ()

        def where(key: str, below: tuple[str, ...] = below) -> str:
            own = below and key in recipe.members[below[1]]
            return f"{recipe.where(*below, key) if own else recipe.where(key)}: {key}"

        for key, known, value in (
            ("optimizer", OPTIMIZERS, member.optimizer.name),
            ("model", POOLING, member.model.pooling),
            ("model", TILE_ATTENTION, member.model.tile_attention),
        ):
            if value not in known:
                raise SettingsError(f"{where(key)}: unknown {value!r}", suggest(value, list(known)))
        check_schedule(member.schedule, where("schedule"))
        check_averaging(member.averaging, where("averaging"))
        check_sampling(member.sampling, where("sampling"))
        check_views(member.tta, where("tta"))
        try:
            build_ops(member.augment)
        except SettingsError as error:
            raise SettingsError(f"{where('augment')}: {error.what}", error.remedy) from error
        if member.method == "features" and member.model.tiles != (1, 1):
            raise SettingsError(
                f"{where('model')}: the method 'features' can't learn the attention over tiles",
                "use method: finetune, or model.tiles: [1, 1]",
            )
        if member.method == "finetune":
            check_training(member, where("train"), where("schedule"), where("optimizer"))
            check_mixing(member, where("mixing"))
            check_loss(member, where("loss"))


def check_training(member: Recipe, train: str, schedule: str, optimizer: str) -> None:
    """SettingsError for settings of the loop that contradict each other; the texts say where each stands."""
    if member.train.keep == "best" and member.averaging.name == "swa":
        raise SettingsError(
            f"{train}: keep 'best' would keep the weights of one epoch and not the average of averaging 'swa'",
            "use train.keep: last, which keeps the average, or averaging: {name: ema}, which best can choose from",
        )
    if member.folds.kind == "none" and member.schedule.name in NEEDS_SCORES:
        raise SettingsError(
            f"{schedule}: {member.schedule.name} watches held-out photographs, but folds.kind is 'none'",
            "use schedule: {name: cosine}, or hold photographs out",
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
    except SettingsError as error:
        raise SettingsError(f"{where}: {error.what}", error.remedy) from error


def check_loss(member: Recipe, where: str) -> None:
    """SettingsError for a loss or setting that doesn't exist, or one that needs what no step has."""
    weights = member.loss.settings.get("class_weights")
    classes = len(weights) if isinstance(weights, list) else 5
    try:
        loss = make_loss(
            member.loss.name, member.loss.settings, classes=classes, photographs=1, class_counts=[1] * classes
        )
    except SettingsError as error:
        raise SettingsError(f"{where}: {error.what}", error.remedy) from error
    missing = set(loss.needs) - {"features", "index", "weight"}
    if missing:
        raise SettingsError(
            f"{where}: {member.loss.name} needs {', '.join(sorted(missing))}, which no recipe can give yet"
        )
