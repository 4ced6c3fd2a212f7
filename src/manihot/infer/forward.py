"""The one forward loop: validation, out-of-fold, test, new photographs, embeddings and test-time views."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from scipy.special import softmax

from manihot.augment.views import make_view
from manihot.errors import DataError
from manihot.networks.runner import Outputs, Runner
from manihot.photos.decode import PhotoFault
from manihot.photos.load import load_photo, load_unresized
from manihot.photos.preprocess import Preprocess, Unresized
from manihot.progress import track
from manihot.records.probabilities import TINY
from manihot.settings import View

Loaded = TypeVar("Loaded")

AHEAD = 2  # batches prepared while the device works


class Photos(Protocol):
    """A sequence of uint8 photographs (H, W, 3): the training store, or files decoded when asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> np.ndarray: ...


class PhotoFiles:
    """Files as the training store would hold them: decoded, upright, sRGB, at the stored size."""

    def __init__(self, paths: Sequence[Path], preprocess: Preprocess) -> None:
        self.paths = paths
        self.first_step = preprocess.for_store

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return _load(load_photo, self.paths[index], self.first_step)


class UnresizedFiles:
    """The same files for an augmenter, which cuts before it resizes."""

    def __init__(self, files: PhotoFiles) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Unresized:
        return _load(load_unresized, self.files.paths[index], self.files.first_step)


def _load(load: Callable[[Path, Preprocess], Loaded], path: Path, first_step: Preprocess) -> Loaded:
    try:
        return load(path, first_step)
    except PhotoFault as fault:
        raise DataError(f"{path}: {fault.kind}: {fault.detail}", fault.remedy) from fault


def each_batch(
    photos: Photos, rows: np.ndarray, preprocess: Preprocess, views: Sequence[View], batch: int, what: str
) -> Iterator[tuple[slice, int, np.ndarray]]:
    """Yield (place among `rows`, view number, uint8 (n, h, w, 3)), prepared by threads a little ahead."""
    jobs = [(slice(at, at + batch), v) for at in range(0, len(rows), batch) for v in range(len(views))]

    def prepare(job: tuple[slice, int]) -> np.ndarray:
        place, v = job
        return np.stack([make_view(photos[int(row)], views[v], preprocess) for row in rows[place]])

    with ThreadPoolExecutor(AHEAD) as threads:
        waiting: deque[tuple[tuple[slice, int], Future[np.ndarray]]] = deque()
        source = iter(jobs)
        for job in track(jobs, what):
            while len(waiting) <= AHEAD and (following := next(source, None)) is not None:
                waiting.append((following, threads.submit(prepare, following)))
            job, future = waiting.popleft()
            yield job[0], job[1], future.result()


def forward_views(
    runners: Sequence[Runner],
    photos: Photos,
    rows: np.ndarray,
    preprocess: Preprocess,
    views: Sequence[View],
    batch: int = 32,
    want: str = "logits",
    what: str = "Predicting",
    also: Callable[[slice, int, list[Outputs]], None] | None = None,
) -> np.ndarray:
    """`want` ('logits' or 'embeddings') of each view, mean over the runners: float32 (N, V, D).

    Logits are averaged over runners as probabilities (their logarithm is returned), embeddings as they are. also: is
    given the place among `rows`, the view's number and every runner's outputs of each batch.
    """
    out: np.ndarray | None = None
    for place, v, images in each_batch(photos, rows, preprocess, views, batch, what):
        outputs = [runner(images) for runner in runners]
        if also is not None:
            also(place, v, outputs)
        results = [output[want] for output in outputs]
        mean = results[0] if len(results) == 1 else _mean(results, want)
        if out is None:
            out = np.empty((len(rows), len(views), mean.shape[1]), dtype=np.float32)
        out[place, v] = mean
    return np.empty((0, len(views), 0), dtype=np.float32) if out is None else out


def _mean(results: list[np.ndarray], want: str) -> np.ndarray:
    if want == "embeddings":
        found: np.ndarray = np.mean(results, axis=0)
        return found
    probs = [softmax(r.astype(np.float64), axis=1) for r in results]
    found = np.log(np.maximum(np.mean(probs, axis=0), TINY))
    return found


def merge_views(logits: np.ndarray, views: Sequence[View]) -> np.ndarray:
    """Logits of views (N, V, K) to those of their weighted mean probability, float32 (N, K)."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    weights = np.array([view.weight for view in views], dtype=np.float64)
    probs = softmax(logits.astype(np.float64), axis=2)
    mean = np.einsum("nvk,v->nk", probs, weights / weights.sum())
    found: np.ndarray = np.log(np.maximum(mean, TINY)).astype(np.float32)
    return found


class UnknownOutput:
    """Keeps the probability of the output `unknown`, (N,), mean over networks and views, while they predict."""

    def __init__(self, n: int, views: Sequence[View]) -> None:
        self.n = n
        self.weights = [view.weight / sum(view.weight for view in views) for view in views]
        self.probability: np.ndarray | None = None  # stays so where no network has that output

    def __call__(self, place: slice, view: int, outputs: list[Outputs]) -> None:
        """As `also` of `forward_views`."""
        told = [output["unknown"] for output in outputs if "unknown" in output]
        if told:
            if self.probability is None:
                self.probability = np.zeros(self.n)
            self.probability[place] += self.weights[view] * np.mean(told, axis=0)
