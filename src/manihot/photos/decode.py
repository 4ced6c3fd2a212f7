"""One photograph, safely: decode, orientation, colour, limits -> uint8 RGB or a named fault.

Every photograph is seen the same way everywhere: EXIF orientation applied (EXIF 2.32, tag 0x0112), colours
brought to 8-bit sRGB (embedded ICC profiles through littlecms), transparency laid over white, the first frame
of several. Plain three-component JPEG goes through opencv, three times as fast as Pillow; all the rest goes
through Pillow. Both use libjpeg-turbo with the same settings and give the same pixels (tests/test_decode.py).
"""

from __future__ import annotations

import hashlib
import io
import stat
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from manihot.photos.colour import srgb_transform, to_rgb
from manihot.photos.complaints import find_damage, hear_jpeg, quiet_jpeg
from manihot.photos.faults import (
    COPY_AGAIN,
    SAVE_AS_JPEG,
    PhotoFault,
    explain_broken,
    explain_refusal,
    explain_unidentified,
)
from manihot.photos.headers import JpegHead, find_orientation, is_heif, read_jpeg_head, signature

__all__ = ["PhotoFacts", "PhotoFault", "decode_photo", "inspect_photo", "inspect_photos", "looks_like_photo"]

MAX_PIXELS = 200_000_000  # the largest phone sensor; Pillow stops at 179 million in the formats it decodes
MAX_BYTES = 1 << 30
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "HEIF")
RAW_SUFFIXES = {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"}
SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".webp", ".tif", ".tiff", ".bmp"),
    *(".avif", ".heic", ".heif", ".hif", ".jp2", ".ppm", ".pgm", *RAW_SUFFIXES),
}
GREY = 128  # what libjpeg fills in where data are missing
MORE = b"\x55" * 64  # data for some blocks
DNG_TAG = 50706  # DNGVersion: Pillow would read the small preview of a camera's raw file

# Our own limit is checked before anything is decoded; Pillow's warning at 89 million pixels adds nothing.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Remarks on broken metadata, without the file's name; what matters comes as a fault.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@dataclass(frozen=True)
class PhotoFacts:
    """height, width: pixels after EXIF orientation. bytes: of the file. sha256: of its bytes, hex."""

    height: int
    width: int
    bytes: int
    sha256: str


def decode_photo(
    source: Path | bytes, *, at_least: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decode a photograph to uint8 RGB (H, W, 3), upright, in sRGB.

    at_least: (height, width); a JPEG may then come at 1/2, 1/4 or 1/8 of its size (scaled in the DCT domain,
    which is faster and does not alias) as long as both edges stay at least that long.
    max_pixels: larger photographs are refused before they are decoded.
    Raises PhotoFault.
    """
    raw = read_photo(source)
    with quiet_jpeg():
        return _decode(raw, read_jpeg_head(raw), at_least, max_pixels)[0]


def inspect_photo(path: Path) -> PhotoFacts:
    """Read and decode a whole file once and tell its facts; raises PhotoFault.

    A JPEG is reconstructed in grey at 1/8 scale: every coefficient is still decoded, so the same faults are found. One
    whose data are damaged is a fault too, though it decodes: a part of its picture is grey or shifted.
    """
    raw = read_photo(Path(path))
    head = read_jpeg_head(raw)
    with hear_jpeg() as said:
        shown = None if head is None else _glance(raw, head)
        if head is not None and shown is not None:
            height, width = _turned_size(head.height, head.width, find_orientation(head.exif, head.xmp))
        else:
            shown, (height, width) = _decode(raw, head, (1, 1), MAX_PIXELS)
            if head is not None and not head.plain:
                _decode_reduced(raw)  # Pillow, which has decoded it, keeps libjpeg's remarks to itself
    if head is not None:
        _check_whole(raw, head, said, shown)
    return PhotoFacts(height, width, len(raw), hashlib.sha256(raw).hexdigest())


def inspect_photos(paths: list[Path]) -> list[PhotoFacts | PhotoFault]:
    """Facts, or the fault, of each file."""
    found: list[PhotoFacts | PhotoFault] = []
    for path in paths:
        try:
            found.append(inspect_photo(path))
        except PhotoFault as fault:
            found.append(PhotoFault(fault.kind, fault.detail, fault.remedy))  # without its chain of causes
    return found


def looks_like_photo(path: Path) -> bool:
    """Whether the first bytes of a file without extension are those of an image format that is read here."""
    try:
        with open(path, "rb") as handle:
            return signature(handle.read(64)) != ""
    except OSError:
        return False


def read_photo(source: Path | bytes) -> bytes:
    """The bytes of a photograph's file; raises PhotoFault where there are none to be had."""
    if isinstance(source, bytes):
        raw = source
    else:
        path = Path(source)
        try:
            about = path.stat()
            if not stat.S_ISREG(about.st_mode):
                raise PhotoFault("not_an_image", "it is not a regular file", "leave it out")
            if about.st_size > MAX_BYTES:
                raise PhotoFault("too_large", f"the file has {about.st_size / 1e6:.0f} MB", SAVE_AS_JPEG)
            raw = path.read_bytes()
        except OSError as error:
            raise explain_refusal(error) from error
        if path.suffix.lower() in RAW_SUFFIXES:
            raise PhotoFault("unsupported", "it is the raw file of a camera", SAVE_AS_JPEG)
    if not raw:
        raise PhotoFault("empty", "the file is empty (0 bytes)", COPY_AGAIN)
    return raw


def _decode(
    raw: bytes, head: JpegHead | None, at_least: tuple[int, int] | None, max_pixels: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """The picture, and the (height, width) that it has in full; `head` is that of a JPEG."""
    if head is not None:
        _check_head(raw, head, max_pixels)
        if head.plain:
            done = _decode_with_opencv(raw, head, at_least)
            if done is not None:
                return done
    return _decode_with_pillow(raw, at_least, max_pixels)


def _check_head(raw: bytes, head: JpegHead, max_pixels: int) -> None:
    _check_pixels(head.height, head.width, max_pixels)
    if raw.rfind(b"\xff\xd9", head.scan) < 0:  # opencv 4 fills the missing part with grey and says nothing
        raise PhotoFault("truncated", "the JPEG ends before its end marker", COPY_AGAIN)


def _glance(raw: bytes, head: JpegHead) -> np.ndarray | None:
    """A plain JPEG in grey at 1/8 scale as it lies in the file, uint8 (h, w, 1); None where opencv can't decode it."""
    _check_head(raw, head, MAX_PIXELS)
    grey = _decode_reduced(raw, cv2.IMREAD_REDUCED_GRAYSCALE_8) if head.plain else None
    size = -(-head.height // 8), -(-head.width // 8)
    return grey[:, :, None] if grey is not None and grey.shape == size else None


def _decode_reduced(raw: bytes, flag: int = cv2.IMREAD_REDUCED_COLOR_8) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(raw, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None


def _check_whole(raw: bytes, head: JpegHead, said: list[str], shown: np.ndarray) -> None:
    """PhotoFault where a JPEG's data are damaged: libjpeg says so, or they end before the picture does.

    It says its first remark only; so where there is one, and where the last block is the grey that it fills in, the
    same is decoded with more data behind: what was whole doesn't change.
    """
    damage = find_damage(raw, head.scan, said)
    if not damage and (said or (shown[[0, 0, -1, -1], [0, -1, 0, -1]] == GREY).all(axis=1).any()):
        end = raw.find(b"\xff\xd9", head.scan)
        with hear_jpeg():
            once, more = _decode_reduced(raw), _decode_reduced(raw[:end] + MORE + raw[end:])
        if once is not None and (more is None or not np.array_equal(once, more)):
            damage = "the data end before the picture does"
    if damage:
        raise PhotoFault("damaged", f"the JPEG's data are damaged: {damage}", COPY_AGAIN)


def _decode_with_opencv(
    raw: bytes, head: JpegHead, at_least: tuple[int, int] | None
) -> tuple[np.ndarray, tuple[int, int]] | None:
    orientation = find_orientation(head.exif, head.xmp)
    scale = _dct_scale(head.height, head.width, at_least, orientation)
    flags = {
        1: cv2.IMREAD_COLOR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }[scale]
    try:
        bgr = cv2.imdecode(np.frombuffer(raw, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    if bgr is None or bgr.shape != (-(-head.height // scale), -(-head.width // scale), 3):
        return None
    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    if head.icc and (transform := srgb_transform(head.icc, "RGB")) is not None:
        rgb = np.asarray(transform.apply(Image.fromarray(rgb)))
    return _turn(rgb, orientation), _turned_size(head.height, head.width, orientation)


def _decode_with_pillow(
    raw: bytes, at_least: tuple[int, int] | None, max_pixels: int
) -> tuple[np.ndarray, tuple[int, int]]:
    if is_heif(raw) and not _register_heif():
        remedy = 'install the reader with pip install "manihot[heic]", or save it as JPEG'
        raise PhotoFault("unsupported", "it is a HEIC photograph", remedy)
    try:
        with Image.open(io.BytesIO(raw), formats=_formats()) as image:
            width, height = image.size
            _check_pixels(height, width, max_pixels)
            if DNG_TAG in getattr(image, "tag_v2", {}):
                raise PhotoFault("unsupported", "it is the raw file of a camera", SAVE_AS_JPEG)
            exif, xmp = _as_bytes(image.info.get("exif")), _as_bytes(image.info.get("xmp"))
            turned = image.format in ("TIFF", "HEIF")  # their readers turn them
            orientation = 1 if turned else find_orientation(exif, xmp)
            scale = _dct_scale(height, width, at_least, orientation)
            if scale > 1:
                image.draft(None, (max(1, width // scale), max(1, height // scale)))
            image.load()
            rgb = to_rgb(image)
    except PhotoFault:
        raise
    except Image.DecompressionBombError as error:
        raise PhotoFault("too_large", "it has more than 179 megapixels", "save it smaller") from error
    except Image.UnidentifiedImageError as error:
        raise explain_unidentified(raw) from error
    except MemoryError as error:
        raise PhotoFault("too_large", "there is not enough memory to decode it", "save it smaller") from error
    except Exception as error:  # decoders raise nearly anything on broken data
        raise explain_broken(raw, error) from error
    if scale == 1:
        height, width = rgb.shape[:2]
    return _turn(rgb, orientation), _turned_size(height, width, orientation)


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        detail = f"it has {width} x {height} pixels, more than the limit of {max_pixels / 1e6:.0f} megapixels"
        raise PhotoFault("too_large", detail, "save it smaller")


def _dct_scale(height: int, width: int, at_least: tuple[int, int] | None, orientation: int) -> int:
    if at_least is None:
        return 1
    h, w = _turned_size(height, width, orientation)
    return next((s for s in (8, 4, 2) if -(-h // s) >= at_least[0] and -(-w // s) >= at_least[1]), 1)


def _turned_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def _turn(rgb: np.ndarray, orientation: int) -> np.ndarray:
    """Bring a picture upright that was stored with this EXIF orientation."""
    match orientation:
        case 2:
            rgb = cv2.flip(rgb, 1)
        case 3:
            rgb = cv2.rotate(rgb, cv2.ROTATE_180)
        case 4:
            rgb = cv2.flip(rgb, 0)
        case 5:
            rgb = cv2.transpose(rgb)
        case 6:
            rgb = cv2.rotate(rgb, cv2.ROTATE_90_CLOCKWISE)
        case 7:
            rgb = cv2.rotate(cv2.transpose(rgb), cv2.ROTATE_180)
        case 8:
            rgb = cv2.rotate(rgb, cv2.ROTATE_90_COUNTERCLOCKWISE)
    return rgb


def _as_bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8") if isinstance(value, str) else b""


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Formats that this Pillow knows: never EPS and the like, which start other programs."""
    Image.init()
    _register_heif()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@lru_cache(maxsize=1)
def _register_heif() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True
