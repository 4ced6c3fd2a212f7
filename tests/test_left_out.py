"""Folders with pipes, devices, links in circles, names that are no UTF-8 and sub-folders that can't be read."""

from __future__ import annotations

import errno
import gzip
import os
import random
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from manihot.errors import DataError
from manihot.photos.scan import scan
from manihot.photos.tfrecord import LONGEST, masked_crc32c, read_records
from manihot.records.manifest import Manifest
from test_scan import example, frame, labels_of, photo, table

posix = pytest.mark.skipif(sys.platform == "win32", reason="pipes, sockets and names of bytes")


@pytest.fixture
def in_time() -> Iterator[None]:
    """Opening a pipe waits for ever: the test fails instead."""
    signal.alarm(20)
    yield
    signal.alarm(0)


def faults(quarantine: pd.DataFrame) -> dict[str, str]:
    return dict(zip(quarantine["file"], quarantine["fault"]))


@posix
def test_only_regular_files_are_opened(tmp_path: Path, in_time) -> None:
    home = tmp_path / "in"
    photo(home / "a/1.jpg"), photo(home / "b/2.jpg")
    for name in ("pipe", "pipe.jpg", "pipe.csv", "._pipe.jpg"):
        os.mkfifo(home / "a" / name)
    os.mkfifo(home / "labels.csv")
    (home / "a/linked pipe.png").symlink_to(home / "a/pipe")
    (home / "a/zero.jpg").symlink_to("/dev/zero")
    (home / "a/zero").symlink_to("/dev/zero")
    (home / "a/waits.jpg").symlink_to("/proc/kmsg")
    listener = socket.socket(socket.AF_UNIX)
    os.chdir(home)  # the names of sockets are short
    listener.bind("b/socket.jpg")
    manifest, quarantine = scan(home, out=tmp_path / "run")
    listener.close()
    assert labels_of(manifest) == {"1.jpg": "a", "2.jpg": "b"}
    found = faults(quarantine)
    assert found.pop("a/waits.jpg") in ("empty", "missing", "no_permission")
    assert found == dict.fromkeys(("a/pipe.jpg", "a/linked pipe.png", "a/zero.jpg", "b/socket.jpg"), "not_an_image")
    details = dict(zip(quarantine["file"], quarantine["detail"]))
    assert "a named pipe" in details["a/pipe.jpg"] and "a device" in details["a/zero.jpg"]


@posix
def test_what_tables_and_records_name_is_opened_only_if_it_is_regular(tmp_path: Path, in_time) -> None:
    photo(tmp_path / "in/1.jpg")
    os.mkfifo(tmp_path / "in/pipe")
    names = ["1.jpg", "pipe", "/dev/zero", "/dev/tty", "..", "1.jpg/2.jpg", f"{'n' * 300}.jpg"]
    table(tmp_path / "in/labels.csv", "file,label\n" + "".join(f"{name},x\n" for name in names))
    manifest, quarantine = scan(tmp_path / "in/labels.csv")
    assert list(manifest.image_id) == ["1.jpg"]
    assert sorted(quarantine["fault"]) == ["missing"] * 2 + ["not_an_image"] * 4
    os.mkfifo(tmp_path / "a.tfrec")
    (fault,) = [record.fault for record in read_records(tmp_path / "a.tfrec")]
    assert fault.detail == "it is not a regular file" and fault.last


@posix
def test_links_in_circles_end_nothing(tmp_path: Path) -> None:
    home = tmp_path / "in"
    for name in ("a/1.jpg", "b/2.jpg", "b/deep/3.jpg", "c/4.jpg"):
        photo(home / name)
    (home / "a/self").symlink_to("self")
    (home / "a/self.jpg").symlink_to("self.jpg")
    (home / "a/to b").symlink_to("../b")
    (home / "b/to a").symlink_to(home / "a")
    (home / "c/up").symlink_to("..")
    (home / "loop").symlink_to("loop")
    (home / "c/one.jpg").symlink_to("two.jpg")
    (home / "c/two.jpg").symlink_to("one.jpg")
    (home / "c/gone.jpg").symlink_to("nowhere.jpg")
    manifest, quarantine = scan(home, out=tmp_path / "run")
    assert labels_of(manifest) == {"1.jpg": "a", "2.jpg": "b", "3.jpg": "b", "4.jpg": "c"}
    found = faults(quarantine)
    assert found.pop("c/gone.jpg") == "missing"
    assert set(found) == {"a/self", "a/self.jpg", "a/to b", "b/to a", "c/up", "loop", "c/one.jpg", "c/two.jpg"}
    assert set(found.values()) == {"link_loop"}


@posix
def test_many_folders_linked_to_each_other_are_read_once(tmp_path: Path) -> None:
    """Each path through 12 folders that link to all others would take for ever."""
    for k in range(12):
        photo(tmp_path / f"in/{k:02d}/{k}.jpg")
    for k in range(12):
        for other in range(12):
            if other != k:
                (tmp_path / f"in/{k:02d}/to {other}").symlink_to(f"../{other:02d}")
    manifest, _ = scan(tmp_path / "in")
    assert labels_of(manifest) == {f"{k}.jpg": f"{k:02d}" for k in range(12)}


@posix
def test_links_to_elsewhere_and_splits_made_of_links_are_followed(tmp_path: Path) -> None:
    photo(tmp_path / "store/rust/1.jpg"), photo(tmp_path / "store/mildew/2.jpg")
    (tmp_path / "in").mkdir()
    for name in ("rust", "mildew"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "store" / name)
    manifest, quarantine = scan(tmp_path / "in")
    assert labels_of(manifest) == {"1.jpg": "rust", "2.jpg": "mildew"} and not len(quarantine)
    photo(tmp_path / "splits/all/rust/1.jpg"), photo(tmp_path / "splits/all/mildew/2.jpg")
    for split, name in (("train", "rust"), ("val", "mildew")):
        (tmp_path / "splits" / split).mkdir()
        (tmp_path / "splits" / split / name).symlink_to(tmp_path / "splits/all" / name)
    manifest, quarantine = scan(tmp_path / "splits")
    assert labels_of(manifest) == {"1.jpg": "rust", "2.jpg": "mildew"} and not len(quarantine)
    assert dict(zip(manifest.image_id, manifest.table["split"])) == {"1.jpg": "train", "2.jpg": "val"}


def test_a_class_that_is_only_a_link_to_another_is_no_class(tmp_path: Path) -> None:
    photo(tmp_path / "in/a/1.jpg"), photo(tmp_path / "in/b/2.jpg")
    (tmp_path / "in/copy of a").symlink_to("a")
    manifest, quarantine = scan(tmp_path / "in")
    assert manifest.classes == ("a", "b") and faults(quarantine) == {"copy of a": "link_loop"}
    assert "1 photographs count once" in quarantine["detail"][0]


@posix
def test_names_that_are_no_utf8_are_quarantined_and_the_rest_is_written(tmp_path: Path) -> None:
    home = tmp_path / "in"
    photo(home / "café/1.jpg"), photo(home / "b/2.jpg")
    name = os.fsencode(home / "b") + b"/caf\xe9.jpg"
    Path(os.fsdecode(name)).write_bytes((home / "b/2.jpg").read_bytes())
    Path(os.fsdecode(os.fsencode(home / "b") + b"/notes\xff.t\xfft")).write_text("x")
    os.mkdir(os.fsencode(home) + b"/na\xefve")  # noqa: PTH102
    manifest, quarantine = scan(home, out=tmp_path / "run")
    assert labels_of(manifest) == {"1.jpg": "café", "2.jpg": "b"}
    assert faults(quarantine) == dict.fromkeys(("b/caf\\xe9.jpg", "b/notes\\xff.t\\xfft", "na\\xefve"), "bad_name")
    assert set(quarantine["remedy"]) == {"rename it"}
    assert len(Manifest.load(tmp_path / "run/manifest.parquet")) == 2
    assert len(pd.read_csv(tmp_path / "run/quarantine.csv")) == 3
    bad = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9pot"))
    home.rename(bad)
    with pytest.raises(DataError, match=r"d\\xe9pot: a name in this path is not UTF-8"):
        scan(bad)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_sub_folders_that_cant_be_listed_are_named_and_left_out(tmp_path: Path, monkeypatch, number: int) -> None:
    home = tmp_path / "in"
    photo(home / "a/1.jpg"), photo(home / "b/2.jpg"), photo(home / "a/deep/3.jpg"), photo(home / "lost+found/4.jpg")
    list_really = os.scandir

    def scandir(path: str | Path) -> object:
        if Path(path).name in ("lost+found", "deep"):
            raise OSError(number, os.strerror(number), str(path))
        return list_really(path)

    monkeypatch.setattr(os, "scandir", scandir)
    manifest, quarantine = scan(home, out=tmp_path / "run")
    assert labels_of(manifest) == {"1.jpg": "a", "2.jpg": "b"} and manifest.classes == ("a", "b")
    kind = "no_permission" if number == errno.EACCES else "unreadable"
    assert faults(quarantine) == {"lost+found": kind, "a/deep": kind}
    with pytest.raises(DataError, match=r"lost\+found: can't be read"):
        scan(home / "lost+found")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_sub_folders_without_permission_are_named_and_left_out(tmp_path: Path, mode: int) -> None:
    for name in ("a/1.jpg", "b/2.jpg", "train/3.jpg"):
        photo(tmp_path / "in" / name)
    (tmp_path / "in/train").chmod(mode)
    manifest, quarantine = scan(tmp_path / "in")
    (tmp_path / "in/train").chmod(0o755)
    assert labels_of(manifest) == {"1.jpg": "a", "2.jpg": "b"}
    assert faults(quarantine) == {"train": "no_permission"}


# --------------------------------------------------------------------------------------------- TFRecords


def test_damaged_compression_is_a_damaged_record(tmp_path: Path) -> None:
    """Wherever the damage is, whole records are read as they were, and the others are faults."""
    rng = random.Random(0)
    parts = [frame(example(image=rng.randbytes(3000), image_name=b"%d.jpg" % k, target=k)) for k in range(6)]
    packed = gzip.compress(b"".join(parts))
    path = tmp_path / "a.tfrec"
    kinds = set()
    for k in range(200):
        hurt = bytearray(packed)
        if k % 4 == 0:
            del hurt[rng.randrange(2, len(hurt)) :]
        else:
            at = rng.randrange(2, len(hurt) - 40)
            hurt[at : at + 4] = rng.randbytes(4)
        path.write_bytes(hurt)
        found = list(read_records(path))
        assert all(record.features["target"] == [record.number] for record in found if record.fault is None)
        assert [record.number for record in found] == list(range(len(found)))
        kinds |= {record.fault.detail.split(":")[0] for record in found if record.fault is not None}
    assert "its compression is damaged" in kinds


def test_damaged_gzip_goes_to_the_quarantine(tmp_path: Path) -> None:
    image = photo(tmp_path / "x.jpg").read_bytes()
    data = b"".join(frame(example(image=image, image_name=b"%d.jpg" % k, target=k % 2)) for k in range(40))
    packed = gzip.compress(data)
    hurt = packed[: len(packed) // 2] + b"\xff" * 30 + packed[len(packed) // 2 + 30 :]
    (tmp_path / "in/train_tfrecords").mkdir(parents=True)
    (tmp_path / "in/train_tfrecords/a.tfrec").write_bytes(packed)
    (tmp_path / "in/train_tfrecords/b.tfrec").write_bytes(hurt)
    manifest, quarantine = scan(tmp_path / "in", out=tmp_path / "run")
    assert len(manifest) == 40 and "damaged_record" in set(quarantine["fault"])


def test_hostile_records_are_refused_without_memory_or_time(tmp_path: Path) -> None:
    head = struct.pack("<Q", LONGEST)
    path = tmp_path / "a.tfrec"
    path.write_bytes(head + struct.pack("<I", masked_crc32c(head)) + b"x" * 99)
    assert "ends within" in next(read_records(path)).fault.detail
    head = struct.pack("<Q", 1 << 62)
    path.write_bytes(head + struct.pack("<I", masked_crc32c(head)) + b"x" * 99)
    assert "length" in next(read_records(path)).fault.detail
    for many in (b"\x0a\0" * 150_000, b"\x10\1" * 150_000, example(target=3)[:-1] + b"\1"):
        path.write_bytes(frame(many))
        found = next(read_records(path))
        assert found.fault is None or "not a tf.train.Example" in found.fault.detail
    assert "more than 100000 values" in next(iter(_records_of(path, b"\x1a\0" * 150_000))).fault.detail


def _records_of(path: Path, data: bytes) -> Iterator:
    path.write_bytes(frame(data))
    return read_records(path)


def test_names_in_records_may_be_long_and_targets_text(tmp_path: Path) -> None:
    image = photo(tmp_path / "x.jpg").read_bytes()
    place = tmp_path / "in/train_tfrecords"
    place.mkdir(parents=True)
    rows = [(b"n" * 300 + b".jpg", b"rust"), (("é" * 150).encode() + b".jpg", b"mildew"), (b"3.jpg", b"rust")]
    (place / "a.tfrec").write_bytes(
        b"".join(
            frame(example(image=image + b"%d" % k, image_name=name, target=label))
            for k, (name, label) in enumerate(rows)
        )
    )
    manifest, _ = scan(tmp_path / "in", out=tmp_path / "run")
    assert labels_of(manifest) == {"a-000000.jpg": "rust", "a-000001.jpg": "mildew", "3.jpg": "rust"}
