"""Kaggle's cassava folder: train.csv, train_images/ or train_tfrecords/, test_images/, the class map.

Photographs that exist in TFRecords only are written out as files into the run folder, never into the user's.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from manihot.errors import DataError
from manihot.photos.labels import ClassNames, name_labels
from manihot.photos.listing import Entry, Listing, find_photos, list_folder
from manihot.photos.tables import Columns, list_table
from manihot.photos.tfrecord import Record, read_records
from manihot.progress import track
from manihot.records.files import explain_os_error, temporary_name
from manihot.records.tables import read_table

SAMPLE = re.compile(r"sample[ _-]?sub(mission)?\.csv", re.IGNORECASE)
LONGEST_NAME = 200  # bytes; file systems take 255, temporary names are longer
RECORD_SUFFIXES = {".tfrec", ".tfrecord", ".tfrecords"}


def find_records(folder: Path, split: str) -> list[Path]:
    """The TFRecord files of `split`_tfrecords/, sorted."""
    place = folder / f"{split}_tfrecords"
    if not place.is_dir():
        return []
    return [path for path in list_folder(place)[1] if path.suffix.lower() in RECORD_SUFFIXES]


def find_sample(folder: Path) -> Path | None:
    """The sample submission in a folder, however it is written; None without one."""
    return next((path for path in list_folder(folder)[1] if SAMPLE.fullmatch(path.name)), None)


def is_competition(folder: Path) -> bool:
    """Whether a folder that holds no other photographs than test_images/ has a competition's records or table."""
    if find_records(folder, "train"):
        return True
    if find_records(folder, "test"):
        return (folder / "train.csv").is_file() or not find_photos(folder, Counter())
    return (folder / "train.csv").is_file() and (folder / "test_images").is_dir()


def list_competition(
    folder: Path, columns: Columns, names: ClassNames | None, out: Path | None, several: bool = False
) -> Listing:
    """The photographs of a competition's folder; those of test_images/ have split 'test' and no label.

    out: run folder, needed where photographs come from TFRecords. several: other sources may have the columns that
    train.csv lacks. Raises DataError.
    """
    images, table = folder / "train_images", folder / "train.csv"
    if several and table.is_file():
        columns = columns.known_to(table)
    if table.is_file() and images.is_dir() and find_photos(images, Counter()):
        listing = list_table(table, images, columns, names)
        listing.layout = "the Kaggle layout (train.csv, train_images/)"
        _name_unlisted(listing, images)
    elif find_records(folder, "train"):
        listing = _list_from_records(folder, columns, names, out)
    elif table.is_file():
        raise DataError(
            f"{table}: the train photographs are missing: neither train_images/ nor train_tfrecords/ holds any",
            f"unpack them beside it; if they lie elsewhere, give their folder and --csv {table}; for the test "
            f"photographs alone, give {folder / 'test_images'}",
        )
    else:
        listing = Listing(folder, "the Kaggle layout (test_tfrecords/ alone)")
    listing.kind = "kaggle"
    _add_test(listing, folder, out)
    if listing.base == images:
        listing.base = folder
    return listing


def _name_unlisted(listing: Listing, images: Path) -> None:
    named = {entry.file for entry in listing.entries}
    unlisted = [path for path in find_photos(images, Counter()) if path not in named]
    if unlisted:
        what = f"{len(unlisted)} photographs in {images.name}/ that train.csv does not name, first {unlisted[0].name}"
        listing.left_out.append(what)


def _add_test(listing: Listing, folder: Path, out: Path | None) -> None:
    images, records = folder / "test_images", find_records(folder, "test")
    sample = find_sample(folder)
    if images.is_dir() and (photos := find_photos(images, listing.ignored)):
        listing.entries += [Entry(path, None, "test", where="folder test_images") for path in photos]
        if sample is not None:
            there = {name for path in photos for name in (path.name, path.stem, path.relative_to(images).as_posix())}
            where = f"asked for by {sample.name}"
            missing = [name for name in dict.fromkeys(read_table(sample).iloc[:, 0]) if name and name not in there]
            listing.entries += [Entry(images / name, None, "test", where=where) for name in missing]
    elif records:
        found, faults = extract_photos(records, _target(out, records), "test")
        listing.faults += faults
        listing.entries += [Entry(path, None, "test", where=where) for path, _, where in found.values()]
    elif sample is not None:
        listing.notes.append(f"{sample.name} is there without test_images/: no photographs to predict")


def _list_from_records(folder: Path, columns: Columns, names: ClassNames | None, out: Path | None) -> Listing:
    records = find_records(folder, "train")
    target = _target(out, records)
    found, faults = extract_photos(records, target, "train")
    table = folder / "train.csv"
    if table.is_file():
        listing = list_table(table, target / "train", columns, names)
    else:
        listing = Listing(target, "", classes=names.names if names else (), ordered=names is not None)
    listing.base = target
    with_table = "train.csv, " if table.is_file() else ""
    listing.layout = f"the Kaggle layout ({with_table}{len(records)} files in train_tfrecords/)"
    listing.faults = faults
    in_table = {entry.file for entry in listing.entries}
    extra = [item for item in found.values() if item[0] not in in_table]
    if extra:
        named = name_labels([item[1] for item in extra], range(len(extra)), records[0].parent, names, "target")
        where = "are not in train.csv" if table.is_file() else "have no train.csv"
        listing.notes.append(f"{len(extra)} photographs in train_tfrecords/ {where}: their own labels hold")
        listing.entries += [Entry(path, label, where=where) for (path, _, where), label in zip(extra, named.names)]
        if not listing.ordered:
            listing.classes = tuple(sorted({*listing.classes, *named.classes}, key=lambda name: (len(name), name)))
    listing.entries = [
        entry if entry.file.exists() else replace(entry, where=f"{entry.where}; not in train_tfrecords/")
        for entry in listing.entries
    ]
    return listing


def _target(out: Path | None, records: list[Path]) -> Path:
    if out is None:
        raise DataError(
            f"{records[0].parent}: the photographs are in TFRecords and must be written out as files",
            "say where: --out RUN of a command, out= of a function (they go to its folder photos)",
        )
    return out / "photos"


def extract_photos(
    records: list[Path], target: Path, split: str
) -> tuple[dict[str, tuple[Path, str, str]], list[dict[str, str]]]:
    """Write the photographs of TFRecord files to target/split and return what is known of them.

    Features read: `image` and `image_name` (bytes), `target` (int64). Returns ({name: (path, target or '',
    where)}, rows of the quarantine for damaged records). What is already there is not written again.
    """
    found: dict[str, tuple[Path, str, str]] = {}
    faults: list[dict[str, str]] = []
    place = target / split
    try:
        place.mkdir(parents=True, exist_ok=True)
        stream = ((file, record) for file in records for record in read_records(file))
        for file, record in track(stream, "Writing out the photographs of the TFRecords"):
            where = f"{file.name}, record {record.number}"
            if record.fault is not None:
                rest = " and nothing after it can be read" if record.fault.last else ""
                faults.append(_fault(f"{file.name}#{record.number}", f"{record.fault.detail}{rest}"))
                continue
            image = _first(record, "image")
            if not isinstance(image, bytes) or not image:
                faults.append(_fault(f"{file.name}#{record.number}", "it has no feature 'image'"))
                continue
            name = _file_name(_first(record, "image_name"), file, record.number)
            path = place / name
            if name in found:
                if path.read_bytes() != image:
                    detail = f"another photograph named  is in {found[name][2]}"
                    faults.append(_fault(f"{file.name}#{record.number}", detail))
                continue
            _write(path, image)
            found[name] = (path, _label(_first(record, "target")), where)
    except OSError as error:
        raise explain_os_error(error, place) from error
    return found, faults


def _fault(file: str, detail: str) -> dict[str, str]:
    return {
        "file": file,
        "fault": "damaged_record",
        "detail": detail,
        "remedy": "download the TFRecord file again",
        "label": "",
    }


def _first(record: Record, name: str) -> object:
    values = record.features.get(name)
    return values[0] if values else None


def _label(value: object) -> str:
    """The text of a target: whole numbers without a point, bytes as the text that they hold."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value)


def _file_name(value: object, file: Path, number: int) -> str:
    """A plain file name from a record: it must not lead out of the folder, nor hold what Windows forbids."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else ""
    name = re.sub(r'[<>:"|?*\x00-\x1f]', "_", text.replace("\\", "/").rsplit("/", 1)[-1]).strip(". ")
    if len(name.encode("utf-8")) > LONGEST_NAME:
        return f"{file.stem}-{number:06d}.jpg"
    return name or f"{file.stem}-{number:06d}.jpg"


def _write(path: Path, image: bytes) -> None:
    """A file that is whole or absent; flushing each of thousands to disk would take minutes."""
    if path.exists() and path.stat().st_size == len(image) and path.read_bytes() == image:
        return
    temporary = temporary_name(path)
    temporary.write_bytes(image)
    temporary.replace(path)
