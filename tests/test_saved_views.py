"""Predictions of each test-time view: saved, blended by their own weights, and used for new photographs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import manihot
from manihot.ensemble.plans import load_plan
from manihot.errors import DataError, SettingsError
from manihot.members.check import check_recipe
from manihot.records.predictions import Predictions
from manihot.records.run_places import RunPlaces, member_of, view_of
from manihot.settings import load_recipe
from manihot.settings.options import BlendOptions, Compute
from tiny_member import draw_photos

ONE = Compute(workers=1)
RECIPE = """
extends: quick
seed: 3
folds: {n: 2}
photo: {size: [64, 64], area: 4096}
features: {c: [0.01]}
audit: {embeddings: false, duplicates: false}
tta: [{name: full, weight: 3}, {name: full, flip: h}, {name: centre, scale: 0.6}]
"""
TWO = """
members:
  plain: {}
  other: {features: {c: [0.0001]}, tta: [{name: full}, {name: top_left, scale: 0.5}]}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("views")
    draw_photos(top / "photos", each=12, unlabelled=0, test=6).save(top / "manifest.parquet")
    (top / "one.yaml").write_text(RECIPE, encoding="utf-8")
    (top / "two.yaml").write_text(RECIPE + TWO, encoding="utf-8")
    manihot.run(
        top / "manifest.parquet", out=top / "run", recipe=top / "two.yaml", set=["save_views=true"], compute=ONE
    )
    return top


def load(run: Path, name: str, kind: str = "oof") -> Predictions:
    return Predictions.load(RunPlaces(run).predictions(name, kind))


@pytest.mark.parametrize("kind", ["oof", "test"])
def test_a_members_answer_is_the_mean_of_its_saved_views(kind: str, home: Path):
    places = RunPlaces(home / "run")
    assert places.views(kind) == ["other.tta0", "other.tta1", "plain.tta0", "plain.tta1", "plain.tta2"]
    assert places.predicted() == ["ensemble", "other", "plain"]
    for name, member in load_recipe(home / "two.yaml").member_recipes().items():
        views = [load(home / "run", view_of(name, v), kind) for v in range(len(member.tta))]
        whole = load(home / "run", name, kind)
        assert (
            np.ptp([view.pred_probs for view in views], axis=0).max() > 0
        )  # the photographs are easy: all views are sure
        weights = [view.weight for view in member.tta]
        mean = np.average([view.pred_probs for view in views], axis=0, weights=weights)
        assert np.abs(mean - whole.pred_probs).max() < 1e-5
        assert all((view.image_id == whole.image_id).all() and (view.labels == whole.labels).all() for view in views)
        if kind == "oof":
            assert (views[1].fold == whole.fold).all()


def test_a_run_that_is_done_saves_its_views_without_training(home: Path, tmp_path: Path):
    run = tmp_path / "run"
    words = {"out": run, "recipe": home / "one.yaml", "compute": ONE}
    manihot.run(home / "manifest.parquet", **words)
    with pytest.raises(DataError, match="no predictions of single views") as caught:
        manihot.blend(run, out=tmp_path / "out", how=BlendOptions(views=True))
    assert "save_views=true --update" in caught.value.remedy
    heads = {path: path.stat().st_mtime_ns for path in run.glob("members/*/*/head.safetensors")}
    before = load(run, "main").pred_probs
    manihot.run(home / "manifest.parquet", **words, set=["save_views=true"], update=True)
    assert heads == {path: path.stat().st_mtime_ns for path in heads} and len(heads) == 2
    views = [load(run, view_of("main", v)) for v in range(3)]
    assert np.abs(np.average([v.pred_probs for v in views], axis=0, weights=[3, 1, 1]) - before).max() < 1e-5
    manihot.run(home / "manifest.parquet", **words, update=True)
    assert RunPlaces(run).views("oof") == []  # not asked for any more


def test_views_get_weights_by_the_searches_of_members(home: Path, tmp_path: Path):
    run, out = home / "run", tmp_path / "out"
    found = manihot.blend(run, out=out, how=BlendOptions(method="greedy", views=True)).record
    assert found.members == RunPlaces(run).views("oof") and found.method == "greedy"
    used = np.array([(found.weights or {})[name] for name in found.members])
    assert used.sum() == pytest.approx(1) and used.min() >= 0
    tests = [load(run, name, "test").pred_probs for name in found.members]
    blended = Predictions.load(out / "blend.test.parquet").pred_probs
    assert np.abs(np.average(tests, axis=0, weights=used) - blended).max() < 1e-6
    with pytest.raises(SettingsError, match="--views weighs the views of one run"):
        manihot.blend([run, run], out=out, how=BlendOptions(views=True))


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_run_that_weighs_views_predicts_by_these_weights(name: str, home: Path, tmp_path: Path):
    run = tmp_path / "run"
    asked = ["blend.views=true", "blend.method=simplex"]
    manihot.run(home / "manifest.parquet", out=run, recipe=home / f"{name}.yaml", set=asked, compute=ONE)
    about = json.loads((run / "blend/blend.json").read_text(encoding="utf-8"))
    weights = about["weights"]
    assert set(weights) == set(RunPlaces(run).views("oof")) and about["method"] == "simplex"
    assert "views combined by simplex" in (run / "report.html").read_text(encoding="utf-8")
    told = load(run, "ensemble", "test")
    found = manihot.predict(run, home / "manifest.parquet", out=tmp_path / "new.parquet", raw=True, compute=ONE)
    new = Predictions.load(tmp_path / "new.parquet").align(told.image_id)
    assert np.abs(new.pred_probs - told.pred_probs).max() < 1e-5 and found is not None
    views = {view: load(run, view, "test").pred_probs for view in weights}
    mean = np.average([*views.values()], axis=0, weights=[weights[view] for view in views])
    assert np.abs(mean - told.pred_probs).max() < 1e-5
    with pytest.raises(SettingsError, match="blend weighs each of 3 views"):
        manihot.predict(run, home / "manifest.parquet", out=tmp_path / "one.parquet", tta=1, compute=ONE)
    member = run / "members" / member_of(next(iter(weights)))
    manihot.predict(member, home / "manifest.parquet", out=tmp_path / "one.parquet", tta=1, compute=ONE)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["blend.views=true", "blend.weights={plain: 1, other: 1}"], "blend.weights: is set together with blend.views"),
        (["blend.views=true", "blend.groups={both: {members: [plain, other]}}"], "blend.groups: is set together"),
    ],
)
def test_what_contradicts_weights_of_views(settings: list[str], words: str, home: Path):
    with pytest.raises(SettingsError, match=words):
        check_recipe(load_recipe(home / "two.yaml", settings))


@pytest.mark.parametrize("name", ["cassava2020-28", "cassava2020-77"])
def test_plans_with_weights_of_views_are_those_of_the_recipe(name: str):
    """Members, number of views and their weights: what the recipe averages as it predicts."""
    recipe, plan = load_recipe(name), load_plan(name)
    assert recipe.save_views
    members = recipe.member_recipes()
    blended = recipe.blend.members or tuple(members)
    assert [member.name for member in plan.members] == list(blended)
    for member in plan.members:
        own = np.array([view.weight for view in members[member.name].tta])
        told = np.array([member.views[f"tta{v}"] for v in range(len(own))])
        assert len(member.views) == len(own)
        assert own / own.sum() == pytest.approx(told / told.sum())
    if recipe.blend.weights:
        assert plan.weights == [recipe.blend.weights[name] for name in blended]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cassava2020-28", "cassava2020-77"])
def test_plans_with_weights_of_views_run_end_to_end(name: str, small_photos: Path, tmp_path: Path):
    run, out = tmp_path / "run", tmp_path / "out"
    manihot.run(small_photos, out=run, recipe=name, smoke=True, compute=ONE)
    found = manihot.blend(run, out=out, plan=name).record
    plan = load_plan(name)
    assert found.members == [member.name for member in plan.members]
    blended, ensemble = Predictions.load(out / "blend.oof.parquet"), load(run, "ensemble")
    assert np.abs(blended.align(ensemble.image_id).pred_probs - ensemble.pred_probs).max() < 1e-5
    fitted = manihot.blend(run, out=tmp_path / "fitted", how=BlendOptions(method="greedy", views=True)).record
    assert set(map(member_of, fitted.members)) >= set(found.members)
