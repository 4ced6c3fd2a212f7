"""Commands on recipes."""

from __future__ import annotations

import sys

from manihot.cli.options import Sets
from manihot.progress import console


def list_recipes() -> None:
    """List the recipes that come with the package: its own, and the systems of competitions with reported scores."""
    from rich.table import Table

    from manihot.settings import recipe_names

    about = {name: _about(name) for name in recipe_names()}
    families = sorted({name.partition("-")[0] for name, (_, source) in about.items() if source})
    own = [name for name, (_, source) in about.items() if not source]
    for title, names in [
        ("manihot's own", own),
        *((family, [n for n in about if n not in own and n.partition("-")[0] == family]) for family in families),
    ]:
        table = Table("recipe", "what it is", "reported", box=None, title=title, title_justify="left")
        for name in names:
            what, source = about[name]
            table.add_row(name, what, source.partition("; ")[2], end_section=True)
        console.print(table)
        console.print()
    console.print("Scores of the systems are those that their authors reported, on their own photographs.")


def _about(name: str) -> tuple[str, str]:
    """What a packaged recipe is, and where it comes from; '' for manihot's own."""
    from manihot.settings import read_values

    values, _ = read_values(name)
    return values.get("description", ""), values.get("source", "")


def show(name: str, *, set_: Sets = None) -> None:
    """Show every setting of a recipe, resolved, as YAML that can be saved and changed."""
    from ruamel.yaml import YAML

    from manihot.settings import load_recipe

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(load_recipe(name, set_ or []).resolved(), sys.stdout)
