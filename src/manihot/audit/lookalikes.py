"""Lookalikes: photographs whose embeddings lie closer than those of different photographs do.

Embeddings are there only after the folds, so this is a second search: it names copies that the search among pictures
missed and, for predictions that come without photographs, it is the only evidence of copies. Embeddings are centred
on their mean, which takes away what all photographs of a set share, and scaled to unit length: those of unrelated
photographs then lie about 1.41 apart. Groups are the connected components of the pairs at most `eps` apart, as
DBSCAN(eps, min_samples=1) gives them. Where photographs are there, pairs up to a wider `reach` are proposed too, and
the pictures are aligned as `audit.duplicates` does: only such a pair counts as confirmed, and beyond `eps`
only such a pair joins.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from manihot.audit.alignment import CROPS, SMALL, CropSearch, align, shrink
from manihot.audit.duplicates import SAME, flag_groups
from manihot.audit.hashes import Thumbnails
from manihot.audit.neighbours import components_within, nearest_in_components, number_by_appearance
from manihot.errors import DataError
from manihot.records.groups import join_groups, join_labels
from manihot.records.manifest import Manifest

EPS = 0.45  # distance of centred unit vectors, cosine .9: what the features alone may say
REACH = 0.6  # cosine .82: turned and cropped copies too, and pairs of a large set that only look alike; pixels decide
NEAREST = 4  # of its group, that a photograph is compared with on pixels
LEAST_CHECKS = 1000  # pairs checked on pixels, or one per photograph where there are more of those
SAYS_NOTHING = 1e-4  # of the usual length: a vector that is hardly anything but the mean

COLUMNS = (
    "image_id",
    "group",
    "evidence",
    "distance",
    "nearest",
    "correlation",
    "label",
    "source",
    "split",
    "fold",
    "label_conflict",
    "crosses_folds",
    "crosses_splits",
)


def find_lookalikes(
    manifest: Manifest,
    embeddings: np.ndarray,
    thumbnails: Thumbnails | None = None,
    eps: float = EPS,
    reach: float = REACH,
) -> pd.DataFrame:
    """Photographs with a lookalike, one row each, sorted by group, with the columns of COLUMNS.

    embeddings: (N, D) of one network, in the order of the manifest, whose groups are taken as known. thumbnails: of
    `hashes.make_thumbnails`; without them nothing is checked on pixels. eps: distance of vectors that join by
    themselves; with thumbnails, pairs up to `reach` that pixels confirm or that are known join too. `distance`: to the
    `nearest` of the group. `correlation`: of the fine structure with the best partner checked, NaN where none was.
    `evidence`: `pixels` where the pictures agree aligned, `known` where a group held both before,
    `features` where nothing but the features says so. Flags as those of `find_duplicates`. Raises DataError.
    """
    if len(embeddings) != len(manifest):
        raise DataError(
            f"{len(embeddings)} embeddings don't fit {len(manifest)} photographs", "give one row per photograph"
        )
    unit, shows = unit_embeddings(embeddings)
    label = _components(unit, shows, eps)
    wide = eps if thumbnails is None else max(eps, reach)
    wider = label if wide == eps else _components(unit, shows, wide)
    i, j, distance = nearest_in_components(unit, wider, wide, NEAREST)
    group = manifest.table["group"].to_numpy()
    known = (group[i] == group[j]) & (group[i] != "")
    correlation = np.full(len(i), np.nan)
    if thumbnails is not None:
        asked = np.flatnonzero(~known)
        asked = asked[np.argsort(distance[asked], kind="stable")][: max(LEAST_CHECKS, len(manifest))]
        correlation[asked] = check_pairs(thumbnails, thumbnails.rows(manifest.image_id), i[asked], j[asked])
    pairs = pd.DataFrame({"first": i, "second": j, "distance": distance, "known": known, "correlation": correlation})
    pairs["pixels"] = pairs["correlation"] >= SAME
    pairs = pairs[(pairs["distance"] <= eps) | pairs["pixels"] | pairs["known"]]
    return _describe(manifest, join_labels(label, pairs["first"].to_numpy(), pairs["second"].to_numpy()), pairs)


def _components(unit: np.ndarray, shows: np.ndarray, eps: float) -> np.ndarray:
    """Component of each vector, int64 (N,); one that says nothing stands alone."""
    label = np.arange(len(unit)) + len(unit)
    label[shows] = components_within(unit if shows.all() else unit[shows], eps)
    return label


def unit_embeddings(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, D) about their mean and of unit length, float32, and which of them say anything, bool (N,)."""
    vectors = np.array(embeddings, np.float32)
    if vectors.ndim != 2:
        raise DataError(f"embeddings have {vectors.ndim} dimensions, not 2", "give one row per photograph")
    if not len(vectors):
        return vectors, np.empty(0, bool)
    length = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    if not np.isfinite(length).all():
        bad = np.flatnonzero(~np.isfinite(length))
        raise DataError(f"{len(bad)} embeddings are not finite, first row {bad[0]}", "compute them again in fp32")
    usual = float(length.mean())
    vectors -= vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    length = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    shows = length > SAYS_NOTHING * usual
    vectors /= np.where(shows, length, 1)[:, None]
    return vectors, shows


def check_pairs(thumbnails: Thumbnails, rows: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Correlation of the fine structure of pairs of photographs aligned, float64 (n,).

    rows: of each photograph in the thumbnails. Either may be a part of the other, in any of 8 orientations. NaN where
    one shows nothing to compare.
    """
    score = np.full(len(first), np.nan)
    if not len(first):
        return score
    search = CropSearch(shrink(thumbnails.pictures, SMALL)[rows])
    asked = np.flatnonzero(search.shows[first] & search.shows[second])
    ways = [search.best(a, b) for a, b in ((first[asked], second[asked]), (second[asked], first[asked]))]
    better = ways[1]["score"] > ways[0]["score"]
    way = {name: np.where(better, ways[1][name], ways[0][name]) for name in ways[0]}
    part, whole = rows[way["part"]], rows[way["whole"]]
    score[asked] = align(thumbnails.pictures, part, whole, way["orientation"], CROPS[way["crop"]])[1]
    return score


def _describe(manifest: Manifest, label: np.ndarray, pairs: pd.DataFrame) -> pd.DataFrame:
    both = pd.concat([pairs, pairs.rename(columns={"first": "second", "second": "first"})], ignore_index=True)
    both = both.sort_values(["first", "distance", "second"], kind="stable")
    of_row = both.groupby("first")
    rows = of_row.size().index.to_numpy(np.int64)
    number = number_by_appearance(label[rows]) if len(rows) else np.empty(0, np.int64)
    table = manifest.table.iloc[rows].reset_index(drop=True)[["image_id", "label", "source", "split", "fold"]]
    first_of_group = pd.Series(table["image_id"]).groupby(number).transform("first")
    confirmed, known = (of_row[name].any().to_numpy(bool) for name in ("pixels", "known"))
    table = table.assign(
        group="like-" + first_of_group.astype(str),
        evidence=np.select([confirmed, known], ["pixels", "known"], "features").astype(object),
        distance=of_row["distance"].first().to_numpy(np.float64),
        nearest=manifest.image_id[of_row["second"].first().to_numpy(np.int64)],
        correlation=of_row["correlation"].max().to_numpy(np.float64),
    )
    table = flag_groups(table, number)
    return table.iloc[np.argsort(number, kind="stable")].reset_index(drop=True)[list(COLUMNS)]


def with_lookalikes(manifest: Manifest, lookalikes: pd.DataFrame) -> Manifest:
    """The manifest with the lookalikes that pixels confirm in its `group` column, joined with what is there.

    lookalikes: of `find_lookalikes`. What the features alone say joins nothing. Rows of photographs that the manifest
    doesn't hold are left out.
    """
    sure = lookalikes[lookalikes["evidence"] == "pixels"]
    names = pd.Series("", index=pd.Index(manifest.image_id), dtype=object)
    sure = sure[sure["image_id"].isin(names.index)]
    names.loc[sure["image_id"].to_numpy()] = sure["group"].to_numpy()
    return join_groups(manifest, names.to_numpy())


def count_lookalikes(lookalikes: pd.DataFrame) -> dict[str, int]:
    """Groups and photographs, and the groups newly confirmed by pixels, or supported by features alone."""
    groups = lookalikes.groupby("group")
    evidence = groups["evidence"].agg(set) if len(lookalikes) else pd.Series([], dtype=object)
    new = evidence[[bool(found - {"known"}) for found in evidence]]
    confirmed = [name for name, found in new.items() if "pixels" in found]
    about = lookalikes[lookalikes["group"].isin(new.index)].drop_duplicates("group")
    return {
        "groups": len(evidence),
        "photographs": len(lookalikes),
        "confirmed_groups": len(confirmed),
        "features_groups": len(new) - len(confirmed),
        "conflicting_groups": int(about["label_conflict"].sum()),
        "groups_across_folds": int(about["crosses_folds"].sum()),
    }


def describe_lookalikes(counts: dict[str, int]) -> str:
    """What `count_lookalikes` counted, in words."""
    if not counts["groups"]:
        return "no photographs lie close to each other by the network's features"
    known = counts["groups"] - counts["confirmed_groups"] - counts["features_groups"]
    parts = [
        (counts["confirmed_groups"], "new and confirmed by the pictures"),
        (known, "known as duplicates or groups"),
        (counts["features_groups"], "found by the features alone, to be checked by eye"),
    ]
    said = ", ".join(f"{count:,} {what}" for count, what in parts if count)
    return f"{counts['photographs']:,} photographs in {counts['groups']:,} groups alike by the features: {said}"
