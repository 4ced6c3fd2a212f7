"""Training batches: rows of the store, augmented by (seed, epoch, photograph, repeat), for any number of workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from manihot.augment.augmenter import Augmenter
from manihot.errors import DataError
from manihot.train.data.unlabelled import UnlabelledPhotos

Batch = dict[str, Tensor]
OTHER_VIEW = 1 << 40  # apart from how often an epoch saw a photograph, which its augmentation is drawn by


class TrainingPhotos(Dataset[Any]):
    """Items (epoch, place, repeat) -> image uint8 (h, w, 3), colour matrix float32 (3, 4), target, weight, place.

    repeat: how often the epoch saw the photograph before; each time it is augmented in another way.
    photos: the store, or files not yet resized. rows: rows of them, (N,). targets: soft labels (N, K). weights: (N,).
    teacher: logits (N, K) that stand in the item where they are given. unlabelled: photographs that come along with
    each. views: of one photograph; more than 1 puts the others into the item, `view` (views - 1, h, w, 3) and
    `view_colour`.
    """

    def __init__(
        self,
        photos: Any,
        rows: np.ndarray,
        targets: np.ndarray,
        weights: np.ndarray,
        augmenter: Augmenter,
        teacher: np.ndarray | None = None,
        unlabelled: UnlabelledPhotos | None = None,
        views: int = 1,
    ) -> None:
        self.photos, self.rows, self.augmenter = photos, rows, augmenter
        self.unlabelled, self.views = unlabelled, views
        self.targets = targets.astype(np.float32)
        self.weights = weights.astype(np.float32)
        self.teacher = teacher

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: tuple[int, int, int]) -> dict[str, Any] | Broken:
        try:
            return self._item(item)
        except DataError as error:
            return Broken(type(error)(error.what, error.remedy))  # without its causes, which need not pickle

    def _item(self, item: tuple[int, int, int]) -> dict[str, Any]:
        epoch, place, repeat = item
        row = int(self.rows[place])
        photo, seen = self.photos[row], row + repeat * len(self.photos)
        image, colour = self.augmenter(photo, epoch, seen)
        told = {} if self.teacher is None else {"teacher": torch.from_numpy(self.teacher[place])}
        if self.views > 1:
            others = [self.augmenter(photo, epoch, seen + number * OTHER_VIEW) for number in range(1, self.views)]
            told["view"] = torch.from_numpy(np.stack([pixels for pixels, _ in others]))
            told["view_colour"] = torch.from_numpy(np.stack([matrix for _, matrix in others]))
        if self.unlabelled is not None:
            told |= self.unlabelled(epoch, place + repeat * len(self))
        return told | {
            "image": torch.from_numpy(image),
            "colour": torch.from_numpy(colour),
            "target": torch.from_numpy(self.targets[place]),
            "weight": torch.tensor(self.weights[place]),
            "index": torch.tensor(place),
        }


class EpochBatches(Sampler[list[tuple[int, int, int]]]):
    """Batches of (epoch, place, repeat), shuffled by (seed, epoch), of nearly equal sizes so that none is tiny.

    draw: the places that an epoch sees, some of them several times; the same number in every epoch. All once
    when left out. share: (number, count) of the processes that train together: each gets its slice of every one of
    the batches that a single process would see with `batch` times as many photographs. Raises DataError where there
    are fewer photographs than processes.
    """

    def __init__(
        self,
        photographs: int,
        batch: int,
        seed: int,
        draw: Callable[[int], np.ndarray] | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.seed, self.share = seed, share
        self.draw = draw or (lambda epoch: np.arange(photographs))
        seen, processes = len(self.draw(0)), share[1]
        if processes > 1 and seen < processes:
            raise DataError(
                f"{seen} photographs to train on can't be shared by {processes} processes", "start fewer processes"
            )
        # no slice is empty: the last of batches of one photograph a process may not go round
        self.count = max(1, min(-(-seen // (batch * processes)), seen // processes))
        self.epoch = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        places = self.draw(self.epoch)
        order = places[np.random.default_rng([self.seed, self.epoch]).permutation(len(places))]
        seen: Counter[int] = Counter()
        number, processes = self.share
        for batch in np.array_split(order, self.count):
            items = []
            for place in map(int, batch):
                items.append((self.epoch, place, seen[place]))
                seen[place] += 1
            first, end = len(items) * number // processes, len(items) * (number + 1) // processes
            yield items[first:end]


class PhotoLoader(DataLoader[Any]):
    """A DataLoader that raises a user's error as it was raised: torch would add the worker's stack trace."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, Broken):
                raise batch.error
            yield batch


@dataclass(frozen=True)
class Broken:
    """In place of an item, or of the batch that holds it: why there is none."""

    error: DataError


def collate(items: list[Any]) -> Any:
    """A batch of items, or the first of them that is broken."""
    return next((item for item in items if isinstance(item, Broken)), None) or default_collate(items)


def make_loader(
    dataset: TrainingPhotos,
    batch: int,
    seed: int,
    workers: int,
    pin: bool,
    draw: Callable[[int], np.ndarray] | None = None,
    share: tuple[int, int] = (0, 1),
) -> tuple[DataLoader[Any], EpochBatches]:
    """The loader, and its batches, whose `epoch` is set before each pass; `draw` and `share` as for EpochBatches."""
    batches = EpochBatches(len(dataset), batch, seed, draw, share)
    loader = PhotoLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
        collate_fn=collate,
        worker_init_fn=one_thread if workers else None,
        # A forked process inherits the locks of opencv's and OpenMP's threads, and may wait for them for ever.
        multiprocessing_context="spawn" if workers else None,
    )
    return loader, batches


def one_thread(worker: int) -> None:
    """A loader process uses one core: several with all cores each would fight."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
