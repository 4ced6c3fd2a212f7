"""Commands on recipes."""

from __future__ import annotations

import sys

from manihot.cli.options import Sets
from manihot.progress import console


def list_recipes() -> None:
    """List the recipes that come with the package."""
    from rich.table import Table

    from manihot.settings import load_recipe, recipe_names

    table = Table("recipe", "method", "what it is", box=None)
    for name in recipe_names():
        found = load_recipe(name)
        table.add_row(name, found.method, found.description)
    console.print(table)


def show(name: str, *, set_: Sets = None) -> None:
    """Show every setting of a recipe, resolved, as YAML that can be saved and changed."""
    from ruamel.yaml import YAML

    from manihot.settings import load_recipe

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(load_recipe(name, set_ or []).resolved(), sys.stdout)
