"""Tables that lie beside photographs: what they say against what the folders say, and no silent choice between them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from manihot.errors import DataError
from manihot.photos.folders import FILLERS, split_of
from manihot.photos.image_paths import IN_BRACES, Files, fill, guess_image_column
from manihot.photos.kaggle import SAMPLE
from manihot.photos.labels import ClassNames
from manihot.photos.listing import Entry, Listing, list_folder, list_folders, normalise
from manihot.photos.tables import Columns, label_column, list_table
from manihot.records.tables import TABLE_SUFFIXES, list_names, read_table, shown

OWN = re.compile(r"(.*[._])?(quarantine|classes|submission|decisions|predictions)([._].*)?", re.IGNORECASE)
NAMES_THEM = 0.5  # share of a table's rows, or of the photographs, from which it is about them
GUESSED = 0.9  # share of a column's cells that must be photographs where its name does not say so
NOTHING = {"part", "batch", "chunk", "dcim", "canon", "apple", "camera", "upload", "uploads", "new", "all", "img"}
UNREAD = {".json", ".txt", ".xml", ".yaml", ".yml"}
TRIED = 200  # names of photographs searched for in a file of another kind
LARGEST = 200 << 20  # bytes of a table that is opened without being named


@dataclass(frozen=True)
class Evidence:
    """A table with labels that names photographs below a folder: by which pattern, and how many."""

    table: Path
    frame: pd.DataFrame
    pattern: str
    label: str
    found: list[str]
    top: Path

    def command(self) -> str:
        """What a user writes to choose this table."""
        label = "" if self.label.lower() == "label" else f" --label '{self.label}'"
        alone = re.fullmatch(r"\{([^{}]+)\}", self.pattern)
        table = f"give {self.table}" if self.table.parent == self.top else f"add --csv {self.table}"
        return f"{table} --image '{alone[1] if alone else self.pattern}'{label}"


def weigh_tables(listing: Listing, top: Path, columns: Columns, names: ClassNames | None, out: Path | None) -> Listing:
    """The listing of folders, or that of a table beside them, whichever the evidence is for.

    Raises DataError, with the options for both readings, where folders and table contradict each other.
    """
    listing.left_out += _unread(top, listing)
    apart = _tables_apart(top, listing)
    tables = [*_tables_of(top), *apart]
    if not tables or not listing.entries:
        return listing
    files = Files(top, out)
    labelled = []
    for table in tables:
        found = examine(table, files, columns, listing.classes)
        if isinstance(found, Evidence):
            if table not in apart or len(listing.classes) < 2 or _disagreement(listing, found, top) is not None:
                labelled.append(found)
        else:
            listing.left_out.append(found)
    if not labelled:
        return listing
    if len(labelled) > 1:
        raise DataError(
            f"{top}: {list_names([found.table.name for found in labelled])} each name its photographs with a label",
            f"choose: {'; or '.join(found.command() for found in labelled)}{_or_folders(listing)}",
        )
    best = labelled[0]
    if columns.named:
        return _use(best, listing, top, files, columns, names)
    torn = _disagreement(listing, best, top)
    if len(listing.classes) > 1 and torn is None:
        listing.details.append(f"{best.table.name} says the same as the folders of {len(best.found)} photographs")
        listing.otherwise.append(f"its {len(best.found)} photographs alone: {best.command()}")
        return listing
    if len(listing.classes) > 1:
        raise DataError(
            f"{top}: {best.table.name} names {len(best.found)} of {len(files.paths)} photographs, but the folders "
            f"{list_names([f'{name}/' for name in listing.classes], 6)} could be their classes too; {torn}",
            f"for the table {best.command()}{_or_folders(listing)}",
        )
    if len(best.found) < NAMES_THEM * len(files.paths):
        raise DataError(
            f"{top}: {best.table.name} names {len(best.found)} of {len(files.paths)} photographs only",
            f"for these alone {best.command()}{_or_folders(listing)}",
        )
    return _use(best, listing, top, files, columns, names)


def _or_folders(listing: Listing) -> str:
    if not listing.classes:
        return "; for all photographs, without labels, --folders ''"
    return f"; for the folders as classes --folders '{listing.pattern}'"


def _tables_of(top: Path) -> list[Path]:
    return [
        path
        for path in list_folder(top)[1]
        if path.suffix.lower() in TABLE_SUFFIXES
        and not OWN.fullmatch(path.stem)
        and not SAMPLE.fullmatch(path.name)
        and path.stat().st_size <= LARGEST
    ]


def _unread(top: Path, listing: Listing) -> list[str]:
    """Files of other kinds beside the photographs that name most of them, in words."""
    names = sorted({entry.file.name for entry in listing.entries})
    some = [name.encode() for name in names[:: max(1, len(names) // TRIED)]]
    said = []
    for path in list_folder(top)[1]:
        if path.suffix.lower() in UNREAD and path.is_file() and path.stat().st_size <= LARGEST and some:
            content = path.read_bytes()
            if sum(name in content for name in some) > NAMES_THEM * len(some):
                said.append(
                    f"{path.name} names photographs here, but only tables are read "
                    f"({', '.join(sorted(TABLE_SUFFIXES))}): if it holds their labels, write them as a table "
                    "image,label and give it with --csv"
                )
    return said


def _tables_apart(top: Path, listing: Listing) -> list[Path]:
    """Tables in folders below `top` that hold none of the photographs, such as annotations/."""
    used = {e.file.relative_to(top).parts[0] for e in listing.entries if e.file.is_relative_to(top)}
    return [table for folder in list_folders(top) if folder.name not in used for table in _tables_of(folder)]


def says_nothing(folder: str) -> bool:
    """Whether a folder's name is a word for photographs or a number, such as images, part_2 or DCIM, and no class."""
    words = [word for word in re.split(r"[\W_\d]+", folder.lower()) if word]
    return all(word in FILLERS | NOTHING for word in words)


def examine(table: Path, files: Files, columns: Columns, classes: Sequence[str] = ()) -> Evidence | str:
    """What a table says of the photographs, or why it is left aside, in words.

    classes: those of the folders. Raises DataError where they say nothing and the table's class column isn't obvious.
    """
    try:
        frame = read_table(table)
    except DataError as error:
        return f"{table.name} is not used: {error.what.removeprefix(str(table)).lstrip(':, ')}"
    if "c0" in frame or "predicted" in frame:
        return f"{table.name} is not used: it holds predictions"
    image = columns.image or guess_image_column(frame)
    likely = [name for name in frame if _names_files(frame[name], files)]
    tried = [image] if image is not None and image in frame else likely
    if columns.image and "{" in columns.image:
        best = [(columns.image, files.count(columns.image, frame))]
    else:
        best = [found for name in tried for found in files.propose(frame[name], frame, name)[:1]]
    pattern, count = max(best, key=lambda item: item[1], default=("", 0))
    if not count or count < NAMES_THEM * min(len(frame), len(files.paths)):
        some = f" {count} of" if count else " none of"
        return f"{table.name} is not used: it names{some} the photographs here"
    used = set(IN_BRACES.findall(pattern)[-1:])
    try:
        label = label_column(frame, table, columns.label, used)
    except DataError as error:
        if classes and all(map(says_nothing, classes)):
            others = list_names([f"--label '{name}'" for name in frame.columns if name not in used], 4)
            raise DataError(
                f"{table}: names {count} of {len(files.paths)} photographs, which lie in "
                f"{list_names([f'{name}/' for name in classes], 4)}; which column is the class is not obvious",
                f"add the column: {others}; for the folders as classes --folders '{{class}}'",
            ) from error
        return f"{table.name} is not used: {error.what.removeprefix(str(table)).lstrip(':, ')} ({error.remedy})"
    if label is None:
        return f"{table.name} is not used: it names photographs without a label"
    found = [paths[0] if len(paths) == 1 else "" for paths in files.find(fill(pattern, frame))]
    once = sorted({path for path in found if path})
    return Evidence(table, frame.assign(**{"\0file": found}), pattern, label, once, files.folder)


def _names_files(column: pd.Series, files: Files) -> bool:
    cells = column[column != ""]
    return len(cells) > 0 and cells.map(lambda cell: cell.rsplit("/", 1)[-1] in files.by_name).mean() >= GUESSED


def _disagreement(listing: Listing, evidence: Evidence, top: Path) -> str | None:
    """How the table's labels differ from the folders', in words; None where both make the same classes.

    The same under other names, such as numbers, is no difference; names that other folders have are no other names.
    """
    by_folder = {entry.file: entry.label for entry in listing.entries}
    pairs = [
        (path, normalise(label), by_folder.get(top / path))
        for path, label in zip(evidence.frame["\0file"], evidence.frame[evidence.label])
        if path and label
    ]
    kinds = {(label, folder) for _, label, folder in pairs}
    crossed = any(label != folder and label in listing.classes for label, folder in kinds)
    labels, folders = {label for label, _ in kinds}, {folder for _, folder in kinds if folder is not None}
    if not crossed and len(labels) == len(folders) == len(kinds):
        return None
    differ = [pair for pair in pairs if pair[1] != pair[2]]
    path, label, folder = differ[0]
    return (
        f"they differ for {len(differ)} of them, first {shown(path)}: {shown(label)!r} in the table, "
        f"{'no class' if folder is None else repr(shown(folder))} by its folder"
    )


def _use(
    best: Evidence, listing: Listing, top: Path, files: Files, columns: Columns, names: ClassNames | None
) -> Listing:
    """The photographs of the table, and those of a test folder beside them."""
    found = list_table(best.table, top, replace(columns, image=best.pattern, label=best.label), names)
    found.used &= set(columns.named)
    found.layout = f"photographs with the table {best.table.name} beside them"
    named = {entry.file for entry in found.entries}
    rest = [entry for entry in listing.entries if entry.file not in named]
    tested = [e for e in rest if any(split_of(part) == "test" for part in e.file.relative_to(top).parts[:-1])]
    found.entries += [Entry(e.file, None, "test", where=e.where) for e in tested]
    if tested:
        found.details.append(f"{len(tested)} photographs of a test folder, which {best.table.name} does not name")
    if left := len(rest) - len(tested):
        where = Counter(e.file.parent.relative_to(top).as_posix() for e in rest if e not in tested)
        places = list_names([f"{place}/" for place in where], 4)
        found.left_out.append(f"{left} photographs that {best.table.name} does not name, in {places}")
    if listing.classes:
        found.otherwise.append(f"the folders as classes ({list_names(listing.classes)}): --folders '{listing.pattern}'")
    else:
        found.otherwise.append("all photographs, without labels: --folders ''")
    found.left_out = [*listing.left_out, *found.left_out]
    found.ignored = listing.ignored - Counter([best.table.suffix.lower()])  # which is used
    return found
