"""The pictures of a review: as large as the page's size allows, one base64 text of many photographs after another."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from manihot.photos.decode import decode_photo
from manihot.photos.faults import PhotoFault
from manihot.photos.workers import run_tasks
from manihot.progress import track
from manihot.report.thumbnails import encode, shrink

BUDGET = 52_000_000  # characters of all pictures: with the tables, 10,000 photographs stay below 60 MB
EDGES = (448, 384, 320, 256, 208, 176, 144, 120, 96)  # pixels: a picture has the area of a square with this edge
SMALL = 96  # of a neighbour that isn't to be reviewed itself
SMALL_SHARE = 0.25  # of the budget, at most, for these
QUALITY = 72  # of WebP
SAMPLE = 24  # photographs whose size in bytes is measured beforehand
CHUNK = 100  # photographs of one text


@dataclass(frozen=True)
class Picture:
    """A WebP; aspect: width over height; fault: why there is none."""

    content: bytes = b""
    aspect: float = 1.0
    fault: str = ""


def draw(path: Path, edge: int) -> Picture:
    """One photograph, upright, as a picture of this size."""
    try:
        small = shrink(decode_photo(path, at_least=(edge, edge)), edge)
    except PhotoFault as fault:
        return Picture(fault=fault.detail)
    return Picture(encode(small, "WEBP", QUALITY), round(small.shape[1] / small.shape[0], 3))


def draw_all(paths: Sequence[Path], others: Sequence[Path], workers: int, budget: int = BUDGET) -> list[Picture]:
    """Pictures of the photographs to review, `paths`, and small ones of `others`, within `budget` characters of base64.

    Of too many others the first are drawn, and the rest are left without a picture.
    """
    small = _some(others, SMALL, workers, int(SMALL_SHARE * budget))
    left = budget - sum(map(_length, small))
    edges = list(EDGES)
    edge = edges.pop(edges.index(_largest(paths, left)))
    while True:
        found = list(_draw(paths, edge, workers))
        smaller = [one for one in EDGES if one < edge]
        if sum(map(_length, found)) <= left or not smaller:
            return found + small
        edge = smaller[0]


def _largest(paths: Sequence[Path], budget: int) -> int:
    """The largest of EDGES that a sample of the photographs says to fit."""
    places = np.unique(np.linspace(0, max(len(paths) - 1, 0), min(SAMPLE, len(paths))).round().astype(int))
    for edge in EDGES[:-1]:
        sizes = [_length(draw(paths[int(place)], edge)) for place in places]
        if np.mean(sizes or [0]) * len(paths) <= 0.95 * budget:
            return edge
    return EDGES[-1]


def _some(paths: Sequence[Path], edge: int, workers: int, budget: int) -> list[Picture]:
    found: list[Picture] = []
    for start in range(0, len(paths), 1000):
        if sum(map(_length, found)) > budget:
            break
        found += _draw(paths[start : start + 1000], edge, workers)
    return found + [Picture(fault="not in this page") for _ in paths[len(found) :]]


def _draw(paths: Sequence[Path], edge: int, workers: int) -> Iterable[Picture]:
    made = run_tasks(partial(draw, edge=edge), list(paths), workers)
    return track(made, f"Drawing pictures, {edge} pixels", total=len(paths))


def _length(picture: Picture) -> int:
    return 4 * ((len(picture.content) + 2) // 3)


def pack(pictures: Sequence[Picture]) -> tuple[list[str], dict[str, list[int]]]:
    """Texts of base64, and for each picture which text holds it (`chunk`), from where (`at`) and how long (`size`)."""
    texts: list[str] = []
    place: dict[str, list[int]] = {"chunk": [], "at": [], "size": []}
    for start in range(0, len(pictures), CHUNK):
        at, parts = 0, []
        for picture in pictures[start : start + CHUNK]:
            text = base64.b64encode(picture.content).decode("ascii")
            for name, value in (("chunk", len(texts)), ("at", at), ("size", len(text))):
                place[name].append(value)
            parts.append(text)
            at += len(text)
        texts.append("".join(parts))
    return texts, place
