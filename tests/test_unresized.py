"""Training from files without a store: the crop that the store gives, resized once, and all that reads photographs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from manihot.augment.augmenter import Augmenter
from manihot.augment.resample import resample, warp
from manihot.errors import DataError
from manihot.infer.forward import PhotoFiles, UnresizedFiles
from manihot.members.training_labels import LabelRequest, make_training_labels
from manihot.photos.load import load_photo, load_unresized
from manihot.photos.preprocess import Preprocess, Unresized
from manihot.pipeline import run
from manihot.records.predictions import Predictions
from manihot.report.show_augment import augmented_pictures
from manihot.settings import Choice, load_recipe
from manihot.train.data.dataset import TrainingPhotos, make_loader
from manihot.train.finetune import finetune
from manihot.train.training import make_training
from tiny_member import draw_photos, tiny_member

NO_STORE = "photo.store=none"
CROP = [{"name": "random_resized_crop", "scale": [0.3, 1.0]}]
OPERATIONS = {
    "nothing": [],
    "crop": CROP,
    "flips": [*CROP, {"name": "horizontal_flip"}, {"name": "vertical_flip"}, {"name": "transpose", "p": 1.0}],
    "quarter turns": [{"name": "rotate90", "p": 1.0}, *CROP],
    "turned": [*CROP, {"name": "rotate", "p": 1.0, "limit": 30}],
    "moved": [{"name": "shift_scale_rotate", "p": 1.0, "scale": 0.4, "border": "replicate"}, *CROP],
    "perspective": [*CROP, {"name": "perspective", "p": 1.0}],
    "box": [{"name": "random_crop", "share": [0.4, 0.9]}],
}


def ramps(height: int, width: int) -> np.ndarray:
    """Red rises with x and green with y, so that a pixel's colour says where it is from; blue has waves."""
    y, x = np.mgrid[:height, :width]
    waves = 127 + 90 * np.sin(x / width * 25) * np.cos(y / height * 19)
    return np.stack([255 * x / width, 255 * y / height, waves], axis=2).round().astype(np.uint8)


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("operations", OPERATIONS)
@pytest.mark.parametrize("shape", [(300, 400), (500, 260), (60, 80)])
def test_the_crop_is_the_stored_copys(fit: str, operations: str, shape: tuple[int, int]):
    preprocess = Preprocess((110, 132), fit)
    photo = ramps(*shape)
    augmenter = Augmenter(OPERATIONS[operations], (96, 96), 1, 10)
    for epoch in range(4):
        stored, drawn = augmenter.explain(preprocess(photo), epoch, 7)
        once, drawn_too = augmenter.explain(Unresized(photo, preprocess), epoch, 7)
        assert drawn == drawn_too
        apart = np.abs(stored.astype(int) - once)
        assert apart.mean() < 1.5, epoch  # a pixel of the input is 2.6 levels of a ramp
        # but at the edge of the grey, where the store's resize mixes
        assert np.quantile(apart, 0.95) <= 5


def test_it_is_not_the_crop_of_another_seed():
    photo, preprocess = ramps(300, 400), Preprocess((110, 110))
    one, two = (Augmenter(CROP, (96, 96), seed, 10)(Unresized(photo, preprocess), 0, 0)[0] for seed in (1, 2))
    assert np.abs(one.astype(int) - two).mean() > 5


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_operations_on_pixels_before_geometry_see_the_stored_copy(fit: str):
    photo, preprocess = ramps(300, 400), Preprocess((110, 132), fit)
    augmenter = Augmenter([{"name": "blur", "p": 1.0}, *CROP, {"name": "gauss_noise", "p": 1.0}], (96, 96), 1, 10)
    for index in range(4):
        stored, once = augmenter(preprocess(photo), 0, index), augmenter(Unresized(photo, preprocess), 0, index)
        assert all(np.array_equal(a, b) for a, b in zip(stored, once))


def test_without_geometry_at_the_models_size_it_is_the_stored_copy():
    photo, preprocess = ramps(301, 403), Preprocess((96, 96))
    pixels, _ = Augmenter([], (96, 96), 1, 10)(Unresized(photo, preprocess), 0, 0)
    assert np.array_equal(pixels, preprocess(photo))


@pytest.mark.parametrize("ratio", [1.4, 1.9, 3.7])
@pytest.mark.parametrize("degrees", [0, 20])
def test_shrinking_does_not_alias(ratio: float, degrees: float):
    """Stripes too fine for the output turn grey; plain bilinear sampling makes coarse stripes of them."""
    photo = np.zeros((400, 400, 3), np.uint8)
    photo[:, ::2] = 255
    size, angle = (100, 100), np.radians(degrees)
    turn = ratio * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = turn, 200.3 - turn @ [50, 50]
    once = resample(photo, matrix, size).astype(float)
    box = round(100 * ratio)
    area = cv2.resize(photo[:box, :box], size[::-1], interpolation=cv2.INTER_AREA).astype(float)
    assert abs(once.mean() - 127.5) < 3
    assert once.std() < 1.6 * area.std() + 8
    if ratio == 1.9:
        assert warp(photo, matrix, size).std() > 2 * once.std()


def save_photos(folder: Path, n: int = 6) -> list[Path]:
    paths = [folder / f"{number}.jpg" for number in range(n)]
    for number, path in enumerate(paths):
        cv2.imwrite(str(path), np.roll(ramps(120, 160), 10 * number, axis=1))
    return paths


def loader_of(paths: list[Path], workers: int):
    files = UnresizedFiles(PhotoFiles(paths, Preprocess((32, 32), stored=(40, 40))))
    augmenter = Augmenter([Choice(name="random_resized_crop"), Choice(name="color_jitter")], (32, 32), 0, 3)
    n = len(paths)
    data = TrainingPhotos(files, np.arange(n), np.eye(2)[np.arange(n) % 2], np.ones(n), augmenter)
    return make_loader(data, 2, 0, workers, False)[0]


def test_workers_change_nothing_and_a_broken_file_is_named(tmp_path: Path):
    paths = save_photos(tmp_path)
    alone, worker = loader_of(paths, 0), loader_of(paths, 1)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(alone, worker, strict=True) for key in a)
    paths[3].write_bytes(paths[3].read_bytes()[:900])
    for loader in (alone, worker):
        with pytest.raises(DataError) as caught:
            list(loader)
        said = str(caught.value)
        assert str(paths[3]) in said and "truncated" in said and "remedy" in said and "Traceback" not in said


def test_a_large_jpeg_is_decoded_as_small_as_for_the_store(tmp_path: Path):
    cv2.imwrite(str(tmp_path / "large.jpg"), ramps(640, 800))
    found = load_unresized(tmp_path / "large.jpg", Preprocess((150, 150)))
    assert found.rgb.shape == (160, 200, 3)
    assert np.array_equal(found.stored(), load_photo(tmp_path / "large.jpg", Preprocess((150, 150))))


def test_the_default_leaves_the_settings_of_older_runs_as_they_were():
    assert "store" not in load_recipe("quick").resolved()["photo"]
    recipe = load_recipe("standard", [NO_STORE, "members={a: {}, b: {photo: {store: disk}}}"])
    assert recipe.resolved()["photo"]["store"] == "none"
    assert {name: member.photo.store for name, member in recipe.member_recipes().items()} == {"a": "none", "b": "disk"}


def test_a_run_without_a_store(small_photos: Path, tiny_recipe: Path, tmp_path: Path):
    sets = [NO_STORE, "folds.kind=holdout"]
    for name in ("one", "again"):
        run(small_photos, tmp_path / name, str(tiny_recipe), overrides=sets, workers=1, report=False)
    run(small_photos, tmp_path / "stored", str(tiny_recipe), overrides=sets[1:], workers=1, report=False)
    one, again, stored = (
        Predictions.load(tmp_path / name / "predictions/main.oof.parquet") for name in ("one", "again", "stored")
    )
    assert np.array_equal(one.logits, again.logits)
    assert not np.array_equal(one.logits, stored.logits)  # the same photographs, sampled once instead of twice
    assert np.abs(one.pred_probs - stored.pred_probs).mean() < 0.1
    assert not (tmp_path / "one/store").exists() and (tmp_path / "stored/store").exists()


def test_a_stopped_training_goes_on_with_the_same_weights(tmp_path: Path, tiny_recipe: Path, monkeypatch):
    from manihot.train import loop

    whole, stopped = (tiny_member(tmp_path / name, tiny_recipe, (NO_STORE,)) for name in ("whole", "stopped"))
    train_fold(whole)
    save, saved = loop._save_checkpoint, []

    def save_once(*given):
        save(*given)
        saved.append(given)
        if len(saved) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_save_checkpoint", save_once)
    with pytest.raises(KeyboardInterrupt):
        train_fold(stopped)
    train_fold(stopped)
    one, two = (Predictions.load(member.folder(0) / "oof.parquet").logits for member in (whole, stopped))
    assert len(saved) == 3 and np.array_equal(one, two)


def train_fold(member) -> None:
    train, held = member.rows(0)
    finetune(member, 0, train, held)


def test_features_are_those_of_the_store(small_photos: Path, tiny_recipe: Path, tmp_path: Path):
    sets = ["method=features", "features.c=[0.1]", "photo.normalise=measured"]
    for name, more in (("files", [NO_STORE]), ("store", [])):
        run(small_photos, tmp_path / name, str(tiny_recipe), overrides=[*sets, *more], workers=1, report=False)
    files, store = (Predictions.load(tmp_path / name / "predictions/main.oof.parquet") for name in ("files", "store"))
    assert np.array_equal(files.logits, store.logits)


@pytest.mark.parametrize(
    "sets",
    [
        ("step={name: fixmatch, threshold: 0.3}", "sources={field: {use: unlabelled}}"),
        ("model.unknown=true", "negatives={name: mixed, share: 0.5}"),
        ("stages=[{}, {photo: {size: [64, 64]}, labels: {name: pseudo, above: 0.34}}]",),
        ("labels={name: clusters, k: 3}",),
        ("photo.fit=pad", "mixing=[{name: cutmix, p: 1.0}]", "optimizer.sam=0.05"),
    ],
)
def test_everything_that_reads_photographs_reads_files(tmp_path: Path, tiny_recipe: Path, sets: tuple[str, ...]):
    member = tiny_member(tmp_path, tiny_recipe, (NO_STORE, "train.epochs=1", *sets))
    train_fold(member)
    assert np.isfinite(Predictions.load(member.folder(0) / "oof.parquet").logits).all()
    assert not list((member.run / "store").glob("*x*.npy"))  # but drawn negatives


def test_labels_from_a_member_without_a_store(tmp_path: Path, tiny_recipe: Path):
    manifest = draw_photos(tmp_path / "photos")
    sets = (
        "train.epochs=1",
        "members={elder: {photo: {store: none, store_scale: 2.0}}, "
        "main: {labels: {name: pseudo, by: elder, above: 0.1}}}",
    )
    train_fold(tiny_member(tmp_path, tiny_recipe, sets, manifest, "elder"))
    member = tiny_member(tmp_path, tiny_recipe, sets, manifest)
    training_labels = make_training_labels(LabelRequest(member, 0, member.rows(0)[0]))
    assert len(training_labels.rows) > len(member.rows(0)[0])
    assert make_training(member, 0, training_labels).loader.dataset.photos is member.photos


def test_the_page_of_augmentations_shows_what_training_sees(tiny_recipe: Path):
    photo = ramps(300, 400)
    stored, once = (augmented_pictures(load_recipe(str(tiny_recipe), more), photo, n=2) for more in ([], [NO_STORE]))
    assert [caption for caption, _ in stored] == [caption for caption, _ in once]
    assert not np.array_equal(stored[1][1], once[1][1])
