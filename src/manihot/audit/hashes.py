"""Thumbnails: of every photograph a small grey picture, a perceptual hash and the measurements of its composition.

One decoding, at the smallest scale that is enough, serves all of them. Perceptual hash: signs of the 63 lowest
coefficients of the discrete cosine transform besides the mean (pHash, Zauner 2010). Their sign is taken against 0,
not against the median, because a flip then inverts known bits and nothing else: the hashes of all 8 orientations
come from one transform.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from manihot.audit.inverted import HashIndex, uses_index
from manihot.audit.measurements import MEASUREMENTS, SIDE, ThumbnailTask, measure_files
from manihot.errors import DataError, RunFolderError
from manihot.photos.workers import ENOUGH_FOR_PROCESSES, run_tasks
from manihot.progress import track
from manihot.records.files import atomic_path, digest_value, save_json
from manihot.records.manifest import Manifest
from manihot.records.parquet_files import read_frame
from manihot.records.readers import read_array, read_json, reading

FORMAT = 1  # raised whenever the same photographs give other thumbnails
TASK = 16  # photographs a task
PART = 512  # photographs between two moments at which the work is saved
HASH_SIDE = 8
HASHES_AT_ONCE = 1 << 20  # pairs of hashes compared at once


@dataclass(frozen=True)
class Thumbnails:
    """Small pictures of photographs, and what was measured with them.

    image_id: object (N,). pictures: uint8 (N, SIDE, SIDE), grey, squared, upright; on disk where they were
    loaded. phash: uint64 (N,). composition: `image_id` and the columns of measurements.MEASUREMENTS.
    """

    image_id: np.ndarray
    pictures: np.ndarray
    phash: np.ndarray
    composition: pd.DataFrame

    def __len__(self) -> int:
        return len(self.image_id)

    def save(self, folder: Path) -> None:
        """Write `thumbnails.parquet` and `thumbnails.npy` into `folder`, each atomically."""
        with atomic_path(Path(folder) / "thumbnails.npy") as temporary:
            np.save(temporary, self.pictures)
        with atomic_path(Path(folder) / "thumbnails.parquet") as temporary:
            self.composition.assign(phash=self.phash).to_parquet(temporary, index=False)

    @classmethod
    def load(cls, folder: Path) -> Thumbnails:
        """Read what `save` wrote; the pictures stay on disk. RunFolderError where that is absent or broken."""
        folder = Path(folder)
        what, remedy = "thumbnails of photographs", f"remove the folder {folder} and run the same command again"
        columns = {"image_id": "text", "phash": "whole", **dict.fromkeys(MEASUREMENTS, "number?")}
        table = read_frame(folder / "thumbnails.parquet", what, columns, remedy, RunFolderError)
        shape = (len(table), SIDE, SIDE)
        pictures = read_array(folder / "thumbnails.npy", what, "uint8", shape, mapped=True, remedy=remedy)
        with reading(folder / "thumbnails.parquet", what, remedy):
            phash = table.pop("phash").to_numpy(np.uint64)
            if not table["image_id"].is_unique:
                raise ValueError("photographs that appear twice")
        return cls(table["image_id"].to_numpy(object), pictures, phash, table)

    def rows(self, image_id: np.ndarray) -> np.ndarray:
        """Row of each id, int64 (n,); an id without a thumbnail is a DataError."""
        where = pd.Index(self.image_id).get_indexer(pd.Index(np.asarray(image_id, dtype=object)))
        if (where < 0).any():
            missing = np.asarray(image_id, dtype=object)[where < 0]
            raise DataError(
                f"{len(missing)} photographs have no thumbnail, first {missing[0]!r}", "make those of all photographs"
            )
        found: np.ndarray = where
        return found


def make_thumbnails(manifest: Manifest, workers: int = 2, folder: Path | None = None) -> Thumbnails:
    """Decode each photograph once, small, and keep a thumbnail, a hash and its measurements.

    workers: processes; the result does not depend on it. folder: where finished thumbnails are kept (and found again
    when the photographs are the same) and interrupted ones continued.
    Raises DataError for a photograph that was changed or became unreadable since the scan.
    """
    parts = -(-len(manifest) // PART)
    digest = digest_value([FORMAT, manifest.table[["image_id", "path", "sha256"]].to_numpy().tolist()])
    if folder is None:
        return _join(list(_make(manifest, range(parts), workers)))
    folder = Path(folder)
    work = folder / "parts"
    if _digest_of(folder / "thumbnails.json") == digest:
        shutil.rmtree(work, ignore_errors=True)  # of a process that was killed while it removed them
        return Thumbnails.load(folder)
    if _digest_of(work / "thumbnails.json") != digest:
        shutil.rmtree(work, ignore_errors=True)
        (folder / "thumbnails.json").unlink(missing_ok=True)
        save_json(work / "thumbnails.json", {"digest": digest})
    left = [k for k in range(parts) if not (work / f"{k:05d}" / "thumbnails.parquet").is_file()]
    for k, thumbnails in zip(left, _make(manifest, left, workers)):
        thumbnails.save(work / f"{k:05d}")
    _merge(folder, [work / f"{k:05d}" for k in range(parts)])
    save_json(folder / "thumbnails.json", {"digest": digest})
    shutil.rmtree(work, ignore_errors=True)
    return Thumbnails.load(folder)


def _digest_of(path: Path) -> str:
    """What an earlier call left; '' where there was none, or it can't be read and all is done again."""
    try:
        return str(read_json(path)["digest"])
    except (RunFolderError, KeyError, TypeError):
        return ""


def _join(thumbnails: list[Thumbnails]) -> Thumbnails:
    if not thumbnails:
        raise DataError("there are no photographs", "scan a folder that has some")
    return Thumbnails(
        np.concatenate([part.image_id for part in thumbnails]),
        np.concatenate([part.pictures for part in thumbnails]),
        np.concatenate([part.phash for part in thumbnails]),
        pd.concat([part.composition for part in thumbnails], ignore_index=True),
    )


def _merge(folder: Path, parts: list[Path]) -> None:
    """Write the finished parts as one, a part at a time in memory."""
    if not parts:
        raise DataError("there are no photographs", "scan a folder that has some")
    found = [Thumbnails.load(part) for part in parts]
    tables = [thumbnails.composition.assign(phash=thumbnails.phash) for thumbnails in found]
    with atomic_path(folder / "thumbnails.npy") as temporary, open(temporary, "wb") as file:
        shape = (sum(map(len, tables)), SIDE, SIDE)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for thumbnails in found:
            file.write(np.ascontiguousarray(thumbnails.pictures).data)
    with atomic_path(folder / "thumbnails.parquet") as temporary:
        pd.concat(tables, ignore_index=True).to_parquet(temporary, index=False)


_Found = tuple[np.ndarray, list[dict[str, float]]]


def _make(manifest: Manifest, parts: range | list[int], workers: int) -> Iterator[Thumbnails]:
    """The thumbnails of each part, in order."""
    files, sha256 = manifest.paths, manifest.table["sha256"].tolist()
    bounds = [(k * PART, min(len(files), (k + 1) * PART)) for k in parts]
    tasks = [
        ThumbnailTask(tuple(files[at : min(stop, at + TASK)]), tuple(sha256[at : min(stop, at + TASK)]))
        for start, stop in bounds
        for at in range(start, stop, TASK)
    ]
    if int(manifest.table["bytes"].sum()) < ENOUGH_FOR_PROCESSES:
        workers = 1
    results = iter(
        track(
            run_tasks(measure_files, tasks, workers, lambda task: str(task.files[0])),
            f"Making thumbnails (by {TASK})",
            total=len(tasks),
        )
    )
    for start, stop in bounds:
        found: list[_Found] = []
        for _ in range(start, stop, TASK):
            pictures, values, fault = next(results)
            if fault is not None:
                file, why = fault
                raise DataError(f"{file}: {why.detail}; the scan could read it", f"{why.remedy}, then scan again")
            found.append((pictures, values))
        pictures = np.concatenate([pictures for pictures, _ in found])
        ids = manifest.image_id[start:stop]
        table = pd.DataFrame([row for _, values in found for row in values])
        table.insert(0, "image_id", ids)
        pixels = (manifest.table["height"] * manifest.table["width"]).to_numpy(np.float64)[start:stop]
        table["megapixels"] = np.where(pixels > 0, pixels / 1e6, np.nan)
        yield Thumbnails(ids, pictures, pack_hashes(transform(pictures, HASH_SIDE)), table)
    for _ in results:  # lets the bar end
        pass


# ------------------------------------------------------------------------------------------- hashes


def transform(pictures: np.ndarray, k: int) -> np.ndarray:
    """The k x k lowest coefficients of the cosine transform of pictures (N, S, S), float32 (N, k, k)."""
    side = pictures.shape[-1]
    waves = np.cos(np.pi * np.arange(k)[:, None] * (np.arange(side) + 0.5) / side).astype(np.float32)
    out = np.empty((len(pictures), k, k), np.float32)
    for at in range(0, len(pictures), PART):
        out[at : at + PART] = waves @ pictures[at : at + PART].astype(np.float32) @ waves.T
    return out


def orient_coefficients(coefficients: np.ndarray, orientation: int) -> np.ndarray:
    """Cosine coefficients (N, k, k) of the pictures turned by `orientation`, as `orient_pictures` turns them."""
    sign = (-1.0) ** np.arange(coefficients.shape[-1], dtype=np.float32)
    if orientation & 1:
        coefficients = coefficients * sign
    if orientation & 2:
        coefficients = coefficients * sign[:, None]
    return coefficients.swapaxes(-1, -2) if orientation & 4 else coefficients


def orient_pictures(pictures: np.ndarray, orientation: int) -> np.ndarray:
    """Square pictures (..., S, S) in one of 8 orientations: bit 0 mirrors x, bit 1 mirrors y, then bit 2 transposes."""
    if orientation & 1:
        pictures = pictures[..., ::-1]
    if orientation & 2:
        pictures = pictures[..., ::-1, :]
    return pictures.swapaxes(-1, -2) if orientation & 4 else pictures


def pack_hashes(coefficients: np.ndarray) -> np.ndarray:
    """Signs of the coefficients (N, 8, 8) but the mean as 64 bits, uint64 (N,)."""
    positive = (coefficients > 0).reshape(len(coefficients), -1)
    positive[:, 0] = False
    return np.packbits(positive, axis=1, bitorder="little").view(np.uint64)[:, 0]


def turned_hashes(phash: np.ndarray) -> np.ndarray:
    """The hashes (N,) in all 8 orientations, uint64 (N, 8)."""
    bits = np.unpackbits(phash[:, None].view(np.uint8), axis=1, bitorder="little")
    signs = bits.reshape(-1, HASH_SIDE, HASH_SIDE).astype(np.float32) * 2 - 1
    return np.stack([pack_hashes(orient_coefficients(signs, g)) for g in range(8)], axis=1)


def count_bits(words: np.ndarray) -> np.ndarray:
    """Bits that are set in each word of uint64."""
    if hasattr(np, "bitwise_count"):  # numpy 2
        found: np.ndarray = np.bitwise_count(words)
        return found
    words = words - ((words >> np.uint64(1)) & np.uint64(0x5555555555555555))
    words = (words & np.uint64(0x3333333333333333)) + ((words >> np.uint64(2)) & np.uint64(0x3333333333333333))
    words = (words + (words >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return ((words * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.uint8)


def hash_pairs(phash: np.ndarray, most: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs i < j whose hashes differ in at most `most` bits in some orientation, block by block.

    Yields (i, j, orientation that turns i into j, bits that differ); a pair may come in several orientations.
    Two such hashes agree in at least one of `most` + 1 sets of bits (Manku, Jain, Das Sarma 2007), so only hashes that
    agree in one are compared. Very many are searched by an index, which misses a few pairs.
    """
    turned = turned_hashes(phash)
    if uses_index(len(phash)):
        index = HashIndex(phash)
        for g in range(8):
            for i, j in index.near(turned[:, g], most):
                upper = i < j
                i, j = i[upper], j[upper]
                if len(i):
                    yield i, j, np.full(len(i), g), count_bits(turned[i, g] ^ phash[j])
        return
    masks = _bit_sets(phash, most + 1)
    for number, mask in enumerate(masks):
        order = np.argsort(phash & mask, kind="stable")
        keys = (phash & mask)[order]
        for g in range(8):
            wanted = turned[:, g] & mask
            begin = np.searchsorted(keys, wanted, side="left")
            count = np.searchsorted(keys, wanted, side="right") - begin
            for rows in _runs(count, HASHES_AT_ONCE):
                i = np.repeat(rows, count[rows])
                place = np.arange(len(i)) - np.repeat(np.cumsum(count[rows]) - count[rows], count[rows])
                j = order[np.repeat(begin[rows], count[rows]) + place]
                upper = i < j
                i, j = i[upper], j[upper]
                differ = turned[i, g] ^ phash[j]
                apart = count_bits(differ)
                keep = apart <= most
                for earlier in masks[:number]:  # a pair that agrees in several sets comes with the first
                    keep &= (differ & earlier) != 0
                if keep.any():
                    yield i[keep], j[keep], np.full(int(keep.sum()), g), apart[keep]


def _bit_sets(phash: np.ndarray, count: int) -> list[np.uint64]:
    """The 63 bits in `count` disjoint sets that separate these hashes about equally well."""
    bits = np.unpackbits(phash[:, None].view(np.uint8), axis=1, bitorder="little")[:, 1:]
    ranked = np.argsort(np.abs(bits.mean(axis=0) - 0.5), kind="stable") + 1  # bit 0 says nothing
    return [np.bitwise_or.reduce(np.uint64(1) << ranked[k::count].astype(np.uint64)) for k in range(count)]


def _runs(count: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Consecutive rows whose counts sum to at most `most`, or a single row."""
    start, total = 0, np.cumsum(count)
    while start < len(count):
        before = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, before + most, side="right")))
        yield np.arange(start, stop)
        start = stop
