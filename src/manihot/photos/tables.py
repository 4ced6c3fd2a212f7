"""Photographs listed in a table: CSV, parquet or JSON lines, with columns chosen by options or guessed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from manihot.errors import DataError
from manihot.photos.decode import SUFFIXES
from manihot.photos.image_paths import IN_BRACES, find_images, guess_image_column
from manihot.photos.labels import ClassNames, Labels, name_labels
from manihot.photos.listing import Entry, Listing
from manihot.records.columns import ALWAYS_TRAIN
from manihot.records.tables import NESTED, is_missing, is_whole, list_names, read_table, shown, to_number, unnamed

LABEL_NAMES = ("label", "class", "target", "labels", "class_name")
OPTIONAL = ("source", "group", "fold", "split", "id", "trusted")
TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0", "")
MOST_FOLDS = 10_000
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


@dataclass(frozen=True)
class Columns:
    """Which columns of a table say what.

    image: a column, or a pattern such as `leaf/{id}.jpg`. None is guessed: image and label by usual names;
    source, group, fold and split where a column has just that name; id and trusted never. '' is for none.
    keep_na: words such as 'nan' are labels. allow_missing: most of the photographs may be missing.
    """

    image: str | None = None
    label: str | None = None
    source: str | None = None
    group: str | None = None
    fold: str | None = None
    split: str | None = None
    id: str | None = None
    trusted: str | None = None
    keep_na: bool = False
    allow_missing: bool = False

    @property
    def named(self) -> dict[str, str]:
        """The options that name a column or a pattern, with what they name."""
        return {option: name for option, name in vars(self).items() if isinstance(name, str) and name}

    def known_to(self, path: Path) -> Columns:
        """Without the options whose columns the table at `path` lacks: one of several sources, of a fixed layout."""
        frame = read_table(path)
        parts = {option: IN_BRACES.findall(name) or [name] for option, name in self.named.items()}
        absent: dict[str, Any] = {o: None for o in parts if not set(parts[o]) <= set(frame.columns)}
        return replace(self, **absent)


def list_table(
    path: Path, folder: Path, columns: Columns, classes: ClassNames | None = None, split: str = "train"
) -> Listing:
    """The photographs of a table.

    folder: where the image paths start. split: of rows whose split column says nothing.
    Raises DataError naming file, line and column.
    """
    frame = read_table(path)
    image = _image_column(frame, path, columns.image)
    files, there = find_images(frame, path, folder, image, columns.allow_missing)
    used = set(IN_BRACES.findall(image)[-1:]) or {image}  # of {label}/{id}.jpg the label stays one
    chosen = {option: _choose(frame, path, option, columns) for option in OPTIONAL}
    label = label_column(frame, path, columns.label, used | {name for name in chosen.values() if name})
    listing = Listing(folder, f"the table {path.name}", kind="table")
    listing.used = set(columns.named)
    roles = {"image": image, "label": label, **chosen}
    said = ", ".join(f"{option} {shown(name)!r}" for option, name in roles.items() if name)
    listing.details.append(f"columns of {path.name}: {said}")
    found = Labels([None] * len(frame), ())
    if label is not None:
        found = name_labels(list(frame[label]), list(frame.index), path, classes, label, columns.keep_na)
        listing.classes = found.classes
        listing.ordered = classes is not None
        listing.numbers = {} if classes is None else classes.by_name
        listing.notes += found.notes
        if missing := sum(name is None for name in found.names):
            listing.notes.append(f"{path.name}: {missing} rows have no label; they are kept as unlabelled")
    if there < len(files):
        listing.left_out.append(f"{len(files) - there} of {len(files)} rows of {path.name}: no such file (quarantine)")
    cells = {option: _cells(frame, name) if name else None for option, name in chosen.items()}
    folds = [ALWAYS_TRAIN] * len(frame) if cells["fold"] is None else _to_folds(cells["fold"], path)
    splits = [split] * len(frame) if cells["split"] is None else _to_splits(cells["split"], path, split)
    trusted = [False] * len(frame) if cells["trusted"] is None else to_trusted(cells["trusted"], path)
    for k, line in enumerate(frame.index):
        group, source, image_id = (
            "" if (cell := cells[option]) is None else cell.iat[k] for option in ("group", "source", "id")
        )
        where = f"{path.name}, line {line}"
        listing.entries.append(
            Entry(files[k], found.names[k], splits[k], image_id, source, group, folds[k], where, trusted=trusted[k])
        )
    return listing


def _cells(frame: pd.DataFrame, name: str) -> pd.Series:
    """A column's cells, '' where they say in words that nothing is known."""
    return frame[name].map(lambda cell: "" if is_missing(cell) else cell)


def _choose(frame: pd.DataFrame, path: Path, option: str, columns: Columns) -> str | None:
    name = getattr(columns, option)
    if name is None:
        return option if option in frame and option not in ("id", "trusted") else None
    if name:
        check_column(frame, path, name, option)
    return name or None


def check_column(frame: pd.DataFrame, path: Path, name: str, option: str) -> None:
    """DataError where a table has no column `name` of text or numbers, which `--option` asks for."""
    if name in frame:
        return
    if name in frame.attrs.get(NESTED, {}):
        line, kind = frame.attrs[NESTED][name]
        raise DataError(
            f"{path}, line {line}, column {shown(name)!r}: {kind}, and one word or number was expected",
            f"write one value per row, or give another column with --{option}",
        )
    raise DataError(
        f"{path}: has no column {shown(name)!r} ({option}); its columns are {list_names(list(frame.columns))}",
        f"give the right column with --{option}",
    )


def _image_column(frame: pd.DataFrame, path: Path, image: str | None) -> str:
    """The column or pattern that names the files, its columns checked."""
    if image is None:
        image = guess_image_column(frame)
    if image is None:
        files = [name for name in frame.columns if Path(name).suffix.lower() in SUFFIXES]
        if files:
            raise DataError(
                f"{path}, line 1: column names were expected, found {shown(files[0])!r}",
                "add a first line such as image,label",
            )
        raise DataError(
            f"{path}: no column is obviously the image; the columns are {list_names(list(frame.columns))}",
            "name it with --image, or give a pattern such as --image 'photos/{id}.jpg'",
        )
    for name in IN_BRACES.findall(image) or [image]:
        check_column(frame, path, name, "image")
    return image


def label_column(frame: pd.DataFrame, path: Path, label: str | None, used: set[str]) -> str | None:
    """The column of classes: `label`, or by its usual names; None where the table holds file names alone. DataError."""
    if label == "":
        return None
    if label is not None:
        check_column(frame, path, label, "label")
        return label
    lower = {name.lower(): name for name in reversed([*frame.columns, *frame.attrs.get(NESTED, {})])}
    for name in LABEL_NAMES:
        if name in lower and lower[name] not in used:
            check_column(frame, path, lower[name], "label")
            found: str | None = lower[name]
            return found
    unnamed_ones = {unnamed(k) for k in range(1, len(frame.columns) + 1)}
    others = [name for name in frame.columns if name not in used | unnamed_ones]
    if not others:
        return None  # nothing but file names: photographs to predict
    flags = [name for name in others if frame[name].isin(("0", "1", "0.0", "1.0")).all()]
    if len(flags) > 1:
        raise DataError(
            f"{path}: the columns {list_names(flags)} hold 0 and 1 only, as with one column per class",
            "write one column `label` with the name of each photograph's class",
        )
    raise DataError(
        f"{path}: no column is obviously the label; the columns are {list_names(list(frame.columns))}",
        "name it with --label, or give --label '' for photographs without labels",
    )


def _to_folds(cells: pd.Series, path: Path) -> list[int]:
    for line, cell in cells.items():
        if cell and (not is_whole(cell) or not ALWAYS_TRAIN <= to_number(cell) < MOST_FOLDS):
            raise DataError(
                f"{path}, line {line}: fold {shown(cell, 30)!r} is not a whole number from -1 to {MOST_FOLDS - 1}",
                "0, 1, 2, ... as many as there are folds; -1 or empty is never held out",
            )
    return [to_number(cell) if cell else ALWAYS_TRAIN for cell in cells]


def to_trusted(cells: pd.Series, path: Path) -> list[bool]:
    """Whether each label is known to be right; empty is no. DataError with its line for any other word.

    cells: text, by the line in the file.
    """
    for line, cell in cells.items():
        if cell.lower() not in (*TRUE, *FALSE):
            raise DataError(
                f"{path}, line {line}: {shown(cell)!r} doesn't say whether the label is known to be right",
                "true or false",
            )
    return [cell.lower() in TRUE for cell in cells]


def _to_splits(cells: pd.Series, path: Path, default: str) -> list[str]:
    for line, cell in cells.items():
        if cell and cell.lower() not in SPLITS:
            raise DataError(f"{path}, line {line}: split {shown(cell)!r} is unknown", "train, val or test")
    return [SPLITS[cell.lower()] if cell else default for cell in cells]
