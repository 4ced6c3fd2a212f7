"""Any Pillow image to 8-bit sRGB: profiles, CMYK, palettes, transparency, sixteen bits."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from manihot.photos.faults import SAVE_AS_JPEG, PhotoFault


def to_rgb(image: Image.Image) -> np.ndarray:
    """A loaded Pillow image of any mode to uint8 RGB (H, W, 3) in sRGB."""
    icc = image.info.get("icc_profile") or b""
    if image.mode.startswith("I") or image.mode == "F":
        image = _from_deep(image)
    elif image.mode in ("P", "PA", "1") or (image.mode in ("L", "RGB") and "transparency" in image.info):
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


def _from_deep(image: Image.Image) -> Image.Image:
    """Sixteen-bit grey to eight bits by scale; `convert` would clip everything above 255 to white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise PhotoFault("unsupported", "its pixels are 32-bit numbers", SAVE_AS_JPEG)
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


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

    What a profile does to a grid of colours tells whether it is sRGB; its name does not, there are dozens.
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
