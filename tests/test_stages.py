"""Stages of training: sizes, frozen backbones, clusters, stops; and training on everything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers import resample_abs_pos_embed

from manihot.errors import SettingsError
from manihot.infer.models import read_card
from manihot.members.crossval import train_members
from manihot.members.training_labels import LabelRequest, make_training_labels
from manihot.records.predictions import Predictions
from manihot.settings import Model, Recipe, load_recipe
from manihot.train import finetune as module
from manihot.train.finetune import finetune
from manihot.train.networks.backbones import make_model, stages_of
from manihot.train.networks.checkpoint import load_network
from manihot.train.networks.heads import Classifier
from manihot.train.training import make_training, take_over
from tiny_member import TOOLS, draw_photos, tiny_member

ONE = ("train.epochs=1", "mixing=[]", "augment=[]", "averaging={name: none}", "model.dropout=0")
TOP = max(stages_of(make_model(Model(backbone="test_efficientnet", pretrained=False), 3, (32, 32))).values())
HEAD_FIRST = (
    *ONE,
    f"stages=[{{model: {{freeze_stages: {TOP}}}, photo: {{size: [32, 32]}}}}, {{photo: {{size: [48, 64]}}}}]",
)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_network(path)[0].state_dict()


def test_head_first_then_all_at_another_size(tmp_path: Path, tiny_recipe: Path):
    member = tiny_member(tmp_path, tiny_recipe, HEAD_FIRST)
    train, held = member.rows(0)
    finetune(member, 0, train, held)
    folder = member.folder(0)
    fresh = make_model(member.recipe.model, 3, (32, 32), member.seed(0)).state_dict()
    first, second = (weights(folder / f"stage{n}/best.safetensors") for n in (1, 2))
    last, card = load_network(folder / "best.safetensors")
    trained = [name for name, _ in last.named_parameters()]
    body = [name for name in trained if name.startswith("backbone")]
    assert all(torch.equal(first[name], fresh[name]) for name in body)  # frozen
    assert not torch.equal(first["head.weight"], fresh["head.weight"])
    assert any(not torch.equal(second[name], first[name]) for name in body)
    # one step of a rate of .003 leaves them near: they were carried over and not redrawn
    gap = max(float((second[name] - first[name]).abs().max()) for name in trained)
    assert gap < 0.05
    assert max(float((second[name] - fresh[name]).abs().max()) for name in ("head.weight",)) > 0
    assert all(torch.equal(last.state_dict()[name], second[name]) for name in second)
    assert card.preprocess.size == (48, 64) == read_card(folder / "network.onnx").preprocess.size
    assert load_network(folder / "stage1/best.safetensors")[1].preprocess.size == (32, 32)
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["stage"]) for row in history] == [(0, 1), (1, 2)]
    assert len(Predictions.load(folder / "oof.parquet")) == len(held)
    assert len(Predictions.load(folder / "test.parquet")) == 3


def test_a_stage_begins_with_the_weights_before_it(tmp_path: Path, tiny_recipe: Path):
    """Before its first step, exactly; the head too where the classes are the same."""
    member = tiny_member(tmp_path, tiny_recipe, ONE)
    before = make_model(member.recipe.model, 3, (32, 32), seed=77)
    training_labels = make_training_labels(LabelRequest(member, 0, member.rows(0)[0]))
    begun = make_training(member, 0, training_labels, before).model.state_dict()
    assert all(torch.equal(begun[name], value) for name, value in before.state_dict().items())
    begun = make_training(member, 0, training_labels, before, same_classes=False).model.state_dict()
    assert not torch.equal(begun["head.weight"], before.state_dict()["head.weight"])
    assert torch.equal(begun["backbone.conv_stem.weight"], before.state_dict()["backbone.conv_stem.weight"])


def vit(size: tuple[int, int], seed: int) -> Classifier:
    return make_model(Model(backbone="test_vit", pretrained=False), 3, size, seed)


@pytest.mark.parametrize(("old", "new"), [((32, 32), (64, 64)), ((32, 64), (64, 64)), ((64, 32), (32, 96))])
def test_position_embeddings_are_resized(old: tuple[int, int], new: tuple[int, int]):
    before, model = vit(old, 1), vit(new, 2)
    grids = [[edge // 16 for edge in size] for size in (old, new)]
    taken = before.backbone.pos_embed
    count = model.backbone.num_prefix_tokens
    wanted = resample_abs_pos_embed(taken, grids[1], grids[0], num_prefix_tokens=count)
    take_over(model, before)
    assert torch.equal(model.backbone.pos_embed, wanted)
    assert torch.equal(model.backbone.pos_embed[:, :count], taken[:, :count])
    assert torch.equal(model.head.weight, before.head.weight)
    assert torch.equal(model.backbone.blocks[0].attn.qkv.weight, before.backbone.blocks[0].attn.qkv.weight)
    assert model(torch.zeros(1, 3, *new)).shape == (1, 3)


def test_weights_that_do_not_fit_another_size_are_an_error():
    class Tables(torch.nn.Module):
        """A backbone with a table a position."""

        def __init__(self, positions: int) -> None:
            super().__init__()
            self.relative_position = torch.nn.Parameter(torch.zeros(positions))

    models = []
    for positions in (9, 16):
        model = vit((32, 32), 0)
        model.backbone.tables = Tables(positions)
        models.append(model)
    with pytest.raises(SettingsError, match="relative_position of the stage before doesn't fit"):
        take_over(models[1], models[0])


def test_a_training_stopped_between_stages_ends_with_the_same_network(tmp_path: Path, tiny_recipe: Path, monkeypatch):
    manifest = draw_photos(tmp_path / "photos", each=4)
    files = []
    for name in ("whole", "stopped"):
        member = tiny_member(tmp_path / name, tiny_recipe, HEAD_FIRST, manifest)
        train, held = member.rows(0)
        times = []
        if name == "stopped":

            def stops(stage, *arguments, whole=module.train_stage, **named):
                if stage.stage == 1:
                    raise KeyboardInterrupt
                return whole(stage, *arguments, **named)

            with monkeypatch.context() as patch:
                patch.setattr(module, "train_stage", stops)
                with pytest.raises(KeyboardInterrupt):
                    finetune(member, 0, train, held)
            assert not (member.folder(0) / "best.safetensors").exists()
            times.append((member.folder(0) / "stage1/best.safetensors").stat().st_mtime_ns)
        finetune(member, 0, train, held)
        if times:
            assert (member.folder(0) / "stage1/best.safetensors").stat().st_mtime_ns == times[0]
        files.append((member.folder(0) / "best.safetensors").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("k", [3, 4])
def test_clusters_first_then_classes(tmp_path: Path, tiny_recipe: Path, k: int, monkeypatch):
    """Three clusters look like three classes, and their head is thrown away all the same."""
    stages = f"stages=[{{labels: {{name: clusters, k: {k}, labelled: true}}}}, {{labels: {{name: given}}}}]"
    member = tiny_member(tmp_path, tiny_recipe, (*ONE, stages))
    begun = []
    make = module.make_training

    def noted(*arguments, **named):
        training = make(*arguments, **named)
        begun.append({name: value.clone() for name, value in training.model.state_dict().items()})
        return training

    monkeypatch.setattr(module, "make_training", noted)
    train, held = member.rows(0)
    finetune(member, 0, train, held)
    first, card = load_network(member.folder(0) / "stage1/best.safetensors")
    assert card.classes == tuple(f"cluster {n}" for n in range(k))
    own, taken = begun[1], first.state_dict()
    assert torch.equal(own["backbone.conv_stem.weight"], taken["backbone.conv_stem.weight"])
    assert own["head.weight"].shape != taken["head.weight"].shape or not torch.equal(
        own["head.weight"], taken["head.weight"]
    )
    assert load_network(member.folder(0) / "best.safetensors")[1].classes == ("red", "green", "blue")
    history = [json.loads(line) for line in (member.folder(0) / "history.jsonl").read_text().splitlines()]
    assert "val_loss" not in history[0] and "val_loss" in history[1]  # clusters have no held-out labels


def test_pseudo_labels_of_the_stage_before_at_another_size(tmp_path: Path, tiny_recipe: Path):
    """A ViT of 32 pixels can only be asked at 32 pixels."""
    stages = "stages=[{photo: {size: [32, 32]}}, {photo: {size: [48, 48]}, labels: {name: pseudo, above: 0.0}}]"
    member = tiny_member(tmp_path, tiny_recipe, (*ONE, "model.backbone=test_vit", stages))
    train, held = member.rows(0)
    finetune(member, 0, train, held)
    assert load_network(member.folder(0) / "best.safetensors")[1].preprocess.size == (48, 48)


def test_without_folds_it_trains_on_everything(tmp_path: Path, tiny_recipe: Path):
    manifest = draw_photos(tmp_path / "photos", each=4)
    manifest = manifest.with_columns(fold=np.full(len(manifest), -1))
    recipe: Recipe = load_recipe(str(tiny_recipe), [*ONE, "photo.size=[32,32]", "folds.kind=none"])
    member = tiny_member(tmp_path, tiny_recipe, (*ONE, "folds.kind=none"), manifest)
    train, held = member.rows(0)
    assert len(train) == 12 and not len(held)
    assert train_members(member.run, recipe, manifest, TOOLS, 1) == ["main"]
    assert (member.folder(0) / "best.safetensors").is_file()
    assert not (member.run / "predictions/main.oof.parquet").exists()
    assert len(Predictions.load(member.run / "predictions/main.test.parquet")) == 3
