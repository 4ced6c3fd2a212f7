"""Other names of classes: the folder `cbb` of a second source is the first's class Cassava Bacterial Blight (CBB).

A map of names (a file by `--alias`, or the `aliases` of a recipe) is applied to what each place was read as, before its
classes are united with those of the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from manihot.errors import DataError, SettingsError
from manihot.photos.listing import Listing, normalise
from manihot.progress import say
from manihot.records.tables import list_names, shown
from manihot.settings import read_text, read_yaml, suggest

Names = Mapping[str, str]
Match = tuple[str, str, int, str]  # source, name there, photographs, class
REMEDY = "a YAML or JSON file of other names and classes, such as `cbb: Cassava Bacterial Blight (CBB)`"


def load_aliases(path: Path) -> dict[str, str]:
    """Other names to classes, read from a file; SettingsError, DataError name file and line."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"--alias {path}: there is no such file", REMEDY)
    values, lines = read_yaml(str(path), read_text(path, "--alias: "), "a map of class names")
    return check_aliases(values, str(path), {str(key[0]): line for key, line in lines.items() if len(key) == 1})


def check_aliases(values: Mapping[Any, Any], where: str, lines: Names | None = None) -> dict[str, str]:
    """The map with its names trimmed; SettingsError for what is not a name, or a class that is another name itself."""
    out: dict[str, str] = {}
    for key, value in values.items():
        at = (lines or {}).get(str(key), where)
        name = normalise(str(key))
        own = "" if isinstance(value, bool | dict | list) or value is None else normalise(str(value))
        if not name or not own:
            raise SettingsError(f"{at}: {shown(str(key))!r} stands for {shown(str(value), 60)!r}, no class", REMEDY)
        out[name] = own
    for name, own in out.items():
        if name != own and out.get(own, own) != own:
            raise SettingsError(
                f"{(lines or {}).get(name, where)}: {name!r} stands for {own!r}, which stands for {out[own]!r}",
                f"let {name!r} stand for {out[own]!r} itself",
            )
    return out


def apply_aliases(places: Sequence[Path], listings: Sequence[Listing], given: Names, usual: Names) -> list[Match]:
    """Rename classes in the listings; returns which name was matched with which class.

    given: the user's map, applied to every name in it. usual: the recipe's, applied where some source has the class.
    Raises DataError where a name of `given` is nobody's class, or two numbers of a class map would be one class.
    """
    there = {name for part in listings for name in part.classes}
    for name in given:
        if name not in there:
            raise DataError(
                f"--alias: no source has a class {shown(name)!r}; they have {list_names(sorted(there), 20)}",
                suggest(name, sorted(there)),
            )
    wanted = {name: own for name, own in usual.items() if own in there} | dict(given)
    rows: list[Match] = []
    for place, part in zip(places, listings):
        own = {name: wanted[name] for name in part.classes if wanted.get(name, name) != name}
        if not own:
            continue
        counts = Counter(entry.label for entry in part.entries)
        rows += [(place.name, name, counts[name], target) for name, target in own.items()]
        _rename(place, part, own)
    return rows


def _rename(place: Path, part: Listing, own: Names) -> None:
    numbers: dict[str, int] = {}
    for name, number in part.numbers.items():
        if numbers.setdefault(own.get(name, name), number) != number:
            raise DataError(
                f"{place}: its class map gives {own.get(name, name)!r} two numbers under two names",
                "correct the class map, or take one of the names out of the aliases",
            )
    part.numbers = numbers
    part.classes = tuple(dict.fromkeys(own.get(name, name) for name in part.classes))
    part.entries = [
        entry if entry.label is None else replace(entry, label=own.get(entry.label, entry.label))
        for entry in part.entries
    ]


def say_matches(rows: Sequence[Match]) -> None:
    """Print a table of what was matched."""
    if not rows:
        return
    table = [("source", "name there", "photos", "class"), *((a, b, str(n), d) for a, b, n, d in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    say("Class names that were matched:")
    for source, name, count, target in table:
        say(f"  {source:<{widths[0]}}  {name:<{widths[1]}}  {count:>{widths[2]}}  {target}")
