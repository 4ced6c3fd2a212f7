"""Views: the ways a photograph is looked at when it is predicted, and for features computed once.

A view is cut on uint8 by the host, so that every view passes through the same resize as training.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from manihot.errors import SettingsError
from manihot.photos.preprocess import Preprocess
from manihot.settings import View, suggest


def full(rgb: np.ndarray, view: View) -> np.ndarray:
    """The whole photograph."""
    return rgb


def centre(rgb: np.ndarray, view: View) -> np.ndarray:
    """The middle `scale` of each edge."""
    return crop_at(rgb, view.scale, 0.5, 0.5)


def top_left(rgb: np.ndarray, view: View) -> np.ndarray:
    """The upper left corner, `scale` of each edge."""
    return crop_at(rgb, view.scale, 0.0, 0.0)


def top_right(rgb: np.ndarray, view: View) -> np.ndarray:
    """The upper right corner, `scale` of each edge."""
    return crop_at(rgb, view.scale, 0.0, 1.0)


def bottom_left(rgb: np.ndarray, view: View) -> np.ndarray:
    """The lower left corner, `scale` of each edge."""
    return crop_at(rgb, view.scale, 1.0, 0.0)


def bottom_right(rgb: np.ndarray, view: View) -> np.ndarray:
    """The lower right corner, `scale` of each edge."""
    return crop_at(rgb, view.scale, 1.0, 1.0)


def crop_at(rgb: np.ndarray, scale: float, down: float, right: float) -> np.ndarray:
    """A window of `scale` of each edge; `down` and `right` in [0, 1] say where it lies."""
    h, w = rgb.shape[:2]
    ch, cw = max(1, round(h * scale)), max(1, round(w * scale))
    top, left = round((h - ch) * down), round((w - cw) * right)
    return rgb[top : top + ch, left : left + cw]


def make_view(rgb: np.ndarray, view: View, preprocess: Preprocess) -> np.ndarray:
    """uint8 (H, W, 3) to the model's input, uint8 (height, width, 3), as `view` looks at it."""
    out = VIEWS[view.name](rgb, view)
    if view.transpose:
        out = out.transpose(1, 0, 2)
    out = preprocess(np.ascontiguousarray(out))
    if view.flip:
        out = cv2.flip(out, {"h": 1, "v": 0, "hv": -1}[view.flip])
    return out


def check_views(views: tuple[View, ...], where: str = "tta") -> None:
    """SettingsError for a view that doesn't exist."""
    for view in views:
        if view.name not in VIEWS:
            raise SettingsError(f"{where}: unknown view {view.name!r}", suggest(view.name, list(VIEWS)))


VIEWS: dict[str, Callable[[np.ndarray, View], np.ndarray]] = {
    "full": full,
    "centre": centre,
    "top_left": top_left,
    "top_right": top_right,
    "bottom_left": bottom_left,
    "bottom_right": bottom_right,
}
