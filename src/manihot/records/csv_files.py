"""Tables as CSV files, and cells that a spreadsheet would run as formulas.

A cell that begins with = + - or @ is a formula to Excel, LibreOffice and Google Sheets, also where it is the name of a
photograph or a class (https://owasp.org/www-community/attacks/CSV_Injection). Tables are written as they are, so that
other programs find the names that they know. With MANIHOT_SAFE_CSV=1 such cells get an apostrophe in front, and the
tables that manihot wrote are read without it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pandas as pd

from manihot.errors import SettingsError
from manihot.records.files import write_atomic

ASKED = "MANIHOT_SAFE_CSV"
# Of several apostrophes one is ours, so that a name which begins with '= comes back as it was. Wide forms count too.
FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
MARKED = re.compile("'" + FORMULA.pattern)


def safe_csv() -> bool:
    """Whether the user asks for cells that no spreadsheet runs. Raises SettingsError."""
    text = os.environ.get(ASKED, "").strip()
    if text not in ("", "0", "1"):
        raise SettingsError(f"{ASKED}={text!r} is neither 0 nor 1", f"set it to 1, as in {ASKED}=1, or unset it")
    return text == "1"


def csv_text(table: pd.DataFrame) -> str:
    """A table without its index as CSV, lines ended by a newline; formulas marked where the user asks for it."""
    text: str = (_each_text(table, _mark) if safe_csv() else table).to_csv(index=False, lineterminator="\n")
    return text


def save_csv(table: pd.DataFrame, path: Path) -> None:
    """Write `csv_text` of a table, atomically. Raises RunFolderError."""
    write_atomic(path, csv_text(table))


def as_written(table: pd.DataFrame) -> pd.DataFrame:
    """A table that was read from a file of `save_csv`, its cells without the marks."""
    return _each_text(table, _unmark) if safe_csv() else table


def _mark(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) else cell


def _unmark(cell: Any) -> Any:
    return cell[1:] if isinstance(cell, str) and MARKED.match(cell) else cell


def _each_text(table: pd.DataFrame, change: Any) -> pd.DataFrame:
    """The table with `change` made to every text in it, names of columns among them; numbers keep their types."""
    made = table.copy()
    for name in table.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in table.dtypes]]:
        made[name] = table[name].map(change)
    made.columns = [change(name) for name in table.columns]
    return made
