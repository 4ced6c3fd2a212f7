"""What libjpeg and libtiff say of a file: it goes to the terminal without the file's name, and the picture is returned.

They write their warnings (libjpeg-turbo's jerror.h, libtiff's tif_unix.c) to the C library's stderr, and neither opencv
nor Pillow hands another way out, so the file descriptor is turned to a file while a photograph is decoded. Whatever
else is written meanwhile (a progress bar, a thread's message) is passed on.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STDERR = 2
JPEG = (
    r"Corrupt JPEG data: |Premature end of JPEG file|Inconsistent progression sequence|Invalid SOS parameters"
    r"|Warning: unknown JFIF revision|Unknown Adobe color transform|Application transferred too "
)
TIFF = (  # the function, codec or file that libtiff names first
    r"(?:_?TIFF\w*|tempfile\.tif|(?:gt(?:Strip|Tile)|hor(?:Acc|Diff|izontal)|fp(?:Acc|Diff)|initYCbCr|initCIELab|BuildMap"
    r"|buildMap|alloc|setExtraSamples|ChopUp|TryChopUp|EstimateStrip|MissingRequired)\w*|(?:LZW|ZIP|ZSTD|LZMA|LERC|WebP"
    r"|Fax[34]|InitCCITT|PackBits|Dump[Mm]ode|O?JPEG|Thunder|NeXT|LogL|SGILog|PixarLog|Predictor|JBIG)\w*): "
)
LINE = re.compile(rf"^(?:{JPEG}|{TIFF}).*\n?", re.MULTILINE)
MOST_LINES = 1000  # that are kept of one photograph


class _Turned:
    """Where stderr goes while photographs are decoded; by several threads at once, too."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.lock = threading.Lock()
        self.alone = threading.RLock()  # of those who must know whose complaint it is
        self.inside = 0
        self.usual: int | None = None  # the descriptor that stderr had; None where it was closed
        self.file = -1
        self.heard = 0  # bytes of the file that were read

    def enter(self) -> None:
        with self.lock:
            if self.inside == 0:
                if self.file < 0:
                    self.file = _open_file()
                try:
                    self.usual = os.dup(STDERR)
                except OSError:
                    self.usual = None
                os.dup2(self.file, STDERR)
            self.inside += 1

    def leave(self) -> list[str]:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self._turn_back()
            size = os.fstat(self.file).st_size
            if size == self.heard:
                return []
            os.lseek(self.file, self.heard, os.SEEK_SET)
            text = os.read(self.file, size - self.heard)
            self.heard = size
            if self.inside == 0:
                os.ftruncate(self.file, 0)
                self.heard = 0
            os.lseek(self.file, self.heard, os.SEEK_SET)
            words = text.decode("utf-8", "surrogateescape")
            rest = LINE.sub("", words).encode("utf-8", "surrogateescape")
            if rest:
                self._pass_on(rest)
            return [line.strip() for line in LINE.findall(words)[:MOST_LINES]]

    def _turn_back(self) -> None:
        if self.usual is None:
            os.close(STDERR)
        else:
            os.dup2(self.usual, STDERR)
            os.close(self.usual)
            self.usual = None

    def _pass_on(self, rest: bytes) -> None:
        target = STDERR if self.inside == 0 else self.usual
        if target is None:
            return
        with suppress(OSError):  # nobody listens
            while rest:
                rest = rest[os.write(target, rest) :]

    def after_fork(self) -> None:
        """A child of the process shares neither its locks nor its file."""
        if self.inside:
            self._turn_back()
        self.start()


def _open_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("complaints")
    handle, name = tempfile.mkstemp(prefix="manihot-")
    with suppress(OSError):  # Windows keeps it while it is open
        os.unlink(name)  # noqa: PTH108
    return handle


_turned = _Turned()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_turned.after_fork)


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Keep libjpeg's and libtiff's remarks from the terminal: the scan has already reported these photographs."""
    _turned.enter()
    try:
        yield
    finally:
        _turned.leave()


@contextmanager
def hear_decoders() -> Iterator[list[str]]:
    """A list that holds their remarks after the block; of one photograph at a time in this process."""
    said: list[str] = []
    with _turned.alone:
        _turned.enter()
        try:
            yield said
        finally:
            said += _turned.leave()
