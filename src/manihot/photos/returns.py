"""What a phone hands back, returns.zip: photographs, the answers they got, and people's corrections.

A source like any other: a correction is the label, photographs of one plant belong together, the answers are kept as a
table beside the photographs. The zip comes from strangers' phones. Nothing of it is trusted: names, sizes, ratios and
digests are checked, and an entry that fails goes to the quarantine alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, Field, FiniteFloat, NonNegativeFloat, ValidationError, model_validator

from manihot.errors import DataError
from manihot.photos.listing import Entry, Listing
from manihot.records.csv_files import save_csv
from manihot.records.files import digest_file, explain_os_error, temporary_name
from manihot.records.readers import parse_json

INDEX = "returns.json"
NAME = re.compile(r"photos/([A-Za-z0-9_-][A-Za-z0-9._-]{0,120})")
MOST_PHOTOS = 10_000
MOST_PHOTO = 64 << 20  # bytes of a photograph
MOST_INDEX = 64 << 20  # bytes of returns.json
MOST_TOTAL = 4 << 30  # bytes of all photographs
MOST_RATIO = 100  # how much larger than its packed bytes an entry may be: photographs hardly shrink
CHUNK = 1 << 20
SEND_AGAIN = "hand out returns.zip from the phone again"

Text = Annotated[str, Field(max_length=1000)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]


class Correction(BaseModel):
    """What a person says the photograph shows; label '' where they can't tell, or it is none of the classes.

    when: None where the person doesn't want times handed out.
    """

    label: Text
    who: Text = ""
    when: datetime | None = None


class Spot(BaseModel):
    """Where a photograph was taken. accuracy: in metres."""

    latitude: Annotated[FiniteFloat, Field(ge=-90, le=90)]
    longitude: Annotated[FiniteFloat, Field(ge=-180, le=180)]
    accuracy: NonNegativeFloat | None = None


class Returned(BaseModel):
    """One photograph. taken: None where the person doesn't want times handed out."""

    file: Text
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    taken: datetime | None = None
    plant: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
    probabilities: list[Share]
    held: list[Text] | None = None
    answer: Text
    faults: list[Text] = []
    strangeness: FiniteFloat | None = None
    correction: Correction | None = None
    place: Spot | None = None


class Model(BaseModel):
    """Which model answered."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Returns(BaseModel):
    """returns.json; the photographs are checked one by one."""

    format: Literal["manihot-returns"]
    version: Literal[1]
    made: datetime
    model: Model
    classes: Annotated[list[Text], Field(min_length=1, max_length=10_000)]
    photographs: Annotated[list[Any], Field(max_length=MOST_PHOTOS)]

    @model_validator(mode="after")
    def _once(self) -> Returns:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("a class appears twice")
        return self


class Broken(Exception):
    """Why an entry is not taken: a kind of fault and its detail."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


def is_returns(place: Path) -> bool:
    """Whether a place is what a phone hands back, by its name."""
    return place.suffix.lower() == ".zip" and place.is_file()


def list_returns(place: Path, out: Path | None) -> Listing:
    """Read a returns.zip, and write its photographs to OUT/photos/DIGEST, with `returns.csv` of the answers.

    Entries that are broken or not what they say are rows of the quarantine. Raises DataError where the zip can't be
    read at all, is none of a phone's, or `out` is missing.
    """
    if out is None:
        raise DataError(
            f"{place}: its photographs must be written out as files",
            "say where: --out RUN of a command, out= of a function (they go to its folder photos)",
        )
    try:
        target = out / "photos" / f"{place.stem}-{digest_file(place)[:12]}"
        with zipfile.ZipFile(place) as archive:
            returns = _read_index(archive, place)
            target.mkdir(parents=True, exist_ok=True)
            return _list(archive, returns, place, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise DataError(f"{place}: no readable zip ({error})", f"it may have been cut off: {SEND_AGAIN}") from error
    except OSError as error:
        raise explain_os_error(error, place) from error


def _read_index(archive: zipfile.ZipFile, place: Path) -> Returns:
    try:
        text = b"".join(_unpack(archive, _entry(archive, INDEX), MOST_INDEX))
        return Returns.model_validate(parse_json(text))
    except Broken as broken:
        raise DataError(f"{place}: {INDEX}: {broken.detail}", SEND_AGAIN) from broken
    except (ValidationError, ValueError, RecursionError) as error:
        where = ""
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise DataError(f"{place}: {INDEX} is not of a phone page ({where or error})", SEND_AGAIN) from error


def _entry(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    found = [one for one in archive.infolist() if one.filename == name]
    if len(found) != 1:
        raise Broken("missing", "it is not in the zip" if not found else f"{len(found)} entries have that name")
    return found[0]


def _unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int) -> Iterator[bytes]:
    """An entry's bytes in pieces; Broken for what is encrypted, damaged, or larger than `most` or than it may be."""
    if entry.flag_bits & 1:
        raise Broken("unsupported", "it is encrypted")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Broken("unsupported", f"it is packed in way {entry.compress_type}, neither stored nor deflated")
    allowed = min(most, MOST_RATIO * max(entry.compress_size, 1000))
    if entry.file_size > allowed:
        raise Broken("too_large", f"{entry.file_size:,} bytes from {entry.compress_size:,}; at most {allowed:,}")
    try:
        with archive.open(entry) as file:
            seen = 0
            while piece := file.read(CHUNK):
                seen += len(piece)
                if seen > allowed:
                    raise Broken("too_large", f"more than {allowed:,} bytes")
                yield piece
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise Broken("damaged", f"it can't be unpacked ({error})") from error


def _list(archive: zipfile.ZipFile, returns: Returns, place: Path, target: Path) -> Listing:
    listing = Listing(target, f"what a phone handed back ({place.name})", kind="returns")
    listing.classes, total, rows = tuple(returns.classes), 0, []
    seen: set[str] = set()
    for number, values in enumerate(returns.photographs):
        where = f"{place.name}, photograph {number}"
        try:
            one = _check(values, returns)
            if one.file in seen:
                raise Broken("damaged", f"{one.file} appears twice in {INDEX}")
            seen.add(one.file)
            entry = _entry(archive, one.file)
            total += entry.file_size
            if total > MOST_TOTAL:
                raise Broken("too_large", f"the photographs take more than {MOST_TOTAL:,} bytes together")
            path = target / one.file.removeprefix("photos/")
            _write(archive, entry, one, path)
        except Broken as broken:
            listing.faults.append(_row(place, values, number, broken))
            continue
        label = one.correction.label if one.correction is not None else ""
        group = f"{place.stem}/{one.plant}"
        listing.entries.append(Entry(path, label or None, group=group, where=where))
        rows.append(_answer(one, path.name, returns))
    listing.faults += _unknown(archive, place, seen)
    save_csv(pd.DataFrame(rows, columns=list(COLUMNS)), target / "returns.csv")
    corrected = sum(entry.label is not None for entry in listing.entries)
    listing.details.append(f"{len(listing.entries)} photographs with answers, {corrected} with a person's label")
    return listing


def _check(values: Any, returns: Returns) -> Returned:
    try:
        one = Returned.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise Broken("damaged", f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if not NAME.fullmatch(one.file):
        raise Broken("bad_name", f"{one.file[:80]!r} is no plain name below photos/")
    if len(one.probabilities) != len(returns.classes):
        raise Broken("damaged", f"{len(one.probabilities)} probabilities for {len(returns.classes)} classes")
    named = [*(one.held or []), *([one.correction.label] if one.correction and one.correction.label else [])]
    other = [name for name in named if name not in returns.classes]
    if other:
        raise Broken("damaged", f"it names the class {other[0][:80]!r}, which is not the model's")
    return one


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, one: Returned, path: Path) -> None:
    """The photograph as a file, whole or absent; Broken where its bytes are not those that were answered."""
    if path.is_file() and digest_file(path) == one.sha256:
        return
    digest, temporary = hashlib.sha256(), temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            for piece in _unpack(archive, entry, MOST_PHOTO):
                digest.update(piece)
                file.write(piece)
        if digest.hexdigest() != one.sha256:
            raise Broken("changed", "its bytes are not those that the phone answered (another sha256)")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _row(place: Path, values: Any, number: int, broken: Broken) -> dict[str, str]:
    name = values.get("file") if isinstance(values, dict) else None
    shown = json.dumps(name)[1:81] if isinstance(name, str) else str(number)
    return {
        "file": f"{place.name}#{shown}",
        "fault": broken.kind,
        "detail": broken.detail,
        "remedy": SEND_AGAIN,
        "label": "",
    }


def _unknown(archive: zipfile.ZipFile, place: Path, seen: set[str]) -> list[dict[str, str]]:
    """Rows for what the zip holds and nobody speaks of."""
    left = [one.filename for one in archive.infolist() if one.filename not in seen and one.filename != INDEX]
    broken = Broken("bad_name", f"{INDEX} does not speak of it, or refuses it")
    return [_row(place, {"file": name}, 0, broken) for name in sorted(set(left))[:MOST_PHOTOS]]


COLUMNS = (
    *("file", "sha256", "taken", "plant", "answer", "held", "faults", "strangeness", "probabilities"),
    *("correction", "who", "when", "latitude", "longitude", "accuracy", "model"),
)


def _answer(one: Returned, name: str, returns: Returns) -> dict[str, Any]:
    """A row of returns.csv. probabilities: `class=p`, by falling p."""
    order = sorted(range(len(returns.classes)), key=lambda k: -one.probabilities[k])
    said, spot = one.correction, one.place
    return {
        "file": name,
        "sha256": one.sha256,
        "taken": _moment(one.taken),
        "plant": one.plant,
        "answer": one.answer,
        "held": ", ".join(one.held or []),
        "faults": ", ".join(one.faults),
        "strangeness": one.strangeness,
        "probabilities": "; ".join(f"{returns.classes[k]}={one.probabilities[k]:.6f}" for k in order),
        "correction": None if said is None else said.label,
        "who": "" if said is None else said.who,
        "when": "" if said is None else _moment(said.when),
        "latitude": None if spot is None else spot.latitude,
        "longitude": None if spot is None else spot.longitude,
        "accuracy": None if spot is None else spot.accuracy,
        "model": returns.model.sha256,
    }


def _moment(when: datetime | None) -> str:
    return "" if when is None else when.isoformat()
