"""Watching new photographs: the same field, another one, too few, the very same photographs, a model alone."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from manihot.errors import DataError, WeightsError
from manihot.infer.models import Engine, load_model
from manihot.infer.predict import predict, predict_photos
from manihot.infer.reference import find_fitted, held_out_by, judge_new, nearest_known, with_reference
from manihot.photos.scan import scan
from manihot.pipeline import run as run_pipeline
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.report.watch import watch
from manihot.train.export import export_network
from manihot.train.networks.checkpoint import load_network
from manihot.trust.drift import EXIT_MOVED, EXIT_SAME, EXIT_TOO_FEW
from manihot.trust.words import NOT_OF_THIS_KIND
from test_report import Page

CLASSES = ("blue spots", "green", "red")
CPU = Engine()
BASE = """
folds: {n: 2}
photo: {size: [32, 48], store_scale: 1.0}
model: {backbone: test_efficientnet, pretrained: false, dropout: 0.0}
tta: [{name: full}, {name: full, flip: h}]
"""
FEATURES = "method: features\nfeatures: {c: [0.01]}\n" + BASE
FINETUNE = "method: finetune\ntrain: {epochs: 1, batch: 16, precision: fp32}\n" + BASE


def draw(folder: Path, n: int, seed: int, classes: tuple[int, ...] = (0, 1, 2), haze: int = 0) -> Path:
    """Noise with one channel raised by class; `haze` is added to all of it."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        k = classes[i % len(classes)]
        picture = rng.integers(40, 120, (24, 36, 3))
        picture[..., k] += 40 + rng.integers(0, 40)
        (folder / CLASSES[k]).mkdir(parents=True, exist_ok=True)
        small = Image.fromarray((picture + haze).clip(0, 255).astype(np.uint8))
        small.resize((72, 48)).save(folder / CLASSES[k] / f"{seed}-{i:03d}.png")
    return folder


def fit(home: Path, recipe: str) -> Path:
    (home / "recipe.yaml").write_text(recipe, encoding="utf-8")
    photos = draw(home / "photos", 150, 0)
    run_pipeline(photos, home / "run", str(home / "recipe.yaml"), workers=1, report=False)
    return home / "run"


@pytest.fixture(scope="module")
def features_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("features"), FEATURES)


@pytest.fixture(scope="module")
def finetune_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("finetune"), FINETUNE)


@pytest.fixture(params=["features", "finetune"])
def kind_run(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"{request.param}_run")


def load(out: Path) -> tuple[dict, Page]:
    html = (out / "WATCH.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not page.wrong and not page.open
    assert all(address.startswith("data:image/") for address in page.all("img", "src"))
    assert not re.search(r"(?:src|href)=\"https?:", html)
    return json.loads((out / "watch.json").read_text(encoding="utf-8")), page


def test_photographs_like_those_it_was_fitted_on(features_run: Path, tmp_path: Path):
    new = draw(tmp_path / "new", 60, 1)
    (new / "red" / "page.jpg").write_text("<html>", encoding="utf-8")
    report = watch(features_run, new, tmp_path / "out", workers=1)
    assert report.exit_code == EXIT_SAME, report.table
    assert report.table["what"].tolist() == ["input", "prediction mix", "confidence", "unknown"]
    assert abs(report.table["effect"][0] - 0.5) < 0.15
    record, page = load(tmp_path / "out")
    assert record["exit_code"] == 0 and record["photographs"] == 60 and record["already_known"] == 0
    assert record["labelled"]["n"] == 60 and record["labelled"]["low"] < record["labelled"]["accuracy"]
    assert record["unreadable"] == 1 and "page.jpg" in page.text
    assert len(page.all("img", "src")) == 2 * 12  # each beside its nearest
    assert record["photographs_now"]["sizes"] == [{"width": 72, "height": 48, "share": 1.0}]
    before = (tmp_path / "out" / "WATCH.html").read_bytes()
    watch(features_run, new, tmp_path / "out", workers=1)
    assert (tmp_path / "out" / "WATCH.html").read_bytes() == before


def test_haze_moves_the_input_and_strange_ones_stand_first(features_run: Path, tmp_path: Path):
    new = draw(tmp_path / "new", 24, 2)
    draw(tmp_path / "new", 60, 3, haze=90)
    for k, folder in enumerate(sorted((tmp_path / "new").iterdir())):
        folder.rename(tmp_path / "new" / f"day {k}")  # nobody has labelled them
    report = watch(features_run, new, tmp_path / "out", workers=1)
    moved = report.table.loc[report.table["moved"], "what"].tolist()
    assert report.exit_code == EXIT_MOVED and "input" in moved and "unknown" in moved
    record, page = load(tmp_path / "out")
    assert all(row["image_id"].endswith(".png") and "3-" in row["image_id"] for row in record["furthest"])
    assert record["furthest"][0]["stranger"] > 0.98 and "Drift from the training data: input" in page.text
    assert record["labelled"] is None and "its confidence does not predict its accuracy" in page.text


def test_another_mix_of_classes_is_told(features_run: Path, tmp_path: Path):
    report = watch(features_run, draw(tmp_path / "new", 60, 4, classes=(2,)), tmp_path / "out", workers=1)
    row = report.table.set_index("what").loc["prediction mix"]
    assert row["moved"] and row["effect"] > 0.4
    assert report.shares["answered_now"][2] > 0.8 and report.exit_code == EXIT_MOVED


def test_too_few_to_tell(features_run: Path, tmp_path: Path):
    report = watch(features_run, draw(tmp_path / "new", 9, 5, haze=90), tmp_path / "out", workers=1)
    assert report.exit_code == EXIT_TOO_FEW
    assert "too few" in load(tmp_path / "out")[1].text


def test_at_most_so_many_are_looked_at(features_run: Path, tmp_path: Path):
    report = watch(features_run, draw(tmp_path / "new", 50, 6), tmp_path / "out", workers=1, most=35)
    record, _ = load(tmp_path / "out")
    assert report.photographs == 35 and record["found"] == 50


@pytest.mark.parametrize("kind", ["features", "finetune"])
def test_its_own_photographs_are_judged_by_the_network_that_held_them_out(kind: str, request: pytest.FixtureRequest):
    run = request.getfixturevalue(f"{kind}_run")
    fitted, why = with_reference(find_fitted(run), CPU)
    assert not why and not fitted.every_view and len(list((run / "watch").iterdir())) == 1
    assert fitted.shared == (kind == "features")
    known = Manifest.load(run / "manifest.parquet")
    made = judge_new(fitted, known, CPU)
    expected = fitted.oof.align(known.image_id)
    assert np.array_equal(held_out_by(fitted, known), expected.fold)
    np.testing.assert_allclose(made.pred_probs, expected.pred_probs, atol=1e-3)
    all_views = Predictions.load(run / "predictions/main.oof.parquet")
    assert np.abs(all_views.pred_probs - expected.pred_probs).max() > 1e-4  # one look is not two
    np.testing.assert_allclose(made.embeddings, expected.embeddings, atol=1e-3)
    assert nearest_known(fitted, made)["nearest"].tolist() == known.image_id.tolist()  # itself


def test_new_photographs_are_no_surer_for_being_judged_by_several(finetune_run: Path, tmp_path: Path):
    """Two networks that disagree: their mean is unsure of everything, each of them is sure."""
    run = tmp_path / "run"
    shutil.copytree(finetune_run, run)
    for fold, path in enumerate(sorted(run.glob("members/main/fold*/best.safetensors"))):
        network, card = load_network(path)
        with torch.no_grad():
            network.head.weight.zero_()
            network.head.bias.copy_(torch.tensor([5.0, 0, 0] if fold else [0, 5.0, 0]))
        noise = np.random.default_rng(0).integers(0, 255, (2, 32, 48, 3), dtype=np.uint8)
        assert not export_network(path.with_name("network.onnx"), network, card, noise, np.arange(2))
    new, _ = scan(draw(tmp_path / "new", 40, 7), workers=1)
    alone = judge_new(find_fitted(run), new, CPU)
    assert alone.pred_probs.max(axis=1).min() > 0.98 and set(alone.fold) == {0, 1}
    assert predict_photos(load_model(run), new, CPU).pred_probs.max() < 0.6


def test_fine_tuned_networks_keep_their_reference(finetune_run: Path, tmp_path: Path):
    run, new = tmp_path / "run", draw(tmp_path / "new", 40, 8, haze=90)
    shutil.copytree(finetune_run, run, ignore=shutil.ignore_patterns("watch"))
    first = watch(run, new, tmp_path / "a", workers=1)
    assert first.exit_code == EXIT_MOVED and first.table["what"][0] == "input"
    shutil.rmtree(run / "store")
    again = watch(run, new, tmp_path / "b", workers=1)
    assert again.table.equals(first.table)
    # nothing left to embed: the rest is still answered, and the page says why not this
    shutil.rmtree(run / "watch")
    manifest = Manifest.load(run / "manifest.parquet")
    replace(manifest, root=tmp_path / "gone").save(run / "manifest.parquet")
    least = watch(run, new, tmp_path / "c", workers=1)
    assert least.table["what"].tolist() == ["prediction mix", "confidence"]
    record, page = load(tmp_path / "c")
    assert "no longer where they were" in page.text and "Least certain" in page.text
    assert [row["probability"] for row in record["furthest"]] == sorted(
        row["probability"] for row in record["furthest"]
    )


def test_each_new_photograph_is_looked_at_once(kind_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two views were judged; watching, once the reference is there, costs one look a photograph and no more."""
    import manihot.infer.forward as one_loop
    import manihot.infer.reference as reference

    seen: list[int] = []
    each = one_loop.each_batch

    def counted(photos, rows, preprocess, views, *more):
        seen.append(len(rows) * len(views))
        return each(photos, rows, preprocess, views, *more)

    monkeypatch.setattr(one_loop, "each_batch", counted)
    monkeypatch.setattr(reference, "each_batch", counted)
    new = draw(tmp_path / "new", 40, 10)
    watch(kind_run, new, tmp_path / "a", workers=1)
    seen.clear()
    watch(kind_run, new, tmp_path / "b", workers=1)
    assert sum(seen) == 40
    assert load(tmp_path / "b")[0]["views"] == "first" and "(from one view)" in load(tmp_path / "b")[1].text


def test_a_run_tells_photographs_of_another_kind(kind_run: Path, tmp_path: Path):
    """Known ones are refused at about the rate of 5 %, others far more often; with one view as with all of them."""
    about = json.loads((kind_run / "trust/unknown.json").read_text(encoding="utf-8"))
    assert len(about["detectors"]) == (1 if "features" in str(kind_run) else 2)
    stages = json.loads((kind_run / "run.json").read_text(encoding="utf-8"))["stages"]
    files = {"trust/unknown.json", *(f"trust/{name}" for name in about["detectors"].values())}
    assert set(stages["unknown"]["outputs"]) == files
    new = draw(draw(tmp_path / "new", 60, 12), 30, 13, haze=90)
    for tta in (None, 1):
        predict(kind_run, new, tmp_path / "p.csv", tta=tta, workers=1)
        answers = pd.read_csv(tmp_path / "p.answers.csv")
        hazy = answers["image_id"].str.contains("13-")
        assert hazy.sum() == 30 and answers.loc[hazy, "unknown"].mean() > 0.4  # by features of a network at random
        assert answers.loc[~hazy, "unknown"].mean() < 0.2  # 5 % and three standard errors of 60 and of the threshold
        assert (answers["unknown"] == (answers["answer"] == NOT_OF_THIS_KIND)).all()
        assert (answers["unknown"] == (answers["strangeness"] > 1)).all()


def test_without_features_all_views_are_compared(features_run: Path, tmp_path: Path):
    """The frozen backbone's features were removed, and the photographs too: the out-of-fold predictions still serve."""
    run = tmp_path / "run"
    shutil.copytree(features_run, run, ignore=shutil.ignore_patterns("watch", "features", "store"))
    manifest = Manifest.load(run / "manifest.parquet")
    replace(manifest, root=tmp_path / "gone").save(run / "manifest.parquet")
    report = watch(run, draw(tmp_path / "new", 40, 11), tmp_path / "out", workers=1)
    assert report.exit_code == EXIT_SAME and report.table["what"][0] == "input"
    record, page = load(tmp_path / "out")
    assert record["views"] == "all" and record["not_compared"] == {} and "one view" not in page.text


def test_a_model_is_named_by_run_member_or_file(features_run: Path, tmp_path: Path):
    member = features_run / "members" / "main"
    whole, one = find_fitted(member), find_fitted(member / "fold1" / "head.safetensors")
    assert len(whole.oof) == len(find_fitted(features_run).oof) == 150
    assert set(one.networks) == {1} and set(one.oof.fold) == {1} and one.run == features_run


def test_a_model_without_its_run_folder_is_told_apart(features_run: Path, tmp_path: Path):
    alone = tmp_path / "model.safetensors"
    shutil.copy(features_run / "members" / "main" / "fold0" / "head.safetensors", alone)
    new = draw(tmp_path / "new", 3, 9)
    with pytest.raises(DataError, match="only a run folder knows") as error:
        watch(alone, new, tmp_path / "out")
    assert "name the run folder" in error.value.remedy and not (tmp_path / "out").exists()
    with pytest.raises(WeightsError):
        watch(tmp_path / "nothing", new, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        watch(features_run, tmp_path / "empty", tmp_path / "out")
