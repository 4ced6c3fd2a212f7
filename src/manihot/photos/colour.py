"""Any Pillow image to 8-bit sRGB: profiles, CMYK, palettes, transparency, more than eight bits."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from manihot.photos import depth
from manihot.photos.faults import SAVE_AS_JPEG, PhotoFault

PHOTOMETRIC = 262  # TIFF 6.0; 0 says that zero is white


class RgbReader:
    """Brings a picture to RGB once it is loaded, some rows at a time: large ones have no room twice."""

    def __init__(self, image: Image.Image, raw: bytes) -> None:
        """image: opened and not loaded yet. raw: its file."""
        self.image = image
        self.raw = raw
        self.deep_colours = depth.has_deep_colours(image)

    def check(self) -> None:
        """Raise PhotoFault where `read` would, without bringing all of the picture to RGB."""
        image = self._in_eight_bits(picture=False)
        if image is not None:
            to_rgb(image.crop((0, 0, image.width, 1)))

    def read(self) -> np.ndarray:
        """The picture, uint8 RGB (H, W, 3) in sRGB; raises PhotoFault."""
        image = self._in_eight_bits()
        assert image is not None
        rows = max(1, depth.BAND // max(1, image.width))
        if rows >= image.height:
            return to_rgb(image)
        out = np.empty((image.height, image.width, 3), np.uint8)
        for top in range(0, image.height, rows):
            bottom = min(top + rows, image.height)
            out[top:bottom] = to_rgb(image.crop((0, top, image.width, bottom)))
        return out

    def _in_eight_bits(self, picture: bool = True) -> Image.Image | None:
        """The loaded picture in a mode of eight bits; without `picture` it may be only checked and None."""
        image = self.image
        if self.deep_colours:
            return depth.read_dark_colours(image, self.raw, image.mode in ("RGBA", "LA"))
        if not depth.is_deep(image):
            depth.check_dark_colours(image, self.raw)
            return image
        values = np.asarray(image)
        stored = 8 * values.dtype.itemsize
        white = depth.find_white(values, depth.given_white(image, self.raw), stored)
        if not picture:
            return None
        rows = max(1, depth.BAND // max(1, image.width))
        grey = np.empty(values.shape, np.uint8)
        for top in range(0, len(values), rows):
            grey[top : top + rows] = depth.to_bytes(values[top : top + rows], white)
        tags = getattr(image, "tag_v2", {})
        result = Image.fromarray(255 - grey if tags.get(PHOTOMETRIC) == 0 else grey)
        result.info = {key: value for key, value in image.info.items() if key == "icc_profile"}
        return result


def to_rgb(image: Image.Image) -> np.ndarray:
    """A loaded Pillow image of any mode of eight bits to uint8 RGB (H, W, 3) in sRGB."""
    icc = image.info.get("icc_profile") or b""
    if image.mode in ("P", "PA", "1") or (image.mode in ("L", "RGB") and "transparency" in image.info):
        has_alpha = image.mode == "PA" or "transparency" in image.info
        image = image.convert("RGBA" if has_alpha else "RGB")
    elif image.mode in ("LA", "La", "RGBa"):
        image = image.convert("RGBA")
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    if alpha is not None:
        image = image.convert("RGB")
    transform = srgb_transform(icc, image.mode) if icc and image.mode in ("RGB", "CMYK", "L") else None
    if transform is not None:
        image = transform.apply(image)
    if image.mode != "RGB":
        try:
            image = image.convert("RGB")
        except ValueError as error:
            detail = f"its colours are stored as {image.mode}"
            raise PhotoFault("unsupported", detail, SAVE_AS_JPEG) from error
    if alpha is not None:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    return np.array(image)


class _Transform:
    """A colour transform to sRGB, applied to Pillow images of one mode."""

    def __init__(self, icc: bytes, mode: str) -> None:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        self._apply = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")

    def apply(self, image: Image.Image) -> Image.Image:
        result = ImageCms.applyTransform(image, self._apply)
        if result is None:
            raise PhotoFault("unreadable", "its colour profile can't be applied", SAVE_AS_JPEG)
        return result


@lru_cache(maxsize=32)
def srgb_transform(icc: bytes, mode: str) -> _Transform | None:
    """The way from a profile to sRGB; None where it is sRGB, or broken (then taken for sRGB, as browsers do).

    What a profile does to a grid of colours shows whether it is sRGB; its name does not, there are dozens.
    """
    try:
        transform = _Transform(icc, mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if mode == "RGB":
        steps = np.linspace(0, 255, 9).astype(np.uint8)
        grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
        moved = np.asarray(transform.apply(Image.fromarray(grid))).astype(int)
        if abs(moved - grid).max() <= 2:
            return None
    return transform
