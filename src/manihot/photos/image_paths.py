"""Which file each row of a table means: a column, or a pattern over columns and folders; and what to write instead.

A pattern holds columns in braces and may hold `*` for one folder: `part_*/{image_id}.jpg`. A suggestion is made only
after it was tried on every row.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from manihot.errors import DataError
from manihot.photos.decode import SUFFIXES
from manihot.photos.listing import list_folder
from manihot.records.tables import list_names, shown

IN_BRACES = re.compile(r"\{([^{}]+)\}")
IMAGE_NAMES = ("image", "image_id", "file_name", "filename", "image_path", "path", "file", "img", "photo")
DEEPEST = 6  # folders below the table's that are searched
TRIED = 300  # rows that propose where the files are; each proposal is then tried on all rows
WORTH_SAYING = 0.9  # of the rows that a suggested pattern must find
MOSTLY = 0.5  # of a table's photographs that must be there, unless the user allows fewer


class Files:
    """The photographs below a folder, by their paths from it with '/'."""

    def __init__(self, folder: Path, leave_out: Path | None = None) -> None:
        self.folder = folder
        self.paths: list[str] = sorted(_walk(folder, "", leave_out)) if folder.is_dir() else []
        self.known = set(self.paths)
        self.by_name: dict[str, list[str]] = {}
        for path in self.paths:
            name = path.rsplit("/", 1)[-1]
            for key in {name, name.rsplit(".", 1)[0]}:
                self.by_name.setdefault(key, []).append(path)

    def propose(self, values: pd.Series, frame: pd.DataFrame, column: str) -> list[tuple[str, int]]:
        """Patterns that find files for `values` of `column`, the best first, each with how many rows it finds."""
        spread = values.iloc[:: max(1, len(values) // TRIED)]
        forms: Counter[tuple[str, str]] = Counter()
        for value in spread:
            plain = value.replace("\\", "/").removeprefix("./")
            for path in self.by_name.get(plain.rsplit("/", 1)[-1], ())[:8]:
                stem = path if path.endswith(plain) else path.removesuffix(Path(path).suffix)
                if stem.endswith(plain) and (len(stem) == len(plain) or stem[-len(plain) - 1] == "/"):
                    forms[(stem[: len(stem) - len(plain)], path[len(stem) :])] += 1
        patterns = [start + "{" + column + "}" + end for (start, end), _ in forms.most_common(12)]
        patterns += list(dict.fromkeys(self._wider(forms, frame, column)))
        counted = [(pattern, self.count(pattern, frame)) for pattern in dict.fromkeys(patterns)]
        return sorted(counted, key=lambda item: (-item[1], item[0].count("*"), len(item[0])))

    def _wider(self, forms: Counter[tuple[str, str]], frame: pd.DataFrame, column: str) -> Iterable[str]:
        """Patterns whose last folder is another column's, or any."""
        for (start, end), _ in forms.most_common(12):
            above, _, last = start.rstrip("/").rpartition("/")
            if not last:
                continue
            above = above + "/" if above else ""
            for other in frame.columns:
                if other != column and (frame[other] == last).any():
                    yield f"{above}{{{other}}}/{{{column}}}{end}"
            yield f"{above}*/{{{column}}}{end}"

    def count(self, pattern: str, frame: pd.DataFrame) -> int:
        """How many rows a pattern finds one file for."""
        return sum(len(found) == 1 for found in self.find(fill(pattern, frame)))

    def find(self, values: Iterable[str]) -> list[list[str]]:
        """The photographs that each path means, in which `*` stands for any one folder or part of its name."""
        found = []
        for value in values:
            value = clean(value)
            if "*" not in value:
                found.append([value] if value in self.known else [])
                continue
            place, _, name = value.rpartition("/")
            form = re.compile("".join("[^/]*" if c == "*" else re.escape(c) for c in place))
            found.append(
                [
                    path
                    for path in self.by_name.get(name, ())
                    if path.rpartition("/")[2] == name and form.fullmatch(path.rpartition("/")[0])
                ]
            )
        return found


def _walk(folder: Path, start: str, leave_out: Path | None, depth: int = 0) -> Iterable[str]:
    folders, files = list_folder(folder)
    yield from (start + file.name for file in files if file.suffix.lower() in SUFFIXES)
    if depth < DEEPEST:
        for below in folders:
            if below != leave_out:
                yield from _walk(below, f"{start}{below.name}/", leave_out, depth + 1)


def clean(value: str) -> str:
    """A path as a table writes it, with '/' and without './'."""
    value = value.replace("\\", "/")
    while value.startswith("./"):
        value = value[2:]
    return value


def fill(pattern: str, frame: pd.DataFrame) -> pd.Series:
    """The pattern with each row's cells in the braces, text (N,)."""
    parts = IN_BRACES.split(pattern)  # literal, column, literal, column, ..., literal
    values = pd.Series(parts[0], index=frame.index, dtype=object)
    for name, literal in zip(parts[1::2], parts[2::2]):
        values = values + frame[name].str.strip() + literal
    return values


def guess_image_column(frame: pd.DataFrame) -> str | None:
    """The column that usually names the file, by its name; None where there is none."""
    lower = {name.lower(): name for name in reversed(list(frame.columns))}
    return next((lower[name] for name in IMAGE_NAMES if name in lower), None)


def find_images(
    frame: pd.DataFrame, path: Path, folder: Path, image: str, allow_missing: bool = False
) -> tuple[list[Path], int]:
    """The file of each row, and how many of them are there.

    image: a column or a pattern, whose columns exist. Raises DataError for an empty cell, for a `*` that stands for
    several files, where no file exists, and, unless `allow_missing`, where most are missing.
    """
    plain = image in frame.columns and not IN_BRACES.search(image)
    pattern = "{" + image + "}" if plain else image
    used = IN_BRACES.findall(pattern)
    empty = frame.index[(frame[used] == "").any(axis=1)]
    if len(empty):
        raise DataError(f"{path}, line {empty[0]}: column {', '.join(used)} is empty", "give the photograph's file")
    values = fill(pattern, frame)
    if "*" in IN_BRACES.sub("", pattern):
        names = _resolve(values, path, folder)
    else:
        names = [value.replace("\\", "/") for value in values]
    files = [folder / name for name in names]
    there = sum(map(os.path.exists, files))
    if there and (allow_missing or there >= MOSTLY * len(files)):
        return files, there
    first = next(file for file in files if not os.path.exists(file))  # noqa: PTH110  it never raises
    what = "none" if not there else f"only {there}"
    raise DataError(
        f"{path}: {what} of the {len(files)} photographs exist{'s' * (what == 'none')}, the first "
        f"{'would be' if not there else 'that is missing'} {shown(str(first), 300)}",
        _remedy(frame, folder, pattern, used, there),
    )


def _resolve(values: pd.Series, path: Path, folder: Path) -> list[str]:
    names = []
    for (line, value), found in zip(values.items(), Files(folder).find(values)):
        if len(found) > 1:
            raise DataError(
                f"{path}, line {line}: {shown(value)!r} stands for {len(found)} files: {list_names(found, 3)}",
                "write more of the folders into --image",
            )
        names.append(found[0] if found else clean(value))
    return names


def _remedy(frame: pd.DataFrame, folder: Path, pattern: str, used: list[str], there: int) -> str:
    """What to write so that the photographs are found, tried on all rows; else how paths are read."""
    suggested = suggest_image(frame, Files(folder), used[-1])
    if suggested is not None and suggested[1] > there:
        better, count = suggested
        every = f"it finds all {count}" if count == len(frame) else f"it finds {count} of {len(frame)}"
        return f"they lie elsewhere: use --image '{better}' ({every})"
    if there:
        return "fetch the missing files, or go on with those that are there: --allow-missing"
    return (
        "paths start at the table's folder, or at the folder given as PHOTOS with --csv; "
        "a pattern helps, such as --image 'folder/{id}.jpg'"
    )


def suggest_image(frame: pd.DataFrame, files: Files, column: str) -> tuple[str, int] | None:
    """The pattern that finds the most rows' files and how many: nearly all; None where there is none."""
    values = frame[column].str.strip()
    for pattern, count in files.propose(values[values != ""], frame, column)[:1]:
        if count >= WORTH_SAYING * len(frame):
            return pattern, count
    return None
