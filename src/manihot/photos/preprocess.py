"""Preprocess: how a decoded photograph becomes a model's input, the same in training, prediction and export.

Geometry (fit and resize) happens here, on uint8; the normalisation is carried along and applied on the
device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import cv2
import numpy as np

GREY = 128  # of what 'pad' adds
FITS = ("squash", "crop", "pad")
OWN = "own"  # of a first step that keeps a photograph's own proportions
MOST_AREA = 2.0  # of a copy with its own proportions, over that of the stored size: long strips stay bounded
LARGEST = 1 << 14  # pixels of an edge of a network's input; more is a damaged file


@dataclass(frozen=True)
class Preprocess:
    """size: (height, width) in pixels. fit: 'squash' stretches, 'crop' cuts the middle, 'pad' adds grey.

    A first step (`for_store`) may also have the fit 'own': the photograph as it is, made small until one edge is that
    of `size`.

    mean, std: of RGB in [0, 1], applied after scaling uint8 by 1/255. The resize is area averaging when it
    shrinks and bilinear when it enlarges. stored: (height, width) that every photograph is first brought to,
    as the training store holds it, so that prediction sees what training saw; None when that is `size`
    itself. own: the stored copy keeps the photograph's own proportions, so that crops are cut from these, and `fit` is
    what the second step does.
    """

    size: tuple[int, int]
    fit: str = "squash"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    stored: tuple[int, int] | None = None
    own: bool = False

    def __call__(self, rgb: np.ndarray, full: tuple[int, int] | None = None) -> np.ndarray:
        """uint8 (H, W, 3) of any size to uint8 (height, width, 3), or of fit 'own' to what `kept` says.

        full: (height, width) of the photograph, where rgb is a copy of it that was decoded smaller.
        """
        height, width = self.size
        if self.fit == OWN:
            return resize(rgb, self.kept(full or (rgb.shape[0], rgb.shape[1])))
        if self.fit == "crop":
            return resize(self._cut(rgb), self.size)
        if self.fit == "pad":
            top, left, h, w = self._place(rgb)
            out = np.full((height, width, 3), GREY, dtype=np.uint8)
            out[top : top + h, left : left + w] = resize(rgb, (h, w))
            return out
        return resize(rgb, self.size)

    def kept(self, full: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the copy of a photograph of (height, width) `full`.

        Of fit 'own' it covers `size`, is no larger than the photograph, and has at most MOST_AREA times the area.
        """
        if self.fit != OWN:
            return self.size
        (height, width), (h, w) = self.size, full
        scale = min(1.0, max(height / h, width / w), math.sqrt(MOST_AREA * height * width / (h * w)))
        return max(1, round(h * scale)), max(1, round(w * scale))

    def frame(self, shape: Sequence[int]) -> tuple[int, int] | None:
        """(height, width) of what a view's shares of the edges are of, in a stored photograph of `shape`.

        The largest box in the input's proportions, where it keeps its own; None where it is all of it.
        """
        return like(self.size, (shape[0], shape[1])) if self.own else None

    def _cut(self, rgb: np.ndarray) -> np.ndarray:
        """The middle that 'crop' keeps."""
        (height, width), (h, w) = self.size, rgb.shape[:2]
        scale = max(height / h, width / w)
        ch, cw = (max(1, min(edge, round(to / scale))) for edge, to in ((h, height), (w, width)))
        top, left = (h - ch) // 2, (w - cw) // 2
        return rgb[top : top + ch, left : left + cw]

    def _place(self, rgb: np.ndarray) -> tuple[int, int, int, int]:
        """Top, left, height and width of the photograph within the grey that 'pad' adds."""
        (height, width), (h, w) = self.size, rgb.shape[:2]
        scale = min(height / h, width / w)
        h, w = max(1, round(h * scale)), max(1, round(w * scale))
        return (height - h) // 2, (width - w) // 2, h, w

    def framed(self, rgb: np.ndarray, full: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """What it would resize, cut or padded at the photograph's own scale, uint8 (h, w, 3), and where that lies.

        The matrix (3, 3) takes coordinates (x, y, 1) in the picture of `size` to coordinates in it, both continuous
        (the centre of the first pixel is (0.5, 0.5)).
        """
        height, width = self.kept((rgb.shape[0], rgb.shape[1])) if full is None else self.kept(full)
        if self.fit == "crop":
            rgb = self._cut(rgb)
        if self.fit != "pad":
            return rgb, np.diag([rgb.shape[1] / width, rgb.shape[0] / height, 1.0])
        top, left, h, w = self._place(rgb)
        down, across = rgb.shape[0] / h, rgb.shape[1] / w
        above, before = round(top * down), round(left * across)
        below, after = round((height - top - h) * down), round((width - left - w) * across)
        matrix = np.array([[across, 0, before - left * across], [0, down, above - top * down], [0, 0, 1.0]])
        grey = (GREY, GREY, GREY)
        return cv2.copyMakeBorder(rgb, above, below, before, after, cv2.BORDER_CONSTANT, value=grey), matrix

    @property
    def for_store(self) -> Preprocess:
        """The first step: any photograph to the stored size."""
        fit = OWN if self.own else self.fit
        return replace(self, size=self.stored or self.size, stored=None, own=False, fit=fit)

    @property
    def last_fit(self) -> str:
        """How a stored photograph is brought to size: the copy of the stored size has its proportions already."""
        return self.fit if self.own else "squash"

    def check(self) -> None:
        """ValueError for sizes, a fit or a normalisation that can't be."""
        edges = (*self.size, *(self.stored or ()))
        if self.fit not in FITS or not all(1 <= edge <= LARGEST for edge in edges) or not all(s > 0 for s in self.std):
            raise ValueError(f"{self} can't be")

    def to_json(self) -> dict[str, Any]:
        """Plain values for a model's metadata; `own` where it is so, as it was added later."""
        return {key: value for key, value in asdict(self).items() if key != "own" or value}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Preprocess:
        """The inverse of `to_json`."""
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**fields)


class Unresized:
    """A decoded photograph in place of its copy of the stored size, so that it can be cut before it is resized.

    rgb: uint8 (h, w, 3), cut or padded. size: (height, width) of the copy. matrix: (3, 3), as `Preprocess.framed`.
    """

    def __init__(self, decoded: np.ndarray, preprocess: Preprocess, full: tuple[int, int] | None = None) -> None:
        self._decoded, self._preprocess = decoded, preprocess
        self._full = full or (decoded.shape[0], decoded.shape[1])
        self.rgb, self.matrix = preprocess.framed(decoded, self._full)
        self.size = preprocess.kept(self._full)

    def stored(self) -> np.ndarray:
        """The copy after all, uint8 (height, width, 3)."""
        return self._preprocess(self._decoded, self._full)


def like(size: tuple[int, int], shape: tuple[int, int], share: float = 1.0) -> tuple[int, int]:
    """(height, width) of the largest box in the proportion of `size` within `shape`, its edges times `share`."""
    factor = share * min(shape[0] / size[0], shape[1] / size[1])
    height, width = (max(1, round(edge * factor)) for edge in size)
    return min(shape[0], height), min(shape[1], width)


def resize(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, C) to `size` (height, width): area averaging down, bilinear up.

    The bilinear kind is the one that opencv keeps equal to the bit in all its versions; INTER_LINEAR changed with 5.0.
    """
    if rgb.shape[:2] == tuple(size):
        return np.ascontiguousarray(rgb)
    down = size[0] * size[1] < rgb.shape[0] * rgb.shape[1]
    return cv2.resize(rgb, (size[1], size[0]), interpolation=cv2.INTER_AREA if down else cv2.INTER_LINEAR_EXACT)
