"""Small photographs in every format that is read, and ways of damaging them that keep checksums and structure."""

from __future__ import annotations

import gzip
import io
import random
import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
from damage import damage_bytes
from PIL import Image

from manihot.photos.tfrecord import masked_crc32c

ODD_NUMBERS = (0, 1, 2, 7, 8, 16, 31, 255, 256, 65535, 65536, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)


def picture(height: int = 48, width: int = 61) -> np.ndarray:
    """A smooth picture with grain, uint8 RGB."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    grain = rng.integers(-20, 20, (height, width, 3))
    return np.clip(cv2.resize(coarse, (width, height)).astype(int) + grain, 0, 255).astype(np.uint8)


def _save(kind: str, mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture()).convert(mode).save(out, kind, **options)
    return out.getvalue()


def _exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def _animated(kind: str) -> bytes:
    out = io.BytesIO()
    frames = [Image.fromarray(np.roll(picture(), 9 * k, axis=1)) for k in range(3)]
    frames[0].save(out, kind, save_all=True, append_images=frames[1:])
    return out.getvalue()


def _deep(kind: str, bits: int, channels: int = 1) -> bytes:
    values = (np.linspace(0, 2**bits - 1, 40 * 50).reshape(40, 50)).astype(np.uint16)
    shown = values if channels == 1 else np.dstack([values] * channels)
    return cv2.imencode(kind, shown)[1].tobytes()


def frame(data: bytes) -> bytes:
    """One record of a TFRecord file."""
    head = struct.pack("<Q", len(data))
    return head + struct.pack("<I", masked_crc32c(head)) + data + struct.pack("<I", masked_crc32c(data))


def _field(number: int, data: bytes) -> bytes:
    size, out = len(data), b""
    while size > 127:
        out += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + out + bytes([size]) + data


def _example(target: int) -> bytes:
    image = _field(1, b"image") + _field(2, _field(1, _field(1, _save("JPEG"))))
    name = _field(1, b"image_name") + _field(2, _field(1, _field(1, b"%d.jpg" % target)))
    label = _field(1, b"target") + _field(2, _field(3, _field(1, bytes([target]))))
    return _field(1, _field(1, image) + _field(1, name) + _field(1, label))


SEEDS: dict[str, Callable[[], bytes]] = {
    "JPEG baseline": lambda: _save("JPEG", quality=90),
    "JPEG optimised 4:4:4": lambda: _save("JPEG", optimize=True, subsampling=0),
    "JPEG progressive": lambda: _save("JPEG", progressive=True),
    "JPEG restarts": lambda: _save("JPEG", restart_marker_blocks=3),
    "JPEG CMYK": lambda: _save("JPEG", "CMYK"),
    "JPEG CMYK progressive": lambda: _save("JPEG", "CMYK", progressive=True),
    "JPEG grey": lambda: _save("JPEG", "L"),
    "JPEG turned": lambda: _save("JPEG", exif=_exif(6)),
    "JPEG mirrored, with a profile": lambda: _save("JPEG", exif=_exif(7), icc_profile=_profile()),
    "PNG": lambda: _save("PNG"),
    "PNG 1 bit": lambda: _save("PNG", "1"),
    "PNG 2 bits": lambda: _save("PNG", "P", bits=2),
    "PNG 4 bits": lambda: _save("PNG", "P", bits=4),
    "PNG palette, transparent": lambda: _save("PNG", "P", transparency=3),
    "PNG grey and alpha": lambda: _save("PNG", "LA"),
    "PNG alpha": lambda: _save("PNG", "RGBA", exif=_exif(3)),
    "PNG 12 of 16 bits": lambda: _deep(".png", 12),
    "PNG 16 bits": lambda: _deep(".png", 16),
    "PNG 10 of 16 bits, colours": lambda: _deep(".png", 10, 3),
    "PNG interlaced": lambda: INTERLACED,
    "PNG animated": lambda: _animated("PNG"),
    "WebP": lambda: _save("WEBP", quality=80),
    "WebP lossless, alpha": lambda: _save("WEBP", "RGBA", lossless=True),
    "WebP animated": lambda: _animated("WEBP"),
    "GIF": lambda: _save("GIF", "P"),
    "GIF animated": lambda: _animated("GIF"),
    "TIFF": lambda: _save("TIFF"),
    "TIFF LZW": lambda: _save("TIFF", compression="tiff_lzw"),
    "TIFF deflate": lambda: _save("TIFF", compression="tiff_deflate"),
    "TIFF JPEG": lambda: _save("TIFF", compression="jpeg"),
    "TIFF PackBits": lambda: _save("TIFF", compression="packbits"),
    "TIFF fax": lambda: _save("TIFF", "1", compression="group4"),
    "TIFF CMYK": lambda: _save("TIFF", "CMYK"),
    "TIFF 32 bits": lambda: _save("TIFF", "I"),
    "TIFF float": lambda: _save("TIFF", "F"),
    "TIFF 12 of 16 bits": lambda: _deep(".tiff", 12),
    "TIFF 14 of 16 bits, colours": lambda: _deep(".tiff", 14, 3),
    "BMP": lambda: _save("BMP"),
    "BMP palette": lambda: _save("BMP", "P"),
    "PPM": lambda: _save("PPM"),
    "PGM 12 bits": lambda: b"P5\n50 40\n4095\n" + bytes(range(16)) * 250,
    "JPEG 2000": lambda: _save("JPEG2000"),
    "AVIF": lambda: _save("AVIF", speed=10),
    "TFRecord": lambda: b"".join(frame(_example(k)) for k in range(3)),
    "TFRecord, gzip": lambda: gzip.compress(b"".join(frame(_example(k)) for k in range(3))),
}


def _profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _interlaced() -> bytes:
    """An interlaced PNG (Adam7) of 16 x 16 grey pixels, which Pillow can't write."""
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    data = b"".join(b"\0" + row.tobytes() for y, x, dy, dx in passes for row in values[y::dy, x::dx])
    head = struct.pack(">IIBBBBB", 16, 16, 8, 0, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, body) for kind, body in ((b"IHDR", head), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    )


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


INTERLACED = _interlaced()


def damage_png(raw: bytes, rng: random.Random) -> bytes:
    """Change one chunk and mend its checksum, in compressed data before they are packed."""
    chunks, at = [], 8
    while at + 8 <= len(raw):
        size = int.from_bytes(raw[at : at + 4], "big")
        chunks.append((raw[at + 4 : at + 8], raw[at + 8 : at + 8 + size]))
        at += size + 12
    place = rng.randrange(len(chunks))
    kind, body = chunks[place]
    if kind == b"IDAT" and rng.random() < 0.7:
        body = zlib.compress(damage_bytes(zlib.decompress(body), rng))
    elif kind == b"IHDR":
        fields = list(struct.unpack(">IIBBBBB", body))
        k = rng.randrange(7)
        fields[k] = rng.choice(ODD_NUMBERS) & (0xFF if k > 1 else 0xFFFFFFFF)
        body = struct.pack(">IIBBBBB", *fields)
    else:
        body = damage_bytes(body, rng)
    chunks[place] = kind, body
    if rng.random() < 0.2:
        chunks.insert(rng.randrange(len(chunks) + 1), rng.choice(chunks))
    return raw[:8] + b"".join(chunk(*one) for one in chunks)


def damage_tiff(raw: bytes, rng: random.Random) -> bytes:
    """Change a field of an entry of the first directory."""
    order = "<" if raw[:2] == b"II" else ">"
    data = bytearray(raw)
    (at,) = struct.unpack_from(order + "I", raw, 4)
    (count,) = struct.unpack_from(order + "H", raw, at)
    for _ in range(rng.choice((1, 1, 2))):
        place = at + 2 + 12 * rng.randrange(count)
        offset, form = rng.choice(((0, "H"), (2, "H"), (4, "I"), (8, "I"), (8, "I"), (8, "H")))
        value = rng.choice((*ODD_NUMBERS, rng.randrange(1 << 16))) & (0xFFFF if form == "H" else 0xFFFFFFFF)
        struct.pack_into(order + form, data, place + offset, value)
    return bytes(data)


def damage_jpeg(raw: bytes, rng: random.Random) -> bytes:
    """Change a field of the frame or of a scan, repeat a segment, or cut and fill."""
    marks = [k for k in range(2, len(raw) - 4) if raw[k] == 0xFF and raw[k + 1] in (0xC0, 0xC2, 0xDA, 0xC4, 0xDB, 0xDD)]
    at = rng.choice(marks)
    size = 2 + int.from_bytes(raw[at + 2 : at + 4], "big")
    way = rng.randrange(4)
    if way == 0:
        return raw[:at] + raw[at : at + size] * rng.choice((2, 3, 50)) + raw[at + size :]
    if way == 1:
        cut = rng.randrange(len(raw))
        return raw[:cut] + rng.choice((b"\0", b"\xff", b"\x55", b"ab")) * rng.randrange(1, 3000) + b"\xff\xd9"
    data = bytearray(raw)
    for _ in range(rng.choice((1, 2))):
        data[min(len(data) - 1, at + 2 + rng.randrange(size))] = rng.choice((0, 1, 2, 3, 4, 63, 64, 127, 128, 255))
    return bytes(data)


def damage_records(raw: bytes, rng: random.Random) -> bytes:
    """Change a record and mend its checksums; pack again what was packed."""
    packed = raw[:2] == b"\x1f\x8b"
    data = gzip.decompress(raw) if packed else raw
    size = int.from_bytes(data[:8], "little")
    first = frame(damage_bytes(data[12 : 12 + size][: rng.choice((size, 400))], rng))
    data = first + data[16 + size :]
    return gzip.compress(data, 1) if packed else data


def damage_photo(kind: str, raw: bytes, rng: random.Random) -> bytes:
    """Damage of any kind that suits the format."""
    ways = {"JPEG": damage_jpeg, "PNG": damage_png, "TIFF": damage_tiff, "TFRecord": damage_records}
    way = ways.get(kind.split()[0].strip(","))
    if way is None or kind == "JPEG 2000" or rng.random() < 0.5:
        return damage_bytes(raw, rng)
    return way(raw, rng)
