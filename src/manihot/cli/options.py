"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from manihot.settings.options import TableOptions

Out = Annotated[Path, Parameter(name=["--out", "-o"], help="Where to write.")]
Photos = Annotated[list[Path], Parameter(help="Folder(s), a CSV or a manifest.parquet.")]
Columns = Annotated[TableOptions, Parameter(name="*")]
RecipeName = Annotated[
    str | None, Parameter(name=["--recipe", "-r"], help="A name (see `manihot recipes`) or a .yaml file.")
]
Sets = Annotated[
    list[str] | None,
    Parameter(name=["--set", "-s"], negative="", help="A setting, key=value, e.g. train.epochs=3; may be repeated."),
]
Update = Annotated[bool, Parameter(negative="", help="Redo in OUT what changed settings or photographs change.")]
Device = Annotated[str, Parameter(help="auto, cpu, cuda, mps.")]
Workers = Annotated[int, Parameter(help="Processes that read photographs; one reads less than 50 MB in total.")]


def one_or_many(photos: list[Path]) -> Any:
    """A single source as itself, several as a list."""
    return photos[0] if len(photos) == 1 else photos
