"""Is one picture a copy of another, or of a part of it? Search among crops, align, and compare the fine structure.

Candidates: a picture's lowest cosine coefficients, each divided by its usual size in this set, so that an outline
that all photographs share says nothing, are compared with those of 45 crops of every other picture, in 8
orientations. The coefficients of a crop are linear in the picture, so no crop is ever cut. Check: the crop's edges
are fitted by Gauss-Newton on the pixels (Lucas and Kanade 1981; Baker and Matthews 2004) and the fine structure,
a band between two Gaussians, is correlated. Photographs of different leaves agree in outline, never in their veins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from typing import TypeVar

import cv2
import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from manihot.audit.hashes import orient_coefficients, orient_pictures
from manihot.audit.inverted import InvertedIndex, uses_index
from manihot.progress import track

Result = TypeVar("Result")

K = 6  # cosine coefficients a side: 35 without the mean
SMALL = 32  # pixels of the pictures that crops are searched in
MARGIN = 0.05  # of the orientation score, below which a second orientation is tried too
OWNERS = 128  # pictures whose crops are compared at once
OWNERS_OF_INDEX = 1024  # the same with an index: 6 MB of crops' vectors
QUERIES = 256  # pictures compared with them at once: 6 MB of bounds
SHORT = 17  # directions of the bound that is compared first; they decide the speed only
SLACK = 1e-5  # rounding of float32 sums of unit vectors
AT_ONCE = 128  # pairs aligned at once
FLAT = 2.0  # grey levels of deviation below which a picture shows nothing to compare
FAINT = 2.0  # grey levels of fine structure that count little, as the noise of an empty background
GIVE_UP = 0.6  # correlation of 32-pixel pictures after alignment, below which it is not pursued


def _crops() -> np.ndarray:
    """Boxes (y0, y1, x0, x1) in units of the picture, float64 (45, 4); the first is the whole."""

    def cut(size: float, step: float) -> list[tuple[float, float]]:
        count = round((1 - size) / step) + 1
        return [(k * step, k * step + size) for k in range(count)]

    whole = [(0.0, 1.0)]
    pairs = [(whole, whole), (cut(0.9, 0.05), cut(0.9, 0.05)), (cut(0.8, 0.05), cut(0.8, 0.05))]
    one_edge = cut(0.9, 0.1) + cut(0.8, 0.1)  # a 4:3 photograph made square, a bar cut off
    pairs += [(whole, one_edge), (one_edge, whole)]
    return np.array([(*y, *x) for ys, xs in pairs for y in ys for x in xs])


CROPS = _crops()


def shrink(thumbnails: np.ndarray, side: int) -> np.ndarray:
    """Mean of blocks: uint8 (N, S, S) to float32 (N, side, side); S is a multiple of side."""
    out = np.empty((len(thumbnails), side, side), np.float32)
    for at, thumbnail in enumerate(thumbnails):
        cv2.resize(thumbnail.astype(np.float32), (side, side), dst=out[at], interpolation=cv2.INTER_AREA)
    return out


@lru_cache(maxsize=256)
def _waves(low: float, high: float, side: int) -> np.ndarray:
    """What each of `side` pixels adds to the K lowest cosine coefficients of the stretch low..high, (K, side)."""
    edges = np.clip((np.arange(side + 1) / side - low) / (high - low), 0, 1)
    k = np.arange(1, K)[:, None]
    integral = np.vstack([edges[None], np.sqrt(2) * np.sin(np.pi * k * edges) / (np.pi * k)])
    return np.diff(integral, axis=1).astype(np.float32)


def crop_coefficients(small: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Cosine coefficients of a crop of pictures (N, S, S), float32 (N, K, K)."""
    side = small.shape[-1]
    found: np.ndarray = _waves(box[0], box[1], side) @ small @ _waves(box[2], box[3], side).T
    return found


class CropSearch:
    """Finds pictures that look like a crop of another, in any of 8 orientations.

    small: float32 (N, SMALL, SMALL).
    """

    def __init__(self, small: np.ndarray) -> None:
        self.small = small
        self.whole = crop_coefficients(small, CROPS[0])
        self.shows = small.std(axis=(1, 2)) >= FLAT
        self.weight = self._usual_size()

    def _usual_size(self) -> np.ndarray:
        """Weight of each coefficient, (K, K): one over its root mean square here, drawn to that of natural images."""
        frequency = np.hypot(*np.mgrid[:K, :K])
        frequency[0, 0] = np.inf
        relative = self.whole[self.shows].astype(np.float64)
        relative[:, 0, 0] = 0
        relative /= np.maximum(np.sqrt(np.square(relative).sum(axis=(1, 2), keepdims=True)), 1e-9)
        prior = 1 / frequency**2  # amplitudes of natural images fall as one over frequency
        prior /= prior.sum()
        power = (np.square(relative).sum(axis=0) + 30 * prior) / (len(relative) + 30)
        weight = np.zeros((K, K))
        np.divide(1, np.sqrt((power + power.T) / 2), out=weight, where=np.isfinite(frequency))
        return weight.astype(np.float32)

    def describe(self, coefficients: np.ndarray) -> np.ndarray:
        """Unit vectors, float32 (N, 35)."""
        vectors = (coefficients * self.weight).reshape(len(coefficients), K * K)[:, 1:]
        found: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
        return found

    def crops_of(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of all crops, float32 (n, 45, 35)."""
        small = self.small[rows]
        return np.stack([self.describe(crop_coefficients(small, box)) for box in CROPS], axis=1)

    def search(self, least: float) -> Iterator[dict[str, np.ndarray]]:
        """Matches with a correlation of at least `least`: blocks of rows `part, whole, orientation, crop, score`.

        `orientation` turns `part` so that it fits the crop of `whole`.
        """
        asked = np.flatnonzero(self.shows)
        query, turn_query = _canonical(self.describe(self.whole[asked]), MARGIN)
        query_row, query_turn = asked[query[0]], turn_query
        vectors = query[1]
        axes = np.linalg.eigh((vectors.T @ vectors).astype(np.float64))[1][:, ::-1].astype(np.float32)
        index = InvertedIndex(vectors) if uses_index(len(vectors)) else None
        bounds = _shorten(vectors, axes) if index is None else vectors
        owners_at_once = OWNERS if index is None else OWNERS_OF_INDEX

        def proposed(turned: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            if index is None:
                yield from _bounded_pairs(bounds, _shorten(turned, axes), least - SLACK)
            else:
                for c, q in index.near(turned, (2 - 2 * least) ** 0.5):
                    yield q, c

        def compare(at: int) -> list[dict[str, np.ndarray]]:
            owners, found = asked[at : at + owners_at_once], []
            (_, turned), turn_crop = _canonical(self.crops_of(owners).reshape(-1, K * K - 1), None)
            for q, c in proposed(turned):
                score = np.einsum("nd,nd->n", vectors[q], turned[c])
                keep = (score >= least) & (query_row[q] != owners[c // len(CROPS)])
                q, c = q[keep], c[keep]
                if len(q):
                    found.append(
                        {
                            "part": query_row[q],
                            "whole": owners[c // len(CROPS)],
                            "orientation": COMPOSED[query_turn[q], turn_crop[c]],
                            "crop": c % len(CROPS),
                            "score": score[keep],
                        }
                    )
            return found

        blocks = range(0, len(asked), owners_at_once)
        told = f"Comparing crops (by {owners_at_once} photographs)"
        done = _in_threads(compare, blocks) if index is None else map(compare, blocks)  # faiss has threads of its own
        for found in track(done, told, total=len(blocks)):
            yield from found

    def best(self, part: np.ndarray, whole: np.ndarray) -> dict[str, np.ndarray]:
        """The best orientation and crop of given pairs, as `search` gives them."""
        found = {"part": part, "whole": whole, "orientation": part * 0, "crop": part * 0, "score": np.zeros(len(part))}
        for at in range(0, len(part), 512):
            rows = slice(at, at + 512)
            crops = self.crops_of(whole[rows])
            turned = [self.describe(orient_coefficients(self.whole[part[rows]], g)) for g in range(8)]
            score = np.einsum("ngd,ncd->ngc", np.stack(turned, axis=1), crops, optimize=True)
            flat = score.reshape(len(score), -1)
            pick = flat.argmax(axis=1)
            found["orientation"][rows], found["crop"][rows] = pick // len(CROPS), pick % len(CROPS)
            found["score"][rows] = flat[np.arange(len(flat)), pick]
        return found


def _in_threads(work: Callable[[int], Result], tasks: Sequence[int]) -> Iterator[Result]:
    """`work(task)` of each task, in order, on as many threads as BLAS takes for one product, one product on each.

    Products of this size gain little from several threads, and cost ten times as much where another program holds one
    of the cores that they wait for.
    """
    threads = max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)
    rest, running = iter(tasks), deque[Future[Result]]()
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as executor:
        try:
            running.extend(executor.submit(work, task) for task in islice(rest, 2 * threads))
            while running:
                yield running.popleft().result()
                running.extend(executor.submit(work, task) for task in islice(rest, 1))
        finally:
            for future in running:
                future.cancel()


def _composition_table() -> np.ndarray:
    """[a, b]: the orientation that does what orientation a followed by the reverse of b does, int64 (8, 8)."""
    sample = np.arange(9.0).reshape(3, 3)
    turned = [orient_pictures(sample, g).tobytes() for g in range(8)]
    table = np.empty((8, 8), np.int64)
    for b in range(8):
        undo = next(g for g in range(8) if np.array_equal(orient_pictures(orient_pictures(sample, b), g), sample))
        for a in range(8):
            table[a, b] = turned.index(orient_pictures(orient_pictures(sample, a), undo).tobytes())
    return table


COMPOSED = _composition_table()


def _scorers() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each orientation: columns and signs that turn a vector, and the linear score of the turned vector."""
    y, x = np.mgrid[:K, :K]
    numbers = (np.arange(K * K) + 1.0).reshape(1, K, K)
    turned = np.stack([orient_coefficients(numbers, g).reshape(-1)[1:] for g in range(8)])
    columns, signs = np.abs(turned).astype(np.int64) - 2, np.sign(turned).astype(np.float32)
    # Any direction that distinguishes all orientations will do; low frequencies move least with the crop.
    direction = np.where((y % 2 == 0) & (x % 2 == 0), 0, 1 + 0.6 * np.sign(x - y))
    direction = (direction / np.maximum(np.hypot(y, x), 1) ** 1.5).reshape(-1)[1:]
    direction /= np.linalg.norm(direction)
    scores = np.zeros((8, K * K - 1))
    for g in range(8):
        scores[g, columns[g]] = direction * signs[g]
    return columns, signs, scores.T.astype(np.float32)


COLUMNS, SIGNS, SCORES = _scorers()


def _canonical(vectors: np.ndarray, margin: float | None) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Vectors turned so that their score is highest: ((row of each, turned vectors), orientation of each).

    margin: other orientations whose score comes as close come too; None: one a vector.
    """
    score = vectors @ SCORES
    if margin is None:
        row, turn = np.arange(len(vectors)), score.argmax(axis=1)
    else:
        row, turn = np.nonzero(score >= score.max(axis=1, keepdims=True) - margin)
    out = np.empty((len(row), vectors.shape[1]), np.float32)
    for g in range(8):
        mine = turn == g
        out[mine] = vectors[row[mine]][:, COLUMNS[g]] * SIGNS[g]
    return (row, out), turn


def _shorten(vectors: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Coordinates along the first SHORT axes and the length of the rest, float32 (N, SHORT + 1).

    The product of two such rows is never below that of the vectors themselves (Cauchy-Schwarz on the rest).
    """
    turned = vectors @ axes
    rest = np.linalg.norm(turned[:, SHORT:], axis=1, keepdims=True)
    return np.hstack([turned[:, :SHORT], rest])


def _bounded_pairs(left: np.ndarray, right: np.ndarray, least: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of `left` and of `right` whose product is at least `least`, block by block.

    Nearly none is: eight comparisons are checked at once.
    """
    width = len(right)
    product = np.empty((QUERIES, width), np.float32)
    above = np.zeros(-(-product.size // 8) * 8, bool)
    for start in range(0, len(left), QUERIES):
        size = len(left[start : start + QUERIES]) * width
        part = product[: size // width]
        np.matmul(left[start : start + QUERIES], right.T, out=part)
        np.greater_equal(part, np.float32(least), out=above[:size].reshape(part.shape))
        above[size:] = False
        eights = np.flatnonzero(above.view(np.uint64) != 0)
        eight, place = np.nonzero(above.reshape(-1, 8)[eights])
        near = eights[eight] * 8 + place
        yield near // width + start, near % width


# ------------------------------------------------------------------------------------------- alignment


def align(
    thumbnails: np.ndarray, part: np.ndarray, whole: np.ndarray, orientation: np.ndarray, box: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fit the box of each `whole` that shows its `part`: boxes (n, 4) and correlation of the fine structure (n,).

    thumbnails: uint8 (N, S, S). part, whole: rows. orientation: turns the part. box: where to start. Pairs that do
    not agree at low resolution get correlation 0.
    """
    boxes, score = np.array(box, dtype=np.float64), np.zeros(len(part))
    blocks = range(0, len(part), AT_ONCE)
    for at in track(blocks, f"Checking likely copies (by {AT_ONCE})"):
        rows = np.arange(at, min(len(part), at + AT_ONCE))
        inner = np.asarray(thumbnails[part[rows]])
        inner = np.stack([orient_pictures(p, g) for p, g in zip(inner, orientation[rows])])
        outer = np.asarray(thumbnails[whole[rows]])
        for side, steps, least in ((32, 5, GIVE_UP), (64, 3, GIVE_UP)):
            boxes[rows], agreement = _fit(shrink(inner, side), shrink(outer, side), boxes[rows], steps)
            good = agreement >= least
            rows, inner, outer = rows[good], inner[good], outer[good]
            if not len(rows):
                break
        if len(rows):
            score[rows] = _correlate(inner, _cut(outer.astype(np.float32), boxes[rows]))
    return boxes, score


def _cut(pictures: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) of square pictures (n, S, S), linearly interpolated to S x S again."""
    y, x = (_weights(box[:, k], box[:, k + 1], pictures.shape[-1]) for k in (0, 2))
    found: np.ndarray = y @ pictures @ x.swapaxes(1, 2)
    return found


def _weights(low: np.ndarray, high: np.ndarray, side: int) -> np.ndarray:
    """Weights of `side` pixels in `side` evenly spaced points of the stretch low..high, float32 (n, side, side)."""
    share = (np.arange(side) + 0.5) / side
    point = (low[:, None] + share * (high - low)[:, None]) * side - 0.5
    point = np.clip(point, 0, side - 1)[:, :, None]
    found: np.ndarray = np.maximum(0, 1 - np.abs(point - np.arange(side))).astype(np.float32)
    return found


def _fit(inner: np.ndarray, outer: np.ndarray, box: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Newton on the four edges; returns the best boxes seen and the correlation there."""
    n, side = len(inner), inner.shape[-1]
    target = _standardise(inner.reshape(n, -1))[0]
    share = ((np.arange(side) + 0.5) / side).astype(np.float32)
    best, agreement = box.copy(), np.full(n, -1.0)
    for step in range(steps + 1):
        shown = _cut(outer, box)
        flat, size = _standardise(shown.reshape(n, -1))
        correlation = np.einsum("np,np->n", target, flat)
        better = correlation > agreement
        best[better], agreement[better] = box[better], correlation[better]
        if step == steps:
            break
        gy, gx = np.gradient(shown, 1 / side, axis=(1, 2))
        gy /= (box[:, 1] - box[:, 0])[:, None, None]
        gx /= (box[:, 3] - box[:, 2])[:, None, None]
        slopes = np.stack(
            [gy * (1 - share[:, None]), gy * share[:, None], gx * (1 - share), gx * share], axis=1
        ).reshape(n, 4, -1)
        slopes /= size[:, None, None]
        slopes -= slopes.mean(axis=2, keepdims=True)
        slopes -= np.einsum("nkp,np->nk", slopes, flat)[:, :, None] * flat[:, None]  # contrast is free
        normal = (slopes @ slopes.swapaxes(1, 2)).astype(np.float64)
        normal += (1e-3 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-9) * np.eye(4)
        wanted = np.einsum("nkp,np->nk", slopes, target - flat).astype(np.float64)
        box = box + np.clip(np.linalg.solve(normal, wanted[:, :, None])[:, :, 0], -0.05, 0.05)
        low, high = np.clip(box[:, ::2], -0.02, 0.45), np.clip(box[:, 1::2], 0.55, 1.02)
        box = np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1)
    return best, agreement


def _standardise(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of mean 0 and length 1, and their length before."""
    values = values - values.mean(axis=1, keepdims=True)
    size = np.maximum(np.linalg.norm(values, axis=1), 1e-3)
    return values / size[:, None], size


def _fine(picture: np.ndarray) -> np.ndarray:
    """The structure between 1.2 and 4 pixels wide, (S, S), evened out so that one strong outline can't outvote it."""
    fine = cv2.GaussianBlur(picture, (0, 0), 1.2) - cv2.GaussianBlur(picture, (0, 0), 4)
    found: np.ndarray = fine / np.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), 6) + FAINT**2)
    return found


def _correlate(inner: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Correlation of the fine structure of pictures (n, S, S) with that of others, (n,)."""
    out = np.empty(len(inner))
    for k, (a, b) in enumerate(zip(inner, shown)):
        (left, _), (right, _) = (_standardise(_fine(p.astype(np.float32)).reshape(1, -1)) for p in (a, b))
        out[k] = float((left @ right.T)[0, 0])
    return out
