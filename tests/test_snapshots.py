"""Several epochs of one training answer together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from manihot.errors import SettingsError
from manihot.infer.models import load_model
from manihot.infer.predict import predict_photos
from manihot.members.member import Member
from manihot.networks.runner import OnnxRunner
from manihot.records.predictions import Predictions
from manihot.settings import load_recipe
from manihot.train.check import check_recipe
from manihot.train.explain import open_torch_explainer
from manihot.train.finetune import finetune
from manihot.train.loop import snapshot_epochs
from manihot.train.networks.checkpoint import load_network
from manihot.train.networks.heads import Snapshots
from manihot.train.runners import TorchRunner, choose_device
from tiny_member import tiny_member

CPU = choose_device("cpu")
RECIPE = """
extends: standard
model: {backbone: test_resnet, pretrained: false}
augment: [{name: horizontal_flip}]
optimizer: {lr: 1.0e-2}
train: {epochs: 3, batch: 8, precision: fp32, snapshots: [0, -1]}
tta: [{name: full}]
"""


def member(home: Path, *sets: str) -> Member:
    home.mkdir(exist_ok=True)
    (home / "own.yaml").write_text(RECIPE, encoding="utf-8")
    return tiny_member(home, home / "own.yaml", sets)


@pytest.mark.parametrize("unknown", [False, True])
def test_the_answer_is_the_mean_of_the_epochs_networks(unknown: bool, tmp_path: Path):
    more = ("model.unknown=true", "negatives={name: drawn, share: 0.2}") if unknown else ()
    own = member(tmp_path, *more)
    train, held = own.rows(0)
    finetune(own, 0, train, held)
    folder = own.folder(0)
    assert sorted(path.name for path in folder.glob("epoch*")) == ["epoch0.safetensors", "epoch2.safetensors"]
    inputs = np.stack([own.preprocess(own.photos[int(row)]) for row in held])
    parts = []
    for epoch in (0, 2):
        network, card = load_network(folder / f"epoch{epoch}.safetensors")
        parts.append(TorchRunner(network, card.preprocess, CPU)(inputs))
    whole = OnnxRunner(folder / "network.onnx")(inputs)
    if unknown:  # the classes' probabilities are given that it is one of them
        told = [softmax(part["logits"], 1) * (1 - part["unknown"][:, None]) for part in parts]
        assert np.abs(whole["unknown"] - np.mean([part["unknown"] for part in parts], 0)).max() < 1e-5
        expected = np.mean(told, 0) / np.mean(told, 0).sum(1, keepdims=True)
    else:
        expected = np.mean([softmax(part["logits"], 1) for part in parts], 0)
    assert np.abs(softmax(parts[0]["logits"], 1) - softmax(parts[1]["logits"], 1)).max() > 0.01
    assert np.abs(softmax(whole["logits"], 1) - expected).max() < 1e-5
    assert whole["embeddings"].shape[1] == 2 * parts[0]["embeddings"].shape[1]
    saved = Predictions.load(folder / "oof.parquet")
    assert np.abs(saved.pred_probs - expected).max() < 1e-5
    (model,) = load_model(folder / "network.onnx")
    found = predict_photos([model], own.manifest.take(held)).align(saved.image_id)
    assert np.abs(found.pred_probs - saved.pred_probs).max() < 1e-4
    network, _ = load_network(folder / "best.safetensors")
    assert isinstance(network, Snapshots) and len(network.networks) == 2
    by_torch = TorchRunner(network, own.preprocess, CPU)(inputs)
    assert np.abs(softmax(by_torch["logits"], 1) - expected).max() < 1e-5
    logits, _ = open_torch_explainer(folder / "network.onnx", "cpu")(inputs[:2])
    assert np.abs(softmax(logits, 1) - softmax(parts[1]["logits"][:2], 1)).max() < 1e-4  # the last epoch's


def test_a_stopped_training_gives_the_same_networks(tmp_path: Path):
    whole = member(tmp_path / "whole")
    train, held = whole.rows(0)
    finetune(whole, 0, train, held)
    told = Predictions.load(whole.folder(0) / "oof.parquet").pred_probs
    for name in ("oof.parquet", "network.onnx"):  # killed before the end
        (whole.folder(0) / name).unlink()
    finetune(whole, 0, train, held)
    assert np.array_equal(Predictions.load(whole.folder(0) / "oof.parquet").pred_probs, told)
    alone = member(tmp_path / "alone", "train.snapshots=[]")
    finetune(alone, 0, train, held)
    assert np.abs(Predictions.load(alone.folder(0) / "oof.parquet").pred_probs - told).max() > 0.003


def test_epochs_of_the_last_stage_at_another_size(tmp_path: Path):
    stages = "stages=[{train: {epochs: 1}}, {train: {epochs: 2}}]"
    own = member(tmp_path, stages, "photo.test_size=[48,48]")
    train, held = own.rows(0)
    finetune(own, 0, train, held)
    found = sorted(path.name for path in (own.folder(0) / "stage2").glob("epoch*"))
    assert found == ["epoch0.safetensors", "epoch1.safetensors"]
    (model,) = load_model(own.folder(0) / "network.onnx")
    network, card = load_network(own.folder(0) / "best.safetensors")
    assert model.preprocess.size == card.preprocess.size == (48, 48) and len(network.networks) == 2


def test_epochs_count_from_both_ends():
    assert snapshot_epochs([-1, 0, -3, 2], 5) == [0, 2, 4]
    assert snapshot_epochs([], 5) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("train.snapshots=[3]", "there is no epoch 3"),
        ("train.snapshots=[-4]", "there is no epoch -4"),
        ("train.keep=best", "keep: best chooses one by its score"),
        ("train.patience=2", "patience: 2 chooses one by its score"),
    ],
)
def test_epochs_that_can_not_answer_are_refused(settings: str, words: str, tmp_path: Path):
    (tmp_path / "own.yaml").write_text(RECIPE, encoding="utf-8")
    with pytest.raises(SettingsError, match=words):
        check_recipe(load_recipe(tmp_path / "own.yaml", [settings]))
