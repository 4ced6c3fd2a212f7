"""Blends of blends: groups of members that are blended first and take part in a run's blend as one member."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import manihot
from manihot import pipeline
from manihot.ensemble.blend import blend
from manihot.ensemble.grouped import fit_group, group_members
from manihot.ensemble.members import Members
from manihot.ensemble.search import SEARCHES
from manihot.ensemble.second_level import Combination
from manihot.ensemble.stack import STACKERS
from manihot.ensemble.stages import check_blend, members_of_blend, parts_of_blend
from manihot.errors import SettingsError
from manihot.photos.scan import scan
from manihot.records.predictions import Predictions
from manihot.report.words import blend_words
from manihot.settings import Blend, BlendGroup, load_recipe
from test_blend_stage import CLASSES, NAMES, blended, members_of, predicted, probs_of, trained
from test_ensemble_search import make_members

__all__ = ["trained"]  # the fixture


def grouped(method: str = "uniform", **more: Any) -> dict[str, BlendGroup]:
    return {"pair": BlendGroup(members=("three", "one"), method=method, **more)}


def test_a_group_stands_where_its_first_member_does():
    settings = Blend(groups=grouped())
    assert parts_of_blend(NAMES, settings) == ["pair", "two"]
    assert members_of_blend(NAMES, settings) == NAMES
    assert parts_of_blend([*NAMES, "four"], Blend(groups=grouped(), members=("four", "pair"))) == ["pair", "four"]
    assert members_of_blend([*NAMES, "four"], Blend(groups=grouped(), members=("four", "pair"))) == [
        "one",
        "three",
        "four",
    ]
    assert members_of_blend(NAMES, Blend(groups=grouped(), members=("two",))) == ["two"]


ASKED: list[dict[str, Any]] = [
    {"groups": grouped()},
    {"groups": grouped(mean="geometric"), "method": "uniform", "mean": "rank"},
    {"groups": grouped(mean="rank"), "method": "uniform"},
    {"groups": grouped(), "method": "differential_evolution"},
    {"groups": grouped(weights={"one": 1, "three": 0}), "weights": {"pair": 1, "two": 3}},
    {"groups": grouped("stack"), "method": "uniform"},
    {"groups": grouped("stack", stackers=("logistic", "mlp"), with_weights=True), "method": "best_subset"},
    {"groups": grouped("simplex"), "method": "stack", "stackers": ("logistic",)},
    {"groups": grouped("greedy"), "members": ("pair",)},
]


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_what_is_saved_gives_the_answers_of_the_run(trained: Path, asked: dict[str, Any]):
    best, about = blended(trained, **asked)
    assert best == "ensemble"
    assert about["members"] == (["pair"] if "members" in asked else ["pair", "two"])
    assert about["groups"]["pair"]["members"] == ["three", "one"]
    combination = Combination.load(trained / "blend/combination.npz")
    assert set(combination.members) <= set(NAMES)
    test = members_of(trained, "test", list(combination.members))
    assert probs_of(trained, "ensemble", "test") == pytest.approx(combination(test), abs=3e-6)
    oof = probs_of(trained, "ensemble", "oof")
    assert oof.shape == (240, 4) and oof.sum(axis=1) == pytest.approx(np.ones(240), abs=1e-5)
    words = " ".join(blend_words(about, NAMES))
    assert "“pair” is" in words
    left_out = [] if "members" not in asked else ["two"]
    assert ("Not used: two" in words) == bool(left_out)


def test_means_of_means_are_what_they_say(trained: Path):
    """The 78th place: local ensembles with equal shares, whatever their number of members."""
    _, about = blended(trained, groups=grouped(), method="uniform")
    one, two, three = members_of(trained, "oof")
    assert probs_of(trained, "ensemble", "oof") == pytest.approx(((one + three) / 2 + two) / 2, abs=1e-6)
    assert about["weights"] == {"pair": 0.5, "two": 0.5}
    assert about["groups"]["pair"]["weights"] == {"one": 0.5, "three": 0.5}
    blended(trained, groups=grouped(weights={"one": 0, "three": 2}), weights={"pair": 1, "two": 0})
    assert Combination.load(trained / "blend/combination.npz").members == ("three",)  # nobody runs the others
    assert probs_of(trained, "ensemble", "oof") == pytest.approx(three, abs=1e-6)


def test_weights_around_an_averaged_group_are_those_of_a_search_over_the_average(trained: Path):
    """First place: two networks averaged to one, then weights by differential evolution."""
    _, about = blended(trained, seed=2, groups=grouped(), method="differential_evolution")
    one, two, three = members_of(trained, "oof").astype(np.float32)
    labels = Predictions.load(trained / "predictions/one.oof.parquet").labels
    parts = np.stack([blend(np.stack([one, three])).astype(np.float32), two])
    expected = SEARCHES["differential_evolution"](parts, labels, 2)
    assert [about["weights"][name] for name in ("pair", "two")] == pytest.approx(expected, abs=1e-9)


def chance(n: int = 120) -> tuple[Members, np.ndarray]:
    """Members and labels of pure chance, every photograph twice; the photographs' groups."""
    rng = np.random.default_rng(5)
    probs = np.stack([np.repeat(rng.dirichlet(np.ones(4), n), 2, axis=0) for _ in range(4)]).astype(np.float32)
    labels = np.repeat(np.random.default_rng(4).integers(0, 4, n), 2)
    ids = np.array([f"{i}.jpg" for i in range(2 * n)], dtype=object)
    fold = np.repeat(np.arange(n) % 4, 2)
    return Members(("one", "two", "three", "four"), ids, probs, labels, fold, CLASSES), np.repeat(np.arange(n), 2)


@pytest.mark.parametrize("method", ["stack", "best_subset"])
def test_labels_that_are_away_teach_a_group_nothing(method: str):
    """Other labels for the photographs that are away change nothing of what the blend around the group sees."""
    members, groups = chance()
    ways = {"pair": BlendGroup(members=("one", "three"), method=method, stackers=("mlp",) * (method == "stack"))}
    away = members.fold == 1
    seen = []
    for turn in (0, 1):
        labels = np.where(away, (members.labels + turn) % 4, members.labels)
        other = Members(members.names, members.image_id, members.pred_probs, labels, members.fold, CLASSES)
        made = group_members(other, None, ["pair", "two", "four"], ways, groups)
        assert made.without is not None
        seen.append((made.without(away), made.members.pred_probs))
    assert np.array_equal(seen[0][0], seen[1][0])
    assert np.array_equal(seen[0][0][1:], members.pred_probs[[1, 3]])
    if method == "stack":  # what is fitted on all of them does change, and that is what must not be judged by
        assert not np.array_equal(seen[0][1][0], seen[1][1][0])


@pytest.mark.parametrize("outer", [{"method": "stack", "stackers": ("mlp",)}, {"method": "best_subset"}], ids=str)
@pytest.mark.parametrize("inner", ["stack", "best_subset"])
def test_rows_of_a_blend_of_fitted_groups_never_saw_themselves(trained: Path, outer: dict[str, Any], inner: str):
    """Pure chance labels, every photograph twice: anything above chance would be a leak."""
    members, _ = chance()
    for name, probs in zip(members.names, members.pred_probs, strict=True):
        predicted(trained / f"predictions/{name}.oof.parquet", probs, members.labels, members.fold, "")
        (trained / f"predictions/{name}.test.parquet").unlink(missing_ok=True)
    stackers = {"stackers": ("mlp",)} if inner == "stack" else {}
    blended(trained, [*members.names], groups=grouped(inner, **stackers), **outer)
    assert (probs_of(trained, "ensemble", "oof").argmax(axis=1) == members.labels).mean() < 0.36


def test_held_out_rows_of_a_group_are_those_of_its_stackers_without_them():
    members, _ = chance()
    probs, labels = make_members(0, 4, 240)
    members = Members(members.names, members.image_id, probs, labels, members.fold, CLASSES)
    held_out, _ = fit_group(members, BlendGroup(members=members.names, method="stack"), None, 1)
    for k in range(4):
        fit, away = members.fold != k, members.fold == k
        expected = STACKERS["logistic"](probs[:, fit], labels[fit], 1)(probs[:, away])
        assert held_out[away] == pytest.approx(expected, abs=1e-9)


def test_without_held_out_photographs_groups_are_averaged(trained: Path):
    for name in NAMES:
        (trained / f"predictions/{name}.oof.parquet").unlink()
    _, about = blended(trained, groups=grouped(), weights={"pair": 1, "two": 3})
    one, two, three = members_of(trained, "test")
    assert probs_of(trained, "ensemble", "test") == pytest.approx((one + three) / 8 + two * 0.75, abs=1e-6)
    assert about["groups"]["pair"]["weights"] == {"one": 0.5, "three": 0.5}
    combination = Combination.load(trained / "blend/combination.npz")
    answers = combination(members_of(trained, "test", list(combination.members)))
    assert answers == pytest.approx(probs_of(trained, "ensemble", "test"), abs=1e-6)


MEMBERS = "members: {teacher: {}, small: {seed: 1}, large: {seed: 2}}\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("{groups: {a: {members: [teacher, smal]}}}", ["blend.groups.a.members.1", "'smal'", "'small'"]),
        ("{groups: {a: {members: [teacher]}, b: {members: [small, teacher]}}}", ["'teacher' is in the group 'b' too"]),
        ("{groups: {a: {members: [small, small]}}}", ["'small' appears twice"]),
        ("{groups: {small: {members: [teacher]}}}", ["blend.groups.small", "a member of that name"]),
        ("{groups: {a: {members: []}}}", ["blend.groups.a", "the group has no members"]),
        ("{groups: {a: {}}}", ["the group has no members"]),
        ("{groups: {a: {members: [b]}, b: {members: [small]}}}", ["'b' is a group"]),
        ("{groups: {a: {members: [small], metod: stack}}}", ["blend.groups.a.metod", "'method'"]),
        ("{groups: {a: {members: [small, large], method: auto}}}", ["blend.groups.a.method", "'auto'"]),
        ("{groups: {a: {members: [small], method: greedy}}}", ["of one member, 'small'"]),
        ("{groups: {a: {members: [small, large], weights: {small: 1}}}}", ["no weight for large"]),
        ("{groups: {a: {members: [small, large]}}, weights: {small: 1}}", ["blend.weights.small", "in the group 'a'"]),
        ("{groups: {a: {members: [small, large]}}, members: [small]}", ["'small' is in the group 'a'", "group: a"]),
        ("{groups: {a: {members: [small, large]}}, members: [a], method: greedy}", ["of one member, 'a'"]),
        ("{groups: {a: {members: [small, large], mean: geometric, method: stack}}}", ["'geometric' is for averaging"]),
    ],
)
def test_groups_that_cannot_be_are_refused_before_training(change: str, words: list[str], tmp_path: Path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"extends: standard\n{MEMBERS}blend: {change}\n", encoding="utf-8")
    with pytest.raises(SettingsError) as error:
        pipeline.run(tmp_path / "no photographs", tmp_path / "out", str(recipe))
    assert f"{recipe}:3" in error.value.what
    for word in words:
        assert word in str(error.value)


def test_a_fitted_group_needs_held_out_photographs(tmp_path: Path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"extends: standard\n{MEMBERS}folds: {{kind: none}}\n", encoding="utf-8")
    check_blend(load_recipe(recipe, ["blend={method: uniform, groups: {a: {members: [small, large]}}}"]))
    for way in ("method: stack", "mean: rank"):
        wrong = f"blend={{method: uniform, groups: {{a: {{members: [small, large], {way}}}}}}}"
        with pytest.raises(SettingsError, match=r"blend\.groups\.a.*folds\.kind is 'none'"):
            check_blend(load_recipe(recipe, [wrong]))


def test_a_run_blends_groups_and_new_photographs_get_the_same_answers(
    small_photos: Path, tiny_recipe: Path, tmp_path: Path
):
    from manihot.infer.predict import predict_photos

    manifest, _ = scan(small_photos, workers=1)
    split = np.where(np.arange(len(manifest)) % 5 == 0, "test", "train")
    manifest.with_columns(split=split).save(tmp_path / "split.parquet")
    small = "model: {pooling: avgmax}, method: features, features: {c: [0.1]}"
    members = f"members={{a: {{{small}}}, b: {{{small}, seed: 1}}, c: {{{small}, seed: 2}}}}"
    groups = "blend={method: uniform, groups: {ab: {members: [a, b], method: stack}}}"
    out = tmp_path / "out"
    scores = pipeline.run(tmp_path / "split.parquet", out, str(tiny_recipe), overrides=[members, groups], workers=1)
    assert scores["best"] == "ensemble"
    test = Predictions.load(out / "predictions/ensemble.test.parquet")
    again = predict_photos(manihot.load_model(out), manifest.take(split == "test"))
    assert again.pred_probs == pytest.approx(test.pred_probs, abs=1e-3)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "“ab” is a stack of logistic over a, b" in page
    assert "ab (a, b)" in page
