"""Whether a JPEG's data are whole, from its scans (ITU T.81, annexes B and G) and from what libjpeg says of them.

A file that was cut and filled up to its size with zeros, a pattern or anything else, and that ends as a JPEG should,
decodes to a picture: the filling is read as data. It betrays itself by what is left over: padding behind a whole
picture begins where the picture's data end, a filling begins before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from manihot.photos.complaints import hear_decoders
from manihot.photos.faults import COPY_AGAIN, PhotoFault
from manihot.photos.filling import LOOKED_AT, PERIODS, count_repeated
from manihot.photos.headers import MARKER, MOST_SEGMENTS, JpegHead
from manihot.photos.limits import MOST_SCANS

END = b"\xff\xd9"
BEHIND = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # a marker that compressed data can't hold
MORE = b"\x55" * 64  # data for some blocks
EXTRANEOUS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
HARMLESS = ("Invalid SOS parameters", "Warning: unknown JFIF", "Unknown Adobe", "Application transferred")
FEW = 64  # bytes too many that some cameras leave; after damage that shifts the code there are more
SAME = 12  # bytes of padding that may seem to be data: libjpeg reads 8 ahead, and the data's last may be alike
ROUNDS = 4  # stray bytes that are taken out, one place after the other, as libjpeg reports the first only
EXPECTED = {0xC4, 0xDA, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}  # markers between scans


@dataclass(frozen=True)
class Scan:
    """One scan's header: ids of its components, spectral band from `first` to `last`, and the bit that is left."""

    components: tuple[int, ...]
    first: int
    last: int
    low: int


def walk_scans(raw: bytes, head: JpegHead) -> list[Scan]:
    """The scans of a JPEG in several, at most one more than MOST_SCANS; [] where the first has all components."""
    if head.process not in (0xC2, 0xCA) and raw[head.start + 4 : head.start + 5] == bytes([head.components]):
        return []
    scans: list[Scan] = []
    at = head.start
    for _ in range(MOST_SEGMENTS):
        found = MARKER.search(raw, at)
        if found is None or found[0] == END or len(scans) > MOST_SCANS:
            break
        at = found.start()
        end = max(at + 2, at + 2 + int.from_bytes(raw[at + 2 : at + 4], "big"))
        if found[0] == b"\xff\xda":
            body = raw[at + 4 : end]
            count = body[0] if body else 0
            if len(body) >= 4 + 2 * count:
                first, last, bits = body[1 + 2 * count : 4 + 2 * count]
                scans.append(Scan(tuple(body[1 : 1 + 2 * count : 2]), first, last, bits & 15))
            behind = BEHIND.search(raw, end)
            end = behind.start() if behind else len(raw)
        at = end
    return scans


def find_missing_scans(head: JpegHead, scans: Sequence[Scan]) -> str:
    """What of the picture no scan holds, in words; '' where all is there."""
    bits: dict[tuple[int, int], int] = {}
    for scan in scans:
        for component in scan.components:
            for k in range(scan.first, min(scan.last, 63) + 1):
                bits[component, k] = scan.low
    needed = [(component, 0) for component, _, _ in head.sampling]
    if head.process in (0xC2, 0xCA) and head.sampling:
        needed += [(head.sampling[0][0], k) for k in range(1, 64)]
    if any(key not in bits for key in needed) or any(bits.values()):
        return f"its last scans are missing ({len(scans)} are there)"
    return ""


def check_whole(raw: bytes, head: JpegHead, said: list[str], scans: Sequence[Scan]) -> None:
    """PhotoFault where a JPEG's data are damaged or end before the picture does.

    said: libjpeg's remarks while it was decoded. A missing end marker alone is no fault.
    """
    damage = find_missing_scans(head, scans) if scans else ""
    damage = damage or (find_damage(with_end(raw, head), head, bool(scans)) if said else "")
    if not damage:
        return
    if raw.rfind(END, head.scan) < 0:
        raise PhotoFault("truncated", f"the JPEG ends before its picture does: {damage}", COPY_AGAIN)
    raise PhotoFault("damaged", f"the JPEG's data are damaged: {damage}", COPY_AGAIN)


def with_end(raw: bytes, head: JpegHead) -> bytes:
    """The file with an end marker: without one opencv fills what is missing with grey and says nothing."""
    return raw if raw.rfind(END, head.scan) >= 0 else raw + END


def find_damage(raw: bytes, head: JpegHead, several: bool) -> str:
    """What libjpeg says of the data alone that means that the picture is not whole, in words; '' for nothing.

    It says its first remark only. So metadata are left out, which can cause harmless ones, and a few stray bytes before
    the end are taken out before it is asked again. several: whether the picture comes in several scans.
    """
    start = raw[head.start : head.scan]
    if head.process <= 0xC1:  # bytes that are unused there, and remarked on
        start = start[:-3] + b"\x00\x3f\x00"
    raw, scan = head.bare + start + raw[head.scan :], len(head.bare) + len(start)
    for _ in range(ROUNDS):
        with hear_decoders() as said:
            seen = decode_reduced(raw)
        if seen is None:
            return "the decoder can't read them"
        if not said or said[0].startswith(HARMLESS):
            return ""
        found = EXTRANEOUS.match(said[0])
        if found is None:
            return said[0].removeprefix("Corrupt JPEG data: ")
        count, marker = int(found[1]), int(found[2], 16)
        end = raw.find(END, scan)
        if marker == 0xD9:
            if damage := _judge_rest(raw[:end], count):
                return damage
            raw = raw[: end - count] + raw[end:]
        elif count > FEW or not (several and marker in EXPECTED):
            return f"{count} bytes that belong nowhere stand before a marker {marker:02x}"
        else:
            with hear_decoders():
                more = decode_reduced(raw[:end] + MORE + raw[end:])
            return "" if more is not None and np.array_equal(seen, more) else "they end before the picture does"
    return "stray bytes in several places"


def _judge_rest(data: bytes, count: int) -> str:
    """Whether the last `count` bytes, which libjpeg left over, are padding behind a whole picture; else why not."""
    seen = min(len(data), LOOKED_AT)
    for period in PERIODS:
        run = count_repeated(data, period)
        if run >= min(count, seen) and run > period:
            if run == seen and count > run:  # all that was inspected
                run = len(data) - len(data.rstrip(data[-1:])) if period == 1 else count
            if run - count > SAME + period - 1:
                return f"from some place on they are filled up ({run} bytes)"
            if period == 1:
                return ""
    return f"{count} bytes are left over, so what stands before them was changed" if count > FEW else ""


def decode_reduced(raw: bytes, flag: int = cv2.IMREAD_REDUCED_COLOR_8) -> np.ndarray | None:
    """opencv's picture at 1/8 scale, as it lies in the file; None where it can't decode it."""
    try:
        return cv2.imdecode(np.frombuffer(raw, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
