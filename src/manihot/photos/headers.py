"""What stands before the picture in an image file: a JPEG's segments, the EXIF orientation, HEIF's brands.

Read here without a decoder, so that limits hold before anything is decoded (ITU T.81 annex B, EXIF 2.32).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from manihot.photos.faults import SAVE_AS_JPEG, PhotoFault

MOST_SEGMENTS = 5000  # before the first scan; cameras write up to some hundred
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # that begins a segment, or the end of the picture
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}


@dataclass(frozen=True)
class JpegHead:
    """What stands before the first scan of a JPEG.

    start: offset of the first scan's marker; scan: of its compressed data. sampling: (id, horizontal, vertical
    factor) of each component. bare: the same file without metadata and stray bytes, up to `start`.
    """

    height: int
    width: int
    components: int
    precision: int
    process: int
    exif: bytes
    xmp: bytes
    icc: bytes
    start: int
    scan: int
    sampling: tuple[tuple[int, int, int], ...]
    bare: bytes

    @property
    def plain(self) -> bool:
        """Eight-bit, three components, Huffman-coded baseline or progressive: what opencv decodes rightly."""
        known = self.process <= 0xC2 and self.precision == 8 and self.components == 3
        return known and self.height > 0 and self.width > 0


def read_jpeg_head(raw: bytes) -> JpegHead | None:
    """The segments of a JPEG up to its first scan; None where `raw` is not a JPEG or is broken there.

    Stray bytes between segments are passed over, as libjpeg does.
    """
    if raw[:3] != b"\xff\xd8\xff":
        return None
    frame: tuple[int, int, int, int, int] | None = None
    sampling: tuple[tuple[int, int, int], ...] = ()
    exif = xmp = b""
    icc: dict[int, bytes] = {}
    bare = [raw[:2]]
    at = 2
    for _ in range(MOST_SEGMENTS):
        found = MARKER.search(raw, at)
        if found is None:
            return None
        start = found.start()
        marker = raw[start + 1]
        end = start + 2 + int.from_bytes(raw[start + 2 : start + 4], "big")
        body = raw[start + 4 : end]
        if marker == 0xD9:
            return None
        if marker == 0xDA:
            whole = b"".join(icc[k] for k in sorted(icc))
            return JpegHead(*frame, exif, xmp, whole, start, end, sampling, b"".join(bare)) if frame else None
        if not 0xE0 <= marker <= 0xEF and marker != 0xFE:
            bare.append(raw[start:end])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) >= 6:
            precision, height, width, components = struct.unpack(">BHHB", body[:6])
            frame = height, width, components, precision, marker
            parts = (body[k : k + 3] for k in range(6, 6 + 3 * components, 3))
            sampling = tuple((part[0], part[1] >> 4, part[1] & 15) for part in parts if len(part) == 3)
        elif marker == 0xE1 and body[:6] == b"Exif\0\0" and not exif:
            exif = body[6:]
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = body[29:]
        elif marker == 0xE2 and body[:12] == b"ICC_PROFILE\0" and len(body) > 14:
            icc[body[12]] = body[14:]
        at = max(end, start + 2)
    raise PhotoFault("unreadable", f"the JPEG has more than {MOST_SEGMENTS} segments before its picture", SAVE_AS_JPEG)


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
