"""How large a photograph may be, checked from its head before anything is decoded.

Formats that can't be decoded at a fraction of their size are limited by the memory that it takes; files of any format
that promise far more pixels than a photograph's bytes could hold are refused. The environment variable
MANIHOT_MAX_MEGAPIXELS sets one limit instead of all these.
"""

from __future__ import annotations

import math
import os
from contextvars import ContextVar

from manihot.errors import SettingsError
from manihot.photos.faults import SAVE_AS_JPEG, PhotoFault
from manihot.photos.headers import JpegHead

RAISED = "MANIHOT_MAX_MEGAPIXELS"
MAX_PIXELS = 200_000_000  # the largest sensor of a phone
MAX_BYTES = 1 << 30  # of a file
MEMORY = 800_000_000  # bytes that one photograph may take: with the libraries a process stays below 1 GB
photo_memory = ContextVar("photo_memory", default=MEMORY)  # the same, for a process that must do with less
# Bytes per pixel while it is decoded and brought to RGB, measured with Pillow 13 on pictures of 25 and 40 megapixels
# (17.1, 13.4, 19.8 and 7.1 for WebP, AVIF, JPEG 2000 and GIF).
BYTES_A_PIXEL = {"WEBP": 18, "AVIF": 16, "HEIF": 16, "JPEG2000": 22, "JPEG": 4, "MPO": 4}
BYTES_A_PIXEL_ELSE = 8
BYTES_A_PIXEL_DEEP = 11  # colours of 16 bits, decoded twice where they are dark
LIGHT = 100_000_000  # bytes of a file that need not be counted
# Photographs have 2 to 50 pixels a byte; a flat picture, which compresses best, has some thousand.
SPARSE = 200  # pixels a byte
SMALL = 25_000_000  # pixels up to which a flat picture is read
# A scan of a progressive JPEG without data takes 0.3 ns per pixel (libjpeg-turbo 3, 2.5 GHz): 1 s for MOST_SCANNED.
FEW_SCANS = 20  # encoders write 10, and 18 for four colours
MOST_SCANNED = 3_000_000_000  # pixels times scans
MOST_SCANS = 1000


def raised_limit() -> int | None:
    """Pixels that the user allows in MANIHOT_MAX_MEGAPIXELS; None where it isn't set. Raises SettingsError."""
    text = os.environ.get(RAISED, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 100_000:
        raise SettingsError(
            f"{RAISED}={text!r} is not a number of megapixels", f"set it to a number, as in {RAISED}=400"
        )
    return int(value * 1e6)


def check_size(kind: str, height: int, width: int, size: int, max_pixels: int | None, deep: bool = False) -> None:
    """Raise PhotoFault for a picture too large for its format, or for its file of `size` bytes.

    kind: Pillow's name of the format. max_pixels: the caller's own limit, in place of the memory's. deep: colours of
    16 bits.
    """
    pixels = height * width
    allowed = raised_limit() or max_pixels
    if allowed is not None:
        if pixels > allowed:
            raise _too_large(height, width, f"more than the limit of {allowed / 1e6:.4g} megapixels")
        return
    need = BYTES_A_PIXEL_DEEP if deep else BYTES_A_PIXEL.get(kind, BYTES_A_PIXEL_ELSE)
    held = 0 if kind in ("JPEG", "MPO") else max(0, size - LIGHT)
    most = min(MAX_PIXELS, max(0, photo_memory.get() - held) // need)
    if pixels > most:
        of_size = f" in a file of {size / 1e6:.0f} MB" * (held > 0)
        raise _too_large(height, width, f"more than the limit of {most / 1e6:.0f} megapixels for {kind}{of_size}")
    if pixels > SMALL and pixels > SPARSE * size:
        said = f"in {size / 1000:.0f} kB: {pixels // max(1, size)} pixels a byte, which no photograph has"
        raise _too_large(height, width, said)


def check_scans(head: JpegHead, scans: int) -> None:
    """Raise PhotoFault for a JPEG in several scans that would take minutes or too much memory."""
    pixels = head.height * head.width
    if scans > MOST_SCANS or (scans > FEW_SCANS and scans * pixels > MOST_SCANNED):
        found = f"{'more than ' * (scans > MOST_SCANS)}{min(scans, MOST_SCANS)}"
        detail = f"it is a progressive JPEG of {found} scans and {pixels / 1e6:.3g} megapixels; encoders write 10"
        raise PhotoFault("too_large", detail, "save it again as an ordinary JPEG")
    most = max([1, *(h * v for _, h, v in head.sampling)])
    need = sum(h * v / most for _, h, v in head.sampling) * 2 * pixels  # libjpeg keeps all coefficients
    if need > (most_memory := photo_memory.get()) and raised_limit() is None:
        said = f"as a progressive JPEG, whose decoding takes {need / 1e6:.0f} MB, more than the limit of"
        raise _too_large(head.height, head.width, f"{said} {most_memory / 1e6:.0f} MB")


def check_file_size(size: int) -> None:
    """Raise PhotoFault for a file that is larger than a photograph can be."""
    if size > MAX_BYTES:
        detail = f"the file has {size / 1e6:.0f} MB, more than the limit of {MAX_BYTES / 1e6:.0f} MB"
        raise PhotoFault("too_large", detail, SAVE_AS_JPEG)


def _too_large(height: int, width: int, said: str) -> PhotoFault:
    megapixels = math.ceil(height * width / 1e6)
    remedy = f"save it smaller or as JPEG; if it is right, set {RAISED}={megapixels} in the environment"
    return PhotoFault("too_large", f"it has {width} x {height} pixels, {said}", remedy)
