"""What the first directory of a TIFF says of its picture (TIFF 6.0; BigTIFF), without decoding it."""

from __future__ import annotations

import struct

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
OFFSETS, SAMPLES, COUNTS, PLANAR = 273, 277, 279, 284
TILE_OFFSETS, TILE_COUNTS, FORMAT = 324, 325, 339
SIZES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # types of whole numbers
BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
MOST_VALUES = 1_000_000  # of a tag, and MOST_TAGS of a directory: more are no picture's
MOST_TAGS = 4096
KINDS = {1: "whole numbers", 2: "signed numbers", 3: "floating-point numbers", 5: "complex", 6: "complex"}
COLOURS = {
    0: "grey",
    1: "grey",
    2: "RGB",
    3: "a palette",
    4: "a mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIE Lab",
    9: "ICC Lab",
    32803: "a sensor's mosaic",
    32844: "LogL",
    32845: "LogLuv",
    34892: "a linear raw file",
}
PACKED = {
    1: "",
    2: "CCITT",
    3: "CCITT fax 3",
    4: "CCITT fax 4",
    5: "LZW",
    6: "old JPEG",
    7: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32946: "deflate",
    34676: "SGI Log",
    34677: "SGI Log",
    34712: "JPEG 2000",
    34887: "LERC",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
}


def read_tags(raw: bytes) -> dict[int, tuple[int, ...]] | None:
    """The whole-number tags of the first directory; None where it is broken or lies beyond the end."""
    order = {b"II": "<", b"MM": ">"}.get(raw[:2])
    if order is None:
        return None
    big = raw[2:4] in (b"+\0", b"\0+")
    word, entry, head = ("Q", "HHQ", 8) if big else ("I", "HHI", 2)
    try:
        (at,) = struct.unpack_from(order + word, raw, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), raw, at)
        if count > MOST_TAGS:
            return None
        tags: dict[int, tuple[int, ...]] = {}
        room = struct.calcsize(order + word)
        step = 4 + 2 * room
        for k in range(count):
            place = at + head + k * step
            tag, kind, n = struct.unpack_from(order + entry, raw, place)
            place += 4 + room
            if n * BYTES.get(kind, 1) > room:
                (place,) = struct.unpack_from(order + word, raw, place)
            if kind in SIZES and n <= MOST_VALUES:
                tags.setdefault(tag, struct.unpack_from(f"{order}{n}{SIZES[kind]}", raw, place))
    except (struct.error, OverflowError):
        return None
    return tags


def describe_tiff(raw: bytes) -> str:
    """What a whole TIFF holds, such as '5 channels of 8 bits'; '' where it is cut or broken."""
    tags = read_tags(raw)
    if not tags or not (tags.get(WIDTH) and tags.get(HEIGHT)):
        return ""
    places = tags.get(OFFSETS) or tags.get(TILE_OFFSETS) or ()
    sizes = tags.get(COUNTS) or tags.get(TILE_COUNTS) or ()
    if not places or any(at + n > len(raw) for at, n in zip(places, sizes)) or max(places) >= len(raw):
        return ""
    samples = (tags.get(SAMPLES) or (1,))[0]
    bits = sorted(set(tags.get(BITS) or (1,)))
    kinds = set(tags.get(FORMAT) or (1,)) - {1, 4}
    words = [f"{samples} channel{'s' * (samples != 1)} of {' and '.join(map(str, bits))} bits"]
    words += [KINDS.get(kind, f"numbers of kind {kind}") for kind in sorted(kinds)]
    colours = (tags.get(PHOTOMETRIC) or (1,))[0]
    words.append(COLOURS.get(colours, f"colours of kind {colours}"))
    packed = (tags.get(COMPRESSION) or (1,))[0]
    if PACKED.get(packed) != "":
        words.append(f"packed with {PACKED.get(packed, f'method {packed}')}")
    if (tags.get(PLANAR) or (1,))[0] == 2:
        words.append("one plane a channel")
    return f"a TIFF of {', '.join(words)}"
