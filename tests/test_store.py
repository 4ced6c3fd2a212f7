"""The store: the pixels that decoding gives, written once, continued after a kill."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from manihot.errors import DataError, DiskFullError, RunFolderError
from manihot.photos import store as store_module
from manihot.photos.decode import decode_photo
from manihot.photos.preprocess import Preprocess
from manihot.photos.scan import scan
from manihot.photos.store import PhotoStore, make_store
from manihot.records.manifest import Manifest

SMALL = Preprocess((24, 32))


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    rng = np.random.default_rng(0)
    for k in range(20):
        coarse = rng.integers(0, 256, (4, 5, 3)).astype(np.uint8)
        height, width = (90, 120) if k % 2 else (131, 77)
        path = tmp_path / f"photos/{'ab'[k % 2]}/{k:02d}.{'png' if k % 5 == 0 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)).save(path)
    return scan(tmp_path / "photos")[0]


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_store_holds_what_decoding_gives(tmp_path: Path, manifest: Manifest, fit: str) -> None:
    preprocess = Preprocess((24, 32), fit)
    store = make_store(tmp_path / "run/s.npy", manifest, preprocess)
    assert len(store) == 20 and store.array.shape == (20, 24, 32, 3) and list(store.image_id) == list(manifest.image_id)
    for k, path in enumerate(manifest.paths):
        np.testing.assert_array_equal(store[k], preprocess(decode_photo(path, at_least=(24, 32))))
        whole = preprocess(decode_photo(path)).astype(int)
        assert np.abs(store[k] - whole).mean() < 5  # reduced in two steps instead of one
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["s.json", "s.npy"]
    with pytest.raises(ValueError, match="read-only"):
        store[0][0, 0, 0] = 1


def test_rows_by_id_and_crossing_processes(tmp_path: Path, manifest: Manifest) -> None:
    store = make_store(tmp_path / "s.npy", manifest, SMALL)
    asked = manifest.image_id[[7, 2, 2]]
    assert store.rows(asked).tolist() == [7, 2, 2]
    with pytest.raises(DataError, match=r"'x\.jpg'"):
        store.rows(np.array(["x.jpg"], dtype=object))
    other = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 2000
    np.testing.assert_array_equal(other[3], store[3])


def test_finished_store_is_not_made_again(tmp_path: Path, manifest: Manifest, monkeypatch) -> None:
    path = tmp_path / "s.npy"
    first = np.array(make_store(path, manifest, SMALL).array)
    stamp = path.stat().st_mtime_ns
    other_colours = Preprocess((24, 32), mean=(0.1, 0.2, 0.3))
    monkeypatch.setattr(store_module, "write_chunk", None)  # nothing may be decoded
    assert make_store(path, manifest, other_colours).digest
    assert path.stat().st_mtime_ns == stamp
    monkeypatch.undo()
    crop = make_store(path, manifest, Preprocess((24, 32), "crop"))
    assert not np.array_equal(crop.array, first)
    fewer = make_store(path, manifest.take(np.arange(5)), SMALL)
    np.testing.assert_array_equal(fewer.array, first[:5])


def test_processes_give_the_same_pixels(tmp_path: Path, manifest: Manifest, monkeypatch) -> None:
    one = make_store(tmp_path / "one.npy", manifest, SMALL, workers=1)
    monkeypatch.setattr(store_module, "ENOUGH_FOR_PROCESSES", 0)
    make_store(tmp_path / "two.npy", manifest, SMALL, workers=2)
    assert (tmp_path / "two.npy").read_bytes() == (tmp_path / "one.npy").read_bytes()
    assert len(one) == 20


class Killed(BaseException):
    """Stands for a process that ends here."""


@pytest.mark.parametrize("moment", ["first", "second", "before json", "after json", "torn line"])
def test_interrupted_store_is_continued(tmp_path: Path, manifest: Manifest, monkeypatch, moment: str) -> None:
    expected = np.array(make_store(tmp_path / "whole.npy", manifest, SMALL).array)
    path, real, written = tmp_path / "s.npy", store_module.write_chunk, []
    monkeypatch.setattr(store_module, "SYNC_EVERY", 0.0)

    def write(chunk):
        if len(written) == {"first": 0, "second": 1, "torn line": 2}.get(moment, 99):
            raise Killed
        written.append(chunk.number)
        return real(chunk)

    def die(*args):
        raise Killed

    monkeypatch.setattr(store_module, "write_chunk", write)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if moment == "before json":
            patch.setattr(store_module, "save_json", die)
        if moment == "after json":
            patch.setattr(Path, "replace", die)
        make_store(path, manifest, SMALL)
    assert not path.exists()
    with pytest.raises(RunFolderError):
        PhotoStore.open(path)
    if moment == "torn line":
        notes = path.with_suffix(".progress")
        notes.write_text(notes.read_text()[:-1])  # the end of the last line did not reach the disk
    before, moment = len(written), ""
    store = make_store(path, manifest, SMALL)
    np.testing.assert_array_equal(store.array, expected)
    assert sorted(set(written)) == [0, 1, 2] and len(written) <= 4 and len(written) - before <= 3
    if before == 3:
        assert len(written) == 3  # nothing was decoded twice
    assert sorted(p.name for p in tmp_path.glob("s.*")) == ["s.json", "s.npy"]


def test_photograph_that_changed_or_broke_since_the_scan(tmp_path: Path, manifest: Manifest) -> None:
    victim = manifest.paths[4]
    raw = victim.read_bytes()
    victim.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match=victim.name) as caught:
        make_store(tmp_path / "s.npy", manifest, SMALL)
    assert "scan" in caught.value.remedy
    victim.unlink()
    with pytest.raises(DataError, match="no such file"):
        make_store(tmp_path / "s.npy", manifest, SMALL)
    victim.write_bytes(raw)
    assert len(make_store(tmp_path / "s.npy", manifest, SMALL)) == 20


def test_disk_without_room_is_told_before_decoding(tmp_path: Path, manifest: Manifest, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=60_000_000))
    with pytest.raises(DiskFullError, match="needs 941 MB, and 50 MB are kept in reserve, but 60 MB are free"):
        make_store(tmp_path / "s.npy", manifest, Preprocess((2800, 5600)))
    assert not list(tmp_path.glob("s.*"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=8_100))
    with pytest.raises(DiskFullError, match=r"needs \d+ kB, and 50 MB are kept in reserve, but 8\.1 kB are free"):
        make_store(tmp_path / "s.npy", manifest, Preprocess((32, 48)))


def test_disk_that_fills_up_keeps_what_is_done(tmp_path: Path, manifest: Manifest, monkeypatch) -> None:
    real, written = store_module.write_chunk, []

    def write(chunk):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(chunk.number)
        return real(chunk)

    monkeypatch.setattr(store_module, "write_chunk", write)
    with pytest.raises(DiskFullError):
        make_store(tmp_path / "s.npy", manifest, SMALL)
    monkeypatch.setattr(store_module, "write_chunk", lambda chunk: written.append(chunk.number) or real(chunk))
    make_store(tmp_path / "s.npy", manifest, SMALL)
    assert written == [0, 1, 2]


def test_open_names_what_is_wrong(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(RunFolderError, match=r"none\.json: there is no file"):
        PhotoStore.open(tmp_path / "none.npy")
    path = tmp_path / "s.npy"
    make_store(path, manifest, SMALL)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(RunFolderError):
        PhotoStore.open(path)
    with pytest.raises(DataError, match="no photographs"):
        make_store(path, manifest.take(np.array([], dtype=int)), SMALL)
