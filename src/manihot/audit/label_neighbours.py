"""Nearest photographs in embedding space, and what their labels say of a photograph's own.

Exact search in blocks: memory grows with N times the block, never with N squared. Embeddings are standardised, reduced
to their leading components and scaled to unit length first, so that a distance compares directions.
"""

from __future__ import annotations

import numpy as np

from manihot.audit.label_scores import normalise

DIMENSIONS = 128  # leading components kept; more gave no better neighbours on leaf crops and digits
BLOCK = 1 << 22  # similarities held at once
EXACT = 1024  # up to so many dimensions the components come from the full covariance


def reduce_embeddings(embeddings: np.ndarray, dimensions: int = DIMENSIONS) -> np.ndarray:
    """Standardised leading principal components of embeddings (N, D), rows of unit length, float32 (N, <=dimensions).

    The same for any order of rows. Embeddings of one network that never learned these labels are wanted: features of
    fold models differ from fold to fold.
    """
    x = np.asarray(embeddings, dtype=np.float32)
    if not len(x):
        return x[:, :dimensions]
    x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6)
    if x.shape[1] > dimensions:
        x = x @ _components(x, dimensions)
    found: np.ndarray = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return found


def _components(x: np.ndarray, count: int) -> np.ndarray:
    """Leading principal directions (D, count): exact for few dimensions, else by subspace iteration."""
    if x.shape[1] <= EXACT:
        return np.linalg.eigh((x.T @ x).astype(np.float64))[1][:, ::-1][:, :count].astype(np.float32)
    start = np.random.default_rng(0).standard_normal((x.shape[1], count + 32), dtype=np.float32)
    basis = np.linalg.qr(start)[0]
    for _ in range(4):  # Halko, Martinsson, Tropp 2011, algorithm 4.4
        basis = np.linalg.qr(x.T @ (x @ basis))[0]
    projected = x @ basis
    turn = np.linalg.eigh((projected.T @ projected).astype(np.float64))[1][:, ::-1][:, :count]
    return basis @ turn.astype(np.float32)


def find_neighbours(features: np.ndarray, groups: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (N, k) and distances (N, k) of the nearest rows of other groups, nearest first.

    features: unit-length rows (N, D). groups: int (N,), rows that share a number never are neighbours. Where fewer
    than k rows are left, the index is -1 and the distance infinite.
    """
    n = len(features)
    wanted = min(k, max(n - 1, 0))
    index, distance = np.full((n, k), -1), np.full((n, k), np.inf, dtype=np.float32)
    if wanted == 0:
        return index, distance
    order = np.argsort(groups, kind="stable")
    begin = np.searchsorted(groups[order], groups, side="left")
    end = np.searchsorted(groups[order], groups, side="right")
    step = max(1, BLOCK // n)
    for at in range(0, n, step):
        rows = np.arange(at, min(at + step, n))
        similarity = features[rows] @ features.T
        for i, row in enumerate(rows):
            similarity[i, order[begin[row] : end[row]]] = -np.inf
        near, values = _highest(similarity, wanted)
        index[rows, :wanted] = np.where(np.isfinite(values), near, -1)
        distance[rows, :wanted] = np.sqrt(np.maximum(2 - 2 * values, 0))
    return index, distance


def _highest(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns (n, count) and values of the highest in each row of (n, m), highest first, ties in column order.

    What is at least the count-th highest of a sample of the row holds all that is wanted and little else.
    """
    n, m = values.shape
    every = max(1, round((m / count) ** 0.5 / 2))
    sample = values[:, ::every]
    if sample.shape[1] < count:
        every, sample = 1, values
    least = np.partition(sample, sample.shape[1] - count, axis=1)[:, [sample.shape[1] - count]]
    row, column = np.divmod(np.flatnonzero(values >= least), m)
    found = np.bincount(row, minlength=n)
    place = np.arange(len(row)) - np.repeat(np.cumsum(found) - found, found)
    held, columns = np.full((n, found.max()), -np.inf, values.dtype), np.zeros((n, found.max()), np.int64)
    held[row, place], columns[row, place] = values[row, column], column
    best = np.argsort(-held, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(columns, best, axis=1), np.take_along_axis(held, best, axis=1)


def neighbour_probs(index: np.ndarray, votes: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Mean vote of the neighbours (N, K) with one more voter who votes the prior (K,).

    index: (N, k), -1 for none. votes: (N, K), rows sum to 1: one-hot labels or soft ones.
    """
    there = index >= 0
    total = (votes[index] * there[..., None]).sum(axis=1) + prior
    return normalise(total)


def label_agreement(index: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share (N,) of a photograph's neighbours with its own label; NaN without neighbours."""
    there = index >= 0
    same = ((labels[index] == labels[:, None]) & there).sum(axis=1)
    return np.where(there.any(axis=1), same / np.maximum(there.sum(axis=1), 1), np.nan)


def typicality(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
    """How near a photograph lies to others of its given label, in (0, 1), (N,); low for an outlier of its class.

    t / (t + d): d the mean distance to the k nearest of the same label and another group, t the median of d in the
    class, so that wide and narrow classes are judged alike. NaN for a class's only photograph.
    """
    out = np.full(len(labels), np.nan)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        _, distance = find_neighbours(features[rows], groups[rows], k)
        there = np.isfinite(distance)
        mean = np.where(there, distance, 0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
        known = there.any(axis=1)
        if known.any():
            typical = max(float(np.median(mean[known])), 1e-12)
            out[rows[known]] = typical / (typical + mean[known])
    return out
