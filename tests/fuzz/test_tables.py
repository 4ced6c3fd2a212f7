"""Tables, class maps, submissions and folders of every kind: a manifest, or one ManihotError that names the place."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import time
import warnings
from pathlib import Path

import pandas as pd
import pytest
from damage import damage_bytes
from PIL import Image

from manihot.errors import DataError, ManihotError, SettingsError
from manihot.photos.labels import load_classes
from manihot.photos.scan import scan
from manihot.records.submissions import check_submission
from manihot.settings.options import TableOptions

INPUTS = 80  # mutated tables of each kind
TREES = 80  # drawn trees of folders
LONGEST = 5.0  # seconds for one

ROWS = [
    ("a.jpg", "rust", "0", "P1", "train"),
    ("b.jpg", "scab", "1", "P2", "val"),
    ("c.jpg", "rust", "", "P1", "test"),
    ("d.jpg", "mite spot", "2", "P3", "train"),
]
HEADER = ("image", "label", "fold", "group", "split")
CELLS = (
    "",
    " ",
    "nan",
    "None",
    "N/A",
    "-1",
    "0",
    "1e5",
    "9" * 400,
    "9" * 5000,
    str(2**70),
    "x" * 300,
    "x" * 140_000,
    '"',
    '""',
    '"a',
    'a"b',
    ",",
    ";",
    "\t",
    "\n",
    "\r",
    "\0",
    "\u2028",
    "\ufeff",
    "é",
    "\ud83d",
    "../../etc/passwd",
    "/etc/passwd",
    "C:\\x\\a.jpg",
    "a.jpg",
    "b.jpg",
    "=1+1",
    "@x",
    "{image}",
    "*",
    "%s",
    "\x1b[31m",
    "true",
    "1.0",
    "007",
    "\u0663",
    "rust|scab",
    "rust, scab",
    "Rust",
    "." * 40,
    "a/" * 200 + "a.jpg",
    "con",
    "label",
    "image",
)


def as_csv(rows: list[list[str]], separator: str = ",") -> bytes:
    return "\n".join(separator.join(row) for row in rows).encode("utf-8", "surrogatepass") + b"\n"


def as_quoted(rows: list[list[str]]) -> bytes:
    return "\r\n".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows).encode(
        "utf-8", "surrogatepass"
    )


def as_lines(rows: list[list[str]]) -> bytes:
    header, *body = rows
    return "\n".join(json.dumps(dict(zip(header, row))) for row in body).encode()


def as_parquet(rows: list[list[str]]) -> bytes:
    header, *body = [[cell.encode("utf-8", "replace").decode() for cell in row] for row in rows]
    width = len(header)
    frame = pd.DataFrame([[*row, *[""] * width][:width] for row in body], columns=[*map(str, range(width))])
    frame.columns = header
    frame = frame.loc[:, ~frame.columns.duplicated()]
    out = io.BytesIO()
    frame.to_parquet(out, index=False)
    return out.getvalue()


KINDS = {
    "t.csv": as_csv,
    "s.csv": lambda rows: as_csv(rows, ";"),
    "t.tsv": lambda rows: as_csv(rows, "\t"),
    "q.csv": as_quoted,
    "t.jsonl": as_lines,
    "t.parquet": as_parquet,
}


def mutate(rows: list[list[str]], rng: random.Random) -> list[list[str]]:
    """Odd cells, rows and columns: one to four changes."""
    rows = [list(row) for row in rows]
    for _ in range(rng.choice((1, 1, 2, 4))):
        way = rng.randrange(9)
        row = rng.randrange(len(rows))
        column = rng.randrange(max(1, len(rows[row])))
        if way < 4 and rows[row]:
            rows[row][min(column, len(rows[row]) - 1)] = rng.choice(CELLS)
        elif way == 4:
            rows[row].append(rng.choice(CELLS))
        elif way == 5 and rows[row]:
            rows[row].pop()
        elif way == 6:
            rows.insert(row, list(rng.choice(rows)))
        elif way == 7 and len(rows) > 1:
            del rows[row]
        else:
            for own in rows:
                own[:] = own[:column] + own[column + 1 :]
    return rows


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for k, row in enumerate(ROWS):
        Image.new("RGB", (8, 8), (60 * k, 90, 120)).save(folder / row[0])
    return folder


def attempt(what: str, work) -> bool:
    """Do `work`; whether it ended well. AssertionError for anything but a ManihotError with a remedy, in time."""
    clock = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            work()
        return True
    except (DataError, SettingsError) as error:
        assert error.remedy, f"{what}: {error}"
        str(error).encode("utf-8")
        assert len(str(error)) < 6000, f"{what}: {len(str(error))} characters"
        return False
    except ManihotError as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    finally:
        assert time.monotonic() - clock < LONGEST, what


OPTIONS = (
    TableOptions(),
    TableOptions(keep_na=True),
    TableOptions(allow_missing=True),
    TableOptions(merge_case=True),
    TableOptions(image="{image}"),
    TableOptions(image="*/{image}", label="label", id="fold"),
    TableOptions(group="{group}*", split=""),
    TableOptions(label="", fold="", group=""),
    TableOptions(trusted="fold"),
)


@pytest.mark.parametrize("name", KINDS)
def test_tables(name: str, photos: Path, fuzz_inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = photos / name, 0
    monkeypatch.setattr("manihot.photos.scan.track", lambda items, *_, **__: items)
    whole = [list(HEADER), *map(list, ROWS)]
    path.write_bytes(KINDS[name](whole))
    assert len(scan(path, workers=1)[0]) == 4
    for number in range(fuzz_inputs or INPUTS):
        rng = random.Random(f"{name} {number}")
        data = KINDS[name](mutate(whole, rng))
        data = damage_bytes(data, rng) if rng.random() < 0.3 else data
        data = data.decode("utf-8", "replace").encode("utf-16") if rng.random() < 0.05 else data
        path.write_bytes(data)
        options = rng.choice(OPTIONS)
        read += attempt(f"{name}, input {number}", lambda options=options: scan(path, columns=options, workers=1))
    path.unlink()
    assert 0.05 < read / (fuzz_inputs or INPUTS) < 0.95  # the mutations are neither harmless nor hopeless


NAMES = (
    "train",
    "Train",
    "TRAIN",
    "training",
    "val",
    "valid",
    "test",
    "test_images",
    "images",
    "a",
    "b",
    "A",
    "rust",
    "Rust",
    "leaf spot",
    "leaf_spot",
    "none",
    "nan",
    "1",
    "2",
    "007",
    "é",
    "e\u0301",
    "=x",
    "@x",
    "{class}",
    "*",
    ".hidden",
    "__MACOSX",
    "x" * 200,
    "con",
    "labels",
    "new\nline",
    "\x1b[31m",
    "train.csv",
    "metadata.csv",
    "0.jpg",
)
PATTERNS = (
    None,
    None,
    None,
    "",
    "{class}",
    "{split}/{class}",
    "{class}/{class}",
    "{source}/{class}",
    "{class}/{group}",
    "*/{class}",
    "{class}/{split}",
    "train/{class}",
    "{klass}",
    "{class}*",
    "//",
    "{split}/{split}",
    "{class}/" * 50,
)
TABLES = (
    "image,label\n",
    "image,label\n0.jpg,x\n1.jpg,y\n",
    "image_id,label\n0,x\n1,y\n2,x\n",
    "a,b\n1\n",
    "\0",
    "",
    "file_name,label\n0.jpg,rust\n",
    "image_id,a,b\n0.jpg,0,1\n",
    "day,rain\n1,2\n",
)


def grow(home: Path, photo: bytes, rng: random.Random) -> None:
    """A drawn tree: up to four levels of odd names, photographs, other files, links, tables."""
    places = [home]
    for _ in range(rng.randrange(1, 9)):
        place = rng.choice(places) / rng.choice(NAMES)
        if not place.exists() and len(place.relative_to(home).parts) < 5:
            place.mkdir()
            places.append(place)
    number = 0
    for place in places:
        for _ in range(rng.choice((0, 1, 2, 5))):
            file = place / f"{number}.{rng.choice(('jpg', 'jpg', 'JPG', 'png', 'txt', ''))}".rstrip(".")
            if not file.is_dir():
                file.write_bytes(photo)
            number += 1
    for _ in range(rng.choice((0, 0, 1, 2))):
        name = rng.choice(("labels.csv", "train.csv", "metadata.csv", "sample_submission.csv", "x.jsonl", "y.parquet"))
        if not (place := rng.choice(places) / name).is_dir():
            place.write_bytes(rng.choice(TABLES).encode())
    if os.name != "nt":
        for _ in range(rng.choice((0, 0, 1, 2))):
            link = rng.choice(places) / rng.choice(("link.jpg", "loop", "gone"))
            if not link.is_symlink():
                link.symlink_to(rng.choice([*places, home / "nowhere", link]))
        if rng.random() < 0.1:
            os.mkfifo(rng.choice(places) / "pipe.jpg") if not list(home.rglob("pipe.jpg")) else None
        if rng.random() < 0.1:
            odd = rng.choice(places) / os.fsdecode(b"caf\xe9")
            if not os.path.lexists(odd):
                odd.mkdir()
                (odd / "1.jpg").write_bytes(photo)


def test_folders(tmp_path: Path, photos: Path, fuzz_inputs: int) -> None:
    photo, read, count = (photos / "a.jpg").read_bytes(), 0, fuzz_inputs or TREES
    for number in range(count):
        rng = random.Random(f"tree {number}")
        home = tmp_path / "home"
        home.mkdir()
        grow(home, photo, rng)
        options = TableOptions(folders=rng.choice(PATTERNS), merge_case=rng.random() < 0.2)
        out = tmp_path / "run" if rng.random() < 0.3 else None
        read += attempt(
            f"tree {number}, {options.folders}",
            lambda h=home, o=options, out=out: scan(h, columns=o, out=out, workers=1),
        )
        shutil.rmtree(home)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
    assert 0.3 < read / count < 0.98


def test_class_maps(tmp_path: Path, fuzz_inputs: int) -> None:
    path, whole = tmp_path / "map.json", b'{"0": "blight", "1": "streak", "2": "mottle"}'
    for number in range(4 * (fuzz_inputs or INPUTS)):
        rng = random.Random(f"map {number}")
        data = (
            damage_bytes(whole, rng)
            if rng.random() < 0.7
            else json.dumps(
                rng.choice(
                    (
                        CELLS,
                        {cell: k for k, cell in enumerate(rng.sample(CELLS, 3))},
                        {str(k): rng.choice(CELLS) for k in range(3)},
                        [[1]],
                        {"0": None},
                        {"0": True},
                        1e999,
                    )
                )
            ).encode()
        )
        path.write_bytes(data)
        attempt(f"map {number}", lambda: load_classes(path))


def test_submissions(tmp_path: Path, fuzz_inputs: int) -> None:
    whole = [["image_id", "label"], *([f"{k}.jpg", str(k % 3)] for k in range(5))]
    file, sample = tmp_path / "s.csv", tmp_path / "sample.csv"
    for number in range(2 * (fuzz_inputs or INPUTS)):
        rng = random.Random(f"submission {number}")
        for path in (file, sample):
            data = as_csv(mutate(whole, rng) if rng.random() < 0.6 else whole)
            path.write_bytes(damage_bytes(data, rng) if rng.random() < 0.2 else data)
        attempt(f"submission {number}", lambda: check_submission(file, sample))
