"""Augmentations of colour: each is one 3x4 matrix on (R, G, B, 1), levels 0..255 (see `data.canvas`).

Chains of them are multiplied together and nothing is clipped in between, so a chain differs from its steps
done on uint8 only where a step in the middle would have clipped or rounded. Hue turns the chroma plane of YIQ
(luma kept) instead of the hexcone of HSV, which is no matrix; saturation scales the distance from the luma.
Luma is Rec. 601: 0.299 R + 0.587 G + 0.114 B.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from pydantic import Field

from manihot.augment.canvas import Canvas, ColourOp, Limit, chain_colour, uniform

LUMA = np.array([0.299, 0.587, 0.114])
YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
YIQ_BACK = np.linalg.inv(YIQ)
IMAGENET_AXES = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
IMAGENET_SPREAD = np.array([0.2175, 0.0188, 0.0045])  # eigenvalues of RGB in [0, 1], as in AlexNet's successors


class BrightnessContrast(ColourOp):
    """Brighter or darker by a shift of all levels, more or less contrast about a pivot."""

    brightness: Limit = Field((-0.2, 0.2), description="shift as a share of 255 levels")
    contrast: Limit = Field((-0.2, 0.2), description="1 + this multiplies the distance from the pivot")
    pivot: Literal["mean"] | float = Field(
        "mean", description="level that contrast keeps: `mean` (the picture's mean luma) or 0..255"
    )

    def matrix(self, canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
        contrast, brightness = 1 + uniform(rng, self.contrast), uniform(rng, self.brightness)
        pivot = float(LUMA @ canvas.mean()) if self.pivot == "mean" else float(self.pivot)
        canvas.note(brightness=brightness, contrast=contrast)
        return chain_colour(contrast_matrix(contrast, pivot), shift_matrix(255 * brightness))


class HueSaturationValue(ColourOp):
    """Hue turned, saturation multiplied, brightness shifted."""

    hue: Limit = Field((-40.0, 40.0), description="degrees of the colour circle; albumentations' 20 of 180 is 40")
    saturation: Limit = Field((-0.3, 0.3), description="1 + this multiplies the distance from grey")
    value: Limit = Field((-20.0, 20.0), description="levels added to all channels")

    def matrix(self, canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
        hue, saturation, value = (uniform(rng, self.hue), 1 + uniform(rng, self.saturation), uniform(rng, self.value))
        canvas.note(hue=hue, saturation=saturation, value=value)
        return chain_colour(chain_colour(hue_matrix(hue), saturation_matrix(saturation)), shift_matrix(value))


class RGBShift(ColourOp):
    """Red, green and blue shifted, each by itself."""

    red: Limit = Field((-20.0, 20.0), description="levels")
    green: Limit = Field((-20.0, 20.0), description="levels")
    blue: Limit = Field((-20.0, 20.0), description="levels")

    def matrix(self, canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
        shift = [uniform(rng, span) for span in (self.red, self.green, self.blue)]
        canvas.note(red=shift[0], green=shift[1], blue=shift[2])
        return shift_matrix(np.array(shift))


class ColorJitter(ColourOp):
    """Brightness, contrast, saturation and hue in random order (SimCLR's and torchvision's settings)."""

    brightness: Limit = Field((-0.2, 0.2), description="1 + this multiplies all levels")
    contrast: Limit = Field((-0.2, 0.2), description="1 + this multiplies the distance from the mean luma")
    saturation: Limit = Field((-0.2, 0.2), description="1 + this multiplies the distance from grey")
    hue: Limit = Field((-18.0, 18.0), description="degrees of the colour circle; torchvision's 0.05 is 18")

    def matrix(self, canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
        brightness, contrast, saturation = (
            1 + uniform(rng, s) for s in (self.brightness, self.contrast, self.saturation)
        )
        hue, mean = uniform(rng, self.hue), canvas.mean()
        out = np.eye(3, 4)
        for step in rng.permutation(4):
            if step == 0:
                matrix = contrast_matrix(brightness, 0.0)
            elif step == 1:
                matrix = contrast_matrix(contrast, float(LUMA @ (out[:, :3] @ mean + out[:, 3])))
            else:
                matrix = saturation_matrix(saturation) if step == 2 else hue_matrix(hue)
            out = chain_colour(out, matrix)
        canvas.note(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
        return out


class FancyPCA(ColourOp):
    """Levels shifted along the principal axes of ImageNet's colours (AlexNet, Krizhevsky et al. 2012)."""

    sigma: float = Field(0.1, ge=0, description="standard deviation of each axis's factor")

    def matrix(self, canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
        shift = 255 * IMAGENET_AXES @ (rng.normal(0, self.sigma, 3) * IMAGENET_SPREAD)
        canvas.note(red=shift[0], green=shift[1], blue=shift[2])
        return shift_matrix(shift)


class ToGray(ColourOp):
    """Colours taken away: each channel becomes the luma."""

    p: float = Field(0.1, ge=0, le=1, description="probability")

    def matrix(self, canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
        return saturation_matrix(0.0)


def shift_matrix(levels: float | np.ndarray) -> np.ndarray:
    """Adds `levels`, one number or (3,)."""
    out = np.eye(3, 4)
    out[:, 3] = levels
    return out


def contrast_matrix(factor: float, pivot: float) -> np.ndarray:
    """Multiplies the distance from the level `pivot`."""
    out = np.eye(3, 4) * factor
    out[:, 3] = pivot * (1 - factor)
    return out


def saturation_matrix(factor: float) -> np.ndarray:
    """Multiplies the distance from the luma: 0 is grey, 1 changes nothing."""
    out = np.zeros((3, 4))
    out[:, :3] = factor * np.eye(3) + (1 - factor) * LUMA
    return out


def hue_matrix(degrees: float) -> np.ndarray:
    """Turns the chroma plane of YIQ, red towards green (as HSV's hue grows); the luma stays."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]])
    out = np.zeros((3, 4))
    out[:, :3] = YIQ_BACK @ turn @ YIQ
    return out
