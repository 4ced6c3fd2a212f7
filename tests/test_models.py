"""Backbones, heads and weights: what is loaded is what was asked for; what is saved comes back the same."""

from __future__ import annotations

import json
import logging
import os
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from manihot.errors import SettingsError, WeightsError
from manihot.infer.models import load_model, read_card
from manihot.networks.card import ModelCard
from manihot.networks.weights import embedded_state
from manihot.photos.preprocess import Preprocess
from manihot.settings import Model, View
from manihot.train.networks import pretrained
from manihot.train.networks.backbones import NORMS, freeze, make_model, make_preprocess, set_training, stages_of
from manihot.train.networks.checkpoint import load_network, save_network
from manihot.train.networks.heads import POOLING, TILE_ATTENTION, Classifier, cut_tiles
from manihot.train.networks.pretrained import check_weights, make_backbone, name_weights

SMALL = (64, 64)


def settings_of(backbone: str = "test_efficientnet", **changes: object) -> Model:
    return Model(backbone=backbone, **{"pretrained": False, **changes})


def photos(n: int = 2, size: tuple[int, int] = SMALL) -> torch.Tensor:
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def no_hub(monkeypatch):
    """timm without its hub: every request for weights fails."""
    create = timm.create_model

    def refuse(name: str, pretrained: bool = False, **settings: object) -> nn.Module:
        if pretrained:
            raise ConnectionError("no route to host")
        return create(name, pretrained=False, **settings)

    monkeypatch.setattr(pretrained.timm, "create_model", refuse)


# Weights


def test_embedded_weights_are_timms_network_under_other_names():
    state = embedded_state("tf_efficientnet_lite0")
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert {name: value.shape for name, value in state.items()} == {n: v.shape for n, v in own.items()}
    assert sum(v.size for v in state.values() if v.ndim) > 4_600_000
    spread = np.concatenate([value for name, value in state.items() if name.endswith("running_var")])
    assert (spread >= 0).all()
    assert (spread > 0).mean() > 0.9
    stem = state["conv_stem.weight"]
    assert 0.1 < float(stem.std()) < 2  # trained filters, neither zeros nor a fresh initialisation
    assert np.median(np.abs(stem.sum((1, 2, 3)))) < np.median(np.abs(stem).sum((1, 2, 3)))


def test_embedded_weights_know_imagenet():
    """A drawn picture tells a trained network: its batch norms see the statistics they were trained with."""
    model = timm.create_model("tf_efficientnet_lite0")
    state = {name: torch.from_numpy(value) for name, value in embedded_state("tf_efficientnet_lite0").items()}
    model.load_state_dict(state, strict=True)
    model.eval()
    seen: dict[str, float] = {}

    def compare(name: str):
        def hook(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            values = inputs[0].mean((0, 2, 3))
            seen[name] = float(np.corrcoef(values.numpy(), norm.running_mean.numpy())[0, 1])

        return hook

    for name, module in model.named_modules():
        if isinstance(module, NORMS):
            module.register_forward_pre_hook(compare(name))
    rng = np.random.default_rng(0)
    spectrum = np.fft.rfft2(rng.normal(size=(4, 3, 160, 160)))
    fy, fx = np.fft.fftfreq(160)[:, None], np.fft.rfftfreq(160)[None]
    natural = np.fft.irfft2(spectrum / np.maximum(np.hypot(fy, fx), 1 / 160))  # 1/f, as photographs have
    natural = 0.5 * natural / natural.std()
    with torch.inference_mode():
        model(torch.from_numpy(natural.astype(np.float32)).clamp(-1, 1))
    assert len(seen) > 40
    assert np.median(list(seen.values())) > 0.7


def test_embedded_backbone_gives_features_that_tell_pictures_apart():
    model = make_model(Model(), 5, SMALL)
    assert model.head.in_features == 1280
    model.eval()
    with torch.inference_mode():
        one, again, other = model.embed(torch.stack([photos()[0], photos()[0], torch.zeros(3, *SMALL)]))
    torch.testing.assert_close(one, again)
    assert float((one - other).abs().max()) > 0.1
    own = make_backbone("tf_efficientnet_lite0", "embedded", SMALL).state_dict()
    for name, value in embedded_state("tf_efficientnet_lite0").items():
        if not name.startswith("classifier"):
            np.testing.assert_array_equal(own[name].numpy(), value)


@pytest.mark.parametrize(
    ("name", "wanted", "words"),
    [
        ("tf_efficientnet_lite00", "embedded", ["no model 'tf_efficientnet_lite00'", "for example: "]),
        ("resnet18", "embedded", ["no embedded weights for 'resnet18'", "pretrained: true", "pretrained: false"]),
        ("resnet18", "nonsense_in1k", ["no weights 'nonsense_in1k' for resnet18", "a1_in1k", "embedded"]),
        ("resnet18.nonsense", True, ["no weights 'nonsense' for resnet18"]),
        ("regnety_320.seer", True, ["'seer'", "not free for commercial use"]),
        ("regnety_320.swag_ft_in1k", True, ["not free for commercial use"]),
        ("regnety_320", "swag_ft_in1k", ["not free for commercial use"]),
        ("resnet18", "fb_swsl_ig1b_ft_in1k", ["not free for commercial use"]),
        ("regnety_1280", True, ["'swag_ft_in1k'", "not free for commercial use"]),  # timm's first choice
        ("resnet18", "no/such/file.pth", ["file.pth: no such file of weights", "embedded"]),
        ("resnet18", "no/such/folder", ["no such file or folder of weights", "embedded", "a folder", "false"]),
        ("resnet18", "tests/", ["no weights for 'resnet18'", "resnet18.safetensors", "pytorch_model.bin"]),
    ],
)
@pytest.mark.parametrize("early", [True, False])
def test_weights_that_can_not_be_had(name, wanted, words, early, no_hub, monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    with pytest.raises(WeightsError) as caught:
        check_weights(name, wanted) if early else make_backbone(name, wanted, SMALL)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("wanted", [True, "r160_in1k"])
@pytest.mark.parametrize("early", [True, False])
def test_an_unreachable_hub_is_never_silently_random(no_hub, wanted, early):
    with pytest.raises(WeightsError) as caught:
        check_weights("test_resnet", wanted) if early else make_backbone("test_resnet", wanted, SMALL)
    text = str(caught.value)
    assert "'test_resnet.r160_in1k' could not be fetched (ConnectionError: no route to host)" in text
    for remedy in ("embedded", "model.safetensors", "path/to/folder", "pretrained: false"):
        assert remedy in text
    assert caught.value.exit_code == 4


def test_names_of_weights():
    assert name_weights("resnet18", True).startswith("resnet18.")
    assert name_weights("resnet18", "a1_in1k") == "resnet18.a1_in1k"
    assert name_weights("resnet18.a1_in1k", True) == "resnet18.a1_in1k"
    assert name_weights("tf_efficientnet_lite0", "embedded") == "tf_efficientnet_lite0.in1k"
    assert name_weights("resnet18", "weights/seer.pth") == name_weights("resnet18", False)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file(tmp_path, suffix):
    source = timm.create_model("test_resnet", num_classes=7)  # with a classifier, which is left out
    path = tmp_path / f"seer{suffix}"  # a file of one's own may be named like weights that are not free
    save = save_file if suffix == ".safetensors" else torch.save
    save(source.state_dict(), path)
    loaded = make_backbone("test_resnet", str(path), SMALL).state_dict()
    assert loaded.keys() == {name for name in source.state_dict() if not name.startswith("fc.")}
    for name, value in loaded.items():
        torch.testing.assert_close(value, source.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("backbone", "file"),
    [
        ("test_resnet", "test_resnet.safetensors"),
        ("test_resnet", "test_resnet.r160_in1k.safetensors"),
        ("test_resnet.r160_in1k", "test_resnet.r160_in1k.safetensors"),
        ("test_resnet.r160_in1k", "test_resnet.safetensors"),
        ("test_resnet", "test_resnet.r160_in1k/model.safetensors"),
        ("test_resnet", "test_resnet.pth"),
        ("test_resnet", "model.safetensors"),
        ("test_resnet", "pytorch_model.bin"),
    ],
)
def test_weights_from_a_folder(tmp_path, no_hub, backbone, file):
    source = timm.create_model("test_resnet", num_classes=7)
    path = tmp_path / "weights" / file
    path.parent.mkdir(parents=True)
    (save_file if path.suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    check_weights(backbone, str(tmp_path / "weights"))
    loaded = make_backbone(backbone, str(tmp_path / "weights"), SMALL).state_dict()
    torch.testing.assert_close(loaded["conv1.0.weight"], source.state_dict()["conv1.0.weight"], rtol=0, atol=0)


def test_a_folder_prefers_weights_of_the_backbones_name(tmp_path):
    for name in ("model", "test_resnet"):
        state = timm.create_model("test_resnet", num_classes=0).state_dict()
        filled = {key: value * 0 + (name == "model") for key, value in state.items()}
        save_file(filled, tmp_path / f"{name}.safetensors")
    assert not make_backbone("test_resnet", str(tmp_path), SMALL).state_dict()["conv1.0.weight"].any()


def test_code_in_a_folder_of_weights_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    torch.save({"conv1.0.weight": Trap()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="not readable as weights"):
        make_backbone("test_resnet", str(tmp_path), SMALL)
    assert not (tmp_path / "sprung").exists()


def test_an_early_look_at_weights_draws_nothing_and_hears_no_retries(monkeypatch, capsys):
    heard = []

    def create(name: str, pretrained: bool, size: tuple[int, int], drop_path: float) -> nn.Module:
        heard.append(logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING))
        return nn.Linear(3, 3)

    monkeypatch.setattr(pretrained, "_create", create)
    before = torch.get_rng_state()
    check_weights("test_resnet", True)
    assert (torch.get_rng_state() == before).all()
    assert heard == [False]
    assert "test_resnet.r160_in1k from the model hub" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {f"model.{k}": v for k, v in s.items()}, "parameters are missing"),
        (lambda s: {k: v for k, v in s.items() if k != "conv1.0.weight"}, r"missing \['conv1.0.weight'\]"),
        (lambda s: {**s, "extra.weight": torch.zeros(1)}, r"1 are not the model's \['extra.weight'\]"),
        (lambda s: {**s, "conv1.0.weight": torch.zeros(1, 3, 3, 3)}, "don't fit the model.*size mismatch"),
        (lambda s: {"state_dict": s}, "something other than named weights"),
        (lambda s: [1, 2], "something other than named weights"),
    ],
)
def test_a_file_with_other_weights_is_refused(tmp_path, change, words):
    path = tmp_path / "weights.pth"
    torch.save(change(timm.create_model("test_resnet").state_dict()), path)
    with pytest.raises(WeightsError, match=words) as caught:
        make_backbone("test_resnet", str(path), SMALL)
    assert "weights.pth" in caught.value.what


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(WeightsError, match="not readable as weights"):
        make_backbone("test_resnet", str(path), SMALL)


def test_random_weights_on_purpose_need_no_hub(no_hub):
    make_backbone("regnety_002", False, SMALL)


def test_a_backbone_takes_stochastic_depth_or_says_that_it_does_not():
    plain, deep = (make_backbone("test_efficientnet", False, SMALL, drop_path=p) for p in (0.0, 0.5))
    kinds = [sum("DropPath" in type(m).__name__ for m in model.modules()) for model in (plain, deep)]
    assert kinds[0] < kinds[1]
    with pytest.raises(SettingsError, match=r"model\.drop_path: vgg11"):
        make_backbone("vgg11", False, SMALL, drop_path=0.1)


def test_the_input_is_normalised_as_the_backbone_was_trained():
    lite = make_preprocess(Model(), (224, 224), "squash")
    assert (lite.mean, lite.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    resnet = make_preprocess(settings_of("resnet18"), (128, 256), "crop")
    assert resnet == Preprocess((128, 256), "crop", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    augreg = make_preprocess(settings_of("vit_tiny_patch16_224", pretrained="augreg_in21k"), SMALL, "squash")
    assert augreg.mean == (0.5, 0.5, 0.5)
    with pytest.raises(WeightsError, match="no model 'resnet1888'"):
        make_preprocess(settings_of("resnet1888"), SMALL, "squash")
    with pytest.raises(WeightsError, match="no weights 'nonsense'"):
        make_preprocess(settings_of("resnet18.nonsense"), SMALL, "squash")


# Heads


@pytest.mark.parametrize("name", POOLING)
def test_every_pooling_makes_one_vector(name):
    maps = torch.rand(2, 5, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    pooled = POOLING[name](maps)
    assert pooled.shape == (2, 10 if name == "avgmax" else 5)
    assert torch.isfinite(pooled).all()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    shuffled = maps.flatten(2)[:, :, order].view_as(maps)
    torch.testing.assert_close(POOLING[name](shuffled), pooled)  # places don't matter
    flat = POOLING[name](torch.full((1, 2, 3, 3), 0.7))
    torch.testing.assert_close(flat, torch.full_like(flat, 0.7))
    pooled.sum().backward()
    assert torch.isfinite(maps.grad).all()
    assert torch.isfinite(POOLING[name](torch.zeros(1, 2, 3, 3))).all()
    assert POOLING[name](torch.rand(1, 2, 1, 1)).ndim == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("value", [1e-3, 50.0])
def test_generalised_mean_in_half_precision(dtype, value):
    """The cube of .001 is 0 in fp16 and that of 50 infinite, and a CPU's autocast leaves powers in half precision."""
    maps = torch.full((2, 3, 4, 4), value, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        pooled = POOLING["gem"](maps)
        pooled.sum().backward()
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled, maps[:, :, 0, 0])
    torch.testing.assert_close(maps.grad.float(), torch.full((2, 3, 4, 4), 1 / 16), rtol=1e-2, atol=0)


def test_generalised_mean_lies_between_average_and_maximum():
    maps = torch.rand(4, 6, 5, 5, generator=torch.Generator().manual_seed(0))
    average, gem, top = POOLING["avg"](maps), POOLING["gem"](maps), POOLING["max"](maps)
    assert (average <= gem).all()
    assert (gem <= top).all()
    torch.testing.assert_close(gem, (maps**3).mean((2, 3)) ** (1 / 3))


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet", "test_vit", "test_convnext"])
@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("taps", [(), (2,), (2, 3)])
def test_a_classifier_on_every_kind_of_backbone(backbone, power, taps):
    size = (160, 160) if backbone == "test_vit" else SMALL
    model = make_model(settings_of(backbone, power=power, taps=taps), 3, size, seed=1)
    images = photos(2, size)
    model.eval()
    embeddings = model.embed(images)
    assert embeddings.shape == (2, model.head.in_features)
    logits = model(images)
    assert logits.shape == (2, 3)
    torch.testing.assert_close(model.classify(embeddings), logits)
    plain = make_model(settings_of(backbone), 3, size, seed=1)
    if taps:
        assert model.head.in_features > plain.head.in_features
    if power:
        without = make_model(settings_of(backbone, taps=taps), 3, size, seed=1).eval().embed(images)
        torch.testing.assert_close(embeddings, without.sign() * without.abs().sqrt(), atol=2e-4, rtol=1e-3)
    logits.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


def test_power_has_a_gradient_where_a_feature_is_zero():
    class Dead(nn.Module):
        output_fmt = "NCHW"

        def forward_features(self, images: torch.Tensor) -> torch.Tensor:
            return images * 1

    model = Classifier(Dead(), 2, "max", 0.0, power=True)
    images = torch.zeros(1, 3, 4, 4, requires_grad=True)
    model(images).sum().backward()
    assert torch.isfinite(images.grad).all()
    assert (model.embed(images) == 0).all()


# Several dropouts


def test_several_dropouts_give_the_mean_of_their_logits():
    model = make_model(settings_of(dropout=0.5, dropout_samples=5), 3, SMALL).train()
    embeddings = torch.rand(4, model.head.in_features, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(7)
    ours = model.classify(embeddings)
    torch.manual_seed(7)
    each = [model.head(nn.functional.dropout(embeddings, 0.5)) for _ in range(5)]
    torch.testing.assert_close(ours, torch.stack(each).mean(0))
    assert not torch.equal(each[0], each[1])  # five masks, not one


def test_several_dropouts_are_calmer_and_vanish_when_predicting():
    one, five = (make_model(settings_of(dropout=0.5, dropout_samples=n), 3, SMALL).train() for n in (1, 5))
    embeddings = torch.rand(1, one.head.in_features, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    spread = [torch.cat([m.classify(embeddings) for _ in range(400)]).var(0).mean() for m in (one, five)]
    assert float((spread[0] / spread[1]).detach()) == pytest.approx(5, rel=0.25)
    assert torch.equal(one.eval().classify(embeddings), five.eval().classify(embeddings))


# Attention over tiles


def test_tiles_are_cut_row_by_row():
    grid = torch.arange(6.0).view(1, 1, 2, 3).repeat_interleave(4, 2).repeat_interleave(5, 3)
    images = torch.cat([grid, grid + 10]).expand(2, 3, 8, 15)
    tiles = cut_tiles(images, (2, 3))
    assert tiles.shape == (12, 3, 4, 5)
    expected = torch.cat([torch.arange(6.0), torch.arange(6.0) + 10])
    assert torch.equal(tiles, expected.view(12, 1, 1, 1).expand_as(tiles))


@pytest.mark.parametrize("pattern", TILE_ATTENTION)
@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_vit"])
def test_a_photograph_is_the_weighted_mean_of_its_tiles(pattern, backbone):
    settings = settings_of(backbone, tiles=(2, 3), tile_attention=pattern, power=True)
    model = make_model(settings, 4, (64, 96), seed=3).eval()
    images = photos(2, (64, 96))
    one_tile = make_model(settings_of(backbone, power=True), 4, (32, 32), seed=3).eval()
    one_tile.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith("attention.")}, strict=True
    )
    features = torch.stack(
        [
            one_tile.embed(images[:, :, 32 * row : 32 * (row + 1), 32 * column : 32 * (column + 1)])
            for row in range(2)
            for column in range(3)
        ],
        dim=1,
    )
    parts = dict(model.attention.named_parameters())
    if pattern == "linear":
        scores = features @ parts["weight"][0] + parts["bias"]
    else:
        hidden = torch.tanh(features @ parts["0.weight"].T + parts["0.bias"])
        assert hidden.shape[2] == 256
        scores = hidden @ parts["2.weight"][0] + parts["2.bias"]
    weights = scores.exp() / scores.exp().sum(1, keepdim=True)
    torch.testing.assert_close(model.weigh_tiles(features), weights)
    torch.testing.assert_close(model.embed(images), (weights[..., None] * features).sum(1), atol=1e-5, rtol=1e-4)
    assert model(images).shape == (2, 4)
    swapped = torch.cat([images[:, :, 32:], images[:, :, :32]], 2)
    torch.testing.assert_close(model(swapped), model(images), atol=1e-5, rtol=1e-4)  # the order doesn't matter


def test_like_tiles_weigh_alike_and_the_attention_learns_at_the_heads_rate():
    model = make_model(settings_of(tiles=(2, 2)), 3, SMALL)
    features = torch.rand(3, 1, model.head.in_features).expand(3, 4, -1)
    torch.testing.assert_close(model.weigh_tiles(features), torch.full((3, 4), 0.25))
    stages = stages_of(model)
    top = max(stages.values())
    assert {name for name, stage in stages.items() if stage == top} == {
        "head.weight",
        "head.bias",
        "attention.weight",
        "attention.bias",
    }
    model(photos(4)).square().sum().backward()
    assert float(model.attention.weight.grad.abs().sum()) > 0


def test_a_model_of_tiles_comes_back_to_the_bit(tmp_path):
    settings = settings_of("test_vit", tiles=(2, 2), tile_attention="tanh", dropout_samples=3)
    model = make_model(settings, 3, SMALL, 5).eval()
    path = tmp_path / "best.safetensors"
    card = ModelCard(("a", "b", "c"), make_preprocess(settings, SMALL, "squash"), (View(),), settings, {})
    save_network(path, model, card)
    network = load_network(path)[0]
    with torch.inference_mode():
        torch.testing.assert_close(network(photos()), model(photos()), atol=1e-6, rtol=1e-5)


def test_taps_are_counted_from_the_end():
    model = make_model(settings_of("test_resnet", taps=(1,)), 3, SMALL).eval()
    last, tapped = model.embed(photos()).chunk(2, dim=1)
    torch.testing.assert_close(last, tapped)  # 1 is the last stage itself


@pytest.mark.parametrize(
    ("settings", "size", "words"),
    [
        (settings_of(pooling="avgg"), SMALL, "unknown 'avgg'"),
        (settings_of("test_vit", pooling="gem"), (160, 160), "'gem' needs feature maps"),
        (settings_of(tiles=(3, 1)), SMALL, r"64x64 pixels don't divide into 3 x 1 tiles"),
        (settings_of(tiles=(2, 2), tile_attention="tan"), SMALL, "unknown 'tan'"),
        (settings_of("test_resnet", taps=(9,)), SMALL, "model.taps: 9, but test_resnet has"),
        (settings_of("test_efficientnet", freeze_stages=99), SMALL, "model.freeze_stages: 99"),
        (settings_of("test_vit"), (50, 77), r"model\.backbone: test_vit can't take 50x77"),
    ],
)
def test_what_a_backbone_can_not_do_is_explained(settings, size, words):
    with pytest.raises(SettingsError, match=words) as caught:
        make_model(settings, 3, size)
    assert caught.value.remedy


def test_a_transformer_takes_the_size_of_the_photographs():
    model = make_model(settings_of("test_vit"), 3, (96, 128)).eval()
    assert model(photos(1, (96, 128))).shape == (1, 3)


def test_a_model_follows_its_seed_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = make_model(settings_of(), 3, SMALL, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)  # the world's generator is left alone
    torch.manual_seed(6)
    again, other = (make_model(settings_of(), 3, SMALL, seed=s).state_dict() for s in (1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


# Stages


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet", "test_vit"])
def test_stages_rise_from_the_stem_to_the_head(backbone):
    size = (160, 160) if backbone == "test_vit" else SMALL
    model = make_model(settings_of(backbone), 3, size)
    stages = stages_of(model)
    assert set(stages) == {name for name, _ in model.named_parameters()}
    top = max(stages.values())
    assert {name for name, stage in stages.items() if stage == top} == {"head.weight", "head.bias"}
    assert sorted(set(stages.values())) == list(range(top + 1))
    stem = {"test_efficientnet": "conv_stem", "test_resnet": "conv1", "test_vit": "patch_embed"}[backbone]
    of_stem = [stage for name, stage in stages.items() if name.startswith(f"backbone.{stem}.")]
    assert of_stem
    assert set(of_stem) == {0}


def test_freezing_stops_the_first_stages():
    model = make_model(settings_of(freeze_stages=2), 3, SMALL)
    stages = stages_of(model)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (stages[name] >= 2), name
    freeze(model, 0)
    assert any(not p.requires_grad for p in model.parameters())  # 0 changes nothing
    whole = make_model(settings_of(freeze_stages=max(stages.values())), 3, SMALL)
    assert {n for n, p in whole.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}


@pytest.mark.parametrize(("stages", "freeze_norm"), [(0, False), (2, False), (0, True), (2, True)])
def test_frozen_batch_norms_keep_their_statistics(stages, freeze_norm):
    model = make_model(settings_of(freeze_stages=stages), 3, SMALL)
    set_training(model, freeze_norm)
    assert model.training
    before = {name: value.clone() for name, value in model.named_buffers() if "running_mean" in name}
    frozen = {
        name
        for name in before
        if freeze_norm or not model.get_parameter(name.replace("running_mean", "weight")).requires_grad
    }
    assert bool(frozen) == bool(stages or freeze_norm)
    model(photos(4))
    for name, value in before.items():
        kept = torch.equal(value, dict(model.named_buffers())[name])
        assert kept == (name in frozen), name


@pytest.mark.parametrize("stages", [0, 2])
def test_batch_norms_with_frozen_gamma_and_beta_still_measure(stages):
    """Statistics and gamma and beta are frozen apart; a frozen stage keeps both."""
    plain = make_model(settings_of(freeze_stages=stages), 3, SMALL)
    model = make_model(settings_of(freeze_stages=stages, freeze_norm_affine=True), 3, SMALL)
    set_training(plain)
    set_training(model)
    assert {n for n, m in model.named_modules() if m.training} == {n for n, m in plain.named_modules() if m.training}
    norms = {n for n, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    for name, parameter in model.named_parameters():
        of_norm = name.rpartition(".")[0] in norms
        assert parameter.requires_grad == (plain.get_parameter(name).requires_grad and not of_norm), name
    both = deepcopy(model)  # as averages copy it
    set_training(both, freeze_norm=True)
    assert not any(m.training for n, m in both.named_modules() if n in norms)
    set_training(both)
    assert any(m.training for n, m in both.named_modules() if n in norms)


# Saving


def saved(
    path,
    seed: int = 0,
    views: tuple[View, ...] = (View(), View(flip="h")),
    classes=("a", "b", "c"),
    fold: int = 2,
    **changes,
):
    settings = settings_of(**{"taps": (2,), "power": True, "pooling": "avgmax", **changes})
    model = make_model(settings, len(classes), SMALL, seed)
    set_training(model)
    with torch.no_grad():
        model(photos(4) + 1)  # statistics that are not the initial ones
    preprocess = make_preprocess(settings, SMALL, "pad")
    preprocess = replace(preprocess, stored=(80, 80))
    about = {"recipe": "r", "fold": fold, "member": path.parent.parent.name}
    save_network(path, model, ModelCard(classes, preprocess, views, settings, about))
    return model.eval(), preprocess


def test_a_saved_model_comes_back_to_the_bit(tmp_path):
    path = tmp_path / "main" / "fold0" / "best.safetensors"
    model, preprocess = saved(path)
    network, loaded = load_network(path)
    assert loaded.classes == ("a", "b", "c")
    assert loaded.preprocess == preprocess
    assert loaded.views == (View(), View(flip="h"))
    assert loaded.about == {"recipe": "r", "fold": 2, "member": "main"}
    assert read_card(path) == loaded
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    images = photos(3).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        ours = model.to(memory_format=torch.channels_last)(images)
        assert torch.equal(network(images), ours)
    again = tmp_path / "again.safetensors"
    save_network(again, network, loaded)
    assert again.read_bytes() == path.read_bytes()


def test_what_is_no_model_is_refused(tmp_path):
    path = tmp_path / "best.safetensors"
    with pytest.raises(WeightsError, match="no such model"):
        load_model(path)
    path.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match=r"best\.safetensors: not a network of manihot"):
        load_model(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="no model of manihot"):
        load_model(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="no trained model here"):
        load_model(tmp_path / "empty")


def test_a_model_that_does_not_fit_its_description_is_refused(tmp_path):
    path = tmp_path / "best.safetensors"
    saved(path)
    state = load_file(path)
    card = {"format": 2, "model": {"backbone": "test_efficientnet"}, "classes": ["a"], "views": [{}], "about": {}}
    card["preprocess"] = Preprocess(SMALL).to_json()
    for change, words in (
        ({}, "don't fit"),
        ({"model": {"backbone": "test_efficientnet", "depth": 3}}, r"damaged model card, model\.depth"),
        ({"preprocess": {"sise": 3}}, r"damaged model card, preprocess\.size"),
        ({"preprocess": {"size": [0, 3]}}, "damaged model card, preprocess"),
        ({"views": []}, "without classes or views"),
        ({"classes": "abc"}, "damaged model card, classes"),
        ({"format": 99}, "a model of format 99"),
        ({"format": 1}, "train it again, or use the manihot that trained it"),
    ):
        save_file(state, path, metadata={"manihot": json.dumps({**card, **change})})
        with pytest.raises(WeightsError, match=words):
            load_network(path)


def test_models_of_a_run_are_grouped_by_what_they_see(tmp_path):
    for member, views in (("one", (View(),)), ("two", (View(),)), ("three", (View(flip="h"),))):
        for fold in (0, 1):
            saved(tmp_path / f"members/{member}/fold{fold}/best.safetensors", fold, views, fold=fold)
    whole = load_model(tmp_path)
    assert sorted((m.card.member, m.folds) for m in whole) == [(name, [0, 1]) for name in ("one", "three", "two")]
    member = load_model(tmp_path / "members" / "one")
    assert [m.folds for m in member] == [[0, 1]]
    first, second = (load_network(file)[0] for file in member[0].files)
    assert not torch.equal(first.head.weight, second.head.weight)
    alone = load_model(tmp_path / "members/one/fold1/best.safetensors")
    assert [m.folds for m in alone] == [[1]]
    saved(tmp_path / "members/four/fold0/best.safetensors", classes=("a", "b"))
    with pytest.raises(WeightsError, match="don't predict the same classes"):
        load_model(tmp_path)
