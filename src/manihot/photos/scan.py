"""Scan: from folders and tables of photographs to a Manifest and a quarantine.

Every photograph is decoded in full once; what can't be read is listed with its fault and a remedy, and the
rest goes on. The result depends on the files alone: not on the number of processes, nor on the order in which
the file system names them.
"""

from __future__ import annotations

import errno
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from manihot.errors import DataError
from manihot.photos.aliases import apply_aliases, check_aliases, load_aliases, say_matches
from manihot.photos.decode import SUFFIXES, PhotoFacts, PhotoFault, inspect_photos
from manihot.photos.layouts import recognise
from manihot.photos.left_out import Walk, check_names, note_left_out, show_path
from manihot.photos.listing import Entry, Listing, choose_few, drop_second_ways
from manihot.photos.tables import Columns
from manihot.photos.workers import ENOUGH_FOR_PROCESSES, run_tasks
from manihot.progress import say, track, warn
from manihot.records.columns import COLUMNS, UNLABELLED
from manihot.records.csv_files import save_csv
from manihot.records.files import explain_os_error, write_atomic
from manihot.records.groups import check_groups, with_name_groups
from manihot.records.manifest import Manifest
from manihot.records.quarantine import COLUMNS as QUARANTINE
from manihot.records.run_places import MANIFEST, SAMPLE, RunPlaces
from manihot.records.tables import list_names
from manihot.settings.options import EVERYTHING_GUESSED, TableOptions

TASK = 16  # files a task: few, so that Ctrl-C is answered soon


def scan(
    photos: Path | Sequence[Path],
    *,
    out: Path | None = None,
    columns: TableOptions = EVERYTHING_GUESSED,
    workers: int = 2,
    few: int = 0,
    extract: Path | None = None,
    tables: bool = True,
    aliases: Mapping[str, str] | None = None,
) -> tuple[Manifest, pd.DataFrame]:
    """Find, read and list photographs; returns the manifest and the quarantine.

    The quarantine has the columns file, fault, detail, remedy, label, split and image_id, the id that the photograph
    would have in the manifest; '' for what is not known.

    photos: a folder (class folders, imagefolder metadata, Kaggle's layout), a table, a manifest, a run folder (its
    manifest), or several of them. With several, a column that Kaggle's or imagefolder's layout lacks is another's.
    columns: the table, what its columns say, and what folders and labels mean. Where its `group` is a pattern of file
    names such as '{group}_*', photographs whose names agree in that part belong together. out: run folder;
    manifest.parquet and quarantine.csv are written there, and photographs that come in TFRecords. workers: processes;
    the result does not depend on it. tables: whether a table beside the photographs may name their classes.
    few: read about so many photographs only, of each class, source and split alike; all of them when 0.
    extract: where photographs that come in TFRecords are written without `out`, in its folder photos.
    aliases: other names of classes that a recipe knows, to the class that another source has.
    Raises DataError where there is nothing to read or the labels contradict themselves.
    """
    places = [_absolute(Path(photos))] if isinstance(photos, (str, Path)) else [_absolute(Path(p)) for p in photos]
    if not places:
        raise DataError("no photographs were given", "name a folder or a table")
    if columns.csv is not None and len(places) > 1:
        raise DataError("a table given with --csv belongs to one folder", "give each source as its own table")
    run = None if out is None else _absolute(Path(out))
    if run is not None and any(part.is_file() for part in (run, *run.parents)):  # before hours of reading
        raise explain_os_error(NotADirectoryError(errno.ENOTDIR, "not a folder"), run)
    aside = None if extract is None else _absolute(Path(extract))
    table = None if columns.csv is None else _absolute(Path(columns.csv))
    group, trusted = columns.group, columns.trusted
    pattern = group if group is not None and "{group}" in group else None
    column = None if pattern or columns.bursts else group
    asked = Columns(
        columns.image,
        columns.label,
        columns.source,
        column,
        columns.fold,
        columns.split,
        columns.id,
        trusted,
        columns.keep_na,
        columns.allow_missing,
    )
    if trusted in COLUMNS:
        raise DataError(f"--trusted {trusted}: a manifest has a column of that name", "give yours another name")
    several = len(places) > 1
    check_names([*places, *(path for path in (run, table) if path is not None)])
    with note_left_out(places) as walk:
        listings = [
            recognise(place, asked, table, columns.classes, run or aside, several, columns.folders, tables)
            for place in places
        ]
    for part in listings:
        drop_second_ways(part, walk)
    given = {} if columns.alias is None else load_aliases(columns.alias)
    matched = apply_aliases(places, listings, given, check_aliases(aliases or {}, "the recipe's aliases"))
    if columns.merge_case:
        _merge_twins(listings)
    _check_options(places, listings, asked)
    _say_listings(places, listings)
    say_matches(matched)
    names = _source_names(places) if len(places) > 1 else [""]
    entries = [
        replace(entry, source=entry.source or name) for name, part in zip(names, listings) for entry in part.entries
    ]
    if not entries and not walk.faults and not any(part.faults for part in listings):
        raise _nothing_found(places, listings)
    entries = _drop_repeated(entries)
    if few:
        entries = [entries[at] for at in choose_few([(e.split, e.label, e.source) for e in entries], few)]
    root = _common_root([part.base for part in listings])
    class_names = _unite_classes(listings)
    ids = _unique_ids(entries, root)
    facts = _inspect([entry.file for entry in entries], workers)
    manifest = _to_manifest(entries, ids, facts, class_names, root, _unite_numbers(listings, class_names), trusted)
    manifest = manifest if pattern is None or not len(manifest) else with_name_groups(manifest, pattern)
    returned = group is None and all(part.kind == "returns" for part in listings)
    if (warning := check_groups(manifest, f"--group {group}" if group else "the groups", not returned)) is not None:
        warn(warning)
    quarantine = _to_quarantine(entries, ids, facts, listings, root, walk)
    _say_result(manifest, quarantine)
    if run is not None:
        save_csv(quarantine, RunPlaces(run).quarantine)
        manifest.save(RunPlaces(run).manifest)
        _keep_sample(listings, run)
    if not len(manifest):
        at = f"see {RunPlaces(run).quarantine}" if run else f"the first is {quarantine.iloc[0]['file']}"
        first = quarantine.iloc[0]
        raise DataError(
            f"{', '.join(map(str, places))}: none of the {len(quarantine)} photographs can be read: {first['detail']}",
            f"{first['remedy']}; {at}",
        )
    return manifest, quarantine


def _keep_sample(listings: list[Listing], run: Path) -> None:
    """A copy of the one sample submission beside the photographs, for the run's own submission."""
    samples = [part.sample for part in listings if part.sample is not None]
    if len(samples) == 1:
        write_atomic(run / SAMPLE, samples[0].read_bytes())
    else:
        (run / SAMPLE).unlink(missing_ok=True)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100  links stay as the user wrote them


def _check_options(places: list[Path], listings: list[Listing], columns: Columns) -> None:
    """Columns without a table, and numbers beside names, are mistakes that would pass unseen."""
    used = {name for part in listings for name in part.used}
    unused = [f"--{name}" for name in columns.named if name not in used]
    if unused:
        where = next((k for k, part in enumerate(listings) if not part.used), 0)
        aside = "".join(f"; {line}" for line in listings[where].left_out if " is not used: " in line)
        raise DataError(
            f"{', '.join(unused)} names a column, but {places[where]} was read as {listings[where].layout}"
            + (", and no other source has such a column" if len(places) > 1 else "")
            + aside,
            "give the table itself, or --csv TABLE; or leave the option out",
        )
    numbers = {place: all(map(str.isdecimal, part.classes)) for place, part in zip(places, listings) if part.classes}
    if len(set(numbers.values())) > 1:
        first = next(place for place, whole in numbers.items() if whole)
        raise DataError(
            f"{first}: its classes are numbers while those of other sources are names",
            "say what the numbers mean with --classes MAP.json, or which class each name is with --alias FILE",
        )


def _source_names(places: list[Path]) -> list[str]:
    """Each source's name: its folder's or its table's stem, with more of the path where two are alike."""
    if all(place.suffix.lower() in SUFFIXES and place.is_file() for place in places):
        return [""] * len(places)
    places = [place.parent if place.name == MANIFEST else place for place in places]
    names = [place.stem if place.is_file() else place.name for place in places]
    parts = 2
    while len(set(names)) < len(names) and parts <= max(len(place.parts) for place in places):
        twice = {name for name, count in Counter(names).items() if count > 1}
        names = ["/".join(place.parts[-parts:]) if name in twice else name for name, place in zip(names, places)]
        parts += 1
    if len(set(names)) < len(names):
        raise DataError(f"{places[0]}: the same place is given twice", "give each folder once")
    return names


def _drop_repeated(entries: list[Entry]) -> list[Entry]:
    """Each file once. Two lines that say the same of it are one; two labels for it are a DataError."""
    seen: dict[str, Entry] = {}
    repeated = 0
    for entry in entries:
        key = os.path.normcase(os.path.normpath(entry.file))
        first = seen.setdefault(key, entry)
        if first is entry:
            continue
        if (first.label, first.split) != (entry.label, entry.split):
            said = [f"{e.label or 'no label'} in split {e.split} ({e.where})" for e in (first, entry)]
            raise DataError(
                f"{entry.file}: listed twice, as {said[0]} and as {said[1]}", "keep one line per photograph"
            )
        repeated += 1
    if repeated:
        warn(f"{repeated} lines repeat a photograph that was listed before; each counts once")
    return list(seen.values())


def _common_root(bases: list[Path]) -> Path:
    """The folder above all sources; the first source where they share nothing but the disk."""
    try:
        common = Path(os.path.commonpath(bases))
    except ValueError:  # two drives of Windows
        return bases[0]
    return bases[0] if common == Path(common.anchor) else common


def _unite_classes(listings: list[Listing]) -> tuple[str, ...]:
    """Classes of all sources by name: the user's order where given, the rest sorted, numbers as numbers."""
    ordered = [name for part in listings if part.ordered for name in part.classes]
    rest = {name for part in listings if not part.ordered for name in part.classes} - set(ordered)
    whole = all(name.isdecimal() for name in rest)
    united = [*dict.fromkeys(ordered), *sorted(rest, key=int if whole else str)]
    counts = Counter(entry.label for part in listings for entry in part.entries)
    for group in _twins(united):
        names = " and ".join(f"{name!r} ({counts[name]})" for name in group)
        warn(
            f"classes {names} differ in capitals, spaces or hyphens only and count as {len(group)}; "
            "if they are one: --merge-case"
        )
    return tuple(united)


def _twins(names: Sequence[str]) -> list[list[str]]:
    """Names that differ in capitals, spaces, hyphens, underscores or the way an accent is encoded only."""
    groups: dict[str, list[str]] = {}
    for name in names:
        folded = unicodedata.normalize("NFKC", name).casefold()
        groups.setdefault(re.sub(r"[\s_-]+", "", folded) or folded, []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _merge_twins(listings: list[Listing]) -> None:
    """One name for classes that differ in capitals, spaces or hyphens only: the commonest, else the first."""
    counts = Counter(entry.label for part in listings for entry in part.entries if entry.label is not None)
    names = sorted({name for part in listings for name in part.classes})
    one: dict[str, str] = {}
    for group in _twins(names):
        best = max(group, key=lambda name: (counts[name], -names.index(name)))
        say(f"{' and '.join(map(repr, group))} are one class, {best!r}")
        one |= dict.fromkeys(group, best)
    for part in listings:
        if part.numbers and any(name in one for name in part.classes):
            raise DataError(
                "--merge-case: the class map gives names that differ in capitals only numbers of their own",
                "correct the map, or leave the option out",
            )
        part.classes = tuple(dict.fromkeys(one.get(name, name) for name in part.classes))
        part.entries = [
            entry if entry.label not in one else replace(entry, label=one[entry.label]) for entry in part.entries
        ]


def _unite_numbers(listings: list[Listing], classes: tuple[str, ...]) -> tuple[int, ...] | None:
    """The user's number of each class; None where classes go by their names, or not all are numbered alike."""
    numbers: dict[str, int] = {}
    for part in listings:
        for name, number in part.numbers.items():
            if numbers.setdefault(name, number) != number:
                warn(f"class {name!r} has the numbers {numbers[name]} and {number}; submissions hold names")
                return None
    found = tuple(numbers.get(name, -1) for name in classes)
    if not numbers:
        return None
    if -1 in found or len(set(found)) < len(found):
        warn("the classes of all sources have no numbers of their own; submissions hold names")
        return None
    return found


def _unique_ids(entries: list[Entry], root: Path) -> list[str]:
    """The user's ids, else file names, with more of the path or the source where two are alike."""
    given: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        if entry.image_id and (first := given.setdefault((entry.source, entry.image_id), entry)) is not entry:
            raise DataError(
                f"image id {entry.image_id!r} appears twice: {first.where} and {entry.where}",
                "give each photograph its own id, or leave the id column out",
            )
    ids = [entry.image_id or entry.file.name for entry in entries]
    ways: tuple[Callable[[Entry], str], ...] = (
        lambda entry: f"{entry.source}/{entry.image_id or entry.file.name}" if entry.source else "",
        lambda entry: _relative(entry.file, root),
    )
    for longer in ways:
        count = Counter(ids)
        tried = [longer(entry) or own if count[own] > 1 else own for entry, own in zip(entries, ids)]
        counted = Counter(tried)
        ids = [new if counted[new] == 1 else own for new, own in zip(tried, ids)]
    return ids


def _relative(file: Path, root: Path) -> str:
    """Path from the root with '/', or absolute where the file lies elsewhere."""
    try:
        return file.relative_to(root).as_posix()
    except ValueError:
        return file.as_posix()


def _inspect(files: list[Path], workers: int) -> list[PhotoFacts | PhotoFault]:
    chunks = [files[k : k + TASK] for k in range(0, len(files), TASK)]
    if sum(map(_size, files)) < ENOUGH_FOR_PROCESSES:
        workers = 1
    results = run_tasks(inspect_photos, chunks, workers, lambda chunk: str(chunk[0]))
    return list(track((fact for part in results for fact in part), "Reading photographs", total=len(files)))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _to_manifest(
    entries: list[Entry],
    ids: list[str],
    facts: list[PhotoFacts | PhotoFault],
    classes: tuple[str, ...],
    root: Path,
    numbers: tuple[int, ...] | None,
    trusted: str | None = None,
) -> Manifest:
    index = {name: k for k, name in enumerate(classes)}
    rows = [
        {
            "image_id": image_id,
            "path": _relative(entry.file, root),
            "label": UNLABELLED if entry.label is None else index[entry.label],
            "source": entry.source or "main",
            "group": entry.group,
            "split": entry.split,
            "fold": entry.fold,
            "weight": entry.weight,
            **({trusted: entry.trusted} if trusted else {}),
            "sha256": fact.sha256,
            "height": fact.height,
            "width": fact.width,
            "bytes": fact.bytes,
        }
        for entry, image_id, fact in zip(entries, ids, facts)
        if isinstance(fact, PhotoFacts)
    ]
    columns = [
        "image_id",
        "path",
        "label",
        "source",
        "group",
        "split",
        "fold",
        "weight",
        "sha256",
        "height",
        "width",
        "bytes",
        *([trusted] if trusted else []),
    ]
    return Manifest.from_table(pd.DataFrame(rows, columns=columns), classes, root, numbers)


def _to_quarantine(
    entries: list[Entry],
    ids: list[str],
    facts: list[PhotoFacts | PhotoFault],
    listings: list[Listing],
    root: Path,
    walk: Walk,
) -> pd.DataFrame:
    rows = [{name: row.get(name, "") for name in QUARANTINE} for part in listings for row in part.faults]
    for path, fault in walk.faults.items():
        shown_path = show_path(_relative(Path(path), root))
        rows.append(dict(zip(QUARANTINE, (shown_path, fault.kind, fault.detail, fault.remedy, "", "", ""))))
    for entry, image_id, fact in zip(entries, ids, facts):
        if isinstance(fact, PhotoFault):
            file = _relative(entry.file, root)
            listed = fact.kind == "missing" or ", line " in entry.where
            detail = f"{fact.detail} ({entry.where})" if listed else fact.detail
            known = (file, fact.kind, detail, fact.remedy, entry.label or "", entry.split, image_id)
            rows.append(dict(zip(QUARANTINE, known)))
    return pd.DataFrame(rows, columns=list(QUARANTINE), dtype=object)


def _nothing_found(places: list[Path], listings: list[Listing]) -> DataError:
    ignored = sum((part.ignored for part in listings), Counter())
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in ignored.most_common(5))
    beside = f" (other files there: {kinds})" if kinds else ""
    return DataError(
        f"{', '.join(map(str, places))}: no photographs found{beside}",
        "give a folder with .jpg or .png files, one folder per class, or a table of them",
    )


def _say_listings(places: list[Path], listings: list[Listing]) -> None:
    """What each place was read as, what was left out, and what it could be otherwise."""
    for place, part in zip(places, listings):
        at = "" if part.base in (place, place.parent) else f" (in {part.base})"
        say(f"{place}: {part.layout}{at}, {len(part.entries)} photographs")
        if part.classes:
            say(f"  {len(part.classes)} class{'es' * (len(part.classes) > 1)}: {list_names(part.classes, 10)}")
        for line in part.details:
            say(f"  {line}")
        if part.ignored:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in part.ignored.most_common(8))
            say(f"  ignored files that are not photographs: {kinds}")
        for line in part.left_out:
            say(f"  left out: {line}")
        for line in part.otherwise:
            say(f"  another reading: {line}")
        for note in part.notes:
            warn(note)


def _say_result(manifest: Manifest, quarantine: pd.DataFrame) -> None:
    if len(quarantine):
        kinds = ", ".join(f"{count} {kind}" for kind, count in quarantine["fault"].value_counts().items())
        warn(f"{len(quarantine)} files can't be read and are left out: {kinds} (see the quarantine)")
    unlabelled = int((manifest.labels == UNLABELLED)[manifest.table["split"] != "test"].sum())
    if unlabelled and manifest.classes:
        warn(f"{unlabelled} photographs have no label; they are kept, but not learned from")
    for name, count in zip(manifest.classes, manifest.class_counts()):
        if count == 0:
            warn(f"class {name!r} has no readable photograph")
