"""The readers of every kind of file that manihot saves: whatever the file holds, a record or one clear error.

A saved file may be cut off, damaged, from another version, or made by someone else. Each reader checks that it is a
regular file of a sane size, its structure before its content, and raises a ManihotError that names the file, where in
it the fault is, and what to do. Nothing is ever unpickled.
"""

from __future__ import annotations

import errno
import json
import math
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import IO, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError, model_validator

from manihot.errors import DataError, DiskFullError, ManihotError, RunFolderError

MOST_JSON = 256 << 20  # bytes; the ids of a store of a million photographs take 40 MB
MOST_ARRAYS = 4 << 30  # bytes of an .npz, unpacked
MOST_TENSORS = 8 << 30  # bytes; the largest backbone of timm takes 2.3 GB
DEEPEST = 64  # JSON within JSON
LONGEST = 160  # characters of another library's words in a message
AGAIN = "remove the file and run the same command again"

Model = TypeVar("Model", bound=BaseModel)
Kind = type[ManihotError]


class ClassNames(BaseModel):
    """Names of classes in a file's metadata, and what stands for them in submissions."""

    classes: tuple[str, ...]
    numbers: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _fit(self) -> ClassNames:
        for name, values in (("classes", self.classes), ("numbers", self.numbers or ())):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} that appear twice")
        if self.numbers is not None and len(self.numbers) != len(self.classes):
            raise ValueError(f"{len(self.numbers)} numbers for {len(self.classes)} classes")
        return self


@contextmanager
def reading(path: Path, what: str, remedy: str = AGAIN, kind: Kind = RunFolderError) -> Iterator[None]:
    """Turn whatever goes wrong in the block into one error that names the file: `kind`, or the ManihotError that came.

    what: what the file should be, as in "not a saved blend". The block may only read and check the file: a library
    can raise anything on a damaged one.
    """
    try:
        yield
    except ManihotError as error:
        if str(path) in error.what:
            raise
        raise type(error)(f"{path}: {error.what}", error.remedy or remedy) from error
    except FileNotFoundError as error:
        raise kind(f"{path}: there is no file, expected {what}", remedy) from error
    except OSError as error:
        if error.errno is None:
            raise kind(f"{path}: not {what} ({_short(error)})", remedy) from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # of what is written meanwhile
            where = error.filename or gettempdir()
            raise DiskFullError(f"{where}: no space left on the disk", "free some space, then run it again") from error
        raise kind(f"{path}: can't be read ({error.strerror})", "check the disk and the file's permissions") from error
    except MemoryError as error:
        raise kind(f"{path}: not {what} (it asks for more memory than there is)", remedy) from error
    except RecursionError as error:
        raise kind(f"{path}: not {what} (nested too deeply)", remedy) from error
    except ValidationError as error:
        raise kind(f"{path}: not {what}: {_first_fault(error)}", remedy) from error
    except KeyError as error:
        raise kind(f"{path}: not {what} (no {str(error.args[0] if error.args else '')[:LONGEST]!r})", remedy) from error
    except Exception as error:
        raise kind(f"{path}: not {what} ({_short(error)})", remedy) from error


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


def _first_fault(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=True)[0]
    place = ".".join(map(str, first["loc"])) or "the whole"
    found = repr(first["input"])
    found = found if len(found) <= 40 else found[:40] + "..."
    return f"field {place!r}: {first['msg']}, found {found}"


def check_file(path: Path, most: int) -> None:
    """Raise ValueError for anything but a regular file of at most `most` bytes; OSError as the system says."""
    facts = Path(path).stat()
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError("not a regular file")
    if facts.st_size > most:
        raise ValueError(f"{facts.st_size} bytes, more than the limit of {most}")


def parse_json(text: str | bytes) -> Any:
    """JSON of a sane depth, its texts proper Unicode; ValueError or RecursionError for anything else."""
    text = text if isinstance(text, str) else text.decode("utf-8")
    value = json.loads(text)
    if "\\ud" in text.lower():  # half a character, alone, can't be written again
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    layer = [value]
    for _ in range(DEEPEST):
        layer = [
            below
            for one in layer
            if isinstance(one, (dict, list))
            for below in (one.values() if isinstance(one, dict) else one)
            if isinstance(below, (dict, list))
        ]
        if not layer:
            return value
    raise ValueError(f"nested more than {DEEPEST} deep")


def read_json(path: Path, what: str = "readable as JSON", remedy: str = AGAIN, kind: Kind = RunFolderError) -> Any:
    """The value of a JSON file."""
    path = Path(path)
    with reading(path, what, remedy, kind):
        check_file(path, MOST_JSON)
        return parse_json(path.read_bytes())


def read_record(path: Path, model: type[Model], what: str, remedy: str = AGAIN, kind: Kind = RunFolderError) -> Model:
    """A JSON file as a checked record; the error names the first field that is wrong."""
    value = read_json(path, what, remedy, kind)
    with reading(path, what, remedy, kind):
        return model.model_validate(value)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl, [] without the file; other lines, such as one cut off by a kill, are left out."""
    try:
        check_file(path, MOST_JSON)
        lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    except (OSError, ValueError):
        return []
    found = []
    for line in lines:
        try:
            value = parse_json(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _check_array(header: IO[bytes], size: int) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an .npy of `size` bytes; ValueError where its values can't be those bytes."""
    version = np.lib.format.read_magic(header)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its format {version} is unknown")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(header)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects")
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize != size - header.tell():
        raise ValueError(f"{size - header.tell()} bytes are not an array {dtype} {shape}")
    return tuple(shape), dtype


def read_array(
    path: Path,
    what: str,
    dtype: str,
    shape: Sequence[int | None],
    mapped: bool = False,
    remedy: str = AGAIN,
    kind: Kind = RunFolderError,
) -> np.ndarray:
    """An .npy of this dtype and shape, in which None is any length; mapped: its values stay on disk."""
    path = Path(path)
    with reading(path, what, remedy, kind):
        check_file(path, 1 << 62)
        with open(path, "rb") as file:
            found, of = _check_array(file, path.stat().st_size)
        if of != np.dtype(dtype):
            raise ValueError(f"values {of}, expected {dtype}")
        if len(found) != len(shape) or any(want not in (None, side) for want, side in zip(shape, found)):
            wanted = ", ".join("any" if side is None else str(side) for side in shape)
            raise ValueError(f"shape {found}, expected ({wanted})")
        array: np.ndarray = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        return array


def read_features(paths: Sequence[Path], mapped: bool = False) -> list[np.ndarray]:
    """Features of photographs in consecutive files, float32 (n, V, D) each; RunFolderError where they don't agree."""
    remedy = "remove the folder of features and run the same command again"
    parts: list[np.ndarray] = []
    for path in paths:
        widths = parts[0].shape[1:] if parts else (None, None)
        parts.append(read_array(path, "features of photographs", "<f4", (None, *widths), mapped, remedy))
    return parts


def read_arrays(
    path: Path, what: str, names: Sequence[str] = (), remedy: str = AGAIN, kind: Kind = DataError
) -> dict[str, np.ndarray]:
    """All arrays of an .npz, at least `names`; floating ones must be finite or infinite, never NaN."""
    path = Path(path)
    with reading(path, what, remedy, kind):
        check_file(path, MOST_ARRAYS)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > MOST_ARRAYS:
                raise ValueError(f"unpacked larger than {MOST_ARRAYS} bytes")
            for member in members:
                with archive.open(member) as file:
                    _check_array(file, member.file_size)
        with np.load(path, allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in opened.files}
        for name in names:
            if name not in arrays:
                raise KeyError(f"array {name}")
        for name, array in arrays.items():
            if array.dtype.kind == "f" and np.isnan(array).any():
                raise ValueError(f"the array {name} holds values that are no numbers")
        return arrays


def about_of(arrays: Mapping[str, np.ndarray], model: type[Model]) -> Model:
    """The checked record in the array `about` of an .npz; for use within `reading`."""
    return model.model_validate(parse_json(str(arrays["about"])))
