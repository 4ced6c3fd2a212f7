"""Decisions on disk: read with every line checked, as people edit them by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from manihot.audit.decisions import ACTIONS, COLUMNS, SOFT, check_decisions, soft_columns
from manihot.errors import DataError
from manihot.records.manifest import Manifest
from manihot.records.parquet_files import read_frame
from manihot.records.readers import reading
from manihot.records.tables import read_written


def read_decisions(path: Path, manifest: Manifest | None = None) -> pd.DataFrame:
    """Read a decisions file (CSV or parquet), checked line by line; see the module.

    Needs the columns image_id and action; new_label where a row relabels, weight where one down-weights, soft_<class>
    where one has a soft label. With a manifest, its classes and photographs are checked too. Raises DataError that
    names file, line, column and remedy. Empty given labels are taken from the manifest, empty reasons name the file;
    other columns stay as they are.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: there is no decisions file here", "check the path")
    what, remedy = "readable as a table", "CSV with columns image_id, action"
    if path.suffix.lower() == ".parquet":
        table = read_frame(path, what, remedy=remedy)
        with reading(path, what, remedy, DataError):
            table = table.astype(object).map(lambda cell: "" if np.ndim(cell) == 0 and pd.isna(cell) else str(cell))
    else:
        table = read_written(path)
    lines = [int(line) for line in table.index] if path.suffix.lower() != ".parquet" else [*range(1, len(table) + 1)]
    table = table.reset_index(drop=True)
    table.columns = [str(name).strip() for name in table.columns]
    missing = [name for name in ("image_id", "action") if name not in table]
    if missing:
        raise DataError(
            f"{path}: line 1 has no column {' and no column '.join(missing)}",
            f"columns {', '.join(COLUMNS)}; image_id and action are needed",
        )
    for name in COLUMNS:
        if name not in table:
            table[name] = ""
    soft = soft_columns(table)
    own = [name for name in table if name not in COLUMNS and name not in soft]  # a remark, say
    table = table[[*COLUMNS, *soft, *own]]
    table.attrs["lines"] = lines
    table["action"] = table["action"].str.strip()
    _check_cells(table, path)
    table["weight"] = _numbers(table, "weight", path, empty=1.0)
    _check_rows(
        table, "weight", (table["weight"] < 0) | (table["weight"] > 1), path, "is not between 0 and 1", "0 to 1"
    )
    for name in soft:
        table[name] = _numbers(table, name, path, empty=0.0)
    if soft:
        _check_soft(table, soft, path)
    if manifest is not None:
        known = table["image_id"].isin(manifest.image_id)
        _check_rows(table, "image_id", ~known, path, "is not in the manifest", "take the ids from the manifest")
        wrong = (table["action"] == "relabel") & ~table["new_label"].isin(manifest.classes)
        _check_rows(table, "new_label", wrong, path, "is not a class", f"one of {', '.join(manifest.classes)}")
        check_decisions(table, manifest, str(path))
        _fill(table, manifest, path)
    return table


def _fill(table: pd.DataFrame, manifest: Manifest, path: Path) -> None:
    """Given label and reason where the file leaves them empty, as in one that was written by hand."""
    names = np.array([*manifest.classes, ""], dtype=object)  # the last serves -1
    given = pd.Series(names[manifest.labels], index=manifest.image_id)[table["image_id"]].to_numpy()
    table["given_label"] = table["given_label"].where(table["given_label"].str.strip() != "", given)
    hand = f"decided by hand in {path.name}"
    table["reason"] = table["reason"].where(table["reason"].str.strip() != "", hand)


def _check_cells(table: pd.DataFrame, path: Path) -> None:
    _check_rows(table, "image_id", table["image_id"] == "", path, "is empty", "name the photograph of each row")
    _check_rows(
        table, "image_id", table["image_id"].duplicated(), path, "is decided already", "leave one row per photograph"
    )
    unknown = ~table["action"].isin(ACTIONS)
    _check_rows(table, "action", unknown, path, "is no action", f"one of {', '.join(ACTIONS)}")
    bare = (table["action"] == "relabel") & (table["new_label"] == "")
    _check_rows(table, "new_label", bare, path, "is empty, but the action is relabel", "name the new class")
    bare = (table["action"] == "down_weight") & (table["weight"] == "")
    _check_rows(table, "weight", bare, path, "is empty, but the action is down_weight", "a number from 0 to 1")
    bare = (table["action"] == "soft") & (not soft_columns(table))
    _check_rows(table, "action", bare, path, f"needs columns {SOFT}<class>", "add one column per class, or relabel")


def _check_soft(table: pd.DataFrame, soft: list[str], path: Path) -> None:
    values = table[soft].to_numpy(dtype=np.float64)
    off = (values < 0).any(axis=1) | (abs(values.sum(axis=1) - 1) > 0.01)
    wrong = (table["action"] == "soft") & pd.Series(off, index=table.index)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"{path}: line {line_of(table, row)}, columns {', '.join(soft)}: "
            f"{values[row].tolist()} is not a distribution",
            "no number below 0, and a sum of 1",
        )


def _numbers(table: pd.DataFrame, name: str, path: Path, empty: float) -> pd.Series:
    cells = table[name].str.strip()
    numbers = pd.to_numeric(cells.where(cells != "", str(empty)), errors="coerce")
    finite = pd.Series(np.isfinite(numbers.to_numpy(dtype=np.float64)), index=table.index)
    _check_rows(table, name, ~finite, path, "is not a number", "a number, with a decimal point")
    return numbers.astype(np.float64)


def line_of(table: pd.DataFrame, row: int) -> int:
    """The line in its file of a row of `read_decisions`; of a parquet file, the row counted from 1."""
    lines: list[int] = table.attrs["lines"]
    return lines[row]


def _check_rows(table: pd.DataFrame, name: str, wrong: pd.Series, path: Path, what: str, remedy: str) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(f"{path}: line {line_of(table, row)}, column {name}: {table[name].iloc[row]!r} {what}", remedy)
