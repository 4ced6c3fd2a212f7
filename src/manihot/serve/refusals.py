"""Why a request is not answered, and how much may be asked at once."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from manihot.photos.decode import PhotoFault
from manihot.photos.kinds import name_other, signature

ACCEPTED = ("JPEG", "PNG", "WebP", "HEIC")  # phones and cameras write these; fewer decoders are fewer ways in
STATUS = {"too_large": 413, "not_an_image": 415, "unsupported": 415}  # of a fault's kind; 422 for the others
LONGEST_WAIT = 60  # seconds that Retry-After asks for, at most


class Refused(Exception):
    """A request that gets another answer than it hoped for.

    status: of HTTP. kind: a word for programs. detail, remedy: for people. headers: of the answer.
    """

    def __init__(
        self, status: int, kind: str, detail: str, remedy: str = "", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(kind, detail)
        self.status, self.kind, self.detail, self.remedy, self.headers = status, kind, detail, remedy, headers or {}

    def to_json(self) -> dict[str, str]:
        """Its body, which has the shape that the Open Inference Protocol asks for."""
        return {"error": self.detail, "kind": self.kind, "remedy": self.remedy}


def refusal_of(fault: PhotoFault, name: str = "") -> Refused:
    """What to answer where a photograph can't be read. name: which one of several."""
    detail = f"{name}: {fault.detail}" if name else fault.detail
    return Refused(STATUS.get(fault.kind, 422), fault.kind, detail, fault.remedy)


def check_kind(raw: bytes) -> None:
    """PhotoFault for bytes that no photograph begins with, or a format that the server doesn't take."""
    if not raw:
        raise PhotoFault("empty", "there are no bytes", "send the photograph's bytes as the body")
    kind = signature(raw[:64])
    if kind not in ACCEPTED:
        other = name_other(raw[:512])
        what = f"it is {kind}" if kind else "its content is not that of a known image format"
        remedy = f"send {', '.join(ACCEPTED[:-1])} or {ACCEPTED[-1]}"
        if other is not None and other.kind in ("not_an_image", "unsupported"):
            raise PhotoFault(other.kind, other.detail, remedy)
        raise PhotoFault("unsupported" if kind else "not_an_image", what, remedy)


class Gate:
    """Room for so many photographs and bytes at once; whoever comes when it is full is asked to come again later."""

    def __init__(self, photographs: int, size: int) -> None:
        self.photographs, self.size = photographs, size
        self.held, self.bytes = 0, 0
        self.each = 0.02  # seconds per photograph, a moving mean
        self.last = time.monotonic()

    @contextmanager
    def enter(self, size: int) -> Iterator[None]:
        """Hold room for one photograph of `size` bytes; Refused (429) where there is none."""
        if self.held >= self.photographs or (self.held and self.bytes + size > self.size):
            raise self.full()
        self.held, self.bytes = self.held + 1, self.bytes + size
        try:
            yield
        finally:
            self.held, self.bytes = self.held - 1, self.bytes - size
            self._note()

    @contextmanager
    def more(self, count: int) -> Iterator[None]:
        """Hold room for `count` further photographs of a request that is already in, and alone if need be."""
        if self.held > 1 and self.held + count > self.photographs:
            raise self.full()
        self.held += count
        try:
            yield
        finally:
            self.held -= count

    def full(self) -> Refused:
        """The answer to whoever finds no room."""
        seconds = min(LONGEST_WAIT, max(1, math.ceil(self.held * self.each)))
        detail = f"{self.held} photographs are being classified, and there is no room for more"
        return Refused(429, "busy", detail, "send it again later", {"Retry-After": str(seconds)})

    def _note(self) -> None:
        """How long a photograph takes while others wait."""
        now = time.monotonic()
        if self.held:
            self.each += 0.05 * (min(now - self.last, 10.0) - self.each)
        self.last = now
