"""Conventions of the augmentations against albumentations 2.0.8, where both know the operation."""

from __future__ import annotations

import os
from typing import Any

import cv2
import numpy as np
import pytest

from manihot.augment.augmenter import Augmenter, apply_colour
from manihot.settings import Choice

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask the network for its newest version
A = pytest.importorskip("albumentations", reason="the oracle is not installed: the extra `oracles`")

EDGE = 96
CASES: dict[str, tuple[dict[str, Any], Any, float, float]] = {  # ours, theirs, largest mean and single difference
    "horizontal flip": ({"name": "horizontal_flip"}, lambda: A.HorizontalFlip(p=1), 0, 0),
    "vertical flip": ({"name": "vertical_flip"}, lambda: A.VerticalFlip(p=1), 0, 0),
    "transpose": ({"name": "transpose"}, lambda: A.Transpose(p=1), 0, 0),
    "rotate": (
        {"name": "rotate", "limit": [25, 25], "border": "constant"},
        lambda: A.Rotate(limit=(25, 25), border_mode=cv2.BORDER_CONSTANT, fill=0, p=1),
        0.5,
        255,  # along the picture's border the two blend half a pixel apart
    ),
    "scale": ({"name": "affine", "scale": 1.3, "shear_x": 0}, lambda: A.Affine(scale=(1.3, 1.3), p=1), 0.6, 6),
    "translate": (
        {
            "name": "affine",
            "translate_x": [0.125, 0.125],
            "translate_y": [-0.25, -0.25],
            "shear_x": 0,
            "border": "constant",
        },
        lambda: A.Affine(translate_percent={"x": (0.125, 0.125), "y": (-0.25, -0.25)}, p=1),
        0.01,
        1,
    ),
    "shear": (
        {"name": "affine", "shear_x": [15, 15], "border": "constant"},
        lambda: A.Affine(shear={"x": (15, 15), "y": (0, 0)}, p=1),
        1.5,
        255,
    ),
    "brightness": (
        {"name": "brightness_contrast", "brightness": [0.1, 0.1], "contrast": 0},
        lambda: A.RandomBrightnessContrast(brightness_limit=(0.1, 0.1), contrast_limit=(0, 0), p=1),
        1,
        1,
    ),
    "contrast about level 0": (
        {"name": "brightness_contrast", "brightness": 0, "contrast": [0.2, 0.2], "pivot": 0.0},
        lambda: A.RandomBrightnessContrast(brightness_limit=(0, 0), contrast_limit=(0.2, 0.2), p=1),
        1,
        1,
    ),
    "jitter, contrast": (
        {"name": "color_jitter", "brightness": 0, "contrast": [0.3, 0.3], "saturation": 0, "hue": 0},
        lambda: A.ColorJitter((1, 1), (1.3, 1.3), (1, 1), (0, 0), p=1),
        1,
        2,
    ),
    "jitter, saturation": (
        {"name": "color_jitter", "brightness": 0, "contrast": 0, "saturation": [0.3, 0.3], "hue": 0},
        lambda: A.ColorJitter((1, 1), (1, 1), (1.3, 1.3), (0, 0), p=1),
        1,
        2,
    ),
    "red shift": (
        {"name": "rgb_shift", "red": [15, 15], "green": 0, "blue": [-9, -9]},
        lambda: A.RGBShift((15, 15), (0, 0), (-9, -9), p=1),
        0.01,
        1,
    ),
    "gamma": ({"name": "gamma", "gamma": 0.7}, lambda: A.RandomGamma((70, 70), p=1), 0.6, 1),
    "clahe": ({"name": "clahe", "clip_limit": 3.0}, lambda: A.CLAHE((3.0, 3.0), (8, 8), p=1), 0, 0),
    "solarize": (
        {"name": "solarize", "threshold": 128},
        lambda: A.Solarize(threshold_range=(128 / 255, 128 / 255), p=1),
        0,
        0,
    ),
    "posterize": ({"name": "posterize", "bits": 3}, lambda: A.Posterize(3, p=1), 0, 0),
    "equalize": ({"name": "equalize"}, lambda: A.Equalize(mode="cv", by_channels=True, p=1), 0, 0),
    "median blur": ({"name": "median_blur", "kernel": 5}, lambda: A.MedianBlur((5, 5), p=1), 0, 0),
    "mean blur": ({"name": "blur", "kernel": 5}, lambda: A.Blur((5, 5), p=1), 0, 0),
    "to gray": ({"name": "to_gray"}, lambda: A.ToGray(method="weighted_average", p=1), 0.01, 1),
}


def leafy() -> np.ndarray:
    small = np.random.default_rng(5).integers(40, 216, (7, 7, 3)).astype(np.uint8)
    return cv2.resize(small, (EDGE, EDGE), interpolation=cv2.INTER_LINEAR)


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_albumentations(case: str) -> None:
    ours, theirs, mean, most = CASES[case]
    photo = leafy()
    right = theirs()(image=photo)["image"].astype(int)
    spans = {k: [v, v] if isinstance(v, float) and k not in ("pivot",) else v for k, v in ours.items()}
    got = apply_colour(*Augmenter([Choice(**{**spans, "p": 1.0})], (EDGE, EDGE), 0, 1)(photo, 0, 0))
    difference = np.abs(got.astype(int) - right)
    assert difference.mean() <= mean and difference.max() <= most, (difference.mean(), difference.max())
    if case not in ("to gray",):
        assert np.abs(right - photo).mean() > 1 or case in ("median blur", "mean blur")  # the oracle did something


def test_operations_in_fractions_hardly_move_a_pixel_there() -> None:
    """HueSaturationValue(.2, .2, .2) and ElasticTransform(alpha=3), which the 18th place took for hard."""
    photo, colour = leafy(), A.Compose([A.HueSaturationValue(0.2, 0.2, 0.2, p=1)], seed=1)
    moved = [np.abs(colour(image=photo)["image"].astype(int) - photo).mean() for _ in range(30)]
    assert np.mean(moved) < 0.9 and max(moved) < 1.3  # levels of 255
    ramp = np.repeat(np.arange(512, dtype=np.float32)[None, :, None] / 1000, 512, axis=0)  # each pixel holds its x
    places = np.concatenate([ramp, ramp.transpose(1, 0, 2), ramp], axis=2)
    bend = A.Compose([A.ElasticTransform(alpha=3, border_mode=cv2.BORDER_REPLICATE, p=1)], seed=1)
    moves = [np.abs(bend(image=places)["image"] - places).mean() * 1000 for _ in range(3)]
    assert 0.005 < np.mean(moves) < 0.03  # pixels
