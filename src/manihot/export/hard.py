"""Drawn photographs that decoders and resizes get wrong: every EXIF orientation, odd colours, formats and sizes."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image, ImageCms

from manihot.export.phone import draw_test_photo

LARGE = (8000, 6000)  # 48 megapixels


@cache
def hard_photographs(large: bool = True) -> dict[str, bytes]:
    """Files by name. large: with that of 48 megapixels, which takes seconds."""
    photo = draw()
    made = {f"orientation-{k}.jpg": _oriented(photo, k) for k in range(1, 9)}
    made |= {name: save(photo) for name, save in KINDS.items()}
    if large:
        made["48-megapixels.jpg"] = _jpeg(photo.resize(LARGE, Image.Resampling.BILINEAR), quality=80)
    return made


def draw() -> Image.Image:
    """A drawn leaf, in no proportion that a resize divides evenly."""
    return Image.open(io.BytesIO(draw_test_photo())).convert("RGB")


def _jpeg(photo: Image.Image, **how: object) -> bytes:
    file = io.BytesIO()
    photo.save(file, "JPEG", **{"quality": 90, **how})
    return file.getvalue()


def _saved(kind: str, photo: Image.Image, **how: object) -> bytes:
    file = io.BytesIO()
    photo.save(file, kind, **how)
    return file.getvalue()


def _oriented(photo: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _jpeg(photo, exif=exif)


def _display_p3(photo: Image.Image) -> bytes:
    """With the primaries of Display P3 (SMPTE EG 432-1) in its profile."""
    return _jpeg(photo, icc_profile=p3_profile())


def p3_profile() -> bytes:
    """An ICC profile (version 2) of Display P3's primaries, adapted to D50, with sRGB's curve."""
    base = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    columns = {
        b"rXYZ": (0.51512, 0.2412, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.1571, 0.06657, 0.78407),
    }
    count = int.from_bytes(base[128:132], "big")
    for k in range(count):
        at = 132 + 12 * k
        tag, place = bytes(base[at : at + 4]), int.from_bytes(base[at + 4 : at + 8], "big")
        if tag in columns:
            for n, value in enumerate(columns[tag]):
                base[place + 8 + 4 * n : place + 12 + 4 * n] = round(value * 65536).to_bytes(4, "big", signed=True)
    return bytes(base)


def _deep_png(photo: Image.Image) -> bytes:
    """Grey, 16 bits."""
    grey = np.asarray(photo.convert("L"), np.uint16) * 257
    return _saved("PNG", Image.fromarray(grey))


def _transparent(photo: Image.Image) -> bytes:
    alpha = Image.linear_gradient("L").resize(photo.size)
    with_alpha = photo.copy()
    with_alpha.putalpha(alpha)
    return _saved("PNG", with_alpha)


KINDS: dict[str, Callable[[Image.Image], bytes]] = {
    "cmyk.jpg": lambda photo: _jpeg(photo.convert("CMYK")),
    "display-p3.jpg": _display_p3,
    "progressive.jpg": lambda photo: _jpeg(photo, progressive=True),
    "grey.jpg": lambda photo: _jpeg(photo.convert("L")),
    "grey-16-bit.png": _deep_png,
    "palette.png": lambda photo: _saved("PNG", photo.quantize(64)),
    "transparent.png": _transparent,
    "lossy.webp": lambda photo: _saved("WEBP", photo, quality=80),
    "one-pixel.png": lambda photo: _saved("PNG", photo.resize((1, 1))),
    "subsampled.jpg": lambda photo: _jpeg(photo, subsampling=2),
}
