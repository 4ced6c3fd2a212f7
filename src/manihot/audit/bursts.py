"""Bursts: shots of one scene, recognised by capture time, by numbers in their names, and by similarity.

Neighbours in time or in numbering are candidates. Whether they show one scene is judged against photographs of the
same sequence that lie further apart: they share field, light and camera, so that only what is more alike than these
counts. Pairs are taken by the procedure of Benjamini and Hochberg (1995), which bounds the share of wrong ones; where
neighbours are no more alike than others, as with independent photographs that happen to be numbered, none is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

import cv2
import numpy as np
import pandas as pd

from manihot.audit.duplicates import flag_groups
from manihot.audit.hashes import Thumbnails
from manihot.audit.neighbours import number_by_appearance
from manihot.photos.times import Taken
from manihot.records.groups import join_labels
from manihot.records.manifest import Manifest

NEAR_NUMBERS = 3  # steps in the numbering of file names
WITHIN = (3.0, 10.0, 60.0)  # seconds between two shots, the likelier a burst the fewer
WRONG = (0.15, 0.1, 0.1, 0.05)  # share of wrong pairs that is borne: within 3 s, 10 s, 60 s, and by numbers alone
LAGS = (12, 40)  # places apart in a sequence, of the photographs that neighbours are judged against
LEAST_APART = 20  # such pairs, below which nothing can be judged
ENOUGH_OF_CLASS = 30  # of a class, from which its own are the measure
SIDE, SHIFT = 24, 4  # pixels of the pictures compared, and by how many they are shifted
LARGEST = 0.1  # share of the photographs in one burst; larger ones are cut at their weakest pairs
AT_ONCE = 2048  # pairs compared at once

COLUMNS = (
    "image_id",
    "group",
    "size",
    "nearest",
    "seconds",
    "numbers",
    "likeness",
    "label",
    "source",
    "split",
    "fold",
    "label_conflict",
    "crosses_folds",
    "crosses_splits",
)
NUMBERED = re.compile(r"(.*?)(\d{1,12})(\D*)", re.DOTALL)


def find_bursts(manifest: Manifest, thumbnails: Thumbnails, taken: Taken) -> pd.DataFrame:
    """Photographs that belong to a burst, one row each, sorted by group, with the columns of COLUMNS.

    thumbnails: of `hashes.make_thumbnails`. taken: of `photos.times.read_times`, in the manifest's order. `nearest`:
    the most alike of the burst; `seconds`, `numbers`: between the two, NaN where unknown; `likeness`: how much more so
    than photographs further apart, in their standard deviations.
    """
    folder = [PurePosixPath(path).parent.as_posix() for path in manifest.table["path"]]
    stems = [PurePosixPath(path).stem for path in manifest.table["path"]]
    key, number = _read_numbers(folder, stems)
    first, second, apart = _candidates(key, number, taken, stems)
    if not len(first):
        return _describe(manifest, first, second, np.empty(0), number, key, taken, np.zeros(0, bool))
    pictures = _pictures(thumbnails, manifest)
    alike = likeness(pictures, first, second)
    chance = likeness(pictures, *apart)
    alike, chance = _standardise(alike, chance, manifest.labels[first], manifest.labels[apart[0]])
    kept = _choose(alike, chance, _evidence(first, second, taken))
    kept &= ~_too_large(len(manifest), first, second, alike, kept)
    return _describe(manifest, first, second, alike, number, key, taken, kept)


def _read_numbers(folder: list[str], stems: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Of each name what stands around its last number, with the folder, object (N,), and the number, -1 for none."""
    matches = [NUMBERED.fullmatch(stem) for stem in stems]
    key = [f"{place}/{m[1]}#{m[3]}" if m else "" for place, m in zip(folder, matches)]
    return np.array(key, object), np.array([int(m[2]) if m else -1 for m in matches], np.int64)


def _candidates(
    key: np.ndarray, number: np.ndarray, taken: Taken, stems: list[str]
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Pairs of neighbours (first, second), and pairs of the same sequences that lie further apart."""
    near: set[tuple[int, int]] = set()
    far: set[tuple[int, int]] = set()
    seconds = taken.seconds
    rows = np.arange(len(key))
    by_name = pd.Series(rows[number >= 0]).groupby(key[number >= 0])
    timed = np.isfinite(seconds)
    by_time = pd.Series(rows[timed]).groupby(taken.camera[timed])
    for numbered, groups in ((True, by_name), (False, by_time)):
        for _, own in groups:
            own = own.to_numpy()
            order = own[np.lexsort((own, number[own]) if numbered else (own, number[own], seconds[own]))]
            value = number[order] if numbered else seconds[order]
            most = NEAR_NUMBERS if numbered else WITHIN[-1]
            for lag in range(1, 2 if numbered else NEAR_NUMBERS):
                a, b = order[:-lag], order[lag:]
                close = (value[lag:] - value[:-lag] <= most) & ~(np.abs(seconds[a] - seconds[b]) > WITHIN[-1])
                near |= set(zip(a[close].tolist(), b[close].tolist()))
            for lag in range(*LAGS, 4):
                far |= set(zip(order[:-lag].tolist(), order[lag:].tolist()))
    first, second = _sorted_pairs(near)
    apart = _sorted_pairs({(min(p), max(p)) for p in far} - {(min(p), max(p)) for p in near})
    return first, second, apart


def _sorted_pairs(pairs: set[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    ordered = sorted({(min(pair), max(pair)) for pair in pairs})
    table = np.array(ordered, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _pictures(thumbnails: Thumbnails, manifest: Manifest) -> np.ndarray:
    """Small grey pictures, float32 (N, SIDE, SIDE)."""
    where = thumbnails.rows(manifest.image_id)
    return np.stack(
        [cv2.resize(thumbnails.pictures[k], (SIDE, SIDE), interpolation=cv2.INTER_AREA) for k in where]
    ).astype(np.float32)


def likeness(pictures: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The highest correlation of two pictures over small shifts, less the difference of their brightness, (P,).

    pictures: float32 (N, S, S), grey levels. first, second: rows of the pairs.
    """
    out = np.full(len(first), -1.0, np.float32)
    level = pictures.mean(axis=(1, 2))
    for at in range(0, len(first), AT_ONCE):
        rows = slice(at, at + AT_ONCE)
        a, b = pictures[first[rows]], pictures[second[rows]]
        for x, y in _overlaps(a, b):
            x = x - x.mean(axis=(1, 2), keepdims=True)
            y = y - y.mean(axis=(1, 2), keepdims=True)
            size = np.sqrt(np.square(x).sum((1, 2)) * np.square(y).sum((1, 2)))
            np.maximum(out[rows], np.einsum("nij,nij->n", x, y) / np.maximum(size, 1e-6), out=out[rows])
    return np.asarray(out - np.abs(level[first] - level[second]) / 255)


def _overlaps(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What two stacks of pictures share when one is shifted against the other, for each shift."""
    side = a.shape[-1]
    steps = range(-SHIFT, SHIFT + 1, 2)
    for dy in steps:
        for dx in steps:
            own = (slice(max(0, dy), side + min(0, dy)), slice(max(0, dx), side + min(0, dx)))
            other = (slice(max(0, -dy), side + min(0, -dy)), slice(max(0, -dx), side + min(0, -dx)))
            yield a[:, own[0], own[1]], b[:, other[0], other[1]]


def _standardise(
    alike: np.ndarray, chance: np.ndarray, label: np.ndarray, chance_label: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both in standard deviations of pairs further apart, those of the same class where there are enough."""
    alike, chance = alike.astype(float), chance.astype(float)
    if len(chance) < LEAST_APART:
        return alike, chance
    mean, spread = chance.mean(), chance.std() + 1e-9
    new, own = (alike - mean) / spread, (chance - mean) / spread
    for k in np.unique(label):
        of_class = chance_label == k
        if of_class.sum() >= ENOUGH_OF_CLASS:
            mean, spread = chance[of_class].mean(), chance[of_class].std() + 1e-9
            new[label == k], own[of_class] = (alike[label == k] - mean) / spread, (chance[of_class] - mean) / spread
    return new, own


def _evidence(first: np.ndarray, second: np.ndarray, taken: Taken) -> np.ndarray:
    """Place in WRONG of each pair: by the seconds between, the last where the time is not known."""
    seconds = np.abs(taken.seconds[first] - taken.seconds[second])
    return np.where(np.isnan(seconds), len(WITHIN), np.searchsorted(WITHIN, np.nan_to_num(seconds)))


def _choose(alike: np.ndarray, chance: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """Which pairs are taken, bool (P,): more alike than chance allows, for each kind of evidence apart."""
    kept = np.zeros(len(alike), bool)
    if len(chance) < LEAST_APART:
        return kept
    ordered = np.sort(chance)
    p = (1 + len(ordered) - np.searchsorted(ordered, alike, side="left")) / (1 + len(ordered))
    for kind, share in enumerate(WRONG):
        rows = np.flatnonzero(evidence == kind)
        if not len(rows):
            continue
        ranked = np.sort(p[rows])
        passed = np.flatnonzero(ranked <= share * np.arange(1, len(rows) + 1) / len(rows))
        if len(passed):
            kept[rows] = p[rows] <= ranked[passed[-1]]
    return kept


def _too_large(n: int, first: np.ndarray, second: np.ndarray, alike: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Pairs to let go, the least alike first, until no burst holds more than LARGEST of the photographs."""
    gone = np.zeros(len(kept), bool)
    most = max(10, LARGEST * n)
    for _ in range(20):
        rows = np.flatnonzero(kept & ~gone)
        group = join_labels(np.arange(n), first[rows], second[rows])
        size = np.bincount(group)[group[first[rows]]] if len(rows) else np.empty(0)
        large = rows[size > most]
        if not len(large):
            break
        gone[large[alike[large] <= np.median(alike[large])]] = True
    return gone


def _describe(
    manifest: Manifest,
    first: np.ndarray,
    second: np.ndarray,
    alike: np.ndarray,
    number: np.ndarray,
    key: np.ndarray,
    taken: Taken,
    kept: np.ndarray,
) -> pd.DataFrame:
    first, second, alike = first[kept], second[kept], alike[kept]
    label = join_labels(np.arange(len(manifest)), first, second)
    both = pd.DataFrame(
        {
            "row": np.concatenate([first, second]),
            "nearest": np.concatenate([second, first]),
            "likeness": np.concatenate([alike, alike]),
        }
    )
    both = both.sort_values(["likeness", "nearest"], ascending=[False, True], kind="stable").drop_duplicates("row")
    both = both.sort_values("row", ignore_index=True)
    rows, nearest = both["row"].to_numpy(np.int64), both["nearest"].to_numpy(np.int64)
    table = manifest.table.iloc[rows].reset_index(drop=True)[["image_id", "label", "source", "split", "fold"]]
    group = number_by_appearance(label[rows]) if len(rows) else np.empty(0, np.int64)
    numbered = (key[rows] == key[nearest]) & (number[rows] >= 0)
    table = table.assign(
        group="burst-" + pd.Series(table["image_id"]).groupby(group).transform("first").astype(str),
        size=pd.Series(group).groupby(group).transform("size").to_numpy(),
        nearest=manifest.image_id[nearest],
        seconds=np.abs(taken.seconds[rows] - taken.seconds[nearest]),
        numbers=np.where(numbered, np.abs(number[rows] - number[nearest]), np.nan),
        likeness=both["likeness"].to_numpy(),
    )
    table = flag_groups(table, group)
    return table.iloc[np.argsort(group, kind="stable")].reset_index(drop=True)[list(COLUMNS)]


def describe_bursts(bursts: pd.DataFrame, n: int) -> str:
    """How many photographs belong to bursts, in words. n: all photographs."""
    groups = bursts["group"].nunique()
    return f"{len(bursts)} of {n} photographs in {groups} bursts, the largest of {int(bursts['size'].max())}"
