"""Quarantine: the files that can't be read, why, and what to do; `quarantine.csv` of a run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from manihot.errors import DataError
from manihot.records.tables import read_written

COLUMNS = ("file", "fault", "detail", "remedy", "label", "split", "image_id")


def load_quarantine(path: Path) -> pd.DataFrame:
    """The table, all columns text, '' for what is not known; those of an older manihot lack some. Raises DataError."""
    if not Path(path).exists():
        raise DataError(f"{path}: not there, so unreadable files are not listed")
    return read_written(path).reset_index(drop=True).reindex(columns=list(COLUMNS), fill_value="")
