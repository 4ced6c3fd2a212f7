"""Photographs as a verb gets them: a manifest as it is, everything else by a scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from manihot.errors import DataError
from manihot.photos.scan import scan
from manihot.records.manifest import Manifest
from manihot.records.quarantine import COLUMNS as QUARANTINE
from manihot.settings.options import EVERYTHING_GUESSED, TableOptions


def read_photos(
    photos: Path | Sequence[Path],
    columns: TableOptions = EVERYTHING_GUESSED,
    *,
    out: Path | None = None,
    workers: int = 2,
    few: int = 0,
    extract: Path | None = None,
    tables: bool = True,
    aliases: Mapping[str, str] | None = None,
) -> tuple[Manifest, pd.DataFrame]:
    """The manifest of photographs and the quarantine of files that can't be read; arguments as for `scan`.

    One manifest.parquet is taken as it is, and nothing is in its quarantine. Raises DataError.
    """
    if not isinstance(photos, str | Path) or not Manifest.is_file(Path(photos)):
        return scan(
            photos, out=out, columns=columns, workers=workers, few=few, extract=extract, tables=tables, aliases=aliases
        )
    manifest = Manifest.load(Path(photos))
    check_manifest_options(Path(photos), manifest, columns)
    return manifest, pd.DataFrame(columns=list(QUARANTINE))


def check_manifest_options(path: Path, manifest: Manifest, columns: TableOptions) -> None:
    """DataError where options are given that a manifest, taken as it is, can't follow, or lacks the trusted column."""
    idle = replace(columns, trusted=None, group=None if columns.bursts else columns.group).named()
    if idle:
        raise DataError(
            f"{idle}: {path} is a manifest, which says itself what its columns are",
            "leave the option out, or scan the photographs again with it",
        )
    names = list(manifest.table.columns)
    if columns.trusted and columns.trusted not in names:
        raise DataError(
            f"{path}: has no column {columns.trusted!r}", f"columns: {', '.join(names)}; or scan with --trusted"
        )
