"""Photographs without a label, seen twice beside each labelled one: weakly and strongly augmented (FixMatch,
arXiv 2001.07685).

The weak view is flipped and moved a little; the strong one also goes through RandAugment and loses a square of half
its edge, filled with grey. Their settings are those of the lecture's team (code/10 of github.com/choco9966's
Cassava-Leaf-Disease-Classification, `TransformFixMatch`): two operations, each drawn with chance .5 and a magnitude of
1 to 9. They stand in the items of the labelled photographs, so batches, workers, processes and accumulated steps need
not know of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manihot.augment.augmenter import Augmenter

WEAK: tuple[dict[str, Any], ...] = (
    {"name": "horizontal_flip"},
    {"name": "shift_scale_rotate", "p": 1.0, "shift": 0.125, "scale": 0.0, "rotate": 0.0},
)
STRONG: tuple[dict[str, Any], ...] = (
    *WEAK,
    {"name": "rand_augment", "n": 1, "magnitude": [1.0, 9.0], "p": 0.5},
    {"name": "rand_augment", "n": 1, "magnitude": [1.0, 9.0], "p": 0.5},
    {"name": "cutout", "p": 1.0, "share": 0.5, "fill": 127},
)
SEEDS = {"weak": 1 << 40, "strong": 2 << 40}  # apart from the labelled photographs' seeds, and from each other


class UnlabelledPhotos:
    """`mu` photographs without a label for every labelled one, in an order of (seed, epoch).

    photos: the store. rows: its rows without a label, (U,). size: (height, width) of the model's input. epochs: of the
    training. fit: as for `Augmenter`. weak, strong: lists of augmentations. Each is seen once before one is seen twice.
    """

    def __init__(
        self,
        photos: Any,
        rows: np.ndarray,
        size: tuple[int, int],
        seed: int,
        epochs: int,
        fit: str = "squash",
        *,
        mu: int = 2,
        weak: Sequence[Any] = WEAK,
        strong: Sequence[Any] = STRONG,
    ) -> None:
        self.photos, self.rows, self.seed, self.mu = photos, rows, seed, mu
        self.views = {
            name: Augmenter(list(choices), size, seed + SEEDS[name], epochs, fit)
            for name, choices in (("weak", weak), ("strong", strong))
        }
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __call__(self, epoch: int, slot: int) -> dict[str, Tensor]:
        """Images uint8 (mu, h, w, 3) and colour matrices float32 (mu, 3, 4) of the weak and of the strong views.

        slot: number of the labelled photograph in the epoch, from 0.
        """
        seen = [self.row(epoch, slot * self.mu + number) for number in range(self.mu)]
        out = {}
        for name, augmenter in self.views.items():
            both = [augmenter(self.photos[row], epoch, row + turn * len(self.photos)) for row, turn in seen]
            out[f"unlabelled_{name}"] = torch.from_numpy(np.stack([image for image, _ in both]))
            out[f"unlabelled_{name}_colour"] = torch.from_numpy(np.stack([colour for _, colour in both]))
        return out

    def row(self, epoch: int, number: int) -> tuple[int, int]:
        """Row of the `number`-th photograph of an epoch, and how often the epoch went through all of them before."""
        turn, place = divmod(number, len(self.rows))
        if (epoch, turn) not in self._orders:
            for key in [key for key in self._orders if key[0] != epoch]:
                del self._orders[key]
            rng = np.random.default_rng([self.seed, epoch, turn, 7])
            self._orders[epoch, turn] = rng.permutation(len(self.rows))
        return int(self.rows[self._orders[epoch, turn][place]]), turn
