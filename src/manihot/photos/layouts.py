"""How photographs lie on a disk: class folders, imagefolder metadata, Kaggle's cassava folder, a table.

Each `list_*` function turns one place into a Listing; `recognise` chooses among them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd

from manihot.errors import DataError
from manihot.photos.decode import SUFFIXES
from manihot.photos.kaggle import find_records, is_competition, list_competition
from manihot.photos.listing import Entry, Listing, find_photos, list_folder, list_folders, normalise
from manihot.photos.tables import (
    SPLITS,
    TABLE_SUFFIXES,
    ClassNames,
    Columns,
    list_table,
    load_classes,
    to_trusted,
)
from manihot.records.manifest import COLUMNS, Manifest

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CLASS_MAPS = ("label_num_to_disease_map.json",)


def recognise(
    place: Path, columns: Columns, csv: Path | None, classes: Path | None, out: Path | None, several: bool = False
) -> Listing:
    """List the photographs of one place.

    place: a folder, a manifest, a run folder that holds one, or a table whose image paths start at its own folder.
    csv: a table whose image paths start at `place`. classes: names of integer labels. out: run folder, never searched
    for photographs. several: there are other places, which may have the columns that a fixed layout lacks.
    Raises DataError.
    """
    manifest = Manifest.find(place) if csv is None else None
    if manifest is not None:
        return list_manifest(manifest, columns)
    if place.is_file() and place.suffix.lower() in SUFFIXES:
        return Listing(place.parent, "a photograph", [Entry(place)])
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
    if (place / "train.csv").is_file() and (
        (place / "train_images").is_dir() or find_records(place, "train")
    ):
        return list_competition(place, columns, _names(place, classes), out, several)
    if _metadata(place) or any(_metadata(path) for path in _split_folders(place).values()):
        return list_imagefolder(place, columns, _names(place, classes), several)
    if is_competition(place):
        return list_competition(place, columns, _names(place, classes), out, several)
    return list_class_folders(place, classes, out)


def _names(folder: Path, classes: Path | None) -> ClassNames | None:
    if classes is not None:
        return load_classes(classes)
    return next((load_classes(folder / name) for name in CLASS_MAPS if (folder / name).is_file()), None)


def _metadata(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def _split_folders(folder: Path) -> dict[str, Path]:
    """Sub-folders named train, val, test and the like, by name, in that order."""
    order = list(SPLITS)
    named = {path.name.lower(): path for path in list_folders(folder) if path.name.lower() in SPLITS}
    return {name: named[name] for name in sorted(named, key=order.index)}


def list_manifest(path: Path, columns: Columns) -> Listing:
    """The photographs of a manifest, with what it says of them; of its further columns only the trusted one."""
    manifest = Manifest.load(path)
    if manifest.soft_labels is not None:
        raise DataError(
            f"{path}: its soft labels can't be joined with other sources or read anew",
            "give this manifest alone to `manihot run`",
        )
    listing = Listing(manifest.root, "a manifest", classes=manifest.classes, ordered=True)
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
                manifest.root / row.path, names[label], row.split, row.image_id, source, row.group, int(row.fold),
                f"{path.name}, photograph {row.image_id}", float(row.weight), known,
            )
        )  # fmt: skip
    return listing


def list_imagefolder(
    folder: Path, columns: Columns, names: ClassNames | None, several: bool = False
) -> Listing:
    """Hugging Face's imagefolder: `metadata.csv|jsonl|parquet` with `file_name`, in it or in its splits."""
    asked = columns

    def known(table: Path) -> Columns:
        columns = asked.known_to(table) if several else asked
        return replace(columns, image=columns.image or "file_name")

    top = _metadata(folder)
    if top is not None:
        listing = list_table(top, folder, known(top), names)
        listing.used &= {option for option, name in vars(asked).items() if name}
        return listing
    joined = Listing(folder, "an imagefolder with metadata", ordered=names is not None)
    classes: set[str] = set()
    for name, place in _split_folders(folder).items():
        table = _metadata(place)
        if table is None:
            joined.notes.append(f"{place.name}/ has no metadata; its photographs are left out")
            continue
        part = list_table(table, place, known(table), names, SPLITS[name])
        joined.used |= part.used & {option for option, name in vars(asked).items() if name}
        joined.entries += [replace(e, where=f"{place.name}/{e.where}") for e in part.entries]
        joined.details += part.details
        joined.notes += part.notes
        classes |= set(part.classes)
    joined.classes = names.names if names else tuple(sorted(classes))
    joined.numbers = names.by_name if names else {}
    return joined


def list_class_folders(folder: Path, classes: Path | None, out: Path | None) -> Listing:
    """One folder a class, with or without train, val and test above; photographs beside them are unlabelled.

    Class names are the folders' names as they are, sorted.
    """
    top = _descend(folder)
    listing = Listing(top, "class folders")
    splits = _split_folders(top)
    if (splits and "train" in {SPLITS[name] for name in splits}) or _only_splits(top, splits):
        listing.layout = f"class folders in {', '.join(f'{path.name}/' for path in splits.values())}"
        for name, place in splits.items():
            _list_classes(listing, place, SPLITS[name], out)
        for other in list_folders(top):
            if other not in splits.values() and other != out and find_photos(other, Counter()):
                listing.notes.append(f"{other.name}/ stands beside the splits and is left out")
    else:
        _list_classes(listing, top, "train", out)
    found = sorted({entry.label for entry in listing.entries if entry.label is not None})
    listing.classes = tuple(found)
    if not found and listing.entries:
        listing.layout = "photographs without labels"
        tables = [path.name for path in list_folder(top)[1] if path.suffix.lower() in TABLE_SUFFIXES]
        if tables:
            listing.notes.append(
                f"the table {tables[0]} is not used; to use its labels scan {top / tables[0]}"
            )
    if classes is not None:
        given = load_classes(classes)
        unknown = [name for name in found if name not in given.names]
        if unknown:
            raise DataError(
                f"{top}: folder {unknown[0]!r} is no class of {classes}",
                f"rename the folder to one of {', '.join(given.names)}, or correct {classes}",
            )
        listing.classes, listing.ordered, listing.numbers = given.names, True, given.by_name
    return listing


def _descend(folder: Path) -> Path:
    """Into a lone folder of folders, as archives unpack: `photos/PlantVillage/rust/1.jpg`."""
    while True:
        folders = list_folders(folder)
        if (
            len(folders) != 1
            or folders[0].name.lower() in SPLITS
            or find_photos(folder, Counter(), deep=False)
        ):
            return folder
        if find_photos(folders[0], Counter(), deep=False) or not list_folders(folders[0]):
            return folder
        folder = folders[0]


def _only_splits(folder: Path, splits: dict[str, Path]) -> bool:
    return bool(splits) and set(list_folders(folder)) == set(splits.values())


def _list_classes(listing: Listing, place: Path, split: str, out: Path | None) -> None:
    """Add the photographs of one split: in folders with the folder's name as label, loose ones without."""
    known = {entry.label for entry in listing.entries if entry.label is not None}
    loose = find_photos(place, listing.ignored, deep=False)
    named: list[Entry] = []
    for folder in list_folders(place):
        if folder == out:
            continue
        photos = find_photos(folder, listing.ignored, out)
        label, where = normalise(folder.name), f"folder {folder.relative_to(listing.base).as_posix()}"
        named += [Entry(path, label, split, where=where) for path in photos]
        if not photos:
            listing.notes.append(f"{folder.name}/ holds no photograph and is no class")
    if split == "test" and known and named and not known & {entry.label for entry in named}:
        folders = ", ".join(sorted({f"{entry.label}/" for entry in named}))
        listing.notes.append(
            f"{place.name}/ holds no class of the training photographs ({folders}): taken as unlabelled"
        )
        named = [replace(entry, label=None) for entry in named]
    elif loose and named:
        listing.notes.append(f"{len(loose)} photographs in {place.name}/ lie in no class folder: unlabelled")
    listing.entries += [Entry(path, None, split, where=f"folder {place.name}") for path in loose] + named
