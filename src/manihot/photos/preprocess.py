"""Preprocess: how a decoded photograph becomes a model's input, the same in training, prediction and export.

Geometry (fit and resize) happens here, on uint8; the normalisation is carried along and applied on the
device.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import cv2
import numpy as np


@dataclass(frozen=True)
class Preprocess:
    """size: (height, width) in pixels. fit: 'squash' stretches, 'crop' cuts the middle, 'pad' adds grey.

    mean, std: of RGB in [0, 1], applied after scaling uint8 by 1/255. The resize is area averaging when it
    shrinks and bilinear when it enlarges. stored: (height, width) that every photograph is first brought to,
    as the training store holds it, so that prediction sees what training saw; None when that is `size`
    itself.
    """

    size: tuple[int, int]
    fit: str = "squash"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    stored: tuple[int, int] | None = None

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) of any size to uint8 (height, width, 3)."""
        height, width = self.size
        h, w = rgb.shape[:2]
        if self.fit == "crop":
            scale = max(height / h, width / w)
            ch, cw = min(h, round(height / scale)), min(w, round(width / scale))
            top, left = (h - ch) // 2, (w - cw) // 2
            return resize(rgb[top : top + ch, left : left + cw], self.size)
        if self.fit == "pad":
            scale = min(height / h, width / w)
            small = resize(rgb, (max(1, round(h * scale)), max(1, round(w * scale))))
            out = np.full((height, width, 3), 128, dtype=np.uint8)
            top, left = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
            out[top : top + small.shape[0], left : left + small.shape[1]] = small
            return out
        return resize(rgb, self.size)

    @property
    def for_store(self) -> Preprocess:
        """The first step: any photograph to the stored size."""
        return replace(self, size=self.stored or self.size, stored=None)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a model's metadata."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Preprocess:
        """The inverse of `to_json`."""
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**fields)


def resize(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, C) to `size` (height, width): area averaging down, bilinear up."""
    if rgb.shape[:2] == tuple(size):
        return np.ascontiguousarray(rgb)
    down = size[0] * size[1] < rgb.shape[0] * rgb.shape[1]
    return cv2.resize(rgb, (size[1], size[0]), interpolation=cv2.INTER_AREA if down else cv2.INTER_LINEAR)
