"""Predictions in tables that others wrote: columns of probabilities by number or by name, and labels by either.

Columns c0 to cK-1 are numbered: a label there is a class number, or a class name. Columns named as the classes are
named: a label is the name of a column, and a number from 0 only where no column is named by a number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from manihot.errors import DataError
from manihot.progress import say
from manihot.records.csv_files import as_written
from manihot.records.probabilities import check_probs
from manihot.records.tables import is_missing, is_whole, list_names, read_table, shown, to_number

NOT_A_CLASS = ("image_id", "label", "unknown")
FORM = "one column of probabilities per class, named c0 to cK-1 or all named as the classes"


@dataclass(frozen=True)
class PredictionTable:
    """image_id: object (N,). probs: float64 (N, K). labels: int64 (N,), -1 where none is known, or None where there is
    no such column. unknown: float32 (N,) or None.
    """

    image_id: np.ndarray
    probs: np.ndarray
    classes: tuple[str, ...]
    labels: np.ndarray | None
    unknown: np.ndarray | None


def read_predictions(path: Path, classes: tuple[str, ...] | None = None) -> PredictionTable:
    """Read a CSV with the column image_id, one of probabilities per class, and perhaps `label` and `unknown`.

    classes: names of the numbered columns, or the order of the named ones. Raises DataError with the line, the column
    and what was found there.
    """
    frame = as_written(read_table(path))
    numbered = _numbered_columns(frame, classes, path)
    columns = numbered or _named_columns(frame, classes, path)
    if "image_id" not in frame or not columns:
        raise DataError(
            f"{path}: expected columns image_id, c0, c1, ... (and label), found {list_names(list(frame))}", FORM
        )
    nameless = frame.index[frame["image_id"] == ""]
    if len(nameless):
        raise DataError(f"{path}: line {nameless[0]} has no image_id", "name the photograph of each row")
    names = tuple(columns) if classes is None else classes
    labels = None
    if "label" in frame:
        labels = _read_labels(frame["label"], names, bool(numbered), path)
    return PredictionTable(
        frame["image_id"].to_numpy(dtype=object),
        _read_probs(frame, columns, bool(numbered), path),
        names,
        labels,
        _read_unknown(frame, path),
    )


def _numbered_columns(frame: pd.DataFrame, classes: tuple[str, ...] | None, path: Path) -> list[str]:
    """The columns c0 to cK-1 in order; [] where there are none, or some are missing."""
    found = sorted((int(m[1]), name) for name in frame.columns if (m := re.fullmatch(r"c([0-9]{1,6})", name)))
    if [k for k, _ in found] != list(range(len(found))):
        return []
    if found and classes is not None and len(classes) != len(found):
        raise DataError(
            f"{path}: {len(found)} columns c0 to c{len(found) - 1} for {len(classes)} classes: {list_names(classes)}",
            FORM,
        )
    return [name for _, name in found]


def _named_columns(frame: pd.DataFrame, classes: tuple[str, ...] | None, path: Path) -> list[str]:
    """Columns named as classes, in the order of `classes` or of the file; [] where nothing says so."""
    others = [name for name in frame.columns if name not in NOT_A_CLASS]
    if classes is not None and set(others) != set(classes):
        raise DataError(f"{path}: columns {list_names(others)} are not the classes {list_names(classes)}", FORM)
    if classes is None and ("label" not in frame or len(others) < 2):
        return []
    return list(classes or others)


def _read_probs(frame: pd.DataFrame, columns: list[str], numbered: bool, path: Path) -> np.ndarray:
    """Probabilities float64 (N, K), rows scaled to sum to exactly 1."""
    what = str(path) if numbered else f"{path}: columns taken as classes: {list_names(columns)}"
    remedy = "write a probability into each cell" if numbered else "drop the column that is not a class"
    probs = np.empty((len(frame), len(columns)))
    for k, name in enumerate(columns):
        probs[:, k] = _read_numbers(frame[name], what, remedy)
    try:
        check_probs(probs, what=what, classes=columns, row=lambda row: f"line {frame.index[row]}")
    except DataError as error:
        raise DataError(error.what, error.remedy if numbered else f"{remedy}, or: {error.remedy}") from error
    found: np.ndarray = probs / probs.sum(axis=1, keepdims=True)
    return found


def _read_numbers(cells: pd.Series, what: str, remedy: str) -> np.ndarray:
    """A column of text as float64 (N,); DataError with the line of the first cell that is not a number."""
    numbers = np.empty(len(cells))
    for row, (line, cell) in enumerate(cells.items()):
        try:
            numbers[row] = float(cell)
        except ValueError as error:
            found = f"{shown(cell)!r} is not a number" if cell else "the cell is empty"
            raise DataError(f"{what}: line {line}, column {shown(str(cells.name))!r}: {found}", remedy) from error
    return numbers


def _read_unknown(frame: pd.DataFrame, path: Path) -> np.ndarray | None:
    if "unknown" not in frame:
        return None
    unknown = _read_numbers(frame["unknown"], str(path), "a probability in each row, or drop the column")
    wrong = np.flatnonzero(~((unknown >= 0) & (unknown <= 1)))
    if len(wrong):
        line = frame.index[wrong[0]]
        found = shown(frame["unknown"].iloc[wrong[0]])
        raise DataError(f"{path}: line {line}, column 'unknown': {found} is not a probability", "correct it")
    return unknown.astype(np.float32)


def _read_labels(cells: pd.Series, classes: Sequence[str], numbered: bool, path: Path) -> np.ndarray:
    """Class numbers int64 (N,), -1 for empty cells, -1, and words such as 'nan' that are no class."""
    by_name = {str(to_number(name)): k for k, name in enumerate(classes) if is_whole(name)}
    by_name |= {name: k for k, name in enumerate(classes)}
    named_by_numbers = any(map(is_whole, classes))
    ending = {} if numbered or named_by_numbers else _numbers_at_the_end(classes)
    codes, found = pd.factorize(cells)
    meaning, missing = np.empty(len(found), dtype=np.int64), 0
    names: list[int] = []
    numbers: list[int] = []  # the two readings of each label that is one
    for at, cell in enumerate(found):
        whole = str(to_number(cell)) if is_whole(cell) else ""
        name = by_name.get(cell, by_name.get(whole, -1))
        number = int(whole) if whole and 0 <= int(whole) < len(classes) else -1
        if cell == "" or (whole == "-1" and (numbered or name < 0)) or is_missing(cell, classes):
            meaning[at] = -1
            missing += int((codes == at).sum()) if cell not in ("", "-1") and not whole else 0
            continue
        meaning[at] = number if numbered and whole else name
        if meaning[at] < 0 and whole and not numbered and not named_by_numbers:
            meaning[at] = number
            if ending.get(int(whole), number) != number:
                other = classes[ending[int(whole)]]
                seen = f"counted from 0 it is {classes[number]!r}" if number >= 0 else "counted from 0 it is none"
                raise DataError(
                    f"{path}: label {cell!r} in line {cells.index[codes == at][0]} can be read in two ways: by the "
                    f"columns' names it is {other!r}, {seen}",
                    "write labels as the names of the columns",
                )
        if meaning[at] < 0:
            raise DataError(*_explain_label(path, cells.index[codes == at][0], cell, whole, classes, numbered))
        names, numbers = [*names, name], [*numbers, number]
    if numbered and names != numbers and min(names + numbers) >= 0:
        at = next(k for k in range(len(names)) if names[k] != numbers[k])
        label = classes[names[at]]
        raise DataError(
            f"{path}: labels can be read in two ways: {label!r} is the name of class {names[at]}, and counted from 0 "
            f"{classes[numbers[at]]!r}",
            "name the columns as the classes, so that labels are their names; or give predictions as parquet",
        )
    if missing:
        say(f"{path}: {missing} labels say in words that none is known ('nan' and the like); taken as no label")
    result: np.ndarray = meaning[codes]
    return result


def _numbers_at_the_end(classes: Sequence[str]) -> dict[int, int]:
    """From the number that each name ends in to its place, where names differ in that number only; else nothing."""
    parts = [re.fullmatch(r"(.*?)([0-9]{1,6})", name) for name in classes]
    if None in parts or len({part[1] for part in parts if part}) > 1:
        return {}
    return {int(part[2]): k for k, part in enumerate(parts) if part}


def _explain_label(
    path: Path, line: int, cell: str, whole: str, classes: Sequence[str], numbered: bool
) -> tuple[str, str]:
    """What is wrong with a label that is no class, and what to do."""
    what, k = f"{path}: label {shown(cell)!r} in line {line}", len(classes)
    listed = list_names([f"{at} {name}" for at, name in enumerate(classes)])
    if not whole:
        return f"{what} is not a class number or name", f"numbers from 0, or one of: {list_names(classes)}; -1 for none"
    if numbered and cell in classes:
        return (
            f"{what} was read as a class number counted from 0, and there are {k} classes; as a name it is class "
            f"{list(classes).index(cell)}",
            "number labels from 0, or name the columns as the classes",
        )
    if not numbered and any(map(is_whole, classes)):
        other = f"; counted from 0 it is {classes[int(whole)]!r}" if 0 <= int(whole) < k else ""
        return (
            f"{what} is none of the columns {list_names(classes)}{other}",
            "labels are names of columns where columns are named by numbers; -1 for none",
        )
    return f"{what} was read as a class number counted from 0, but there are {k} classes: {listed}", (
        "numbers from 0, or names; -1 where no label is known"
    )
