"""An exported model gives its run's answers, from any number of folds, by every kind of calibration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from scipy.special import softmax

import manihot
from manihot.errors import SettingsError, WeightsError
from manihot.export import certificate
from manihot.export.graph import build_model
from manihot.infer.forward import PhotoFiles
from manihot.infer.models import read_card
from manihot.infer.predict import predict
from manihot.networks.card import KEY
from manihot.networks.runner import LinearHead, OnnxRunner, read_metadata
from manihot.records.manifest import Manifest
from manihot.records.run_folder import RunFolder
from manihot.trust.calibrate import CALIBRATORS, Calibrator, fit_calibrator

pytestmark = pytest.mark.core

ONE = manihot.Compute(workers=1)
FAST = ["folds.n=2", "features.c=[0.01]", "photo.area=9216", "tta=[{name: full}, {name: full, flip: h}]"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of drawn photographs."""
    home = tmp_path_factory.mktemp("export")
    manihot.demo_data(home / "demo", photos=60)
    manihot.run(home / "demo", out=home / "run", recipe="quick", set=FAST, compute=ONE)
    return home / "run"


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """The run, exported."""
    manihot.export(run, out=run.parent / "out")
    return run.parent / "out"


@pytest.mark.parametrize("raw", [False, True])
def test_the_exported_network_answers_as_the_run(run: Path, exported: Path, raw: bool):
    manifest = Manifest.load(run / "folds.parquet").take(np.arange(12))
    manifest.save(run.parent / "some.parquet")
    expected = predict(run, run.parent / "some.parquet", tta=1, raw=raw)
    about = json.loads((exported / "model.json").read_text(encoding="utf-8"))
    photos = PhotoFiles(manifest.paths, manihot.load_model(run)[0].preprocess)
    batch = np.stack([manihot.load_model(run)[0].preprocess(photos[k]) for k in range(12)])
    assert list(batch.shape[1:]) == about["input"]["shape"][1:] and about["classes"] == list(expected.classes)
    found = OnnxRunner(exported / "model.onnx")(batch)
    probs = softmax(found["logits"].astype(np.float64), axis=1) if raw else found["probabilities"]
    assert np.abs(probs - expected.pred_probs).max() < 1e-5
    assert found["embeddings"].shape[0] == 12


def test_predict_reads_the_exported_file(run: Path, exported: Path):
    photos = run.parent / "demo/train_images"
    ours = predict(exported / "model.onnx", photos)
    run_own = predict(run, photos, tta=1, raw=True)
    assert np.abs(ours.pred_probs - run_own.align(ours.image_id).pred_probs).max() < 1e-5


def test_the_certificate_holds_what_was_measured(exported: Path):
    found = json.loads((exported / "certificate.json").read_text(encoding="utf-8"))
    assert found["raw"]["equal_decisions"] == found["calibrated"]["equal_decisions"] == 1
    assert 0 < found["raw"]["largest_difference"] < found["bound"] == certificate.BOUND
    assert found["held_out"]["low"] <= found["held_out"]["accuracy"] <= found["held_out"]["high"]
    assert '"classes"' in read_metadata(exported / "model.onnx")[KEY]


def test_another_answer_than_the_runs_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from manihot.export import graph

    def wrong(*args: object) -> str:
        return graph.calibrate_as_it_is(*args[:-2], Calibrator("temperature", {"temperature": 3.0}), args[-1])

    monkeypatch.setattr(graph, "calibrate_as_it_is", graph.calibrate, raising=False)
    monkeypatch.setattr(graph, "calibrate", wrong)
    with pytest.raises(WeightsError, match=r"calibrated probabilities by up to 0\.\d+ .*nothing was written"):
        manihot.export(run, out=tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_int8_is_judged_on_held_out_photographs(run: Path, exported: Path, tmp_path: Path):
    found = manihot.export(run, out=tmp_path / "out", int8=True).certificate["int8"]
    small, whole = tmp_path / "out/model.int8.onnx", tmp_path / "out/model.onnx"
    assert 3 * small.stat().st_size < whole.stat().st_size and found["bytes"] == small.stat().st_size
    oof = manihot.Predictions.load(run / "predictions/main.oof.parquet")
    n = int((oof.labels >= 0).sum())
    assert found["fp32"]["photographs"] == found["int8"]["photographs"] == n
    gained = round(n * (found["int8"]["accuracy"] - found["fp32"]["accuracy"]))
    assert gained == found["fixed"] - found["broken"]
    # heads that were not fitted anew, on int8's features, would answer otherwise
    photos = run.parent / "demo/train_images"
    ours, before = (predict(file, photos) for file in (small, whole))
    assert np.abs(ours.pred_probs - before.pred_probs).max() > 0
    assert (ours.logits.argmax(1) == before.logits.argmax(1)).mean() > 0.8
    about = json.loads((tmp_path / "out/model.json").read_text(encoding="utf-8"))
    assert about["int8"]["calibration"]["params"] != about["calibration"]["params"]


def test_int8_that_is_worse_beyond_chance_is_not_written(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("manihot.export.int8.LEVEL", 1.1)
    with pytest.raises(WeightsError, match=r"int8 loses accuracy: .* nothing was written"):
        manihot.export(run, out=tmp_path / "out", int8=True)
    assert not list((tmp_path / "out").iterdir())


def test_whole_networks_of_two_folds_become_one_graph(run: Path, tmp_path: Path):
    """Backbone and head in one file per fold, as fine-tuning leaves them."""
    copied = shutil.copytree(run, tmp_path / "run")
    member = RunFolder(copied).member("main")
    for fold in member.folds().values():
        card = read_metadata(fold.head)
        heads, size = [LinearHead.load(fold.head)], read_card(fold.head).preprocess.size
        build_model([member.backbone], heads, 5, Calibrator("none", {}), size, fold.network, card)
        fold.head.unlink()
    certificate = manihot.export(copied, out=tmp_path / "out", int8=True).certificate
    assert certificate["raw"]["equal_decisions"] == certificate["calibrated"]["equal_decisions"] == 1
    assert certificate["int8"]["int8"]["photographs"] == certificate["held_out"]["photographs"]
    photos = run.parent / "demo/train_images"
    ours, before = (predict(file, photos) for file in (tmp_path / "out/model.onnx", run))
    heads = predict(run, photos, tta=1, raw=True).align(ours.image_id)
    assert np.abs(ours.pred_probs - heads.pred_probs).max() < 1e-5 < np.abs(ours.pred_probs - before.pred_probs).max()
    sizes = [(tmp_path / "out" / name).stat().st_size for name in ("model.int8.onnx", "model.onnx")]
    assert 3 * sizes[0] < sizes[1] and sizes[1] > 25e6


def test_a_run_folder_is_never_written_into(run: Path):
    with pytest.raises(SettingsError, match="this is a run folder"):
        manihot.export(run, out=run)


def pixels_network(path: Path, weight: np.ndarray, logits: bool) -> Path:
    """A network of mean colours: embeddings (N, 3), and logits where asked for."""
    nodes = [
        helper.make_node("Cast", ["photos"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f"], ["m"], axes=[1, 2], keepdims=0),
        helper.make_node("Div", ["m", "c"], ["embeddings"]),
        helper.make_node("Sqrt", ["f"], ["maps_0"]),
        *([helper.make_node("MatMul", ["embeddings", "w"], ["logits"])] if logits else []),
    ]
    kinds = {"embeddings": ["n", 3], "maps_0": ["n", "h", "w", 3], **({"logits": ["n", 4]} if logits else {})}
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in kinds.items()]
    photos = helper.make_tensor_value_info("photos", TensorProto.UINT8, ["n", "h", "w", 3])
    constants = [onnx.numpy_helper.from_array(np.float32(64), "c"), onnx.numpy_helper.from_array(weight.T.copy(), "w")]
    graph = helper.make_graph(nodes, "g", [photos], outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.mark.parametrize("kind", CALIBRATORS)
@pytest.mark.parametrize("heads", [True, False])
def test_every_calibration_is_computed_inside(tmp_path: Path, kind: str, heads: bool):
    rng = np.random.default_rng(3)
    photos = rng.integers(0, 256, (300, 1, 2, 3), dtype=np.uint8)
    weights = [rng.normal(size=(4, 3)).astype(np.float32) for _ in range(3)]
    means = photos.reshape(300, 2, 3).astype(np.float64).mean(1) / 64
    probs = np.mean([softmax(means @ one.T, axis=1) for one in weights], axis=0)
    labels = np.array([rng.choice(4, p=row) for row in probs])
    calibrator = fit_calibrator(probs, labels, kind)
    networks = [pixels_network(tmp_path / f"{k}.onnx", one, not heads) for k, one in enumerate(weights)]
    linear = [LinearHead(one, np.zeros(4, np.float32)) for one in weights]
    networks, linear = (networks[:1], linear) if heads else (networks, [])
    build_model(networks, linear, 4, calibrator, (1, 2), tmp_path / "all.onnx", {})
    found = OnnxRunner(tmp_path / "all.onnx")(photos)
    assert np.abs(found["probabilities"] - calibrator(probs)).max() < certificate.BOUND
    assert np.abs(softmax(found["logits"].astype(np.float64), axis=1) - probs).max() < 1e-6
    assert np.abs(found["embeddings"] - means).max() < 1e-4
    assert "maps_0" not in found and not [n for n in onnx.load(tmp_path / "all.onnx").graph.node if n.op_type == "Sqrt"]
