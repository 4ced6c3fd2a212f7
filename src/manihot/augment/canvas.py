"""The canvas an augmentation paints on: pixels, and what is still to be done to them in one go.

Geometric operations only multiply a pending 3x3 matrix, bending ones add a field of displacements to it, colour
operations multiply a pending 3x4 matrix; the pixels are touched once, when a pixel operation needs them or the list
ends. Crop, resize, flips, rotation, shear and bends are then one sampling of the photograph, at the final size,
without a loss from repeated interpolation.

Coordinates are continuous (x, y): a picture of H x W pixels covers [0, W] x [0, H] and the centre of its
first pixel is (0.5, 0.5), so that a flip is W - x and a resize a plain factor. A geometric matrix maps output
coordinates to input coordinates. A colour matrix acts on (R, G, B, 1) with levels 0..255.
"""

from __future__ import annotations

from typing import Annotated, Any

import cv2
import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from manihot.augment.resample import Bend, Displacements, Size, bent, bounds, resample, warp
from manihot.photos.preprocess import Unresized


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

    photo: of the stored size, or as it was decoded: its resize is then the first of the pending geometry.
    size: (height, width) of the picture as it would be with the pending geometry applied.
    target: (height, width) of the model's input. notes: a list collects (operation, values drawn); None does
    not.
    """

    def __init__(
        self,
        photo: np.ndarray | Unresized,
        target: Size,
        epoch: int = 0,
        epochs: int = 1,
        notes: list[tuple[Op, dict[str, Any]]] | None = None,
    ) -> None:
        self.unresized = photo if isinstance(photo, Unresized) else None
        self.pixels = photo.rgb if isinstance(photo, Unresized) else photo
        self.target = target
        self.epoch, self.epochs = epoch, epochs
        self.size: Size = photo.size if isinstance(photo, Unresized) else (photo.shape[0], photo.shape[1])
        self.geometry: np.ndarray | None = None if self.unresized is None else self.unresized.matrix
        self.bends: list[Bend] = []
        self.colour: np.ndarray | None = None
        self.border: tuple[str, int] | None = None
        self.notes = notes
        self.values: dict[str, Any] = {}

    def note(self, **values: Any) -> None:
        """Remember what the running operation drew, for a label."""
        self.values = values

    def warp(self, matrix: np.ndarray, size: Size | None = None, border: tuple[str, int] | None = None) -> None:
        """Put `matrix` (3, 3) after the pending geometry; `size` is the picture's size from now on.

        border: (kind, level) for operations that read beyond the edge; another kind than the pending one's
        makes the pending geometry happen first.
        """
        if border is not None and self.border is not None and border != self.border:
            self.flush_geometry()
        self.geometry = matrix if self.geometry is None else self.geometry @ matrix
        self.size = size or self.size
        self.border = border or self.border

    def bend(self, field: Displacements, border: tuple[str, int]) -> None:
        """Displace the places of the picture by `field`, after the pending geometry; border as for `warp`."""
        self.warp(np.eye(3), border=border)
        assert self.geometry is not None
        self.bends.append((self.geometry, field))

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
            if self.bends:
                border, finely = self.border or ("reflect", 0), self.unresized is not None
                self.pixels = bent(self.pixels, self.geometry, self.bends, self.size, *border, finely)
            elif self.unresized is not None and self.geometry is self.unresized.matrix:
                self.pixels = self.unresized.stored()
            else:
                how = warp if self.unresized is None else resample
                self.pixels = how(self.pixels, self.geometry, self.size, *(self.border or ("reflect", 0)))
            self.geometry = self.border = self.unresized = None
            self.bends = []

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
        low, high = bounds(self.geometry, self.size)
        x0, y0 = (int(np.clip(np.floor(low[i]), 0, (width, height)[i] - 1)) for i in (0, 1))
        x1, y1 = (int(np.clip(np.ceil(high[i]), (x0, y0)[i] + 1, (width, height)[i])) for i in (0, 1))
        return x0, y0, x1, y1


class Op(BaseModel):
    """What every operation has: its probability and when in the training it is on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    p: float = Field(0.5, ge=0, le=1, description="probability")
    strength: tuple[tuple[float, float], ...] = Field(
        (), description="[[share of epochs, factor on p], ...]: 0 is the first epoch, 1 the last; linear between"
    )
    from_epoch: int = Field(0, description="first epoch it is on, counted from 0; negative from the end")
    until_epoch: int | None = Field(None, description="epoch from which it is off again; -1 leaves the last one out")

    @model_validator(mode="after")
    def _strength_rises_in_share(self) -> Op:
        shares = [share for share, _ in self.strength]
        if shares != sorted(shares) or any(not 0 <= s <= 1 for s in shares) or any(f < 0 for _, f in self.strength):
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
        """(kind, level) of what lies beyond the picture's edge; None for those that never read there."""
        return None


class BendingOp(Op):
    """An operation that takes each place of the picture from a displaced one, mirrored beyond the edge."""

    def apply(self, canvas: Canvas, rng: np.random.Generator) -> None:
        canvas.bend(self.field(canvas, rng), ("reflect", 0))

    def field(self, canvas: Canvas, rng: np.random.Generator) -> Displacements:
        """Draw: the function that gives the displacements (dx, dy) of places (x, y) of a picture of `canvas.size`.

        All in pixels, float32; x and y broadcast to each other. Places beyond the edge are asked for too.
        """
        raise NotImplementedError


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
    found: np.ndarray = out
    return found
