"""Photographs inside a page as data URIs, so that it stays one file; a run folder keeps those of its pages.

A page that is made again after the photographs were moved away is then still the same, but for the links.
"""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
from PIL import Image

from manihot.photos.decode import decode_photo
from manihot.photos.faults import PhotoFault
from manihot.photos.preprocess import resize
from manihot.progress import track, warn
from manihot.records.files import atomic_path
from manihot.records.manifest import Manifest
from manihot.records.parquet_files import read_frame
from manihot.report.words import count_of

EDGE = 160  # pixels: a thumbnail has the area of a square with this edge
QUALITY = 70  # of the thumbnails' JPEG
LONGEST = 3  # of the edges' proportion, beyond which a thumbnail is cut
SAVED = {"key": "text", "name": "text", "uri": "text", "aspect": "number"}
JPEG_URI = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True)
class Thumbnail:
    """uri: a data URI, '' without a picture; href: the original, '' where it is gone; aspect: width over height."""

    name: str
    uri: str = ""
    aspect: float = 1.0
    href: str = ""
    fault: str = ""


class Thumbnails:
    """Thumbnails by image id, decoded once each, for a page in `folder`.

    manifest: names the photographs' files. kept: what `save` wrote for an earlier page: it stands in for photographs
    that can't be read any more. A photograph without either gets an empty picture.
    """

    def __init__(self, manifest: Manifest | None, folder: Path, kept: dict[str, Thumbnail] | None = None) -> None:
        self._paths = {} if manifest is None else dict(zip(manifest.image_id, manifest.paths, strict=True))
        self._folder, self._kept = Path(folder), kept or {}
        self._made: dict[str, Thumbnail] = {}

    def __call__(self, image_id: str) -> Thumbnail:
        if image_id not in self._made:
            self._made[image_id] = self._make(image_id)
        return self._made[image_id]

    def draw(self, ids: Iterable[str], what: str) -> None:
        """Make the thumbnails of a page, showing the progress of `what`."""
        for image_id in track(list(dict.fromkeys(ids)), what):
            self(image_id)

    def _make(self, image_id: str) -> Thumbnail:
        path = self._paths.get(image_id)
        if path is None:
            return Thumbnail(str(image_id), fault="not in the manifest")
        try:
            small = as_thumbnail(path.name, decode_photo(path, at_least=(EDGE, EDGE)))
            return replace(small, href=link(self._folder, path))
        except PhotoFault as fault:
            return replace(self._kept.get(image_id, Thumbnail(path.name)), fault=fault.detail)

    def faults(self) -> list[str]:
        """Lines on photographs that can't be read: how many have a kept thumbnail, how many no picture; also said."""
        gone = [one for one in self._made.values() if one.fault]
        kept = sum(bool(one.uri) for one in gone)
        lines = []
        if kept:
            first = next(one for one in gone if one.uri)
            lines.append(f"{count_of(kept)} can't be read any more ({first.fault}): saved thumbnails are shown instead")
        if len(gone) > kept:
            first = next(one for one in gone if not one.uri)
            lines.append(f"{count_of(len(gone) - kept)} can't be shown: {first.name}: {first.fault}")
        for line in lines:
            warn(line)
        return lines

    def save(self, file: Path, others: dict[str, Thumbnail] | None = None) -> None:
        """Keep the thumbnails of this page, and `others` by keys of their own, for `read_thumbnails`."""
        all_of_them = {**self._made, **(others or {})}
        rows = [{"key": key, **asdict(one)} for key, one in all_of_them.items() if one.uri]
        with atomic_path(file) as temporary:
            pd.DataFrame(rows, columns=list(SAVED)).to_parquet(temporary, index=False)


def read_thumbnails(file: Path) -> dict[str, Thumbnail]:
    """What `Thumbnails.save` wrote, by key; {} without the file, DataError for one that holds anything else."""
    if not file.is_file():
        return {}
    table = read_frame(file, "saved thumbnails", SAVED, "remove the file", only=list(SAVED))
    rows = table[table["uri"].map(lambda uri: bool(JPEG_URI.fullmatch(uri)))].to_dict("records")
    return {row["key"]: Thumbnail(row["name"], row["uri"], row["aspect"]) for row in rows}


def as_thumbnail(name: str, rgb: np.ndarray) -> Thumbnail:
    """uint8 RGB (H, W, 3) as `shrink` makes it."""
    small = shrink(rgb)
    return Thumbnail(name, jpeg_uri(small), small.shape[1] / small.shape[0])


def shrink(rgb: np.ndarray, edge: int = EDGE) -> np.ndarray:
    """uint8 RGB (H, W, 3) shrunk to the area of edge x edge; of a very long one the middle."""
    h, w = rgb.shape[:2]
    ch, cw = min(h, w * LONGEST), min(w, h * LONGEST)
    top, left = (h - ch) // 2, (w - cw) // 2
    scale = min(1.0, edge / (ch * cw) ** 0.5)
    size = (max(1, round(ch * scale)), max(1, round(cw * scale)))
    return resize(rgb[top : top + ch, left : left + cw], size)


def encode(rgb: np.ndarray, kind: str, quality: int = QUALITY) -> bytes:
    """uint8 RGB or RGBA (H, W, C) as a 'JPEG', 'WEBP' or 'PNG', which knows no `quality`."""
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, kind, **({} if kind == "PNG" else {"quality": quality}), optimize=True)
    return out.getvalue()


def jpeg_uri(rgb: np.ndarray, quality: int = QUALITY) -> str:
    """uint8 RGB (H, W, 3) as a JPEG in a data URI."""
    return data_uri(encode(rgb, "JPEG", quality), "image/jpeg")


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as a data URI of a MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def link(folder: Path, path: Path) -> str:
    """Relative link from a page in `folder` to a file; absolute to another drive of Windows."""
    path = path.absolute()
    try:
        relative = os.path.relpath(path, folder.absolute())
    except ValueError:
        return path.as_uri()
    found = quote(Path(relative).as_posix())
    return found if found.startswith(".") else f"./{found}"
