"""A recipe read from YAML with `extends:` and `--set group.key=value`; every key remembers its file and line."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from manihot.errors import SettingsError
from manihot.settings.explain import validated
from manihot.settings.groups import NOT_OF_MEMBERS, Recipe, merge
from manihot.settings.kinds import KeyPath, Lines, suggest
from manihot.settings.yaml_files import DEEPEST, find_yaml, read_value, read_yaml

LONGEST_CHAIN = 20  # files that extend each other
LONGEST_KEY = 200  # characters of a --set's key
BASE = "-base"  # how the name of a recipe ends that others extend and that is no system itself


def recipe_names(bases: bool = False) -> list[str]:
    """Names of the recipes that come with the package; with `bases`, of those that are there to be extended."""
    folder = resources.files("manihot") / "recipes"
    names = sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
    return [name for name in names if name.endswith(BASE) == bases]


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by the package's name or by path, follow `extends:`, apply `key=value` overrides.

    Raises SettingsError with file, line, key and suggestion.
    """
    values, lines = read_values(str(name))
    values.setdefault("name", Path(str(name)).stem)
    return make_recipe(values, lines, overrides)


def read_values(name: str, said: str = "") -> tuple[dict[str, Any], Lines]:
    """What a recipe and those that it extends set, not yet checked, and the file and line of each key.

    said: what an error begins with, where another file names the recipe.
    """
    lines: Lines = {}
    return _read(name, lines, (), said), lines


def make_recipe(values: dict[str, Any], lines: Lines, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of `values` with `key=value` overrides laid over; errors say where `lines` has a key from."""
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise SettingsError(f"--set {override}: expected key=value", "for example --set train.epochs=3")
        path = tuple(int(part) if part.isascii() and part.isdigit() else part for part in key[:LONGEST_KEY].split("."))
        if len(key) > LONGEST_KEY or len(path) > DEEPEST:
            raise SettingsError(f"--set {key[:40]}...: no setting has so long a name", "for example train.epochs=3")
        said = f"--set {override}"
        _set(values, path, read_value(text, said), said)
        _note_override(path, said, lines)
    recipe = validated(Recipe, values, lines)
    recipe._lines.update(lines)
    for member in recipe.member_recipes().values():  # a wrong setting of a member or stage is said now
        member.stage_recipes()
    return recipe


def _read(name: str, lines: Lines, seen: tuple[str, ...], said: str = "", alone: bool = False) -> dict[str, Any]:
    """What the recipe `name` and those above it set. alone: of a member, which has no members of its own."""
    path, text = _find(name, said)
    same = str(Path(path).resolve())
    if same in seen or len(seen) > LONGEST_CHAIN:
        circle = " -> ".join(Path(p).name for p in [*seen, same][-LONGEST_CHAIN:])
        fault = "runs in a circle" if same in seen else "leads from file to file too often"
        raise SettingsError(f"{said}`extends` {fault}: {circle}", "let one of them stand alone")
    values, own_lines = read_yaml(path, text)
    if alone and values.get("members"):
        raise SettingsError(f"{said}{name} has members of its own", "name a recipe of one network")
    _extend_members(values, path, own_lines, (*seen, same))
    if "extends" in values:
        said = f"{own_lines[('extends',)]}: "
        parent = _beside(path, values.pop("extends"), said)
        above = _read(parent, lines, (*seen, same), said, alone)
        for about_parent in ("name", "description", "source"):
            above.pop(about_parent, None)
        above_name = {key: value for key, value in values.items() if key == "name"}
        values = {**merge(above, {k: v for k, v in values.items() if k != "name"}), **above_name}
    values.setdefault("name", Path(path).stem)
    lines.update(own_lines)
    return values


def _find(name: str, said: str) -> tuple[str, str]:
    """Path and text of a recipe."""
    found = find_yaml(name, "recipes", said)
    if found is not None:
        return found
    if find_yaml(name, "recipes/suites", said):
        raise SettingsError(f"{said}{name!r} is a suite and no recipe", f"see `manihot suite {name} --list`")
    remedy = f"{suggest(name, recipe_names())}, or a path to a file"
    raise SettingsError(f"{said}there is no recipe {name[:80]!r}", remedy)


def _beside(path: str, parent: Any, said: str) -> str:
    """What `extends: parent` in the file `path` means: a file beside it, or a name of the package."""
    if not isinstance(parent, str) or not parent:
        raise SettingsError(f"{said}`extends` takes a name or a file (got {parent!r:.60})", "for example standard")
    beside = Path(path).parent / parent
    try:
        return str(beside) if beside.is_file() else parent
    except OSError:  # a name that no file can have
        return parent


def _extend_members(values: dict[str, Any], path: str, lines: Lines, seen: tuple[str, ...]) -> None:
    """Lay each member with `extends` over the recipe that it names, but for what a member can't set."""
    members = values.get("members")
    if not isinstance(members, dict):
        return
    for name, changes in members.items():
        if not isinstance(changes, dict) or "extends" not in changes:
            continue
        said = f"{lines[('members', name, 'extends')]}: "
        inner: Lines = {}
        above = _read(_beside(path, changes.pop("extends"), said), inner, seen, said, alone=True)
        for key in (*NOT_OF_MEMBERS, "description", "source"):
            above.pop(key, None)
        members[name] = merge(above, changes)
        kept = {("members", name, *key): place for key, place in inner.items() if key and key[0] in above}
        lines.update(kept | lines)


def _note_override(path: KeyPath, said: str, lines: Lines) -> None:
    """Say of a key that `--set` gave it, and of the groups above it as far as that is where an error comes from."""
    for end in range(1, len(path)):
        lines.setdefault(path[:end], said)
    lines[path] = said
    above = [path[:-1], path[:-2]] if len(path) > 2 and isinstance(path[-2], int) else [path[:-1]]
    for group in above:
        if group and lines[group] != said:  # a technique is the name's, its other settings stand in the file
            lines[group] = said if path[-1] == "name" else f"{lines[group]}, with {said}"


def _set(tree: Any, path: KeyPath, value: Any, said: str) -> None:
    for at, part in enumerate(path[:-1], 1):
        if isinstance(tree, list):
            if not isinstance(part, int) or part >= len(tree):
                raise SettingsError(f"{said}: there is no item {part} in a list of {len(tree)}")
            tree = tree[part]
        elif isinstance(tree, dict):
            if str(part) not in tree and isinstance(path[at], int):
                raise SettingsError(f"{said}: there is no list {part!r} yet", f"give it whole: {part}=[...]")
            tree = tree.setdefault(str(part), {})
        else:
            raise SettingsError(f"{said}: {part!r} stands below a value, not a group")
    last = path[-1]
    if isinstance(tree, list):
        if not isinstance(last, int) or last >= len(tree):
            raise SettingsError(f"{said}: there is no item {last} in a list of {len(tree)}")
        tree[last] = value
    elif isinstance(tree, dict):
        tree[str(last)] = merge(tree.get(str(last)), value, str(last))
    else:
        raise SettingsError(f"{said}: {last!r} stands below a value, not a group")
