"""Files that were cut and filled up to their size with one pattern, and still decode: the filling is read as data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from manihot.photos.faults import COPY_AGAIN, PhotoFault

LOOKED_AT = 1 << 16  # bytes before the end of the data in which a filling is searched for
PERIODS = range(1, 33)  # of a filling, in bytes
LONG = 64  # bytes of one pattern at the end of a photograph's data: arithmetic codes look random
SPARSE = 100  # pixels a byte from which a picture is so flat that its data may repeat
ROWS, FLAT = 8, 2  # the last rows of a picture that ends in one colour, within so many levels: its data repeat, too
OTHER = b"\x55\xa6\x39\xc3"


def count_repeated(data: bytes, period: int) -> int:
    """Bytes at the end of the data's last LOOKED_AT that repeat with a period."""
    last = np.frombuffer(data[-LOOKED_AT:], np.uint8)
    differs = np.flatnonzero(last[:-period] != last[period:])
    return len(last) - (int(differs[-1]) + 1 if len(differs) else 0)


def check_filling(raw: bytes, pixels: int, decode: Callable[[bytes], np.ndarray]) -> None:
    """PhotoFault where the picture of a WebP, AVIF or HEIC depends on a pattern at the end of its file.

    Metadata that are padded don't matter to the picture. Raises PhotoFault as `decode` does.
    """
    end = min(len(raw), 8 + int.from_bytes(raw[4:8], "little")) if raw[:4] == b"RIFF" else len(raw)
    last = raw[end - 1 : end]
    if raw[max(0, end - LONG) : end].count(last) < 2 or pixels > SPARSE * len(raw):  # nothing repeats
        return
    run = next((n for period in PERIODS if (n := count_repeated(raw[:end], period)) >= LONG + period), 0)
    if not run:
        return
    kept = end - run + LONG // 2  # the data's own end may be alike
    changed = raw[:kept] + (OTHER * (run // len(OTHER) + 1))[: end - kept] + raw[end:]
    shown = decode(raw)
    if np.ptp(shown[-ROWS:].reshape(-1, 3), axis=0).max() <= FLAT:
        return
    before = hashlib.sha256(shown.tobytes()).digest()
    del shown
    try:
        if before == hashlib.sha256(decode(changed).tobytes()).digest():
            return
    except PhotoFault:
        pass
    detail = f"from some place on its data are filled up (the last {run}{'+' * (run == LOOKED_AT)} bytes)"
    raise PhotoFault("damaged", detail, COPY_AGAIN)
