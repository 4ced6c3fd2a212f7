"""Photographs listed in a table: CSV, parquet or JSON lines, with columns chosen by options or guessed."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pyarrow as pa

from manihot.errors import DataError
from manihot.photos.listing import Entry, Listing, normalise
from manihot.records.manifest import ALWAYS_TRAIN

TABLE_SUFFIXES = {".csv", ".tsv", ".parquet", ".jsonl"}
IMAGE_NAMES = ("image", "image_id", "file_name", "filename", "image_path", "path", "file")
LABEL_NAMES = ("label", "class", "target", "labels", "class_name")
OPTIONAL = ("source", "group", "fold", "split", "id", "trusted")
TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0", "")
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
IN_BRACES = re.compile(r"\{([^{}]+)\}")
WHOLE = re.compile(r"[+-]?\d+(\.0*)?")


@dataclass(frozen=True)
class Columns:
    """Which columns of a table say what.

    image: a column, or a pattern such as `leaf/{id}.jpg`. None is guessed: image and label by usual names;
    source, group, fold and split where a column has just that name; id and trusted never. '' is for none.
    """

    image: str | None = None
    label: str | None = None
    source: str | None = None
    group: str | None = None
    fold: str | None = None
    split: str | None = None
    id: str | None = None
    trusted: str | None = None

    def known_to(self, path: Path) -> Columns:
        """Without the options whose columns the table at `path` lacks: one of several sources, of a fixed layout."""
        frame = read_table(path)
        given = {option: name for option, name in vars(self).items() if name}
        parts = {option: IN_BRACES.findall(name) or [name] for option, name in given.items()}
        return replace(self, **{option: None for option in given if not set(parts[option]) <= set(frame.columns)})


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


def load_classes(path: Path) -> ClassNames:
    """Read class names: JSON `{"0": "name"}`, `{"name": 0}` or a list, or text with one name a line."""
    remedy = 'a JSON file like {"0": "healthy", "1": "rust"}, or a text file with one class name a line'
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        value = json.loads(text) if Path(path).suffix.lower() == ".json" else text.split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: class names can't be read from it ({error})", remedy) from error
    if isinstance(value, list):
        value = dict(enumerate(str(name) for name in value if str(name).strip()))
    if isinstance(value, dict) and value and all(WHOLE.fullmatch(str(key)) for key in value):
        number = {int(float(key)): normalise(str(name)) for key, name in value.items()}
    elif isinstance(value, dict) and value and all(WHOLE.fullmatch(str(number)) for number in value.values()):
        number = {int(float(k)): normalise(str(name)) for name, k in value.items()}
    else:
        raise DataError(f"{path}: holds no class names", remedy)
    names = tuple(number[key] for key in sorted(number))
    if len(set(names)) < len(names) or len(number) < len(value):
        raise DataError(f"{path}: a class name or number stands in it twice", "give each class one number")
    return ClassNames(names, number, Path(path))


def read_table(path: Path) -> pd.DataFrame:
    """A table as strings, '' for empty cells; the index is the line in the file. Raises DataError."""
    try:
        if path.suffix.lower() == ".parquet":
            frame = pd.read_parquet(path)
            pictures = [name for name in frame if frame[name].map(type).isin((dict, bytes)).any()]
            frame = frame.drop(columns=pictures)
            whole = {name: frame[name].astype("Int64") for name in frame if _all_whole(frame[name])}
            frame = frame.assign(**whole).astype(object).where(frame.notna(), "").astype(str)
            frame.index = pd.RangeIndex(1, len(frame) + 1)
        elif path.suffix.lower() == ".jsonl":
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            rows = {k: _json_row(path, k, line) for k, line in enumerate(lines, 1) if line.strip()}
            frame = pd.DataFrame.from_dict(rows, orient="index", dtype=object)
            frame = frame.where(frame.notna(), "").astype(str)
        else:
            with open(path, encoding="utf-8-sig") as handle:
                head = handle.readline()
            separator = max(",;\t", key=head.count)
            _check_header(path, head, separator)
            frame = pd.read_csv(
                path,
                dtype=str,
                keep_default_na=False,
                skip_blank_lines=False,  # so that the index tells the line
                sep=separator,
                encoding="utf-8-sig",
                index_col=False,
            ).fillna("")
            frame.index = pd.RangeIndex(2, len(frame) + 2)
            frame = frame[(frame != "").any(axis=1)]
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file", "check the path of the table") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not written in UTF-8 ({error})", "save the table as UTF-8") from error
    except (OSError, ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: not readable as a table ({error})", "a CSV, parquet or JSON lines file"
        ) from error
    frame.columns = [str(name).strip() for name in frame.columns]
    if not len(frame):
        raise DataError(f"{path}: the table has no rows", "check the file")
    return frame


def _json_row(path: Path, line: int, text: str) -> dict[str, object]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {line}: not JSON ({error.msg}, at character {error.colno})", "one {...} a line"
        ) from error
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {line}: not a JSON object", 'one a line, like {"file_name": "a.jpg"}')
    return row


def _check_header(path: Path, head: str, separator: str) -> None:
    """DataError where two columns have one name: the second would be passed over in silence."""
    names = Counter(name.strip() for name in next(csv.reader([head], delimiter=separator), ()))
    twice = [name for name, count in names.items() if name and count > 1]
    if twice:
        raise DataError(f"{path}, line 1: {names[twice[0]]} columns are called {twice[0]!r}", "rename or remove one")


def _all_whole(column: pd.Series) -> bool:
    """Whether a float column holds whole numbers only, as pandas makes of integers with gaps."""
    return column.dtype.kind == "f" and bool((column.dropna() % 1 == 0).all())


def list_table(
    path: Path,
    folder: Path,
    columns: Columns,
    classes: ClassNames | None = None,
    split: str = "train",
) -> Listing:
    """The photographs of a table.

    folder: where the image paths start. split: of rows whose split column says nothing.
    Raises DataError naming file, line and column.
    """
    frame = read_table(path)
    files, used = _image_paths(frame, path, folder, columns.image)
    chosen = {option: _choose(frame, path, option, columns) for option in OPTIONAL}
    label = _label_column(frame, path, columns.label, used | {name for name in chosen.values() if name})
    listing = Listing(folder, f"the table {path.name}")
    listing.used = {option for option, name in vars(columns).items() if name}
    roles = {"image": " and ".join(sorted(used)), "label": label, **chosen}
    said = ", ".join(f"{option} {name!r}" for option, name in roles.items() if name)
    listing.details.append(f"columns of {path.name}: {said}")
    names: Sequence[str | None] = [None] * len(frame)
    if label is not None:
        names, listing.classes = name_labels(list(frame[label]), list(frame.index), path, classes)
        listing.ordered = classes is not None
        listing.numbers = {} if classes is None else classes.by_name
        if missing := sum(name is None for name in names):
            listing.notes.append(f"{path.name}: {missing} rows have no label; they are kept as unlabelled")
    cells = {option: frame[name].str.strip() if name else None for option, name in chosen.items()}
    folds = [ALWAYS_TRAIN] * len(frame) if cells["fold"] is None else _to_folds(cells["fold"], path)
    splits = [split] * len(frame) if cells["split"] is None else _to_splits(cells["split"], path, split)
    trusted = [False] * len(frame) if cells["trusted"] is None else to_trusted(cells["trusted"], path)
    for k, line in enumerate(frame.index):
        group, source, image_id = (
            "" if (cell := cells[option]) is None else cell.iat[k] for option in ("group", "source", "id")
        )
        where = f"{path.name}, line {line}"
        listing.entries.append(
            Entry(files[k], names[k], splits[k], image_id, source, group, folds[k], where, trusted=trusted[k])
        )
    return listing


def _choose(frame: pd.DataFrame, path: Path, option: str, columns: Columns) -> str | None:
    name = getattr(columns, option)
    if name is None:
        return option if option in frame and option not in ("id", "trusted") else None
    if name:
        _check_column(frame, path, name, option)
    return name or None


def _check_column(frame: pd.DataFrame, path: Path, name: str, option: str) -> None:
    if name not in frame:
        found = ", ".join(map(str, frame.columns))
        raise DataError(
            f"{path}: has no column {name!r} ({option}); its columns are {found}",
            f"give the right column with --{option}",
        )


def _image_paths(
    frame: pd.DataFrame, path: Path, folder: Path, image: str | None
) -> tuple[list[Path], set[str]]:
    """Absolute paths, and the columns they were made from."""
    if image is None:
        lower = {name.lower(): name for name in reversed(list(frame.columns))}
        image = next((lower[name] for name in IMAGE_NAMES if name in lower), None)
        if image is None:
            raise DataError(
                f"{path}: no column is obviously the image; the columns are {', '.join(frame.columns)}",
                "name it with --image, or give a pattern such as --image 'photos/{id}.jpg'",
            )
    used = set(re.findall(r"\{([^{}]+)\}", image)) or {image}
    for name in used:
        _check_column(frame, path, name, "image")
    if image in used and "{" not in image:
        values = frame[image].str.strip()
    else:
        parts = re.split(r"\{([^{}]+)\}", image)  # literal, column, literal, column, ..., literal
        values = pd.Series(parts[0], index=frame.index)
        for name, literal in zip(parts[1::2], parts[2::2]):
            values = values + frame[name].str.strip() + literal
    empty = frame.index[(frame[sorted(used)].apply(lambda c: c.str.strip()) == "").any(axis=1)]
    if len(empty):
        raise DataError(
            f"{path}, line {empty[0]}: column {', '.join(sorted(used))} is empty",
            "give the photograph's file",
        )
    files = [folder / value.replace("\\", "/") for value in values]
    if not any(map(os.path.exists, files)):
        raise DataError(
            f"{path}: none of the {len(files)} photographs exists, the first would be {files[0]}",
            _hint(folder, image, values.iloc[0]),
        )
    return files, used


def _hint(folder: Path, image: str, value: str) -> str:
    """What to write so that the first photograph is found."""
    below = [folder, *(path for path in sorted(folder.iterdir()) if path.is_dir())] if folder.is_dir() else []
    pattern = image if "{" in image else "{" + image + "}"
    for place in below:
        for suffix in ("", ".jpg", ".JPG", ".jpeg", ".png"):
            if (place / (value + suffix)).is_file():
                start = "" if place == folder else place.name + "/"
                return f"it lies elsewhere: use --image '{start}{pattern}{suffix}'"
    return (
        "paths start at the table's folder, or at the folder given as PHOTOS with --csv; "
        "a pattern helps, such as --image 'folder/{id}.jpg'"
    )


def _label_column(frame: pd.DataFrame, path: Path, label: str | None, used: set[str]) -> str | None:
    if label == "":
        return None
    if label is not None:
        _check_column(frame, path, label, "label")
        return label
    lower = {name.lower(): name for name in reversed(list(frame.columns))}
    for name in LABEL_NAMES:
        if name in lower and lower[name] not in used:
            return lower[name]
    others = [name for name in frame.columns if name not in used]
    if not others:
        return None  # nothing but file names: photographs to predict
    raise DataError(
        f"{path}: no column is obviously the label; the columns are {', '.join(frame.columns)}",
        "name it with --label, or give --label '' for photographs without labels",
    )


def name_labels(
    values: Sequence[str], lines: Sequence[int], path: Path, classes: ClassNames | None
) -> tuple[list[str | None], tuple[str, ...]]:
    """Class name of each value, None for empty ones and -1, and the class names in order.

    Whole numbers are looked up in `classes`, or become names themselves, in numerical order; other names are
    sorted. A value that `classes` does not know is a DataError with its line.
    """
    cells = [normalise(value) for value in values]
    present = {cell for cell in cells if cell}
    numeric = all(WHOLE.fullmatch(cell) for cell in present)
    if classes is None and any(re.match(r"[+-]?0\d", cell) for cell in present):
        numeric = False  # 007 is a name
    if numeric:
        cells = [str(int(float(cell))) if cell else "" for cell in cells]
    unlabelled = {"", "-1"} if numeric else {""}
    if classes is None:
        known = {cell for cell in cells if cell not in unlabelled}
        order = sorted(known, key=int) if numeric else sorted(known)
        return [None if cell in unlabelled else cell for cell in cells], tuple(order)
    meaning = {name: name for name in classes.names} | {str(k): name for k, name in classes.number.items()}
    for cell, line in zip(cells, lines):
        if cell not in unlabelled and cell not in meaning:
            raise DataError(
                f"{path}, line {line}: label {cell!r} is not in {classes.path.name}, which knows "
                f"{', '.join(f'{k} ({name})' for k, name in sorted(classes.number.items()))}",
                f"correct the label, or add it to {classes.path}",
            )
    return [None if cell in unlabelled else meaning[cell] for cell in cells], classes.names


def _to_folds(cells: pd.Series, path: Path) -> list[int]:
    for line, cell in cells.items():
        if cell and (not WHOLE.fullmatch(cell) or float(cell) < ALWAYS_TRAIN):
            raise DataError(
                f"{path}, line {line}: fold {cell!r} is not a whole number from -1 up", "0, 1, 2, ..."
            )
    return [int(float(cell)) if cell else ALWAYS_TRAIN for cell in cells]


def to_trusted(cells: pd.Series, path: Path) -> list[bool]:
    """Whether each label is known to be right; empty is no. DataError with its line for any other word.

    cells: text, by the line in the file.
    """
    for line, cell in cells.items():
        if cell.lower() not in (*TRUE, *FALSE):
            raise DataError(
                f"{path}, line {line}: {cell!r} doesn't say whether the label is known to be right", "true or false"
            )
    return [cell.lower() in TRUE for cell in cells]


def _to_splits(cells: pd.Series, path: Path, default: str) -> list[str]:
    for line, cell in cells.items():
        if cell and cell.lower() not in SPLITS:
            raise DataError(f"{path}, line {line}: split {cell!r} is unknown", "train, val or test")
    return [SPLITS[cell.lower()] if cell else default for cell in cells]
