"""Checks the settings `labels` of a recipe: they exist, their values make sense, the members they name are there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from manihot.errors import SettingsError
from manihot.members.training_labels import LABELS, names_of
from manihot.settings import Choice, Recipe, suggest

ACTIONS = ("drop", "relabel", "soft")
RULES = ("confident", "cleanlab")
AMONG = ("held_out", "others", "all")
COMMON = ("one_a_group",)  # settings of every row: of each group of duplicates only the first


def check_labels(choice: Choice, where: str, *, first: bool, last: bool, members: list[str]) -> None:
    """SettingsError for labels or a setting that don't exist, or a value that makes no sense.

    first, last: whether the stage is its training's first and last. members: names of the recipe's other members.
    """
    if choice.name not in LABELS:
        raise SettingsError(f"{where}: there are no labels {choice.name!r}", suggest(choice.name, [*LABELS]))
    known = inspect.signature(LABELS[choice.name]).parameters
    names = [*[*known][1:], *COMMON]
    for key in choice.settings:
        if key not in names:
            raise SettingsError(f"{where}: {choice.name} has no setting {key!r}", suggest(key, names))
    for key, value in choice.settings.items():
        fits, words = TAKES["bool" if key in COMMON else str(known[key].annotation)]
        if not fits(value):
            raise SettingsError(f"{where}: {key} = {value!r}", f"{key} takes {words}")
    needed = [key for key, p in known.items() if p.default is p.empty and key != "asked"]
    values: dict[str, Any] = {key: p.default for key, p in known.items() if key != "asked"} | choice.settings
    for key in needed:
        if key not in choice.settings:
            raise SettingsError(f"{where}: {choice.name} needs the setting {key!r}", f"{key}: one of {members}")
    for key in ("of", "by"):
        for one in names_of(values.get(key, "")):
            if one and one not in members:
                raise SettingsError(f"{where}: {key}: there is no other member {one!r}", f"one of {members}")
    for key in ("above", "share"):
        if key in values and not 0 <= values[key] <= 1:
            raise SettingsError(f"{where}: {key} = {values[key]!r}", "a number from 0 to 1")
    for key, least in (("k", 2), ("worst", 0)):
        if key in values and values[key] < least:
            raise SettingsError(f"{where}: {key} = {values[key]!r}", f"a whole number from {least}")
    if values.get("do", "drop") not in ACTIONS:
        raise SettingsError(f"{where}: do = {values['do']!r}", f"one of {', '.join(ACTIONS)}")
    if values.get("rule", RULES[0]) not in RULES:
        raise SettingsError(f"{where}: rule = {values['rule']!r}", f"one of {', '.join(RULES)}")
    if values.get("among", AMONG[0]) not in AMONG:
        raise SettingsError(f"{where}: among = {values['among']!r}", f"one of {', '.join(AMONG)}")
    if values.get("rule") == "cleanlab" and "above" in choice.settings:
        raise SettingsError(f"{where}: above has no effect with rule: cleanlab", "leave it out: cleanlab has its own")
    if choice.name == "pseudo" and first and not values["by"]:
        raise SettingsError(
            f"{where}: pseudo asks the network of the stage before, and there is none",
            "put it into a later one of `stages`, or name another member with by",
        )
    if choice.name == "clusters" and last:
        raise SettingsError(f"{where}: clusters are not classes to predict", "add a stage after it")


def _are(value: Any, kind: type) -> bool:
    return isinstance(value, (list, tuple)) and all(type(one) is kind for one in value)


TAKES: dict[str, tuple[Callable[[Any], bool], str]] = {  # by the type of a setting
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "float": (lambda value: type(value) in (int, float) and value >= 0, "a number from 0"),
    "int": (lambda value: type(value) is int and 0 <= value <= 10**6, "a whole number from 0 to a million"),
    "tuple[str | int, ...]": (
        lambda value: (
            isinstance(value, (list, tuple))
            and all(type(one) is str or (type(one) is int and one >= 0) for one in value)
        ),
        "a list of classes, by name or number",
    ),
    "str": (lambda value: isinstance(value, str), "one name"),
    "str | tuple[str, ...]": (
        lambda value: isinstance(value, str) or (_are(value, str) and len(value) > 0),
        "a name, or a list of names",
    ),
}


def check_among(member: Recipe, members: Mapping[str, Recipe], where: str) -> None:
    """SettingsError where `among` wants a network's answers on photographs of a source that it learned itself."""
    if member.labels.settings.get("among", AMONG[0]) == AMONG[0]:
        return
    for name in names_of(member.labels.settings.get("of", "")):
        for source, own in members[name].sources.items():
            if own.use == "train" and member.sources.get(source, own).use == "train":
                raise SettingsError(
                    f"{where}: among: {name!r} learned the photographs of {source!r} whose labels it shall check",
                    f"name in `of` a member with sources: {{{source}: {{use: ignore}}}}",
                )
