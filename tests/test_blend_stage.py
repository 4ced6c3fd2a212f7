"""A recipe's `blend`, obeyed by a run: on made-up predictions for every method, and in a small run end to end."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import manihot
from manihot import pipeline
from manihot.cli import app
from manihot.ensemble.blend import blend
from manihot.ensemble.plans import load_plan
from manihot.ensemble.search import SEARCHES
from manihot.ensemble.second_level import Combination
from manihot.ensemble.stack import STACKERS, fit_stack
from manihot.ensemble.stages import blend_stage, check_blend
from manihot.errors import DataError, SettingsError, WeightsError
from manihot.photos.scan import scan
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.quarantine import load_quarantine
from manihot.records.run_folder import RunFolder
from manihot.settings import Blend, load_recipe
from test_ensemble_blend import use_stacker
from test_ensemble_search import make_members

CLASSES = ("a", "b", "c", "d")
NAMES = ["one", "two", "three"]


def predicted(path: Path, probs: np.ndarray, labels: np.ndarray | None, fold: np.ndarray | None, first: str) -> None:
    ids = np.array([f"{first}{i}.jpg" for i in range(len(probs))], dtype=object)
    Predictions.from_probs(ids, probs, CLASSES, labels, fold).save(path)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """What training leaves: three members, 240 photographs in pairs of duplicates, and 30 for a test."""
    probs, labels = make_members(0, 3, 240)
    test, _ = make_members(1, 3, 30)
    labels = np.repeat(labels[::2], 2)
    fold = np.repeat(np.arange(120) % 4, 2)
    for name, own, other in zip(NAMES, probs, test, strict=True):
        predicted(tmp_path / f"predictions/{name}.oof.parquet", own, labels, fold, "")
        predicted(tmp_path / f"predictions/{name}.test.parquet", other, None, None, "t")
    table = pd.DataFrame({"image_id": [f"{i}.jpg" for i in range(240)], "label": labels, "fold": fold})
    table["group"] = [f"g{i // 2}" for i in range(240)]
    Manifest.from_table(table, CLASSES, tmp_path).save(tmp_path / "folds.parquet")
    return tmp_path


def blended(run: Path, names: list[str] = NAMES, seed: int = 0, **settings: Any) -> tuple[str, dict[str, Any]]:
    with RunFolder(run) as folder:
        best = blend_stage(folder, names, Blend(**settings), seed)
    return best, json.loads((run / "blend/blend.json").read_text(encoding="utf-8"))


def probs_of(run: Path, name: str, kind: str) -> np.ndarray:
    return Predictions.load(run / f"predictions/{name}.{kind}.parquet").pred_probs.astype(float)


def members_of(run: Path, kind: str, names: list[str] = NAMES) -> np.ndarray:
    return np.stack([probs_of(run, name, kind) for name in names])


ASKED: list[dict[str, Any]] = [
    {},
    {"method": "uniform", "mean": "geometric"},
    {"method": "uniform", "mean": "rank"},
    {"method": "simplex"},
    {"method": "differential_evolution"},
    {"weights": {"one": 3, "two": 1, "three": 0}},
    {"weights": {"one": 3, "two": 1, "three": 1}, "mean": "power"},
    {"method": "stack"},
    {"method": "stack", "stackers": ("mlp", "cnn1d"), "with_weights": True},
    {"method": "stack", "stackers": ("lightgbm",)},
]


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_whatever_the_method_the_same_files_come_out_and_serve_photographs_to_come(
    trained: Path, asked: dict[str, Any]
):
    for name in asked.get("stackers", ()):
        use_stacker(name)
    best, about = blended(trained, **asked)
    assert best == "ensemble" and about["members"] == NAMES
    combination = Combination.load(trained / "blend/combination.npz")
    test = members_of(trained, "test", list(combination.members))
    assert probs_of(trained, "ensemble", "test") == pytest.approx(combination(test), abs=2e-6)
    oof = probs_of(trained, "ensemble", "oof")
    assert oof.shape == (240, 4) and oof.sum(axis=1) == pytest.approx(np.ones(240), abs=1e-5)
    assert {"blend.json", "combination.npz", "blend.oof.parquet", "blend.test.parquet"} <= {
        path.name for path in (trained / "blend").iterdir()
    }
    assert about["metrics"]["interval"]["n_units"] == 120


def test_weights_and_means_are_those_of_the_recipe(trained: Path):
    _, about = blended(trained, weights={"three": 1, "one": 3, "two": 0}, mean="geometric")
    assert about["weights"] == {"one": 0.75, "two": 0, "three": 0.25}
    for kind in ("oof", "test"):
        expected = blend(members_of(trained, kind), [3, 0, 1], "geometric")
        assert probs_of(trained, "ensemble", kind) == pytest.approx(expected, abs=1e-5)
    assert Combination.load(trained / "blend/combination.npz").members == ("one", "three")  # nobody runs the other


def test_a_stack_with_weights_is_the_mean_of_the_stackers_and_the_weights(trained: Path):
    """37th place; each row by second levels of the first level's folds that had not seen it."""
    _, about = blended(trained, seed=3, method="stack", stackers=("logistic", "mlp"), with_weights=True)
    assert about["method"] == "stack of logistic+mlp+differential_evolution" and about["folds"] == "first level's"
    members, labels = members_of(trained, "oof"), Predictions.load(trained / "predictions/one.oof.parquet").labels
    fold = np.repeat(np.arange(120) % 4, 2)
    expected = np.zeros((240, 4))
    for k in range(4):
        fit, away = members[:, fold != k], fold == k
        weights = SEARCHES["differential_evolution"](fit, labels[fold != k], 3)
        parts = [STACKERS[name](fit, labels[fold != k], 3)(members[:, away]) for name in ("logistic", "mlp")]
        expected[away] = np.mean([*parts, blend(members[:, away], weights)], axis=0)
    assert probs_of(trained, "ensemble", "oof") == pytest.approx(expected, abs=1e-4)
    assert about["difference"]["low"] <= about["accuracy"] - about["plain_accuracy"] <= about["difference"]["high"]


def test_rows_of_a_fitted_blend_never_saw_themselves(trained: Path):
    """Pure chance labels, every photograph twice: anything above chance would be a leak."""
    rng = np.random.default_rng(5)
    for name in NAMES:
        made = Predictions.load(trained / f"predictions/{name}.oof.parquet")
        chance = np.repeat(np.random.default_rng(4).integers(0, 4, 120), 2)
        probs = np.repeat(rng.dirichlet(np.ones(4), 120), 2, axis=0)
        predicted(trained / f"predictions/{name}.oof.parquet", probs, chance, made.fold, "")
    for asked in ({"method": "stack", "stackers": ("mlp",)}, {"method": "best_subset"}):
        blended(trained, **asked)
        assert (probs_of(trained, "ensemble", "oof").argmax(axis=1) == chance).mean() < 0.36


def test_second_level_folds_are_made_anew_where_the_first_level_s_part_duplicates(trained: Path):
    for name in NAMES:
        made = Predictions.load(trained / f"predictions/{name}.oof.parquet")
        predicted(trained / f"predictions/{name}.oof.parquet", made.pred_probs, made.labels, np.arange(240) % 4, "")
    _, about = blended(trained, method="stack")
    assert about["folds"] == "made from groups, which the first level's cut"
    fold = Predictions.load(trained / "predictions/ensemble.oof.parquet").fold
    assert np.array_equal(fold[::2], fold[1::2])


def test_one_member_left_is_the_answer_and_an_older_ensemble_goes(trained: Path):
    assert blended(trained)[0] == "ensemble"
    best, about = blended(trained, members=("two",))
    assert best == "two" and about["weights"] == {"two": 1.0}
    assert not (trained / "predictions/ensemble.oof.parquet").exists()
    assert Combination.load(trained / "blend/combination.npz").members == ("two",)
    _, about = blended(trained, members=("two", "one"))
    assert about["members"] == ["one", "two"]
    expected = blend(members_of(trained, "test", ["one", "two"]))
    assert probs_of(trained, "ensemble", "test") == pytest.approx(expected, abs=1e-5)


def test_a_lone_member_of_a_recipe_has_no_blend(trained: Path):
    with RunFolder(trained) as folder:
        assert blend_stage(folder, ["one"], Blend(), 0) == "one"
    assert not (trained / "blend").exists()


def test_without_held_out_photographs_the_test_ones_are_averaged(trained: Path):
    for name in NAMES:
        (trained / f"predictions/{name}.oof.parquet").unlink()
    _, about = blended(trained, weights={"one": 1, "two": 1, "three": 2})
    assert "nothing says what the blend is worth" in about["note"]
    expected = blend(members_of(trained, "test"), [1, 1, 2])
    assert probs_of(trained, "ensemble", "test") == pytest.approx(expected, abs=1e-5)
    assert not (trained / "predictions/ensemble.oof.parquet").exists()


def test_too_few_photographs_to_judge_are_averaged_and_it_says_so(trained: Path):
    for name in NAMES:
        made = Predictions.load(trained / f"predictions/{name}.oof.parquet")
        made.take(np.arange(16)).save(trained / f"predictions/{name}.oof.parquet")
    _, about = blended(trained)
    assert about["method"] == "uniform" and "8 photographs" in about["note"]


@pytest.mark.parametrize("name", STACKERS)
def test_a_saved_second_level_says_what_it_said_before(name: str, tmp_path: Path):
    use_stacker(name)
    probs, labels = make_members(2, 2, 150, 3)
    labels = np.where(labels == 1, 2, labels)  # a class that nobody taught
    new, _ = make_members(3, 2, 40, 3)
    stack = fit_stack(probs, labels, name, new, n_folds=3, seed=1)
    Combination(("x", "y"), ("a", "b", "c"), stack.fitted).save(tmp_path / "c.npz")
    again = Combination.load(tmp_path / "c.npz")
    assert again(new) == pytest.approx(stack.test, abs=1e-12)
    if name in ("logistic", "mlp", "lightgbm"):
        assert (again(new)[:, 1] == 0).all()
    with pytest.raises(DataError, match="2 members"):
        again(new[:1])


@pytest.mark.parametrize("name", ["logistic", "mlp", "lightgbm"])
@pytest.mark.parametrize("classes", [2, 4])
def test_second_levels_kept_as_arrays_equal_the_libraries_own(name: str, classes: int, monkeypatch):
    """scikit-learn's and LightGBM's own predict_proba against the arrays that are saved."""
    use_stacker(name)
    from manihot.ensemble import stack

    models: list[Any] = []
    fit = stack._fit_flat
    monkeypatch.setattr(stack, "_fit_flat", lambda model, *more: (models.append(model), fit(model, *more))[1])
    probs, labels = make_members(1, 3, 200, classes)
    part = STACKERS[name](probs, labels, 0)
    flat = (stack.member_features(probs).reshape(200, -1) - part.arrays["centre"]) / part.arrays["spread"]
    assert part(probs) == pytest.approx(models[0].predict_proba(flat), abs=1e-9)


def test_a_file_that_is_no_blend_is_told(tmp_path: Path):
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04 not a zip")
    np.savez(tmp_path / "d.npz", about=np.array({"a": 1}, dtype=object))
    np.savez(tmp_path / "e.npz", about=np.array(json.dumps({"members": ["a"], "classes": ["x"], "parts": [["eval"]]})))
    for name in ("c.npz", "d.npz", "e.npz", "none.npz"):
        with pytest.raises(DataError, match=r"(not|expected) a saved blend"):
            Combination.load(tmp_path / name)


MEMBERS = "members: {teacher: {}, small: {seed: 1}, large: {seed: 2}}\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("{members: [teacher, smal]}", ["blend.members.1", "'smal'", "'small'"]),
        ("{method: greedi}", ["blend.method", "'greedy'"]),
        ("{method: geometric}", ["is a mean", "mean: geometric"]),
        ("{method: uniform, mean: harmonic}", ["'harmonic'", "arithmetic"]),
        ("{mean: geometric}", ["'auto'", "method: uniform"]),
        ("{method: stack, stackers: [logistics]}", ["blend.stackers.0", "'logistic'"]),
        ("{stackers: [logistic]}", ["method: stack"]),
        ("{method: simplex, with_weights: true}", ["method: stack"]),
        ("{weights: {teacher: 1, small: 2}}", ["no weight for large"]),
        ("{weights: {teacher: 1, smal: 2, large: 1}}", ["'smal'", "'small'"]),
        ("{weights: {teacher: 1, small: 2}, members: [small]}", ["teacher is not in blend.members"]),
        ("{weights: {teacher: 0, small: 0, large: 0}}", ["all weights are 0"]),
        ("{weights: {teacher: 1, small: 1, large: 1}, method: greedy}", ["fixed weights need no method"]),
        ("{members: [small], method: stack}", ["of one member, 'small'"]),
    ],
)
def test_a_blend_that_cannot_be_is_refused_before_training(change: str, words: list[str], tmp_path: Path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"extends: standard\n{MEMBERS}blend: {change}\n", encoding="utf-8")
    with pytest.raises(SettingsError) as error:
        pipeline.run(tmp_path / "no photographs", tmp_path / "out", str(recipe))
    assert f"{recipe}:3" in error.value.what
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_is_fitted_needs_held_out_photographs(tmp_path: Path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"extends: standard\n{MEMBERS}folds: {{kind: none}}\n", encoding="utf-8")
    check_blend(load_recipe(recipe, ["blend.method=uniform"]))
    for wrong in ("blend.method=stack", "blend.method=greedy", "blend={method: uniform, mean: rank}"):
        with pytest.raises(SettingsError, match=r"folds\.kind is 'none'"):
            check_blend(load_recipe(recipe, [wrong]))


def test_a_run_stacks_and_new_photographs_get_the_stack_too(small_photos: Path, tiny_recipe: Path, tmp_path: Path):
    """The test photographs' answers in the run, and those of `predict` for the same files, are the same."""
    from manihot.infer.predict import predict_photos

    manifest, _ = scan(small_photos, workers=1)
    split = np.where(np.arange(len(manifest)) % 5 == 0, "test", "train")
    manifest.with_columns(split=split).save(tmp_path / "split.parquet")
    small = "model: {pooling: avgmax}, method: features, features: {c: [0.1]}"
    members = f"members={{a: {{{small}}}, b: {{{small}, seed: 1}}, left: {{{small}, seed: 2}}}}"
    out = tmp_path / "out"
    overrides = [members, "blend={method: stack, members: [a, b]}"]
    scores = pipeline.run(
        tmp_path / "split.parquet", out, str(tiny_recipe), overrides=overrides, workers=1, report=False
    )
    assert scores["best"] == "ensemble" and set(scores["members"]) == {"a", "b", "left"}
    models = manihot.load_model(out)
    assert {model.about["member"] for model in models} == {"a", "b"}
    test = Predictions.load(out / "predictions/ensemble.test.parquet")
    again = predict_photos(models, manifest.take(split == "test"))
    assert again.image_id.tolist() == test.image_id.tolist()
    assert again.pred_probs == pytest.approx(test.pred_probs, abs=1e-3)
    mean = np.mean([Predictions.load(out / f"predictions/{n}.test.parquet").pred_probs for n in "ab"], axis=0)
    assert np.abs(mean - test.pred_probs).max() > 0.01  # a stack is no average
    with pytest.raises(WeightsError, match="'b'"):
        predict_photos([models[0], models[0]], manifest)
    overrides[1] = "blend={members: [left]}"
    scores = pipeline.run(
        tmp_path / "split.parquet", out, str(tiny_recipe), overrides=overrides, workers=1, report=False, update=True
    )
    assert scores["best"] == "left" and "ensemble" not in scores
    assert {model.about["member"] for model in manihot.load_model(out)} == {"left"}


@pytest.mark.parametrize("names", ["ab", "a"])
def test_a_submission_has_a_row_for_each_unreadable_test_photograph(
    small_photos: Path, tiny_recipe: Path, tmp_path: Path, names: str
):
    shutil.copytree(small_photos, tmp_path / "in")
    manifest, _ = scan(tmp_path / "in", workers=1)
    table = pd.DataFrame({"file": manifest.table["path"], "class": np.array(manifest.classes)[manifest.labels]})
    table["split"] = np.where(np.arange(len(table)) % 5 == 0, "test", "train")
    table.to_csv(tmp_path / "in/all.csv", index=False)
    broken = {split: table.loc[table["split"] == split, "file"].iloc[1] for split in ("train", "test")}
    kept = table[(table["split"] == "train") & (table["file"] != broken["train"])]
    commonest = int(np.argmax([(kept["class"] == name).sum() for name in manifest.classes]))
    for name in broken.values():
        (tmp_path / "in" / name).write_bytes(b"")
    small = "model: {pooling: avgmax}, method: features, features: {c: [0.1]}"
    members = f"members={{{', '.join(f'{name}: {{{small}, seed: {k}}}' for k, name in enumerate(names))}}}"
    out = tmp_path / "out"
    pipeline.run(tmp_path / "in/all.csv", out, str(tiny_recipe), overrides=[members], workers=1, report=False)
    assert not (out / "blend/submission.csv").exists()
    said = pd.read_csv(out / "submission.csv").set_index("image_id")["label"]
    best = "ensemble" if len(names) > 1 else names
    readable = Predictions.load(out / f"predictions/{best}.test.parquet")
    assert len(said) == len(readable) + 1 == (table["split"] == "test").sum()
    unread = load_quarantine(out / "quarantine.csv").set_index("split")
    assert unread["file"].to_dict() == broken and said[unread.loc["test", "image_id"]] == manifest.classes[commonest]
    best_names = [readable.classes[k] for k in readable.logits.argmax(axis=1)]
    assert said[readable.image_id].tolist() == best_names


# plans on the command line


def command(*words: str | Path) -> None:
    app(list(map(str, words)), exit_on_error=False, result_action="return_value")


@pytest.mark.parametrize(("plan", "members", "views"), [("lecture-avengers", 10, 2), ("lecture-lb-best", 6, 5)])
def test_the_lecture_s_final_ensembles_on_the_command_line(plan: str, members: int, views: int, tmp_path: Path):
    rng, labels = np.random.default_rng(0), np.random.default_rng(1).integers(0, 4, 40)
    made: dict[str, list[np.ndarray]] = {"oof": [], "test": []}
    for member in load_plan(plan).members:
        assert len(member.views) == views
        for view in member.views:
            for kind, n in (("oof", 40), ("test", 12)):
                probs = rng.dirichlet(np.ones(4), n)
                path = tmp_path / f"run/predictions/{member.name}.{view}.{kind}.parquet"
                predicted(path, probs, labels if kind == "oof" else None, None, kind)
                made[kind].append(probs)
    assert len(made["oof"]) == members * views
    command("blend", tmp_path / "run", "--plan", plan, "--out", tmp_path / "out")
    about = json.loads((tmp_path / "out/blend.json").read_text(encoding="utf-8"))
    assert about["plan"] == plan and len(about["members"]) == members
    assert set(about["weights"].values()) == {1 / members}
    mean = np.mean(made["test"], axis=0)
    found = Predictions.load(tmp_path / "out/blend.test.parquet").pred_probs
    assert found == pytest.approx(mean, abs=1e-5)
    submission = pd.read_csv(tmp_path / "out/submission.csv")
    assert submission["label"].tolist() == ["abcd"[k] for k in mean.argmax(axis=1)]


def test_a_plan_that_cannot_be_followed_says_why(tmp_path: Path):
    for words, said in (
        (["--plan", "lecture-avenger"], "lecture-avengers"),
        (["--plan", "lecture-avengers"], "effb4-2020-719"),
        (["--plan", "lecture-avengers", "--mean", "rank"], "without --test"),
    ):
        with pytest.raises((SettingsError, DataError), match=said):
            command("blend", tmp_path, *words, "--out", tmp_path / "out")


def test_cheaper_blends_on_the_command_line(trained: Path, tmp_path: Path):
    oof = [trained / f"predictions/{name}.oof.parquet" for name in NAMES]
    costs = tmp_path / "costs.csv"
    costs.write_text("member,latency,download\ntwo,0.02,9\none,0.01,30\nthree,0.05,5\n", encoding="utf-8")
    command("blend", *oof, "--costs", costs, "--method", "uniform", "--out", tmp_path / "out")
    front = pd.read_csv(tmp_path / "out/pareto.csv")
    members, labels = members_of(trained, "oof"), Predictions.load(oof[0]).labels
    alone = dict(zip(NAMES, (members.argmax(axis=2) == labels).mean(axis=1), strict=True))
    cheapest = front.iloc[0]
    assert cheapest["members"] == "one" and cheapest["accuracy"] == pytest.approx(alone["one"])
    assert {"three"} <= set(front["members"])  # nobody downloads less
    costs.write_text("member,latency,download\ntwo,0.02,9\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"costs\.csv: .*0 rows of the member 'one'"):
        command("blend", *oof, "--costs", costs, "--method", "uniform", "--out", tmp_path / "out")


@pytest.mark.slow
def test_a_million_photographs_by_ten_members_stay_under_four_gib():
    """The whole of `blend` in auto mode, as the benchmark runs it, in a process of its own."""
    pytest.importorskip("psutil", reason="the benchmark measures with psutil, which is not installed")
    script = Path(__file__).resolve().parents[1] / "benchmarks" / "ensemble.py"
    done = subprocess.run([sys.executable, script, "memory"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak = re.search(r"peak resident memory ([0-9.]+) GiB", done.stdout)
    assert peak and float(peak[1]) < 4, done.stdout
