"""From a network's grid back to the photograph: undo views and fits, so that a map lies right over what was seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from manihot.augment.views import VIEWS
from manihot.photos.preprocess import Preprocess
from manihot.settings import View

Rectangle = tuple[float, float, float, float]  # top, left, bottom, right, as shares of an edge
WHOLE: Rectangle = (0.0, 0.0, 1.0, 1.0)


def fit_rectangle(preprocess: Preprocess, shape: Sequence[int]) -> Rectangle:
    """The part of a photograph of `shape` (height, width) that fills the input; beyond 0..1 where grey is added."""
    (height, width), (h, w) = preprocess.size, shape[:2]
    if preprocess.fit == "crop":
        scale = max(height / h, width / w)
        ch, cw = min(h, round(height / scale)), min(w, round(width / scale))
        top, left = (h - ch) // 2, (w - cw) // 2
        return top / h, left / w, (top + ch) / h, (left + cw) / w
    if preprocess.fit == "pad":
        scale = min(height / h, width / w)
        sh, sw = max(1, round(h * scale)), max(1, round(w * scale))
        top, left = (height - sh) // 2, (width - sw) // 2
        return -top / sh, -left / sw, (height - top) / sh, (width - left) / sw
    return WHOLE


def view_rectangle(
    view: View, shape: tuple[int, int], frame: tuple[int, int] | None = None
) -> tuple[Rectangle, tuple[int, int]]:
    """The part of a picture of `shape` that a view cuts out, and its (height, width) in pixels; frame: as for views."""
    places = np.indices(shape).transpose(1, 2, 0)
    cut = VIEWS[view.name](places, view, frame)
    (top, left), (bottom, right) = cut[0, 0], cut[-1, -1] + 1
    h, w = shape
    return (top / h, left / w, bottom / h, right / w), (cut.shape[0], cut.shape[1])


def within(outer: Rectangle, inner: Rectangle) -> Rectangle:
    """`inner`, given in shares of `outer`, in the shares that `outer` is given in."""
    h, w = outer[2] - outer[0], outer[3] - outer[1]
    return outer[0] + h * inner[0], outer[1] + w * inner[1], outer[0] + h * inner[2], outer[1] + w * inner[3]


def undo_view(
    cells: np.ndarray, view: View, preprocess: Preprocess, shape: Sequence[int]
) -> tuple[np.ndarray, Rectangle]:
    """A map (C, h, w) of a view of a photograph of `shape`, upright again, and the part that it covers."""
    stored = preprocess.for_store
    kept = stored.kept((shape[0], shape[1]))
    cut, (h, w) = view_rectangle(view, kept, preprocess.frame(kept))
    inside = fit_rectangle(replace(preprocess, stored=None), (w, h) if view.transpose else (h, w))
    if "v" in view.flip:
        cells = cells[:, ::-1]
    if "h" in view.flip:
        cells = cells[:, :, ::-1]
    if view.transpose:
        cells = cells.transpose(0, 2, 1)
        inside = inside[1], inside[0], inside[3], inside[2]
    return cells, within(fit_rectangle(stored, shape), within(cut, inside))


def place_map(cells: np.ndarray, rectangle: Rectangle, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Lay a map (C, h, w) that covers `rectangle` of a photograph over `shape` (height, width) pixels.

    Bilinear between the centres of the cells. Returns the map, 0 where it doesn't reach, and where it does.
    """
    places, inside = [], []
    for n, low, high, count in zip(shape, rectangle[:2], rectangle[2:], cells.shape[1:], strict=True):
        share = ((np.arange(n) + 0.5) / n - low) / (high - low)
        inside.append((share >= 0) & (share <= 1))
        places.append((share * count - 0.5).astype(np.float32))
    down, right = np.meshgrid(*places, indexing="ij")
    covered = np.outer(*inside)
    laid = [
        cv2.remap(
            np.ascontiguousarray(part, np.float32), right, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        for part in cells
    ]
    return np.where(covered, np.stack(laid), 0).astype(np.float32), covered.astype(np.float32)


def merge_maps(
    parts: Sequence[np.ndarray],
    views: Sequence[View],
    preprocess: Preprocess,
    shape: Sequence[int],
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean of the views' maps (C, h, w) at every place of the photograph over the views that see it.

    shape: of the photograph. size: (height, width) of the result. Returns float32 (C, *size) and 1 where some
    view sees the photograph, (*size,).
    """
    total, weight = np.zeros((parts[0].shape[0], *size)), np.zeros(size)
    for part, view in zip(parts, views, strict=True):
        laid, covered = place_map(*undo_view(part, view, preprocess, shape), size)
        total += view.weight * laid
        weight += view.weight * covered
    return (total / np.maximum(weight, 1e-9)).astype(np.float32), (weight > 0).astype(np.float32)
