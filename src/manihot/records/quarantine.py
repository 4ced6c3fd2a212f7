"""Quarantine: the files that can't be read, why, and what to do; `quarantine.csv` of a run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from manihot.errors import DataError

COLUMNS = ("file", "fault", "detail", "remedy", "label", "split", "image_id")


def load_quarantine(path: Path) -> pd.DataFrame:
    """The table, all columns text, '' for what is not known; those of an older manihot lack some. Raises DataError."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: not there, so unreadable files are not listed") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as CSV ({error})") from error
    return table.reindex(columns=list(COLUMNS), fill_value="")
