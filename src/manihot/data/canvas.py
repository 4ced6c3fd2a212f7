"""The canvas an augmentation paints on: pixels, and what is still to be done to them in one go.

Geometric operations only multiply a pending 3x3 matrix, colour operations a pending 3x4 matrix; the pixels
are touched once, when a pixel operation needs them or the list ends. Crop, resize, flips, rotation and shear
are then one sampling of the photograph, at the final size, without a loss from repeated interpolation.

Coordinates are continuous (x, y): a picture of H x W pixels covers [0, W] x [0, H] and the centre of its
first pixel is (0.5, 0.5), so that a flip is W - x and a resize a plain factor. A geometric matrix maps output
coordinates to input coordinates. A colour matrix acts on (R, G, B, 1) with levels 0..255.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import cv2
import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from manihot.photos.preprocess import resize

Size = tuple[int, int]
Border = Literal["reflect", "replicate", "constant"]
BORDERS = {"reflect": cv2.BORDER_REFLECT, "replicate": cv2.BORDER_REPLICATE, "constant": cv2.BORDER_CONSTANT}


def _ordered(span: tuple[float, float]) -> tuple[float, float]:
    if span[0] > span[1]:
        raise ValueError("the first number is larger than the second")
    return span


def _positive(span: tuple[float, float]) -> tuple[float, float]:
    if span[0] <= 0:
        raise ValueError("both numbers must be above 0")
    return span


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


Span = Annotated[
    tuple[float, float],
    BeforeValidator(lambda value: (value, value) if _number(value) else value),
    AfterValidator(_ordered),
]
PositiveSpan = Annotated[Span, AfterValidator(_positive)]
Limit = Annotated[
    tuple[float, float],
    BeforeValidator(lambda value: (-value, value) if _number(value) else value),
    AfterValidator(_ordered),
]


class Canvas:
    """A photograph (uint8 RGB, never written to) with the geometry and colour still to be applied to it.

    size: (height, width) of the picture as it would be with the pending geometry applied.
    target: (height, width) of the model's input. notes: a list collects (operation, values drawn); None does
    not.
    """

    def __init__(
        self,
        rgb: np.ndarray,
        target: Size,
        epoch: int = 0,
        epochs: int = 1,
        notes: list[tuple[Op, dict[str, Any]]] | None = None,
    ) -> None:
        self.pixels = rgb
        self.target = target
        self.epoch, self.epochs = epoch, epochs
        self.size: Size = (rgb.shape[0], rgb.shape[1])
        self.geometry: np.ndarray | None = None
        self.colour: np.ndarray | None = None
        self.border: tuple[str, int] | None = None
        self.notes = notes
        self.values: dict[str, Any] = {}

    def note(self, **values: Any) -> None:
        """Remember what the running operation drew, for a label."""
        self.values = values

    def warp(
        self, matrix: np.ndarray, size: Size | None = None, border: tuple[str, int] | None = None
    ) -> None:
        """Put `matrix` (3, 3) after the pending geometry; `size` is the picture's size from now on.

        border: (kind, level) for operations that look beyond the edge; another kind than the pending one's
        makes the pending geometry happen first.
        """
        if border is not None and self.border is not None and border != self.border:
            self.flush_geometry()
        self.geometry = matrix if self.geometry is None else self.geometry @ matrix
        self.size = size or self.size
        self.border = border or self.border

    def recolour(self, matrix: np.ndarray) -> None:
        """Put a colour `matrix` (3, 4) after the pending ones."""
        self.colour = matrix if self.colour is None else chain_colour(self.colour, matrix)

    def mean(self) -> np.ndarray:
        """Mean RGB (3,) in levels of the picture as it stands, from about 64 x 64 of its pixels.

        With a pending rotation the mean is that of the upright box around what will be seen.
        """
        x0, y0, x1, y1 = self._window()
        step = max(1, min(x1 - x0, y1 - y0) // 64)
        mean = np.array(cv2.mean(np.ascontiguousarray(self.pixels[y0:y1:step, x0:x1:step]))[:3])
        return mean if self.colour is None else self.colour[:, :3] @ mean + self.colour[:, 3]

    def flush_geometry(self) -> None:
        """Sample the pixels once with all pending geometry."""
        if self.geometry is not None:
            self.pixels = warp(self.pixels, self.geometry, self.size, *(self.border or ("reflect", 0)))
            self.geometry = self.border = None

    def flush(self) -> np.ndarray:
        """Apply everything pending and return the pixels (h, w, 3) uint8; don't write into them."""
        self.flush_geometry()
        if self.colour is not None:
            self.pixels = cv2.transform(self.pixels, self.colour)
            self.colour = None
        return self.pixels

    def paint(self, rgb: np.ndarray) -> None:
        """Replace the pixels by those a pixel operation made of `flush()`."""
        self.pixels = rgb
        self.size = (rgb.shape[0], rgb.shape[1])

    def _window(self) -> tuple[int, int, int, int]:
        height, width = self.pixels.shape[:2]
        if self.geometry is None:
            return 0, 0, width, height
        low, high = _bounds(self.geometry, self.size)
        x0, y0 = (int(np.clip(np.floor(low[i]), 0, (width, height)[i] - 1)) for i in (0, 1))
        x1, y1 = (int(np.clip(np.ceil(high[i]), (x0, y0)[i] + 1, (width, height)[i])) for i in (0, 1))
        return x0, y0, x1, y1


class Op(BaseModel):
    """What every operation has: its probability and when in the training it is on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    p: float = Field(0.5, ge=0, le=1, description="probability")
    strength: tuple[tuple[float, float], ...] = Field(
        (),
        description="[[share of epochs, factor on p], ...]: 0 is the first epoch, 1 the last; linear between",
    )
    from_epoch: int = Field(0, description="first epoch it is on, counted from 0; negative from the end")
    until_epoch: int | None = Field(
        None, description="epoch from which it is off again; -1 leaves the last one out"
    )

    @model_validator(mode="after")
    def _strength_rises_in_share(self) -> Op:
        shares = [share for share, _ in self.strength]
        if (
            shares != sorted(shares)
            or any(not 0 <= s <= 1 for s in shares)
            or any(f < 0 for _, f in self.strength)
        ):
            raise ValueError("strength: shares must rise within 0..1, factors not be negative")
        return self

    def chance(self, epoch: int, epochs: int) -> float:
        """Probability in `epoch` (from 0) of `epochs`; a training of one epoch counts as its own middle."""
        if epoch not in range(epochs)[self.from_epoch : self.until_epoch]:
            return 0.0
        if not self.strength:
            return self.p
        share = epoch / (epochs - 1) if epochs > 1 else 0.5
        shares, factors = zip(*self.strength)
        return min(1.0, self.p * float(np.interp(share, shares, factors)))

    def run(self, canvas: Canvas, rng: np.random.Generator) -> None:
        """Apply with the probability of the canvas's epoch."""
        if rng.random() < self.chance(canvas.epoch, canvas.epochs):
            self.run_always(canvas, rng)

    def run_always(self, canvas: Canvas, rng: np.random.Generator) -> None:
        """Apply whatever `p` says."""
        canvas.values = {}
        self.apply(canvas, rng)
        if canvas.notes is not None:
            canvas.notes.append((self, canvas.values))

    def apply(self, canvas: Canvas, rng: np.random.Generator) -> None:
        """Do it to the canvas."""
        raise NotImplementedError


class GeometricOp(Op):
    """An operation that is a 3x3 matrix from output to input coordinates."""

    def apply(self, canvas: Canvas, rng: np.random.Generator) -> None:
        matrix, size = self.matrix(canvas, rng)
        canvas.warp(matrix, size, self.edge())

    def matrix(self, canvas: Canvas, rng: np.random.Generator) -> tuple[np.ndarray, Size]:
        """Draw: the matrix (3, 3), output to input, and the output's (height, width)."""
        raise NotImplementedError

    def edge(self) -> tuple[str, int] | None:
        """(kind, level) of what lies beyond the picture's edge; None for those that never look there."""
        return None


class ColourOp(Op):
    """An operation that is a 3x4 matrix on (R, G, B, 1)."""

    def apply(self, canvas: Canvas, rng: np.random.Generator) -> None:
        canvas.recolour(self.matrix(canvas, rng))

    def matrix(self, canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
        """Draw: the matrix (3, 4) float64, levels 0..255."""
        raise NotImplementedError


class PixelOp(Op):
    """An operation that needs the pixels themselves."""

    def apply(self, canvas: Canvas, rng: np.random.Generator) -> None:
        canvas.paint(self.pixels(canvas, canvas.flush(), rng))

    def pixels(self, canvas: Canvas, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw: new pixels, uint8 (h, w, 3); `rgb` must stay as it is."""
        raise NotImplementedError


def uniform(rng: np.random.Generator, span: tuple[float, float]) -> float:
    """A number drawn evenly from a span."""
    return span[0] + (span[1] - span[0]) * float(rng.random())


def chain_colour(first: np.ndarray, then: np.ndarray) -> np.ndarray:
    """The colour matrix (3, 4) that does `first` and `then` one after the other, without clipping between."""
    out = then[:, :3] @ first
    out[:, 3] += then[:, 3]
    return out


def warp(
    rgb: np.ndarray, matrix: np.ndarray, size: Size, border: str = "reflect", level: int = 0
) -> np.ndarray:
    """Sample `rgb` (H, W, 3) at `matrix` (output to input, continuous coordinates) into (height, width, 3).

    Upright boxes with whole-pixel corners are cut, resized and flipped: exact where nothing is resized, and
    the whole picture is resized as `photos.preprocess.resize` does. Anything else is sampled bilinearly.
    Where an output pixel covers n >= 2 input pixels, means of 2, 4, ... up to n pixels are taken first, so
    that bilinear sampling never shrinks to half or less, where it would alias.
    """
    upright = _cut_upright(rgb, matrix, size)
    if upright is not None:
        return upright
    height, width = rgb.shape[:2]
    low, high = _bounds(matrix, size)
    across, down = _input_pixels_per_output_pixel(matrix, size)
    across, down = _power_of_two(min(across, width)), _power_of_two(min(down, height))
    x0, x1 = _needed(low[0], high[0], width, across)
    y0, y1 = _needed(low[1], high[1], height, down)
    source = rgb[y0:y1, x0:x1]
    if across > 1 or down > 1:
        source = shrink(source, down, across)
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


def _cut_upright(rgb: np.ndarray, matrix: np.ndarray, size: Size) -> np.ndarray | None:
    if matrix[2, 0] != 0 or matrix[2, 1] != 0:
        return None
    linear = matrix[:2, :2]
    turned = abs(linear[0, 0]) < 1e-9 and abs(linear[1, 1]) < 1e-9
    if not turned and (abs(linear[0, 1]) > 1e-9 or abs(linear[1, 0]) > 1e-9):
        return None
    low, high = _bounds(matrix, size)
    box = np.rint([*low, *high])
    if np.abs(box - [*low, *high]).max() > 1e-6:
        return None
    x0, y0, x1, y1 = (int(v) for v in box)
    if x0 < 0 or y0 < 0 or x1 > rgb.shape[1] or y1 > rgb.shape[0] or x1 <= x0 or y1 <= y0:
        return None
    out = _resize_box(rgb, (y0, y1, x0, x1), (size[1], size[0]) if turned else size)
    flip_x, flip_y = (linear[0, 1] < 0, linear[1, 0] < 0) if turned else (linear[0, 0] < 0, linear[1, 1] < 0)
    if flip_x or flip_y:
        out = cv2.flip(out, -1 if flip_x and flip_y else 1 if flip_x else 0)
    return cv2.transpose(out) if turned else out


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


def _bounds(matrix: np.ndarray, size: Size) -> tuple[np.ndarray, np.ndarray]:
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
    x, y = size[1] / 2, size[0] / 2
    u, v, w = matrix @ np.array([x, y, 1.0])
    across = (matrix[0, :2] - u / w * matrix[2, :2]) / w
    down = (matrix[1, :2] - v / w * matrix[2, :2]) / w
    return float(np.hypot(*across)), float(np.hypot(*down))
