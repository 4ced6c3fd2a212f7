"""What a layout says of each photograph before any is opened."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from manihot.errors import DataError
from manihot.photos.decode import SUFFIXES, looks_like_photo
from manihot.photos.faults import PhotoFault
from manihot.photos.left_out import REMOVE, Walk, accepts, accepts_folder, explain_folder, leave_out, may_leave_out
from manihot.records.columns import ALWAYS_TRAIN
from manihot.records.run_places import RunPlaces

SKIPPED_FOLDERS = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One photograph as its layout describes it; `where` says which line or folder did.

    label: class name, None for unlabelled. image_id, source: '' where the layout says nothing. trusted: whether the
    label is known to be right.
    """

    file: Path
    label: str | None = None
    split: str = "train"
    image_id: str = ""
    source: str = ""
    group: str = ""
    fold: int = ALWAYS_TRAIN
    where: str = ""
    weight: float = 1.0
    trusted: bool = False


@dataclass
class Listing:
    """What a place was read as, and the photographs of it.

    base: folder that relative paths start from. layout: what was recognised, in words; kind: the same for programs.
    ordered: whether the order of `classes` was given by the user. numbers: what stands for each class in the user's
    tables, where they say so. ignored: other files, counted by extension. faults: rows of the quarantine that are
    known already. details: lines to say. notes: warnings. left_out: what was seen and is not used, and why. otherwise:
    other plausible readings, each with the option that chooses it. used: options that named a column of it. sample: the
    sample submission beside the photographs. pattern: how the folders were read, as for `--folders`.
    """

    base: Path
    layout: str
    entries: list[Entry] = field(default_factory=list)
    kind: str = "photographs"
    left_out: list[str] = field(default_factory=list)
    otherwise: list[str] = field(default_factory=list)
    sample: Path | None = None
    pattern: str | None = None
    classes: tuple[str, ...] = ()
    ordered: bool = False
    numbers: dict[str, int] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)
    faults: list[dict[str, str]] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)


def normalise(name: str) -> str:
    """Trimmed and in Unicode's composed form: macOS stores é in two characters, others in one."""
    return unicodedata.normalize("NFC", name.strip())


def list_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """(sub-folders, files) of a folder, each sorted by name, without hidden ones and system folders.

    Links are followed, each folder through one of them, and never to one above. Folders of earlier runs (with run.json)
    are left out too, and what `manihot.photos.left_out` says. Raises DataError where a folder that the user named can't
    be read; one below is left out.
    """
    items = _items(folder)
    return _folders(items), [Path(item.path) for item in items if not _is_folder(item)]


def list_folders(folder: Path) -> list[Path]:
    """The sub-folders alone, as `list_folder` gives them; far faster where there are many files beside them."""
    return _folders(_items(folder))


def _items(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            items = sorted((item for item in found if not item.name.startswith(".")), key=lambda item: item.name)
    except OSError as error:
        if may_leave_out(folder):
            leave_out(str(folder), explain_folder(error))
            return []
        raise DataError(f"{folder}: can't be read ({error.strerror})", "check the path and its permissions") from error
    return [item for item in items if accepts(item)]


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:
        return False


def _folders(items: list[os.DirEntry[str]]) -> list[Path]:
    folders = [
        Path(item.path)
        for item in items
        if _is_folder(item) and item.name.lower() not in SKIPPED_FOLDERS and accepts_folder(item)
    ]
    return [path for path in folders if not RunPlaces(path).record_file.exists()]


def drop_second_ways(listing: Listing, walk: Walk) -> None:
    """Take out what lies below a link to a folder whose photographs are read where they lie, too.

    The links are noted in `walk`. What a table names stays.
    """
    links = tuple(link + os.sep for link in walk.followed.values())
    if not links:
        return
    places = {folder: os.path.realpath(folder) for folder in {entry.file.parent for entry in listing.entries}}
    real = [(places[entry.file.parent], entry.file.name) for entry in listing.entries]
    linked = [entry.where.startswith("folder ") and str(entry.file).startswith(links) for entry in listing.entries]
    own = {path for path, below in zip(real, linked) if not below}
    kept = []
    counts: Counter[str] = Counter()
    for entry, path, below in zip(listing.entries, real, linked):
        if below and path in own:
            counts[next(link for link in links if str(entry.file).startswith(link))] += 1
        else:
            kept.append(entry)
    for link, count in counts.items():
        walk.faults = {path: fault for path, fault in walk.faults.items() if not path.startswith(link)}
        detail = f"it is a link to a folder that is read where it lies; {count} photographs count once"
        walk.faults[link.rstrip(os.sep)] = PhotoFault("link_loop", detail, REMOVE)
    if counts and not listing.ordered:
        there = {entry.label for entry in kept}
        listing.classes = tuple(name for name in listing.classes if name in there)
    listing.entries = kept


def choose_few(kinds: Sequence[Hashable], few: int) -> list[int]:
    """Places of about `few` of the things whose kinds are given: of each kind alike, two at least, spread evenly."""
    places: dict[Hashable, list[int]] = {}
    for at, kind in enumerate(kinds):
        places.setdefault(kind, []).append(at)
    share = max(2, few // max(1, len(places)))
    chosen = []
    for own in places.values():
        n = min(share, len(own))
        chosen += [own[(2 * k + 1) * len(own) // (2 * n)] for k in range(n)]
    return sorted(chosen)


def find_photos(folder: Path, ignored: Counter[str], skip: Path | None = None, deep: bool = True) -> list[Path]:
    """Photographs in a folder (and, if `deep`, below it), sorted; other files are counted in `ignored`.

    A photograph is a file with an image's extension, in capitals or not, or one without extension that begins
    as an image does. skip: a folder to leave out.
    """
    folders, files = list_folder(folder)
    photos = []
    for path in files:
        suffix = path.suffix.lower()
        if suffix in SUFFIXES or (not suffix and looks_like_photo(path)):
            photos.append(path)
        elif path.name.lower() not in ("thumbs.db", "desktop.ini"):
            ignored[suffix or "no extension"] += 1
    if deep:
        for path in folders:
            if path != skip:
                photos += find_photos(path, ignored, skip)
    return photos
