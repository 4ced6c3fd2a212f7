"""Resized photographs in one memory-mapped file, so that training is not bound by decoding JPEG.

`NAME.npy` holds uint8 (N, height, width, 3), or where photographs keep their own proportions, one after the other in a
row of bytes, whose sizes `NAME.json` holds beside the ids and what decides the content. The first
appears when everything is written; until then the pixels grow in `NAME.partial` and `NAME.progress` lists the
finished chunks, so that after a kill the same call goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, PositiveInt, field_validator

from manihot.errors import DataError, DiskFullError, RunFolderError
from manihot.photos.decode import PhotoFacts, PhotoFault, inspect_photo, read_photo
from manihot.photos.load import load_photo
from manihot.photos.preprocess import OWN, Preprocess
from manihot.photos.workers import ENOUGH_FOR_PROCESSES, run_tasks
from manihot.progress import track
from manihot.records.files import describe_size, digest_value, explain_os_error, save_json, write_atomic
from manihot.records.manifest import Manifest
from manihot.records.readers import read_array, read_record

FORMAT = 2  # raised whenever the same settings give other pixels
CHUNK = 8  # photographs a task; interrupted work is noted by the number of its chunk, so another size is another FORMAT
SYNC_EVERY = 5.0  # seconds between moments at which finished chunks are made safe from a power cut
SPARE = 50_000_000  # bytes that stay free beside a store
WHAT = "a finished store of photographs"
REMEDY = "remove both files of the store and run the same command again"


class About(BaseModel):
    """What is stored beside a store."""

    digest: str
    size: tuple[int, int]
    image_id: list[str]
    sizes: list[tuple[PositiveInt, PositiveInt]] | None = None

    @field_validator("image_id")
    @classmethod
    def _once(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError("photographs that appear twice")
        return names


class PhotoStore:
    """Photographs of one size, uint8 (N, height, width, 3), read from disk on access.

    sizes: (height, width) of each, (N, 2), where they keep their own proportions.
    Cheap to send to another process: only the path travels.
    """

    def __init__(self, path: Path, image_id: np.ndarray, digest: str, sizes: np.ndarray | None = None) -> None:
        self.path = Path(path)
        self.image_id = image_id
        self.digest = digest
        self.sizes = sizes
        shape: tuple[int | None, ...] = (len(image_id), None, None, 3)
        if sizes is not None:
            self._ends = np.cumsum(3 * sizes.prod(axis=1))
            shape = (int(self._ends[-1]),)
        self.array = read_array(self.path, WHAT, "uint8", shape, mapped=True, remedy=REMEDY)
        self._index = pd.Index(image_id)

    @classmethod
    def open(cls, path: Path) -> PhotoStore:
        """Open what `make_store` wrote; raises RunFolderError where that is absent, incomplete or broken."""
        path = Path(path)
        about = read_record(path.with_suffix(".json"), About, WHAT, REMEDY)
        sizes = None if about.sizes is None else np.array(about.sizes, dtype=np.int64)
        if sizes is not None and len(sizes) != len(about.image_id):
            raise RunFolderError(f"{path}: {path.stem}.json has {len(sizes)} sizes, not one for each", REMEDY)
        store = cls(path, np.array(about.image_id, dtype=object), about.digest, sizes)
        if sizes is None and store.array.shape[1:3] != about.size:
            raise RunFolderError(f"{path}: not the size stated in {path.stem}.json, {about.size}", REMEDY)
        return store

    def __len__(self) -> int:
        return len(self.image_id)

    def __getitem__(self, row: int) -> np.ndarray:
        """One photograph, uint8 (height, width, 3), read-only."""
        if self.sizes is None:
            return np.asarray(self.array[row])
        height, width = self.sizes[row]
        end = int(self._ends[row])
        return np.asarray(self.array[end - 3 * height * width : end]).reshape(height, width, 3)

    def rows(self, image_id: np.ndarray) -> np.ndarray:
        """Row of each id, int64 (n,); an id that is not in the store is a DataError."""
        where = self._index.get_indexer(pd.Index(np.asarray(image_id, dtype=object)))
        if (where < 0).any():
            missing = np.asarray(image_id, dtype=object)[where < 0]
            raise DataError(
                f"{self.path}: {len(missing)} photographs are not in the store, first {missing[0]!r}",
                "make the store from the manifest that holds them",
            )
        found: np.ndarray = where
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return PhotoStore.open, (self.path,)


def make_store(path: Path, manifest: Manifest, preprocess: Preprocess, workers: int = 2) -> PhotoStore:
    """Write every photograph of `manifest`, brought to size by `preprocess`, to `path` (.npy) and open it.

    A finished store of the same photographs and size is opened as it is; an unfinished one is continued. The
    pixels do not depend on `workers`.
    Raises DataError for a photograph that was changed or became unreadable since the scan, DiskFullError.
    """
    path = Path(path).with_suffix(".npy")
    if not len(manifest):
        raise DataError("there are no photographs to store", "scan a folder that has some")
    digest = digest_value(
        {
            "format": FORMAT,
            "size": list(preprocess.size),
            "fit": preprocess.fit,
            "photos": manifest.table[["image_id", "sha256"]].to_numpy().tolist(),
            "unchecked": [p for p, s in zip(manifest.table["path"], manifest.table["sha256"]) if not s],
        }
    )
    if _is_finished(path, digest):
        return PhotoStore.open(path)
    partial, progress = path.with_suffix(".partial"), path.with_suffix(".progress")
    sizes = _kept_sizes(manifest, preprocess)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        done = _resume(partial, progress, digest)
        if done is None:
            path.with_suffix(".json").unlink(missing_ok=True)  # an older store's
            path.unlink(missing_ok=True)
            own = preprocess.fit == OWN
            _allocate(
                partial, (int(3 * sizes.prod(axis=1).sum()),) if own else (len(sizes), *preprocess.size, 3), sizes
            )
            progress.write_text(digest + "\n", encoding="utf-8")
            done = set()
        _fill(partial, progress, manifest, preprocess, sizes, done, workers)
        about = {"format": FORMAT, "digest": digest, "size": list(preprocess.size), "fit": preprocess.fit}
        about |= {"sizes": sizes.tolist()} if preprocess.fit == OWN else {}
        save_json(path.with_suffix(".json"), {**about, "image_id": manifest.image_id.tolist()})
        partial.replace(path)  # last: with the pixels in place the store is finished
        progress.unlink(missing_ok=True)
    except OSError as error:
        raise explain_os_error(error, path) from error
    return PhotoStore.open(path)


def _kept_sizes(manifest: Manifest, preprocess: Preprocess) -> np.ndarray:
    """(height, width) of each stored photograph, (N, 2): from its size in the manifest, or its file."""
    sizes = np.tile(np.array(preprocess.size, dtype=np.int64), (len(manifest), 1))
    if preprocess.fit != OWN:
        return sizes
    full = manifest.table[["height", "width"]].to_numpy(dtype=np.int64)
    for row, (height, width) in enumerate(full):
        if height < 1 or width < 1:
            facts = _inspect(manifest.paths[row])
            height, width = facts.height, facts.width
        sizes[row] = preprocess.kept((int(height), int(width)))
    return sizes


def _inspect(path: Path) -> PhotoFacts:
    try:
        return inspect_photo(path)
    except PhotoFault as fault:
        raise DataError(f"{path}: {fault.detail}", fault.remedy) from fault


def _is_finished(path: Path, digest: str) -> bool:
    """Whether a whole store of these photographs lies there; anything else is regenerated."""
    try:
        return PhotoStore.open(path).digest == digest
    except RunFolderError:
        return False


def _resume(partial: Path, progress: Path, digest: str) -> set[int] | None:
    """Chunks that an interrupted call has finished; None where there was none of these photographs."""
    try:
        lines = progress.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return None
    if not partial.is_file() or lines[0] != digest:
        return None
    if lines[-1]:  # the power went while this line was written
        write_atomic(progress, "\n".join(lines[:-1]) + "\n")
    return {int(line) for line in lines[1:-1]} if all(line.isdecimal() for line in lines[1:-1]) else None


def _allocate(partial: Path, shape: tuple[int, ...], sizes: np.ndarray) -> None:
    """A file of an array of `shape`; a disk without room for it is reported now, not hours later."""
    need = int(np.prod(shape, dtype=np.int64))
    partial.unlink(missing_ok=True)
    free = shutil.disk_usage(partial.parent).free
    if free < need + SPARE:
        raise DiskFullError(
            f"{partial.parent}: the store of {len(sizes)} photographs of "
            f"{' x '.join(map(str, shape[1:3])) or 'their own proportions'} needs "
            f"{describe_size(need)}, and {describe_size(SPARE)} are kept in reserve, "
            f"but {describe_size(free)} are free",
            "free some space, choose another folder with --out, or a smaller photo.size or photo.area",
        )
    with open(partial, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + need)


@dataclass(frozen=True)
class Chunk:
    """Rows of the store that one task writes, and the file they go to."""

    number: int
    partial: Path
    offset: int  # bytes before the first pixel of its first row
    files: tuple[Path, ...]
    sha256: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    preprocess: Preprocess


def write_chunk(chunk: Chunk) -> tuple[int, tuple[Path, PhotoFault] | None]:
    """Decode and write a chunk's photographs; returns its number, and the file that failed and why."""
    rows = []
    for file, sha256, size in zip(chunk.files, chunk.sha256, chunk.sizes, strict=True):
        try:
            raw = read_photo(file)
            if sha256 and hashlib.sha256(raw).hexdigest() != sha256:
                raise PhotoFault("changed", "its content is not what the scan has seen", "scan the photographs again")
            photo = load_photo(raw, chunk.preprocess)
            if photo.shape[:2] != size:
                raise PhotoFault("changed", "its size is not what the scan has seen", "scan the photographs again")
            rows.append(np.ascontiguousarray(photo))
        except PhotoFault as fault:
            return chunk.number, (file, PhotoFault(fault.kind, fault.detail, fault.remedy))
    # Written, not mapped: a full disk is then an error that can be reported, not a SIGBUS.
    with open(chunk.partial, "rb+") as out:
        out.seek(chunk.offset)
        for photo in rows:
            out.write(photo.data)
    return chunk.number, None


def _fill(
    partial: Path,
    progress: Path,
    manifest: Manifest,
    preprocess: Preprocess,
    sizes: np.ndarray,
    done: set[int],
    workers: int,
) -> None:
    files, sha256 = manifest.paths, manifest.table["sha256"].tolist()
    bytes_of = 3 * sizes.prod(axis=1)
    starts = partial.stat().st_size - bytes_of.sum() + np.cumsum(bytes_of) - bytes_of
    chunks = [
        Chunk(
            first // CHUNK,
            partial,
            int(starts[first]),
            tuple(files[first : first + CHUNK]),
            tuple(sha256[first : first + CHUNK]),
            tuple((int(height), int(width)) for height, width in sizes[first : first + CHUNK]),
            preprocess,
        )
        for first in range(0, len(files), CHUNK)
        if first // CHUNK not in done
    ]
    if int(manifest.table["bytes"].sum()) < ENOUGH_FOR_PROCESSES:
        workers = 1
    results = run_tasks(write_chunk, chunks, workers, lambda chunk: str(chunk.files[0]))
    with _finished_chunks(partial, progress) as finished:
        for number, fault in track(results, "Storing photographs (chunks)", total=len(chunks)):
            if fault is not None:
                file, why = fault
                raise DataError(f"{file}: {why.detail}; the scan could read it", f"{why.remedy}, then scan again")
            finished(number)


@contextmanager
def _finished_chunks(partial: Path, progress: Path) -> Iterator[Any]:
    """A function that notes a finished chunk, in the progress file once its pixels are safe on the disk."""
    waiting: list[int] = []
    last = time.monotonic()

    def sync() -> None:
        with open(partial, "rb+") as pixels:
            os.fsync(pixels.fileno())
        with open(progress, "a", encoding="utf-8", newline="\n") as notes:
            notes.write("".join(f"{number}\n" for number in waiting))
            notes.flush()
            os.fsync(notes.fileno())
        waiting.clear()

    def note(number: int) -> None:
        nonlocal last
        waiting.append(number)
        if time.monotonic() - last > SYNC_EVERY:
            sync()
            last = time.monotonic()

    try:
        yield note
    finally:
        sync()
