"""Paths as users give them: text or Path, one or several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

from manihot.errors import SettingsError
from manihot.settings import Recipe, load_recipe

PathLike = Path | str


def as_paths(places: PathLike | Sequence[PathLike]) -> list[Path]:
    """All places, as paths."""
    return [Path(places)] if isinstance(places, Path | str) else [Path(place) for place in places]


def as_source(places: PathLike | Sequence[PathLike]) -> Path | list[Path]:
    """A single place as itself, several as a list: one manifest is used unchanged, several are read again."""
    found = as_paths(places)
    return found[0] if len(found) == 1 else found


def as_path(place: PathLike | None) -> Path | None:
    """A path where there is one."""
    return None if place is None else Path(place)


@overload
def as_choice(recipe: None, overrides: Sequence[str]) -> None: ...
@overload
def as_choice(recipe: PathLike | Recipe, overrides: Sequence[str]) -> str | Recipe: ...
@overload
def as_choice(recipe: PathLike | Recipe | None, overrides: Sequence[str]) -> str | Recipe | None: ...
def as_choice(recipe: PathLike | Recipe | None, overrides: Sequence[str]) -> str | Recipe | None:
    """A recipe's name, or a whole one; SettingsError where settings are to change a whole one."""
    if isinstance(recipe, Recipe) and overrides:
        raise SettingsError(
            f"{', '.join(overrides)}: settings change a recipe that is read by name, and a Recipe is whole",
            "give the settings to load_recipe",
        )
    return recipe if recipe is None or isinstance(recipe, Recipe) else str(recipe)


def as_recipe(recipe: PathLike | Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe that is named, with `overrides`, or a whole one as it is; as `as_choice`."""
    chosen = as_choice(recipe, overrides)
    return chosen if isinstance(chosen, Recipe) else load_recipe(chosen, overrides)
