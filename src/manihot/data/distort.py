"""Augmentations that bend the picture: each pixel is taken from a displaced place (cv2.remap, bilinear,
mirrored edge).

Amounts are shares of the picture's shorter edge, so that they mean the same at 224 and at 512 pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
from pydantic import Field

from manihot.data.canvas import Canvas, Limit, PixelOp, Span, uniform


class Elastic(PixelOp):
    """A smooth random field of displacements (Simard, Steinkraus, Platt, ICDAR 2003)."""

    alpha: Span = Field(
        (0.01, 0.02),
        description="root mean square displacement a direction, share of the shorter edge, from..to",
    )
    sigma: float = Field(0.06, gt=0, le=0.5, description="smoothness of the field, share of the shorter edge")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = rgb.shape[:2]
        edge, alpha = min(height, width), uniform(rng, self.alpha)
        step = max(1.0, self.sigma * edge / 2)  # the field is smooth: drawn coarse, then enlarged
        coarse = (int(np.ceil(height / step)) + 1, int(np.ceil(width / step)) + 1)
        field = []
        for _ in range(2):
            noise = rng.standard_normal(coarse, dtype=np.float32)
            smooth = cv2.GaussianBlur(noise, (0, 0), self.sigma * edge / step, borderType=cv2.BORDER_REFLECT)
            smooth *= alpha * edge / max(float(smooth.std()), 1e-6)
            field.append(cv2.resize(smooth, (width, height), interpolation=cv2.INTER_CUBIC))
        canvas.note(alpha=alpha)
        return displace(rgb, field[0], field[1])


class OpticalDistortion(PixelOp):
    """A lens: the distance r from the middle (1 in the corners) is seen at r (1 + k r^2) / (1 + k s^2).

    s is chosen so that nothing beyond the edge shows: the corners stay for k > 0 (cushion), the middles of
    the longer edges for k < 0 (barrel).
    """

    k: Limit = Field((-0.3, 0.3), description="strength")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = rgb.shape[:2]
        k = max(uniform(rng, self.k), -0.9)
        x = np.arange(width, dtype=np.float32)[None, :] + 0.5 - width / 2
        y = np.arange(height, dtype=np.float32)[:, None] + 0.5 - height / 2
        r2 = (x**2 + y**2) / np.float32((width**2 + height**2) / 4)
        still = 1.0 if k > 0 else min(height, width) ** 2 / (height**2 + width**2)
        stretch = (1 + np.float32(k) * r2) / np.float32(1 + k * still) - 1
        canvas.note(k=k)
        return displace(rgb, x * stretch, y * stretch)


class GridDistortion(PixelOp):
    """A grid whose columns and rows are made narrower and wider by chance."""

    steps: int = Field(5, ge=1, le=50, description="cells a direction")
    limit: Limit = Field((-0.3, 0.3), description="1 + this multiplies a cell's edge")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        x, y = (self._line(edge, rng) for edge in (rgb.shape[1], rgb.shape[0]))
        return displace(rgb, x[None, :], y[:, None])

    def _line(self, edge: int, rng: np.random.Generator) -> np.ndarray:
        cells = np.maximum(1 + self.limit[0] + (self.limit[1] - self.limit[0]) * rng.random(self.steps), 0.05)
        seen_at = np.concatenate([[0], np.cumsum(cells)]) * edge / cells.sum()
        places = np.arange(edge) + 0.5
        return (np.interp(places, np.linspace(0, edge, self.steps + 1), seen_at) - places).astype(np.float32)


class PiecewiseAffine(PixelOp):
    """The points of a grid are moved by chance, the picture between them follows bilinearly."""

    scale: Span = Field(
        (0.01, 0.03), description="standard deviation of a move, share of the shorter edge, from..to"
    )
    points: int = Field(4, ge=2, le=50, description="points a direction")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = rgb.shape[:2]
        scale = uniform(rng, self.scale)
        moves = rng.standard_normal((2, self.points, self.points), dtype=np.float32)
        moves *= np.float32(scale * min(height, width))
        dx, dy = _between(height, self.points) @ moves @ _between(width, self.points).T
        canvas.note(scale=scale)
        return displace(rgb, dx, dy)


def _between(edge: int, points: int) -> np.ndarray:
    """Weights (edge, points) of linear interpolation between points set evenly from end to end."""
    places = np.linspace(0, points - 1, edge)[:, None]
    return np.maximum(0, 1 - np.abs(places - np.arange(points))).astype(np.float32)


def displace(rgb: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Take pixel (x, y) of the result from (x + dx, y + dy); dx and dy in pixels, broadcast to (H, W)."""
    height, width = rgb.shape[:2]
    x = np.empty((height, width), np.float32)
    y = np.empty((height, width), np.float32)
    np.add(np.arange(width, dtype=np.float32)[None, :], dx, out=x)
    np.add(np.arange(height, dtype=np.float32)[:, None], dy, out=y)
    return cv2.remap(rgb, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
