"""A shared run: only files of the run, and nothing in them that says whose machine it was."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from manihot.errors import ManihotError, RunFolderError, SettingsError
from manihot.records.files import save_json
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.readers import read_json
from manihot.records.run_folder import RunFolder
from manihot.report.relative import Relative
from manihot.report.share import share_run

OWNER = "anna-secret"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run in a home folder that names its owner, with paths wherever a run may keep some."""
    home = tmp_path / "home" / OWNER
    photos = home / "pictures" / "field"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(Path, "home", lambda: home)
    folder = RunFolder(home / "runs" / "first")
    ids = [f"{k}.jpg" for k in range(4)]
    paths = [f"rust/{k}.jpg" for k in range(3)] + [str(tmp_path / "elsewhere" / "3.jpg")]
    table = pd.DataFrame({"image_id": ids, "path": paths, "label": [0, 1, 0, 1], "fold": [0, 0, 1, 1]})
    manifest = Manifest.from_table(table, ("rust", "N/A and/or healthy"), photos)
    manifest.save(folder.manifest)
    manifest.save(folder.folds)
    made = Predictions.from_probs(np.array(ids, dtype=object), np.full((4, 2), 0.5), manifest.classes, manifest.labels)
    made.save(folder.oof("main"))
    made.save(folder.watch("main", "0123"))
    save_json(
        folder.record_file,
        {
            "photos": [str(photos)],
            "command": [
                f"{home}/.local/bin/manihot",
                "run",
                str(photos),
                "--out",
                "~/runs/first",
                f"--csv={photos}/train.csv",
            ],
            "scan_options": {"csv": f"{photos}/train.csv", "image": "leaf/{id}.jpg"},
            "recipe": {"model": {"pretrained": f"{home}/weights/b0.pth"}, "note": f"read {home}/notes.txt, then stop"},
            "stages": {"members/main/fold0": {"outputs": {"members/main/fold0/best.safetensors": "ab"}}},
        },
    )
    save_json(folder.metrics, {"members": {}, "made from": f"file://{photos}/1.jpg"})
    windows = "C:\\Users\\anna-secret\\x.csv"
    save_json(folder.trust.summary, {"predictions": str(folder.oof("main")), "windows": windows})
    folder.trust.csv("coverage").write_text(f"class,file\nrust,{photos}/1.jpg\n", encoding="utf-8")
    fold = folder.fold("main", 0)
    fold.path.mkdir(parents=True)
    card = json.dumps({"classes": ["rust", "N/A and/or healthy"], "about": {"weights": f"{home}/weights/b0.pth"}})
    save_file({"w": np.arange(6.0)}, fold.torch_network, {"manihot": card})
    fold.history.write_text('{"epoch": 0}\n', encoding="utf-8")
    folder.blend.path.mkdir()
    np.savez_compressed(folder.blend.combination, about=np.array(json.dumps({"from": str(home)})), w=np.ones(2))
    twin = folder.fold("main", 1)  # as ONNX too, which is enough
    twin.path.mkdir(parents=True)
    _save_onnx(twin.network, home)
    save_file({"w": np.arange(6.0)}, twin.torch_network, {"manihot": card})
    return folder


def _save_onnx(path: Path, home: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    node = helper.make_node("Identity", ["a"], ["b"], doc_string=f'File "{home}/site-packages/timm/x.py", line 3')
    prop = node.metadata_props.add()
    prop.key, prop.value = "pkg.torch.onnx.stack_trace", f'File "{home}/train.py", line 1'
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "ab"]
    model = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:]))
    prop = model.metadata_props.add()
    prop.key, prop.value = "manihot", json.dumps({"weights": f"{home}/w.pth", "classes": ["rust"]})
    onnx.save(model, path)


def everything_in(content: bytes, name: str) -> str:
    """All that a file of the zip holds, unpacked, as text."""
    text = content.decode("latin-1")
    if name.endswith(".parquet"):
        table = pq.read_table(io.BytesIO(content))
        text += str(table.to_pydict()) + str(table.schema.metadata)
    if name.endswith(".npz"):
        with zipfile.ZipFile(io.BytesIO(content)) as inner:
            text += "".join(inner.read(one).decode("latin-1") for one in inner.namelist())
            text += "".join(inner.read(one).decode("utf-32-le", "replace") for one in inner.namelist())
            with np.load(io.BytesIO(content)) as arrays:
                text += str([arrays[one] for one in arrays.files])
    return text


def test_nothing_in_a_shared_run_says_where_it_was_made(run: RunFolder, tmp_path: Path):
    share_run(run.path, tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = archive.namelist()
        held = {name: everything_in(archive.read(name), name) for name in names}
        assert {Path(name).suffix for name in names} == {
            ".json",
            ".parquet",
            ".safetensors",
            ".onnx",
            ".jsonl",
            ".npz",
            ".csv",
        }
        networks = {name for name in names if Path(name).suffix in (".onnx", ".safetensors")}
        assert networks == {f"first/members/main/{name}" for name in ("fold0/best.safetensors", "fold1/network.onnx")}
    for name, text in held.items():
        for secret in (OWNER, str(tmp_path), "/home", "/tmp", "~/", "C:\\", "stack_trace"):
            assert secret not in text, name


def test_a_shared_run_says_all_that_is_not_a_place(run: RunFolder, tmp_path: Path):
    share_run(run.path, tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path / "there")
    there = RunFolder(tmp_path / "there/first")
    manifest = Manifest.load(there.manifest)
    assert manifest.classes == ("rust", "N/A and/or healthy") and manifest.root == Path()
    assert manifest.table["path"].tolist() == ["rust/0.jpg", "rust/1.jpg", "rust/2.jpg", "3.jpg"]
    record = read_json(there.record_file)
    assert record["command"] == ["manihot", "run", "field", "--out", "first", "--csv=pictures/field/train.csv"]
    assert record["scan_options"] == {"csv": "train.csv", "image": "leaf/{id}.jpg"}
    assert record["recipe"] == {"model": {"pretrained": "b0.pth"}, "note": "read notes.txt, then stop"}
    assert record["stages"] == read_json(run.record_file)["stages"]
    # what names no place is the same file, byte by byte
    assert there.oof("main").read_bytes() == run.oof("main").read_bytes()
    with safe_open(there.fold("main", 0).torch_network, "np") as file:
        assert file.get_tensor("w").tolist() == list(range(6))
        assert json.loads(file.metadata()["manihot"])["about"] == {"weights": "b0.pth"}
    assert there.trust.csv("coverage").read_text(encoding="utf-8") == "class,file\nrust,pictures/field/1.jpg\n"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("leaf/{id}.jpg", "leaf/{id}.jpg"),
        ("1/2 of and/or, N/A", "1/2 of and/or, N/A"),
        ("/healthy", "/healthy"),  # a class may be called so; it is not a place
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("/srv/field/a.csv", "a.csv"),
        ("see /srv/field/a.csv.", "see a.csv."),
        ("--csv=/srv/field/a.csv", "--csv=a.csv"),
        ("'/srv/my field/a'", "'my field/a'"),
        ("D:\\field\\a.csv", "a.csv"),
        ("\\\\server\\share\\a.csv", "a.csv"),
        ("~/a.csv", "a.csv"),
        ("file:///srv/a.csv", "a.csv"),
    ],
)
def test_text_loses_its_places_and_nothing_else(run: RunFolder, text: str, left: str):
    assert Relative(run).text(text) == left


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_are_not_shared_hard_or_soft(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    secret = tmp_path / "elsewhere"
    secret.mkdir()
    for name in ("a.json", "a.csv", "a.parquet", "main.oof.parquet"):
        (secret / name).write_text('{"password": 1}', encoding="utf-8")
    (run.trust.path / "soft.json").symlink_to(secret / "a.json")
    os.link(secret / "a.csv", run.trust.path / "hard.csv")
    (run.prediction_root / "other.oof.parquet").symlink_to(secret / "a.parquet")
    (run.trust.path / "nowhere.csv").symlink_to(tmp_path / "absent")
    (run.path / "members/elsewhere").symlink_to(secret, target_is_directory=True)
    (run.trust.path / "folder").symlink_to("/etc", target_is_directory=True)
    os.mkfifo(run.trust.path / "pipe.csv")
    for name in ("watch",):
        for file in (run.path / name).iterdir():
            file.unlink()
        (run.path / name).rmdir()
        (run.path / name).symlink_to(secret, target_is_directory=True)
    names = share_run(run.path, tmp_path / "a.zip")
    assert not [name for name in names if any(word in name for word in ("soft", "hard", "other", "nowhere", "pipe"))]
    assert not [name for name in names if name.startswith(("watch", "members/elsewhere", "trust/folder"))]
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert not any(b"password" in archive.read(name) for name in archive.namelist())
    assert "links are left out" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_two_names_of_one_file_within_the_run_are_shared(run: RunFolder, tmp_path: Path):
    os.link(run.oof("main"), run.oof("twin"))
    assert "predictions/twin.oof.parquet" in share_run(run.path, tmp_path / "a.zip")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_network_that_is_a_link_is_an_error(run: RunFolder, tmp_path: Path, kind: str):
    network = run.fold("main", 0).torch_network
    network.rename(tmp_path / "large.safetensors")
    (network.symlink_to if kind == "soft" else network.hardlink_to)(tmp_path / "large.safetensors")
    with pytest.raises(RunFolderError, match=r"members/main/fold0/best\.safetensors is a link") as caught:
        share_run(run.path, tmp_path / "a.zip")
    assert "cp --remove-destination" in caught.value.remedy
    assert not (tmp_path / "a.zip").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_what_a_killed_share_left_is_removed_by_the_next(run: RunFolder, tmp_path: Path):
    with open(run.trust.csv("large"), "wb") as file:
        file.write(np.random.default_rng(0).bytes(30_000_000).hex().encode())
    code = (
        "import sys; from pathlib import Path; from manihot.report.share import share_run\n"
        "share_run(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    place = tmp_path / "zips"
    place.mkdir()
    theirs = [place / ".party.manihot-1.part.zip", place / ".a.part.zip"]
    for path in theirs:
        path.touch()
    process = subprocess.Popen([sys.executable, "-c", code, str(run.path), str(place / "a.zip")])
    while not (left := list(place.glob(".a.manihot-*"))):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run.trust.csv("large").unlink()
    assert left[0].exists()
    share_run(run.path, place / "a.zip")
    assert sorted(path.name for path in place.iterdir()) == sorted(["a.zip", *(path.name for path in theirs)])


@pytest.mark.parametrize("content", ["[]", "null", '"x"', "3"])
def test_a_record_that_is_no_record_is_an_error(run: RunFolder, tmp_path: Path, content: str):
    run.record_file.write_text(content, encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"run\.json: not the record of a run"):
        share_run(run.path, tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx", ".npz", ".parquet", ".json", ".csv"])
@pytest.mark.parametrize("content", [b"", b"\xff\x00 no such file" * 20])
def test_a_damaged_file_is_named_and_nothing_is_shared(run: RunFolder, tmp_path: Path, suffix: str, content: bytes):
    files = [file for file in run.shared_files() if file.suffix == suffix]
    if not files or (not content and suffix in (".csv", ".onnx")):  # an empty one is whole
        pytest.skip(f"nothing damaged in {suffix}")
    files[-1].write_bytes(content)
    with pytest.raises(ManihotError, match=re.escape(files[-1].name)):
        share_run(run.path, tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


def test_what_is_no_run_is_not_shared(run: RunFolder, tmp_path: Path):
    with pytest.raises(SettingsError, match=r"not a \.zip"):
        share_run(run.path, tmp_path / "a.tar")
    with pytest.raises(RunFolderError, match="not a run folder"):
        share_run(tmp_path, tmp_path / "a.zip")
    for member in run.predicted():
        run.oof(member).unlink()
    with pytest.raises(RunFolderError, match="no predictions to share"):
        share_run(run.path, tmp_path / "a.zip")
