"""Training batches: rows of the store, augmented by (seed, epoch, photograph), for any number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from manihot.data.augment import Augmenter

Batch = dict[str, Tensor]


class TrainingPhotos(Dataset):
    """Items (epoch, place) -> image uint8 (h, w, 3), colour matrix float32 (3, 4), target, weight, place.

    photos: the store. rows: rows of the store, (N,). targets: soft labels (N, K). weights: (N,).
    """

    def __init__(
        self, photos: Any, rows: np.ndarray, targets: np.ndarray, weights: np.ndarray, augmenter: Augmenter
    ) -> None:
        self.photos, self.rows, self.augmenter = photos, rows, augmenter
        self.targets = targets.astype(np.float32)
        self.weights = weights.astype(np.float32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        epoch, place = item
        row = int(self.rows[place])
        image, colour = self.augmenter(self.photos[row], epoch, row)
        return {
            "image": torch.from_numpy(image),
            "colour": torch.from_numpy(colour),
            "target": torch.from_numpy(self.targets[place]),
            "weight": torch.tensor(self.weights[place]),
            "index": torch.tensor(place),
        }


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, place), shuffled by (seed, epoch), of nearly equal sizes so that none is tiny."""

    def __init__(self, photographs: int, batch: int, seed: int) -> None:
        self.photographs, self.seed = photographs, seed
        self.count = max(1, -(-photographs // batch))
        self.epoch = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.photographs)
        for places in np.array_split(order, self.count):
            yield [(self.epoch, int(place)) for place in places]


def make_loader(
    dataset: TrainingPhotos, batch: int, seed: int, workers: int, pin: bool
) -> tuple[DataLoader, EpochBatches]:
    """The loader, and its batches, whose `epoch` is set before each pass."""
    batches = EpochBatches(len(dataset), batch, seed)
    loader = DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, pin_memory=pin, persistent_workers=workers > 0,
        worker_init_fn=one_thread if workers else None,
        # A forked process inherits the locks of opencv's and OpenMP's threads, and may wait for them for ever.
        multiprocessing_context="spawn" if workers else None,
    )  # fmt: skip
    return loader, batches


def one_thread(worker: int) -> None:
    """A loader process uses one core: several with all cores each would fight."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
