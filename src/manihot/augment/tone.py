"""Augmentations of tone that are no matrix: curves over the 256 levels, and contrast by regions.

Curves are looked up in a table of 256 levels per channel.
"""

from __future__ import annotations

import cv2
import numpy as np
from pydantic import Field

from manihot.augment.canvas import Canvas, PixelOp, PositiveSpan, Span, uniform

LEVELS = np.arange(256)


class Gamma(PixelOp):
    """Levels raised to a power: below 1 brighter, above 1 darker."""

    gamma: PositiveSpan = Field((0.8, 1.25), description="power over levels scaled to 0..1, from..to")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        gamma = uniform(rng, self.gamma)
        canvas.note(gamma=gamma)
        return cv2.LUT(rgb, np.rint(255 * (LEVELS / 255) ** gamma).astype(np.uint8))


class CLAHE(PixelOp):
    """Contrast evened out tile by tile, limited, on the lightness of CIE Lab (Zuiderveld 1994)."""

    clip_limit: Span = Field((1.0, 4.0), description="steepest tone curve allowed, from..to")
    tiles: int = Field(8, ge=1, le=64, description="tiles a direction")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        clip = uniform(rng, self.clip_limit)
        lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
        lab[..., 0] = cv2.createCLAHE(clip, (self.tiles, self.tiles)).apply(np.ascontiguousarray(lab[..., 0]))
        canvas.note(clip_limit=clip)
        return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


class Solarize(PixelOp):
    """Levels from a threshold up are inverted."""

    p: float = Field(0.2, ge=0, le=1, description="probability")
    threshold: Span = Field((128, 128), description="level, from..to; 256 changes nothing")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        threshold = uniform(rng, self.threshold)
        canvas.note(threshold=threshold)
        return cv2.LUT(rgb, np.where(threshold <= LEVELS, 255 - LEVELS, LEVELS).astype(np.uint8))


class Posterize(PixelOp):
    """Only the highest bits of each level are kept."""

    p: float = Field(0.2, ge=0, le=1, description="probability")
    bits: int = Field(4, ge=1, le=8, description="bits kept of 8")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rgb & np.uint8(256 - (1 << (8 - self.bits)))


class AutoContrast(PixelOp):
    """Each channel stretched so that its darkest level becomes 0 and its brightest 255."""

    p: float = Field(0.2, ge=0, le=1, description="probability")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        low, high = (
            cv2.reduce(cv2.reduce(rgb, 0, how), 1, how)[0, 0].astype(float) for how in (cv2.REDUCE_MIN, cv2.REDUCE_MAX)
        )
        flat = high <= low  # a channel of one level stays as it is
        factor = np.where(flat, 1.0, 255 / np.where(flat, 1.0, high - low))
        table = np.rint((LEVELS[:, None] - np.where(flat, 0.0, low)) * factor)
        return cv2.LUT(rgb, np.clip(table, 0, 255).astype(np.uint8)[None])


class Equalize(PixelOp):
    """Each channel's histogram made flat."""

    p: float = Field(0.2, ge=0, le=1, description="probability")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return cv2.merge([cv2.equalizeHist(channel) for channel in cv2.split(rgb)])
