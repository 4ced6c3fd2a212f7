"""Parquet files, checked: whatever is not a table with the columns that are needed is named.

Apart from `manihot.records.readers`, so that the server and its decoders load neither Arrow nor pandas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from manihot.errors import DataError
from manihot.records.readers import AGAIN, Kind, Model, check_file, parse_json, reading

MOST_PARQUET = 64 << 30  # bytes of its values: embeddings of four million photographs


def read_parquet(
    path: Path,
    what: str,
    columns: Mapping[str, str] | None = None,
    remedy: str = AGAIN,
    kind: Kind = DataError,
    only: Sequence[str] | None = None,
) -> pa.Table:
    """A parquet file as an Arrow table with at least `columns`, by their kinds in COLUMN_KINDS; only: read these."""
    path = Path(path)
    with reading(path, what, remedy, kind):
        check_file(path, MOST_PARQUET)
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            about = file.metadata
            size = sum(about.row_group(k).total_byte_size for k in range(about.num_row_groups))
            rows = sum(about.row_group(k).num_rows for k in range(about.num_row_groups))
            if not 0 <= size <= MOST_PARQUET or rows != about.num_rows or rows < 0:
                raise ValueError(f"its head tells of {about.num_rows} rows and {size} bytes")
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise ValueError("a column appears twice")
            table = file.read(columns=None if only is None else list(only))
        table.validate(full=True)
        if len(table) != rows:
            raise ValueError(f"{len(table)} rows where its head tells of {rows}")
        for name, needed in (columns or {}).items():
            check_column(table, name, needed)
        return table


def check_column(table: pa.Table, name: str, kind: str) -> None:
    """Raise KeyError where a table lacks a column, TypeError where it holds something other than `kind`.

    kind: a row of COLUMN_KINDS; with '?' behind it the column may be absent or have empty cells.
    """
    needed, optional = kind.removesuffix("?"), kind.endswith("?")
    if name not in table.column_names:
        if optional or (not len(table) and not table.num_columns):
            return
        raise KeyError(f"column {name}")
    column = table[name]
    if not len(table) or (pa.types.is_null(column.type) and optional):
        return
    if not COLUMN_KINDS[needed](column.type):
        raise TypeError(f"column {name} holds {column.type}, expected {needed}")
    if column.null_count and not optional and needed != "number":
        raise ValueError(f"column {name} has {column.null_count} empty cells")


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_texts(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(kind.value_type)


COLUMN_KINDS: dict[str, Callable[[pa.DataType], bool]] = {
    "text": _is_text,
    "texts": _is_texts,
    "whole": pa.types.is_integer,
    "number": _is_number,  # empty cells are NaN
    "flag": pa.types.is_boolean,
}


def read_frame(
    path: Path,
    what: str,
    columns: Mapping[str, str] | None = None,
    remedy: str = AGAIN,
    kind: Kind = DataError,
    only: Sequence[str] | None = None,
) -> pd.DataFrame:
    """`read_parquet` as a pandas frame."""
    table = read_parquet(path, what, columns, remedy, kind, only)
    with reading(path, what, remedy, kind):
        frame = table.to_pandas()
        missing = [name for name in columns or {} if name in table.column_names and name not in frame]
        if missing:  # pandas' own metadata made it the index
            raise KeyError(f"column {missing[0]}")
        return frame


def matrix_of(table: pa.Table, name: str) -> np.ndarray:
    """A column of lists of one length as float32 (N, D); for use within `reading`."""
    kind = table[name].type
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type):
        raise TypeError(f"column {name} holds {kind}, expected lists of numbers of one length")
    parts = [chunk.flatten() for chunk in table[name].chunks]
    if table[name].null_count or any(part.null_count for part in parts):
        raise ValueError(f"column {name} has empty cells")
    flat = [part.to_numpy(zero_copy_only=False).astype(np.float32) for part in parts]
    return (np.concatenate(flat) if flat else np.empty(0, np.float32)).reshape(len(table), kind.list_size)


def metadata_record(table: pa.Table, model: type[Model]) -> Model:
    """The checked record that manihot wrote into a table's metadata; for use within `reading`."""
    return model.model_validate(parse_json((table.schema.metadata or {})[b"manihot"]))
