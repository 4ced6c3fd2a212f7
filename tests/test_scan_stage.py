"""The stage that scans in a run: what it is done again for, and what it is not."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pandas as pd
import pytest

from manihot.errors import DataError, WeightsError
from manihot.photos import scan as scan_module
from manihot.pipeline import job
from manihot.pipeline.scanning import scan_stage
from manihot.records.manifest import Manifest
from manihot.records.quarantine import load_quarantine
from manihot.records.run_folder import RunFolder
from manihot.settings.options import TableOptions
from test_scan import photo, table


def scanned(photos: Path | list[Path], out: Path, **options: object) -> Manifest:
    with RunFolder(out) as folder:
        return scan_stage(folder, photos, 1, TableOptions(**options))


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """How many photographs each scan that was really done has read."""
    read: list[int] = []
    inspect = scan_module._inspect

    def count(files: list[Path], workers: int):
        read.append(len(files))
        return inspect(files, workers)

    monkeypatch.setattr(scan_module, "_inspect", count)
    return read


def test_a_changed_table_or_class_map_elsewhere_is_read_again(tmp_path: Path, reads: list[int]) -> None:
    for name in ("a", "b"):
        photo(tmp_path / f"photos/{name}.jpg")
    csv = table(tmp_path / "tables/t.csv", "image,label\na.jpg,0\nb.jpg,1\n")
    classes = table(tmp_path / "maps/classes.json", '{"0": "rust", "1": "spot"}')
    options = {"csv": csv, "classes": classes}
    assert scanned(tmp_path / "photos", tmp_path / "run", **options).classes == ("rust", "spot")
    scanned(tmp_path / "photos", tmp_path / "run", **options)
    assert reads == [2]
    table(classes, '{"0": "rust", "1": "mould"}')
    assert scanned(tmp_path / "photos", tmp_path / "run", **options).classes == ("rust", "mould")
    table(csv, "image,label\na.jpg,1\nb.jpg,1\n")
    assert list(scanned(tmp_path / "photos", tmp_path / "run", **options).labels) == [1, 1]
    assert reads == [2, 2, 2]


def test_a_changed_class_map_beside_the_table_is_read_again(tmp_path: Path) -> None:
    photo(tmp_path / "photos/a.jpg")
    csv = table(tmp_path / "tables/t.csv", "image,label\na.jpg,0\n")
    for name in ("rust", "spot"):
        table(tmp_path / "tables/label_num_to_disease_map.json", f'{{"0": "{name}"}}')
        assert scanned(tmp_path / "photos", tmp_path / "run", csv=csv).classes == (name,)


def test_a_link_to_nowhere_is_quarantined(tmp_path: Path) -> None:
    for name in ("a/1", "b/2"):
        photo(tmp_path / f"photos/train/{name}.jpg")
    for name in ("link.jpg", "link"):
        (tmp_path / "photos/train/a" / name).symlink_to("/nowhere")
    assert len(scanned(tmp_path / "photos", tmp_path / "run")) == 2
    assert list(pd.read_csv(tmp_path / "run/quarantine.csv")["file"]) == ["train/a/link.jpg"]


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8 can be made on Linux only")
def test_names_that_are_no_utf_8_are_quarantined_by_a_run(tmp_path: Path) -> None:
    photo(tmp_path / "photos/rust/a.jpg")
    photo(tmp_path / "photos/rust/b.jpg").rename(tmp_path / "photos/rust" / os.fsdecode(b"caf\xe9.jpg"))
    photo(tmp_path / "photos/spot/c.jpg").parent.rename(tmp_path / "photos" / os.fsdecode(b"f\xff"))
    assert len(scanned(tmp_path / "photos", tmp_path / "run")) == 1
    found = load_quarantine(tmp_path / "run/quarantine.csv")
    assert dict(zip(found["file"], found["fault"])) == {"f\\xff": "bad_name", "rust/caf\\xe9.jpg": "bad_name"}


def test_a_run_beside_a_table_is_no_reason_to_read_again(tmp_path: Path, reads: list[int]) -> None:
    photo(tmp_path / "a.jpg")
    csv = table(tmp_path / "t.csv", "image,label\na.jpg,x\n")
    scanned(csv, tmp_path / "run")
    table(tmp_path / "other/run.json", "{}")
    scanned(csv, tmp_path / "run")
    assert reads == [1]


def test_weights_are_asked_for_once_and_before_the_scan(tmp_path: Path, monkeypatch) -> None:
    from manihot import pipeline
    from manihot.pipeline import opening

    asked: list[tuple[str, bool | str]] = []

    def refuse(name: str, wanted: bool | str) -> None:
        asked.append((name, wanted))
        if wanted is True:
            raise WeightsError("no route to the hub")

    monkeypatch.setattr(opening, "check_weights", refuse)
    monkeypatch.setattr(job, "scan_stage", lambda *_: pytest.fail("scanned without weights"))
    sets = ["model.backbone=resnet18", "model.pretrained=true"]
    with pytest.raises(WeightsError, match="no route"):
        pipeline.run(tmp_path, tmp_path / "run", "quick", overrides=sets)
    monkeypatch.setattr(job, "scan_stage", lambda *_: (_ for _ in ()).throw(DataError("scanned")))
    sets[1] = "model.pretrained=false"
    for _ in range(2):
        with pytest.raises(DataError, match="scanned"):
            pipeline.run(tmp_path, tmp_path / "run", "quick", overrides=sets, update=True)
    assert asked == [("resnet18", True), ("resnet18", False)]


def test_a_trusted_column_is_asked_for_before_any_training(tmp_path: Path, monkeypatch) -> None:
    from manihot import pipeline

    photo(tmp_path / "in/a.jpg")
    csv = table(tmp_path / "in/t.csv", "image,label,checked\na.jpg,x,yes\n")
    monkeypatch.setattr(job, "group_duplicates", lambda *_: pytest.fail("went on without the column"))
    with pytest.raises(DataError, match="no column 'right'"):
        pipeline.run(csv, tmp_path / "run", "quick", what_if=True, columns=TableOptions(trusted="right"))
    manifest = scanned(csv, tmp_path / "scanned", trusted="checked")
    assert list(manifest.table["checked"]) == [True]
    with pytest.raises(DataError, match="no column 'right'"):
        given, right = tmp_path / "scanned/manifest.parquet", TableOptions(trusted="right")
        pipeline.run(given, tmp_path / "other", "quick", what_if=True, columns=right)
    assert not (tmp_path / "other").exists()


def test_a_run_folder_gives_its_manifest(tmp_path: Path, reads: list[int]) -> None:
    photo(tmp_path / "in/a/1.jpg")
    first = scanned(tmp_path / "in", tmp_path / "first")
    photo(tmp_path / "first/audit/thumbnail.jpg")
    assert scanned(tmp_path / "first", tmp_path / "second").table.equals(first.table) and reads == [1]
    photo(tmp_path / "more/b/2.jpg")
    several = [tmp_path / "first", tmp_path / "more"]
    assert len(scanned(several, tmp_path / "third")) == 2
    scanned(several, tmp_path / "third")
    assert reads == [1, 2]
