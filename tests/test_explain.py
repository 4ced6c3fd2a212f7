"""Heat maps: equal to their definitions, over the right place of the photograph, on pages that are whole."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from manihot.cli import answer
from manihot.engines import explain_torch
from manihot.errors import DataError, SettingsError
from manihot.infer.explain import Explanation, explain_photos, scale_maps
from manihot.infer.models import Engine, TrainedModel
from manihot.infer.placement import merge_maps, place_map
from manihot.infer.predict import predict_photos
from manihot.networks.card import ModelCard
from manihot.photos.preprocess import Preprocess
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.report import explain as pages
from manihot.report.explain import explain, overlay
from manihot.report.report import make_report
from manihot.settings import Model, View
from manihot.train.explain import METHODS, TorchExplainer, attention_rollout, choose_method, count_flops, grad_cam
from manihot.train.networks.backbones import make_model
from manihot.train.networks.checkpoint import save_network
from manihot.train.networks.heads import POOLING, Classifier
from manihot.train.toolbox import open_torch
from test_report import CLASSES, Page, make_run

SIZE = (64, 96)


def network(classes: int = 3, size: tuple[int, int] = SIZE, seed: int = 0, **settings: Any) -> Classifier:
    model = make_model(Model(**{"backbone": "test_efficientnet", "pretrained": False, **settings}), classes, size, seed)
    with torch.no_grad():  # logits of some size
        model.head.weight.normal_(0, 1, generator=torch.Generator().manual_seed(seed))
        model.head.bias.normal_(0, 1, generator=torch.Generator().manual_seed(seed + 1))
    return model.eval().requires_grad_(False)


def images(n: int = 2, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(5))


def both(n: int, *classes: int) -> torch.Tensor:
    return torch.tensor([classes] * n)


# Grad-CAM


def test_grad_cam_is_the_class_activation_map_for_average_pooling():
    model, x = network(), images()
    features = model.backbone.forward_features(x)
    cam = torch.einsum("nkhw,ck->nchw", features, model.head.weight)
    logits, evidence = grad_cam(model, x)
    torch.testing.assert_close(cam.mean((2, 3)) + model.head.bias, logits)  # the map adds up to the logit
    torch.testing.assert_close(evidence(both(2, 0, 1, 2)), cam.relu(), rtol=1e-4, atol=1e-5)
    assert (cam < 0).any() and (cam > 0).any()


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("pooling", list(POOLING))
def test_grad_cam_weighs_channels_by_the_slope_of_the_logit(pooling: str, power: bool):
    """The weight of a channel is what the logit gains when the whole channel rises, by a central difference."""
    model, x = network(pooling=pooling, power=power).double(), images(1).double()
    features = model.backbone.forward_features(x) + 3.0  # away from the clamp of GeM and the kink of the root

    class Fixed(nn.Module):
        def forward_features(self, _: torch.Tensor) -> torch.Tensor:
            return features

    model.backbone = Fixed()
    slopes, step = [], 1e-5
    for k in range(features.shape[1]):
        risen = [features.clone(), features.clone()]
        risen[0][:, k] += step
        risen[1][:, k] -= step
        high, low = (model.classify(_pooled(model, maps)) for maps in risen)
        slopes.append((high - low)[0, 1] / (2 * step))
    expected = torch.einsum("khw,k->hw", features[0], torch.stack(slopes)).relu()
    torch.testing.assert_close(grad_cam(model, x)[1](both(1, 1))[0, 0].double(), expected, rtol=1e-4, atol=1e-4)


def _pooled(model: Classifier, maps: torch.Tensor) -> torch.Tensor:
    pooled = POOLING[model.pooling](maps)
    return pooled.sign() * (pooled.abs() + 1e-8).sqrt() if model.power else pooled


def test_depths_are_added_on_the_finest_grid_and_add_up_to_the_logit():
    model, x = network(taps=(2,)), images(1)
    last, (tap,) = model.backbone.forward_intermediates(x, indices=[-2])
    weights = model.head.weight.split([last.shape[1], tap.shape[1]], 1)
    parts = [torch.einsum("nkhw,ck->nchw", maps, weight) for maps, weight in zip((last, tap), weights)]
    assert tap.shape[2] > last.shape[2]
    total = nn.functional.interpolate(parts[0], tap.shape[2:], mode="bilinear") + parts[1]
    logits, evidence = grad_cam(model, x)
    torch.testing.assert_close(evidence(both(1, 0, 1, 2)), total.relu(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sum(part.mean((2, 3)) for part in parts) + model.head.bias, logits)


def test_explaining_leaves_the_network_as_it_was():
    for model in (network(taps=(2,)), network(backbone="test_vit", size=(64, 64))):
        x = images(1, (64, 64))
        before, keys = model(x), set(model.backbone.__dict__)
        METHODS[choose_method(model, (64, 64))](model, x)
        assert torch.equal(model(x), before) and set(model.backbone.__dict__) == keys
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not any(module._forward_hooks for module in model.modules())


# Attention rollout


def rollout_by_hand(model: Classifier, x: torch.Tensor, first: int, last: int | None) -> torch.Tensor:
    """From the definition: attention from each block's queries and keys, not from timm's softmax."""
    vit = model.backbone
    with torch.no_grad():
        tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
        rolled = torch.eye(tokens.shape[1])
        for block in vit.blocks:
            n, t, width = tokens.shape
            attn = block.attn
            q, k, _ = attn.qkv(block.norm1(tokens)).reshape(n, t, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
            q, k = attn.q_norm(q), attn.k_norm(k)
            attention = (q @ k.transpose(-2, -1) / (width // attn.num_heads) ** 0.5).softmax(-1).mean(1)
            mixed = 0.5 * attention + 0.5 * torch.eye(t)
            rolled = (mixed / mixed.sum(-1, keepdim=True)) @ rolled
            tokens = block(tokens)
    return rolled[:, first:last].mean(1)[:, vit.num_prefix_tokens :]


@pytest.mark.parametrize("backbone, first, last", [("test_vit", 0, 1), ("deit_tiny_distilled_patch16_224", 0, 2)])
def test_rollout_is_its_definition(backbone: str, first: int, last: int):
    size = (64, 96)
    model, x = network(backbone=backbone, size=size), images(2, size)
    assert choose_method(model, size) == "attention_rollout"
    logits, evidence = attention_rollout(model, x)
    torch.testing.assert_close(logits, model(x), rtol=1e-4, atol=1e-4)  # fused or not, the same answer
    maps = evidence(both(2, 0, 2))
    assert maps.shape == (2, 2, 4, 6) and torch.equal(maps[:, 0], maps[:, 1])
    torch.testing.assert_close(maps[:, 0].flatten(1), rollout_by_hand(model, x, first, last))


def test_rollout_of_average_pooling_starts_from_all_patches():
    model, x = network(backbone="test_vit", size=(64, 64)), images(1, (64, 64))
    model.backbone.global_pool = "avg"
    expected = rollout_by_hand(model, x, model.backbone.num_prefix_tokens, None)
    torch.testing.assert_close(attention_rollout(model, x)[1](both(1, 0))[0, 0].flatten()[None], expected)


def test_rollout_of_even_attention_is_known_in_closed_form():
    model, x = network(backbone="test_vit", size=(64, 64)), images(1, (64, 64))
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.attn.qkv.weight.zero_()
    tokens, depth = 16 + model.backbone.num_prefix_tokens, len(model.backbone.blocks)
    flow = attention_rollout(model, x)[1](both(1, 0))
    torch.testing.assert_close(flow, torch.full_like(flow, (1 - 0.5**depth) / tokens))
    assert not scale_maps(flow[0].numpy(), "attention_rollout").any()  # nothing stands out


def test_what_has_neither_maps_nor_attention_is_refused():
    class Tokens(nn.Module):
        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(2).transpose(1, 2)

        def forward_head(self, x: torch.Tensor, pre_logits: bool) -> torch.Tensor:
            return x.mean(1)

    with pytest.raises(SettingsError, match="neither feature maps"):
        choose_method(Classifier(Tokens(), 2, "avg", 0.0), (8, 8))
    pooled_by_attention = network(backbone="test_vit", size=(64, 64))
    pooled_by_attention.backbone.attn_pool = nn.Identity()
    with pytest.raises(SettingsError, match="neither feature maps"):
        choose_method(pooled_by_attention, (64, 64))


# Over the right place


class RedCells(nn.Module):
    """Feature maps that say how red each cell of 8 x 8 pixels is, and nothing else."""

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d((x[:, :1] - x[:, 1:2]).relu(), 8)


@dataclass(frozen=True)
class Whole:
    """Networks in memory, and how they are fed."""

    networks: list[Classifier]
    card: ModelCard

    def explain(self, *photos: Any, **settings: Any) -> list[Explanation]:
        explainers = [TorchExplainer(network, self.card) for network in self.networks]
        return list(explain_photos(explainers, self.card, *photos, **settings))


def red_finder(fit: str, views: tuple[View, ...] = (View(),), stored: float = 1.0, **settings: Any) -> Whole:
    model = Classifier(RedCells(), 2, "avg", 0.0, size=(96, 96), **settings).eval()
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        if model.attention is not None:
            model.attention.weight.zero_()
    size = (round(96 * stored), round(96 * stored))
    return Whole([model], ModelCard(("red", "other"), Preprocess((96, 96), fit, stored=size), views, Model(), {}))


def spot(shape: tuple[int, int], down: float, right: float) -> np.ndarray:
    """A dark photograph with a red spot, a tenth of the shorter edge wide, at shares of its edges."""
    picture = np.full((*shape, 3), 40, np.uint8)
    y, x, r = round(down * shape[0]), round(right * shape[1]), min(shape) // 20
    picture[max(0, y - r) : y + r, max(0, x - r) : x + r] = (250, 0, 0)
    return picture


def centre(heat: np.ndarray) -> tuple[float, float]:
    y, x = np.indices(heat.shape)
    total = heat.sum()
    return float(((y + 0.5) * heat).sum() / total / heat.shape[0]), float(
        ((x + 0.5) * heat).sum() / total / heat.shape[1]
    )


PLACES = [(0.3, 0.6), (0.55, 0.35), (0.5, 0.5)]
SHAPES = [(200, 300), (300, 170), (240, 240)]
LOOKS = {
    "whole": (View(),),
    "flips": (View(flip="h"), View(flip="v"), View(flip="hv")),
    "transpose": (View(transpose=True), View(transpose=True, flip="h")),
    "crops": (View(), View(name="centre", scale=0.8, flip="h"), View(name="top_left", scale=0.7, flip="v")),
}


@pytest.mark.parametrize("look", list(LOOKS))
@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_the_map_lies_over_what_was_found(fit: str, look: str):
    for shape in SHAPES:
        for place in PLACES:
            model = red_finder(fit, LOOKS[look], 1.6)
            (found,) = model.explain([spot(shape, *place)], np.array([[0]]))
            assert found.maps.shape == (1, *shape) and found.maps.max() == 1
            y, x = centre(found.maps[0])
            assert abs(y - place[0]) * shape[0] < 6 and abs(x - place[1]) * shape[1] < 6, (shape, place, y, x)
            strongest = np.unravel_index(found.maps[0].argmax(), shape)
            assert np.abs(np.array(strongest) - np.array(place) * shape).max() < 16  # within a cell


def test_what_a_crop_never_sees_stays_dark_and_is_told():
    wide = spot((100, 200), 0.5, 0.1)  # left of the square in the middle
    (found,) = red_finder("crop").explain([wide], np.array([[0]]))
    assert not found.maps.any()
    assert np.array_equal(found.seen.any(axis=0), (np.arange(200) >= 50) & (np.arange(200) < 150))
    (padded,) = red_finder("pad").explain([wide], np.array([[0]]))
    assert padded.seen.all() and abs(centre(padded.maps[0])[1] - 0.1) < 0.03


def test_tiles_are_joined():
    place = (0.3, 0.7)
    for tiles in ((2, 2), (3, 1)):
        (found,) = red_finder("squash", tiles=tiles).explain([spot((192, 192), *place)], np.array([[0]]))
        assert np.abs(np.array(centre(found.maps[0])) - place).max() < 0.02, tiles


def test_views_weigh_as_they_do_in_a_prediction():
    heats = [np.full((1, 4, 4), 1.0, np.float32), np.full((1, 4, 4), 4.0, np.float32)]
    views = (View(weight=1.0), View(name="centre", scale=0.5, weight=2.0))
    merged, seen = merge_maps(heats, views, Preprocess((8, 8)), (8, 8), (8, 8))
    assert merged[0, 0, 0] == 1 and merged[0, 4, 4] == 3 and seen.all()  # (1 * 1 + 2 * 4) / 3 in the middle


def test_a_map_is_bilinear_between_the_centres_of_its_cells():
    laid, covered = place_map(np.array([[[0.0, 1.0]]]), (0, 0, 1, 1), (1, 8))
    assert covered.all() and np.allclose(laid[0, 0], [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1])


# Whole models


SETTINGS = Model(backbone="test_efficientnet", pretrained=False)


def trained(folds: int = 1, views: tuple[View, ...] = (View(), View(flip="h"))) -> Whole:
    networks = [network(classes=len(CLASSES), seed=k) for k in range(folds)]
    about = {"member": "main", "fold": 0}
    return Whole(networks, ModelCard(CLASSES, Preprocess(SIZE, stored=(80, 112)), views, SETTINGS, about))


def test_probabilities_are_those_of_a_prediction(small_photos: Path, tmp_path: Path):
    files = sorted((small_photos / "red").glob("r*.jpg"))[:6]
    table = {"image_id": [p.name for p in files], "path": [str(p) for p in files]}
    manifest = Manifest.from_table(pd.DataFrame(table), CLASSES, small_photos)
    for folds in (1, 2):
        model = trained(folds)
        found = model.explain(files)
        paths = [tmp_path / f"fold{k}/best.safetensors" for k in range(folds)]
        for path, one in zip(paths, model.networks, strict=True):
            save_network(path, one, model.card)
        expected = predict_photos([TrainedModel(paths, model.card)], manifest, Engine(opener=open_torch)).pred_probs
        np.testing.assert_allclose([result.pred_probs for result in found], expected, atol=1e-5)
        assert [tuple(r.classes) for r in found] == [tuple(np.argsort(-p, kind="stable")[:2]) for p in expected]


def test_several_folds_give_the_mean_of_their_maps():
    model, photo = trained(2, (View(),)), np.random.default_rng(0).integers(0, 255, (80, 112, 3), dtype=np.uint8)
    (mean,) = model.explain([photo], np.array([[1]]))
    alone = []
    for one in model.networks:
        alone.append(Whole([one], model.card).explain([photo], np.array([[1]]))[0].maps)
    expected = np.mean(alone, axis=0)
    np.testing.assert_allclose(mean.maps, expected / expected.max(), atol=1e-6)
    assert not np.allclose(alone[0], alone[1], atol=0.1)


def test_wrong_classes_and_broken_files_are_told(tmp_path: Path):
    photo = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(DataError, match="class numbers from 0 to 2"):
        trained().explain([photo], np.array([[3]]))
    (tmp_path / "page.jpg").write_text("<html>", encoding="utf-8")
    with pytest.raises(DataError, match=r"page\.jpg"):
        trained().explain([tmp_path / "page.jpg"])


def test_flops_are_counted_without_computing():
    model = network()
    conv = model.backbone.conv_stem
    assert count_flops(model, SIZE) > 2 * conv.weight.numel() * (SIZE[0] // 2) * (SIZE[1] // 2)
    assert count_flops(model, (128, 192)) == pytest.approx(4 * count_flops(model, SIZE), rel=0.01)
    assert next(model.parameters()).device.type == "cpu"


# Pages


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    model = trained()
    path = tmp_path / "run" / "members" / "main" / "fold0" / "best.safetensors"
    save_network(path, model.networks[0], model.card)
    return path


def test_a_page_with_heat_maps(model_file: Path, small_photos: Path, tmp_path: Path):
    photos = [small_photos / "red" / "r00.jpg", small_photos / "green"]  # one of green's files is broken
    out = explain(model_file.parents[3], photos, tmp_path / "out", other=explain_torch)
    html = out.read_text(encoding="utf-8")
    page = Page(html)
    assert not page.wrong and "Grad-CAM" in page.text and "does not show whether the prediction is right" in page.text
    assert "page.jpg" in page.text  # the broken one is named
    assert all(src.startswith("data:image/jpeg") for src in page.all("img", "src"))
    assert len(page.all("img", "src")) == 3 * 16
    assert not re.search(r"(?:src|href)=\"https?:", html)
    pngs = sorted((tmp_path / "out").glob("*.png"))
    assert len(pngs) == 2 * 16
    with Image.open(pngs[0]) as picture:
        assert picture.size == (64, 48)
    again = explain(model_file, photos, tmp_path / "alone.html", other=explain_torch)
    assert again.is_file() and len(list(tmp_path.glob("*.png"))) == 0
    links = Page(again.read_text(encoding="utf-8")).all("a", "href")
    assert all((tmp_path / href).is_file() for href in links if not href.startswith("#"))


def test_the_command_needs_a_model_and_a_photograph_only(
    model_file: Path, small_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = ["explain", str(model_file), str(small_photos / "red" / "r00.jpg"), "--device", "cpu"]
    assert answer(words) == 0
    assert (tmp_path / "explained" / "explain.html").is_file()
    assert "explained/explain.html" in capsys.readouterr().out.replace("\\", "/")


def test_a_page_without_a_readable_photograph_is_an_error(model_file: Path, small_photos: Path, tmp_path: Path):
    with pytest.raises(DataError, match="none of the 1 photograph"):
        explain(model_file, [small_photos / "red" / "empty.jpg"], tmp_path / "out")
    with pytest.raises(DataError, match="no such photograph"):
        explain(model_file, [small_photos / "none.jpg"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_overlay_is_hot_where_the_heat_is():
    photo, heat = np.full((40, 60, 3), 90, np.uint8), np.zeros((20, 30), np.float32)
    heat[10:, :] = 1
    seen = np.ones((20, 30), np.float32)
    seen[:, 20:] = 0
    drawn = overlay(photo, heat, seen)
    assert (drawn[:10, :30] == 90).all() and drawn[35, 10].astype(int).sum() > 500
    assert drawn[5, 55, 0] == round(0.35 * 90)


# In the report


def with_networks(run: Path, fail: str = "") -> Path:
    """Networks for the folds that the run's predictions name, or one broken file."""
    made = Predictions.load(run / "predictions" / "main.oof.parquet")
    for fold in np.unique(made.fold):
        path = run / f"members/main/fold{fold}/best.safetensors"
        if fail:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(fail, encoding="utf-8")
            continue
        model = network(classes=len(CLASSES), seed=int(fold))
        save_network(path, model, ModelCard(CLASSES, Preprocess(SIZE), (View(),), SETTINGS, {}))
    return run


def test_the_report_shows_heat_beside_mistakes_and_stays_the_same(tmp_path: Path):
    run = make_run(tmp_path)
    without = Page(make_report(run, explain_torch).read_text(encoding="utf-8"))
    assert not [alt for alt in without.all("img", "alt") if "heat map for" in alt]
    with_networks(run)
    first = make_report(run, explain_torch).read_bytes()
    page = Page(first.decode("utf-8"))
    hot = [alt for alt in page.all("img", "alt") if "heat map for" in alt]
    assert 0 < len(hot) <= pages.MISTAKES and "Grad-CAM" in page.text and not page.wrong
    assert make_report(run, explain_torch).read_bytes() == first
    (tmp_path / "photos").rename(tmp_path / "elsewhere")  # the heat maps are kept with the photographs
    gone = Page(make_report(run, explain_torch).read_text(encoding="utf-8"))
    assert gone.all("img", "src") == page.all("img", "src") and "Grad-CAM" in gone.text
    made = Predictions.load(run / "predictions" / "main.oof.parquet")
    again = 0.9 * made.pred_probs + 0.1 / len(CLASSES)  # as of networks that were trained anew
    Predictions.from_probs(made.image_id, again, CLASSES, made.labels, made.fold).save(
        run / "predictions" / "main.oof.parquet"
    )
    other = Page(make_report(run, explain_torch).read_text(encoding="utf-8"))
    assert not [alt for alt in other.all("img", "alt") if "heat map for" in alt] and "Grad-CAM" not in other.text


def test_a_broken_network_never_stops_the_report(tmp_path: Path):
    run = with_networks(make_run(tmp_path), fail="not weights")
    text = Page(make_report(run, explain_torch).read_text(encoding="utf-8")).text
    assert "heat maps: not drawn" in text and "not a network of manihot" in text
    shutil.rmtree(run / "members")
    assert "heat maps" not in Page(make_report(run, explain_torch).read_text(encoding="utf-8")).text


def test_dear_networks_get_fewer_heat_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = with_networks(make_run(tmp_path))
    monkeypatch.setattr(pages, "FLOPS", 1.0)
    page = Page(make_report(run, explain_torch).read_text(encoding="utf-8"))
    assert len([alt for alt in page.all("img", "alt") if "heat map for" in alt]) <= 2
