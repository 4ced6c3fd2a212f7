"""Augmentations that bend the picture: each place is taken from a displaced one (bilinear, mirrored edge).

Like matrices they wait for each other and become one sampling (see `data.canvas`), so each is a function from
places to displacements rather than a picture of them. Amounts are shares of the picture's shorter edge, so that
they mean the same at 224 and at 512 pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
from pydantic import Field

from manihot.augment.canvas import BendingOp, Canvas, Limit, Span, uniform
from manihot.augment.resample import Displacements, Size

KNOTS = 64  # a direction, at least, that a piecewise field is sampled from: opencv rounds places to 1/32 of their gap


class Elastic(BendingOp):
    """A smooth random field of displacements (Simard, Steinkraus, Platt, ICDAR 2003)."""

    alpha: Span = Field(
        (0.01, 0.02), description="root mean square displacement a direction, share of the shorter edge, from..to"
    )
    sigma: float = Field(0.06, gt=0, le=0.5, description="smoothness of the field, share of the shorter edge")

    def field(self, canvas: Canvas, rng: np.random.Generator) -> Displacements:
        height, width = canvas.size
        edge, alpha = min(height, width), uniform(rng, self.alpha)
        step = max(1.0, self.sigma * edge / 2)  # the field is smooth: drawn coarse, then enlarged
        coarse = (int(np.ceil(height / step)) + 1, int(np.ceil(width / step)) + 1)
        moves = np.empty((*coarse, 2), np.float32)
        for direction in range(2):
            noise = rng.standard_normal(coarse, dtype=np.float32)
            smooth = cv2.GaussianBlur(noise, (0, 0), self.sigma * edge / step, borderType=cv2.BORDER_REFLECT)
            moves[..., direction] = smooth * np.float32(alpha * edge / max(float(smooth.std()), 1e-6))
        canvas.note(alpha=alpha)
        fine = cv2.resize(moves, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)  # enough for straight lines
        down, across = np.float32(fine.shape[0] / height), np.float32(fine.shape[1] / width)
        return lambda x, y: _between(fine, x * across - np.float32(0.5), y * down - np.float32(0.5))


class OpticalDistortion(BendingOp):
    """A lens: the distance r from the middle (1 in the corners) is seen at r (1 + k r^2) / (1 + k s^2).

    s is chosen so that nothing beyond the edge shows: the corners stay for k > 0 (cushion), the middles of
    the longer edges for k < 0 (barrel).
    """

    k: Limit = Field((-0.3, 0.3), description="strength")

    def field(self, canvas: Canvas, rng: np.random.Generator) -> Displacements:
        height, width = canvas.size
        k = max(uniform(rng, self.k), -0.9)
        still = 1.0 if k > 0 else min(height, width) ** 2 / (height**2 + width**2)
        canvas.note(k=k)
        middle = np.float32(width / 2), np.float32(height / 2)
        corner = np.float32((width**2 + height**2) / 4)

        def displace(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            x, y = x - middle[0], y - middle[1]
            r2 = np.minimum((x * x + y * y) / corner, np.float32(1))  # beyond the corners as in them
            stretch = (1 + np.float32(k) * r2) / np.float32(1 + k * still) - 1
            return x * stretch, y * stretch

        return displace


class GridDistortion(BendingOp):
    """A grid whose columns and rows are made narrower and wider by chance."""

    steps: int = Field(5, ge=1, le=50, description="cells a direction")
    limit: Limit = Field((-0.3, 0.3), description="1 + this multiplies a cell's edge")

    def field(self, canvas: Canvas, rng: np.random.Generator) -> Displacements:
        height, width = canvas.size
        across, down = self._line(width, rng), self._line(height, rng)

        def displace(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            dx, dy = np.interp(x, *across), np.interp(y, *down)
            return dx.astype(np.float32), dy.astype(np.float32)

        return displace

    def _line(self, edge: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The lines of the grid along an edge and how far each is moved; the first and the last are not."""
        cells = np.maximum(1 + self.limit[0] + (self.limit[1] - self.limit[0]) * rng.random(self.steps), 0.05)
        seen_at = np.concatenate([[0], np.cumsum(cells)]) * edge / cells.sum()
        lines = np.linspace(0, edge, self.steps + 1)
        return lines, seen_at - lines


class PiecewiseAffine(BendingOp):
    """The points of a grid are moved by chance, the picture between them follows bilinearly."""

    scale: Span = Field((0.01, 0.03), description="standard deviation of a move, share of the shorter edge, from..to")
    points: int = Field(4, ge=2, le=50, description="points a direction")

    def field(self, canvas: Canvas, rng: np.random.Generator) -> Displacements:
        height, width = canvas.size
        scale = uniform(rng, self.scale)
        drawn = rng.standard_normal((2, self.points, self.points), dtype=np.float32)
        drawn *= np.float32(scale * min(height, width))
        canvas.note(scale=scale)
        knots = -(-KNOTS // (self.points - 1)) * (self.points - 1) + 1
        weights = _weights(knots, self.points)
        moves = np.ascontiguousarray((weights @ drawn @ weights.T).transpose(1, 2, 0))
        return lambda x, y: _between(moves, *_on_grid(x, y, (height, width), knots))


def _weights(places: int, points: int) -> np.ndarray:
    """Weights (places, points) of linear interpolation between points set evenly from end to end."""
    at = np.linspace(0, points - 1, places)[:, None]
    found: np.ndarray = np.maximum(0, 1 - np.abs(at - np.arange(points))).astype(np.float32)
    return found


def _on_grid(x: np.ndarray, y: np.ndarray, size: Size, knots: int) -> tuple[np.ndarray, np.ndarray]:
    """Places counted in knots, of which the first and last lie in the middles of the first and last pixels."""
    across, down = (np.float32((knots - 1) / max(edge - 1, 1)) for edge in size[::-1])
    return (x - np.float32(0.5)) * across, (y - np.float32(0.5)) * down


def _between(moves: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Displacements between knots (rows, columns, 2), at places counted in knots; those of the edge beyond it."""
    x, y = (np.ascontiguousarray(one) for one in np.broadcast_arrays(x, y))
    found = cv2.remap(moves, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return found[..., 0], found[..., 1]
