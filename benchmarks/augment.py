"""How many photographs per second one thread augments, against albumentations 2.0.8 and torchvision v2.

    python benchmarks/augment.py        (albumentations is needed, of the extra `oracles`)

The pipeline is the lecture's: random resized crop, transpose, flips, shift-scale-rotate, hue-saturation-
value, brightness-contrast, coarse dropout; uint8 of 800 x 600 (a decoded photograph) or 258 x 258 (the
store) in, 224 out. manihot hands over uint8 and a colour matrix; its last row does colours and
normalisation on this thread too, as the others do, though they belong on the training device. CPU time,
the best of several rounds, all in turns.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

os.environ.update(NO_ALBUMENTATIONS_UPDATE="1", OMP_NUM_THREADS="1")

import albumentations as A
import cv2
import numpy as np
import torch
from torchvision.transforms import v2

from manihot.augment.augmenter import Augmenter, as_input
from manihot.photos.preprocess import Preprocess
from manihot.settings import Choice

SIZE = (224, 224)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
GEOMETRY = [
    {"name": "random_resized_crop"},
    {"name": "transpose"},
    {"name": "horizontal_flip"},
    {"name": "vertical_flip"},
    {"name": "shift_scale_rotate"},
]
COLOUR = [{"name": "hue_saturation_value"}, {"name": "brightness_contrast"}]
DROPOUT = [{"name": "coarse_dropout"}]
Pipeline = Callable[[np.ndarray, int], object]


def manihot_pipeline(rows: list[dict[str, str]], normalise: bool) -> Pipeline:
    augmenter = Augmenter([Choice(**row) for row in rows], SIZE, seed=0, epochs=10)
    preprocess = Preprocess(SIZE, "squash", tuple(MEAN), tuple(STD))

    def run(rgb: np.ndarray, index: int) -> object:
        pixels, matrix = augmenter(rgb, index // 1000, index)
        if not normalise:
            return torch.from_numpy(pixels)
        return torch.from_numpy(as_input(pixels, matrix, preprocess)).permute(2, 0, 1)

    return run


def albumentations_pipeline() -> Pipeline:
    pipeline = A.Compose(
        [
            A.RandomResizedCrop(SIZE, p=1),
            A.Transpose(p=0.5),
            A.HorizontalFlip(p=0.5),
            A.VerticalFlip(p=0.5),
            A.ShiftScaleRotate(p=0.5, border_mode=cv2.BORDER_REFLECT_101),
            A.HueSaturationValue(p=0.5),
            A.RandomBrightnessContrast(p=0.5),
            A.Normalize(MEAN.tolist(), STD.tolist(), p=1),
            A.CoarseDropout((1, 8), (0.05, 0.15), (0.05, 0.15), p=0.5),
        ],
        seed=0,
    )
    return lambda rgb, index: torch.from_numpy(np.ascontiguousarray(pipeline(image=rgb)["image"].transpose(2, 0, 1)))


def torchvision_pipeline() -> Pipeline:
    """It has no transpose (a rotation by 90 degrees instead), and one erased box instead of several."""
    pipeline = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, antialias=True),
            v2.RandomApply([v2.RandomRotation((90, 90))], p=0.5),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomVerticalFlip(0.5),
            v2.RandomApply(
                [v2.RandomAffine(45, (0.0625, 0.0625), (0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR)], p=0.5
            ),
            v2.RandomApply([v2.ColorJitter(saturation=0.3, hue=20 / 360)], p=0.5),
            v2.RandomApply([v2.ColorJitter(brightness=0.2, contrast=0.2)], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN.tolist(), STD.tolist()),
            v2.RandomErasing(0.5),
        ]
    )
    return lambda rgb, index: pipeline(torch.from_numpy(rgb).permute(2, 0, 1))


def photograph(height: int, width: int) -> np.ndarray:
    """Coloured noise at several scales."""
    rng = np.random.default_rng(0)
    layers = [cv2.resize(rng.random((height // s, width // s, 3)), (width, height)) for s in (2, 8, 32)]
    return np.clip(np.mean(layers, axis=0) * 255, 0, 255).astype(np.uint8)


def measure(pipelines: dict[str, Pipeline], rgb: np.ndarray, rounds: int = 7, images: int = 100) -> dict[str, float]:
    """CPU milliseconds an image, the best round of each; the pipelines take turns."""
    best = dict.fromkeys(pipelines, float("inf"))
    for turn in range(rounds + 1):  # the first warms up
        for name, pipeline in pipelines.items():
            start = time.process_time()
            for index in range(images):
                pipeline(rgb, turn * images + index)
            if turn:
                best[name] = min(best[name], 1000 * (time.process_time() - start) / images)
    return best


def main() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    pipelines = {
        "manihot, uint8 + colour matrix, dropout left out": manihot_pipeline(GEOMETRY + COLOUR, False),
        "manihot, uint8 + colour matrix": manihot_pipeline(GEOMETRY + COLOUR + DROPOUT, False),
        "manihot, normalised on the host": manihot_pipeline(GEOMETRY + COLOUR + DROPOUT, True),
        "albumentations 2.0.8": albumentations_pipeline(),
        "torchvision v2": torchvision_pipeline(),
    }
    for height, width in ((600, 800), (258, 258)):
        took = measure(pipelines, photograph(height, width))
        print(f"\n{width} x {height} -> {SIZE[1]} x {SIZE[0]}, one thread")
        print(f"{'':52}{'ms':>8}{'images/s':>10}{'x albumentations':>18}{'x torchvision':>15}")
        for name, ms in took.items():
            against = took["albumentations 2.0.8"] / ms, took["torchvision v2"] / ms
            print(f"{name:52}{ms:8.2f}{1000 / ms:10.0f}{against[0]:18.2f}{against[1]:15.2f}")


if __name__ == "__main__":
    main()
