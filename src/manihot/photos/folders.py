"""What the folders above photographs are: classes, splits, sources, plants. `--folders PATTERN` says it.

A pattern names the folders below PHOTOS, one part a level: `{class}`, `{split}`, `{source}`, `{group}`, `*` for any,
or a folder's own name. `{class}/{class}` makes classes such as Birds/Sparrow. `choose_pattern` reads it off the names.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from manihot.errors import SettingsError
from manihot.photos.listing import Entry, Listing, find_photos, list_folders, normalise
from manihot.photos.tables import SPLITS
from manihot.records.tables import list_names, shown

ROLES = {"{class}", "{split}", "{source}", "{group}", "*"}
FILLERS = {"set", "sets", "data", "dataset", "images", "image", "imgs", "photos", "pictures", "seg", "split", "folder"}
MOSTLY = 0.5  # share of photographs that lie deeper, from which another reading is named
FEW = 20  # photographs in a folder that may be one plant: the median, at most

Dirs = tuple[str, ...]


def split_of(name: str) -> str | None:
    """The split that a folder's name says: train, Valid, test_images, 'Training set'; None for other names."""
    words = [word for word in re.split(r"[\W_]+", name.lower()) if word and word not in FILLERS]
    return SPLITS.get(words[0]) if len(words) == 1 else None


@dataclass(frozen=True)
class Tree:
    """Photographs below `top` with the folders between, and sub-folders of `top` that hold none."""

    top: Path
    photos: list[tuple[Dirs, Path]]
    empty: list[str]
    ignored: Counter[str]


def walk(top: Path, out: Path | None) -> Tree:
    """All photographs below a folder, sorted; the run folder `out` is left out."""
    ignored: Counter[str] = Counter()
    found: list[tuple[Dirs, Path]] = [((), path) for path in find_photos(top, ignored, deep=False)]
    empty = []
    for folder in list_folders(top):
        if folder == out:
            continue
        photos = find_photos(folder, ignored, out)
        if not photos:
            empty.append(folder.name)
        found += [(path.parent.relative_to(top).parts, path) for path in photos]
    return Tree(top, found, empty, ignored)


def parse_pattern(pattern: str) -> tuple[str, ...]:
    """The parts of a pattern; SettingsError where one is none of ROLES and no folder's name."""
    parts = tuple(part for part in pattern.strip("/").split("/") if part)
    for part in parts:
        if part not in ROLES and ("{" in part or "*" in part):
            raise SettingsError(
                f"--folders {pattern!r}: {part!r} is unknown",
                "a folder is {class}, {split}, {source}, {group}, * for any, or its own name, as in '{split}/{class}'",
            )
    for role in ("{split}", "{source}", "{group}"):
        if parts.count(role) > 1:
            raise SettingsError(f"--folders {pattern!r}: {role} appears twice", "once is enough; * is any folder")
    return parts


# --------------------------------------------------------------------------------- choosing a pattern


def choose_pattern(tree: Tree) -> str:
    """The pattern that the folders' names speak for: '{class}', '{split}/{class}', '{class}/{split}' or ''."""
    dirs = Counter(parts for parts, _ in tree.photos)
    first = {parts[0] for parts in dirs if parts}
    if not first:
        return ""
    splits = {name for name in first if split_of(name)}
    others = first - splits
    training = [name for name in splits if split_of(name) == "train"]
    holds_folders = any(len(unwrap(parts, dirs)) > 1 for parts in dirs if parts and parts[0] in training)
    if splits and (not others or holds_folders):
        return "{split}/{class}"
    below = [parts for parts in dirs if parts]
    if all(len(parts) > 1 and split_of(parts[1]) for parts in below):
        return "{class}/{split}"
    return "{class}"


def unwrap(parts: Dirs, dirs: Counter[Dirs]) -> Dirs:
    """A split's folders without a repeated or empty word inside: train/train/a and train/images/a are train/a."""
    while len(parts) > 1:
        own = Counter({other: n for other, n in dirs.items() if other[:1] == parts[:1]})
        repeated = split_of(parts[1]) is not None and split_of(parts[1]) == split_of(parts[0])
        if len({other[1:2] for other in own}) > 1 or not (repeated or parts[1].lower() in FILLERS):
            return parts
        dirs = Counter({other[:1] + other[2:]: n for other, n in own.items()})
        parts = parts[:1] + parts[2:]
    return parts


def other_patterns(tree: Tree, pattern: str) -> list[tuple[str, str]]:
    """(pattern, what it would find) of other plausible readings of the same folders."""
    parts = parse_pattern(pattern)
    start = "{split}/" if parts[:1] == ("{split}",) else ""
    rows = _without_splits(tree) if start else [own for own, _ in tree.photos]
    if parts not in (("{class}",), ("{split}", "{class}"), ("{class}", "{split}")):
        return []
    if parts == ("{class}", "{split}"):
        return [("{class}", "the folders below are no splits, and all photographs can be trained on")]
    deep = [own for own in rows if len(own) > 1]
    if len(deep) < MOSTLY * max(1, len(rows)):
        return []
    pairs = Counter(own[:2] for own in deep)
    below: dict[str, set[str]] = defaultdict(set)
    for upper, lower in pairs:
        below[lower].add(upper)
    uppers = {upper for upper, _ in pairs}
    found = []
    if len(pairs) > len(uppers):
        names = ["/".join(pair) for pair in sorted(pairs)]
        found.append((start + "{class}/{class}", f"{len(names)} classes two folders deep: {list_names(names, 10)}"))
    shared = [lower for lower, above in below.items() if len(above) > 1]
    if len(uppers) > 1 and 2 * len(shared) >= len(below):
        what = f"{len(below)} classes in {len(uppers)} sources: {list_names(sorted(below), 10)}"
        found.append((start + "{source}/{class}", what))
    found += _deeper(rows, start)
    sizes = sorted(pairs.values())
    if len(pairs) >= 2 * len(uppers) and sizes[len(sizes) // 2] <= FEW:
        what = f"{len(uppers)} classes, and each of {len(pairs)} folders below is one plant that stays in one fold"
        found.append((start + "{class}/{group}", what))
    return found


def _deeper(rows: list[Dirs], start: str) -> list[tuple[str, str]]:
    """Readings of three folders and more, such as Animals/Birds/Sparrow or 2020/June/rust, where most have so many."""
    found = []
    for depth in range(3, max(map(len, rows), default=0) + 1):
        deep = {own[:depth] for own in rows if len(own) >= depth}
        if sum(len(own) >= depth for own in rows) < MOSTLY * len(rows) or len(deep) == len({o[:-1] for o in deep}):
            continue
        above: dict[str, set[Dirs]] = defaultdict(set)
        for own in deep:
            above[own[-1]].add(own[:-1])
        if 2 * sum(len(places) > 1 for places in above.values()) >= len(above):
            what = f"{len(above)} classes, the names {depth} folders deep: {list_names(sorted(above), 10)}"
            found.append((start + "*/" * (depth - 1) + "{class}", what))
        else:
            names = list_names(["/".join(own) for own in sorted(deep)], 10)
            found.append((start + "/".join(["{class}"] * depth), f"{len(deep)} classes {depth} folders deep: {names}"))
    return found


def _without_splits(tree: Tree) -> list[Dirs]:
    dirs = Counter(parts for parts, _ in tree.photos)
    short = {parts: unwrap(parts, dirs) for parts in dirs}
    return [short[parts][1:] for parts, _ in tree.photos if parts and split_of(parts[0])]


# ------------------------------------------------------------------------------------- listing by one


def list_by(tree: Tree, pattern: str) -> Listing:
    """The photographs of a tree as a pattern reads them.

    Photographs that lie less deep than the pattern's classes are unlabelled; those whose folders are no split, or have
    another name than the pattern says, are left out.
    """
    parts = parse_pattern(pattern)
    listing = Listing(tree.top, "", kind="class folders" if "{class}" in parts else "photographs")
    listing.ignored += tree.ignored
    dirs = Counter(own for own, _ in tree.photos)
    short = {own: unwrap(own, dirs) if parts[:1] == ("{split}",) else own for own in dirs}
    shallow: Counter[str] = Counter()
    outside: Counter[str] = Counter()
    for own, path in tree.photos:
        entry = _read_folders(short[own], parts, path)
        if entry is None:
            outside[own[0] if own else ""] += 1
            continue
        entry = replace(entry, where=f"folder {'/'.join(own) or tree.top.name}")
        if "{class}" in parts and entry.label is None:
            shallow["/".join(own) or tree.top.name] += 1
        listing.entries.append(entry)
    _check_test(listing)
    for name, count in outside.items():
        place = f"{name}/ is beside the splits" if name and parts[:1] == ("{split}",) else f"{name or 'the top'}"
        listing.left_out.append(f"{place} and is left out: {count} photographs don't fit {pattern!r}")
        flat = {own for own, _ in tree.photos if own[:1] == (name,)}
        if name and parts[:1] == ("{split}",) and len(flat) == 1:
            where = tree.top.joinpath(*flat.pop())
            listing.otherwise.append(
                f"{count} photographs without labels, for pseudo-labels, FixMatch or clusters: give {where} as a source"
            )
    labelled = any(entry.label is not None for entry in listing.entries)
    for name, count in shallow.items():
        tested = split_of(name.split("/")[0]) == "test" and parts[:1] == ("{split}",)
        if labelled and not tested:
            listing.notes.append(f"{count} photographs in {shown(name)}/ lie in no class folder: unlabelled")
    listing.left_out += [f"{shown(name)}/ holds no photograph and is not a class" for name in tree.empty]
    listing.classes = tuple(sorted({entry.label for entry in listing.entries if entry.label is not None}))
    listing.layout = _in_words(tree, parts, listing)
    return listing


def _read_folders(own: Dirs, parts: Sequence[str], path: Path) -> Entry | None:
    """A photograph by the folders above it; None where they don't fit."""
    classes: list[str] = []
    entry = Entry(path)
    for k, part in enumerate(parts):
        if k >= len(own):
            return None if part == "{split}" and not classes else replace(entry, label=None)
        name = normalise(own[k])
        if part == "{class}":
            classes.append(name)
        elif part == "{split}":
            split = split_of(name)
            if split is None:
                return None
            entry = replace(entry, split=split)
        elif part == "{source}":
            entry = replace(entry, source=name)
        elif part == "{group}":
            entry = replace(entry, group="/".join(map(normalise, own[: k + 1])))
        elif part != "*" and part != name:
            return None
        if part == "{class}" and "{class}" not in parts[k + 1 :]:
            entry = replace(entry, label="/".join(classes))
    return entry


def _check_test(listing: Listing) -> None:
    """Folders in a test split that hold no class of the others are not classes: `test/images/1.jpg`."""
    known = {entry.label for entry in listing.entries if entry.label is not None and entry.split != "test"}
    tested = {entry.label for entry in listing.entries if entry.label is not None and entry.split == "test"}
    if known and tested and not known & tested:
        folders = list_names([f"{name}/" for name in sorted(tested)])
        listing.notes.append(f"the test split holds no class of the training photographs ({folders}): unlabelled")
        listing.entries = [replace(e, label=None) if e.split == "test" else e for e in listing.entries]


def _in_words(tree: Tree, parts: Sequence[str], listing: Listing) -> str:
    if not listing.classes:
        return "photographs without labels"
    tops = list(dict.fromkeys(own[0] for own, _ in tree.photos if own))
    if parts == ("{split}", "{class}"):
        return f"class folders in {list_names([f'{name}/' for name in tops if split_of(name)])}"
    if parts == ("{class}", "{split}"):
        return "class folders with splits inside"
    return "class folders" if parts == ("{class}",) else f"folders read as {'/'.join(parts)}"
