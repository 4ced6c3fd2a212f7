"""`refit`: after the folds a training on everything, whose network answers new photographs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manihot import pipeline
from manihot.engines import predict as predict_files
from manihot.errors import RunFolderError, SettingsError
from manihot.infer.models import load_model
from manihot.infer.predict import predict_photos
from manihot.members.crossval import train_fold, train_members
from manihot.members.member import Member
from manihot.records.files import digest_file
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.run_folder import WHOLE, RunFolder
from manihot.report.words import judgement
from manihot.settings import load_recipe
from manihot.train import loop
from manihot.train.check import check_recipe
from manihot.train.finetune import kept_epochs
from manihot.train.networks.checkpoint import load_network
from tiny_member import TOOLS, draw_photos, tiny_member

QUICK = ("train.epochs=2", "mixing=[]", "averaging={name: none}")
FEATURES = ("method=features", "features={c: [0.1]}", "model.dropout=0")


def trained(home: Path, recipe: Path, sets: tuple[str, ...], manifest: Manifest) -> Path:
    """A run folder with the members of the tiny recipe trained."""
    loaded = load_recipe(str(recipe), ["photo.size=[32,32]", *sets])
    with RunFolder(home) as folder:
        train_members(folder, loaded, manifest, TOOLS, 1)
    return home


def digests(folder: Path, pattern: str) -> list[str]:
    return [digest_file(path) for path in sorted(folder.glob(pattern))]


@pytest.mark.parametrize("method", ["finetune", "features"])
def test_the_folds_judge_and_the_network_of_everything_answers(tmp_path: Path, tiny_recipe: Path, method: str):
    manifest = draw_photos(tmp_path / "photos")
    sets = QUICK if method == "finetune" else FEATURES
    plain = trained(tmp_path / "plain", tiny_recipe, sets, manifest)
    run = trained(tmp_path / "refit", tiny_recipe, (*sets, "refit=true"), manifest)
    for same in ("members/main/fold*/*.safetensors", "predictions/main.oof.parquet"):
        assert digests(run, same) == digests(plain, same)  # the folds are what they were
    assert not (plain / "members/main/refit").exists()
    assert not (run / "members/main/refit/oof.parquet").exists()  # nothing was held out
    (model,) = load_model(run)
    assert model.folds == [WHOLE] and len(model.files) == 1
    assert load_model(run / "members/main")[0].folds == [WHOLE]
    assert sorted(load_model(plain)[0].folds) == [0, 1]
    test = Predictions.load(run / "predictions/main.test.parquet")
    again = predict_photos([model], manifest.take(manifest.table["split"].to_numpy() == "test"))
    assert again.pred_probs == pytest.approx(test.pred_probs, abs=2e-3)
    assert test.pred_probs != pytest.approx(Predictions.load(plain / "predictions/main.test.parquet").pred_probs)
    # and once more the same: nothing is trained again, and another run gives the same network
    before = digests(run, "members/main/*/*.safetensors")
    times = [path.stat().st_mtime_ns for path in sorted(run.glob("members/main/*/*.safetensors"))]
    trained(run, tiny_recipe, (*sets, "refit=true"), manifest)
    assert times == [path.stat().st_mtime_ns for path in sorted(run.glob("members/main/*/*.safetensors"))]
    other = trained(tmp_path / "other", tiny_recipe, (*sets, "refit=true"), manifest)
    assert digests(other, "members/main/*/*.safetensors") == before
    # the folds stay when it is left out again, and answer again
    trained(run, tiny_recipe, sets, manifest)
    assert not (run / "members/main/refit").exists()
    assert digests(run, "predictions/main.*.parquet") == digests(plain, "predictions/main.*.parquet")


def test_everything_is_learned_but_test_photographs(tmp_path: Path, tiny_recipe: Path):
    member = tiny_member(tmp_path, tiny_recipe)
    rows, held = member.rows(WHOLE)
    assert rows.tolist() == np.flatnonzero(member.manifest.labels >= 0).tolist() and not len(held)
    assert {member.seed(k) for k in (0, 1, WHOLE)} == {0, 1, 99}


def test_a_killed_training_on_everything_continues_bit_for_bit(tmp_path: Path, tiny_recipe: Path, monkeypatch):
    manifest = draw_photos(tmp_path / "photos", each=4)
    files = []
    for name in ("whole", "stopped"):
        member = tiny_member(tmp_path / name, tiny_recipe, ("refit=true",), manifest)
        train_fold(member, 0)
        if name == "stopped":
            save = loop._save_checkpoint

            def stops(folder: Path, parts: dict[str, Any], progress: Any, save=save) -> None:
                save(folder, parts, progress)
                if progress.epoch == 2:
                    raise KeyboardInterrupt

            with monkeypatch.context() as patch:
                patch.setattr(loop, "_save_checkpoint", stops)
                with pytest.raises(KeyboardInterrupt):
                    train_fold(member, WHOLE)
            assert not (member.folder(WHOLE) / "best.safetensors").exists()
            assert load_model(member.run / "members/main")[0].folds == [0]  # until then the folds answer
        train_fold(member, WHOLE)
        files.append((member.folder(WHOLE) / "best.safetensors").read_bytes())
    assert files[0] == files[1]


def write_history(member: Member, fold: int, losses: list[float], stage: str = "") -> None:
    folder = member.folder(fold) / stage
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"epoch": n, "val_loss": loss, "val_accuracy": -loss} for n, loss in enumerate(losses)]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_as_many_epochs_as_the_networks_of_the_folds_have_learned(tmp_path: Path, tiny_recipe: Path):
    sets = ("train.epochs=8", "train.keep=best")
    member = tiny_member(tmp_path, tiny_recipe, sets)
    write_history(member, 0, [5, 3, 4, 4])  # best after 2
    write_history(member, 1, [5, 4, 3, 2, 1, 3])  # best after 5
    assert kept_epochs(member) == [4]  # 3.5, to the even number
    best = tiny_member(tmp_path, tiny_recipe, (*sets, "train.monitor=accuracy"), member.manifest)
    assert kept_epochs(best) == [4]
    stopped = tiny_member(tmp_path, tiny_recipe, ("train.epochs=8", "train.patience=2"), member.manifest)
    assert kept_epochs(stopped) == [5]  # the last epoch's are kept: 4 and 6
    last = tiny_member(tmp_path, tiny_recipe, ("train.epochs=8",), member.manifest)
    assert kept_epochs(last) == [8]
    stages = "stages=[{train: {keep: last, epochs: 3}}, {train: {epochs: 6}}]"
    staged = tiny_member(tmp_path, tiny_recipe, (*sets, stages), member.manifest)
    write_history(staged, 0, [2, 1, 3], "stage2")
    write_history(staged, 1, [1, 2, 3], "stage2")
    assert kept_epochs(staged) == [3, 2]


def test_the_way_is_that_of_all_epochs_where_it_stops_early(tmp_path: Path, tiny_recipe: Path):
    """A rate that falls over ten epochs falls over ten in the training on everything too, which ends after three."""
    manifest = draw_photos(tmp_path / "photos", each=4)
    sets = ("train.epochs=10", "train.keep=best", "mixing=[]", "augment=[]", "schedule={name: cosine}")
    member = tiny_member(tmp_path / "run", tiny_recipe, sets, manifest)
    write_history(member, 0, [2, 2, 1])
    write_history(member, 1, [2, 2, 1, 4])
    train_fold(member, WHOLE)
    rows = [json.loads(line) for line in (member.folder(WHOLE) / "history.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and "val_loss" not in rows[0]
    expected = [3e-3 * (1 + np.cos(np.pi * epoch / 10)) / 2 for epoch in range(3)]
    assert [row["lr"] for row in rows] == pytest.approx(expected, rel=0.02)


def test_stages_are_all_trained_on_everything(tmp_path: Path, tiny_recipe: Path):
    stages = "stages=[{train: {epochs: 1}, loss: {name: cross_entropy}}, {train: {epochs: 1}}]"
    manifest = draw_photos(tmp_path / "photos", each=4)
    run = trained(tmp_path / "run", tiny_recipe, (*QUICK, stages, "refit=true"), manifest)
    first, last = (load_network(run / f"members/main/refit/{at}best.safetensors") for at in ("stage1/", ""))
    assert first[1].fold == last[1].fold == WHOLE
    one, two = first[0].state_dict(), last[0].state_dict()
    assert any(not torch.equal(one[key], two[key]) for key in one)


def test_pseudo_labels_of_everything_come_from_what_learned_everything(tmp_path: Path, tiny_recipe: Path):
    manifest = draw_photos(tmp_path / "photos", each=4)
    labels = "labels: {name: pseudo, by: a, above: 0}"
    members = f"members={{a: {{refit: true}}, b: {{refit: true, {labels}}}, c: {{{labels}}}}}"
    run = trained(tmp_path / "run", tiny_recipe, ("train.epochs=1", members), manifest)
    folds = {model.about["member"]: model.folds for model in load_model(run)}
    assert folds == {"a": [WHOLE], "b": [WHOLE], "c": [0, 1]}


def test_a_schedule_that_watches_scores_is_refused(tiny_recipe: Path):
    wrong = ["schedule={name: plateau}", "refit=true"]
    with pytest.raises(SettingsError, match="refit trains without any"):
        check_recipe(load_recipe(str(tiny_recipe), wrong))
    with pytest.raises(SettingsError, match="stage 1 can't set 'refit'"):
        load_recipe(str(tiny_recipe), ["stages=[{refit: true}]"])


def test_without_folds_it_adds_nothing(tmp_path: Path, tiny_recipe: Path):
    manifest = draw_photos(tmp_path / "photos", each=4)
    manifest = manifest.with_columns(fold=np.full(len(manifest), -1))
    run = trained(tmp_path / "run", tiny_recipe, ("train.epochs=1", "refit=true"), manifest)
    assert [path.name for path in (run / "members/main").iterdir() if path.is_dir()] == ["fold0"]


def test_a_run_says_who_answers_and_strangers_are_told_by_a_fold(
    small_photos: Path, tiny_recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    members = "members={all: {refit: true}, parts: {seed: 1}}"
    more = ["trust.false_rejection=0.3", "audit.labels=false", "audit.duplicates=false"]
    overrides = ["train.epochs=1", members, "blend={method: uniform}", *more]
    pipeline.run(small_photos, out, str(tiny_recipe), overrides=overrides, workers=1)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "New photographs are predicted by a network trained on all of them (of all)" in page
    assert {path.name for path in (out / "trust").glob("unknown.fold*")} == {"unknown.fold0.npz", "unknown.fold1.npz"}
    capfd.readouterr()
    predict_files(out, small_photos, tmp_path / "new.parquet")
    said = " ".join(capfd.readouterr().err.split())
    assert "Networks that answer: all (trained on everything), parts (the mean of 2 folds)" in said
    assert "strangeness" in (tmp_path / "new.answers.csv").read_text(encoding="utf-8").splitlines()[0]
    # a run of an older version knows nothing of these settings: they are as their defaults are
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    for key in ("refit", "trust"):
        record["recipe"].pop(key)
    record["recipe"]["blend"].pop("groups")
    (out / "run.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"trust\.false_rejection \(0\.05 -> 0\.3\)"):
        pipeline.run(small_photos, out, str(tiny_recipe), overrides=overrides, workers=1)
    # without the folds' networks it still answers, and says what it no longer can
    for path in [*out.glob("members/all/fold*/*.safetensors"), *out.glob("members/all/fold*/*.onnx")]:
        path.unlink()
    predict_files(out, small_photos, tmp_path / "less.parquet")
    assert "is gone, and the network that answers knows them all" in " ".join(capfd.readouterr().err.split())
    first, second = (Predictions.load(tmp_path / f"{name}.parquet") for name in ("new", "less"))
    assert first.pred_probs == pytest.approx(second.pred_probs, abs=1e-6)


def test_the_report_speaks_of_refitting_only_where_there_was_some():
    found = {
        "n": 4,
        "majority": {"class": "a", "share": 0.5},
        "metrics": {"accuracy": {"value": 0.9, "low": 0.8}},
        "per_class": [],
        "classes": ["a", "b"],
        "confusion": [[2, 0], [0, 2]],
        "reliability": {"count": [4], "confidence": [0.9]},
    }
    said = [
        " ".join(judgement(found, None, recipe))
        for recipe in (
            {},
            {"refit": True},
            {"refit": True, "folds": {"kind": "none"}},
            {"members": {"a": {"refit": True}, "b": {}}},
        )
    ]
    assert ["trained on all of them" in words for words in said] == [False, True, False, True]
    assert "(of a)" in said[3]
