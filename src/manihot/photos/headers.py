"""What the first bytes of an image file say: its format, a JPEG's segments, the EXIF orientation.

Read here without a decoder, so that limits hold before anything is decoded (ITU T.81 annex B, EXIF 2.32).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}


@dataclass(frozen=True)
class JpegHead:
    """What stands before the first scan of a JPEG; `scan` is the offset of its compressed data."""

    height: int
    width: int
    components: int
    precision: int
    process: int
    exif: bytes
    xmp: bytes
    icc: bytes
    scan: int

    @property
    def plain(self) -> bool:
        """Eight-bit, three components, Huffman-coded baseline or progressive: what opencv decodes rightly."""
        known = self.process <= 0xC2 and self.precision == 8 and self.components == 3
        return known and self.height > 0 and self.width > 0


def read_jpeg_head(raw: bytes) -> JpegHead | None:
    """The segments of a JPEG up to its first scan; None where `raw` is not a JPEG or is broken there."""
    if raw[:3] != b"\xff\xd8\xff":
        return None
    frame: tuple[int, int, int, int, int] | None = None
    exif = xmp = b""
    icc: dict[int, bytes] = {}
    at = 2
    while at + 4 <= len(raw) and raw[at] == 0xFF:
        marker = raw[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        end = at + 2 + int.from_bytes(raw[at + 2 : at + 4], "big")
        body = raw[at + 4 : end]
        if marker == 0xDA:
            return JpegHead(*frame, exif, xmp, b"".join(icc[k] for k in sorted(icc)), end) if frame else None
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) >= 6:
            precision, height, width, components = struct.unpack(">BHHB", body[:6])
            frame = height, width, components, precision, marker
        elif marker == 0xE1 and body[:6] == b"Exif\0\0" and not exif:
            exif = body[6:]
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = body[29:]
        elif marker == 0xE2 and body[:12] == b"ICC_PROFILE\0" and len(body) > 14:
            icc[body[12]] = body[14:]
        at = end
    return None


def find_orientation(exif: bytes, xmp: bytes = b"") -> int:
    """EXIF orientation, 1 to 8, from an EXIF block or, where that is silent, from XMP; else 1."""
    exif = exif.removeprefix(b"Exif\0\0")
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, entry)
            if tag == 0x0112:
                (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), exif, entry + 8)
                return value if 1 <= value <= 8 else 1
    except (KeyError, struct.error):
        pass
    found = re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp)
    return int(found[1]) if found else 1


def is_heif(raw: bytes) -> bool:
    """Whether this is HEIC or HEIF (ISO 23008-12), which Pillow can't read alone; AVIF is not."""
    if raw[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(raw[:4], "big"), 256, len(raw))
    brands = {raw[at : at + 4] for at in (8, *range(16, end - 3, 4))}
    return bool(brands & HEIF_BRANDS) and not brands & {b"avif", b"avis"}


def signature(raw: bytes) -> str:
    """Name of the image format that begins with these bytes, '' for none."""
    starts = {
        b"\xff\xd8\xff": "JPEG",
        b"\x89PNG\r\n": "PNG",
        b"GIF8": "GIF",
        b"II*\0": "TIFF",
        b"MM\0*": "TIFF",
        b"BM": "BMP",
        b"\0\0\0\x0cjP  ": "JPEG 2000",
    }
    if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP":
        return "WebP"
    if raw[4:8] == b"ftyp":
        return "HEIC" if is_heif(raw) else "AVIF" if b"avi" in raw[8:32] else ""
    return next((name for start, name in starts.items() if raw.startswith(start)), "")
