"""Near vectors among very many: compressed codes in an inverted index, for sets beyond the search of all pairs.

faiss (arXiv 2401.08281, extra `large`): k-means divides the vectors into cells, each vector is kept as a byte per
dimension in the list of its cell, and a query searches the lists of the nearest cells. It only proposes: whoever
asks measures each pair at full precision. An index of graphs would lose recall just where there are many duplicates.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np

from manihot.extras import has_faiss
from manihot.progress import warn

LARGE = 50_000  # vectors from which the index is used
PROBES = 32  # lists searched per query, of about 4 sqrt(N); the recall on large sets has not been measured
SAMPLES_A_LIST = 40  # vectors that k-means learns a cell from, as faiss asks for at least
BLOCK = 16_384  # queries at once
CODE_ERROR = 1.03  # of the radius, as codes are rounded
EXACT_AT_20_000 = 60.0  # seconds that the search of all pairs among 20,000 photographs takes on two cores


def uses_index(vectors: int) -> bool:
    """Whether so many vectors are searched by an index."""
    return vectors > LARGE and has_faiss()


def tell_cost(photographs: int) -> None:
    """Say how long the search of all pairs takes where the index would be used, and isn't installed."""
    if photographs > LARGE and not has_faiss():
        hours = EXACT_AT_20_000 / 3600 * (photographs / 20_000) ** 2
        warn(
            f"every pair of {photographs:,} photographs is compared, in about {hours:.0f} hours on two cores; "
            'pip install "manihot[large]" brings an index that takes minutes'
        )


class InvertedIndex:
    """Finds vectors within a radius of a query, nearly all of them.

    vectors: float32 (N, D). Memory: a byte per dimension and 8 more for each.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        faiss: Any = import_module("faiss")
        n, dims = vectors.shape
        lists = _lists(n)
        sample = np.sort(np.random.default_rng(0).choice(n, min(n, SAMPLES_A_LIST * lists), replace=False))
        self._quantizer = faiss.IndexFlatL2(dims)  # the index only points to it
        self.index = faiss.IndexIVFScalarQuantizer(
            self._quantizer, dims, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_L2
        )
        self.index.train(np.ascontiguousarray(vectors[sample], np.float32))
        for at in range(0, n, BLOCK):
            self.index.add(np.ascontiguousarray(vectors[at : at + BLOCK], np.float32))
        self.index.nprobe = min(PROBES, lists)

    def near(self, queries: np.ndarray, radius: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows of queries (M, D) and of vectors at most about `radius` apart, block by block; more than are nearer."""
        for at in range(0, len(queries), BLOCK):
            block = np.ascontiguousarray(queries[at : at + BLOCK], np.float32)
            limits, _, rows = self.index.range_search(block, (CODE_ERROR * radius) ** 2)
            yield np.repeat(np.arange(len(block)) + at, np.diff(limits).astype(np.int64)), rows


class HashIndex:
    """Finds hashes that differ in few bits, nearly all of them. phash: uint64 (N,)."""

    def __init__(self, phash: np.ndarray) -> None:
        faiss: Any = import_module("faiss")
        lists = _lists(len(phash))
        codes = _as_bytes(phash)
        sample = np.sort(np.random.default_rng(0).choice(len(codes), min(len(codes), SAMPLES_A_LIST * lists), False))
        self._quantizer = faiss.IndexBinaryFlat(64)
        self.index = faiss.IndexBinaryIVF(self._quantizer, 64, lists)
        self.index.train(codes[sample])
        self.index.add(codes)
        self.index.nprobe = min(2 * PROBES, lists)

    def near(self, phash: np.ndarray, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows of `phash` and of the hashes that differ in at most `most` bits, block by block."""
        for at in range(0, len(phash), BLOCK):
            limits, _, rows = self.index.range_search(_as_bytes(phash[at : at + BLOCK]), most + 1)
            yield np.repeat(np.arange(len(limits) - 1) + at, np.diff(limits).astype(np.int64)), rows


def _lists(n: int) -> int:
    """Cells for n vectors: about 4 sqrt(n), each with enough of them to learn it from."""
    return max(1, min(int(4 * n**0.5), n // SAMPLES_A_LIST))


def _as_bytes(phash: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(phash, np.uint64).view(np.uint8).reshape(-1, 8)
