"""Checks of a recipe against the registries, before anything is computed: names, settings, views."""

from __future__ import annotations

from manihot.data.augment import build_ops
from manihot.data.mixing import MIXES
from manihot.data.views import check_views
from manihot.errors import SettingsError
from manihot.models.heads import POOLING
from manihot.optim.averaging import check_averaging
from manihot.optim.losses import make_loss
from manihot.optim.optimizers import OPTIMIZERS
from manihot.optim.schedules import check_schedule
from manihot.settings import Recipe, suggest


def check_recipe(recipe: Recipe) -> None:
    """SettingsError with file and line for the first technique or setting that doesn't exist."""
    for name, member in recipe.member_recipes().items():
        below = ("members", name) if recipe.members else ()

        def where(key: str, below: tuple[str, ...] = below) -> str:
            return f"{recipe.where(*below, key) if below and key in recipe.members[below[1]] else recipe.where(key)}: {key}"

        for key, known, value in (
            ("optimizer", OPTIMIZERS, member.optimizer.name),
            ("model", POOLING, member.model.pooling),
        ):
            if value not in known:
                raise SettingsError(f"{where(key)}: unknown {value!r}", suggest(value, list(known)))
        for choice in member.mixing:
            if choice.name not in MIXES:
                raise SettingsError(f"{where('mixing')}: unknown mix {choice.name!r}", suggest(choice.name, list(MIXES)))
        check_schedule(member.schedule, where("schedule"))
        check_averaging(member.averaging, where("averaging"))
        check_views(member.tta, where("tta"))
        try:
            build_ops(member.augment)
            make_loss(member.loss.name, member.loss.settings, classes=5, photographs=1)
        except SettingsError as error:
            key = "loss" if "loss" in error.what else "augment"
            raise SettingsError(f"{where(key)}: {error.what}", error.remedy) from error
