"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

Out = Annotated[Path, Parameter(name=["--out", "-o"], help="Where to write.")]
Photos = Annotated[list[Path], Parameter(help="Folder(s), a CSV or a manifest.parquet.")]
Table = Annotated[Path | None, Parameter(help="A table of photographs whose paths start at PHOTOS.")]
ImageColumn = Annotated[str | None, Parameter(help="Column with the file, or a pattern such as leaf/{id}.jpg.")]
LabelColumn = Annotated[str | None, Parameter(help="Column with the class.")]
SourceColumn = Annotated[str | None, Parameter(help="Column that says where a photograph comes from.")]
GroupColumn = Annotated[
    str | None,
    Parameter(help="Column of what must stay together in a fold (a plant, a leaf), or of file names: '{group}_*'."),
]
FoldColumn = Annotated[str | None, Parameter(help="Column with your own folds, 0 to K-1.")]
SplitColumn = Annotated[str | None, Parameter(help="Column with train, val or test.")]
IdColumn = Annotated[str | None, Parameter(help="Column with an id of its own for each photograph.")]
TrustedColumn = Annotated[
    str | None, Parameter(help="Column that says true where a label is known to be right; the manifest keeps it.")
]
ClassMap = Annotated[Path | None, Parameter(help="JSON file that maps label numbers to class names.")]
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
