"""Pairs of vectors that lie close to each other, in memory linear in the number of vectors; exactly up to a size.

`DBSCAN(eps, min_samples=1)` is the connected components of the graph that joins vectors at most `eps` apart;
`components_within` finds the same partition. Each vector is split into its part in a 64-dimensional subspace and
the length of the rest: distances of these are never longer than the true ones (triangle inequality), so a
blocked product of short vectors finds every candidate, and only candidates are measured at full length. Among very
many vectors an inverted index of the short ones (`inverted`) proposes the candidates.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from manihot.audit.inverted import InvertedIndex, uses_index
from manihot.errors import DataError
from manihot.records.groups import join_labels

SUBSPACE = 64  # dimensions of the short vectors
SAMPLE = 2048  # vectors that choose the subspace; it decides the speed only
BLOCK = 2048  # rows of a block of the short product: 16 MB
EXACT = 1 << 23  # elements of vectors measured at once


def pairs_within(embeddings: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs i < j at most `eps` apart: (i, j, Euclidean distance), sorted by i, then j.

    embeddings: (N, D) finite. Very many are searched by an index, which misses a few pairs.
    Memory grows with N and with the number of pairs, never with N * N. Raises DataError.
    """
    vectors = _checked(embeddings, eps)
    found = [_measure(vectors, i, j, eps) for i, j in _candidate_blocks(vectors, eps)]
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float64)
    first, second, distance = (np.concatenate(parts) for parts in zip(*found))
    order = np.unique(first * np.int64(len(vectors)) + second, return_index=True)[1]  # an index finds most pairs twice
    return first[order], second[order], distance[order]


def components_within(embeddings: np.ndarray, eps: float) -> np.ndarray:
    """Component of each vector, int64 (N,), numbered by first appearance, as `DBSCAN(eps, min_samples=1)` does.

    embeddings: (N, D) finite. Pairs already joined by others are not measured. Raises DataError.
    """
    vectors = _checked(embeddings, eps)
    label = np.arange(len(vectors))
    for i, j in _candidate_blocks(vectors, eps):
        for at in range(0, len(i), BLOCK):
            left, right = i[at : at + BLOCK], j[at : at + BLOCK]
            apart = label[left] != label[right]
            if apart.any():
                left, right, _ = _measure(vectors, left[apart], right[apart], eps)
                label = join_labels(label, left, right)
    return number_by_appearance(label)


def nearest_in_components(
    vectors: np.ndarray, label: np.ndarray, eps: float, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs at most `eps` apart in which one row is among the other's `most` nearest of its component: i < j, distance.

    vectors: float32 (N, D) of unit length. label: of `components_within`. Sorted by i, then j; memory grows with
    N * `most`.
    """
    first, second = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    order = np.argsort(label, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(label[order])) + 1):
        if len(rows) < 2:
            continue
        members, kept = vectors[rows], min(most, len(rows) - 1)
        for at in range(0, len(rows), BLOCK):
            alike = members[at : at + BLOCK] @ members.T
            here = np.arange(len(alike))
            alike[here, at + here] = -2
            near = np.argpartition(-alike, kept - 1, axis=1)[:, :kept]
            first.append(np.repeat(rows[at : at + BLOCK], kept))
            second.append(rows[near].ravel())
    i, j = np.concatenate(first), np.concatenate(second)
    pairs = np.unique(np.stack([np.minimum(i, j), np.maximum(i, j)], axis=1), axis=0)
    return _measure(vectors, pairs[:, 0], pairs[:, 1], eps)


def number_by_appearance(label: np.ndarray) -> np.ndarray:
    """The same partition with numbers 0, 1, ... in the order in which its parts first appear, int64 (N,)."""
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[inverse]


def _checked(embeddings: np.ndarray, eps: float) -> np.ndarray:
    vectors = np.asarray(embeddings)
    if vectors.ndim != 2:
        raise DataError(f"embeddings have {vectors.ndim} dimensions, not 2", "give one row per photograph")
    if not eps > 0:
        raise DataError(f"a distance of {eps} joins nothing", "choose one above 0")
    vectors = vectors.astype(np.float32, copy=False)
    for at in range(0, len(vectors), BLOCK):
        bad = ~np.isfinite(vectors[at : at + BLOCK]).all(axis=1)
        if bad.any():
            raise DataError(
                f"{int(bad.sum())} embeddings are not finite, first row {at + int(np.argmax(bad))}",
                "compute them again in fp32",
            )
    return vectors


def _candidate_blocks(vectors: np.ndarray, eps: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows i < j of every pair whose lower bound is at most eps, block by block."""
    if len(vectors) < 2:
        return
    short = _shorten(vectors)
    if uses_index(len(short)):
        for q, row in InvertedIndex(short).near(short, eps):
            apart = q != row
            yield np.minimum(q, row)[apart], np.maximum(q, row)[apart]
        return
    square = np.einsum("nd,nd->n", short, short)
    # -d^2 / 2 as one product: [x, -x.x/2, 1] . [y, 1, -y.y/2]
    one = np.ones((len(short), 1), np.float32)
    left = np.hstack([short, -square[:, None] / 2, one])
    right = np.hstack([short, one, -square[:, None] / 2])
    slack = 2e-6 * float(square.max())  # rounding of float32 sums; candidates are measured anyway
    bound = np.float32(-(eps**2) / 2 - slack)
    for top in range(0, len(short), BLOCK):
        for start in range(top, len(short), BLOCK):
            near = np.flatnonzero(left[top : top + BLOCK] @ right[start : start + BLOCK].T >= bound)
            width = min(BLOCK, len(short) - start)
            i, j = near // width + top, near % width + start
            keep = i < j
            if keep.any():
                yield i[keep], j[keep]


def _shorten(vectors: np.ndarray) -> np.ndarray:
    """Coordinates in the main subspace and the length of the rest, float32 (N, min(D, 65))."""
    n, dims = vectors.shape
    mean = np.zeros(dims, np.float64)
    for at in range(0, n, BLOCK):
        mean += vectors[at : at + BLOCK].sum(axis=0, dtype=np.float64)
    centre = (mean / n).astype(np.float32)
    if dims <= SUBSPACE + 1:
        found: np.ndarray = vectors - centre
        return found
    rng = np.random.default_rng(0)
    sample = vectors[np.sort(rng.choice(n, min(n, SAMPLE), replace=False))] - centre
    basis = rng.standard_normal((dims, SUBSPACE)).astype(np.float32)
    for _ in range(3):  # subspace iteration; any orthonormal basis gives a valid bound
        basis = np.linalg.qr(sample.T @ (sample @ basis))[0]
    short = np.empty((n, SUBSPACE + 1), np.float32)
    for at in range(0, n, BLOCK):
        part = vectors[at : at + BLOCK] - centre
        inside = part @ basis
        rest = np.einsum("nd,nd->n", part, part) - np.einsum("nd,nd->n", inside, inside)
        short[at : at + BLOCK, :-1] = inside
        short[at : at + BLOCK, -1] = np.sqrt(np.maximum(rest, 0))
    return short


def _measure(
    vectors: np.ndarray, i: np.ndarray, j: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The candidates at most eps apart, with their distances (float64)."""
    distance = np.empty(len(i))
    step = max(1, EXACT // max(1, vectors.shape[1]))
    for at in range(0, len(i), step):
        apart = vectors[i[at : at + step]].astype(np.float64) - vectors[j[at : at + step]]
        distance[at : at + step] = np.sqrt(np.einsum("nd,nd->n", apart, apart))
    near = distance <= eps
    return i[near], j[near], distance[near]
