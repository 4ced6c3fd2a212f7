"""Pictures of what a recipe's mixes make of several photographs, as `report.show_augment` draws augmentations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from manihot.augment.augmenter import Augmenter
from manihot.photos.preprocess import Preprocess
from manihot.report.show_augment import Shown, input_size
from manihot.settings import Recipe
from manihot.train.data.mixing import Mixer

OF_A_MIX = 6  # pictures of each


def mixed_pictures(recipe: Recipe, photos: Sequence[np.ndarray]) -> list[Shown]:
    """Pictures of each of the recipe's mixes, at its epoch's strength; captions give the share of each photograph.

    photos: uint8 RGB (h, w, 3), two or more, augmented as training would and mixed with each other. SnapMix takes
    its shares from a network's activation; here each part of a photograph counts alike.
    """
    height, width = photos[0].shape[:2]
    size, epochs = input_size(recipe.photo, (height, width)), recipe.train.epochs
    stored = (round(size[0] * recipe.photo.store_scale), round(size[1] * recipe.photo.store_scale))
    small = [Preprocess(stored, recipe.photo.fit)(photo) for photo in photos]
    augmenter = Augmenter(recipe.augment, size, recipe.seed, epochs)
    shown: list[Shown] = []
    for choice in recipe.mixing:
        if choice.name == "none":
            continue
        epoch = min(int(choice.settings.get("from_epoch", 0)), epochs - 1)
        always = {key: value for key, value in choice.settings.items() if key not in ("p", "from_epoch", "until_epoch")}
        mixer = Mixer([{"name": choice.name, "p": 1.0, **always}], OF_A_MIX, recipe.seed, cams=_even)
        for number in range(OF_A_MIX):
            seen = [augmenter.explain(photo, epoch, number * len(small) + k)[0] for k, photo in enumerate(small)]
            batch = torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2).contiguous()
            images, targets = mixer(batch, torch.eye(len(seen)), 0, number, in_place=False)
            at = number % len(seen)
            shares = ", ".join(f"{share:.0%} of {k + 1}" for k, share in enumerate(targets[at].tolist()) if share > 0)
            shown.append((f"{choice.name}\n{shares}", images[at].permute(1, 2, 0).numpy()))
    return shown


def _even(images: Tensor, targets: Tensor) -> Tensor:
    """Activation maps (N, 8, 8) that are the same everywhere, and sum to 1."""
    return torch.full((len(images), 8, 8), 1 / 64)
