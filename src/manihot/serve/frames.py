"""What the server and its decoders say to each other over pipes: a kind, a length, and plain bytes; nothing is pickled.

The server sends SETTINGS once and then PHOTO, the bytes of a file. A decoder answers each with READY, with PIXELS
(the values of `QUALITY`, then the network's input), or with FAULT (JSON: kind, detail, remedy).
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from manihot.photos.quality import MEASURES

HEAD = struct.Struct("<BI")
QUALITY = struct.Struct(f"<{len(MEASURES)}d")  # values of MEASURES
SETTINGS, PHOTO, READY, PIXELS, FAULT = range(5)


def frame(kind: int, length: int) -> bytes:
    """The head of a message whose content has so many bytes."""
    return HEAD.pack(kind, length)


def write_frame(file: BinaryIO, kind: int, *parts: bytes) -> None:
    """Send one message."""
    file.write(frame(kind, sum(map(len, parts))))
    for part in parts:
        file.write(part)
    file.flush()


def read_frame(file: BinaryIO) -> tuple[int, bytes] | None:
    """The next message; None where the other side has ended."""
    head = file.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    kind, length = HEAD.unpack(head)
    content = file.read(length)
    return (kind, content) if len(content) == length else None
