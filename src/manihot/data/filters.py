"""Augmentations that blur, sharpen, add noise or take detail away, as poor cameras and networks do.

Lengths are pixels of the picture as it stands where the operation is listed: of the model's input after a
crop.
"""

from __future__ import annotations

import cv2
import numpy as np
from pydantic import Field

from manihot.data.canvas import Canvas, PixelOp, Span, uniform
from manihot.errors import DataError
from manihot.photos.preprocess import resize


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
    """Gaussian noise on each channel of each pixel: a dark scene on a small sensor."""

    std: Span = Field((5.0, 15.0), description="standard deviation in levels, from..to")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        std = uniform(rng, self.std)
        noise = rng.standard_normal(rgb.shape, dtype=np.float32)
        noise *= np.float32(std)
        canvas.note(std=std)
        return cv2.add(noise, rgb, dtype=cv2.CV_8U)  # rounds and clips


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
    alpha: Span = Field(
        (0.2, 0.5), description="share of the relief in the mixture with the picture, from..to"
    )

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
        _, packed = cv2.imencode(
            ".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
        )
        read = cv2.imdecode(packed, cv2.IMREAD_COLOR)
        if read is None:
            raise DataError(
                f"a picture of {rgb.shape[1]} x {rgb.shape[0]} pixels did not survive JPEG compression"
            )
        return cv2.cvtColor(read, cv2.COLOR_BGR2RGB)


class Downscale(PixelOp):
    """Made small and large again."""

    scale: Span = Field((0.25, 0.6), description="share of the edge that the small picture has, from..to")

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = rgb.shape[:2]
        scale = min(max(uniform(rng, self.scale), 1e-3), 1.0)
        canvas.note(scale=scale)
        return resize(
            resize(rgb, (max(1, round(height * scale)), max(1, round(width * scale)))), (height, width)
        )


class Superpixels(PixelOp):
    """Some regions of like colour are painted with their mean colour.

    The regions are those of SLIC (Achanta et al., PAMI 2012) with 3 rounds on the picture shrunk to at most
    96 pixels an edge, the borders enlarged again without smoothing; small loose parts are left as they are.
    """

    segments: int = Field(100, ge=4, le=2000, description="number of regions, about")
    share: Span = Field((0.2, 0.5), description="share of the regions that is painted, from..to")
    compactness: float = Field(
        10.0, gt=0, description="levels of colour that weigh as much as a region's width"
    )

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = rgb.shape[:2]
        factor = min(1.0, 96 / max(height, width))
        small = resize(rgb, (max(1, round(height * factor)), max(1, round(width * factor))))
        labels, colours = find_superpixels(small, self.segments, self.compactness)
        share = uniform(rng, self.share)
        painted = rng.random(len(colours)) < share
        labels = cv2.resize(
            labels.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST
        ).astype(np.int64)
        canvas.note(share=share)
        return np.where(painted[labels][..., None], np.rint(colours).astype(np.uint8)[labels], rgb)


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
    return kernel / kernel.sum()


def find_superpixels(
    rgb: np.ndarray, segments: int, compactness: float, rounds: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Regions of like colour: labels (H, W) and each region's mean colour (n, 3) in levels.

    Each pixel joins the nearest of the 9 centres around its grid cell, near in place and colour; the centres
    then move to their regions' means.
    """
    height, width = rgb.shape[:2]
    edge = max(1.0, np.sqrt(height * width / segments))
    rows, columns = max(1, round(height / edge)), max(1, round(width / edge))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    features = np.dstack([rgb.astype(np.float32) / compactness, x / edge, y / edge]).reshape(-1, 5)
    row, column = (y * rows / height).astype(int).ravel(), (x * columns / width).astype(int).ravel()
    labels = row * columns + column
    for _ in range(rounds):
        centres = _means(features, labels, rows * columns)
        best = np.full(len(features), np.inf, np.float32)
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                near = np.clip(row + down, 0, rows - 1) * columns + np.clip(column + right, 0, columns - 1)
                distance = ((features - centres[near]) ** 2).sum(axis=1)
                closer = distance < best
                best, labels = np.where(closer, distance, best), np.where(closer, near, labels)
    colours = _means(features, labels, rows * columns)[:, :3] * compactness
    return labels.reshape(height, width), np.clip(colours, 0, 255)


def _means(features: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    sizes = np.maximum(np.bincount(labels, minlength=count), 1)
    sums = [np.bincount(labels, weights=feature, minlength=count) for feature in features.T]
    return (np.stack(sums, axis=1) / sizes[:, None]).astype(np.float32)
