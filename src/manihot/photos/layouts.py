"""What a place is: class folders, splits, imagefolder metadata, Kaggle's folder, a table, a manifest.

`recognise` alone decides. Each `list_*` function turns one reading into a Listing, which says what was left out and
what the other plausible readings are.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd

from manihot.errors import DataError, SettingsError
from manihot.photos.beside import says_nothing, weigh_tables
from manihot.photos.decode import SUFFIXES
from manihot.photos.folders import Tree, choose_pattern, list_by, other_patterns, split_of, walk
from manihot.photos.kaggle import find_records, find_sample, is_competition, list_competition
from manihot.photos.labels import ClassNames, load_classes
from manihot.photos.listing import Entry, Listing, find_photos, list_folder, list_folders
from manihot.photos.returns import is_returns, list_returns
from manihot.photos.tables import Columns, list_table, to_trusted
from manihot.progress import warn
from manihot.records.columns import COLUMNS
from manihot.records.manifest import Manifest
from manihot.records.tables import TABLE_SUFFIXES, is_missing, list_names, read_table, shown

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CLASS_MAPS = ("label_num_to_disease_map.json",)


def recognise(
    place: Path,
    columns: Columns,
    csv: Path | None,
    classes: Path | None,
    out: Path | None,
    several: bool = False,
    folders: str | None = None,
    tables: bool = True,
) -> Listing:
    """Decide what one place is, and list its photographs.

    place: a folder, a manifest, a run folder that holds one, or a table whose image paths start at its own folder.
    csv: a table whose image paths start at `place`. classes: names of integer labels. out: run folder, never searched
    for photographs. several: there are other places, which may have the columns that a fixed layout lacks. folders:
    what the folders are (`manihot.photos.folders`). tables: whether a table beside the photographs may name their
    classes. Raises DataError.
    """
    manifest = Manifest.find(place) if csv is None else None
    if folders is not None and (csv is not None or manifest is not None or place.is_file()):
        raise SettingsError(
            f"--folders {folders!r}: {csv or place} names the photographs itself", "give a folder, or leave it out"
        )
    if manifest is not None:
        return list_manifest(manifest, columns)
    if place.is_file() and place.suffix.lower() in SUFFIXES:
        return Listing(place.parent, "a photograph", [Entry(place)])
    if is_returns(place) and csv is None:
        return list_returns(place, out)
    if place.is_file() and csv is None:
        if place.suffix.lower() not in TABLE_SUFFIXES:
            raise DataError(
                f"{place}: neither a folder nor a table of photographs",
                f"give a folder, or a file ending in {', '.join(sorted(TABLE_SUFFIXES))}",
            )
        return list_table(place, place.parent, columns, _names(place.parent, classes))
    if not place.is_dir():
        raise DataError(f"{place}: there is no such folder or table", "check the path")
    if csv is not None:
        return list_table(csv, place, columns, _names(place, classes) or _names(csv.parent, None))
    top = place if folders is not None else _descend(place)
    names = _names(top, classes) or _names(place, None)
    listing = _read_folder(place, top, columns, names, classes, out, several, folders, tables)
    listing.sample = find_sample(top)
    return listing


def _read_folder(
    place: Path,
    top: Path,
    columns: Columns,
    names: ClassNames | None,
    classes: Path | None,
    out: Path | None,
    several: bool,
    folders: str | None,
    tables: bool,
) -> Listing:
    if folders is not None:
        return list_class_folders(top, classes, out, folders)
    if (top / "train.csv").is_file() and ((top / "train_images").is_dir() or find_records(top, "train")):
        return list_competition(top, columns, names, out, several)
    if _metadata(top) or any(_metadata(path) for _, path in _split_folders(top)):
        return list_imagefolder(top, columns, names, several)
    if is_competition(top):
        return list_competition(top, columns, names, out, several)
    listing = list_class_folders(top, classes, out, place=place)
    return weigh_tables(listing, top, columns, names, out) if tables else listing


def _names(folder: Path, classes: Path | None) -> ClassNames | None:
    if classes is not None:
        return load_classes(classes)
    return next((load_classes(folder / name) for name in CLASS_MAPS if (folder / name).is_file()), None)


def _metadata(folder: Path) -> Path | None:
    found = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if found is None:
        return None
    try:
        return found if "file_name" in read_table(found) else None  # else a table like any other
    except DataError:
        return found  # whoever lists it says what is wrong


def _split_folders(folder: Path) -> list[tuple[str, Path]]:
    """(split, folder) of the sub-folders named train, val, test and the like, in that order."""
    named = [(split, path) for path in list_folders(folder) if (split := split_of(path.name))]
    return sorted(named, key=lambda item: (("train", "val", "test").index(item[0]), item[1].name))


def list_manifest(path: Path, columns: Columns) -> Listing:
    """The photographs of a manifest, with what it says of them; of its further columns only the trusted one."""
    manifest = Manifest.load(path)
    if manifest.soft_labels is not None:
        raise DataError(
            f"{path}: its soft labels can't be joined with other sources or read again",
            "give this manifest alone to `manihot run`",
        )
    listing = Listing(manifest.root, "a manifest", kind="manifest", classes=manifest.classes, ordered=True)
    table, names = manifest.table, [*manifest.classes, None]
    trusted = [False] * len(table)
    if columns.trusted and columns.trusted in table:
        cells = table[columns.trusted].map(lambda cell: "" if pd.isna(cell) else str(cell).removesuffix(".0"))
        trusted = to_trusted(cells.set_axis(range(1, len(table) + 1)), path)
        listing.used = {"trusted"}
    for row, label, known in zip(table.itertuples(index=False), manifest.labels, trusted):
        source = "" if row.source == COLUMNS["source"][1] else row.source
        listing.entries.append(
            Entry(
                manifest.root / row.path,
                names[label],
                row.split,
                row.image_id,
                source,
                row.group,
                int(row.fold),
                f"{path.name}, photograph {row.image_id}",
                float(row.weight),
                known,
            )
        )
    return listing


def list_imagefolder(folder: Path, columns: Columns, names: ClassNames | None, several: bool = False) -> Listing:
    """Hugging Face's imagefolder: `metadata.csv|jsonl|parquet` with `file_name`, in it or in its splits."""
    asked = columns

    def known(table: Path) -> Columns:
        columns = asked.known_to(table) if several else asked
        return replace(columns, image=columns.image or "file_name")

    top = _metadata(folder)
    if top is not None:
        listing = list_table(top, folder, known(top), names)
        listing.used &= set(asked.named)
        return listing
    joined = Listing(folder, "an imagefolder with metadata", kind="imagefolder", ordered=names is not None)
    classes: set[str] = set()
    for split, place in _split_folders(folder):
        table = _metadata(place)
        if table is None:
            joined.left_out.append(f"{place.name}/ has no metadata; its photographs are left out")
            continue
        part = list_table(table, place, known(table), names, split)
        joined.used |= part.used & set(asked.named)
        joined.entries += [replace(e, where=f"{place.name}/{e.where}") for e in part.entries]
        joined.details += part.details
        joined.notes += part.notes
        joined.left_out += part.left_out
        classes |= set(part.classes)
    joined.classes = names.names if names else tuple(sorted(classes))
    joined.numbers = names.by_name if names else {}
    return joined


def list_class_folders(
    folder: Path, classes: Path | None, out: Path | None, pattern: str | None = None, place: Path | None = None
) -> Listing:
    """Photographs whose folders say what they are, as `pattern` reads them or as their names speak for.

    Class names are the folders' names as they are, sorted. place: what the user named, `folder` or a folder above it;
    the options for other readings are told from there. Raises DataError.
    """
    tree = walk(folder, out)
    if pattern is None:
        tree = _enter(tree)
        above = "".join(f"{part}/" for part in tree.top.relative_to(place or folder).parts)
        pattern = choose_pattern(tree)
        listing = list_by(tree, pattern)
        only = listing.classes[0] if len(listing.classes) == 1 and pattern == "{class}" else None
        if only is not None and says_nothing(only):
            pattern = ""
            listing = list_by(tree, pattern)
            listing.otherwise.append(f"one class {only!r}: --folders '{above}{{class}}'")
        elif only is not None:
            listing.otherwise.append(f"photographs without labels, as {only}/ is the only folder: --folders ''")
        for other, what in other_patterns(tree, pattern):
            listing.otherwise.append(f"{what}: --folders '{above + other if other else other}'")
        pattern = above + pattern if pattern else pattern
    else:
        listing = list_by(tree, pattern)
        if tree.photos and not listing.entries:
            raise DataError(
                f"{folder}: no photograph lies in folders that fit --folders '{pattern}'; the first lies in "
                f"{shown('/'.join(tree.photos[0][0])) or 'no folder'}",
                "write one part for each folder from PHOTOS down",
            )
    listing.pattern = pattern
    if missing := [name for name in listing.classes if is_missing(name)]:
        said = list_names([f"{name}/" for name in missing])
        warn(f"folders {said} count as classes, though their names say that the label is missing; if so, move them")
    if classes is not None:
        given = load_classes(classes)
        unknown = [name for name in listing.classes if name not in given.names]
        if unknown:
            raise DataError(
                f"{listing.base}: folder {unknown[0]!r} is no class of {classes}",
                f"rename the folder to one of {list_names(given.names)}, or correct {classes}",
            )
        listing.classes, listing.ordered, listing.numbers = given.names, True, given.by_name
    return listing


def _enter(tree: Tree) -> Tree:
    """Into a lone folder of folders, as archives unpack, though folders without photographs lie beside it."""
    while tree.photos and all(len(own) > 1 for own, _ in tree.photos):
        first = {own[0] for own, _ in tree.photos}
        if len(first) > 1 or split_of(min(first)):
            break
        tree = replace(tree, top=tree.top / min(first), photos=[(own[1:], path) for own, path in tree.photos], empty=[])
    return tree


def _descend(folder: Path) -> Path:
    """Into a lone folder of folders, as archives unpack: `photos/PlantVillage/rust/1.jpg`."""
    while True:
        folders = list_folders(folder)
        if len(folders) != 1 or split_of(folders[0].name) or list_photos(folder):
            return folder
        below = folders[0]
        beside = _has_table(folder)  # which may be about the photographs below
        if not _has_table(below) and (beside or list_photos(below) or not list_folders(below)):
            return folder
        folder = below


def _has_table(folder: Path) -> bool:
    return any(path.suffix.lower() in TABLE_SUFFIXES for path in list_folder(folder)[1])


def list_photos(folder: Path) -> list[Path]:
    """The photographs in a folder itself."""
    return find_photos(folder, Counter(), deep=False)
