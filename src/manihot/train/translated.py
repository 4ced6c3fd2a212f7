"""Translated pictures as photographs of a manifest: written as files, tied to their originals, never judged.

A picture is no more independent of its original than a copy is. So both stand in one group, and the picture is
marked `train_only`: a fold that holds the original out neither trains on the picture nor judges it.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import torch
from PIL import Image

from manihot.audit.sources import TRAIN_ONLY
from manihot.errors import DataError
from manihot.infer.forward import Photos
from manihot.photos.preprocess import resize
from manihot.progress import track
from manihot.records.columns import ALWAYS_TRAIN
from manihot.records.files import write_atomic
from manihot.records.manifest import Manifest
from manihot.train.cyclegan import translate_pictures
from manihot.train.networks.translators import Generator

ORIGINAL = "translated_from"  # column: image_id of the photograph that a picture was made from, '' for photographs
QUALITY = 95
AT_ONCE = 8  # pictures a pass of the network
LONGEST = 4.0  # proportion of a picture's edges, at most


def own_groups(manifest: Manifest) -> np.ndarray:
    """Each photograph's group, and one of its own (its id) for those that stand alone; object (N,), never ''."""
    group = manifest.table["group"].to_numpy()
    taken = set(group)
    alone = [name if name not in taken else f"{name} alone" for name in manifest.image_id]
    return np.where(group == "", np.array(alone, dtype=object), group)


def file_names(image_id: np.ndarray, to_class: str) -> list[str]:
    """A picture's file for each id: numbered, so that they differ, and with names that every system allows."""
    stems = [re.sub(r"[^A-Za-z0-9]+", "-", PurePosixPath(str(name)).stem)[:60].strip("-") for name in image_id]
    ending = re.sub(r"[^A-Za-z0-9]+", "-", to_class)[:40].strip("-")
    return [f"{k:05d}-{stem}-{ending}".rstrip("-") + ".jpg" for k, stem in enumerate(stems)]


def write_pictures(
    generator: Generator,
    photos: Photos,
    places: np.ndarray,
    table: pd.DataFrame,
    size: int,
    files: list[Path],
    device: torch.device,
) -> pd.DataFrame:
    """Translate photographs and write a JPEG for each; columns sha256, height, width, bytes.

    places: rows of the store. table: the same photographs' rows of the manifest. The network sees a square of `size`
    pixels; the picture has as many, in its original's proportion.
    """
    facts = []
    made = _translated(generator.to(device).eval(), photos, places, size, device)
    shapes = zip(table["height"], table["width"])
    for picture, file, (height, width) in track(zip(made, files, shapes), "Translating", total=len(files)):
        shaped = resize(picture, picture_size(size, height, width))
        packed = io.BytesIO()
        Image.fromarray(shaped).save(packed, "JPEG", quality=QUALITY, subsampling=0)
        raw = packed.getvalue()
        write_atomic(file, raw)
        facts.append((hashlib.sha256(raw).hexdigest(), shaped.shape[0], shaped.shape[1], len(raw)))
    return pd.DataFrame(facts, columns=["sha256", "height", "width", "bytes"])


def _translated(
    generator: Generator, photos: Photos, rows: np.ndarray, size: int, device: torch.device
) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), AT_ONCE):
        batch = np.stack([resize(photos[int(row)], (size, size)) for row in rows[start : start + AT_ONCE]])
        yield from translate_pictures(generator, batch, device)


def picture_size(size: int, height: int, width: int) -> tuple[int, int]:
    """(height, width) of about `size` x `size` pixels in a photograph's proportion, within 1:4 and 4:1."""
    if not height or not width:
        return size, size
    root = min(max(width / height, 1 / LONGEST), LONGEST) ** 0.5
    return round(size / root), round(size * root)


def made_manifest(
    originals: Manifest, rows: np.ndarray, to_class: str, source: str, files: list[str], facts: pd.DataFrame, root: Path
) -> Manifest:
    """A manifest of the pictures: label `to_class`, source `source`, the originals' groups, never held out.

    files: relative to `root`. facts: as `write_pictures` gives them. Further columns are the originals'.
    """
    ids = originals.image_id[rows]
    named = np.array([f"{source}/{to_class}/{name}" for name in ids], dtype=object)
    table = (
        originals.table.iloc[rows]
        .reset_index(drop=True)
        .assign(
            image_id=named,
            path=files,
            label=originals.classes.index(to_class),
            source=source,
            group=own_groups(originals)[rows],
            split="train",
            fold=ALWAYS_TRAIN,
            weight=np.float32(1.0),
            sha256=facts["sha256"],
            height=facts["height"],
            width=facts["width"],
            bytes=facts["bytes"],
            **{ORIGINAL: ids, TRAIN_ONLY: True},
        )
    )
    return Manifest.from_table(table, originals.classes, root, originals.numbers)


def join_made(originals: Manifest, made: Manifest) -> Manifest:
    """Photographs and the pictures made from them, original and picture in one group.

    Raises DataError where a picture is in `originals` already.
    """
    repeated = np.isin(made.image_id, originals.image_id)
    if repeated.any():
        raise DataError(
            f"{int(repeated.sum())} pictures are in the manifest already, first {made.image_id[repeated][0]!r}",
            "give the new ones another source with --name, or translate the photographs without the pictures",
        )
    table = originals.table
    used = np.isin(originals.image_id, made.table[ORIGINAL].to_numpy())
    absent = {name: value for name, value in ((ORIGINAL, ""), (TRAIN_ONLY, False)) if name not in table}
    table = table.assign(group=np.where(used, own_groups(originals), table["group"].to_numpy()), **absent)
    added = made.table.assign(path=[path.as_posix() for path in made.paths])
    joined = Manifest.from_table(
        pd.concat([table, added[table.columns]], ignore_index=True),
        originals.classes,
        originals.root,
        originals.numbers,
    )
    if originals.soft_labels is None:
        return joined
    unknown = np.full((len(made), len(made.classes)), np.nan, dtype=np.float32)  # the hard label holds
    return replace(joined, soft_labels=np.concatenate([originals.soft_labels, unknown]))
