"""Photographs that keep their own proportions until they are cropped: store, training, views, prediction, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from manihot.augment.augmenter import Augmenter
from manihot.augment.views import VIEWS, make_view
from manihot.errors import RunFolderError, SettingsError
from manihot.infer.models import load_model
from manihot.infer.predict import predict_photos
from manihot.members.check import check_recipe
from manihot.members.member import Member
from manihot.photos.load import load_photo
from manihot.photos.preprocess import Preprocess, Unresized
from manihot.photos.scan import scan
from manihot.photos.store import PhotoStore, make_store
from manihot.records.files import digest_value
from manihot.records.predictions import Predictions
from manihot.settings import Choice, Photo, Recipe, View, load_recipe
from manihot.suites.format import load_suite
from tiny_member import draw_photos, tiny_member

LANDSCAPE = (600, 800)
LECTURE = Preprocess((512, 512), stored=(589, 589), own=True)


def places(height: int, width: int) -> np.ndarray:
    """Red rises with x, green with y: a pixel's colour says where it is from."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, np.full_like(x, 9)], axis=2).round().astype(np.uint8)


def proportion(pixels: np.ndarray, shape: tuple[int, int]) -> float:
    """Width over height, in pixels of `places` of `shape`, of the part of it that fills an upright picture."""
    edge = pixels.astype(float)
    width = (edge[:, -1, 0].mean() - edge[:, 0, 0].mean()) / 255 * shape[1]
    height = (edge[-1, :, 1].mean() - edge[0, :, 1].mean()) / 255 * shape[0]
    return abs(width / height)


def test_what_is_kept_covers_the_stored_size_and_is_bounded():
    first = LECTURE.for_store
    assert first.kept((600, 800)) == (589, 785)
    assert first.kept((4000, 3000)) == (785, 589)
    assert first.kept((300, 500)) == (300, 500)  # nothing is enlarged
    for strip in (first.kept((1000, 9000)), first.kept((9000, 1000))):
        assert strip[0] * strip[1] == pytest.approx(2 * 589**2, rel=0.01)
        assert max(strip) / min(strip) == pytest.approx(9, rel=0.01)
    assert Preprocess((10, 20), stored=(12, 24)).for_store.kept((600, 800)) == (12, 24)


def test_the_lectures_crops_are_as_wide_as_high_in_the_geometric_mean():
    """RandomResizedCrop's proportions are 3/4 to 4/3 evenly in the logarithm, in true pixels: their mean is 1.00.

    Of all of them 1.03, by torchvision too: large boxes that are higher than wide don't fit into a wide photograph.
    """
    recipe = load_recipe("lecture-effb4")
    augmenter = Augmenter(recipe.augment, recipe.photo.size, 0, 10, LECTURE.last_fit)
    stored = LECTURE.for_store(places(*LANDSCAPE))
    torch.manual_seed(0)
    blank = torch.zeros(3, *LANDSCAPE)
    theirs = [RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3])[2:] for _ in range(4000)]
    whole = geometric([w / h for h, w in theirs])
    assert whole == pytest.approx(1.032, abs=0.01)
    for photo, expected in ((stored, 1.0), (places(589, 589), 4 / 3)):
        drawn = [dict(augmenter.explain(photo, 0, index)[1])["random_resized_crop"] for index in range(600)]
        areas = np.array([one["width"] * one["height"] for one in drawn])
        found = np.array([one["width"] * 800 / (one["height"] * 600) for one in drawn])
        assert geometric(found[areas < 0.5]) == pytest.approx(expected, rel=0.02)
        assert geometric(found) == pytest.approx(whole if expected == 1 else expected, rel=0.015)
        assert max(found) < 1.01 * expected * 4 / 3 and min(found) > 0.99 * expected * 3 / 4


def geometric(values: Any) -> float:
    return float(np.exp(np.log(values).mean()))


def test_the_crop_that_training_sees_has_these_proportions():
    stored = LECTURE.for_store(places(*LANDSCAPE))
    augmenter = Augmenter([Choice(name="random_resized_crop")], (512, 512), 0, 10, LECTURE.last_fit)
    found = [proportion(augmenter(stored, 0, index)[0], LANDSCAPE) for index in range(150)]
    assert geometric(found) == pytest.approx(1.03, abs=0.03)
    assert proportion(Augmenter([Choice(name="resize")], (512, 512), 0, 1)(stored, 0, 0)[0], LANDSCAPE) > 1.32
    centre = Augmenter([Choice(name="center_crop", share=0.853)], (512, 512), 0, 1)(stored, 0, 0)[0]
    assert proportion(centre, LANDSCAPE) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("name", ["centre", "top_left", "top_right", "bottom_left", "bottom_right", "random"])
def test_crops_are_512_pixels_of_600_x_800(name: str):
    photo = places(*LANDSCAPE)
    cut = VIEWS[name](photo, View(name=name, scale=0.853, least=0.853), LECTURE.frame(LANDSCAPE))
    assert cut.shape == (512, 512, 3)
    top, left = cut[0, 0, 1] / 255 * 600, cut[0, 0, 0] / 255 * 800
    corners = {"top_left": (0, 0), "top_right": (0, 288), "bottom_left": (88, 0), "bottom_right": (88, 288)}
    corners["centre"] = (44, 144)
    if name in corners:
        assert (top, left) == pytest.approx(corners[name], abs=2)


@pytest.mark.parametrize("name", ["random_resized", "one_of"])
def test_drawn_views_have_true_proportions(name: str):
    stored = LECTURE.for_store(places(*LANDSCAPE))
    views = [View(name=name, scale=0.853 if name == "one_of" else 0.5, least=0.3, draw=draw) for draw in range(150)]
    shapes = [VIEWS[name](stored, view, LECTURE.frame(stored.shape)).shape for view in views]
    ratios = np.array([w / h for h, w, _ in shapes])
    whole = np.isclose(ratios, 4 / 3, atol=0.01) | np.isclose(ratios, 3 / 4, atol=0.01)  # of one_of, turned in half
    if name == "random_resized":
        assert geometric(ratios) == pytest.approx(1.0, abs=0.03)
        assert ratios.min() > 0.74 and ratios.max() < 1.35
    else:
        assert 0.2 < whole.mean() < 0.5 and (502, 502, 3) in shapes


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_the_whole_photograph_is_brought_to_size_by_the_fit_alike_in_training_and_prediction(fit: str):
    preprocess = Preprocess((96, 96), fit, stored=(110, 110), own=True)
    photo = places(300, 400)
    stored = preprocess.for_store(photo)
    assert stored.shape == (110, 147, 3)
    seen = make_view(stored, View(), preprocess)
    trained = Augmenter([], (96, 96), 0, 1, preprocess.last_fit)(stored, 0, 0)[0]
    unstored = Augmenter([], (96, 96), 0, 1, preprocess.last_fit)(Unresized(photo, preprocess.for_store), 0, 0)[0]
    inside = slice(16, 80)  # the edge of the grey mixes in another way
    for other in (trained, unstored):
        assert np.abs(seen.astype(int) - other)[inside].max() <= 3
    expected = {"squash": 4 / 3, "crop": 1.0, "pad": 1.0}[fit]
    middle = seen[inside] if fit == "pad" else seen
    assert proportion(middle, (300, 400)) * len(middle) / 96 == pytest.approx(expected, abs=0.03)


def save_photos(folder: Path, sizes: list[tuple[int, int]]) -> None:
    for number, (height, width) in enumerate(sizes):
        place = folder / ("sick", "healthy")[number % 2] / f"{number:02}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(places(height, width)).save(place, quality=95)


SIZES = [(60, 80), (80, 60), (64, 64), (30, 40), (20, 200), (75, 100), (201, 303), (60, 80), (90, 61), (33, 33)]


def test_a_store_of_photographs_as_they_are(tmp_path: Path):
    save_photos(tmp_path / "photos", SIZES)
    manifest, _ = scan(tmp_path / "photos")
    first = Preprocess((32, 32), stored=(40, 40), own=True).for_store
    store = make_store(tmp_path / "own", manifest, first, 1)
    assert len(store) == len(SIZES)
    for row, path in enumerate(manifest.paths):
        assert np.array_equal(store[row], load_photo(path, first))
        height, width = manifest.table[["height", "width"]].iloc[row]
        assert store[row].shape[:2] == first.kept((height, width))
    written = (tmp_path / "own.npy").stat().st_mtime_ns
    assert make_store(tmp_path / "own", manifest, first, 1).digest == store.digest
    assert (tmp_path / "own.npy").stat().st_mtime_ns == written
    unknown = manifest.with_columns(height=np.zeros(len(manifest), int), width=np.zeros(len(manifest), int))
    again = make_store(tmp_path / "unknown", unknown, first, 1)
    assert all(np.array_equal(again[row], store[row]) for row in range(len(store)))


def test_a_stopped_store_goes_on_and_a_damaged_one_is_refused(tmp_path: Path):
    save_photos(tmp_path / "photos", SIZES)
    manifest, _ = scan(tmp_path / "photos")
    first = Preprocess((32, 32), own=True).for_store
    store = make_store(tmp_path / "own", manifest, first, 1)
    whole = (tmp_path / "own.npy").read_bytes()
    (tmp_path / "own.npy").rename(tmp_path / "own.partial")
    with open(tmp_path / "own.partial", "rb+") as file:  # the second chunk was not written
        file.seek(-3 * int(store.sizes[8:].prod(axis=1).sum()), 2)
        file.write(bytes(3 * int(store.sizes[8:].prod(axis=1).sum())))
    (tmp_path / "own.progress").write_text(f"{store.digest}\n0\n")
    make_store(tmp_path / "own", manifest, first, 1)
    assert (tmp_path / "own.npy").read_bytes() == whole
    about = json.loads((tmp_path / "own.json").read_text())
    about["sizes"][2] = [1, 1]
    (tmp_path / "own.json").write_text(json.dumps(about))
    with pytest.raises(RunFolderError, match=r"own.npy"):
        PhotoStore.open(tmp_path / "own.npy")


def test_nothing_changes_for_runs_that_do_not_ask():
    plain = Preprocess((32, 32), stored=(36, 36))
    assert "own" not in plain.to_json() and plain.for_store == Preprocess((36, 36))
    assert {"proportions", "test_size"}.isdisjoint(Photo().model_dump())
    for name in ("quick", "standard", "robust"):
        assert load_recipe(name).photo.proportions == "input"
    own = Preprocess((32, 32), stored=(36, 36), own=True)
    assert Preprocess.from_json(json.loads(json.dumps(own.to_json()))) == own
    assert digest_value(plain.to_json()) != digest_value(own.to_json())


CROPPING = ("lecture-", "cassava2020-", "cassava2019-", "heroseo", "plantpath2020-05")


def crops(recipe: Recipe) -> bool:
    """Whether training or prediction cuts something out of the photographs."""
    names = {one.name for stage in recipe.stage_recipes() for one in stage.augment}
    cut = names & {"random_resized_crop", "random_crop", "center_crop"}
    return bool(cut) or any(view.name != "full" for view in recipe.tta)


def test_systems_that_crop_cut_from_the_photographs_own_proportions():
    from manihot.settings import recipe_names

    for name in recipe_names():
        for member in load_recipe(name).member_recipes().values():
            for stage in member.stage_recipes():
                if name.startswith(CROPPING):
                    assert stage.photo.proportions == "own", name
                elif name.startswith("plantpath2020"):
                    assert stage.photo.proportions == "input" and not crops(member), name
    suite = load_suite("lecture-ablations")
    assert all(one.photo.proportions == "own" for one in suite.recipe.member_recipes().values())


OWN = "photo.proportions=own"


def tiny(home: Path, *sets: str) -> Member:
    recipe = home / "own.yaml"
    recipe.write_text(
        """
extends: standard
model: {backbone: test_resnet, pretrained: false}
augment: [{name: random_resized_crop, scale: [0.5, 1.0]}, {name: horizontal_flip}]
optimizer: {lr: 1.0e-2}
train: {epochs: 2, batch: 8, precision: fp32}
tta: [{name: full}, {name: centre, scale: 0.8}]
""",
        encoding="utf-8",
    )
    return tiny_member(home, recipe, (OWN, *sets), draw_photos(home / "photos"))


def test_files_are_predicted_as_they_were_held_out(tmp_path: Path):
    """By the network as ONNX, from the photographs' files, and from the store."""
    from manihot.train.finetune import finetune

    member = tiny(tmp_path, "photo.store_scale=1.0")
    assert isinstance(member.photos, PhotoStore) and "-own" in member.photos.path.name
    assert member.photos[0].shape == (32, 38, 3)  # of 40 x 48
    train, held = member.rows(0)
    finetune(member, 0, train, held)
    told = Predictions.load(member.folder(0) / "oof.parquet")
    (model,) = load_model(member.folder(0) / "network.onnx")
    assert model.preprocess.own and model.preprocess == member.preprocess
    found = predict_photos([model], member.manifest.take(held))
    where = found.align(told.image_id)
    assert np.abs(where.pred_probs - told.pred_probs).max() < 1e-4


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_a_network_predicts_at_another_size_than_it_learned_at(backbone: str, tmp_path: Path):
    from manihot.train.finetune import finetune
    from manihot.train.networks.checkpoint import load_network

    edge = {"test_resnet": "48", "test_vit": "64"}[backbone]
    member = tiny(tmp_path, f"photo.test_size=[{edge},{edge}]", f"model.backbone={backbone}", "photo.store_scale=1.0")
    assert member.preprocess.size == (32, 32) and member.preprocess.stored == (int(edge), int(edge))
    train, held = member.rows(0)
    finetune(member, 0, train, held)
    told = Predictions.load(member.folder(0) / "oof.parquet")
    (model,) = load_model(member.folder(0) / "network.onnx")
    assert model.preprocess.size == (int(edge), int(edge))
    found = predict_photos([model], member.manifest.take(held)).align(told.image_id)
    assert np.abs(found.pred_probs - told.pred_probs).max() < 1e-4
    network, card = load_network(member.folder(0) / "best.safetensors")
    assert card.preprocess == model.preprocess
    small = Predictions.load(member.folder(0) / "oof.parquet")
    finetune(member, 0, train, held)  # all epochs are done; the network is the same one again
    assert np.array_equal(Predictions.load(member.folder(0) / "oof.parquet").pred_probs, small.pred_probs)
    seen = [name for name in ("size", "stored") if getattr(card.preprocess, name) != getattr(member.preprocess, name)]
    assert seen == ["size"] and network.head.out_features == 3


def test_frozen_features_have_no_test_size():
    with pytest.raises(SettingsError, match=r"photo.test_size: the method 'features'"):
        check_recipe(load_recipe("quick", ["photo.test_size=[300,300]"]))
