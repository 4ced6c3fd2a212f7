"""Manifest: one row per photograph. Where the photographs are, what is said of them, and what was decided.

Saved as parquet; the class names, in order, and the folder that relative paths start from are in the file's
metadata. Functions that clean, relabel or add photographs take a Manifest and give a new one: the photographs
and labels a user brought are never changed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from manihot.errors import DataError
from manihot.records.columns import COLUMNS, UNLABELLED
from manihot.records.files import atomic_path
from manihot.records.parquet_files import metadata_record, read_parquet
from manihot.records.readers import ClassNames, reading
from manihot.records.run_places import RunPlaces


class About(ClassNames):
    """What is stored in a manifest's metadata."""

    root: str


@dataclass(frozen=True)
class Manifest:
    """A table of photographs with the columns of COLUMNS (and any more), class names, and a root folder.

    soft_labels: optional float32 (N, K), rows sum to 1; where a row is NaN the hard label holds. numbers: what stands
    for each class in the user's tables and in submissions; None where that is its name.
    """

    table: pd.DataFrame
    classes: tuple[str, ...]
    root: Path
    soft_labels: np.ndarray | None = field(default=None, repr=False)
    numbers: tuple[int, ...] | None = None

    @classmethod
    def from_table(
        cls, table: pd.DataFrame, classes: tuple[str, ...], root: Path, numbers: tuple[int, ...] | None = None
    ) -> Manifest:
        """Fill absent columns with their defaults, set dtypes, and check ids and labels (DataError)."""
        table = table.reset_index(drop=True).copy()
        for name, (dtype, default) in COLUMNS.items():
            if name not in table:
                table[name] = default
            try:
                table[name] = table[name].astype(str if dtype == "object" else dtype)
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"column {name!r} of the manifest holds something other than numbers ({error})",
                    f"correct the column, or leave it out: {default} is taken then",
                ) from error
            if dtype == "object":
                table[name] = table[name].astype(object)
        repeated = table["image_id"][table["image_id"].duplicated()]
        if len(repeated):
            raise DataError(
                f"{len(repeated)} image ids appear more than once in the manifest, first {repeated.iloc[0]!r}",
                "give each photograph its own id",
            )
        out_of_range = table[(table["label"] < UNLABELLED) | (table["label"] >= len(classes))]
        if len(out_of_range):
            row = out_of_range.iloc[0]
            raise DataError(
                f"photograph {row['image_id']!r} has label {row['label']}, but there are {len(classes)} classes",
                "check the label column and the class names",
            )
        extra = [name for name in table.columns if name not in COLUMNS]
        return cls(table[[*COLUMNS, *extra]], tuple(map(str, classes)), Path(root), numbers=numbers)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def image_id(self) -> np.ndarray:
        """Ids, object (N,)."""
        found: np.ndarray = self.table["image_id"].to_numpy()
        return found

    @property
    def labels(self) -> np.ndarray:
        """Class indices, int64 (N,); UNLABELLED (-1) where none is known."""
        found: np.ndarray = self.table["label"].to_numpy()
        return found

    def labels_among(self, classes: tuple[str, ...]) -> np.ndarray:
        """Labels as indices of other `classes`, int64 (N,); UNLABELLED where the name is not among them."""
        index = {name: k for k, name in enumerate(classes)}
        number = np.array([index.get(name, UNLABELLED) for name in self.classes] + [UNLABELLED])  # the last for -1
        found: np.ndarray = number[self.labels]
        return found

    @property
    def fold(self) -> np.ndarray:
        """Fold that holds each photograph out, int64 (N,); ALWAYS_TRAIN (-1) where none does."""
        found: np.ndarray = self.table["fold"].to_numpy()
        return found

    @property
    def paths(self) -> list[Path]:
        """Absolute path of each photograph."""
        return [self.root / path for path in self.table["path"]]

    def class_counts(self) -> np.ndarray:
        """Labelled photographs per class, int64 (K,)."""
        labels = self.labels
        return np.bincount(labels[labels >= 0], minlength=len(self.classes))

    def take(self, rows: np.ndarray) -> Manifest:
        """The manifest of some rows: boolean (N,) or indices."""
        soft = None if self.soft_labels is None else self.soft_labels[rows]
        index = np.flatnonzero(rows) if np.asarray(rows).dtype == bool else rows
        return replace(self, table=self.table.iloc[index].reset_index(drop=True), soft_labels=soft)

    def with_columns(self, **columns: object) -> Manifest:
        """A copy with columns replaced or added."""
        return replace(self, table=self.table.assign(**columns))

    def save(self, path: Path) -> None:
        """Write as parquet, atomically."""
        table = self.table
        if self.soft_labels is not None:
            table = table.assign(soft_label=list(self.soft_labels))
        arrow = pa.Table.from_pandas(table, preserve_index=False)
        numbers = {} if self.numbers is None else {"numbers": self.numbers}
        about = json.dumps({"classes": self.classes, "root": self.root.as_posix(), **numbers})
        arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"manihot": about.encode()})
        with atomic_path(path) as temporary:
            pq.write_table(arrow, temporary)

    @staticmethod
    def is_file(path: Path) -> bool:
        """Whether `path` is a manifest that `save` wrote, rather than a user's own table."""
        try:
            return path.suffix == ".parquet" and b"manihot" in (pq.read_schema(path).metadata or {})
        except Exception:  # whatever a library says of a damaged file: the reader of tables names it
            return False

    @classmethod
    def find(cls, place: Path) -> Path | None:
        """The manifest that `place` is, or that the run folder `place` holds; None where it is neither."""
        places = RunPlaces(place)
        path = places.manifest if places.record_file.is_file() else place
        return path if path.is_file() and cls.is_file(path) else None

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read what `save` wrote; anything else is a DataError."""
        if not Path(path).exists():
            raise DataError(f"{path}: there is no manifest here", "run `manihot scan PHOTOS --out RUN` first")
        what, remedy = "a manihot manifest", "make it with `manihot scan`"
        arrow = read_parquet(path, what, {"image_id": "text", "path": "text", "label": "whole"}, remedy)
        with reading(path, what, remedy, DataError):
            about = metadata_record(arrow, About)
            table = arrow.to_pandas()
            soft = None
            if "soft_label" in table:
                rows = list(table.pop("soft_label"))
                soft = np.array(rows, dtype=np.float32).reshape(len(rows), len(about.classes))
            manifest = cls.from_table(table, about.classes, Path(about.root), about.numbers)
            return replace(manifest, soft_labels=soft)
