"""Verbs on recipes and suites of experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from manihot.errors import SettingsError
from manihot.settings import Recipe, read_values, recipe_names
from manihot.settings.options import ALL_ARMS, EVERYTHING_GUESSED, HERE
from manihot.verbs.options import Arms, Columns, NamedRecipe, On, Out, Photos, Place, Sets, Update
from manihot.verbs.places import as_recipe, as_source
from manihot.verbs.results import RecipeAbout, RecipesResult, SuiteResult


def recipes() -> RecipesResult:
    """List the built-in recipes: manihot's own, and competition systems with their reported scores."""
    values = {name: read_values(name)[0] for name in recipe_names()}
    about = [
        RecipeAbout(name=name, description=found.get("description", ""), source=found.get("source", ""))
        for name, found in values.items()
    ]
    return RecipesResult(recipes=tuple(about))


def show_recipe(name: NamedRecipe, *, set: Sets = ()) -> Recipe:
    """Print every setting of a recipe, resolved, as YAML that you can save and edit."""
    return as_recipe(name, set)


def suite(
    name: Annotated[Place, Parameter(help="lecture-ablations, technique-families, or a .yaml file.")],
    photos: Photos | None = None,
    *,
    out: Out | None = None,
    arms: Arms = ALL_ARMS,
    list: Annotated[bool, Parameter(help="List the suite's arms, and train nothing.")] = False,
    set: Sets = (),
    columns: Columns = EVERYTHING_GUESSED,
    compute: On = HERE,
    update: Update = False,
) -> SuiteResult:
    """Train a baseline and single changes to it, and report which published verdicts your photographs confirm.

    Every arm has the same folds, seed and photographs. OUT is a run folder that also holds suite.html, suite.png,
    suite.csv and suite.json, rewritten after every arm. Stop it at any moment and run it again to resume; --only
    adds arms. --set changes the baseline, and so every arm: --set train.epochs=10 --set "photo.size=[512, 512]"
    """
    from manihot.suites.format import load_suite

    found = load_suite(str(name), set, second=arms.second, second_but=arms.second_but)
    if list:
        return SuiteResult(arms=found.arms)
    if photos is None or out is None:
        remedy = f"manihot suite {name} PHOTOS --out DIR, or --list"
        raise SettingsError("a suite needs photographs and a folder to write into", remedy)
    from manihot.suites.run import run_suite

    table = run_suite(
        str(name),
        as_source(photos),
        Path(out),
        only=arms.only,
        overrides=set,
        second=arms.second,
        second_but=arms.second_but,
        device=compute.device,
        workers=compute.workers,
        update=update,
        columns=columns,
    )
    return SuiteResult(arms=found.arms, table=table, page=Path(out) / "suite.html")
