"""Damaged photographs and TFRecords through the decoder, in a process of its own: what comes out is its figures.

`python tests/fuzz/photo_campaign.py 200` reads 200 of each kind. An input that takes over LONGEST seconds ends the
process; the last line that it printed names the input. Whatever the decoders' libraries print goes to stderr.
"""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from photo_seeds import SEEDS, damage_photo

from manihot.photos.decode import PhotoFacts, PhotoFault, decode_photo, inspect_photo
from manihot.photos.tfrecord import read_records

LONGEST = 5  # seconds


def judge_photo(path: Path, raw: bytes) -> str:
    """Kind of the fault, or 'read' with arrays that agree with what the scan says."""
    try:
        facts = inspect_photo(path)
    except PhotoFault as fault:
        assert fault.detail and fault.remedy, fault
        facts = None
        kind = fault.kind
    for least in (None, (20, 20)):
        try:
            found = decode_photo(raw, at_least=least)
        except PhotoFault as fault:
            assert facts is None, f"the scan accepts it: {fault}"
            continue
        assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
        assert facts is None or least is not None or found.shape[:2] == (facts.height, facts.width)
    return "read" if isinstance(facts, PhotoFacts) else kind


def judge_records(path: Path) -> str:
    """Whether all records are read."""
    found = list(read_records(path))
    assert all(one.fault is None or one.fault.detail for one in found)
    return "read" if all(one.fault is None for one in found) else "damaged_record"


def run(count: int, kinds: list[str]) -> dict[str, object]:
    """The figures of `count` damaged files of each kind."""
    outcomes: collections.Counter[str] = collections.Counter()
    longest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "photo.jpg")
        for kind in kinds:
            whole = SEEDS[kind]()
            for number in range(-1, count):
                rng = random.Random(f"{zlib.crc32(kind.encode())} {number}")
                raw = whole if number < 0 else damage_photo(kind, whole, rng)
                path.write_bytes(raw)
                print(f"{kind}, input {number}", flush=True)
                clock = time.monotonic()
                if hasattr(signal, "setitimer"):
                    signal.setitimer(signal.ITIMER_REAL, LONGEST)
                outcome = judge_records(path) if kind.startswith("TFRecord") else judge_photo(path, raw)
                if hasattr(signal, "setitimer"):
                    signal.setitimer(signal.ITIMER_REAL, 0)
                longest = max(longest, time.monotonic() - clock)
                assert number >= 0 or outcome == "read", f"{kind}: the undamaged file is {outcome}"
                outcomes[outcome] += number >= 0
    return {"inputs": outcomes.total(), "outcomes": dict(outcomes), "longest": longest, "memory": largest_memory()}


def largest_memory() -> int:
    """Bytes that this process has held at most; 0 where the system doesn't tell."""
    try:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return 0


if __name__ == "__main__":
    names = sys.argv[2:] or list(SEEDS)
    figures = run(int(sys.argv[1]), names)
    print(json.dumps(figures), flush=True)
    os._exit(0)
