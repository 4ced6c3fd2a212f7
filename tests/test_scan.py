"""Scanning: every layout, every table, and a clear word for whatever is wrong with them."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import manihot
from conftest import shared_data
from manihot.errors import DataError, ManihotError, RunFolderError
from manihot.photos import scan as scan_module
from manihot.photos.labels import load_classes
from manihot.photos.scan import scan
from manihot.photos.tfrecord import crc32c, parse_example, read_records
from manihot.photos.workers import run_tasks
from manihot.records.manifest import Manifest
from manihot.records.quarantine import COLUMNS
from manihot.settings.options import TableOptions

MAP = {"0": "blight", "1": "streak", "2": "mottle"}


def photo(path: Path, seed: int | None = None, size: tuple[int, int] = (20, 14)) -> Path:
    """A small photograph of its own colour; the extension decides the format."""
    rng = random.Random(str(path) if seed is None else seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = tuple(rng.randrange(256) for _ in range(3))
    kind = "PNG" if path.suffix.lower() == ".png" else "JPEG"
    Image.new("RGB", size, colour).save(path, kind)
    return path


def labels_of(manifest: Manifest) -> dict[str, str | None]:
    names = [*manifest.classes, None]
    return {i: names[k] for i, k in zip(manifest.image_id, manifest.labels)}


def table(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def warned(capsys: pytest.CaptureFixture[str], *words: str) -> bool:
    said = capsys.readouterr().err
    return all(word in said for word in words)


# ---------------------------------------------------------------------------------------- class folders


def test_class_folders(tmp_path: Path, capsys) -> None:
    home = tmp_path / "my photos"
    for name in ("2_rust/b.JPG", "2_rust/deep/a.jpg", "1_health/é ü.png", "10_x/c.jpeg", "1_health/noext"):
        photo(home / name)
    table(home / "2_rust/notes.txt", "hello")
    for junk in (".hidden.jpg", "Thumbs.db", ".DS_Store"):
        table(home / "1_health" / junk, "x")
    table(home / "README", "no picture")
    (home / "empty").mkdir()
    manifest, quarantine = scan(home, out=tmp_path / "run")
    assert manifest.classes == ("10_x", "1_health", "2_rust")
    assert labels_of(manifest) == {
        "c.jpeg": "10_x",
        "é ü.png": "1_health",
        "noext": "1_health",
        "b.JPG": "2_rust",
        "a.jpg": "2_rust",
    }
    row = manifest.table.set_index("image_id").loc["a.jpg"]
    assert (row["path"], row["height"], row["width"]) == ("2_rust/deep/a.jpg", 14, 20)
    assert row["bytes"] == (home / "2_rust/deep/a.jpg").stat().st_size and len(row["sha256"]) == 64
    assert manifest.root == home and set(manifest.table["split"]) == {"train"}
    assert len(quarantine) == 0 and tuple(quarantine) == COLUMNS
    assert warned(capsys, "1 .txt", "1 no extension", "empty/ holds no photograph")
    again = Manifest.load(tmp_path / "run/manifest.parquet")
    pd.testing.assert_frame_equal(again.table, manifest.table)
    assert again.classes == manifest.classes and again.root == home
    assert len(pd.read_csv(tmp_path / "run/quarantine.csv")) == 0


def test_splits_above_classes(tmp_path: Path, capsys) -> None:
    for name in ("train/a/1.jpg", "train/b/2.jpg", "Validation/a/1.jpg", "test/t1.jpg", "test/t2.jpg", "extra/x.jpg"):
        photo(tmp_path / name)
    manifest, _ = scan(tmp_path)
    assert manifest.classes == ("a", "b")
    found = {row.path: (row.split, row.label, row.image_id) for row in manifest.table.itertuples()}
    assert found == {
        "train/a/1.jpg": ("train", 0, "train/a/1.jpg"),  # two are called 1.jpg
        "train/b/2.jpg": ("train", 1, "2.jpg"),
        "Validation/a/1.jpg": ("val", 0, "Validation/a/1.jpg"),
        "test/t1.jpg": ("test", -1, "t1.jpg"),
        "test/t2.jpg": ("test", -1, "t2.jpg"),
    }
    assert warned(capsys, "extra/ is beside the splits")


def test_a_test_folder_with_one_dummy_folder_is_unlabelled(tmp_path: Path) -> None:
    for name in ("train/a/1.jpg", "train/b/2.jpg", "test/images/3.jpg"):
        photo(tmp_path / name)
    manifest, _ = scan(tmp_path)
    assert manifest.classes == ("a", "b") and labels_of(manifest)["3.jpg"] is None


def test_flat_folder_and_single_files_are_unlabelled(tmp_path: Path) -> None:
    a, b = photo(tmp_path / "in/a.jpg"), photo(tmp_path / "in/b.jpg")
    for place in (tmp_path / "in", [a, b]):
        manifest, _ = scan(place)
        assert list(manifest.image_id) == ["a.jpg", "b.jpg"] and set(manifest.labels) == {-1}
        assert manifest.classes == () and manifest.root == tmp_path / "in"


def test_archive_folder_is_entered_and_runs_and_loops_left_out(tmp_path: Path) -> None:
    home = tmp_path / "photos"
    photo(home / "Village/a/1.jpg"), photo(home / "Village/b/2.jpg")
    (home / "Village/b/up").symlink_to(home / "Village")
    (home / "Village/a/3.jpg").symlink_to(photo(tmp_path / "elsewhere/x.jpg"))
    photo(home / "Village/old run/audit/thumb.jpg")
    table(home / "Village/old run/run.json", "{}")
    out = home / "Village/new"
    photo(out / "photos/train/y.jpg")
    manifest, _ = scan(home, out=out)
    assert list(manifest.table["path"]) == ["a/1.jpg", "a/3.jpg", "b/2.jpg"]


def test_result_depends_on_neither_processes_nor_order(tmp_path: Path, monkeypatch) -> None:
    names = [f"{k % 3}/{k}.jpg" for k in range(40)]
    random.Random(1).shuffle(names)
    for name in names:
        photo(tmp_path / "in" / name)
    (tmp_path / "in/1/1.jpg").write_bytes(b"")
    one, bad = scan(tmp_path / "in", workers=1)
    monkeypatch.setattr(scan_module, "ENOUGH_FOR_PROCESSES", 0)
    monkeypatch.setattr(os, "scandir", shuffled(os.scandir))
    two, bad2 = scan(tmp_path / "in", workers=2)
    pd.testing.assert_frame_equal(one.table, two.table)
    pd.testing.assert_frame_equal(bad, bad2)
    assert len(one) == 39 and list(bad["fault"]) == ["empty"]


def shuffled(scandir):
    class Listed(list):
        def __enter__(self):
            return self

        def __exit__(self, *exc):
            return None

    def listed(folder):
        with scandir(folder) as found:
            items = list(found)
        random.Random(3).shuffle(items)
        return Listed(items)

    return listed


# ------------------------------------------------------------------------------------------------ faults


def test_quarantine_names_file_fault_and_remedy(tmp_path: Path, capsys) -> None:
    for k in range(3):
        photo(tmp_path / f"in/a/{k}.jpg")
    whole = photo(tmp_path / "in/a/cut.jpg", size=(400, 300)).read_bytes()
    (tmp_path / "in/a/cut.jpg").write_bytes(whole[: len(whole) // 2])
    table(tmp_path / "in/b/page.jpg", "<html>404</html>")
    table(tmp_path / "in/b/none.jpg", "")
    manifest, quarantine = scan(tmp_path / "in", out=tmp_path / "run")
    assert len(manifest) == 3 and manifest.classes == ("a", "b")
    assert [tuple(row) for row in quarantine[["file", "fault", "label"]].to_numpy()] == [
        ("a/cut.jpg", "truncated", "a"),
        ("b/none.jpg", "empty", "b"),
        ("b/page.jpg", "not_an_image", "b"),
    ]
    assert (quarantine["remedy"].str.len() > 10).all() and (quarantine["detail"].str.len() > 5).all()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "run/quarantine.csv"), quarantine, check_dtype=False)
    assert warned(capsys, "3 files can't be read", "class 'b' has no readable photograph")


@pytest.mark.parametrize("below", ["t.csv", "t.csv/run"])
def test_out_at_a_file_is_said_before_anything_is_read(tmp_path: Path, monkeypatch, below: str) -> None:
    photo(tmp_path / "a/1.jpg")
    table(tmp_path / "t.csv", "image,label\na/1.jpg,x\n")
    monkeypatch.setattr(scan_module, "_inspect", None)
    with pytest.raises(RunFolderError, match=r"t\.csv is a file"):
        scan(tmp_path / "t.csv", out=tmp_path / below)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda home: home.mkdir(), "no photographs found"),
        (lambda home: table(home / "a.txt", "x"), "1 .txt"),
        (lambda home: table(home / "a/1.jpg", ""), "none of the 1 photographs can be read"),
        (lambda home: None, "no such folder"),
    ],
)
def test_nothing_to_read_is_an_error(tmp_path: Path, make, words: str) -> None:
    make(tmp_path / "in")
    with pytest.raises(DataError, match=words) as caught:
        scan(tmp_path / "in")
    assert caught.value.remedy


# ------------------------------------------------------------------------------------------------ tables


def test_csv_with_pattern_and_columns(tmp_path: Path) -> None:
    text = "\ufeffid;stress;farm;part;k\n1;rust;F1;train;0\n2;miner;F2;valid;1\n\n3;;F1;test;\n4;rust;F3;;2\n"
    listed = table(tmp_path / "leaf.csv", text)
    for k in range(1, 4):
        photo(tmp_path / f"leaf/{k}.jpg")
    named = {"label": "stress", "group": "farm", "split": "part", "fold": "k", "source": "farm"}
    manifest, quarantine = scan(listed, columns=TableOptions(image="leaf/{id}.jpg", **named))
    assert manifest.classes == ("miner", "rust") and manifest.root == tmp_path
    rows = manifest.table[["image_id", "path", "label", "group", "source", "split", "fold"]].to_numpy().tolist()
    assert rows == [
        ["1.jpg", "leaf/1.jpg", 1, "F1", "F1", "train", 0],
        ["2.jpg", "leaf/2.jpg", 0, "F2", "F2", "val", 1],
        ["3.jpg", "leaf/3.jpg", -1, "F1", "F1", "test", -1],
    ]
    assert list(quarantine["fault"]) == ["missing"] and "line 6" in quarantine["detail"][0]
    assert quarantine["label"][0] == "rust"


def test_csv_guesses_columns_and_sorts_numbers(tmp_path: Path, capsys) -> None:
    rows = [(f"{k}.jpg", k) for k in (0, 2, 10)]
    listed = table(tmp_path / "l.csv", "Filename,source,Target\n" + "".join(f"{f},s{t},{t}.0\n" for f, t in rows))
    for name, _ in rows:
        photo(tmp_path / name)
    manifest, _ = scan(listed)
    assert manifest.classes == ("0", "2", "10") and list(manifest.labels) == [0, 1, 2]
    assert list(manifest.table["source"]) == ["s0", "s2", "s10"]
    assert warned(capsys, "image 'Filename'", "label 'Target'", "source 'source'")
    assert set(scan(listed, columns=TableOptions(source=""))[0].table["source"]) == {"main"}
    assert set(scan(listed, columns=TableOptions(label=""))[0].labels) == {-1}


def test_table_beside_a_folder_and_parquet(tmp_path: Path) -> None:
    frame = pd.DataFrame({"image_id": ["a.jpg", "b.jpg", "c.jpg"], "label": [1.0, np.nan, 0.0], "code": [5, 6, 7]})
    for name in frame["image_id"]:
        photo(tmp_path / "photos" / name)
    listed = tmp_path / "tables/l.parquet"
    listed.parent.mkdir()
    frame.to_parquet(listed)
    names = table(tmp_path / "names.json", json.dumps(MAP))
    manifest, _ = scan(tmp_path / "photos", columns=TableOptions(csv=listed, classes=names, id="code"))
    assert manifest.classes == ("blight", "streak", "mottle")
    assert labels_of(manifest) == {"5": "streak", "6": None, "7": "blight"}


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("photo_no,label\n1,a\n", {}, ["photo_no, label", "--image"]),
        ("image,kind,farm\na.jpg,x,y\n", {}, ["image, kind, farm", "--label"]),
        ("image,label\na.jpg,x\n", {"group": "plant"}, ["no column 'plant'", "image, label", "--group"]),
        ("image,label\na.jpg,x\n", {"image": "{nr}.jpg"}, ["no column 'nr'"]),
        ("image,label\nz.jpg,x\n", {}, ["none of the 1 photographs exists", "z.jpg"]),
        ("image,label\nz,x\n", {}, ["--image 'more/{image}.jpg'"]),
        ("image,label\na.jpg,x\na.jpg,y\n", {}, ["listed twice", "line 2", "line 3"]),
        ("image,label,nr\na.jpg,x,1\nb.jpg,y,1\n", {"id": "nr"}, ["image id '1' appears twice", "line 3"]),
        ("image,label,split\na.jpg,x,trian\n", {}, ["line 2", "'trian'"]),
        ("image,label,fold\na.jpg,x,1\nb.jpg,x,one\n", {}, ["line 3", "'one'"]),
        ("image,label\na.jpg,x\n,y\n", {}, ["line 3", "is empty"]),
        ("image,label\n", {}, ["no rows"]),
        ("image,label,label\na.jpg,x,y\n", {}, ["line 1", "2 columns are called 'label'"]),
        ('image\t"label"\tlabel \na.jpg\tx\ty\n', {}, ["line 1", "2 columns are called 'label'"]),
        ("", {}, ["the table is empty"]),
    ],
)
def test_tables_that_are_wrong(tmp_path: Path, text: str, options: dict, words: list[str]) -> None:
    for name in ("a.jpg", "b.jpg", "more/z.jpg"):
        photo(tmp_path / name)
    if text.startswith("image,label\nz.jpg"):
        (tmp_path / "more/z.jpg").unlink()
    with pytest.raises(DataError) as caught:
        scan(table(tmp_path / "l.csv", text), columns=TableOptions(**options))
    assert all(word in str(caught.value) for word in [*words, "l.csv"] if word), str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"file_name": "a.jpg"}\n\n{"file_name": \n', ["m.jsonl, line 3: not JSON (Expecting value"]),
        ('{"file_name": "a.jpg", "label": "x\u2028y"}\n{bad\n', ["m.jsonl, line 2: not JSON"]),
        ('["a.jpg"]\n', ["m.jsonl, line 1: not a JSON object"]),
    ],
)
def test_a_broken_line_of_json_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    photo(tmp_path / "a.jpg")
    with pytest.raises(DataError) as caught:
        scan(table(tmp_path / "m.jsonl", text))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "line 1 column" not in str(caught.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"none\.csv: there is no such file"):
        scan(tmp_path, columns=TableOptions(csv=tmp_path / "none.csv"))


def test_the_command_offers_the_groups_that_names_tell(tmp_path: Path, capsys) -> None:
    for k in range(12):
        photo(tmp_path / f"in/rust/plant{k // 3}_{k}.jpg")
    manihot.scan([tmp_path / "in"], out=tmp_path / "run")
    assert warned(capsys, "File names look grouped as '{group}_*'", "--group")


def test_repeated_line_counts_once(tmp_path: Path, capsys) -> None:
    photo(tmp_path / "a.jpg")
    manifest, _ = scan(table(tmp_path / "l.csv", "image,label\na.jpg,x\n./a.jpg,x\n"))
    assert len(manifest) == 1 and warned(capsys, "1 lines repeat")


def test_label_outside_the_map_names_value_and_line(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg"), photo(tmp_path / "b.jpg")
    listed = table(tmp_path / "l.csv", "image,label\na.jpg,1\nb.jpg,7\n")
    names = table(tmp_path / "map.json", json.dumps(MAP))
    with pytest.raises(DataError, match=r"l\.csv, line 3: label '7' is not in map\.json"):
        scan(listed, columns=TableOptions(classes=names))


def test_class_names_in_every_form(tmp_path: Path) -> None:
    expected = ("blight", "streak", "mottle")
    turned = {name: int(k) for k, name in MAP.items()}
    for text in (json.dumps(MAP), json.dumps(turned), json.dumps(list(expected))):
        assert load_classes(table(tmp_path / "c.json", text)).names == expected
    assert load_classes(table(tmp_path / "c.txt", "blight\nstreak\nmottle\n")).names == expected
    for text in ('{"0": "a", "1": "a"}', '{"a": "b"}', "{", '"x"', "[]"):
        with pytest.raises(DataError, match=r"c\.json"):
            load_classes(table(tmp_path / "c.json", text))


def test_imagefolder_metadata(tmp_path: Path) -> None:
    for name in ("one/a.jpg", "one/b.jpg", "two/train/c.jpg", "two/test/d.jpg"):
        photo(tmp_path / name)
    table(tmp_path / "one/metadata.csv", "file_name,label,text\na.jpg,rust,x\nb.jpg,miner,y\n")
    line = '{"file_name": "c.jpg", "label": 3, "note": null}\n\n'
    table(tmp_path / "two/train/metadata.jsonl", line)
    table(tmp_path / "two/test/metadata.jsonl", '{"file_name": "d.jpg"}\n')
    manifest, _ = scan(tmp_path / "one")
    assert labels_of(manifest) == {"a.jpg": "rust", "b.jpg": "miner"}
    manifest, _ = scan(tmp_path / "two")
    assert labels_of(manifest) == {"c.jpg": "3", "d.jpg": None}
    assert list(manifest.table["split"]) == ["train", "test"] and list(manifest.table["path"])[1] == "test/d.jpg"


def test_several_sources(tmp_path: Path) -> None:
    for name in ("2019/healthy/1.jpg", "2019/rust/2.jpg", "2020/rust/1.jpg", "2020/cafe\u0301/3.jpg"):
        photo(tmp_path / name)
    photo(tmp_path / "x/4.jpg")
    listed = table(tmp_path / "x/more.csv", "image,label\n4.jpg,caf\u00e9\n")
    manifest, _ = scan([tmp_path / "2019", tmp_path / "2020", listed])
    assert manifest.classes == ("café", "healthy", "rust") and manifest.root == tmp_path
    assert labels_of(manifest) == {
        "2019/1.jpg": "healthy",
        "2.jpg": "rust",
        "3.jpg": "café",
        "2020/1.jpg": "rust",
        "4.jpg": "café",
    }
    assert manifest.table.groupby("source").size().to_dict() == {"2019": 2, "2020": 2, "more": 1}
    with pytest.raises(DataError, match="given twice"):
        scan([tmp_path / "2019", tmp_path / "2019"])


def test_manifests_and_run_folders_are_sources(tmp_path: Path) -> None:
    for name in ("one/b rust/1.jpg", "one/a spot/2.jpg", "two/a spot/1.jpg", "two/new/3.jpg"):
        photo(tmp_path / name)
    lines = "image,label,group,weight\nb rust/1.jpg,b rust,G1,1\na spot/2.jpg,,,1\n"
    one, _ = scan(table(tmp_path / "one/l.csv", lines), out=tmp_path / "runs/first")
    table(tmp_path / "runs/first/run.json", "{}")
    one.with_columns(weight=[0.5, 1.0]).save(tmp_path / "runs/first/manifest.parquet")
    scan(tmp_path / "two", out=tmp_path / "runs/second")
    (tmp_path / "runs/first/audit").mkdir()
    photo(tmp_path / "runs/first/audit/thumbnail.jpg")
    both, quarantine = scan([tmp_path / "runs/first", tmp_path / "runs/second/manifest.parquet"])
    assert both.classes == ("b rust", "a spot", "new") and len(quarantine) == 0 and both.root == tmp_path
    columns = ["image_id", "path", "label", "source", "group"]
    assert both.table[columns].to_numpy().tolist() == [
        ["first/1.jpg", "one/b rust/1.jpg", 0, "first", "G1"],
        ["2.jpg", "one/a spot/2.jpg", -1, "first", ""],
        ["second/1.jpg", "two/a spot/1.jpg", 1, "second", ""],
        ["3.jpg", "two/new/3.jpg", 2, "second", ""],
    ]
    assert list(both.table["weight"]) == [0.5, 1, 1, 1]
    mixed, _ = scan([tmp_path / "two", tmp_path / "runs/first"])
    assert mixed.table.groupby("source").size().to_dict() == {"first": 2, "two": 2}
    again, _ = scan(tmp_path / "runs/first")
    assert list(again.image_id) == ["1.jpg", "2.jpg"] and set(again.table["source"]) == {"main"}


def test_soft_labels_are_not_lost_in_silence(tmp_path: Path) -> None:
    photo(tmp_path / "one/x/1.jpg"), photo(tmp_path / "two/x/2.jpg")
    manifest, _ = scan(tmp_path / "one")
    replace(manifest, soft_labels=np.ones((1, 1), np.float32)).save(tmp_path / "m.parquet")
    with pytest.raises(DataError, match="soft labels"):
        scan([tmp_path / "m.parquet", tmp_path / "two"])


def test_a_column_that_a_fixed_layout_lacks_is_another_sources(tmp_path: Path) -> None:
    kaggle = competition(tmp_path / "kaggle")
    photo(tmp_path / "hub/4.jpg"), photo(tmp_path / "own/p5.jpg")
    table(tmp_path / "hub/metadata.csv", "file_name,label\n4.jpg,mottle\n")
    own = table(tmp_path / "own/t.csv", "nr,stress,farm\n5,mottle,F1\n")
    options = {"image": "p{nr}.jpg", "label": "stress", "group": "farm", "id": "nr"}
    manifest, _ = scan([kaggle, tmp_path / "hub", own], columns=TableOptions(**options))
    assert manifest.table.set_index("image_id")["group"].to_dict() == {
        "11.jpg": "",
        "12.jpg": "",
        "13.jpg": "",
        "21.jpg": "",
        "4.jpg": "",
        "5": "F1",
    }
    assert labels_of(manifest)["4.jpg"] == labels_of(manifest)["5"] == labels_of(manifest)["12.jpg"] == "mottle"
    with pytest.raises(DataError, match=r"--group names a column, but .*kaggle was read as .*no other source"):
        scan([kaggle, tmp_path / "hub"], columns=TableOptions(group="farm"))
    with pytest.raises(DataError, match="no column 'farm'"):
        scan(kaggle, columns=TableOptions(group="farm"))
    with pytest.raises(DataError, match="no column 'plant'"):
        scan([kaggle, own], columns=TableOptions(image="p{nr}.jpg", label="stress", group="plant"))


def test_only_the_trusted_column_is_kept(tmp_path: Path) -> None:
    words = ["TRUE", "yes", "1", "false", "No", "0", ""]
    for k in range(len(words)):
        photo(tmp_path / f"in/{k}.jpg")
    lines = "".join(f"{k}.jpg,x,{word},note\n" for k, word in enumerate(words))
    listed = table(tmp_path / "in/l.csv", "image,label,checked,remark\n" + lines)
    manifest, _ = scan(listed, columns=TableOptions(trusted="checked"), out=tmp_path / "run")
    assert list(manifest.table["checked"]) == [True] * 3 + [False] * 4 and manifest.table["checked"].dtype == bool
    assert "remark" not in manifest.table and "checked" not in scan(listed)[0].table
    photo(tmp_path / "more/x/9.jpg")
    both, _ = scan([tmp_path / "more", tmp_path / "run/manifest.parquet"], columns=TableOptions(trusted="checked"))
    assert list(both.table["checked"]) == [False] + [True] * 3 + [False] * 4
    with pytest.raises(DataError, match="has no column 'chekced'"):
        scan(listed, columns=TableOptions(trusted="chekced"))
    with pytest.raises(DataError, match="--trusted weight"):
        scan(listed, columns=TableOptions(trusted="weight"))
    table(listed, "image,label,checked\n0.jpg,x,yes\n1.jpg,x,maybe\n")
    with pytest.raises(DataError, match=r"l\.csv, line 3: 'maybe'"):
        scan(listed, columns=TableOptions(trusted="checked"))


def test_options_that_nothing_would_use_are_errors(tmp_path: Path) -> None:
    photo(tmp_path / "in/rust/1.jpg")
    with pytest.raises(DataError, match="--label, --fold names a column"):
        scan(tmp_path / "in", columns=TableOptions(label="x", fold="f"))
    photo(tmp_path / "other/2.jpg")
    listed = table(tmp_path / "other/l.csv", "image,label\n2.jpg,0\n")
    with pytest.raises(DataError, match=r"l\.csv: its classes are numbers") as caught:
        scan([tmp_path / "in", listed])
    assert "--classes" in caught.value.remedy


# ------------------------------------------------------------------------------------------------ Kaggle


def competition(home: Path, images: bool = True) -> Path:
    table(home / "train.csv", "image_id,label\n11.jpg,0\n12.jpg,2\n13.jpg,2\n")
    table(home / "label_num_to_disease_map.json", json.dumps(MAP))
    table(home / "sample_submission.csv", "image_id,label\n21.jpg,4\n22.jpg,4\n")
    photo(home / "test_images/21.jpg")
    if images:
        for k in (11, 12, 13):
            photo(home / f"train_images/{k}.jpg")
    return home


def test_kaggle_layout(tmp_path: Path) -> None:
    manifest, quarantine = scan(competition(tmp_path))
    assert manifest.classes == ("blight", "streak", "mottle")
    assert labels_of(manifest) == {"11.jpg": "blight", "12.jpg": "mottle", "13.jpg": "mottle", "21.jpg": None}
    assert list(manifest.table["split"]) == ["train"] * 3 + ["test"]
    assert manifest.table["path"].iloc[0] == "train_images/11.jpg" and manifest.root == tmp_path
    assert list(quarantine["file"]) == ["test_images/22.jpg"]


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def sized(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def example(**features: bytes | int | list[float]) -> bytes:
    """A tf.train.Example, written after feature.proto."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = sized(1, sized(1, value))
        elif isinstance(value, list):
            feature = sized(2, sized(1, struct.pack(f"<{len(value)}f", *value)))
        else:
            feature = sized(3, sized(1, varint(value)))
        entries += sized(1, sized(1, name.encode()) + sized(2, feature))
    return sized(1, entries)


def slow_crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    def masked(part: bytes) -> bytes:
        crc = slow_crc32c(part)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def records(home: Path) -> tuple[list[bytes], Path]:
    """Records of photographs 11, 12, 13 and 14, the last of which is not in train.csv."""
    parts = []
    for k, target in ((11, 0), (12, 2), (13, 2), (14, 1)):
        image = photo(home / f"{k}.jpg", seed=k).read_bytes()
        parts.append(frame(example(image=image, image_name=f"{k}.jpg".encode(), target=target)))
    place = home / "train_tfrecords"
    place.mkdir(parents=True, exist_ok=True)
    for k in (11, 12, 13, 14):
        (home / f"{k}.jpg").unlink()
    return parts, place


def test_kaggle_layout_from_tfrecords(tmp_path: Path, capsys) -> None:
    home = competition(tmp_path / "data", images=False)
    parts, place = records(home)
    (place / "ld_train00-2.tfrec").write_bytes(b"".join(parts[:2]))
    (place / "ld_train01-2.tfrec").write_bytes(gzip.compress(b"".join(parts[2:])))
    before = sorted(home.rglob("*"))
    with pytest.raises(DataError, match="TFRecords") as caught:
        scan(home)
    assert "--out" in caught.value.remedy
    manifest, _ = scan(home, out=tmp_path / "run")
    expected = {"11.jpg": "blight", "12.jpg": "mottle", "13.jpg": "mottle", "14.jpg": "streak", "21.jpg": None}
    assert labels_of(manifest) == expected
    assert sorted(home.rglob("*")) == before  # nothing of ours in the user's folder
    assert (tmp_path / "run/photos/train/13.jpg").is_file() and all(path.is_file() for path in manifest.paths)
    assert warned(capsys, "1 photographs in train_tfrecords/ are not in train.csv")
    stamp = (tmp_path / "run/photos/train/13.jpg").stat().st_mtime_ns
    again, _ = scan(home, out=tmp_path / "run")
    pd.testing.assert_frame_equal(again.table, manifest.table)
    assert (tmp_path / "run/photos/train/13.jpg").stat().st_mtime_ns == stamp


def test_records_without_a_table_tell_their_labels(tmp_path: Path, capsys) -> None:
    parts, place = records(tmp_path / "data")
    (place / "a.tfrec").write_bytes(b"".join(parts))
    manifest, _ = scan(tmp_path / "data", out=tmp_path / "run")
    assert labels_of(manifest) == {"11.jpg": "0", "12.jpg": "2", "13.jpg": "2", "14.jpg": "1"}
    assert manifest.classes == ("0", "1", "2")
    assert warned(capsys, "4 photographs in train_tfrecords/ have no train.csv: their own labels hold")
    table(tmp_path / "data/label_num_to_disease_map.json", json.dumps(MAP))
    manifest, _ = scan(tmp_path / "data", out=tmp_path / "named")
    assert labels_of(manifest)["14.jpg"] == "streak" and manifest.classes == tuple(MAP.values())


def test_records_of_test_photographs_alone(tmp_path: Path) -> None:
    parts, place = records(tmp_path / "data")
    place.rename(tmp_path / "data/test_tfrecords")
    (tmp_path / "data/test_tfrecords/a.tfrec").write_bytes(b"".join(parts[:2]))
    manifest, _ = scan(tmp_path / "data", extract=tmp_path / "aside")
    assert labels_of(manifest) == {"11.jpg": None, "12.jpg": None}
    assert set(manifest.table["split"]) == {"test"} and (tmp_path / "aside/photos/test/11.jpg").is_file()
    assert list((tmp_path / "aside").iterdir()) == [tmp_path / "aside/photos"]


@pytest.mark.parametrize("empty", ["", "train_images", "train_tfrecords"])
def test_a_table_without_its_train_photographs_is_an_error(tmp_path: Path, empty: str) -> None:
    home = competition(tmp_path, images=False)
    (home / empty).mkdir(exist_ok=True)
    with pytest.raises(DataError, match=r"train\.csv: the train photographs are missing") as caught:
        scan(home, out=tmp_path / "run")
    assert "train_images" in caught.value.what and "test_images" in caught.value.remedy


def test_damaged_records_go_to_quarantine(tmp_path: Path) -> None:
    home = competition(tmp_path / "data", images=False)
    parts, place = records(home)
    damaged = bytearray(parts[1])
    damaged[-40] ^= 1
    (place / "a.tfrec").write_bytes(parts[0] + bytes(damaged) + parts[2])
    manifest, quarantine = scan(home, out=tmp_path / "run")
    assert {"11.jpg", "13.jpg"} <= set(manifest.image_id) and "12.jpg" not in manifest.image_id
    assert quarantine["file"][0] == "a.tfrec#1" and "crc32c" in quarantine["detail"][0]
    missing = quarantine.set_index("file").loc["train/12.jpg"]
    assert missing["fault"] == "missing" and "not in train_tfrecords/" in missing["detail"]
    (place / "a.tfrec").write_bytes(parts[0] + b"\x01" + parts[1][1:] + parts[2])
    faults = [record.fault for record in read_records(place / "a.tfrec")]
    assert faults[0] is None and faults[1].last and len(faults) == 2
    (place / "a.tfrec").write_bytes(parts[0] + parts[1][:50])
    assert "ends within" in list(read_records(place / "a.tfrec"))[-1].fault.detail
    (place / "a.tfrec").write_bytes(frame(b"\x0a\xff no example"))
    assert "not a tf.train.Example" in next(read_records(place / "a.tfrec")).fault.detail


def test_record_names_stay_in_their_folder(tmp_path: Path) -> None:
    home = competition(tmp_path / "data", images=False)
    image = photo(tmp_path / "x.jpg").read_bytes()
    place = home / "train_tfrecords"
    place.mkdir()
    names = [b"../../evil.jpg", b"C:\\x\\con:1.jpg", b"..", b"11.jpg"]
    data = b"".join(frame(example(image=image, image_name=name, target=k % 3)) for k, name in enumerate(names))
    (place / "a.tfrec").write_bytes(data)
    scan(home, out=tmp_path / "run", columns=TableOptions(allow_missing=True))
    found = sorted(
        path.relative_to(tmp_path / "run/photos").as_posix() for path in (tmp_path / "run/photos").rglob("*.jpg")
    )
    assert found == ["train/11.jpg", "train/a-000002.jpg", "train/con_1.jpg", "train/evil.jpg"]


def test_crc32c_and_example_parser() -> None:
    assert crc32c(b"123456789") == 0xE3069283 and crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    rng = np.random.default_rng(0)
    for n in (0, 1, 3, 4, 5, 1023, 1024, 1025, 3000):
        data = rng.bytes(n)
        assert crc32c(data) == slow_crc32c(data)
    found = parse_example(example(a=b"x" * 300, b=-5, c=[1.5, -2.0], d=1 << 40))
    assert found == {"a": [b"x" * 300], "b": [-5], "c": [1.5, -2.0], "d": [1 << 40]}


# --------------------------------------------------------------------------------------------- processes


def die(task: int) -> int:
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_worker_is_a_clear_error() -> None:
    with pytest.raises(ManihotError, match="a worker process ended") as caught:
        list(run_tasks(die, range(10), 2, lambda task: f"photo {task}"))
    assert "workers=1" in caught.value.remedy


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT")
def test_ctrl_c_stops_at_once_without_traces_of_workers(tmp_path: Path) -> None:
    for k in range(8):
        photo(tmp_path / f"in/a/{k}.png")
    script = table(
        tmp_path / "run.py",
        "import sys, time\n"
        "from manihot.photos.workers import run_tasks\n"
        "def slow(task):\n    time.sleep(0.05)\n    return task\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        "        for k in run_tasks(slow, range(10000), 2):\n"
        "            print(k, flush=True)\n"
        "    except KeyboardInterrupt:\n"
        "        sys.exit(130)\n",
    )
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        process.stdout.readline()
        started = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and time.monotonic() - started < 5
    assert "Traceback" not in errors


@pytest.mark.slow
def test_bracol() -> None:
    home = shared_data("bracol")
    columns = TableOptions(image="leaf/{id}.jpg", label="predominant_stress")
    manifest, quarantine = scan(home / "leaf.csv", columns=columns)
    assert len(manifest) == 1685 and len(quarantine) == 0
    assert manifest.class_counts().tolist() == [272, 387, 531, 348, 147]
    manifest, _ = scan(home / "symptom")
    assert manifest.table["split"].value_counts().to_dict() == {"train": 1905, "val": 408}
    assert manifest.classes == ("1_health", "2_miner", "3_rust", "4_phoma", "5_cercospora")


def test_the_users_class_numbers_are_kept(tmp_path: Path, capsys) -> None:
    for name in ("a", "b"):
        photo(tmp_path / f"in/{name}/1.jpg")
        photo(tmp_path / f"in/{name}/{name}.jpg")
    rows = "".join(f"{name}/1.jpg,{number}\n" for name, number in (("a", 7), ("b", 5)))
    table(tmp_path / "in/t.csv", f"image,label\n{rows}")
    table(tmp_path / "from5.json", json.dumps({"7": "a", "5": "b"}))
    table(tmp_path / "from0.json", json.dumps({"0": "a", "1": "b"}))
    listed, _ = scan(tmp_path / "in/t.csv", columns=TableOptions(classes=tmp_path / "from5.json"), out=tmp_path / "run")
    assert listed.classes == ("b", "a") and listed.numbers == (5, 7)
    assert Manifest.load(tmp_path / "run/manifest.parquet").numbers == (5, 7)
    assert listed.take(np.array([0])).with_columns(weight=2.0).numbers == (5, 7)
    folders, _ = scan(tmp_path / "in", columns=TableOptions(classes=tmp_path / "from5.json", csv=None))
    assert folders.numbers == (5, 7)
    from0, _ = scan(tmp_path / "in", columns=TableOptions(classes=tmp_path / "from0.json"))
    assert from0.numbers == (0, 1) and scan(tmp_path / "in")[0].numbers is None
    photo(tmp_path / "other/c/1.jpg")
    capsys.readouterr()
    table(tmp_path / "in/label_num_to_disease_map.json", json.dumps({"7": "a", "5": "b"}))
    joined, _ = scan([tmp_path / "in/t.csv", tmp_path / "other"])
    assert joined.classes == ("b", "a", "c") and joined.numbers is None
    assert "submissions hold names" in capsys.readouterr().err


def test_the_quarantine_knows_the_ids(tmp_path: Path) -> None:
    for name in ("a", "b"):
        photo(tmp_path / f"in/{name}/0.jpg")
        (tmp_path / f"in/{name}/1.jpg").write_bytes(b"")
    _, quarantine = scan(tmp_path / "in")
    assert quarantine["image_id"].tolist() == ["a/1.jpg", "b/1.jpg"] == quarantine["file"].tolist()
