"""One photograph, safely: decode, orientation, colour, limits -> uint8 RGB or a named fault.

Every photograph is seen the same way everywhere: EXIF orientation applied (EXIF 2.32, tag 0x0112), colours
brought to 8-bit sRGB (embedded ICC profiles through littlecms), transparency laid over white, the first frame
of several. Plain three-component JPEG goes through opencv, three times as fast as Pillow; all the rest goes
through Pillow. Both use libjpeg-turbo with the same settings and give the same pixels (tests/test_decode.py).
"""

from __future__ import annotations

import hashlib
import io
import logging
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from manihot.errors import SettingsError
from manihot.photos.colour import RgbReader, srgb_transform
from manihot.photos.complaints import hear_decoders, quiet_decoders
from manihot.photos.faults import COPY_AGAIN, SAVE_AS_JPEG, PhotoFault, explain_refusal, explain_special
from manihot.photos.filling import check_filling
from manihot.photos.headers import JpegHead, find_orientation, is_heif, read_jpeg_head
from manihot.photos.jpeg_data import END, Scan, check_whole, decode_reduced, walk_scans, with_end
from manihot.photos.kinds import DEVELOP, RAW, explain_broken, explain_unidentified, name_other, signature
from manihot.photos.limits import RAISED, check_file_size, check_scans, check_size, raised_limit

__all__ = [
    "PhotoFacts",
    "PhotoFault",
    "decode_photo",
    "decode_sized",
    "inspect_photo",
    "inspect_photos",
    "looks_like_photo",
]

FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "HEIF")
RAW_SUFFIXES = {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"}
SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".webp", ".tif", ".tiff", ".bmp"),
    *(".avif", ".heic", ".heif", ".hif", ".jp2", ".ppm", ".pgm", *RAW_SUFFIXES),
}
DNG_TAG = 50706  # DNGVersion: Pillow would read the small preview of a camera's raw file
KNOWN = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)  # baseline, extended, progressive; the last two with arithmetic codes
LONG = 300  # characters of libtiff's message that are shown

# What Pillow logs of a broken TIFF would go to the terminal without the file's name.
logging.getLogger("PIL").addHandler(logging.NullHandler())
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


@dataclass(frozen=True)
class Shot:
    """A file's bytes with an end marker if it is a JPEG, and what was read of it without a decoder.

    ended: whether it had the marker. scans: of a JPEG in several.
    """

    raw: bytes
    head: JpegHead | None = None
    scans: tuple[Scan, ...] = ()
    ended: bool = True


def decode_photo(
    source: Path | bytes, *, at_least: tuple[int, int] | None = None, max_pixels: int | None = None
) -> np.ndarray:
    """Decode a photograph to uint8 RGB (H, W, 3), upright, in sRGB; arguments as for `decode_sized`."""
    return decode_sized(source, at_least=at_least, max_pixels=max_pixels)[0]


def decode_sized(
    source: Path | bytes, *, at_least: tuple[int, int] | None = None, max_pixels: int | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """A photograph as uint8 RGB (H, W, 3), upright, in sRGB, and the (height, width) that it has in full.

    at_least: (height, width); a JPEG may then come at 1/2, 1/4 or 1/8 of its size (scaled in the DCT domain,
    which is faster and does not alias) as long as both edges stay at least that long.
    max_pixels: larger photographs are refused before they are decoded, in place of the limits of
    `manihot.photos.limits`. Raises PhotoFault.
    """
    shot = _open(read_photo(source), max_pixels)
    if shot.head is not None and not shot.ended:
        with hear_decoders() as said:
            decode_reduced(shot.raw)
        check_whole(shot.raw.removesuffix(END), shot.head, said, shot.scans)
    with quiet_decoders():
        return _decode(shot, at_least, max_pixels)


def inspect_photo(path: Path) -> PhotoFacts:
    """Read and decode a whole file once and return its facts; raises PhotoFault.

    A JPEG is reconstructed in grey at 1/8 scale: every coefficient is still decoded, so the same faults are found. One
    whose data are damaged is a fault too, though it decodes: a part of its picture is grey or shifted.
    """
    raw = read_photo(Path(path))
    shot = _open(raw)
    head = shot.head
    said: list[str] = []
    try:
        with hear_decoders() as said:
            if head is not None and _glance(shot.raw, head):
                height, width = _turned_size(head.height, head.width, find_orientation(head.exif, head.xmp))
            else:
                height, width = _measure(shot)
    except PhotoFault as fault:
        raise _with_words(fault, said) from fault
    if head is not None:
        check_whole(raw, head, said, shot.scans)
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
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its other end
            return False
        with open(path, "rb") as handle:
            return signature(handle.read(64)) != ""
    except OSError:
        return False


def read_photo(source: Path | bytes) -> bytes:
    """The bytes of a photograph's file; raises PhotoFault where there are none to be had."""
    raw = source if isinstance(source, bytes) else _read_file(Path(source))
    if not raw:
        raise PhotoFault("empty", "the file is empty (0 bytes)", COPY_AGAIN)
    return raw


def _read_file(path: Path) -> bytes:
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise explain_special(about.st_mode)
        if about.st_size == 0:  # not read: /proc has such files, which wait
            return b""
        check_file_size(about.st_size)
        if path.suffix.lower() in RAW_SUFFIXES:
            raise PhotoFault("unsupported", f"it is {RAW} ({path.suffix.upper()[1:]})", DEVELOP)
        return path.read_bytes()
    except OSError as error:
        raise explain_refusal(error, path) from error
    except ValueError as error:  # a name with a NUL byte
        raise PhotoFault("missing", f"no file can have this name ({error})", "correct the path") from error
    except MemoryError as error:
        raise PhotoFault("too_large", "there is not enough memory to read it", "save it smaller") from error


def _open(raw: bytes, max_pixels: int | None = None) -> Shot:
    """What is known before decoding; raises PhotoFault for what will not be decoded."""
    head = read_jpeg_head(raw)
    if head is None:
        if (other := name_other(raw)) is not None:
            raise other
        return Shot(raw)
    check_size("JPEG", head.height, head.width, len(raw), max_pixels)
    if head.precision != 8 or head.process not in KNOWN:
        what = f"of {head.precision} bits" if head.precision != 8 else "packed without loss or in layers"
        raise PhotoFault("unsupported", f"unsupported: a JPEG {what}", SAVE_AS_JPEG)
    scans = walk_scans(raw, head)
    if scans:
        check_scans(head, len(scans))
    whole = with_end(raw, head)
    return Shot(whole, head, tuple(scans), whole is raw)


def _decode(shot: Shot, at_least: tuple[int, int] | None, max_pixels: int | None) -> tuple[np.ndarray, tuple[int, int]]:
    """The picture, and the (height, width) that it has in full."""
    if shot.head is not None and shot.head.plain:
        done = _decode_with_opencv(shot.raw, shot.head, at_least)
        if done is not None:
            return done
    try:
        return _decode_with_pillow(shot.raw, at_least, max_pixels)
    except PhotoFault as fault:
        if shot.head is None or fault.kind not in ("unreadable", "truncated"):
            raise
        kind = "damaged" if shot.ended else "truncated"
        raise PhotoFault(kind, f"the JPEG's data are damaged: {fault.detail}", COPY_AGAIN) from fault


def _glance(raw: bytes, head: JpegHead) -> bool:
    """Whether opencv decodes a plain JPEG, in grey at 1/8 scale."""
    grey = decode_reduced(raw, cv2.IMREAD_REDUCED_GRAYSCALE_8) if head.plain else None
    return grey is not None and grey.shape == (-(-head.height // 8), -(-head.width // 8))


def _measure(shot: Shot) -> tuple[int, int]:
    """(height, width) of what opencv doesn't decode; raises PhotoFault where Pillow can't either."""
    if shot.head is None:
        with _opened(shot.raw, (1, 1), None) as opened:
            opened.reader.check()
            size = opened.turned_size()
        if signature(shot.raw) in ("WebP", "AVIF", "HEIC"):
            check_filling(shot.raw, size[0] * size[1], lambda raw: _decode_with_pillow(raw, None, None)[0])
        return size
    size = _decode(shot, (1, 1), None)[1]
    if not shot.head.plain:
        decode_reduced(shot.raw)  # Pillow, which has decoded it, keeps libjpeg's remarks to itself
    return size


def _with_words(fault: PhotoFault, said: list[str]) -> PhotoFault:
    """The fault with what libtiff said, without repetitions."""
    words = "; ".join(dict.fromkeys(line.rstrip(".") for line in said))
    if not words:
        return fault
    words = words if len(words) <= LONG else words[:LONG] + f"... ({len(said)} remarks)"
    return PhotoFault(fault.kind, f"{fault.detail}; the decoder says: {words}", fault.remedy)


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
    del bgr  # turning takes a second copy; with a third, 48 megapixels would not fit into a decoder of the server
    if head.icc and (transform := srgb_transform(head.icc, "RGB")) is not None:
        rgb = np.asarray(transform.apply(Image.fromarray(rgb)))
    return _turn(rgb, orientation), _turned_size(head.height, head.width, orientation)


def _decode_with_pillow(
    raw: bytes, at_least: tuple[int, int] | None, max_pixels: int | None
) -> tuple[np.ndarray, tuple[int, int]]:
    with _opened(raw, at_least, max_pixels) as opened:
        return _turn(opened.reader.read(), opened.orientation), opened.turned_size()


@dataclass
class Opened:
    """A loaded picture; height and width in full, as it lies in the file."""

    reader: RgbReader
    height: int
    width: int
    orientation: int

    def turned_size(self) -> tuple[int, int]:
        """(height, width) upright."""
        return _turned_size(self.height, self.width, self.orientation)


@contextmanager
def _opened(raw: bytes, at_least: tuple[int, int] | None, max_pixels: int | None) -> Iterator[Opened]:
    """Pillow's picture, decoded; whatever it raises comes as a PhotoFault."""
    if is_heif(raw) and not _register_heif():
        remedy = 'install the reader with pip install "manihot[heic]", or save it as JPEG'
        raise PhotoFault("unsupported", "it is a HEIC photograph", remedy)
    try:
        with _without_limit(), Image.open(io.BytesIO(raw), formats=_formats()) as image:
            width, height = image.size
            reader = RgbReader(image, raw)
            check_size(image.format or "", height, width, len(raw), max_pixels, reader.deep_colours)
            if DNG_TAG in getattr(image, "tag_v2", {}):
                raise PhotoFault("unsupported", f"it is {RAW} (DNG)", DEVELOP)
            exif, xmp = _as_bytes(image.info.get("exif")), _as_bytes(image.info.get("xmp"))
            turned = image.format in ("TIFF", "HEIF")  # their readers turn them
            orientation = 1 if turned else find_orientation(exif, xmp)
            scale = _dct_scale(height, width, at_least, orientation)
            if scale > 1:
                image.draft(None, (max(1, width // scale), max(1, height // scale)))
            image.load()
            if scale == 1:
                width, height = image.size
            yield Opened(reader, height, width, orientation)
    except (PhotoFault, SettingsError):
        raise
    except Image.DecompressionBombError as error:
        remedy = f"save it smaller or as JPEG; if it is right, set {RAISED} in the environment to its megapixels"
        raise PhotoFault("too_large", "it has more than 178 megapixels", remedy) from error
    except Image.UnidentifiedImageError as error:
        raise explain_unidentified(raw) from error
    except MemoryError as error:
        raise PhotoFault("too_large", "there is not enough memory to decode it", "save it smaller") from error
    except Exception as error:  # decoders raise nearly anything on broken data
        raise explain_broken(raw, error) from error


@contextmanager
def _without_limit() -> Iterator[None]:
    """Pillow's own limit gives way where the user has set a higher one."""
    usual = Image.MAX_IMAGE_PIXELS
    if raised_limit() is None:
        yield
        return
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = usual


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
