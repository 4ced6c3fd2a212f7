"""The one reader of users' tables: CSV, TSV, parquet and JSON lines as text, or an error that names the line.

No library's leniency decides: a row with another number of fields, a second column of the same name, or a byte that
is not UTF-8 is an error. What is unambiguous is read: any of four separators, a byte order mark, UTF-16 that says so.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from manihot.errors import DataError
from manihot.records.csv_files import as_written
from manihot.records.parquet_files import read_parquet
from manihot.records.readers import check_file, reading

TABLE_SUFFIXES = {".csv", ".tsv", ".parquet", ".jsonl"}
SEPARATORS = ",;\t|"
SEPARATOR_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
MOST_TABLE = 2 << 30  # bytes; a row for each of ten million photographs takes less
LONGEST_CELL = 131_072  # characters; Python's csv module has the same limit
MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
)
OTHER_KINDS = {
    b"PK\x03\x04": "an Excel workbook or a zip",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"PAR1": "parquet",
    b"%PDF": "a PDF",
    b"\x1f\x8b": "packed by gzip",
    b"\xff\xd8\xff": "a JPEG",
    b"\x89PNG": "a PNG",
    b"SQLite format 3": "an SQLite database",
}
AS_UTF8 = "save it as UTF-8; in Excel: File, Save As, CSV UTF-8"
WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")
MOST_DIGITS = 15  # of a class number: all that a float holds exactly, as tables pass through spreadsheets
# What pandas, R, Excel and SQL write, and what people do.
MISSING = {"nan", "none", "null", "n/a", "na", "<na>", "#n/a", "-nan", "nil", "-", "?"}
NESTED = "nested"  # in DataFrame.attrs: column -> (line, what was found) of columns with lists, objects or bytes


def read_table(path: Path) -> pd.DataFrame:
    """A table as text, '' for empty cells; the index is the line in the file (the row, for parquet).

    Columns of pictures, lists or objects are left out and named in `attrs["nested"]`. Raises DataError.
    """
    path = Path(path)
    if _not_utf8(str(path)):
        raise DataError(
            f"{shown(str(path), 200)}: the name of the table, or of a folder above it, is not UTF-8", "rename it"
        )
    with reading(path, "readable as a table", "a CSV, TSV, parquet or JSON lines file", DataError):
        try:
            check_file(path, MOST_TABLE)
        except FileNotFoundError as error:
            raise DataError(f"{path}: there is no such file", "check the path of the table") from error
        suffix = path.suffix.lower()
        frame = _from_parquet(path) if suffix == ".parquet" else (_from_json if suffix == ".jsonl" else _from_csv)(path)
    if not len(frame):
        raise DataError(f"{path}: the table has no rows", "write a row for each photograph, or give another file")
    _check_cells(path, frame)
    return frame


def shown(text: str, most: int = 60) -> str:
    """Text for a message: on one line, at most so long, printable everywhere."""
    text = text if len(text) <= most else text[:most] + "..."
    return "".join(c if c.isprintable() and not "\ud800" <= c <= "\udfff" else f"\\x{ord(c):02x}" for c in text)


def list_names(names: Sequence[str], most: int = 12) -> str:
    """Names for a message: the first so many, each shortened."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(str(name), 40) for name in names[:most]) + more


def is_whole(cell: str) -> bool:
    """Whether a cell holds a whole number that a table can hold exactly: 3, -1, 3.0."""
    return WHOLE.fullmatch(cell) is not None and len(cell.split(".")[0].lstrip("+-").lstrip("0")) <= MOST_DIGITS


def to_number(cell: str) -> int:
    """The number that `is_whole` found."""
    return int(cell.split(".")[0])


def is_missing(cell: str, known: Sequence[str] = ()) -> bool:
    """Whether a cell says in words that nothing is known; not where a class has that very name."""
    return cell.casefold() in MISSING and cell not in known


def _not_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _check_cells(path: Path, frame: pd.DataFrame) -> None:
    """DataError for what no file name or label can hold: a NUL, or half a character."""
    for name in frame.columns:
        for line, cell in frame[name].items():
            if "\0" in cell or (not cell.isascii() and _not_utf8(cell)):
                raise DataError(
                    f"{path}, line {line}, column {shown(name)!r}: {shown(cell)!r} contains a control character",
                    "correct the cell",
                )


# ---------------------------------------------------------------------------------------------- CSV


def decode_text(path: Path, data: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 and UTF-32 that begin with their mark. DataError with the line."""
    mark = next((encoding for start, encoding in MARKS if data.startswith(start)), "utf-8")
    kind = next((kind for start, kind in OTHER_KINDS.items() if data.startswith(start)), None)
    if kind is not None:
        raise DataError(f"{path}: this is {kind}, and a text table was expected", "export it as CSV in UTF-8")
    if "utf-8" in mark and (at := data.find(b"\0")) >= 0:
        head = data[:2000]
        wide = head.count(b"\0") > len(head) // 4
        raise DataError(
            f"{path}, line {_line(data, at)}: contains a NUL byte"
            + (", as UTF-16 without its mark does" if wide else ""),
            AS_UTF8 if wide else "remove it, or export the table again: it may be damaged",
        )
    try:
        return data.decode(mark)
    except UnicodeDecodeError as error:
        if mark not in ("utf-8", "utf-8-sig"):
            raise DataError(
                f"{path}: its mark says {mark}, but it is cut off or damaged ({error.reason})", AS_UTF8
            ) from error
        at = error.start + (3 if mark == "utf-8-sig" else 0)
        start = max(data.rfind(b"\n", 0, at), data.rfind(b"\r", 0, at)) + 1
        word = shown(data[max(start, at - 12) : at + 8].split(b"\n")[0].decode("cp1252", "replace"))
        raise DataError(
            f"{path}, line {_line(data, at)}: not UTF-8 (byte 0x{data[at]:02x}); Windows-1252 would read {word!r}",
            AS_UTF8,
        ) from error


def _line(data: bytes, at: int) -> int:
    """The number of the line that byte `at` stands in."""
    before = data[:at]
    return before.count(b"\n") + before.count(b"\r") - before.count(b"\r\n") + 1


def read_written(path: Path) -> pd.DataFrame:
    """A CSV that manihot wrote and people may have edited: cells as they stand, lines as the index, maybe no rows."""
    with reading(path, "readable as a table", "a CSV file", DataError):
        check_file(path, MOST_TABLE)
        frame = as_written(_from_csv(path, as_it_is=True))
    if len(frame):
        _check_cells(path, frame)
    return frame


def _from_csv(path: Path, as_it_is: bool = False) -> pd.DataFrame:
    text = decode_text(path, path.read_bytes())
    if not text.strip():
        raise DataError(f"{path}: the table is empty", "write a header and a row per photograph")
    skip, separator = 0, None
    if text[:4].lower() == "sep=" and text[5:6] in ("\r", "\n", ""):  # Excel's own word for it
        separator, skip, text = text[4], 1, text[5:].removeprefix("\r").removeprefix("\n")
    separator = separator or _find_separator(path, text)
    rows = _rows(path, text, separator, skip, as_it_is)
    at, header = next(rows, (1, []))
    names = _name_columns(path, at, header)
    lines, cells = [], []
    for line, row in rows:
        if not any(row):
            continue
        while len(row) > len(names) and not row[-1]:
            row.pop()
        if len(row) != len(names):
            raise DataError(*_wrong_count(path, line, row, names, separator))
        lines.append(line)
        cells.append(row)
    return pd.DataFrame(cells, index=pd.Index(lines, dtype="int64"), columns=names, dtype=object)


def _rows(
    path: Path, text: str, separator: str, skip: int = 0, as_it_is: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """(first line, cells) of each row that is not blank. DataError for quotes that don't close and huge cells."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    while True:
        line = reader.line_num + 1 + skip
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(*_explain_csv(path, line, str(error))) from error
        if row and not (len(row) == 1 and not row[0].strip()):
            yield line, row if as_it_is else [cell.strip() for cell in row]


def _explain_csv(path: Path, line: int, error: str) -> tuple[str, str]:
    if "field limit" in error or "field larger" in error:
        return f"{path}, line {line}: a cell of more than {LONGEST_CELL:,} characters", (
            "shorten it, or close its quote: a quote that is never closed takes in all that follows"
        )
    if "unexpected end" in error:
        return f"{path}, line {line}: a quote opens in this row and is never closed", (
            'close it, or double it where it stands for itself: ""'
        )
    return f"{path}, line {line}: text stands after a closing quote", (
        'quote the whole cell, and double quotes inside it: "5"" pot"'
    )


def _wrong_count(path: Path, line: int, row: list[str], names: list[str], separator: str) -> tuple[str, str]:
    fields = f"{len(row)} field{'s' * (len(row) != 1)}"
    what = f"{path}, line {line}: {fields} under {len(names)} column{'s' * (len(names) != 1)} ({list_names(names)})"
    cells = f"found {list_names(row)}"
    if len(row) > len(names):
        return f"{what}; {cells}", f"quote cells that contain {SEPARATOR_NAMES[separator]}, or add the column's name"
    return f"{what}; {cells}", "fill the row up, with empty cells where nothing is known"


def _find_separator(path: Path, text: str) -> str:
    """The separator under which all rows have as many fields as the header; else the commonest in the header."""
    head = io.StringIO(text, newline="").readline()
    while not head.strip():
        text = text[len(head) :]
        head = io.StringIO(text, newline="").readline()
    found = [separator for separator in SEPARATORS if separator in head]
    if len(found) < 2:
        return found[0] if found else ","
    fitting = {}
    for separator in found:
        try:
            rows = [len(row) for _, row in _rows(path, text, separator)]
        except DataError:
            continue
        if rows and rows[0] > 1 and min(rows) == max(rows):
            fitting[separator] = rows[0]
    if len(fitting) > 1:
        both = " or ".join(f"{count} columns by {SEPARATOR_NAMES[name]}" for name, count in fitting.items())
        raise DataError(
            f"{path}: reads as {both}: {shown(head.strip())}", f"say which: put a first line sep={max(fitting)} into it"
        )
    return max(fitting or found, key=head.count)


def _name_columns(path: Path, line: int, header: list[str]) -> list[str]:
    """Column names, 'column 3' for an empty one. DataError where two are the same."""
    while len(header) > 1 and not header[-1]:
        header = header[:-1]
    twice = [name for name, count in Counter(header).items() if name and count > 1]
    if twice:
        raise DataError(
            f"{path}, line {line}: {header.count(twice[0])} columns are called {shown(twice[0])!r}",
            "rename or remove one",
        )
    return [name or unnamed(k) for k, name in enumerate(header, 1)]


def unnamed(number: int) -> str:
    """What a column without a name is called, counted from 1."""
    return f"column {number}"


# ------------------------------------------------------------------------------- JSON lines and parquet


def _from_json(path: Path) -> pd.DataFrame:
    text = decode_text(path, path.read_bytes())
    rows: dict[int, dict[str, str]] = {}
    nested: dict[str, tuple[int, str]] = {}
    for line, part in enumerate(text.split("\n"), 1):
        if not part.strip():
            continue
        row = {}
        for name, value in _json_row(path, line, part).items():
            name = name.strip()
            if isinstance(value, (dict, list)):
                nested.setdefault(name, (line, "a list" if isinstance(value, list) else "an object"))
            row[name] = "" if isinstance(value, (dict, list)) else _to_text(value)
        rows[line] = row
    frame = pd.DataFrame.from_dict(rows, orient="index", dtype=object)
    frame = frame.where(frame.notna(), "")
    frame = frame[[name for name in frame if name not in nested]]
    frame.attrs[NESTED] = nested
    return frame


def _json_row(path: Path, line: int, text: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        if twice:
            raise DataError(f"{path}, line {line}: {shown(twice[0])!r} appears twice", "give each name once")
        return dict(pairs)

    remedy = 'one object per line, like {"file_name": "a.jpg", "label": "rust"}'
    try:
        row = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {line}: not JSON ({error.msg}, at character {error.colno})", remedy) from error
    except RecursionError as error:
        raise DataError(f"{path}, line {line}: nested too deeply", remedy) from error
    except ValueError as error:
        raise DataError(f"{path}, line {line}: a number of more than 4,300 digits", remedy) from error
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {line}: not a JSON object", remedy)
    return row


def _from_parquet(path: Path) -> pd.DataFrame:
    remedy = "write it again, with pandas' to_parquet for instance"
    table = read_parquet(path, "readable as a table", remedy=remedy)
    names = [str(name).strip() for name in table.column_names]
    _name_columns(path, 1, list(names))
    columns: dict[str, list[str]] = {}
    nested: dict[str, tuple[int, str]] = {}
    for name, column in zip(names, table.columns):
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_nested(kind) or _is_binary(kind):
            nested[name] = (1, f"values of the type {kind}")
            continue
        columns[name] = [_to_text(value) for value in column.to_pylist()]
    frame = pd.DataFrame(columns, index=pd.RangeIndex(1, len(table) + 1), dtype=object)
    frame.attrs[NESTED] = nested
    return frame


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _to_text(value: Any) -> str:
    """A single value as a CSV would hold it: '' for none, whole numbers without a point."""
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value).strip()
