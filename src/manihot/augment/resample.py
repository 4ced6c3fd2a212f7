"""Sampling: the pixels of a picture under a 3x3 matrix, and bends, without aliasing where it shrinks.

Coordinates are continuous, as in `data.canvas`; a matrix maps output coordinates to input coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import cv2
import numpy as np

from manihot.photos.preprocess import resize

Size = tuple[int, int]
Displacements = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # of places (x, y)
Bend = tuple[np.ndarray, Displacements]  # a field, and the matrix from its picture's coordinates to the photograph's
Border = Literal["reflect", "replicate", "constant"]
BORDERS = {"reflect": cv2.BORDER_REFLECT, "replicate": cv2.BORDER_REPLICATE, "constant": cv2.BORDER_CONSTANT}
ENOUGH = 1.25  # input pixels per output pixel beyond which `resample` samples twice as finely


def warp(rgb: np.ndarray, matrix: np.ndarray, size: Size, border: str = "reflect", level: int = 0) -> np.ndarray:
    """Sample `rgb` (H, W, 3) at `matrix` (output to input, continuous coordinates) into (height, width, 3).

    Upright boxes with whole-pixel corners are cut, resized and flipped: exact where nothing is resized, and
    the whole picture is resized as `photos.preprocess.resize` does. Anything else is sampled bilinearly.
    Where an output pixel covers n >= 2 input pixels, means of 2, 4, ... up to n pixels are taken first, so
    that bilinear sampling never shrinks to half or less, where it would alias.
    """
    upright = _cut_upright(rgb, matrix, size)
    if upright is not None:
        return upright
    across, down = _input_pixels_per_output_pixel(matrix, size)
    return _sample(rgb, matrix, size, border, level, across, down)


def resample(rgb: np.ndarray, matrix: np.ndarray, size: Size, border: str = "reflect", level: int = 0) -> np.ndarray:
    """As `warp`, for a photograph that nothing has brought near to its final size yet.

    Where an output pixel still covers more than `ENOUGH` input pixels after the means of 2, 4, ..., it is the mean of
    bilinear samples at twice the resolution: nearly area averaging, at a third of its cost. An upright box that
    shrinks begins and ends at the nearest whole pixels.
    """
    across, down = _input_pixels_per_output_pixel(matrix, size)
    how = _upright(matrix)
    if how is not None and min(across, down) >= 1:
        low, high = bounds(matrix, size)
        x0, y0, x1, y1 = (int(v) for v in np.rint([*low, *high]))
        if 0 <= x0 < x1 <= rgb.shape[1] and 0 <= y0 < y1 <= rgb.shape[0]:
            return _turn(_shrink_to(rgb[y0:y1, x0:x1], size[::-1] if how[0] else size), how)
    height, width = rgb.shape[:2]
    shrunk = _power_of_two(min(across, width)), _power_of_two(min(down, height))
    finer = _twice_where_coarse(np.diag([1 / shrunk[0], 1 / shrunk[1], 1.0]) @ matrix, size)
    fine = size[0] * finer[0], size[1] * finer[1]
    out = _sample(rgb, matrix @ np.diag([1 / finer[1], 1 / finer[0], 1.0]), fine, border, level, across, down)
    return out if fine == size else cv2.resize(out, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def _sample(
    rgb: np.ndarray, matrix: np.ndarray, size: Size, border: str, level: int, across: float, down: float
) -> np.ndarray:
    """Bilinear samples of means of so many pixels as powers of two up to `across` and `down` say."""
    source, (x0, y0), (across, down) = _needed_means(rgb, *bounds(matrix, size), across, down)
    matrix = np.diag([1 / across, 1 / down, 1.0]) @ np.array([[1, 0, -x0], [0, 1, -y0], [0, 0, 1.0]]) @ matrix
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])  # opencv counts from pixel centres
    back = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1.0]])
    matrix = back @ matrix @ half
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    fill = (level, level, level)
    if matrix[2, 0] == 0 and matrix[2, 1] == 0:
        return cv2.warpAffine(
            source,
            matrix[:2] / matrix[2, 2],
            (size[1], size[0]),
            flags=how,
            borderMode=BORDERS[border],
            borderValue=fill,
        )
    return cv2.warpPerspective(
        source, matrix, (size[1], size[0]), flags=how, borderMode=BORDERS[border], borderValue=fill
    )


def bent(
    rgb: np.ndarray,
    matrix: np.ndarray,
    bends: Sequence[Bend],
    size: Size,
    border: str = "reflect",
    level: int = 0,
    finely: bool = False,
) -> np.ndarray:
    """As `warp`, or `resample` where `finely`, with `bends` on the way from the photograph to the output.

    matrix: output to input, as if nothing were bent. Each field displaces the places of the picture that it was drawn
    for; they are followed from the output back to the photograph, which is sampled once.
    """
    height, width = rgb.shape[:2]
    across, down = _input_pixels_per_output_pixel(matrix, size)
    fine = size
    if finely:
        shrunk = _power_of_two(min(across, width)), _power_of_two(min(down, height))
        finer = _twice_where_coarse(np.diag([1 / shrunk[0], 1 / shrunk[1], 1.0]) @ matrix, size)
        fine = size[0] * finer[0], size[1] * finer[1]
    x, y = _follow(matrix @ np.diag([size[1] / fine[1], size[0] / fine[0], 1.0]), bends, fine)
    low, high = np.array([x.min(), y.min()]), np.array([x.max(), y.max()])
    source, (x0, y0), (across, down) = _needed_means(rgb, low, high, across, down)
    x, y = (x - x0) / across - 0.5, (y - y0) / down - 0.5  # opencv counts from pixel centres
    x, y = (np.ascontiguousarray(np.broadcast_to(one, fine)) for one in (x, y))
    out = cv2.remap(source, x, y, cv2.INTER_LINEAR, borderMode=BORDERS[border], borderValue=(level, level, level))
    return out if fine == size else cv2.resize(out, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def _follow(matrix: np.ndarray, bends: Sequence[Bend], size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Where in the input each pixel's centre of an output of `size` lies: x, y float32 that broadcast to `size`."""
    x = np.arange(size[1], dtype=np.float32)[None, :] + np.float32(0.5)
    y = np.arange(size[0], dtype=np.float32)[:, None] + np.float32(0.5)
    for before, field in reversed(bends):
        x, y = _move(np.linalg.solve(before, matrix), x, y)
        dx, dy = field(x, y)
        x, y, matrix = x + dx, y + dy, before
    return _move(matrix, x, y)


def _move(matrix: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places (x, y) through a matrix; what stays upright stays a row and a column."""
    rows = np.where(np.abs(matrix) < 1e-12, 0, matrix).astype(np.float32)

    def one(a: np.float32, b: np.float32, c: np.float32) -> np.ndarray:
        return a * x + c if b == 0 else b * y + c if a == 0 else a * x + b * y + c

    if rows[2, 0] == 0 and rows[2, 1] == 0:
        return one(*(rows[0] / rows[2, 2])), one(*(rows[1] / rows[2, 2]))
    depth = one(*rows[2])
    return one(*rows[0]) / depth, one(*rows[1]) / depth


def _needed_means(
    rgb: np.ndarray, low: np.ndarray, high: np.ndarray, across: float, down: float
) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
    """What sampling places (x, y) from low to high needs: means of powers of two of pixels; its corner, the powers."""
    height, width = rgb.shape[:2]
    wide, tall = _power_of_two(min(across, width)), _power_of_two(min(down, height))
    x0, x1 = _needed(low[0], high[0], width, wide)
    y0, y1 = _needed(low[1], high[1], height, tall)
    source = rgb[y0:y1, x0:x1]
    return (shrink(source, tall, wide) if wide > 1 or tall > 1 else source), (x0, y0), (wide, tall)


def _cut_upright(rgb: np.ndarray, matrix: np.ndarray, size: Size) -> np.ndarray | None:
    how = _upright(matrix)
    if how is None:
        return None
    low, high = bounds(matrix, size)
    box = np.rint([*low, *high])
    if np.abs(box - [*low, *high]).max() > 1e-6:
        return None
    x0, y0, x1, y1 = (int(v) for v in box)
    if x0 < 0 or y0 < 0 or x1 > rgb.shape[1] or y1 > rgb.shape[0] or x1 <= x0 or y1 <= y0:
        return None
    return _turn(_resize_box(rgb, (y0, y1, x0, x1), (size[1], size[0]) if how[0] else size), how)


def _upright(matrix: np.ndarray) -> tuple[bool, bool, bool] | None:
    """Whether rows and columns are exchanged, x is flipped, y is flipped; None where edges don't stay upright."""
    if matrix[2, 0] != 0 or matrix[2, 1] != 0:
        return None
    linear = matrix[:2, :2]
    turned = bool(abs(linear[0, 0]) < 1e-9 and abs(linear[1, 1]) < 1e-9)
    if not turned and (abs(linear[0, 1]) > 1e-9 or abs(linear[1, 0]) > 1e-9):
        return None
    x, y = (linear[0, 1], linear[1, 0]) if turned else (linear[0, 0], linear[1, 1])
    return turned, bool(x < 0), bool(y < 0)


def _turn(out: np.ndarray, how: tuple[bool, bool, bool]) -> np.ndarray:
    turned, flip_x, flip_y = how
    if flip_x or flip_y:
        out = cv2.flip(out, -1 if flip_x and flip_y else 1 if flip_x else 0)
    return cv2.transpose(out) if turned else out


def _shrink_to(cut: np.ndarray, size: Size) -> np.ndarray:
    """Bring a box to `size`, no edge of which is longer than the box's."""
    down, across = _power_of_two(cut.shape[0] / size[0]), _power_of_two(cut.shape[1] / size[1])
    if down > 1 or across > 1:
        top, left = cut.shape[0] % down // 2, cut.shape[1] % across // 2
        cut = shrink(cut[top:, left:], down, across)
    fine = tuple(edge * (2 if own > ENOUGH * edge else 1) for own, edge in zip(cut.shape[:2], size))
    if fine not in (size, cut.shape[:2]):
        cut = cv2.resize(cut, (fine[1], fine[0]), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(cut, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def _twice_where_coarse(matrix: np.ndarray, size: Size) -> tuple[int, int]:
    """2 for each edge (down, across) of the output along which a pixel covers more than `ENOUGH` input pixels."""
    steps = np.linalg.norm(_slopes(matrix, size), axis=0)
    return (2 if steps[1] > ENOUGH else 1), (2 if steps[0] > ENOUGH else 1)


def _resize_box(rgb: np.ndarray, box: tuple[int, int, int, int], size: Size) -> np.ndarray:
    y0, y1, x0, x1 = box
    if (y0, x0, y1, x1) == (0, 0, *rgb.shape[:2]):
        return resize(rgb, size)
    cut = rgb[y0:y1, x0:x1]
    # opencv's area resize takes 10 times as long as halving; a rest of a few pixels is cut from the box
    down, across = _power_of_two((y1 - y0) / size[0]), _power_of_two((x1 - x0) / size[1])
    if down > 1 or across > 1:
        top, left = (y1 - y0) % down // 2, (x1 - x0) % across // 2
        cut = shrink(cut[top:, left:], down, across)
    if cut.shape[:2] == size:
        return cut
    return cv2.resize(cut, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def shrink(rgb: np.ndarray, down: int, across: int) -> np.ndarray:
    """Means of `down` x `across` pixels, powers of two; a rest at the bottom and right is left out."""
    height, width = max(1, rgb.shape[0] // down), max(1, rgb.shape[1] // across)
    out = rgb[: height * down, : width * across]
    while out.shape[:2] != (height, width):
        halved = max(height, out.shape[0] // 2), max(width, out.shape[1] // 2)
        out = cv2.resize(out, (halved[1], halved[0]), interpolation=cv2.INTER_LINEAR)
    return out


def _power_of_two(n: float) -> int:
    """The largest power of two up to n, at least 1."""
    return 1 << max(0, int(np.floor(np.log2(max(n, 1.0) + 1e-6))))


def bounds(matrix: np.ndarray, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest (x, y) of the input that an output of `size` touches."""
    height, width = size
    corners = matrix @ np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1.0]])
    points = corners[:2] / corners[2]
    return points.min(axis=1), points.max(axis=1)


def _needed(low: float, high: float, edge: int, factor: int) -> tuple[int, int]:
    """The pixels [start, end) of an edge that sampling low..high touches, mirrored parts included.

    Their number is a multiple of `factor` unless the edge is shorter than that.
    """
    start, end = int(np.floor(low)) - 2 * factor, int(np.ceil(high)) + 2 * factor
    first, last = max(0, start), min(edge, end)
    if start < 0:
        last = max(last, min(edge, 2 * factor - start))
    if end > edge:
        first = min(first, max(0, 2 * edge - end - 2 * factor))
    first, last = min(first, edge - 1), max(last, 1)
    missing = -(last - first) % factor
    last = min(edge, last + missing)
    first = max(0, first - (-(last - first) % factor))
    return first, last


def _input_pixels_per_output_pixel(matrix: np.ndarray, size: Size) -> tuple[float, float]:
    """How far a step of one output pixel moves along the input's x and y, at the picture's middle."""
    across, down = _slopes(matrix, size)
    return float(np.hypot(*across)), float(np.hypot(*down))


def _slopes(matrix: np.ndarray, size: Size) -> np.ndarray:
    """How the input's x (first row) and y change along the output's x and y, at the picture's middle: (2, 2)."""
    x, y = size[1] / 2, size[0] / 2
    u, v, w = matrix @ np.array([x, y, 1.0])
    return np.stack([(matrix[0, :2] - u / w * matrix[2, :2]) / w, (matrix[1, :2] - v / w * matrix[2, :2]) / w])
