"""Predictions: what a model says of photographs. Parquet for us, CSV `image_id,label,c0..cK-1` for others.

Out-of-fold, test and new photographs use the same record, so that blends, audits and reports need not know
where predictions come from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import log_softmax, softmax

from manihot.errors import DataError
from manihot.records.csv_files import save_csv
from manihot.records.files import atomic_path
from manihot.records.parquet_files import matrix_of, metadata_record, read_parquet
from manihot.records.prediction_tables import read_predictions
from manihot.records.probabilities import check_labels, log_probs
from manihot.records.readers import ClassNames, reading


@dataclass(frozen=True)
class Predictions:
    """Logits (N, K) float32 for photographs, with what is needed to judge them.

    image_id: object (N,). classes: K names. labels: int64 (N,), -1 unknown. fold: int64 (N,), the fold of the
    model that predicted the row, -1 where several models were averaged. embeddings: float32 (N, D) or None. unknown:
    float32 (N,), the probability that a photograph shows none of the classes, from models with that output, or None;
    the classes' probabilities sum to 1 beside it. numbers: what stands for each class in submissions, None for its
    name. Embeddings are kept in half precision in files, which halves them: 3 digits, enough for what compares them.
    """

    image_id: np.ndarray
    logits: np.ndarray
    classes: tuple[str, ...]
    labels: np.ndarray
    fold: np.ndarray
    embeddings: np.ndarray | None = None
    unknown: np.ndarray | None = None
    numbers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        n, k = self.logits.shape
        if k != len(self.classes) or any(len(a) != n for a in (self.image_id, self.labels, self.fold)):
            raise DataError(f"predictions of {n} photographs and {k} classes don't fit their ids, labels or classes")
        if self.unknown is not None and (
            self.unknown.shape != (n,) or not ((self.unknown >= 0) & (self.unknown <= 1)).all()
        ):
            raise DataError(f"`unknown` of {n} photographs is not {n} probabilities")
        if not np.isfinite(self.logits).all():
            bad = self.image_id[~np.isfinite(self.logits).all(axis=1)]
            raise DataError(f"{len(bad)} photographs have predictions that are not finite, first {bad[0]!r}")
        labels = check_labels(self.labels, n, k, row=lambda row: f"photograph {self.image_id[row]!r}")
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.image_id)

    @property
    def pred_probs(self) -> np.ndarray:
        """Softmax of the logits, float32 (N, K)."""
        found: np.ndarray = softmax(self.logits.astype(np.float64), axis=1).astype(np.float32)
        return found

    @classmethod
    def from_probs(
        cls,
        image_id: np.ndarray,
        pred_probs: np.ndarray,
        classes: tuple[str, ...],
        labels: np.ndarray | None = None,
        fold: np.ndarray | None = None,
        embeddings: np.ndarray | None = None,
        unknown: np.ndarray | None = None,
        numbers: tuple[int, ...] | None = None,
    ) -> Predictions:
        """From probabilities (N, K): logits are their logarithms, so the softmax gives them back."""
        n = len(image_id)
        logits = log_probs(pred_probs).astype(np.float32)
        return cls(
            np.asarray(image_id, dtype=object),
            logits,
            tuple(classes),
            np.full(n, -1) if labels is None else np.asarray(labels),
            np.full(n, -1) if fold is None else np.asarray(fold, dtype=np.int64),
            embeddings,
            None if unknown is None else np.asarray(unknown, dtype=np.float32),
            numbers,
        )

    def take(self, rows: np.ndarray) -> Predictions:
        """Some rows: boolean (N,) or indices."""
        embeddings = None if self.embeddings is None else self.embeddings[rows]
        return replace(
            self,
            image_id=self.image_id[rows],
            logits=self.logits[rows],
            labels=self.labels[rows],
            fold=self.fold[rows],
            embeddings=embeddings,
            unknown=None if self.unknown is None else self.unknown[rows],
        )

    def align(self, image_id: np.ndarray) -> Predictions:
        """The rows of `image_id`, in that order; an id without a prediction is a DataError."""
        index = pd.Index(self.image_id)
        if not index.is_unique:
            twice = self.image_id[index.duplicated()]
            raise DataError(
                f"{len(twice)} photographs are predicted more than once, first {twice[0]!r}",
                "give each photograph its own id",
            )
        where = index.get_indexer(pd.Index(image_id))
        if (where < 0).any():
            missing = np.asarray(image_id)[where < 0]
            raise DataError(f"{len(missing)} photographs have no prediction, first {missing[0]!r}")
        return self.take(where)

    def save(self, path: Path, named: bool = False) -> None:
        """Write parquet, or CSV with probabilities where the name ends in .csv; atomic.

        named: the CSV has a last column `predicted`, the name of the likeliest class, which `load` leaves aside.
        """
        path = Path(path)
        if path.suffix.lower() == ".csv":
            frame = pd.DataFrame({"image_id": self.image_id, "label": self.labels})
            log_probs = log_softmax(self.logits.astype(np.float64), axis=1)
            for k in range(len(self.classes)):
                frame[f"c{k}"] = np.exp(log_probs[:, k])
            if self.unknown is not None:
                frame["unknown"] = self.unknown
            if named:
                frame["predicted"] = np.array(self.classes, dtype=object)[self.logits.argmax(axis=1)]
            save_csv(frame, path)
            return
        columns: dict[str, pa.Array] = {
            "image_id": pa.array(self.image_id.astype(str)),
            "label": pa.array(self.labels),
            "fold": pa.array(self.fold),
            "logits": _fixed_list(self.logits),
        }
        if self.embeddings is not None:
            columns["embedding"] = _fixed_list(self.embeddings, np.float16)
        if self.unknown is not None:
            columns["unknown"] = pa.array(self.unknown.astype(np.float32))
        numbers = {} if self.numbers is None else {"numbers": self.numbers}
        about = json.dumps({"classes": self.classes, **numbers}).encode()
        lists = ["logits", "embedding"][: 1 + ("embedding" in columns)]
        how: dict[str, Any] = {
            "compression": "zstd",
            "use_dictionary": [name for name in columns if name not in lists],
            "use_byte_stream_split": [f"{name}.list.element" for name in lists],
        }
        with atomic_path(path) as temporary:
            pq.write_table(pa.table(columns).replace_schema_metadata({b"manihot": about}), temporary, **how)

    @property
    def class_numbers(self) -> tuple[int, ...]:
        """What stands for each class in a submission: the user's numbers, names that are numbers, or 0 to K-1."""
        if self.numbers is not None:
            return self.numbers
        whole = all(name.isdigit() for name in self.classes)
        return tuple(int(name) if whole else k for k, name in enumerate(self.classes))

    @classmethod
    def load(cls, path: Path, classes: tuple[str, ...] | None = None) -> Predictions:
        """Read parquet or CSV; CSV columns c0..cK-1 are probabilities, named by `classes` where given.

        A CSV with labels, or read with `classes`, may have columns of probabilities named as the classes instead.
        """
        path = Path(path)
        with reading(path, "readable", "check the path", DataError):
            if not path.exists():
                raise DataError(f"{path}: there are no predictions here", "check the path, or run the training first")
        if path.suffix.lower() == ".csv":
            found = read_predictions(path, classes)
            return cls.from_probs(found.image_id, found.probs, found.classes, found.labels, unknown=found.unknown)
        what = "a manihot predictions file"
        remedy = "parquet from manihot, or a CSV with columns image_id,label,c0,c1,..."
        columns = {"image_id": "text", "label": "whole", "fold": "whole", "unknown": "number?"}
        arrow = read_parquet(path, what, columns, remedy)
        with reading(path, what, remedy, DataError):
            about, names = metadata_record(arrow, ClassNames), arrow.column_names
            embeddings = matrix_of(arrow, "embedding") if "embedding" in names else None
            unknown = arrow["unknown"].to_numpy().astype(np.float32) if "unknown" in names else None
            label, fold = (arrow[name].to_numpy().astype(np.int64) for name in ("label", "fold"))
            image_id, logits = arrow["image_id"].to_numpy().astype(object), matrix_of(arrow, "logits")
            if embeddings is not None and not np.isfinite(embeddings).all():
                raise ValueError("its embeddings are not finite")
            return cls(image_id, logits, about.classes, label, fold, embeddings, unknown, about.numbers)


def _fixed_list(matrix: np.ndarray, kind: type[np.floating] = np.float32) -> pa.Array:
    """Rows of a matrix as lists, of `kind` unless a value is too large for it."""
    if np.abs(matrix).max(initial=0) > np.finfo(kind).max:
        kind = np.float32
    flat = pa.array(np.ascontiguousarray(matrix, dtype=kind).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])
