"""Duplicates: exact, re-encoded, resized, turned, cropped, or the same subject photographed again.

Exact copies have the same sha256. All others must pass one check whatever proposed them (perceptual hash in 8
orientations, crops of small pictures, embeddings): the pictures are aligned and their fine structure compared, so
that leaves with the same outline are not taken for copies. Groups are the connected components of the pairs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from manihot.audit.alignment import CROPS, SMALL, CropSearch, align, shrink
from manihot.audit.hashes import Thumbnails, count_bits, hash_pairs, orient_coefficients, turned_hashes
from manihot.audit.inverted import tell_cost
from manihot.audit.neighbours import number_by_appearance, pairs_within
from manihot.audit.sources import TRAIN_ONLY
from manihot.errors import DataError
from manihot.records.columns import ALWAYS_TRAIN
from manihot.records.groups import join_groups, join_labels
from manihot.records.manifest import Manifest

SAME = 0.75  # correlation of the fine structure from which two photographs show the same
COPY = 0.95  # and from which one file was made from the other; below it the subject was photographed again
LIKELY = 0.88  # correlation of descriptions from which a pair is checked
HASH_BITS = 6  # of 63 that may differ
HASH_LIKELY = 0.7  # correlation of descriptions that a pair close in its hashes must have
EMBEDDING_EPS = 0.35  # distance of unit vectors, cosine about .94
PARTNERS = 16  # likely copies per photograph that are checked, the likeliest first
PRUNE_AT = 2_000_000  # likely pairs held at once
CUT = 0.03  # share of an edge that must be missing for a photograph to count as cropped
MIRRORED, TURNED = (1, 2, 4, 7), (3, 5, 6)  # orientations, as hashes.orient_pictures numbers them

COLUMNS = (
    "image_id",
    "group",
    "kind",
    "distance",
    "nearest",
    "phash_distance",
    "label",
    "source",
    "split",
    "fold",
    "label_conflict",
    "crosses_folds",
    "crosses_splits",
)
KINDS = {
    "exact": "the same bytes",
    "reencoded": "the same picture, saved again",
    "resized": "the same picture with other pixel numbers",
    "rotated": "turned by a quarter or a half",
    "flipped": "mirrored, perhaps also turned",
    "cropped": "a part of the other, perhaps also turned",
    "again": "the same subject photographed again, from nearly the same place",
}
_LIKELY_COLUMNS = ("part", "whole", "orientation", "crop", "score")


def find_duplicates(
    manifest: Manifest,
    thumbnails: Thumbnails | None = None,
    embeddings: np.ndarray | None = None,
    same: float = SAME,
    embedding_eps: float = EMBEDDING_EPS,
) -> pd.DataFrame:
    """Photographs that have a duplicate, one row each, sorted by group, with the columns of COLUMNS.

    thumbnails: of `hashes.make_thumbnails`; without them only exact copies are found. embeddings: (N, D) in the order
    of the manifest or None; they only propose pairs at most `embedding_eps` apart (unit vectors), which matters for
    copies that were edited much. same: correlation of the fine structure that is asked for.
    `kind` (KINDS) and `distance` (1 - correlation, 0 for exact copies) describe the `nearest` member of the group.
    `crosses_folds`: some model trains on one member and is judged on another. Raises DataError.
    """
    if embeddings is not None and thumbnails is None:
        raise DataError("embeddings only propose duplicates", "make thumbnails too, and pass thumbnails")
    pairs = _exact_pairs(manifest)
    if thumbnails is not None:
        near = _near_pairs(manifest, thumbnails, embeddings, same, embedding_eps)
        pairs = pd.concat([pairs, near], ignore_index=True) if len(near) else pairs
    return _describe(manifest, pairs, thumbnails)


def _exact_pairs(manifest: Manifest) -> pd.DataFrame:
    """Each file with the first that has the same sha256: `first, second, kind, distance`."""
    sha256 = manifest.table["sha256"]
    known = sha256[sha256 != ""]
    first = known.index.to_series().groupby(known).transform("first").astype(np.int64)
    copies = first[first.index != first]
    return pd.DataFrame(
        {"first": copies.to_numpy(), "second": copies.index.to_numpy(), "kind": "exact", "distance": 0.0}
    )


def _near_pairs(
    manifest: Manifest, thumbnails: Thumbnails, embeddings: np.ndarray | None, same: float, eps: float
) -> pd.DataFrame:
    sha256 = manifest.table["sha256"]
    kept = np.flatnonzero(~sha256.duplicated().to_numpy() | (sha256 == "").to_numpy())  # one of each exact group
    where = thumbnails.rows(manifest.image_id[kept])
    tell_cost(len(kept))
    search = CropSearch(shrink(thumbnails.pictures, SMALL)[where])
    if embeddings is not None:
        if len(embeddings) != len(manifest):
            raise DataError(
                f"{len(embeddings)} embeddings don't fit {len(manifest)} photographs", "give one row per photograph"
            )
        embeddings = np.asarray(embeddings, np.float32)[kept]
    likely = _likely_pairs(search, thumbnails.phash[where], embeddings, eps)
    part, whole, orientation = (likely[name].to_numpy() for name in ("part", "whole", "orientation"))
    box, score = align(thumbnails.pictures, where[part], where[whole], orientation, CROPS[likely["crop"].to_numpy()])
    found = score >= same
    part, whole = kept[part[found]], kept[whole[found]]
    kind = _name_kinds(manifest, part, whole, orientation[found], box[found], score[found])
    return pd.DataFrame({"first": whole, "second": part, "kind": kind, "distance": 1 - score[found]})


def _likely_pairs(search: CropSearch, phash: np.ndarray, embeddings: np.ndarray | None, eps: float) -> pd.DataFrame:
    """Pairs worth checking, the best orientation and crop of each: `part, whole, orientation, crop, score`."""
    none = np.empty(0, np.int64)
    waiting, count = [dict.fromkeys(_LIKELY_COLUMNS, none) | {"score": np.empty(0, np.float32)}], 0
    for block in _proposals(search, phash, embeddings, eps):
        waiting.append(block)
        count += len(block["part"])
        if count > PRUNE_AT:
            kept = _prune(_stack(waiting))
            waiting, count = [{name: kept[name].to_numpy() for name in _LIKELY_COLUMNS}], 0
    return _prune(_stack(waiting))


def _stack(blocks: list[dict[str, np.ndarray]]) -> pd.DataFrame:
    return pd.DataFrame({name: np.concatenate([block[name] for block in blocks]) for name in _LIKELY_COLUMNS})


def _proposals(
    search: CropSearch, phash: np.ndarray, embeddings: np.ndarray | None, eps: float
) -> Iterator[dict[str, np.ndarray]]:
    yield from search.search(LIKELY)
    whole = search.describe(search.whole)
    turned = [search.describe(orient_coefficients(search.whole, g)) for g in range(8)]
    for i, j, g, _ in hash_pairs(phash, HASH_BITS):
        score = np.einsum("nd,nd->n", turned[g[0]][i], whole[j])
        keep = (score >= HASH_LIKELY) & search.shows[i] & search.shows[j]
        yield {"part": i[keep], "whole": j[keep], "orientation": g[keep], "crop": g[keep] * 0, "score": score[keep]}
    if embeddings is not None:
        unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
        i, j, _ = pairs_within(unit, eps)
        keep = search.shows[i] & search.shows[j]
        for part, other in ((i[keep], j[keep]), (j[keep], i[keep])):
            yield search.best(part, other)


def _prune(likely: pd.DataFrame) -> pd.DataFrame:
    """The best way to see each pair, and of each photograph the likeliest partners."""
    low, high = np.minimum(likely["part"], likely["whole"]), np.maximum(likely["part"], likely["whole"])
    likely = likely.assign(low=low, high=high).sort_values(
        ["score", "low", "high", "part", "orientation", "crop"], ascending=[False, *[True] * 5], kind="stable"
    )
    likely = likely.drop_duplicates(["low", "high"])
    rank = np.minimum(likely.groupby("low").cumcount(), likely.groupby("high").cumcount())
    return likely.loc[(rank < PARTNERS).to_numpy(), list(_LIKELY_COLUMNS)].reset_index(drop=True)


def _name_kinds(
    manifest: Manifest, part: np.ndarray, whole: np.ndarray, orientation: np.ndarray, box: np.ndarray, score: np.ndarray
) -> np.ndarray:
    size = manifest.table[["height", "width"]].to_numpy()
    turned = np.where((orientation & 4 > 0)[:, None], size[part][:, ::-1], size[part])
    missing = np.maximum(box[:, [0, 2]], 1 - box[:, [1, 3]]).max(axis=1)
    resized = np.abs(turned / np.maximum(size[whole], 1) - 1).max(axis=1) > 0.02
    return np.select(
        [score < COPY, missing > CUT, np.isin(orientation, MIRRORED), np.isin(orientation, TURNED), resized],
        ["again", "cropped", "flipped", "rotated", "resized"],
        "reencoded",
    )


def _describe(manifest: Manifest, pairs: pd.DataFrame, thumbnails: Thumbnails | None) -> pd.DataFrame:
    label = join_labels(np.arange(len(manifest)), pairs["first"].to_numpy(), pairs["second"].to_numpy())
    both = pd.concat([pairs, pairs.rename(columns={"first": "second", "second": "first"})], ignore_index=True)
    both = both.sort_values(["distance", "first", "second"], kind="stable").drop_duplicates("first")
    both = both.sort_values("first", ignore_index=True)
    rows, nearest = both["first"].to_numpy(), both["second"].to_numpy()
    table = manifest.table.iloc[rows].reset_index(drop=True)[["image_id", "label", "source", "split", "fold"]]
    number = number_by_appearance(label[rows]) if len(rows) else np.empty(0, np.int64)
    first_of_group = pd.Series(table["image_id"]).groupby(number).transform("first")
    table = table.assign(
        group="dup-" + first_of_group.astype(str),
        kind=both["kind"].astype(object),
        distance=np.clip(both["distance"], 0, None),
        nearest=manifest.image_id[nearest],
        phash_distance=_hash_distance(manifest, thumbnails, rows, nearest),
    )
    table = flag_groups(table, number)
    order = np.argsort(number, kind="stable")
    return table.iloc[order].reset_index(drop=True)[list(COLUMNS)]


def flag_groups(table: pd.DataFrame, number: np.ndarray) -> pd.DataFrame:
    """The table (label, fold, split) with what its groups, numbered (N,), give away, one value per group.

    `label_conflict`: more than one label. `crosses_folds`: some model trains on one member and is judged on another.
    `crosses_splits`: one member is a test photograph and another is not.
    """
    labelled = table["label"].where(table["label"] >= 0)
    return table.assign(
        label_conflict=labelled.groupby(number).transform("nunique") > 1,
        crosses_folds=_torn_by_folds(table, number),
        crosses_splits=table["split"].groupby(number).transform("nunique") > 1,
    )


def _torn_by_folds(table: pd.DataFrame, number: np.ndarray) -> np.ndarray:
    """Whether some model trains on one member of the group and is judged on another, bool (n,).

    number: of each row's group. What is only trained on (`train_only`) doesn't count: it is left out where its group
    is judged.
    """
    counts = (table["split"] != "test") & (table["label"] >= 0)
    if TRAIN_ONLY in table:
        counts &= ~table[TRAIN_ONLY].to_numpy(dtype=bool)
    judged = table["fold"].where(counts)
    several = judged.groupby(number).transform("nunique") > 1
    held = (judged != ALWAYS_TRAIN) & judged.notna()
    found: np.ndarray = (several & held.groupby(number).transform("any")).to_numpy(dtype=bool)
    return found


def with_folds(duplicates: pd.DataFrame, manifest: Manifest) -> pd.DataFrame:
    """The table of `find_duplicates` with the manifest's folds in `fold` and `crosses_folds`.

    Raises DataError for a photograph that is not in the manifest.
    """
    at = pd.Index(manifest.image_id).get_indexer(pd.Index(duplicates["image_id"]))
    if (at < 0).any():
        first = duplicates["image_id"].to_numpy()[at < 0][0]
        raise DataError(
            f"{int((at < 0).sum())} duplicates are not in the manifest, first {first!r}",
            "find the duplicates of this manifest",
        )
    table = duplicates.assign(fold=manifest.fold[at])
    more = {TRAIN_ONLY: manifest.table[TRAIN_ONLY].to_numpy()[at]} if TRAIN_ONLY in manifest.table else {}
    return table.assign(crosses_folds=_torn_by_folds(table.assign(**more), table["group"].to_numpy()))


def _hash_distance(
    manifest: Manifest, thumbnails: Thumbnails | None, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Bits that differ in the most similar orientation, int64; -1 without thumbnails."""
    if thumbnails is None or not len(first):
        return np.full(len(first), -1)
    phash = thumbnails.phash[thumbnails.rows(manifest.image_id)]
    turned = turned_hashes(phash[first])
    found: np.ndarray = count_bits(turned ^ phash[second][:, None]).min(axis=1).astype(np.int64)
    return found


# ------------------------------------------------------------------------------------------- groups


def with_groups(manifest: Manifest, duplicates: pd.DataFrame) -> Manifest:
    """The manifest with duplicate groups in its `group` column, joined with the groups that are there.

    duplicates: of `find_duplicates`. Photographs that either kind of group ties together get one name, so that no
    fold splits any of them. Raises DataError for a photograph that is not in the manifest.
    """
    group = pd.Series("", index=pd.Index(manifest.image_id), dtype=object)
    unknown = duplicates.loc[~duplicates["image_id"].isin(group.index), "image_id"]
    if len(unknown):
        raise DataError(
            f"{len(unknown)} duplicates are not in the manifest, first {unknown.iloc[0]!r}",
            "find the duplicates of this manifest",
        )
    group.loc[duplicates["image_id"].to_numpy()] = duplicates["group"].to_numpy()
    return join_groups(manifest, group.to_numpy())
