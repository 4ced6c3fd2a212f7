"""Damage that was met or is likely, one case a line: the error names the file, the field or array, and a remedy."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import DEEP, Raw, write_json
from saved_files import KINDS

from manihot.errors import ManihotError, RunFolderError
from manihot.records import readers
from manihot.records.readers import MOST_JSON, read_array, read_json, reading
from manihot.records.run_folder import RunFolder

LEFT_OUT = object()

# kind, place in the JSON, what stands there, words of the error
FIELDS: list[tuple[str, str, Any, str]] = [
    ("run record", "stages", [], "'stages'"),
    ("run record", "format", "two", "'format'"),
    ("run record", "stages.folds", "done", "'stages.folds'"),
    ("run record", "stages.folds.status", "perhaps", "'stages.folds.status'.*'perhaps'"),
    ("run record", "stages.folds.seconds", "long", "'stages.folds.seconds'"),
    ("run record", "stages.folds.outputs", ["a"], "'stages.folds.outputs'"),
    ("run record", "stages.folds.outputs", {"../../etc/passwd": "ab"}, "leads out of the run folder"),
    ("run record", "recipe", "quick", "'recipe'"),
    ("run record", "recipe.folds", 5, "'recipe.folds'"),
    ("run record", "recipe.members", ["main"], "'recipe.members'"),
    ("run record", "photos", "photos", "'photos'"),
    ("run record", "scan_options", 3, "'scan_options'"),
    ("run record", "versions", [], "'versions'"),
    ("run record", "weights", [1], "'weights.0'"),
    ("scores", "members", [], "'members'"),
    ("scores", "members.main.folds", {"zero": {"accuracy": 1.0}}, "folds.*zero"),
    ("scores", "members.main.folds.0.accuracy", "high", "'members.main.folds.0.accuracy'"),
    ("scores", "members.main.oof.n", -1, "'members.main.oof.n'"),
    ("scores", "members.main.oof.metrics.accuracy", LEFT_OUT, "no accuracy"),
    ("scores", "members.main.oof.metrics.accuracy.value", "0.5", "accuracy.value"),
    ("scores", "members.main.oof.confusion", [[1]], "do not fit its 3 classes"),
    ("scores", "members.main.oof.reliability.count", [1], "different lengths"),
    ("scores", "members.main.oof.per_class", None, "'members.main.oof.per_class'"),
    ("blend record", "members", LEFT_OUT, "'members'"),
    ("blend record", "groups.group.members", "b", "'groups.group.members'"),
    ("blend record", "nested.0.is_gain", None, "'nested.0.is_gain'"),
    ("stack record", "difference", LEFT_OUT, "a stack without 'difference'"),
    ("audit record", "evidence", "predictions", "'evidence'"),
    ("audit record", "evidence.missing", [], "'evidence.missing'"),
    ("what-if record", "sentence", LEFT_OUT, "'sentence'"),
    ("cleaning record", "written", "ab", "'written'"),
    ("calibrator temperature", "kind", "magic", "unknown calibration 'magic'"),
    ("calibrator temperature", "params", None, "'params'"),
    ("calibrator temperature", "params.temperature", 0, "'temperature'"),
    ("calibrator temperature", "params.temperature", Raw("NaN"), "'temperature'"),
    ("calibrator vector", "params.bias", [0.0], "weights and bias of different lengths"),
    ("calibrator vector", "params.weights.1", "a", "'weights.1'"),
    ("calibrator isotonic", "params.curves.0.x", [], "not a rising curve"),
    ("calibrator isotonic", "params.curves", [], "0 curves for 3 classes"),
    ("calibrator confidence", "params.curve.y", [2.0], "'curve.y.0'"),
    ("sets", "kind", "magic", "'kind'.*'magic'"),
    ("sets", "coverage", 1.5, "'coverage'"),
    ("sets", "thresholds", [0.5], "different lengths"),
    ("sets", "counts", [-1, 1, 1], "'counts.0'"),
    ("sets", "seed", 2**70, "'seed'"),
    ("sets", "settings", {"eval": 1}, "'settings.eval"),
    ("sets", "classes", ["a", "b"], "3 thresholds for 2 classes"),
    ("strangers", "detectors", {"-1": "../../unknown.npz"}, "is called '../../unknown.npz'"),
    ("strangers", "detectors", {"0": "unknown.fold0.npz"}, r"unknown\.fold0\.npz: there is no file"),
    ("strangers", "false_rejection", 0, "'false_rejection'"),
    ("store record", "image_id", ["a", "a"], "appear twice"),
    ("store record", "size", [4, 7], "not the size"),
    ("store record", "digest", 5, "'digest'"),
]


def put(value: Any, place: str, what: Any) -> None:
    """Set, or leave out, what stands at a.b.0 in nested dicts and lists."""
    *above, last = place.split(".")
    for key in above:
        value = value[int(key)] if isinstance(value, list) else value[key]
    key = int(last) if isinstance(value, list) else last
    if what is LEFT_OUT:
        del value[key]
    else:
        value[key] = what


def check(kind: str, path: Path, words: str) -> ManihotError:
    """Reading is a ManihotError on a file of this folder with these words and a remedy."""
    with pytest.raises(ManihotError, match=words) as caught:
        KINDS[kind].use(path)
    assert str(path.parent) in caught.value.what and caught.value.remedy
    return caught.value


@pytest.mark.parametrize(("kind", "place", "what", "words"), FIELDS)
def test_a_field_that_is_wrong_is_named(kind: str, place: str, what: Any, words: str, tmp_path: Path):
    path = tmp_path / KINDS[kind].name
    KINDS[kind].make(path)
    value = json.loads(path.read_text(encoding="utf-8"))
    put(value, place, what)
    path.write_text(write_json(value), encoding="utf-8")
    check(kind, path, words)


JSON_KINDS = [kind for kind in KINDS if KINDS[kind].name.endswith(".json")]
BYTES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not "),
    "cut off": (b'{"a": [1, 2', "not "),
    "another encoding": ('{"ä": 1}'.encode("utf-16"), "not "),
    "zeros": (bytes(4096), "not "),
    "nested lists": (b"[" * DEEP + b"]" * DEEP, "nested too deeply"),
    "nested objects": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "nested too deeply"),
    "a little too deep": (b"[" * 100 + b"]" * 100, "nested more than 64 deep"),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", "digit"),
    "half a character": (b'{"a": "\\ud800"}', "surrogates"),
    "a list": (b"[]", "not "),
    "a number": (b"1e999", "not "),
    "nothing": (b"null", "not "),
}


@pytest.mark.parametrize("kind", JSON_KINDS)
@pytest.mark.parametrize("how", BYTES)
def test_what_is_no_record_at_all_is_told(kind: str, how: str, tmp_path: Path):
    path = tmp_path / KINDS[kind].name
    KINDS[kind].make(path)
    path.write_bytes(BYTES[how][0])
    check(kind, path, BYTES[how][1])


def test_a_json_file_larger_than_any_of_ours_is_not_read(tmp_path: Path):
    with open(tmp_path / "run.json", "wb") as file:
        file.truncate(MOST_JSON + 1)
    with pytest.raises(RunFolderError, match="more than the limit"):
        read_json(tmp_path / "run.json")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of Unix")
def test_what_is_no_regular_file_is_not_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(RunFolderError, match="not a regular file"):
        read_json(tmp_path / "run.json")
    (tmp_path / "metrics.json").mkdir()
    with pytest.raises(RunFolderError, match="not a regular file"):
        read_json(tmp_path / "metrics.json")


def test_a_record_that_may_not_be_read_is_told(tmp_path: Path):
    with pytest.raises(RunFolderError, match=r"can't be read \(Input/output error\)") as caught, reading(tmp_path, "x"):
        raise OSError(5, "Input/output error")
    assert "check the disk" in caught.value.remedy


# kind, how the table is changed, words of the error
TABLES: list[tuple[str, Callable[[pa.Table], pa.Table], str]] = [
    ("manifest", lambda t: t.drop_columns(["image_id"]), "no 'column image_id'"),
    ("manifest", lambda t: t.set_column(2, "label", pa.array(["x"] * len(t))), "column label holds string"),
    ("manifest", lambda t: t.set_column(2, "label", pa.array([7] * len(t))), "label 7"),
    ("manifest", lambda t: t.replace_schema_metadata({}), "not a manihot manifest"),
    ("manifest", lambda t: t.replace_schema_metadata({b"manihot": b"{}"}), "'classes'"),
    ("manifest", lambda t: t.replace_schema_metadata({b"manihot": b'{"classes": 3, "root": "x"}'}), "'classes'"),
    ("manifest", lambda t: t.replace_schema_metadata({b"manihot": b'{"classes": ["a"], "root": 4}'}), "'root'"),
    ("manifest", lambda t: pa.concat_tables([t, t]), "appear more than once"),
    ("predictions", lambda t: t.drop_columns(["logits"]), "logits"),
    ("predictions", lambda t: t.set_column(3, "logits", pa.array([[1.0]] * len(t))), "column logits holds list"),
    ("predictions", lambda t: t.set_column(1, "label", pa.array([None] * len(t), pa.int64())), "empty cells"),
    ("predictions", lambda t: t.set_column(1, "label", pa.array([-7] * len(t))), "label -7"),
    ("predictions", lambda t: t.replace_schema_metadata({b"manihot": b'{"classes": ["a", "a", "b"]}'}), "appear twice"),
    ("predictions", lambda t: t.replace_schema_metadata({b"manihot": b'{"classes": ["a"]}'}), "don't fit"),
    ("table label_issues", lambda t: t.drop_columns(["label_score"]), "no 'column label_score'"),
    ("table duplicates", lambda t: t.set_column(1, "group", pa.array([1] * len(t))), "column group holds int64"),
    ("embeddings", lambda t: pa.concat_tables([t, t]), "appear twice"),
    ("margins", lambda t: t.drop_columns(["epoch"]), "no 'column epoch'"),
    ("thumbnails table", lambda t: t.drop_columns(["phash"]), "no 'column phash'"),
]


@pytest.mark.parametrize(("kind", "change", "words"), TABLES)
def test_a_table_that_is_wrong_is_named(kind: str, change: Callable[[pa.Table], pa.Table], words: str, tmp_path: Path):
    path = tmp_path / KINDS[kind].name
    KINDS[kind].make(path)
    table = pq.read_table(path)
    pq.write_table(change(table), path)
    check(kind, path, words)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].name.endswith(".parquet")])
@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"PAR1\xff\xff\xff\x7fPAR1", b"a,b\n1,2\n"]
)
def test_what_is_no_parquet_is_told(kind: str, content: bytes, tmp_path: Path):
    path = tmp_path / KINDS[kind].name
    KINDS[kind].make(path)
    path.write_bytes(content)
    check(kind, path, "not ")


def pickled() -> bytes:
    """An .npy of objects that writes a file when it is unpickled."""
    out = io.BytesIO()
    np.save(out, np.array([Bomb()], dtype=object), allow_pickle=True)
    return out.getvalue()


class Bomb:
    """Unpickling it leaves a trace."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def lying(shape: tuple[int, ...], values: int) -> bytes:
    """An .npy whose head tells of more values than there are."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return out.getvalue() + bytes(8 * values)


@pytest.mark.parametrize("kind", ["thumbnails", "store"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not "),
        (pickled(), "pickled objects"),
        (pickle.dumps(Bomb()), "not "),
        (lying((1 << 60, 1 << 60), 4), "are not an array"),
        (lying((-1,), 0), "not "),
        (lying((3,), 3), "values float64"),
        (b"\x93NUMPY\x09\x00" + bytes(100), "not "),
    ],
)
def test_an_array_that_is_wrong_is_named(
    kind: str, content: bytes, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / KINDS[kind].name
    KINDS[kind].make(path)
    path.write_bytes(content)
    check(kind, path, words)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("kind", ["blend", "stack", "detector knn", "detector mahalanobis"])
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("about", None, "no 'array about'"),
        ("about", pickled(), "pickled objects"),
        ("about", lying((1 << 45,), 2), "are not an array"),
        ("extra", pickled(), "pickled objects"),
    ],
)
def test_arrays_that_are_wrong_are_named(
    kind: str, name: str, content: bytes | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / KINDS[kind].name
    KINDS[kind].make(path)
    with zipfile.ZipFile(path) as archive:
        held = {one: archive.read(one) for one in archive.namelist()}
    held.pop(f"{name}.npy", None)
    with zipfile.ZipFile(path, "w") as archive:
        for one, raw in held.items():
            archive.writestr(one, raw)
        if content is not None:
            archive.writestr(f"{name}.npy", content)
    check(kind, path, words)
    assert not Path("exploded").exists()


def test_an_npz_that_unpacks_to_more_than_any_of_ours_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readers, "MOST_ARRAYS", 1 << 20)
    path = tmp_path / KINDS["blend"].name
    np.savez_compressed(path, a=np.zeros(1 << 18))
    assert path.stat().st_size < 10_000
    check("blend", path, "unpacked larger")


def test_shapes_are_told_in_words(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(RunFolderError, match=r"shape \(2, 3\), expected \(any, 4\)"):
        read_array(tmp_path / "a.npy", "features", "float32", (None, 4))
    assert read_array(tmp_path / "a.npy", "features", "float32", (None, 3)).shape == (2, 3)


def checkpoint_cases() -> dict[str, bytes]:
    """What may stand where the state of a training is expected."""
    torch = pytest.importorskip("torch")

    def saved(value: object) -> bytes:
        out = io.BytesIO()
        torch.save(value, out)
        return out.getvalue()

    whole = saved({"model": {"weight": torch.zeros(3, 3)}, "progress": {}})
    progress = {"epoch": -1, "step": "x", "best": None, "best_epoch": 0, "history": 5}
    return {
        "empty": b"",
        "random": np.random.default_rng(0).bytes(5000),
        "pickled": pickle.dumps(Bomb()),
        "pickled by torch": saved(Bomb()),
        "of another shape": whole,
        "cut off": whole[: len(whole) // 2],
        "text": b"no checkpoint",
        "a list": saved([1, 2]),
        "a number": saved(3),
        "without progress": saved({}),
        "another's progress": saved({"progress": progress}),
        "a zip": b"PK\x05\x06" + bytes(18),
        "a legacy tar": b"./" + bytes(1000),
    }


@pytest.mark.parametrize(
    "how",
    [
        "empty",
        "random",
        "pickled",
        "pickled by torch",
        "of another shape",
        "cut off",
        "text",
        "a list",
        "a number",
        "without progress",
        "another's progress",
        "a zip",
        "a legacy tar",
    ],
)
def test_a_checkpoint_that_is_damaged_is_told(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch = pytest.importorskip("torch")
    from manihot.train.loop import _resume

    monkeypatch.chdir(tmp_path)
    path = RunFolder(tmp_path / "run").fold("main", 0).checkpoint
    path.parent.mkdir(parents=True)
    path.write_bytes(checkpoint_cases()[how])
    parts = {} if how == "another's progress" else {"model": torch.nn.Linear(2, 2)}
    with pytest.raises(RunFolderError, match=r"last\.ckpt: not a checkpoint of this training") as caught:
        _resume(path, parts, torch.device("cpu"))
    assert caught.value.remedy == f"remove the folder {path.parent} to train it again"
    assert not Path("exploded").exists()


def test_a_whole_checkpoint_is_taken_up(tmp_path: Path):
    torch = pytest.importorskip("torch")
    from manihot.train.loop import Progress, _resume

    model = torch.nn.Linear(2, 2)
    progress = Progress(epoch=2, step=8, best=0.5, best_epoch=1, history=[{"epoch": 1}], margins={0: torch.ones(2)})
    torch.save({"model": model.state_dict(), "progress": vars(progress)}, tmp_path / "last.ckpt")
    found = _resume(tmp_path / "last.ckpt", {"model": torch.nn.Linear(2, 2)}, torch.device("cpu"))
    assert (found.epoch, found.step, found.best, found.history) == (2, 8, 0.5, [{"epoch": 1}])
    assert torch.equal(found.margins[0], torch.ones(2))
