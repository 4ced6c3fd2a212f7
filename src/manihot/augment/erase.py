"""Augmentations that hide parts of the picture, so that a model learns to use the whole picture.

Sizes are shares of the picture's edges. Holes are filled with a level, with noise, or with the picture's
mean.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import cv2
import numpy as np
from pydantic import Field

from manihot.augment.canvas import Canvas, PixelOp, PositiveSpan, Span, uniform

Fill = Literal["mean", "noise"] | Annotated[int, Field(ge=0, le=255)]


class ErasingOp(PixelOp):
    """An operation that paints holes."""

    fill: Fill = Field(0, description="level 0..255, `mean` colour of the picture, or `noise`, even over all levels")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        out = rgb.copy()
        mean = np.rint(cv2.mean(rgb)[:3]).astype(np.uint8) if self.fill == "mean" else None
        for top, left, height, width in self.holes(rgb.shape[0], rgb.shape[1], rng):
            hole = out[max(0, top) : top + height, max(0, left) : left + width]
            if self.fill == "noise":
                hole[:] = rng.integers(0, 256, hole.shape, dtype=np.uint8)
            else:
                hole[:] = self.fill if mean is None else mean
        return out

    def holes(self, height: int, width: int, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
        """Draw the holes: (top, left, height, width) in pixels; may reach over the edge."""
        raise NotImplementedError


class CoarseDropout(ErasingOp):
    """Several small boxes, whole within the picture."""

    holes_count: tuple[int, int] = Field((1, 8), description="number of boxes, from..to")
    height: Span = Field((0.05, 0.15), description="height of a box, share of the picture's, from..to")
    width: Span = Field((0.05, 0.15), description="width of a box, share of the picture's, from..to")
    edge: int = Field(0, ge=0, description="edge of each box in pixels, in place of `height` and `width`; 0: these")

    def holes(self, height: int, width: int, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
        drawn = []
        for _ in range(int(rng.integers(self.holes_count[0], max(self.holes_count) + 1))):
            h, w = self.edge, self.edge
            if not self.edge:
                h, w = round(height * uniform(rng, self.height)), round(width * uniform(rng, self.width))
            h, w = min(height, max(1, h)), min(width, max(1, w))
            drawn.append((int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w))
        return drawn


class Cutout(ErasingOp):
    """One square whose middle lies anywhere, so that part of it may fall outside (arXiv 1708.04552)."""

    share: Span = Field((0.5, 0.5), description="edge of the square, share of the shorter edge, from..to")

    def holes(self, height: int, width: int, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
        edge = max(1, round(min(height, width) * uniform(rng, self.share)))
        top, left = int(rng.integers(0, height)) - edge // 2, int(rng.integers(0, width)) - edge // 2
        return [(top, left, edge, edge)]


class RandomErasing(ErasingOp):
    """One box of random area and proportion within the picture (arXiv 1708.04896)."""

    area: Span = Field((0.02, 0.33), description="share of the picture's area, from..to")
    ratio: PositiveSpan = Field((0.3, 3.3), description="height over width, from..to, evenly in its logarithm")
    fill: Fill = Field("noise", description="`noise` (the paper's), `mean` colour of the picture, or a level 0..255")

    def holes(self, height: int, width: int, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
        for _ in range(100):
            area = height * width * uniform(rng, self.area)
            ratio = math.exp(uniform(rng, (math.log(self.ratio[0]), math.log(self.ratio[1]))))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < h <= height and 0 < w <= width:
                return [(int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w)]
        return []  # no such box fits a picture of this proportion


class GridMask(PixelOp):
    """A rotated grid of squares is hidden (arXiv 2001.04086); its probability should ramp up with `strength`.

    With period d, lines of ceil(d ratio) pixels are kept in both directions, so squares of d - ceil(d ratio)
    are hidden and about 1 - (1 - ratio)^2 of the picture is seen.
    """

    period: Span = Field((0.4, 1.0), description="period d, share of the shorter edge, from..below")
    ratio: float = Field(0.6, ge=0, le=1, description="share of the period that is kept")
    rotate: Span = Field((0.0, 360.0), description="turn of the grid in degrees, from..to")
    fill: int = Field(0, ge=0, le=255, description="level of what is hidden")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = rgb.shape[:2]
        period = max(2, int(min(height, width) * uniform(rng, self.period)))
        degrees = uniform(rng, self.rotate)
        shift = rng.integers(0, period, 2)
        hidden = grid_mask(
            height, width, period, math.ceil(period * self.ratio), degrees, (int(shift[0]), int(shift[1]))
        )
        canvas.note(period=period, degrees=degrees)
        out = rgb.copy()
        out[hidden] = self.fill
        return out


def grid_mask(height: int, width: int, period: int, kept: int, degrees: float, shift: tuple[int, int]) -> np.ndarray:
    """Where GridMask hides: bool (height, width); period, kept and shift (x, y) in pixels."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    reach = math.ceil(math.hypot(height, width) / 2) + 1
    ahead = -(-reach // period) * period  # whole periods, so that the pattern starts at a line
    hides = (np.arange(ahead + reach + period) + np.array(shift)[:, None]) % period >= kept
    x = np.arange(width, dtype=np.float32) + np.float32(0.5 - width / 2)
    y = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5 - height / 2)
    u = (x * np.float32(cos) + (y * np.float32(sin) + np.float32(ahead))).astype(np.int32)
    v = (x * np.float32(-sin) + (y * np.float32(cos) + np.float32(ahead))).astype(np.int32)
    found: np.ndarray = hides[0][u] & hides[1][v]
    return found
