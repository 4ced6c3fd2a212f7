"""Groups of photographs that belong together: joined with those in a manifest, or derived from file names."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from manihot.errors import DataError
from manihot.progress import say
from manihot.records.manifest import Manifest

SEPARATORS = "_-. "
LEAST_SHARE = 0.2  # of the photographs that a proposal must put into groups of two or more
FEWEST = 4  # photographs of a class, from which its groups are judged
NEARLY = 0.8  # share of a class's photographs in one group, and of the group's in the class
LARGEST_SHARE = 0.05  # of the photographs in one group: more is a prefix like IMG, and no plant


def group_numbers(groups: np.ndarray | None, n: int) -> np.ndarray:
    """Groups as numbers 0..G-1, int64 (N,); '' and None stand alone, as in a manifest."""
    if groups is None:
        return np.arange(n)
    groups = np.asarray(groups)
    if groups.shape != (n,):
        raise DataError(f"{len(groups)} groups for {n} photographs", "one per photograph; '' stands alone")
    names = pd.Series(groups.astype(str))
    alone = (names == "").to_numpy()
    numbers = np.array(pd.factorize(names)[0], dtype=np.int64)
    numbers[alone] = numbers.max() + 1 + np.arange(alone.sum())
    return np.asarray(pd.factorize(numbers)[0], dtype=np.int64)


def join_labels(label: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Components (N,) after the pairs (first, second) of rows are joined to what `label` (N,) joins already."""
    if not len(first):
        return label
    n = int(label.max()) + 1
    edges = coo_matrix((np.ones(len(first), np.int8), (label[first], label[second])), shape=(n, n))
    found: np.ndarray = connected_components(edges, directed=False)[1].astype(np.int64)[label]
    return found


def same_group(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows for `join_labels`, (N,) each: the first row of every row's group, and the row; groups: (N,)."""
    _, first, number = np.unique(groups, return_index=True, return_inverse=True)
    return first[number], np.arange(len(groups))


def load_groups(manifest: Path | None, image_id: np.ndarray) -> np.ndarray | None:
    """A saved manifest's group of each photograph, object (N,), '' where it stands alone; None without a manifest."""
    if manifest is None:
        return None
    table = Manifest.load(Path(manifest)).table.set_index("image_id")["group"]
    where = table.index.get_indexer(pd.Index(image_id))
    if (where < 0).any():
        missing = image_id[where < 0]
        raise DataError(
            f"{manifest}: {len(missing)} photographs are not in the manifest, first {missing[0]!r}",
            "give the manifest that the predictions were made from",
        )
    return np.asarray(table.to_numpy()[where], dtype=object)


def join_groups(manifest: Manifest, more: np.ndarray) -> Manifest:
    """Union of the `group` column with other group names (N,), '' = alone; existing names are kept."""
    own = manifest.table["group"].to_numpy()
    label = np.arange(len(manifest))
    for names in (own, more):
        rows = np.flatnonzero(names != "")
        first, row = same_group(names[rows].astype(str))
        label = join_labels(label, rows[first], rows[row])
    name = pd.Series(np.where(own != "", own, more)).where((own != "") | (more != ""))
    old = pd.Series(own).where(own != "").groupby(label).transform("first")
    joined = old.fillna(name.groupby(label).transform("first")).fillna("")
    return manifest.with_columns(group=joined.to_numpy(object))


def classes_in_one_group(groups: np.ndarray, labels: np.ndarray) -> list[int]:
    """Classes of which nearly all photographs lie in one group that holds nearly nothing else.

    groups: (N,), '' stands alone. labels: (N,), -1 unknown. Where such a group is held out, nobody learns the class.
    Classes of fewer than FEWEST photographs are passed over; of fewer than two, where no class has more than that.
    """
    known = labels >= 0
    table = pd.crosstab(pd.Series(labels[known]), pd.Series(groups[known].astype(str)))
    if not len(table):
        return []
    largest = table.drop(columns="", errors="ignore")
    if not len(largest.columns):
        return []
    of_class = largest.max(axis=1) / table.sum(axis=1)
    of_group = largest.max(axis=1) / largest.sum(axis=0)[largest.idxmax(axis=1)].to_numpy()
    found = (table.sum(axis=1) >= _fewest(table.sum(axis=1).to_numpy())) & (of_class >= NEARLY) & (of_group >= NEARLY)
    return [int(k) for k in table.index[found]]


def _fewest(sizes: np.ndarray) -> int:
    return FEWEST if (sizes >= FEWEST).any() else 2


def check_groups(manifest: Manifest, option: str, strict: bool = True) -> str | None:
    """A warning where some classes lie in one group each; DataError where more than half of them do.

    option: what made the groups, as in `--group plant`. strict: whether to raise; the plants of a few returned
    photographs are no error.
    """
    known = (manifest.labels >= 0) & (manifest.table["split"] != "test").to_numpy()
    labels, groups = manifest.labels[known], manifest.table["group"].to_numpy()[known]
    sizes = np.bincount(labels, minlength=1)
    counted = int((sizes >= _fewest(sizes)).sum())
    found = classes_in_one_group(groups, labels)
    if not found:
        return None
    first = manifest.classes[found[0]]
    own = pd.Series(groups[labels == found[0]]).value_counts()
    what = (
        f"{option}: {len(found)} of {counted} classes lie in one group each, such as {first!r} in {own.index[0]!r} "
        f"({own.iloc[0]} of {int((labels == found[0]).sum())} photographs)"
    )
    if 2 * len(found) <= counted or not strict:
        return f"{what}: no fold can both learn and judge them"
    raise DataError(
        f"{what}; a fold that holds a group out would have nothing to learn its class from",
        "group by plant, leaf or place, several per class; or leave the option out (--group '')",
    )


def propose_name_pattern(manifest: Manifest) -> str | None:
    """A pattern such as '{group}_*' under which file names seem to say which plant they show; None if they don't.

    The first part of the name up to a separator, where at least a fifth of the photographs share theirs with a few
    others and nobody with many, and where no class lies in one group. It is a proposal: a person should check it.
    """
    stems = _stems(manifest)
    best, best_share = None, LEAST_SHARE
    for separator in SEPARATORS:
        pattern = "{group}" + separator + "*"
        names = group_by_name(stems, pattern)
        size = pd.Series(names[names != ""]).value_counts()
        if not len(size) or size.iloc[0] > max(10, LARGEST_SHARE * len(stems)):
            continue
        share = size[size > 1].sum() / len(stems)
        if share > best_share and not classes_in_one_group(names, manifest.labels):
            best, best_share = pattern, share
    return best


def offer_name_pattern(manifest: Manifest) -> None:
    """Say that file names look grouped, where they do and nothing else says what belongs together."""
    pattern = propose_name_pattern(manifest) if (manifest.table["group"] == "").all() else None
    if pattern is not None:
        say(f"File names look grouped as {pattern!r}: if that is a plant or a leaf, use --group {pattern!r}")


def group_by_name(stems: list[str], pattern: str) -> np.ndarray:
    """The part of each file name (without its ending) that stands for '{group}', object (N,); '' where none fits.

    pattern: '{group}' once, '*' for anything, '?' for one character. Raises DataError for other patterns.
    """
    if pattern.count("{group}") != 1:
        raise DataError(f"the pattern {pattern!r} must hold {{group}} once", "for instance '{group}_*'")
    before, after = (re.escape(text).replace(r"\*", ".*").replace(r"\?", ".") for text in pattern.split("{group}"))
    form = re.compile(f"{before}(?P<group>.+?){after}", re.DOTALL)
    matches = (form.fullmatch(stem) for stem in stems)
    return np.array([match["group"] if match else "" for match in matches], dtype=object)


def with_name_groups(manifest: Manifest, pattern: str | None = None) -> Manifest:
    """The manifest with photographs grouped by their file names, joined with the groups that are there.

    pattern: as `group_by_name` takes it; left out, `propose_name_pattern` chooses. Names count within a source.
    Raises DataError when no pattern is given and none is found, or none of the names fits.
    """
    pattern = pattern or propose_name_pattern(manifest)
    if pattern is None:
        raise DataError(
            "the file names don't show which photographs belong together", "give a pattern such as '{group}_*'"
        )
    names = group_by_name(_stems(manifest), pattern)
    if not (names != "").any():
        raise DataError(f"no file name fits the pattern {pattern!r}", "give a pattern such as '{group}_*'")
    source = manifest.table["source"].to_numpy()
    groups = np.array([f"{s}:{name}" if name else "" for s, name in zip(source, names)], dtype=object)
    alone = ~pd.Series(groups).duplicated(keep=False).to_numpy()
    return join_groups(manifest, np.where(alone, "", groups))


def _stems(manifest: Manifest) -> list[str]:
    return [PurePosixPath(path).stem for path in manifest.table["path"]]
