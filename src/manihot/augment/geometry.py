"""Augmentations of shape: each is one 3x3 matrix from output to input coordinates (see `data.canvas`).

Sizes are shares of the photograph's edges and never pixels, so that a recipe means the same on the
photograph, on a copy decoded at half scale and on the stored small one. What a crop cut away can come back
into view when a rotation or shift follows it, because the photograph itself is sampled: real leaf instead of
a mirrored edge. Positive angles turn anticlockwise.
"""

from __future__ import annotations

import math

import numpy as np
from pydantic import Field

from manihot.augment.canvas import Canvas, GeometricOp, Limit, PositiveSpan, Span, uniform
from manihot.augment.resample import Border, Size
from manihot.photos.preprocess import GREY, like


class EdgeOp(GeometricOp):
    """A geometric operation that may read beyond the picture's edge."""

    border: Border = Field("reflect", description="what lies beyond the edge: mirrored, repeated or one level")
    fill: int = Field(0, ge=0, le=255, description="level of a `constant` border")

    def edge(self) -> tuple[str, int]:
        return self.border, self.fill if self.border == "constant" else 0


class RandomResizedCrop(GeometricOp):
    """A box of random area and proportion, resized to the model's input (GoogLeNet, arXiv 1409.4842)."""

    p: float = Field(1.0, ge=0, le=1, description="probability; else the whole photograph is resized")
    scale: PositiveSpan = Field((0.08, 1.0), description="area of the box as a share of the photograph's, from..to")
    ratio: PositiveSpan = Field(
        (3 / 4, 4 / 3), description="proportion of the box, from..to, evenly in its logarithm; 1 is the model input's"
    )

    def matrix(self, canvas: Canvas, rng: np.random.Generator) -> tuple[np.ndarray, Size]:
        height, width = canvas.size
        own = canvas.target[1] / canvas.target[0]
        lowest, highest = own * self.ratio[0], own * self.ratio[1]
        for _ in range(10):
            area = height * width * uniform(rng, self.scale)
            ratio = math.exp(uniform(rng, (math.log(lowest), math.log(highest))))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
                break
        else:  # no box fits: the middle, as near to the wished proportion as the photograph allows
            ratio = min(max(width / height, lowest), highest)
            w, h = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
            left, top = (width - w) // 2, (height - h) // 2
        canvas.note(left=left / width, top=top / height, width=w / width, height=h / height)
        return box_to(canvas.target, left, top, w, h), canvas.target


class Resize(GeometricOp):
    """The whole picture squashed to the model's input."""

    p: float = Field(1.0, ge=0, le=1, description="probability")

    def matrix(self, canvas: Canvas, rng: np.random.Generator) -> tuple[np.ndarray, Size]:
        return box_to(canvas.target, 0, 0, canvas.size[1], canvas.size[0]), canvas.target


class CenterCrop(GeometricOp):
    """The middle of the photograph in the proportion of the model's input."""

    p: float = Field(1.0, ge=0, le=1, description="probability; else the whole photograph is resized")
    share: float = Field(0.875, gt=0, le=1, description="edge of the box as a share of the largest such box's")

    def matrix(self, canvas: Canvas, rng: np.random.Generator) -> tuple[np.ndarray, Size]:
        h, w = like(canvas.target, canvas.size, self.share)
        top, left = (canvas.size[0] - h) // 2, (canvas.size[1] - w) // 2
        return box_to(canvas.target, left, top, w, h), canvas.target


class RandomCrop(GeometricOp):
    """A box anywhere in the photograph in the proportion of the model's input."""

    p: float = Field(1.0, ge=0, le=1, description="probability; else the whole photograph is resized")
    share: PositiveSpan = Field(
        (0.875, 0.875), description="edge of the box as a share of the largest such box's, from..to"
    )

    def matrix(self, canvas: Canvas, rng: np.random.Generator) -> tuple[np.ndarray, Size]:
        h, w = like(canvas.target, canvas.size, uniform(rng, self.share))
        top = int(rng.integers(0, canvas.size[0] - h + 1))
        left = int(rng.integers(0, canvas.size[1] - w + 1))
        canvas.note(left=left / canvas.size[1], top=top / canvas.size[0], width=w / canvas.size[1])
        return box_to(canvas.target, left, top, w, h), canvas.target


class HorizontalFlip(GeometricOp):
    """Left and right exchanged."""

    def matrix(self, canvas: Canvas, rng: np.random.Generator) -> tuple[np.ndarray, Size]:
        return np.array([[-1, 0, canvas.size[1]], [0, 1, 0], [0, 0, 1.0]]), canvas.size


class VerticalFlip(GeometricOp):
    """Top and bottom exchanged."""

    def matrix(self, canvas: Canvas, rng: np.random.Generator) -> tuple[np.ndarray, Size]:
        return np.array([[1, 0, 0], [0, -1, canvas.size[0]], [0, 0, 1.0]]), canvas.size


class Transpose(GeometricOp):
    """Rows and columns exchanged; a picture that is not square changes its proportion."""

    def matrix(self, canvas: Canvas, rng: np.random.Generator) -> tuple[np.ndarray, Size]:
        return np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1.0]]), (canvas.size[1], canvas.size[0])


class Rotate90(GeometricOp):
    """One, two or three quarter turns, evenly; p = 0.75 makes all four positions equally likely."""

    def matrix(self, canvas: Canvas, rng: np.random.Generator) -> tuple[np.ndarray, Size]:
        turns = int(rng.integers(1, 4))
        canvas.note(degrees=90 * turns)
        return quarter_turns(turns, canvas.size)


class Rotate(EdgeOp):
    """Turned about the middle."""

    limit: Limit = Field((-45.0, 45.0), description="degrees; a number means from minus to plus")

    def matrix(self, canvas: Canvas, rng: np.random.Generator) -> tuple[np.ndarray, Size]:
        degrees = uniform(rng, self.limit)
        canvas.note(degrees=degrees)
        return about_middle(canvas.size, linear(degrees)), canvas.size


class ShiftScaleRotate(EdgeOp):
    """Moved, enlarged or made smaller, and turned about the middle."""

    shift: Limit = Field((-0.0625, 0.0625), description="share of the edge, each direction drawn by itself")
    scale: Limit = Field((-0.1, 0.1), description="1 + this is the enlargement")
    rotate: Limit = Field((-45.0, 45.0), description="degrees")

    def matrix(self, canvas: Canvas, rng: np.random.Generator) -> tuple[np.ndarray, Size]:
        degrees, scale = uniform(rng, self.rotate), max(1 + uniform(rng, self.scale), 1e-2)
        across, down = uniform(rng, self.shift), uniform(rng, self.shift)
        canvas.note(degrees=degrees, scale=scale, across=across, down=down)
        return about_middle(canvas.size, linear(degrees, scale), across, down), canvas.size


class Affine(EdgeOp):
    """Any mapping that keeps lines parallel: scale, shift, rotation and shear, about the middle."""

    scale: PositiveSpan = Field((1.0, 1.0), description="enlargement, from..to")
    translate_x: Limit = Field((0.0, 0.0), description="share of the width, positive to the right")
    translate_y: Limit = Field((0.0, 0.0), description="share of the height, positive downwards")
    rotate: Limit = Field((0.0, 0.0), description="degrees")
    shear_x: Limit = Field((-15.0, 15.0), description="degrees by which upright lines lean to the right")
    shear_y: Limit = Field((0.0, 0.0), description="degrees by which level lines rise to the right")

    def matrix(self, canvas: Canvas, rng: np.random.Generator) -> tuple[np.ndarray, Size]:
        degrees, scale = uniform(rng, self.rotate), uniform(rng, self.scale)
        lean = uniform(rng, self.shear_x), uniform(rng, self.shear_y)
        across, down = uniform(rng, self.translate_x), uniform(rng, self.translate_y)
        canvas.note(degrees=degrees, scale=scale, shear_x=lean[0], shear_y=lean[1], across=across, down=down)
        return about_middle(canvas.size, linear(degrees, scale, *lean), across, down), canvas.size


class Perspective(GeometricOp):
    """Seen from the side: the four corners are taken from inside the photograph, so no border shows."""

    scale: Span = Field((0.05, 0.1), description="most a corner moves inwards, share of the edge, from..to")

    def matrix(self, canvas: Canvas, rng: np.random.Generator) -> tuple[np.ndarray, Size]:
        height, width = canvas.size
        reach = min(uniform(rng, self.scale), 0.49)
        inwards = rng.random((4, 2)) * reach * [width, height]
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=float)
        signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
        canvas.note(reach=reach)
        return quadrilateral(corners, corners + signs * inwards), canvas.size


def box_to(target: Size, left: float, top: float, width: float, height: float) -> np.ndarray:
    """The matrix that fills `target` (height, width) from an upright box."""
    return np.array([[width / target[1], 0, left], [0, height / target[0], top], [0, 0, 1.0]])


def fit_whole(fit: str, size: Size, target: Size) -> tuple[np.ndarray, Size, tuple[str, int] | None]:
    """Matrix, output size and border that bring a whole picture of `size` to `target`, as `Preprocess` does."""
    height, width = size
    if fit == "crop":
        h, w = like(target, size)
        return box_to(target, (width - w) // 2, (height - h) // 2, w, h), target, None
    if fit == "pad":
        scale = min(target[0] / height, target[1] / width)
        tall, wide = target[0] / scale, target[1] / scale
        return box_to(target, (width - wide) / 2, (height - tall) / 2, wide, tall), target, ("constant", GREY)
    return box_to(target, 0, 0, width, height), target, None


def quarter_turns(turns: int, size: Size) -> tuple[np.ndarray, Size]:
    """Matrix and output size of `turns` anticlockwise quarter turns of a picture of `size`."""
    height, width = size
    if turns % 4 == 1:
        return np.array([[0, -1, width], [1, 0, 0], [0, 0, 1.0]]), (width, height)
    if turns % 4 == 2:
        return np.array([[-1, 0, width], [0, -1, height], [0, 0, 1.0]]), size
    if turns % 4 == 3:
        return np.array([[0, 1, 0], [-1, 0, height], [0, 0, 1.0]]), (width, height)
    return np.eye(3), size


def linear(degrees: float, scale: float = 1.0, shear_x: float = 0.0, shear_y: float = 0.0) -> np.ndarray:
    """Linear part (2, 2) from input to output in (x, y down): shear, then anticlockwise turn, then scale."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    lean = np.array([[1, -math.tan(math.radians(shear_x))], [-math.tan(math.radians(shear_y)), 1]])
    found: np.ndarray = scale * np.array([[cos, sin], [-sin, cos]]) @ lean
    return found


def about_middle(size: Size, forward: np.ndarray, across: float = 0.0, down: float = 0.0) -> np.ndarray:
    """Output-to-input matrix of a linear map (2, 2) about the middle and a shift by shares of the edges."""
    middle = np.array([size[1] / 2, size[0] / 2])
    backward = np.linalg.inv(forward)
    moved = middle + np.array([across * size[1], down * size[0]])
    out = np.eye(3)
    out[:2, :2] = backward
    out[:2, 2] = middle - backward @ moved
    return out


def quadrilateral(corners: np.ndarray, seen_at: np.ndarray) -> np.ndarray:
    """The homography (3, 3) that takes each of four `corners` (4, 2) to the point `seen_at` (4, 2)."""
    rows, right = [], []
    for (x, y), (u, v) in zip(corners, seen_at):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(right)), 1.0).reshape(3, 3)
