"""Augmentations that blur, sharpen, add noise or take detail away, as poor cameras and networks do.

Lengths are pixels of the picture as it stands where the operation is listed: of the model's input after a
crop.
"""

from __future__ import annotations

from statistics import NormalDist

import cv2
import numpy as np
from pydantic import Field

from manihot.augment.canvas import Canvas, PixelOp, Span, uniform
from manihot.errors import DataError
from manihot.photos.preprocess import resize

_QUANTILES = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)])
NORMAL = (_QUANTILES / _QUANTILES.std()).astype(np.float32)


class Blur(PixelOp):
    """Mean over a square."""

    kernel: Span = Field((3, 7), description="edge of the square in pixels, made odd, from..to")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        edge = odd(rng, self.kernel)
        canvas.note(kernel=edge)
        return cv2.blur(rgb, (edge, edge))


class GaussianBlur(PixelOp):
    """Gaussian blur."""

    sigma: Span = Field((0.5, 2.0), description="standard deviation in pixels, from..to")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        sigma = uniform(rng, self.sigma)
        canvas.note(sigma=sigma)
        return cv2.GaussianBlur(rgb, (0, 0), sigma) if sigma > 0 else rgb


class MedianBlur(PixelOp):
    """Median over a square, each channel by itself."""

    kernel: Span = Field((3, 5), description="edge of the square in pixels, made odd, from..to")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        edge = odd(rng, self.kernel)
        canvas.note(kernel=edge)
        return cv2.medianBlur(rgb, edge)


class MotionBlur(PixelOp):
    """Mean along a line in any direction: a hand that shook."""

    length: Span = Field((3, 9), description="length of the line in pixels, from..to")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        length, angle = uniform(rng, self.length), uniform(rng, (0.0, np.pi))
        canvas.note(length=length, degrees=float(np.degrees(angle)))
        return cv2.filter2D(rgb, -1, line_kernel(length, angle), borderType=cv2.BORDER_REFLECT)


class GaussNoise(PixelOp):
    """Gaussian noise on each channel of each pixel: a dark scene on a small sensor.

    Drawn from 256 equally likely quantiles, ten times as fast as the ziggurat; no value lies beyond 2.9
    deviations.
    """

    std: Span = Field((5.0, 15.0), description="standard deviation in levels, from..to")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        std = uniform(rng, self.std)
        canvas.note(std=std)
        drawn = np.frombuffer(rng.bytes(rgb.size), np.uint8).reshape(rgb.shape)
        return cv2.add(cv2.LUT(drawn, NORMAL * np.float32(std)), rgb, dtype=cv2.CV_8U)  # rounds and clips


class Sharpen(PixelOp):
    """Unsharp mask: the difference from a Gaussian blur is added again."""

    amount: Span = Field((0.3, 1.0), description="factor on the difference, from..to; negative softens")
    sigma: float = Field(1.0, gt=0, le=20, description="standard deviation of the blur in pixels")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        amount = uniform(rng, self.amount)
        canvas.note(amount=amount)
        return cv2.addWeighted(rgb, 1 + amount, cv2.GaussianBlur(rgb, (0, 0), self.sigma), -amount, 0)


class Emboss(PixelOp):
    """Relief: lit from the upper left."""

    strength_of_relief: Span = Field((0.2, 0.7), description="slope of the relief's kernel, from..to")
    alpha: Span = Field((0.2, 0.5), description="share of the relief in the mixture with the picture, from..to")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        slope, alpha = uniform(rng, self.strength_of_relief), uniform(rng, self.alpha)
        relief = np.array([[-1 - slope, -slope, 0], [-slope, 1, slope], [0, slope, 1 + slope]])
        kernel = alpha * relief
        kernel[1, 1] += 1 - alpha
        canvas.note(slope=slope, alpha=alpha)
        return cv2.filter2D(rgb, -1, kernel, borderType=cv2.BORDER_REFLECT)


class Jpeg(PixelOp):
    """Saved as JPEG and read again."""

    quality: Span = Field((40, 90), description="JPEG quality 1..100, from..to")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        quality = int(np.clip(round(uniform(rng, self.quality)), 1, 100))
        canvas.note(quality=quality)
        # opencv takes BGR; with red and blue exchanged the luma, and so the artefacts, would be others
        _, packed = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
        read = cv2.imdecode(packed, cv2.IMREAD_COLOR)
        if read is None:
            raise DataError(f"a picture of {rgb.shape[1]} x {rgb.shape[0]} pixels did not survive JPEG compression")
        return cv2.cvtColor(read, cv2.COLOR_BGR2RGB)


class Downscale(PixelOp):
    """Made small and large again."""

    scale: Span = Field((0.25, 0.6), description="share of the edge that the small picture has, from..to")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = rgb.shape[:2]
        scale = min(max(uniform(rng, self.scale), 1e-3), 1.0)
        canvas.note(scale=scale)
        return resize(resize(rgb, (max(1, round(height * scale)), max(1, round(width * scale)))), (height, width))


class Superpixels(PixelOp):
    """Some regions of like colour are painted with their mean colour.

    The regions are the basins that grow from a regular grid of seeds over the slightly blurred picture
    (watershed, Meyer 1992): connected, fitted to edges, but less even in size than SLIC's, which opencv's
    main modules lack.
    """

    segments: int = Field(100, ge=4, le=2000, description="number of regions, about")
    share: Span = Field((0.2, 0.5), description="share of the regions that is painted, from..to")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        labels, colours = find_superpixels(rgb, self.segments)
        share = uniform(rng, self.share)
        painted = rng.random(len(colours)) < share
        canvas.note(share=share)
        out = rgb.copy()
        np.copyto(out, colours[labels], where=painted[labels][..., None])
        return out


def odd(rng: np.random.Generator, span: tuple[float, float]) -> int:
    """An odd number of pixels drawn from a span, at least 1."""
    low, high = max(0, round((span[0] - 1) / 2)), max(0, round((span[1] - 1) / 2))
    return 2 * int(rng.integers(low, high + 1)) + 1


def line_kernel(length: float, angle: float) -> np.ndarray:
    """A line through the middle of a square kernel, sums to 1; length in pixels, angle in radians."""
    half = max(0.0, (length - 1) / 2)
    reach = int(np.ceil(half)) + 1
    steps = np.linspace(-half, half, 8 * reach + 1)
    x, y = reach + steps * np.cos(angle), reach - steps * np.sin(angle)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    for dy, down in ((0, 1 - (y - row)), (1, y - row)):
        for dx, right in ((0, 1 - (x - column)), (1, x - column)):
            np.add.at(kernel, (row + dy, column + dx), down * right)
    found: np.ndarray = kernel / kernel.sum()
    return found


def find_superpixels(rgb: np.ndarray, segments: int) -> tuple[np.ndarray, np.ndarray]:
    """Regions of like colour: labels int (H, W) from 0 and each region's mean colour uint8 (n, 3)."""
    height, width = rgb.shape[:2]
    edge = max(1.0, float(np.sqrt(height * width / segments)))
    rows, columns = max(1, round(height / edge)), max(1, round(width / edge))
    y = ((np.arange(rows) + 0.5) * height / rows).astype(int)
    x = ((np.arange(columns) + 0.5) * width / columns).astype(int)
    seeds = np.zeros((height + 2, width + 2), np.int32)  # watershed gives the outermost pixels to no basin
    seeds[np.ix_(y + 1, x + 1)] = np.arange(1, rows * columns + 1).reshape(rows, columns)
    framed = cv2.copyMakeBorder(cv2.GaussianBlur(rgb, (0, 0), 1.0), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    basins = cv2.watershed(framed, seeds)[1:-1, 1:-1]
    # the lines between basins go to a neighbour
    while (basins < 1).any():
        wider = cv2.dilate(np.maximum(basins, 0).astype(np.float32), np.ones((3, 3), np.uint8)).astype(np.int32)
        basins = np.where(basins < 1, wider, basins)
    labels = basins - 1
    sizes = np.maximum(np.bincount(labels.ravel(), minlength=rows * columns), 1)
    sums = [np.bincount(labels.ravel(), rgb[..., c].ravel(), rows * columns) for c in range(3)]
    return labels, np.rint(np.stack(sums, axis=1) / sizes[:, None]).astype(np.uint8)
