"""Views: test-time augmentation, for predictions and for features computed once.

A view is cut on uint8 by the host, so that every view passes through the same resize as training. Of photographs that
keep their own proportions, crops have those of the input; the whole photograph is brought to them by the fit.

Views with chance in them (the crops of the 77th place of Cassava 2020, the lecture's OneOf) draw from the number
`draw` and from the photograph's own pixels: the same photograph is cut in the same way in any order, batch or process.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import cv2
import numpy as np

from manihot.errors import SettingsError
from manihot.photos.preprocess import Preprocess
from manihot.settings import View, suggest

Frame = tuple[int, int] | None  # (height, width) of what shares of the edges are of; None: of the photograph


def full(rgb: np.ndarray, view: View, frame: Frame = None) -> np.ndarray:
    """The whole photograph."""
    return rgb


def centre(rgb: np.ndarray, view: View, frame: Frame = None) -> np.ndarray:
    """The middle `scale` of each edge."""
    return crop_at(rgb, view.scale, 0.5, 0.5, frame)


def top_left(rgb: np.ndarray, view: View, frame: Frame = None) -> np.ndarray:
    """The upper left corner, `scale` of each edge."""
    return crop_at(rgb, view.scale, 0.0, 0.0, frame)


def top_right(rgb: np.ndarray, view: View, frame: Frame = None) -> np.ndarray:
    """The upper right corner, `scale` of each edge."""
    return crop_at(rgb, view.scale, 0.0, 1.0, frame)


def bottom_left(rgb: np.ndarray, view: View, frame: Frame = None) -> np.ndarray:
    """The lower left corner, `scale` of each edge."""
    return crop_at(rgb, view.scale, 1.0, 0.0, frame)


def bottom_right(rgb: np.ndarray, view: View, frame: Frame = None) -> np.ndarray:
    """The lower right corner, `scale` of each edge."""
    return crop_at(rgb, view.scale, 1.0, 1.0, frame)


def random_crop(rgb: np.ndarray, view: View, frame: Frame = None) -> np.ndarray:
    """A crop anywhere of a random share, `least` to `scale`, of each edge; both edges keep the same share."""
    rng = generator(rgb, view)
    share, (down, right) = rng.uniform(view.least, view.scale), rng.uniform(0, 1, 2)
    return crop_at(rgb, share, down, right, frame)


def random_resized(rgb: np.ndarray, view: View, frame: Frame = None) -> np.ndarray:
    """A crop anywhere of `least` to `scale` of the area, its proportion 3/4 to 4/3 of the photograph's own."""
    return resized_crop(rgb, generator(rgb, view), view.least, view.scale, frame)


def one_of(rgb: np.ndarray, view: View, frame: Frame = None) -> np.ndarray:
    """The whole photograph, the middle `scale` of each edge, or a crop of `least` of the area to all of it.

    Then transposed, mirrored and turned upside down by chance: the lecture's, which took 2 or 5 draws.
    """
    rng = generator(rgb, view)
    kind = int(rng.integers(3))
    out = rgb
    if kind:
        out = centre(rgb, view, frame) if kind == 1 else resized_crop(rgb, rng, view.least, 1.0, frame)
    transposed, mirrored, upside_down = rng.random(3) < 0.5
    out = out.transpose(1, 0, 2) if transposed else out
    return out[:: -1 if upside_down else 1, :: -1 if mirrored else 1]


def generator(rgb: np.ndarray, view: View) -> np.random.Generator:
    """What a view with chance in it draws from: decided by its number and the photograph's pixels."""
    return np.random.default_rng([view.draw, zlib.crc32(np.ascontiguousarray(rgb).data), *rgb.shape[:2]])


def resized_crop(
    rgb: np.ndarray, rng: np.random.Generator, least: float, most: float, frame: Frame = None
) -> np.ndarray:
    """A crop of random area and proportion, at a random place (arXiv 1409.4842); `frame` where none of ten fits."""
    h, w = rgb.shape[:2]
    own = 1.0 if frame is None else math.sqrt(frame[1] / frame[0] * h / w)
    for _ in range(10):
        area = rng.uniform(least, most)
        stretch = own * math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)) / 2)
        down, right = math.sqrt(area) / stretch, math.sqrt(area) * stretch
        if max(down, right) <= 1:
            height, width = max(1, round(h * down)), max(1, round(w * right))
            top, left = int(rng.integers(h - height + 1)), int(rng.integers(w - width + 1))
            return rgb[top : top + height, left : left + width]
    return crop_at(rgb, 1.0, 0.5, 0.5, frame)


def crop_at(rgb: np.ndarray, scale: float, down: float, right: float, frame: Frame = None) -> np.ndarray:
    """A window of `scale` of each edge of `frame`; `down` and `right` in [0, 1] say where it lies."""
    h, w = rgb.shape[:2]
    ch, cw = (max(1, round(edge * scale)) for edge in frame or (h, w))
    top, left = round((h - ch) * down), round((w - cw) * right)
    return rgb[top : top + ch, left : left + cw]


def make_view(rgb: np.ndarray, view: View, preprocess: Preprocess) -> np.ndarray:
    """uint8 (H, W, 3) to the model's input, uint8 (height, width, 3), as `view` transforms it."""
    out = VIEWS[view.name](rgb, view, preprocess.frame(rgb.shape))
    if view.transpose:
        out = out.transpose(1, 0, 2)
    out = preprocess(np.ascontiguousarray(out))
    if view.flip:
        out = cv2.flip(out, {"h": 1, "v": 0, "hv": -1}[view.flip])
    return out


def check_views(views: tuple[View, ...], where: str = "tta") -> None:
    """SettingsError for a view that doesn't exist, or one with chance in it that can't be or appears twice."""
    drawn = set()
    for view in views:
        if view.name not in VIEWS:
            raise SettingsError(f"{where}: unknown view {view.name!r}", suggest(view.name, list(VIEWS)))
        if view.name in ("random", "random_resized") and view.least > view.scale:
            raise SettingsError(
                f"{where}: {view.name} keeps at least {view.least:g} and at most {view.scale:g}",
                "set least to a share below scale, for example {least: 0.37, scale: 0.85}",
            )
        looks = tuple(view.model_dump(exclude={"weight"}).items())
        if view.name in CHANCE and looks in drawn:
            raise SettingsError(
                f"{where}: {view.name} with draw {view.draw} appears twice, which is the same view",
                f"number them: draw: {view.draw + 1} for the next",
            )
        drawn.add(looks)


VIEWS: dict[str, Callable[[np.ndarray, View, Frame], np.ndarray]] = {
    "full": full,
    "centre": centre,
    "top_left": top_left,
    "top_right": top_right,
    "bottom_left": bottom_left,
    "bottom_right": bottom_right,
    "random": random_crop,
    "random_resized": random_resized,
    "one_of": one_of,
}
CHANCE = ("random", "random_resized", "one_of")
