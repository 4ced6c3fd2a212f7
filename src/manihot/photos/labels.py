"""From the cells of a label column to class names: numbers and their names, missing ones, several in one cell."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from manihot.errors import DataError
from manihot.photos.listing import normalise
from manihot.records.readers import check_file, parse_json
from manihot.records.tables import MOST_DIGITS, WHOLE, decode_text, is_missing, is_whole, list_names, shown, to_number

LONGEST_CLASS = 255  # characters: what a folder can be called
MOST_MAP = 16 << 20  # bytes of a file of class names
STRONG = re.compile(r"\s*[|;,+&]\s*")  # between labels of one cell
WEAK = re.compile(r"\s+and\s+|[\s/]+")  # only where each part is a label of its own
SHOWN = 3  # examples in a remark


@dataclass(frozen=True)
class ClassNames:
    """Class names in the user's order, with the numbers that stand for them in tables."""

    names: tuple[str, ...]
    number: dict[int, str]
    path: Path

    @property
    def by_name(self) -> dict[str, int]:
        """The number of each class."""
        return {name: number for number, name in self.number.items()}


@dataclass
class Labels:
    """The class name of each cell, None where none is known; all class names in order; remarks."""

    names: list[str | None]
    classes: tuple[str, ...]
    notes: list[str] = field(default_factory=list)


def load_classes(path: Path) -> ClassNames:
    """Read class names: JSON `{"0": "name"}`, `{"name": 0}` or a list, or text with one name per line. DataError."""
    path = Path(path)
    remedy = 'a JSON file like {"0": "healthy", "1": "rust"}, or a text file with one class name a line'
    try:
        check_file(path, MOST_MAP)
        text = decode_text(path, path.read_bytes())
        value = parse_json(text) if path.suffix.lower() == ".json" else text.split("\n")
    except (OSError, ValueError, RecursionError) as error:
        why = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else shown(str(error), 100)
        raise DataError(f"{path}: class names can't be read from it ({why})", remedy) from error
    if isinstance(value, list):
        value = dict(enumerate(name for name in value if not isinstance(name, str) or name.strip()))
    if isinstance(value, dict) and value and all(_is_number(key) for key in value):
        number = {to_number(str(key)): value[key] for key in value}
    elif isinstance(value, dict) and value and all(_is_number(key) for key in value.values()):
        number = {to_number(str(key)): name for name, key in value.items()}
    else:
        raise DataError(f"{path}: contains no class names with their numbers", remedy)
    wrong = [name for name in number.values() if isinstance(name, bool) or not isinstance(name, (str, int))]
    if wrong:
        raise DataError(f"{path}: {shown(str(wrong[0]))!r} is not a class name", remedy)
    number = {key: _checked(normalise(str(name)), str(path)) for key, name in number.items()}
    names = tuple(number[key] for key in sorted(number))
    if len(set(names)) < len(names) or len(number) < len(value):
        raise DataError(f"{path}: a class name or number appears twice", "give each class one number")
    return ClassNames(names, number, path)


def _is_number(key: object) -> bool:
    return not isinstance(key, bool) and isinstance(key, (str, int, float)) and is_whole(str(key))


def _checked(name: str, where: str) -> str:
    """The name; DataError where it is no name that a person gave."""
    if len(name) > LONGEST_CLASS:
        raise DataError(
            f"{where}: a class name of {len(name):,} characters: {shown(name, 40)!r}",
            f"name the column with the classes; a name has at most {LONGEST_CLASS} characters",
        )
    control = next((c for c in name if unicodedata.category(c) in ("Cc", "Cs")), None)
    if control is not None:
        raise DataError(f"{where}: the class name {shown(name)!r} contains a control character", "correct it")
    if not name:
        raise DataError(f"{where}: an empty class name", "name each class")
    return name


def name_labels(
    values: Sequence[str],
    lines: Sequence[int],
    path: Path,
    classes: ClassNames | None,
    column: str = "label",
    keep_na: bool = False,
) -> Labels:
    """Class name of each value, None for empty ones, -1 and words such as 'nan', and the class names in order.

    Whole numbers are looked up in `classes`, or become names themselves, in numerical order; other names are
    sorted. keep_na: words such as 'nan' are class names. A value that `classes` does not know, or that is no name, is
    a DataError with its line.
    """
    cells = [normalise(value) for value in values]
    notes = []
    if not keep_na:
        known = () if classes is None else classes.names
        gone = Counter(cell for cell in cells if is_missing(cell, known))
        if gone:
            words = ", ".join(f"{count} {shown(word)!r}" for word, count in gone.most_common())
            notes.append(f"{path.name}, column {shown(column)!r}: {words} taken as no label; a class? use --keep-na")
            cells = ["" if cell in gone else cell for cell in cells]
    present = {cell for cell in cells if cell}
    numeric = all(WHOLE.fullmatch(cell) for cell in present)
    if classes is None and any(re.match(r"[+-]?0[0-9]", cell) for cell in present):
        numeric = False  # 007 is a name
    for cell, line in zip(cells, lines):
        if cell and numeric and not is_whole(cell):
            raise DataError(
                f"{path}, line {line}, column {shown(column)!r}: {shown(cell, 30)!r} is not a class number: it "
                f"has more than {MOST_DIGITS} digits",
                "name the column with the classes with --label",
            )
        if cell and not numeric:
            _checked(cell, f"{path}, line {line}, column {shown(column)!r}")
    if numeric:
        cells = [str(to_number(cell)) if cell else "" for cell in cells]
    unlabelled = {"", "-1"} if numeric else {""}
    if classes is None:
        found = {cell for cell in cells if cell not in unlabelled}
        order = sorted(found, key=int) if numeric else sorted(found)
        names = [None if cell in unlabelled else cell for cell in cells]
        remark = describe_several(Counter(filter(None, names)), f"{path.name}, column {shown(column)!r}")
        notes += [remark] if remark and not numeric else []
        return Labels(names, tuple(order), notes)
    meaning = {name: name for name in classes.names} | {str(k): name for k, name in classes.number.items()}
    for cell, line in zip(cells, lines):
        if cell not in unlabelled and cell not in meaning:
            knows = list_names([f"{k} ({name})" for k, name in sorted(classes.number.items())])
            raise DataError(
                f"{path}, line {line}: label {shown(cell)!r} is not in {classes.path.name}, which knows {knows}",
                f"correct the label, or add it to {classes.path}",
            )
    return Labels([None if cell in unlabelled else meaning[cell] for cell in cells], classes.names, notes)


def find_several(counts: Counter[str]) -> dict[str, list[str]]:
    """Labels that seem to hold several, with their parts: 'scab frog_eye' where 'scab' and 'frog_eye' are labels.

    A space, a slash or 'and' parts them where each part is a label of its own; a bar, comma, semicolon, plus or
    ampersand where one part is, or stands in another such label too.
    """
    parts = {name: [part for part in STRONG.split(name) if part] for name in counts}
    often = Counter(part for own in parts.values() if len(own) > 1 for part in set(own))
    found = {}
    for name, own in parts.items():
        if len(own) > 1 and any(part in counts or often[part] > 1 for part in own):
            found[name] = own
            continue
        own = [part for part in WEAK.split(name) if part]
        if len(own) > 1 and all(part in counts and part != name for part in own):
            found[name] = own
    return found


def describe_several(counts: Counter[str], where: str) -> str | None:
    """A remark on labels that seem to hold several classes, with counts and what to do; None where none does."""
    found = find_several(counts)
    if not found:
        return None
    ranked = sorted(found, key=lambda name: (-counts[name], name))
    total = sum(counts[name] for name in found)
    examples = [f"{shown(name)!r} ({counts[name]}): {' + '.join(map(shown, found[name]))}" for name in ranked[:SHOWN]]
    return (
        f"{where}: {len(found)} of {len(counts)} labels ({total} of {sum(counts.values())} photographs) seem to hold "
        f"several classes: {'; '.join(examples)}{'; ...' if len(found) > SHOWN else ''}. Each counts as a class of its "
        "own, as a photograph has one class here; keep the main one of each, or empty these cells"
    )
