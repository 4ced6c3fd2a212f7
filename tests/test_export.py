"""An exported model gives its run's answers, from any number of folds, by every kind of calibration."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper
from PIL import Image
from scipy.special import softmax

import manihot
from manihot.errors import SettingsError, WeightsError
from manihot.export import certificate
from manihot.export.bundle import Bundle
from manihot.export.certify import check_coverage, check_places
from manihot.export.graph import Networks, Trust, build_model
from manihot.export.hard import hard_photographs
from manihot.export.phone import find_runtime
from manihot.export.refusal import fit_detector
from manihot.export.witness import Place, compare, look
from manihot.infer.forward import PhotoFiles
from manihot.infer.models import read_card
from manihot.infer.predict import predict
from manihot.infer.quality import QualityGate
from manihot.networks.activation import activation_maps
from manihot.networks.card import KEY
from manihot.networks.graph import build_backbone
from manihot.networks.runner import LinearHead, OnnxRunner, read_metadata
from manihot.photos.decode import decode_photo
from manihot.photos.faults import PhotoFault
from manihot.photos.preprocess import Preprocess
from manihot.photos.quality import Limits, QualityLimits
from manihot.records.manifest import Manifest
from manihot.records.run_folder import RunFolder
from manihot.settings import Model
from manihot.settings.options import NetworkChoice
from manihot.trust.calibrate import CALIBRATORS, Calibrator, fit_calibrator
from manihot.trust.conformal import fit_sets
from manihot.trust.unknown import auroc
from manihot.trust.words import ASK, NOT_OF_THIS_KIND, POOR

pytestmark = pytest.mark.core

ONE = manihot.Compute(workers=1)
FAST = [
    "model.backbone=tf_efficientnet_lite0",
    "features.choose=[]",
    "folds.n=2",
    "features.c=[0.01]",
    "photo.area=9216",
    "tta=[{name: full}, {name: full, flip: h}]",
]


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
    assert list(batch.shape[1:3]) == about["input"]["size"] and about["classes"] == list(expected.classes)
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
    # heads that were not refitted, on int8's features, would answer otherwise
    photos = run.parent / "demo/train_images"
    ours, before = (predict(file, photos) for file in (small, whole))
    assert np.abs(ours.pred_probs - before.pred_probs).max() > 0
    assert (ours.logits.argmax(1) == before.logits.argmax(1)).mean() > 0.8
    about = json.loads((tmp_path / "out/model.json").read_text(encoding="utf-8"))
    assert about["int8"]["calibration"]["params"] != about["calibration"]["params"]


def test_int8_that_is_worse_beyond_chance_is_not_written(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("manihot.export.certificate.LEVEL", 1e9)
    with pytest.raises(WeightsError, match=r"int8 loses the class .* nothing was written"):
        manihot.export(run, out=tmp_path / "out", int8=True)
    assert not list((tmp_path / "out").iterdir())


def test_whole_networks_of_two_folds_become_one_graph(run: Path, tmp_path: Path):
    """Backbone and head in one file per fold, as fine-tuning leaves them."""
    copied = shutil.copytree(run, tmp_path / "run")
    member = RunFolder(copied).member("main")
    for fold in member.folds().values():
        card = read_metadata(fold.head)
        networks, preprocess = (
            Networks([member.backbone], [LinearHead.load(fold.head)]),
            read_card(fold.head).preprocess,
        )
        build_model(networks, Trust(Calibrator("none", {})), 5, preprocess, fold.network, card)
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
    table = pd.read_csv(tmp_path / "out/choices.csv").set_index("name")
    assert table.index.tolist() == ["folds", "fold0", "fold1"] and table["chosen"].tolist() == [True, False, False]
    assert table.loc["folds", "photographs"] == table.loc[["fold0", "fold1"], "photographs"].sum()
    assert (tmp_path / "out/choices.png").stat().st_size > 5000
    with pytest.raises(SettingsError, match=r"small and fast enough: folds: \d+\.\d MB"):
        manihot.export(copied, out=tmp_path / "none", choice=NetworkChoice(max_ms=1e-6))
    with pytest.raises(SettingsError, match="no such choice"):
        manihot.export(copied, out=tmp_path / "none", choice=NetworkChoice(network="fold7"))
    manihot.export(copied, out=tmp_path / "one", choice=NetworkChoice(max_mb=20))
    found = json.loads((tmp_path / "one/model.json").read_text(encoding="utf-8"))
    assert len(found["folds"]) == 1 and (tmp_path / "one/model.onnx").stat().st_size < 20e6
    best = table.loc[["fold0", "fold1"], "low"].idxmax()
    assert found["folds"] == [int(best[-1])]


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
    some = Networks(networks[:1], linear) if heads else Networks(networks)
    build_model(some, Trust(calibrator), 4, Preprocess((1, 2)), tmp_path / "all.onnx", {})
    found = OnnxRunner(tmp_path / "all.onnx")(photos)
    assert np.abs(found["probabilities"] - calibrator(probs)).max() < certificate.BOUND
    assert np.abs(softmax(found["logits"].astype(np.float64), axis=1) - probs).max() < 1e-6
    assert np.abs(found["embeddings"] - means).max() < 1e-4
    assert "maps_0" not in found and "activation" not in found


@pytest.mark.parametrize("kind", ["lac", "aps", "raps"])
def test_prediction_sets_are_computed_inside(tmp_path: Path, kind: str):
    rng = np.random.default_rng(5)
    photos = rng.integers(0, 256, (400, 1, 2, 3), dtype=np.uint8)
    head = LinearHead(rng.normal(size=(4, 3)).astype(np.float32) * 0.3, np.zeros(4, np.float32))
    probs = softmax(photos.reshape(400, 2, 3).astype(np.float64).mean(1) / 64 @ head.weight.T.astype(float), axis=1)
    labels = np.array([rng.choice(4, p=row) for row in probs])
    sets = fit_sets(probs[:200], labels[:200], 0.8, kind=kind)
    network = pixels_network(tmp_path / "net.onnx", head.weight, False)
    trust = Trust(Calibrator("none", {}), sets)
    build_model(Networks([network], [head]), trust, 4, Preprocess((1, 2)), tmp_path / "all.onnx", {})
    held = OnnxRunner(tmp_path / "all.onnx")(photos)["held"].astype(bool)
    largest = sets.predict_sets(probs, np.zeros(400))  # the random share that lets most in
    assert np.array_equal(held[200:], largest[200:]) and 1 < held.sum(1).mean() < 4


@pytest.mark.parametrize(
    "model",
    [{"pooling": "avg"}, {"pooling": "avgmax", "taps": (2, 3), "power": True}, {"pooling": "gem", "taps": (1,)}],
)
def test_activation_maps_are_computed_inside(tmp_path: Path, model: dict):
    rng, preprocess = np.random.default_rng(6), Preprocess((64, 96))
    build_backbone(Model(pretrained=False, **model), preprocess, tmp_path / "backbone.onnx")
    backbone = OnnxRunner(tmp_path / "backbone.onnx")
    photos = rng.integers(0, 256, (3, 64, 96, 3), dtype=np.uint8)
    embeddings, maps = backbone.maps(photos)
    heads = [
        LinearHead(rng.normal(size=(4, embeddings.shape[1])).astype(np.float32), np.zeros(4, np.float32))
        for _ in range(2)
    ]
    weight = np.mean([head.weight for head in heads], axis=0)
    expected = activation_maps(backbone.layout, maps, embeddings, np.stack([weight] * 3))
    networks = Networks([tmp_path / "backbone.onnx"], heads, backbone.layout)
    build_model(networks, Trust(Calibrator("none", {})), 4, preprocess, tmp_path / "all.onnx", {})
    found = OnnxRunner(tmp_path / "all.onnx")(photos)["activation"]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-4 * expected.max() > 0


def test_the_small_detector_is_computed_inside_and_refuses_what_it_promises(tmp_path: Path):
    rng = np.random.default_rng(7)
    photos = rng.integers(100, 140, (3000, 1, 2, 3), dtype=np.uint8)
    strange = rng.integers(0, 256, (200, 1, 2, 3), dtype=np.uint8)
    head = LinearHead(np.zeros((4, 3), np.float32), np.zeros(4, np.float32))
    network = pixels_network(tmp_path / "net.onnx", head.weight, False)
    embeddings = OnnxRunner(network)(photos)["embeddings"]
    detector = fit_detector(embeddings[:1500], 0.1)
    assert detector is not None and len(detector.known) <= 192
    for count in (1, 2, 3):
        networks = Networks([pixels_network(tmp_path / f"{k}.onnx", head.weight, True) for k in range(count)])
        trust = Trust(Calibrator("none", {}), None, [detector] * count)
        build_model(networks, trust, 4, Preprocess((1, 2)), tmp_path / "all.onnx", {})
        runner = OnnxRunner(tmp_path / "all.onnx")
        new = runner(photos[1500:])["strangeness"]
        assert np.abs(new - detector.strangeness(embeddings[1500:])).max() < 1e-2  # of cosines near 1
    assert 0.05 < (new > 1).mean() < 0.16
    assert auroc(new, runner(strange)["strangeness"]) > 0.95
    assert fit_detector(embeddings[:10]) is None


@pytest.mark.parametrize("stored", [None, (64, 90)])
def test_photographs_of_any_size_are_resized_inside(tmp_path: Path, stored: tuple[int, int] | None):
    rng, preprocess = np.random.default_rng(8), Preprocess((50, 70), stored=stored)
    head = LinearHead(np.eye(4, 3, dtype=np.float32), np.zeros(4, np.float32))
    network = pixels_network(tmp_path / "net.onnx", head.weight, False)
    build_model(Networks([network], [head]), Trust(Calibrator("none", {})), 4, preprocess, tmp_path / "all.onnx", {})
    runner = OnnxRunner(tmp_path / "all.onnx")
    for size in ((50, 70), (100, 140), (37, 41), (301, 400), (1000, 20), (20, 300), (1, 1)):
        photo = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        expected = preprocess(photo if size == preprocess.size else preprocess.for_store(photo))
        means = runner(photo[None])["embeddings"][0] * 64
        assert np.abs(means - expected.reshape(-1, 3).mean(0)).max() < 0.15, size


@pytest.fixture(scope="module")
def whole(run: Path) -> Path:
    """Nine of the run's photographs as PNG, which a run decodes in full too, and three broken files."""
    folder = run.parent / "whole"
    folder.mkdir()
    for path in list(Manifest.load(run / "folds.parquet").paths)[:9]:
        Image.fromarray(decode_photo(path)).save(folder / f"{path.stem}.png")
    for name, content in {"empty": b"", "page": b"<html></html>", "cut": path.read_bytes()[:3000]}.items():
        (folder / f"{name}.jpg").write_bytes(content)
    return folder


def test_the_exported_folder_answers_as_the_run(run: Path, exported: Path, whole: Path):
    photos = sorted(whole.glob("*.png"))[:8]
    bundle = Bundle.load(exported)
    broken = run.parent / "broken.jpg"
    broken.write_bytes(b"no photograph")
    found = bundle.classify([*photos, broken, photos[0].read_bytes(), np.zeros((40, 60, 3), np.uint8)])
    assert isinstance(found[8], PhotoFault) and found[9].to_json() == found[0].to_json()
    expected = predict(run, whole, out=run.parent / "out.csv", tta=1)
    answers = pd.read_csv(run.parent / "out.answers.csv").set_index("image_id")
    for path, one in zip(photos, found):
        place = list(expected.image_id).index(path.name)
        assert np.abs(one.probabilities - expected.pred_probs[place]).max() < 1e-5
        if not one.faults:
            assert one.answer == answers.loc[path.name, "answer"] or one.strangeness is not None
    assert set(found[0].to_json()) == {"answer", "refused", "faults", "held", "probabilities", "strangeness"}
    assert all(one.answer in (*bundle.classes, ASK, POOR, NOT_OF_THIS_KIND) for one in found if one is not found[8])


def test_another_file_than_described_is_not_opened(exported: Path, tmp_path: Path):
    shutil.copytree(exported, tmp_path / "out")
    with open(tmp_path / "out/model.onnx", "ab") as file:
        file.write(b"\0")
    with pytest.raises(WeightsError, match="another sha256"):
        Bundle.load(tmp_path / "out")
    with pytest.raises(WeightsError, match=r"no model\.int8\.onnx"):
        Bundle.load(exported, "int8")
    (tmp_path / "out/model.json").write_text('{"format": 1}', encoding="utf-8")
    with pytest.raises(WeightsError, match="format"):
        Bundle.load(tmp_path / "out")


def test_predict_takes_the_exported_folder_and_pools_plants(run: Path, exported: Path, whole: Path, tmp_path: Path):
    some = Manifest.load(run / "folds.parquet").take(np.arange(9))
    some.with_columns(group=[f"plant{k // 3}" for k in range(9)]).save(tmp_path / "some.parquet")
    for model, name in ((run, "run"), (exported, "export")):
        manihot.predict(model, whole, out=tmp_path / f"{name}.csv", compute=ONE, tta=1 if model == run else None)
        found = manihot.predict(
            model, tmp_path / "some.parquet", out=tmp_path / f"{name}9.csv", pool="group"
        ).predictions
        plants = pd.read_csv(tmp_path / f"{name}9.plants.csv", keep_default_na=False)
        answers = pd.read_csv(tmp_path / f"{name}9.answers.csv", keep_default_na=False)
        assert plants["group"].tolist() == ["plant0", "plant1", "plant2"] and plants["photographs"].tolist() == [3] * 3
        good = (answers["answer"] != NOT_OF_THIS_KIND) & (answers["answer"] != POOR)
        assert plants["used"].tolist() == [int(good[3 * k : 3 * k + 3].sum()) for k in range(3)]
        first = found.pred_probs[:3][good[:3].to_numpy()].mean(0)
        assert np.abs(plants.loc[0, [f"c{k}" for k in range(5)]].to_numpy(float) - first).max() < 1e-5
    own, theirs = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("export", "run"))
    assert own["image_id"].tolist() == theirs["image_id"].tolist()
    assert np.abs(own[["c0", "c4"]].to_numpy() - theirs[["c0", "c4"]].to_numpy()).max() < 1e-5
    assert len(pd.read_csv(tmp_path / "export.quarantine.csv")) == 3
    with pytest.raises(SettingsError, match="which others belong"):
        manihot.predict(exported, whole, out=tmp_path / "no.csv", pool="group", compute=ONE)


def test_the_run_refuses_poor_photographs_as_its_export(tmp_path: Path, run: Path):
    gate = QualityGate.load_if(run / "trust")
    assert gate is not None and gate.member == "main" and gate.limits.photographs == 57
    limits = QualityLimits({"brightness": Limits(low=0.2), "sharpness": Limits(), "zoom": Limits()}, 0.01, 57)
    copied = shutil.copytree(run, tmp_path / "run")
    QualityGate("main", limits).save(copied / "trust")
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(next(iter(Manifest.load(run / "folds.parquet").paths)), photos / "good.jpg")
    Image.new("RGB", (200, 100), (9, 9, 9)).save(photos / "dark.jpg")
    manihot.export(copied, out=tmp_path / "out")
    for k, model in enumerate((copied, tmp_path / "out")):
        manihot.predict(model, photos, out=tmp_path / f"{k}.csv", compute=ONE)
        answers = pd.read_csv(tmp_path / f"{k}.answers.csv", keep_default_na=False).set_index("image_id")
        assert answers["quality"].to_dict() == {"good.jpg": "", "dark.jpg": "dark"}
        assert answers.loc["dark.jpg", "answer"] == POOR != answers.loc["good.jpg", "answer"]


def shown(line: list[str], folder: Path) -> dict[str, float]:
    """Probabilities by class that an example prints."""
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr
    rows = [row.split("\t")[1:] for row in done.stdout.splitlines()]
    return {row[0]: float(row[1]) for row in rows if len(row) == 2}


def test_the_examples_run_as_they_stand(exported: Path, run: Path, tmp_path: Path):
    bundle = Bundle.load(exported)
    photo = next(iter(Manifest.load(run / "folds.parquet").paths))
    pixels = decode_photo(photo)
    expected = bundle.answer(bundle.prepare(pixels)[None])[0].probabilities
    found = shown([sys.executable, "example.py", str(photo)], exported)
    assert list(found) == [bundle.classes[k] for k in np.argsort(-expected)]
    assert max(abs(found[name] - p) for name, p in zip(bundle.classes, expected)) < 0.01
    try:
        runtime = find_runtime()
    except SettingsError:
        pytest.skip("$MANIHOT_CACHE holds no onnxruntime-web")
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    shutil.copytree(exported, tmp_path / "out")
    (tmp_path / "out/node_modules").mkdir()
    (tmp_path / "out/node_modules/onnxruntime-web").symlink_to(runtime.resolve())
    Image.fromarray(pixels).save(tmp_path / "photo.ppm")
    again = shown(["node", "example.js", str(tmp_path / "photo.ppm")], tmp_path / "out")
    assert max(abs(again[name] - p) for name, p in zip(bundle.classes, expected)) < 0.01


def test_the_model_card_says_what_was_measured(exported: Path):
    card = (exported / "model-card.md").read_text(encoding="utf-8")
    certificate = json.loads((exported / "certificate.json").read_text(encoding="utf-8"))
    about = json.loads((exported / "model.json").read_text(encoding="utf-8"))
    assert f"{certificate['held_out']['accuracy']:.1%} of {certificate['held_out']['photographs']}" in card
    assert "Apache-2.0" in card and about["data"] in card and about["code"] in card
    assert len(about["coverage"]) == 6 and about["coverage"][-1]["class"] == "all"
    assert all(
        f"| {row['class'].replace('_', chr(92) + '_')} | {row['photographs']} |" in card for row in about["coverage"]
    )


def test_the_certificate_begins_at_the_file(exported: Path):
    found = json.loads((exported / "certificate.json").read_text(encoding="utf-8"))["stages"]
    assert found["photographs"] == 57 and found["hard"] >= 19
    assert found["browser"] == "not verified in a browser: no page was made"
    fp32, full = found["places"]
    n = found["photographs"] + found["hard"]
    for stage in ("input", "logits", "probabilities", "set", "answer"):
        assert fp32[stage]["photographs"] == fp32[stage]["equal"] == n, stage
    assert fp32["probabilities"]["largest"] < 1e-5 and full["input"]["equal"] < n
    html = (exported / "certificate.html").read_text(encoding="utf-8")
    assert all(one["photograph"] in html for one in found["changed"]) and "Prediction sets" in html


def test_the_hard_photographs_are_what_they_say():
    found = {name: decode_photo(content) for name, content in hard_photographs(large=False).items()}
    upright = found["orientation-1.jpg"]
    for k in range(5, 9):
        assert found[f"orientation-{k}.jpg"].shape[:2] == upright.shape[1::-1]
    assert found["one-pixel.png"].shape == (1, 1, 3)
    grey = found["grey-16-bit.png"].astype(int)
    assert np.array_equal(grey[..., 0], grey[..., 1]) and grey.std() > 10
    wide = found["display-p3.jpg"].astype(int) - upright
    assert 2 < np.abs(wide).mean() < 30  # the same numbers mean stronger colours
    assert len(hard_photographs()) == len(found) + 1


@pytest.mark.parametrize("part", ["answer", "coverage"])
def test_what_is_not_the_run_or_breaks_its_promise_fails(part: str):
    if part == "answer":
        place = {"name": "fp32", "answer": {"photographs": 1000, "equal": 999}}
        check_places({"places": [place]})
        place["answer"]["equal"] = 998
        with pytest.raises(WeightsError, match="2 of 1000 photographs otherwise"):
            check_places({"places": [place]})
    else:
        row = {"class": "all", "coverage": 0.85, "photographs": 2000, "high": 0.866}
        check_coverage([row], 0.866)
        with pytest.raises(WeightsError, match="90% were promised"):
            check_coverage([row], 0.9)


def test_a_fault_in_one_stage_shows_in_this_and_the_later_ones(exported: Path, run: Path):
    files = list(Manifest.load(run / "folds.parquet").paths)[:4]
    bundle = Bundle.load(exported)
    good = Place("good", "", look(bundle, files, True))
    prepare = bundle.prepare
    bundle.prepare = lambda photo, full=True: np.roll(prepare(photo, full), 9, axis=1)
    found = compare(Place("bad", "", look(bundle, files, True)), good)
    assert found["decoded"]["equal"] == 4 and found["input"]["equal"] == found["probabilities"]["equal"] == 0
    assert found["input"]["largest"] > 5
