"""The records that rooms speak through and the run folder: round trips, stages, locks, full disks."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from manihot.errors import DataError, DiskFullError, RunFolderError
from manihot.records.columns import ALWAYS_TRAIN, COLUMNS, UNLABELLED
from manihot.records.files import atomic_path, digest_file, digest_value, save_json, write_atomic
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.probabilities import TINY
from manihot.records.readers import read_json
from manihot.records.run_folder import RunFolder

CLASSES = ("healthy", "mosaic", "blight")


def small_manifest(**columns: object) -> Manifest:
    table = pd.DataFrame({"image_id": ["a", "b", "c"], "path": ["x/a.jpg", "x/b.jpg", "/c.jpg"], "label": [0, 2, -1]})
    return Manifest.from_table(table.assign(**columns), CLASSES, Path("/photos"))


def small_predictions(n: int = 4, embeddings: bool = True) -> Predictions:
    rng = np.random.default_rng(0)
    return Predictions(
        np.array([f"p{i}" for i in range(n)], dtype=object),
        rng.normal(size=(n, 3)).astype(np.float32),
        CLASSES,
        rng.integers(-1, 3, n),
        rng.integers(0, 2, n),
        rng.normal(size=(n, 5)).astype(np.float32) if embeddings else None,
    )


def same(one: Predictions, two: Predictions) -> None:
    assert one.image_id.tolist() == two.image_id.tolist()
    assert one.classes == two.classes
    for name in ("logits", "labels", "fold", "embeddings"):
        a, b = getattr(one, name), getattr(two, name)
        assert (a is None) == (b is None), name
        if a is not None:
            if name == "embeddings":  # files hold them in half precision
                a, b = a.astype(np.float16).astype(np.float32), b.astype(np.float16).astype(np.float32)
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype, name


# Manifest


def test_manifest_fills_what_a_source_does_not_say():
    manifest = small_manifest(plot=[7, 8, 9])
    assert list(manifest.table.columns) == [*COLUMNS, "plot"]
    assert set(manifest.table["source"]) == {"main"}
    assert set(manifest.fold) == {ALWAYS_TRAIN}
    assert manifest.labels.dtype == np.int64
    assert manifest.table["weight"].dtype == np.float32
    assert manifest.class_counts().tolist() == [1, 0, 1]
    assert manifest.paths == [Path("/photos/x/a.jpg"), Path("/photos/x/b.jpg"), Path("/c.jpg")]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("rows", [3, 0])
def test_manifest_round_trip(tmp_path, soft, rows):
    manifest = small_manifest(plot=[7, 8, 9], group=["", "g", "g"], weight=[1, 0.5, 2], fold=[0, 1, -1])
    if soft:
        nan = np.nan
        values = np.array([[0.2, 0.3, 0.5], [nan, nan, nan], [1, 0, 0]], dtype=np.float32)
        manifest = replace(manifest, soft_labels=values)
    manifest = manifest.take(np.arange(rows))
    manifest.save(tmp_path / "deep" / "manifest.parquet")
    again = Manifest.load(tmp_path / "deep" / "manifest.parquet")
    pd.testing.assert_frame_equal(again.table, manifest.table)
    assert (again.classes, again.root) == (manifest.classes, manifest.root)
    if soft:
        np.testing.assert_array_equal(again.soft_labels, manifest.soft_labels)
        assert again.soft_labels.dtype == np.float32
    else:
        assert again.soft_labels is None


def test_manifest_take_by_mask_and_by_index():
    manifest = replace(small_manifest(), soft_labels=np.eye(3, dtype=np.float32))
    for rows in (np.array([True, False, True]), np.array([0, 2])):
        taken = manifest.take(rows)
        assert taken.image_id.tolist() == ["a", "c"]
        np.testing.assert_array_equal(taken.soft_labels, np.eye(3)[[0, 2]])
    assert manifest.take(np.array([2, 0])).image_id.tolist() == ["c", "a"]
    assert manifest.with_columns(label=np.array([1, 1, 1])).labels.tolist() == [1, 1, 1]
    assert manifest.labels.tolist() == [0, 2, UNLABELLED]  # the first is as it was


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"image_id": ["a", "b", "a"]}, "more than once"),
        ({"label": [0, 3, 1]}, "label 3, but there are 3 classes"),
        ({"label": [0, -2, 1]}, "label -2"),
        ({"label": [0, None, 1]}, "'label'"),
        ({"label": ["healthy", "mosaic", "x"]}, "'label'"),
        ({"fold": [0.0, np.nan, 1.0]}, "'fold'"),
    ],
)
def test_manifest_refuses(columns, words):
    with pytest.raises(DataError, match=words):
        small_manifest(**columns)


def test_manifest_load_refuses_anything_else(tmp_path):
    path = tmp_path / "manifest.parquet"
    with pytest.raises(DataError, match="no manifest here"):
        Manifest.load(path)
    path.write_bytes(b"PAR1 no parquet")
    with pytest.raises(DataError, match=r"manifest\.parquet: not a manihot manifest"):
        Manifest.load(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(DataError, match="not a manihot manifest"):
        Manifest.load(path)
    small_predictions().save(path)
    with pytest.raises(DataError, match="not a manihot manifest"):
        Manifest.load(path)
    small_manifest().save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a manihot manifest"):
        Manifest.load(path)


# Predictions


@pytest.mark.parametrize("n", [4, 1, 0])
@pytest.mark.parametrize("embeddings", [True, False])
def test_predictions_round_trip_parquet(tmp_path, n, embeddings):
    predictions = small_predictions(n, embeddings)
    predictions.save(tmp_path / "oof.parquet")
    same(Predictions.load(tmp_path / "oof.parquet"), predictions)


def test_embeddings_are_kept_in_half_precision_unless_one_is_too_large(tmp_path):
    given = small_predictions(4)
    given.save(tmp_path / "half.parquet")
    kept = Predictions.load(tmp_path / "half.parquet")
    np.testing.assert_array_equal(kept.embeddings, given.embeddings.astype(np.float16).astype(np.float32))
    kept.save(tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "half.parquet").read_bytes()
    large = replace(given, embeddings=given.embeddings * 1e5)
    large.save(tmp_path / "large.parquet")
    np.testing.assert_array_equal(Predictions.load(tmp_path / "large.parquet").embeddings, large.embeddings)


@pytest.mark.parametrize("name", ["oof.csv", "OOF.CSV"])
def test_predictions_round_trip_csv(tmp_path, name):
    predictions = small_predictions(6)
    predictions.save(tmp_path / name)
    header = (tmp_path / name).read_text(encoding="utf-8").splitlines()[0]
    assert header == "image_id,label,c0,c1,c2"
    again = Predictions.load(tmp_path / name, CLASSES)
    assert again.image_id.tolist() == predictions.image_id.tolist()
    assert again.labels.tolist() == predictions.labels.tolist()
    assert again.classes == CLASSES
    np.testing.assert_allclose(again.pred_probs, predictions.pred_probs, atol=2e-7)
    assert Predictions.load(tmp_path / name).classes == ("c0", "c1", "c2")


shapes = st.tuples(st.integers(1, 5), st.integers(2, 6))


@settings(max_examples=60, deadline=None)
@given(shapes.flatmap(lambda shape: hnp.arrays(np.float64, shape, elements=st.floats(0, 1))))
def test_probabilities_come_back_from_their_logits(raw):
    raw = raw + (raw.sum(axis=1, keepdims=True) == 0)
    probs = raw / raw.sum(axis=1, keepdims=True)
    names = tuple(f"c{k}" for k in range(probs.shape[1]))
    back = Predictions.from_probs(np.arange(len(probs)).astype(str), probs, names).pred_probs
    np.testing.assert_allclose(back, probs, atol=1e-6 + probs.shape[1] * TINY)
    np.testing.assert_allclose(back.sum(axis=1), 1, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-20, 20, width=32))),
    st.floats(-50, 50, width=32),
)
def test_softmax_minds_differences_alone(logits, shift):
    n, k = logits.shape
    ids, none = np.arange(n).astype(str), np.full(n, -1)
    names = tuple(map(str, range(k)))
    plain = Predictions(ids, logits, names, none, none).pred_probs
    moved = Predictions(ids, logits + np.float32(shift), names, none, none).pred_probs
    np.testing.assert_allclose(plain, moved, atol=1e-5)
    again = Predictions.from_probs(ids, plain, names)
    np.testing.assert_allclose(again.pred_probs, plain, atol=1e-6)


def test_align_gives_the_rows_in_the_order_asked_for():
    predictions = small_predictions(4)
    aligned = predictions.align(np.array(["p3", "p1"], dtype=object))
    same(aligned, predictions.take(np.array([3, 1])))
    with pytest.raises(DataError, match="1 photographs have no prediction, first 'x'"):
        predictions.align(np.array(["p0", "x"], dtype=object))
    twice = predictions.take(np.array([0, 1, 1]))
    with pytest.raises(DataError, match="more than once, first 'p1'"):
        twice.align(np.array(["p0"], dtype=object))


def test_predictions_refuse_what_does_not_fit():
    good = small_predictions(4)
    with pytest.raises(DataError, match="don't fit"):
        replace(good, classes=("a", "b"))
    with pytest.raises(DataError, match="don't fit"):
        replace(good, labels=good.labels[:2])
    with pytest.raises(DataError, match="not finite, first 'p1'"):
        replace(good, logits=np.where(np.arange(4)[:, None] == 1, np.nan, good.logits))
    with pytest.raises(DataError, match="label 3, but there are 3 classes"):
        replace(good, labels=np.array([0, 1, 3, 2]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the table is empty"),
        ("id,c0,c1\na,1,0\n", "expected columns image_id"),
        ("image_id,c0,c2\na,1,0\n", "expected columns image_id"),
        ("image_id,a,b\na,1,0\n", "expected columns image_id"),
        ("image_id,c0,c1\na,1,0\nb,2,3\n", "1 rows are not probabilities, first in line 3"),
        ("image_id,c0,c1\na,-0.5,1.5\n", "not probabilities"),
        ("image_id,c0,c1\na,,1\n", "line 2, column 'c0': the cell is empty"),
        ("image_id,c0,c1\na,x,1\n", "line 2, column 'c0': 'x' is not a number"),
        ("image_id,c0,c1\n,0,1\n", "line 2 has no image_id"),
        ("image_id,label,c0,c1\na,5,0,1\n", "label '5' in line 2 was read as .* but there are 2 classes"),
        ("image_id,label,c0,c1\na,0.5,0,1\n", "label '0.5' in line 2"),
        ("image_id,label,c0,c1\na,0,0,1\nb,rust,0,1\n", "label 'rust' in line 3"),
    ],
)
def test_bad_csv_is_explained(tmp_path, text, words):
    path = tmp_path / "bad.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        Predictions.load(path)


def test_csv_of_others(tmp_path):
    path = tmp_path / "theirs.csv"
    rows = "image_id,c1,label,c0,note\nNA,0.25,mosaic,0.75,x\n007,0.999,,0.0,\n"
    path.write_text("\ufeff" + rows, encoding="utf-8")
    predictions = Predictions.load(path, ("healthy", "mosaic"))
    assert predictions.image_id.tolist() == ["NA", "007"]  # neither missing nor a number
    assert predictions.labels.tolist() == [1, -1]
    np.testing.assert_allclose(predictions.pred_probs, [[0.75, 0.25], [0, 1]], atol=1e-6)


def test_csv_with_a_column_named_as_each_class(tmp_path):
    path = tmp_path / "named.csv"
    path.write_text("image_id,label,rust,healthy\na,healthy,0.25,0.75\nb,0,0.9,0.1\n", encoding="utf-8")
    found = Predictions.load(path)
    assert found.classes == ("rust", "healthy") and found.labels.tolist() == [1, 0]
    found = Predictions.load(path, ("healthy", "rust"))
    assert found.classes == ("healthy", "rust") and found.labels.tolist() == [0, 0]
    np.testing.assert_allclose(found.pred_probs, [[0.75, 0.25], [0.1, 0.9]], atol=1e-6)
    with pytest.raises(DataError, match="columns rust, healthy are not the classes healthy, mosaic"):
        Predictions.load(path, ("healthy", "mosaic"))
    path.write_text("image_id,label,rust,healthy\na,mosaic,0.25,0.75\n", encoding="utf-8")
    with pytest.raises(DataError, match="label 'mosaic' in line 2"):
        Predictions.load(path)
    path.write_text("image_id,label,rust,healthy,note\na,rust,0.25,0.75,x\n", encoding="utf-8")
    with pytest.raises(DataError, match="rust, healthy, note: line 2, column 'note': 'x' is not"):
        Predictions.load(path)


def test_predictions_load_refuses_anything_else(tmp_path):
    path = tmp_path / "oof.parquet"
    with pytest.raises(DataError, match="no predictions here"):
        Predictions.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a manihot predictions file"):
        Predictions.load(path)
    small_manifest().save(path)
    with pytest.raises(DataError, match="not a manihot predictions file"):
        Predictions.load(path)
    about = {b"manihot": json.dumps({"classes": ["a", "b"]}).encode()}
    lists = pa.table({"image_id": ["x"], "label": [0], "fold": [0], "logits": [[1.0, 2.0]]})
    pq.write_table(lists.replace_schema_metadata(about), path)  # lists of no fixed size
    with pytest.raises(DataError, match="not a manihot predictions file"):
        Predictions.load(path)


# Files and run folders


def test_atomic_path_keeps_the_old_file_on_any_failure(tmp_path):
    path = tmp_path / "new" / "scores.json"
    save_json(path, {"a": 1})
    for failure in (ValueError("x"), KeyboardInterrupt()):
        with pytest.raises(type(failure)), atomic_path(path) as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise failure
    assert read_json(path) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["scores.json"]


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, DiskFullError, "no space left"),
        (errno.EDQUOT, DiskFullError, "quota is used up"),
        (errno.EACCES, RunFolderError, "not allowed to write"),
        (errno.EROFS, RunFolderError, "not allowed to write"),
        (errno.EIO, RunFolderError, "input/output error"),
        (errno.EFBIG, RunFolderError, "larger than this system allows"),
        (errno.ENAMETOOLONG, RunFolderError, "check the path and the disk"),
    ],
)
@pytest.mark.parametrize("where", ["write", "flush", "rename"])
def test_refusals_of_the_system_are_explained(tmp_path, monkeypatch, number, kind, words, where):
    path = tmp_path / "scores.json"
    write_atomic(path, "old")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        if where == "write":
            patched.setattr(Path, "write_bytes", refuse)
        else:
            patched.setattr(os, {"flush": "fsync", "rename": "replace"}[where], refuse)
        with pytest.raises(RunFolderError, match=words) as caught:
            write_atomic(path, "new")
    assert type(caught.value) is kind
    assert "scores.json" in str(caught.value)
    assert caught.value.exit_code == (28 if kind is DiskFullError else 5)
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["scores.json"]


def test_a_library_that_tells_of_the_full_disk_in_words(tmp_path):
    with pytest.raises(DiskFullError, match="no space left"), atomic_path(tmp_path / "best.safetensors"):
        raise ValueError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunFolderError, match="not allowed"), RunFolder(tmp_path / "run"):
        pass
    tmp_path.chmod(0o700)


def test_a_file_stands_where_the_run_folder_should(tmp_path):
    (tmp_path / "run").write_text("x", encoding="utf-8")
    with pytest.raises(RunFolderError, match="run"), RunFolder(tmp_path / "run"):
        pass


@pytest.mark.parametrize("below", ["t.csv/scores.json", "t.csv/run/scores.json"])
def test_a_file_stands_where_a_written_files_folder_should(tmp_path, below):
    (tmp_path / "t.csv").write_text("image,label\n", encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"t\.csv is a file.*\n.*--out"):
        write_atomic(tmp_path / below, "new")
    assert (tmp_path / "t.csv").read_text(encoding="utf-8") == "image,label\n"


def test_digests(tmp_path):
    assert digest_value({"a": 1, "b": [2, 3]}) == digest_value({"b": [2, 3], "a": 1})
    assert digest_value({"a": 1}) != digest_value({"a": 2})
    (tmp_path / "abc").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert digest_file(tmp_path / "abc") == known


def test_a_broken_json_file_is_named(tmp_path):
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"run\.json: not readable as JSON"):
        read_json(tmp_path / "run.json")
    with RunFolder(tmp_path) as run, pytest.raises(RunFolderError, match=r"run\.json"):
        run.stage("scan", 1, list)


class Work:
    """Writes a file and counts how often; names the file, or what else it is said to write."""

    def __init__(self, path: Path, *says: str) -> None:
        self.path, self.says, self.times = path, says or (path,), 0

    def __call__(self) -> list[Path | str]:
        self.times += 1
        write_atomic(self.path, f"result {self.times}")
        return list(self.says)


def test_a_stage_runs_once_until_its_inputs_or_outputs_change(tmp_path):
    with RunFolder(tmp_path / "run") as run:
        work = Work(run / "out" / "a.txt")
        assert run.stage("a", {"x": 1}, work)
        assert not run.stage("a", {"x": 1}, work)
        entry = run.record["stages"]["a"]
        assert (entry["status"], list(entry["outputs"])) == ("done", ["out/a.txt"])
        assert run.stage("a", {"x": 2}, work)  # other inputs
        work.path.write_text("changed", encoding="utf-8")  # a corrupted output
        assert run.stage("a", {"x": 2}, work)
        work.path.unlink()  # a lost output
        assert run.stage("a", {"x": 2}, work)
        assert work.times == 4
        assert not run.stage("a", {"x": 2}, work)
    with RunFolder(tmp_path / "run") as run:  # another day
        run.update_record(seed=5)
        assert not run.stage("a", {"x": 2}, work)
        assert run.record["seed"] == 5


def test_a_stage_that_fails_is_run_again(tmp_path):
    with RunFolder(tmp_path / "run") as run:
        work = Work(run / "a.txt")

        def fail() -> list[Path | str]:
            work()
            raise ValueError("killed")

        with pytest.raises(ValueError, match="killed"):
            run.stage("a", 1, fail)
        assert run.record["stages"]["a"]["status"] == "running"
        assert run.stage("a", 1, work)
        assert not run.stage("a", 1, work)
        with pytest.raises(RunFolderError, match=r"stage b ended without writing b\.txt"):
            run.stage("b", 1, Work(run / "a.txt", "a.txt", "b.txt"))
        assert not run.is_done("b", 1)


def test_a_run_is_written_by_one_process(tmp_path):
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        from manihot.errors import RunFolderError
        from manihot.records.run_folder import RunFolder
        try:
            with RunFolder(Path(sys.argv[1])):
                print("held", flush=True)
                sys.stdin.readline()
        except RunFolderError as error:
            print(error)
    """)
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline().strip() == "held"
        with pytest.raises(RunFolderError, match="another manihot process") as caught, RunFolder(tmp_path / "run"):
            pass
        assert caught.value.exit_code == 5
        other.kill()  # the system drops the lock of a killed process
        other.wait()
    with RunFolder(tmp_path / "run") as run:
        assert run.stage("a", 1, list)
