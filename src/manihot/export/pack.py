"""Bytes as small text: what a page holds of a model and its runtime, unpacked again by `page/unpack.js`.

A page in UTF-16 holds 15 bits in a character of 16; base64 in UTF-8 holds 6 in 8. The byte order mark at its start
counts for more than what a server says of its encoding.
"""

from __future__ import annotations

import gzip
import lzma
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

BITS = 15
FIRST = 0x100  # the characters U+0100 to U+80FF: no markup, no line ends, no surrogates among them
# A WebAssembly module shrinks to 16 % this way, by gzip to 26 %. Context of four bits, none of the position.
LZMA = [{"id": lzma.FILTER_LZMA1, "preset": 9, "dict_size": 1 << 24, "lc": 4, "lp": 0, "pb": 0, "nice_len": 128}]

Way = Literal["", "gzip", "lzma"]


@dataclass(frozen=True)
class Packed:
    """content: as packed by `way`. bytes: how many it was before."""

    content: bytes
    way: Way
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """What `unpack.js` needs to know."""
        return {"way": self.way, "packed": len(self.content), "bytes": self.bytes}


def pack(content: bytes, way: Way) -> Packed:
    """Pack bytes. lzma: half the size of gzip for programs, nothing gained for weights, and slow."""
    if way == "gzip":
        return Packed(gzip.compress(content, 9, mtime=0), way, len(content))
    if way == "lzma":
        return Packed(lzma.compress(content, format=lzma.FORMAT_ALONE, filters=LZMA), way, len(content))
    return Packed(content, way, len(content))


@cache
def pack_file(path: Path, changed: int, way: Way) -> Packed:
    """Of a file that changed last at `changed`, in nanoseconds; once in a process."""
    return pack(path.read_bytes(), way)


def as_text(content: bytes) -> str:
    """15 bits in each character, the last filled up with zeros."""
    own = np.unpackbits(np.frombuffer(content, np.uint8))
    bits = np.concatenate([own, np.zeros(-len(own) % BITS, np.uint8)]).reshape(-1, BITS)
    codes = bits.astype(np.uint16) @ (1 << np.arange(BITS - 1, -1, -1, dtype=np.uint16)) + np.uint16(FIRST)
    return codes.astype("<u2").tobytes().decode("utf-16-le")


def as_file(html: str) -> bytes:
    """A page in UTF-16 with its byte order mark."""
    return b"\xff\xfe" + html.encode("utf-16-le")
