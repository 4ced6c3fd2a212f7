"""From the file on: what each place that runs the model makes of the same photographs, stage by stage.

Places: the run itself, the exported model in onnxruntime, the same from photographs decoded in full, int8, and the
phone page in a real Chromium. Stages: decoded pixels, the network's input, logits, probabilities, prediction set,
refusal, answer.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from manihot.export.bundle import Answer, Bundle
from manihot.photos.decode import decode_photo
from manihot.photos.faults import PhotoFault

STAGES = ("decoded", "input", "logits", "probabilities", "set", "refusal", "answer")


@dataclass(frozen=True)
class Seen:
    """One photograph in one place. decoded: checksum of the pixels decoded in full, None where nobody looked.

    input: uint8 (h, w, 3). fault: why the place could not read it, '' where it could; the rest is None then.
    """

    decoded: int | None = None
    input: np.ndarray | None = None
    answer: Answer | None = None
    fault: str = ""


@dataclass
class Place:
    """What one place makes of all photographs. of: the place that it should equal."""

    name: str
    what: str
    seen: list[Seen] = field(default_factory=list)
    of: str = ""


def look(bundle: Bundle, files: Sequence[Path], full: bool) -> list[Seen]:
    """What a bundle makes of files. full: decoded at their full size, as a browser does."""
    found = []
    for file in files:
        try:
            decoded = decode_photo(file) if full else None
            pixels = bundle.prepare(file, full=False) if decoded is None else bundle.prepare(decoded)
        except PhotoFault as fault:
            found.append(Seen(fault=fault.kind))
            continue
        checksum = None if decoded is None else zlib.crc32(decoded.tobytes())
        found.append(Seen(checksum, pixels, bundle.answer(pixels[None])[0]))
    return found


def compare(place: Place, other: Place) -> dict[str, Any]:
    """How many photographs are equal in each stage, and how far apart the others are at most.

    decoded and input count those that both places looked at.
    """
    out: dict[str, Any] = {"name": place.name, "what": place.what, "compared_with": other.name}
    for stage in STAGES:
        pairs = [_difference(stage, a, b) for a, b in zip(place.seen, other.seen, strict=True)]
        known = [value for value in pairs if value is not None]
        equal = sum(value <= BOUNDS[stage] for value in known)
        largest = max(known, default=0.0)
        out[stage] = {"photographs": len(known), "equal": equal, "largest": float(largest)}
    return out


# up to which difference two photographs are equal: exactly, but for what floating point rounds
BOUNDS = {**dict.fromkeys(STAGES, 0.0), "logits": 1e-3, "probabilities": 1e-4}


def _difference(stage: str, a: Seen, b: Seen) -> float | None:
    if stage == "decoded":
        return None if a.decoded is None or b.decoded is None else float(a.decoded != b.decoded)
    if a.answer is None or b.answer is None:
        return float(a.fault != b.fault) if stage == "answer" else None
    if stage == "input":
        if a.input is None or b.input is None:
            return None
        return float(np.abs(a.input.astype(int) - b.input).max()) if a.input.shape == b.input.shape else 255.0
    if stage == "logits":
        return float(np.abs(np.log(np.maximum(a.answer.raw, 1e-12)) - np.log(np.maximum(b.answer.raw, 1e-12))).max())
    if stage == "probabilities":
        return float(np.abs(a.answer.probabilities - b.answer.probabilities).max())
    if stage == "set":
        return float(a.answer.held != b.answer.held)
    if stage == "refusal":
        return float(a.answer.refused != b.answer.refused)
    return float(a.answer.answer != b.answer.answer)


def changed(names: Sequence[str], places: Sequence[Place], first: Place) -> list[dict[str, Any]]:
    """Every photograph that some place answers otherwise than the first: its answers by place."""
    out = []
    for k, name in enumerate(names):
        said = {place.name: _words(place.seen[k]) for place in places}
        if len(set(said.values())) > 1:
            out.append({"photograph": name, "number": k, "run": _words(first.seen[k]), "answers": said})
    return out


def _words(seen: Seen) -> str:
    if seen.answer is None:
        return f"not read ({seen.fault})"
    why = f" ({seen.answer.refused})" if seen.answer.faults else ""
    return seen.answer.answer + why
