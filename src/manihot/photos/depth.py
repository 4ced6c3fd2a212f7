"""Pictures of more than eight bits: which number is white, from the file's tags or from the bits in use.

Cameras and microscopes store 10, 12 or 14 bits in files of 16, and whole numbers up to 255 in files of 32: read as they
stand, they are nearly black. What can't be determined is a fault, never a guess.
"""

from __future__ import annotations

import io
import re
import sys

import numpy as np
from PIL import Image

from manihot.photos.faults import SAVE_AS_JPEG, PhotoFault

BITS, MAX_VALUE, FLOAT_MAX_VALUE = 258, 281, 341  # TIFF 6.0: BitsPerSample, MaxSampleValue, SMaxSampleValue
DEPTHS = (8, 10, 12, 14, 16)
DARKEST = 32  # a brightest value below is that of a mask or of an empty picture; an eighth of eight bits
FAINTEST = 1 / 8  # the same for numbers from 0 to 1
BLACK = 1 / 32  # of white: seven levels of 255
HOT = 0.001  # share of pixels that may be brighter in a picture without any other light, as sensors have hot pixels
BRIGHT = 64  # high byte from which 16 bits are in use
BAND = 1 << 20  # pixels that are worked on at once
# The maximum in the head of a PGM or PPM, behind width and height; blanks and comments lie between.
PORTABLE = re.compile(rb"P[56](?:(?:\s|#[^\r\n]*[\r\n])+\d{1,10}){2}(?:\s|#[^\r\n]*[\r\n])+(\d{1,5})\s")
SWAPPED = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


def is_deep(image: Image.Image) -> bool:
    """Whether the values of a picture of one channel have more than eight bits."""
    return image.mode.startswith("I") or image.mode == "F"


def rawmode(image: Image.Image) -> str:
    """How the file of a picture that isn't loaded yet stores its pixels, in Pillow's words; '' if it doesn't say."""
    for tile in getattr(image, "tile", ()):
        args = tile[3]
        mode = args[0] if isinstance(args, (tuple, list)) and args else args
        if isinstance(mode, str):
            return mode
    return ""


def has_deep_colours(image: Image.Image) -> bool:
    """Whether a picture that isn't loaded yet has 16 bits a channel, of which Pillow takes the upper eight."""
    return ";16" in rawmode(image) and image.mode in ("RGB", "RGBA", "RGBX", "LA", "CMYK")


def find_white(values: np.ndarray, given: float | None, stored: int = 16) -> float:
    """The number that is white: `given` by the file, or the largest of the bits that `values` use.

    stored: bits of a value in the file. Raises PhotoFault where it can't be determined.
    """
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    whole = values.dtype.kind in "iu"
    if not (np.isfinite(low) and np.isfinite(high)):
        raise _unknown("its pixels are numbers of which some are infinite or none")
    if low < 0:
        raise _unknown(f"its pixels are numbers below zero (from {low:g} to {high:g}), such as an index or heights")
    if given is not None and high <= given:
        return given
    if not whole and high <= 1:
        if high < FAINTEST or low == high:
            raise _unknown(
                f"its pixels are fractions from {low:g} to {high:g}: which value is white can't be determined"
            )
        return 1.0
    if not whole and not _are_whole(values):
        if BRIGHT <= high <= 255:
            return 255.0
        raise _unknown(f"its pixels are fractions from {low:g} to {high:g}: which value is white can't be determined")
    if high < DARKEST:
        raise _unknown(f"its pixels of {stored} bits reach {high:g} only: a mask, or an empty picture")
    white = next((2.0**bits - 1 for bits in DEPTHS if high < 2**bits), None)
    if white is None:
        raise _unknown(
            f"its pixels are whole numbers from {low:g} to {high:g}: which value is white can't be determined"
        )
    check_bright(values, white)
    return white


def check_bright(values: np.ndarray, white: float) -> None:
    """PhotoFault where only a few hot pixels are above black."""
    if values.size and np.count_nonzero(values > white * BLACK) < HOT * values.size:
        said = f"of its pixels hardly any is above {white * BLACK:.0f}, but one reaches {values.max():g}"
        raise _unknown(f"{said}: which value is white can't be determined")


def to_bytes(values: np.ndarray, white: float) -> np.ndarray:
    """Values from 0 to `white` as uint8, rounded."""
    if values.dtype.kind in "iu" and white <= 65535:
        table = np.arange(int(white) + 1, dtype=np.uint64)
        table = ((table * 510 + int(white)) // (2 * int(white))).astype(np.uint8)
        found: np.ndarray = table[values]
        return found
    return np.floor(np.clip(values.astype(np.float64) / white, 0, 1) * 255 + 0.5).astype(np.uint8)


def given_white(image: Image.Image, raw: bytes) -> float | None:
    """The number that the file's tags call white; None where they don't, or say what its container can hold."""
    if image.format == "PPM":
        # Pillow scales by the maximum in its head, which is no more than what the container can hold where it is 65535
        return 65535.0 if image.mode != "F" and not _has_full_range(raw) else None
    if image.format == "JPEG2000":
        at = raw.find(b"\xff\x4f\xff\x51")
        bits = (raw[at + 42] & 127) + 1 if 0 <= at < len(raw) - 42 else 16
        return 65535.0 if bits < 16 else None  # Pillow scales by the bits in its head
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return None
    depth = _number(tags.get(BITS)) or 0
    if 8 < depth < 16:
        return 2.0**depth - 1
    for tag in (FLOAT_MAX_VALUE, MAX_VALUE):
        value = _number(tags.get(tag))
        if value is not None and value > 0 and value not in (2.0**depth - 1, 2.0 ** (depth - 1) - 1):
            return value
    return None


def _has_full_range(raw: bytes) -> bool:
    head = PORTABLE.match(raw)
    return head is not None and int(head[1]) == 65535


def check_dark_colours(image: Image.Image, raw: bytes) -> None:
    """PhotoFault for a loaded PPM in colours whose 16 bits use the lower ones only: Pillow keeps the upper eight."""
    if image.format == "PPM" and image.mode == "RGB" and _has_full_range(raw):
        high = int(np.asarray(image).max(initial=0))
        if high < BRIGHT:
            raise _unknown("its channels of 16 bits use the lower ones only")


def read_dark_colours(image: Image.Image, raw: bytes, alpha: bool) -> Image.Image:
    """A loaded picture of 16 bits a channel in eight; brightened where only the lower bits are in use.

    Pillow keeps the upper bytes; the lower ones come by reading the file once more, with its bytes swapped.
    """
    upper = np.asarray(image)
    colours = upper[..., : upper.shape[2] - alpha]
    if colours.size and colours.max() >= BRIGHT:
        check_bright(colours, 255.0)
        return image
    lower = np.asarray(_read_lower(raw, image.format or ""))
    if lower.shape != upper.shape:
        raise _unknown("its channels of 16 bits use the lower ones only")
    rows = max(1, BAND // max(1, upper.shape[1]))
    bands = [slice(k, k + rows) for k in range(0, len(upper), rows)]
    brightest = max(int((colours[b].astype(np.uint16) << 8 | lower[b][..., : colours.shape[2]]).max()) for b in bands)
    white = find_white(np.array([brightest], np.uint16), given_white(image, raw))
    out = np.empty_like(upper)
    for band in bands:
        values = np.minimum(upper[band].astype(np.uint16) << 8 | lower[band], int(white))
        out[band] = to_bytes(values, white)
        if alpha:
            out[band][..., -1] = upper[band][..., -1]
    result = Image.fromarray(out, image.mode) if image.mode != "RGBX" else Image.fromarray(out[..., :3])
    result.info = dict(image.info)
    return result


def _read_lower(raw: bytes, kind: str) -> Image.Image:
    with Image.open(io.BytesIO(raw), formats=(kind,)) as image:
        mode = rawmode(image)
        head, _, order = mode.rpartition(";16")
        swapped = f"{head};16{SWAPPED.get(order, '?')}"
        tiles = []
        for tile in image.tile:
            args = (swapped, *tile[3][1:]) if isinstance(tile[3], (tuple, list)) else swapped
            tiles.append(tile._replace(args=args))
        image.tile = tiles
        try:
            image.load()
        except (ValueError, SystemError, OSError) as error:
            raise _unknown(f"its channels of 16 bits ({mode}) use the lower ones only") from error
        return image


def _number(value: object) -> float | None:
    value = value[0] if isinstance(value, tuple) and value else value
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if np.isfinite(number) else None


def _are_whole(values: np.ndarray) -> bool:
    return bool((values == np.floor(values)).all())


def _unknown(what: str) -> PhotoFault:
    return PhotoFault("unsupported", what, SAVE_AS_JPEG)
