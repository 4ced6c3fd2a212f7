"""The main job end to end on small photographs: files, scores, resume, determinism, members, prediction."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import manihot
from manihot.engines import predict as predict_files
from manihot.ensemble.files import blend_files
from manihot.errors import RunFolderError, SettingsError
from manihot.infer.models import Engine
from manihot.infer.outputs import commonest
from manihot.photos.scan import scan
from manihot.pipeline import run
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.settings.options import TableOptions

FEATURES = ["method=features", "model.taps=[2]", "model.pooling=avgmax", "model.power=true", "features.c=[0.01, 0.1]"]


@pytest.fixture(scope="module")
def finished(small_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from conftest import TINY_RECIPE

    folder = tmp_path_factory.mktemp("run")
    recipe = folder / "tiny.yaml"
    recipe.write_text(TINY_RECIPE, encoding="utf-8")
    run(small_photos, folder / "out", str(recipe), workers=1)
    return folder / "out"


def test_a_run_leaves_every_file_of_the_run_folder(finished: Path):
    for name in (
        "run.json",
        "manifest.parquet",
        "quarantine.csv",
        "folds.parquet",
        "metrics.json",
        "report.html",
        "predictions/main.oof.parquet",
        "members/main/fold0/network.onnx",
        "members/main/fold1/history.jsonl",
    ):
        assert (finished / name).is_file(), name
    assert not list(finished.rglob("*.part*"))
    record = json.loads((finished / "run.json").read_text(encoding="utf-8"))
    assert all(stage["status"] == "done" for stage in record["stages"].values())
    assert record["recipe"]["train"]["epochs"] == 3


def test_broken_photographs_are_quarantined_and_the_rest_is_judged(finished: Path):
    quarantine = pd.read_csv(finished / "quarantine.csv")
    assert set(quarantine["fault"]) == {"empty", "not_an_image"}
    assert len(Manifest.load(finished / "manifest.parquet")) == 45


def test_every_photograph_is_predicted_once_by_a_model_that_did_not_see_it(finished: Path):
    oof = Predictions.load(finished / "predictions/main.oof.parquet")
    folds = pd.read_parquet(finished / "folds.parquet")
    assert oof.image_id.tolist() == folds["image_id"].tolist()
    assert (oof.fold == folds["fold"].to_numpy()).all()


def test_a_run_ends_with_calibration_and_sets_of_answers(finished: Path):
    from manihot.trust.files import apply_trust

    trust = json.loads((finished / "trust/trust.json").read_text(encoding="utf-8"))
    assert trust["photographs"] == 45 and trust["sets"]["coverage"] == 0.9
    answers = apply_trust(Predictions.load(finished / "predictions/main.oof.parquet"), finished / "trust")
    assert len(answers) == 45


def test_a_shared_run_answers_elsewhere_and_holds_no_photograph(finished: Path, small_photos: Path, tmp_path: Path):
    import zipfile

    from manihot.report.compare import leaderboard
    from manihot.report.share import share_run

    (finished / "predictions/.main.oof.7.part.parquet").touch()  # another process is writing it
    names = share_run(finished, tmp_path / "a.zip")
    (finished / "predictions/.main.oof.7.part.parquet").unlink()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"out/{name}" for name in names]
        archive.extractall(tmp_path)
    kept = {Path(name).suffix for name in names}
    assert kept <= {".json", ".parquet", ".safetensors", ".onnx", ".jsonl", ".npz", ".csv", ".png"}
    assert {Path(name).parent.name for name in names if name.endswith(".png")} <= {"trust", "blend"}  # diagrams
    assert not [name for name in names if "part" in name or name.startswith(("store", "audit", "features"))]
    there = tmp_path / "out"
    photo = small_photos / "blue spots"
    mine = predict_files(finished, photo, tmp_path / "mine.csv", workers=1)
    theirs = predict_files(there, photo, tmp_path / "theirs.csv", workers=1)
    np.testing.assert_array_equal(mine.pred_probs, theirs.pred_probs)
    one = predict_files(there / "members/main/fold0/network.onnx", photo, tmp_path / "one.csv", workers=1)
    assert one.pred_probs.shape == mine.pred_probs.shape
    board = leaderboard([finished, there])
    assert board["accuracy"].nunique() == 1 and set(board["status"]) == {"done"}


def test_what_is_no_finished_run_is_not_shared(finished: Path, tmp_path: Path):
    from manihot.errors import SettingsError
    from manihot.report.share import share_run

    with pytest.raises(RunFolderError, match="not a run folder"):
        share_run(tmp_path, tmp_path / "a.zip")
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RunFolderError, match="no predictions to share yet"):
        share_run(tmp_path, tmp_path / "a.zip")
    with pytest.raises(SettingsError, match=r"not a \.zip"):
        share_run(finished, tmp_path / "a.tar")
    assert not (tmp_path / "a.zip").exists()


def test_members_weigh_in_a_prediction_as_in_the_blend(small_photos: Path, tiny_recipe: Path, tmp_path: Path):
    out = tmp_path / "two"
    members = "members={a: {}, b: {seed: 3, method: features}, c: {seed: 4}}"
    run(small_photos, out, str(tiny_recipe), overrides=[members], workers=1, report=False)
    blend = json.loads((out / "blend/blend.json").read_text(encoding="utf-8"))
    assert blend["members"] == ["a", "b", "c"] and blend["method"] == "uniform"
    manifest = Manifest.load(out / "manifest.parquet")
    from manihot.infer.predict import predict_photos

    plain = predict_photos(manihot.load_model(out), manifest).pred_probs
    parts = [predict_photos(manihot.load_model(out / f"members/{n}"), manifest).pred_probs for n in "abc"]
    assert np.allclose(plain, np.mean(parts, axis=0), atol=1e-5)
    from manihot.ensemble.second_level import as_weighted

    as_weighted("abc", blend["classes"], np.array([0.75, 0.25, 0])).save(out / "blend/combination.npz")
    assert {model.about["member"] for model in manihot.load_model(out)} == {"a", "b"}
    weighted = predict_photos(manihot.load_model(out), manifest).pred_probs
    assert np.allclose(weighted, 0.75 * parts[0] + 0.25 * parts[1], atol=1e-5)
    (out / "blend/combination.npz").unlink()  # a run folder of an older version holds weights alone
    about = {"members": ["a", "b", "c"], "method": "fixed", "weights": {"a": 0.75, "b": 0.25, "c": 0.0}}
    (out / "blend/blend.json").write_text(json.dumps(about))
    assert np.allclose(predict_photos(manihot.load_model(out), manifest).pred_probs, weighted, atol=1e-6)


def test_a_run_audits_and_shows_it(finished: Path):
    assert (finished / "audit.html").is_file() and (finished / "audit/label_issues.csv").is_file()
    summary = json.loads((finished / "audit/audit.json").read_text(encoding="utf-8"))
    assert summary["judged"] == 45


def test_file_names_can_tell_groups(small_photos: Path):
    manifest, _ = scan(small_photos, columns=TableOptions(group="{group}?"))
    names = manifest.table["path"].map(lambda path: Path(path).stem[:-1])
    groups = manifest.table["group"].to_numpy()
    for group in np.unique(groups[groups != ""]):
        assert names[groups == group].nunique() == 1
    assert (groups != "").sum() > 10


def test_metrics_agree_with_the_predictions(finished: Path):
    scores = json.loads((finished / "metrics.json").read_text(encoding="utf-8"))["members"]["main"]["oof"]
    oof = Predictions.load(finished / "predictions/main.oof.parquet")
    assert scores["metrics"]["accuracy"]["value"] == pytest.approx((oof.logits.argmax(1) == oof.labels).mean())


def test_the_same_command_does_nothing_twice(finished: Path, small_photos: Path):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")}
    run(small_photos, finished, str(finished.parent / "tiny.yaml"), workers=1, report=False)
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")}


def test_other_settings_in_the_same_folder_are_refused_until_asked_for(finished: Path, small_photos: Path):
    with pytest.raises(RunFolderError, match=r"train\.epochs \(3 -> 4\)"):
        run(small_photos, finished, str(finished.parent / "tiny.yaml"), overrides=["train.epochs=4"])


def test_two_runs_with_one_seed_are_identical_and_another_seed_is_not(
    finished: Path, small_photos: Path, tmp_path: Path
):
    recipe = str(finished.parent / "tiny.yaml")
    run(small_photos, tmp_path / "again", recipe, workers=1, report=False)
    run(small_photos, tmp_path / "other", recipe, overrides=["seed=1"], workers=1, report=False)
    one, two, other = (
        Predictions.load(f / "predictions/main.oof.parquet") for f in (finished, tmp_path / "again", tmp_path / "other")
    )
    assert (one.logits == two.logits).all()
    assert not np.array_equal(one.logits, other.logits)


def test_predict_with_a_run_gives_probabilities_and_kaggle_files(finished: Path, small_photos: Path, tmp_path: Path):
    found = predict_files(finished, small_photos, tmp_path / "p.csv", device="cpu")
    assert len(found) == 45
    table = pd.read_csv(tmp_path / "p.csv")
    assert np.allclose(table[["c0", "c1", "c2"]].sum(axis=1), 1)
    assert (tmp_path / "p.quarantine.csv").is_file()
    answers = pd.read_csv(tmp_path / "p.answers.csv", keep_default_na=False)
    assert answers["image_id"].tolist() == table["image_id"].tolist()
    sure = answers["answer"] != "ask an expert"
    assert (answers["answer"][sure] == answers["could_be"][sure]).all()
    best = np.array(found.classes)[found.logits.argmax(axis=1)]
    assert table["predicted"].tolist() == best.tolist()
    named = pd.read_csv(tmp_path / "p.classes.csv")
    assert named["column"].tolist() == ["c0", "c1", "c2"] and tuple(named["class"]) == found.classes
    again = Predictions.load(tmp_path / "p.csv", found.classes)
    assert np.allclose(again.pred_probs, found.pred_probs, atol=1e-6)
    predict_files(finished, small_photos / "blue spots", tmp_path / "submission.csv", device="cpu", tta=1)
    assert list(pd.read_csv(tmp_path / "submission.csv").columns) == ["image_id", "label"]


def test_photographs_in_tfrecords_alone_are_predicted(finished: Path, tmp_path: Path):
    from test_scan import records

    parts, place = records(tmp_path / "kaggle")
    place.rename(tmp_path / "kaggle/test_tfrecords")
    (tmp_path / "kaggle/test_tfrecords/a.tfrec").write_bytes(b"".join(parts))
    found = predict_files(finished, tmp_path / "kaggle", tmp_path / "out/submission.csv", workers=1)
    assert list(found.image_id) == ["11.jpg", "12.jpg", "13.jpg", "14.jpg"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["submission.csv"]


def test_a_submission_has_a_row_for_every_photograph(finished: Path, small_photos: Path, tmp_path: Path, capfd):
    """Kaggle rejects a file without a row for each; what can't be read gets the class most common in training."""
    photos = tmp_path / "photos"
    shutil.copytree(small_photos / "red", photos)
    (photos / "r00.jpg").write_bytes((photos / "r00.jpg").read_bytes()[:300] + b"\xff\xd9")
    out = tmp_path / "my submission.csv"
    predict_files(finished, photos, out, device="cpu", tta=1)
    answers = pd.read_csv(out).set_index("image_id")["label"]
    assert sorted(answers.index) == sorted(path.name for path in photos.iterdir())
    manifest = Manifest.load(finished / "manifest.parquet")
    common = int(manifest.class_counts().argmax())
    assert (answers[["r00.jpg", "empty.jpg"]] == manifest.classes[common]).all()
    aside = pd.read_csv(tmp_path / "my submission.quarantine.csv").set_index("file")
    assert set(aside.index) == {"r00.jpg", "empty.jpg"}
    assert (aside["submitted"] == manifest.classes[common]).all()
    said = capfd.readouterr().err
    assert "r00.jpg" in said and "most common in training" in said and "Corrupt JPEG" not in said


def test_the_class_most_common_in_training_is_known_to_the_model_or_its_run(finished: Path, tmp_path: Path):
    file = finished / "members/main/fold0/network.onnx"
    (model,) = manihot.load_model(file)
    said = Predictions.from_probs(np.array(["a"]), np.array([[0.0, 0.1, 0.9]]), model.classes)
    model.about["class_counts"] = [3, 9, 4]
    assert commonest(said, [model], file) == (1, "the class most common in training")
    del model.about["class_counts"]  # as in models of before
    manifest = Manifest.load(finished / "folds.parquet")
    few = manifest.take(np.flatnonzero(manifest.labels == 2))
    few.save(tmp_path / "folds.parquet")
    assert commonest(said, [model], tmp_path)[0] == 2
    assert commonest(said, [model], tmp_path / "members/main/fold0/network.onnx")[0] == 2
    place, why = commonest(said, [model], tmp_path.parent / "nowhere/else/there/is/a.safetensors")
    assert place == 2 and "in these predictions" in why


@pytest.mark.parametrize("tta", [0, -1, 3])
def test_more_views_than_there_are_or_none_is_an_error(finished: Path, small_photos: Path, tmp_path: Path, tta: int):
    with pytest.raises(SettingsError, match="the model has 2 views") as caught:
        predict_files(finished, small_photos, tmp_path / "p.csv", device="cpu", tta=tta)
    assert "from 1 to 2" in caught.value.remedy and not (tmp_path / "p.csv").exists()


def test_an_output_that_cannot_be_is_told_before_anything_is_computed(
    finished: Path, small_photos: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr("manihot.infer.predict.load_model", lambda path: pytest.fail("it began to work"))
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    (tmp_path / "there.csv").mkdir()
    wrong = {"x.txt": SettingsError, "x": SettingsError, "there.csv": SettingsError, "file/x.csv": RunFolderError}
    for name, kind in wrong.items():
        with pytest.raises(kind) as caught:
            predict_files(finished, small_photos, tmp_path / name, device="cpu")
        named = tmp_path / name if kind is SettingsError else tmp_path / "file"  # the file that is in a folder's place
        assert str(named) in str(caught.value) and caught.value.remedy
        if "x" in name and kind is SettingsError:
            assert ".parquet" in caught.value.remedy and ".csv" in caught.value.remedy
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there.csv"]


@pytest.mark.parametrize("method", ["finetune", "features"])
def test_submissions_speak_in_the_users_numbers(small_photos: Path, tmp_path: Path, method: str):
    """Classes numbered from 1, one number left out: through manifest, network, predictions and blend."""
    numbers = {"blue spots": 1, "green": 4, "red": 2}
    (tmp_path / "map.json").write_text(json.dumps({str(v): k for k, v in numbers.items()}), encoding="utf-8")
    rows = [(path, path.parent.name) for path in sorted(small_photos.glob("*/*[0-9].jpg"))]
    table = pd.DataFrame({"image": [str(path) for path, _ in rows], "label": [numbers[name] for _, name in rows]})
    table["split"] = ["test" if k % 5 == 0 else "train" for k in range(len(table))]
    table.to_csv(tmp_path / "t.csv", index=False)
    from conftest import TINY_RECIPE

    (tmp_path / "tiny.yaml").write_text(TINY_RECIPE, encoding="utf-8")
    sets = [f"method={method}", "train.epochs=1", "audit.labels=false", *(FEATURES if method == "features" else ())]
    out, csv = tmp_path / "out", tmp_path / "t.csv"
    named = TableOptions(classes=tmp_path / "map.json")
    run(csv, out, str(tmp_path / "tiny.yaml"), overrides=sets, workers=1, report=False, columns=named)
    manifest = Manifest.load(out / "folds.parquet")
    assert dict(zip(manifest.classes, manifest.numbers)) == numbers
    for kind in ("oof", "test"):
        assert Predictions.load(out / f"predictions/main.{kind}.parquet").numbers == manifest.numbers
    found = predict_files(out, small_photos / "red", tmp_path / "submission.csv", device="cpu")
    said = pd.read_csv(tmp_path / "submission.csv").set_index("image_id")["label"]
    best = [numbers[manifest.classes[k]] for k in found.logits.argmax(axis=1)]
    assert said[found.image_id].tolist() == best
    assert set(said) <= set(numbers.values())
    test = Predictions.load(out / "predictions/main.test.parquet")
    files = [[out / f"predictions/main.{kind}.parquet"] * 2 for kind in ("oof", "test")]
    blend_files(files[0], tmp_path / "blend", files[1], "uniform")
    blended = pd.read_csv(tmp_path / "blend/submission.csv")["label"].tolist()
    assert blended == [numbers[test.classes[k]] for k in test.logits.argmax(axis=1)]


def test_a_photograph_is_predicted_from_its_file_as_it_was_from_the_store(finished: Path):
    """Out-of-fold predictions come from the store, new ones from files: the same pixels, so the same numbers."""
    manifest = Manifest.load(finished / "manifest.parquet")
    oof = Predictions.load(finished / "predictions/main.oof.parquet")
    model = manihot.load_model(finished / "members/main/fold0/network.onnx")
    from manihot.infer.predict import predict_photos

    held = oof.fold == 0
    found = predict_photos(model, manifest.take(held))
    assert np.abs(found.pred_probs - oof.pred_probs[held]).max() < 1e-5


def test_features_method_learns_and_its_saved_network_repeats_its_predictions(
    small_photos: Path, tiny_recipe: Path, tmp_path: Path
):
    scores = run(small_photos, tmp_path / "f", str(tiny_recipe), overrides=FEATURES, workers=1, report=False)
    assert (
        scores["members"]["main"]["oof"]["metrics"]["accuracy"]["value"] > 0.8
    )  # colours are easy even for random features
    manifest = Manifest.load(tmp_path / "f/manifest.parquet")
    oof = Predictions.load(tmp_path / "f/predictions/main.oof.parquet")
    from manihot.infer.predict import predict_photos

    held = oof.fold == 1
    found = predict_photos(manihot.load_model(tmp_path / "f/members/main/fold1/head.safetensors"), manifest.take(held))
    assert np.abs(found.pred_probs - oof.pred_probs[held]).max() < 1e-3


def test_features_in_onnxruntime_equal_those_of_torch(tiny_recipe: Path, tmp_path: Path):
    from manihot.networks.runner import OnnxRunner
    from manihot.settings import load_recipe
    from manihot.train.export import export_backbone
    from manihot.train.networks.backbones import make_model, make_preprocess
    from manihot.train.runners import TorchRunner, choose_device

    settings = load_recipe(str(tiny_recipe), FEATURES).model
    preprocess = make_preprocess(settings, (32, 48), "squash")
    model = make_model(settings, 3, (32, 48)).eval()
    photos = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
    torch_values = TorchRunner(model, preprocess, choose_device("cpu"))(photos)["embeddings"]
    export_backbone(tmp_path / "b.onnx", model, preprocess)
    onnx_values = OnnxRunner(tmp_path / "b.onnx")(photos)["embeddings"]
    assert np.abs(torch_values - onnx_values).max() < 1e-3


def test_several_members_are_judged_alone_and_as_their_mean(small_photos: Path, tiny_recipe: Path, tmp_path: Path):
    members = "members={a: {model: {pooling: max}}, b: {train: {epochs: 1}}}"
    scores = run(
        small_photos, tmp_path / "m", str(tiny_recipe), overrides=[members, "train.epochs=1"], workers=1, report=False
    )
    assert set(scores["members"]) == {"a", "b"}
    a, b, mean = (Predictions.load(tmp_path / f"m/predictions/{n}.oof.parquet") for n in ("a", "b", "ensemble"))
    assert np.allclose((a.pred_probs + b.pred_probs) / 2, mean.pred_probs, atol=1e-6)


def test_test_photographs_are_predicted_by_the_mean_of_the_folds(small_photos: Path, tiny_recipe: Path, tmp_path: Path):
    manifest, _ = scan(small_photos, workers=1)
    split = np.where(np.arange(len(manifest)) % 5 == 0, "test", "train")
    manifest.with_columns(split=split).save(tmp_path / "split.parquet")
    scores = run(
        tmp_path / "split.parquet",
        tmp_path / "t",
        str(tiny_recipe),
        overrides=["train.epochs=1"],
        workers=1,
        report=False,
    )
    assert scores["members"]["main"]["test"]["n"] == 9
    parts = [Predictions.load(tmp_path / f"t/members/main/fold{k}/test.parquet").pred_probs for k in (0, 1)]
    together = Predictions.load(tmp_path / "t/predictions/main.test.parquet").pred_probs
    assert np.allclose(np.mean(parts, axis=0), together, atol=1e-6)


def test_input_size_follows_the_photographs():
    from manihot.members.member import input_size
    from manihot.settings import Photo

    def sized(height: list[int], width: list[int]) -> Manifest:
        table = pd.DataFrame({"image_id": [str(i) for i in range(len(height))], "height": height, "width": width})
        return Manifest.from_table(table, ("a",), Path())

    assert input_size(Photo(), sized([256] * 9, [512] * 9)) == (160, 320)
    assert input_size(Photo(), sized([600] * 9, [600] * 9)) == (224, 224)
    assert input_size(Photo(), sized([600, 800] * 5, [800, 600] * 5)) == (224, 224)
    assert input_size(Photo(size=(64, 96)), sized([1], [1])) == (64, 96)


def test_folds_with_one_frozen_backbone_run_it_once(
    small_photos: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The same numbers, bit by bit, as with a pass per fold; one backbone and small heads lie in the run folder."""
    from manihot.infer import models as module
    from manihot.infer.predict import predict_photos

    out = tmp_path / "out"
    run(small_photos, out, str(tiny_recipe), overrides=FEATURES, workers=1, report=False)
    assert len(list((out / "members").rglob("*.onnx"))) == 1
    assert {path.name for path in (out / "members").rglob("*.safetensors")} == {"head.safetensors"}
    passes: list[int] = []
    forward = module.OnnxRunner.__call__
    count = lambda self, photos: passes.append(len(photos)) or forward(self, photos)  # noqa: E731
    monkeypatch.setattr(module.OnnxRunner, "__call__", count)
    manifest = Manifest.load(out / "manifest.parquet")
    models = manihot.load_model(out)
    assert models[0].folds == [0, 1]
    found = predict_photos(models, manifest, Engine(batch=16))
    assert passes == [16, 16, 16, 16, 13, 13]  # two views
    passes.clear()
    alone = [predict_photos(manihot.load_model(file), manifest, Engine(batch=16)) for file in models[0].files]
    assert len(passes) == 12
    np.testing.assert_allclose(found.pred_probs, np.mean([one.pred_probs for one in alone], axis=0), atol=1e-6)
