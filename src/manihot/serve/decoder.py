"""A decoder: one process that turns the bytes of photographs into a network's input, within a limit of memory.

`python -m manihot.serve.decoder`, started by `manihot.serve.decoders`, which speaks to it by `manihot.serve.frames`.
It ends when its input ends: signals that reach the whole group are left to the server, which still has work for it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import BinaryIO

import cv2

from manihot.photos.decode import PhotoFault
from manihot.photos.limits import photo_memory
from manihot.photos.load import load_in_full
from manihot.photos.preprocess import Preprocess
from manihot.photos.quality import MEASURES, measure_quality
from manihot.serve.frames import FAULT, PIXELS, QUALITY, READY, read_frame, write_frame


def limit_memory(more: int) -> None:
    """Let this process ask for so many bytes more than it has now; nothing where the system has no such limit."""
    statm = Path("/proc/self/statm")
    if sys.platform == "win32" or not statm.exists():
        return
    import resource

    most = int(statm.read_text().split()[0]) * resource.getpagesize() + more
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def answer(raw: bytes, preprocess: Preprocess, out: BinaryIO) -> None:
    """Decode one file and send its pixels, or why there are none."""
    try:
        pixels = load_in_full(raw, preprocess)
        values = measure_quality(pixels)
    except PhotoFault as fault:
        said = {"kind": fault.kind, "detail": fault.detail, "remedy": fault.remedy}
    except (MemoryError, cv2.error):  # opencv's own, where it gets no memory
        said = {"kind": "too_large", "detail": "it takes too much memory to decode", "remedy": "save it smaller"}
    else:
        write_frame(out, PIXELS, QUALITY.pack(*(values[name] for name in MEASURES)), pixels.tobytes())
        return
    write_frame(out, FAULT, json.dumps(said).encode())


def main() -> None:
    """Answer every message until the input ends."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    source = os.fdopen(os.dup(0), "rb")
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between the messages
    cv2.setNumThreads(1)
    first = read_frame(source)
    if first is None:
        return
    settings = json.loads(first[1])
    preprocess = Preprocess.from_json(settings["preprocess"])
    photo_memory.set(settings["memory"])
    limit_memory(settings["memory"])
    write_frame(out, READY)
    while (message := read_frame(source)) is not None:
        answer(message[1], preprocess, out)


if __name__ == "__main__":
    main()
