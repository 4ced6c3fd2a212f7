"""Recipes: everything that decides a run, read from YAML with `extends:` and `--set group.key=value`.

A recipe is a tree of frozen pydantic groups. An unknown key, a wrong type or an unknown technique is a SettingsError
with file, line, key and the nearest right name.
"""

from manihot.settings.explain import validated
from manihot.settings.groups import (
    IN_STAGES,
    NOT_OF_MEMBERS,
    OF_MODEL_IN_STAGES,
    Audit,
    Blend,
    BlendGroup,
    BlendSettings,
    Features,
    Folds,
    Model,
    Optimizer,
    Photo,
    Recipe,
    Source,
    Train,
    Trust,
    View,
    merge,
)
from manihot.settings.kinds import Choice, Group, KeyPath, Lines, suggest
from manihot.settings.reading import BASE, load_recipe, make_recipe, read_values, recipe_names
from manihot.settings.yaml_files import find_yaml, read_text, read_yaml

__all__ = [
    "BASE",
    "IN_STAGES",
    "NOT_OF_MEMBERS",
    "OF_MODEL_IN_STAGES",
    "Audit",
    "Blend",
    "BlendGroup",
    "BlendSettings",
    "Choice",
    "Features",
    "Folds",
    "Group",
    "KeyPath",
    "Lines",
    "Model",
    "Optimizer",
    "Photo",
    "Recipe",
    "Source",
    "Train",
    "Trust",
    "View",
    "find_yaml",
    "load_recipe",
    "make_recipe",
    "merge",
    "read_text",
    "read_values",
    "read_yaml",
    "recipe_names",
    "suggest",
    "validated",
]
