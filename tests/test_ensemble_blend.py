"""Blends, stacks, nested cross-validation, diversity and the files they write."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import gmean

from conftest import shared_data
from manihot.ensemble.blend import MEANS, blend, blend_views
from manihot.ensemble.diversity import (
    draw_diversity,
    find_pareto_front,
    measure_disagreement,
    measure_error_correlation,
    measure_leave_one_out,
)
from manihot.ensemble.files import blend_files, blend_plan, stack_files
from manihot.ensemble.members import stack_members
from manihot.ensemble.nested import DEFAULT_METHODS, fit_method, nested_cv, paired_interval, shows_gain
from manihot.ensemble.plans import load_plan, plan_names
from manihot.ensemble.second_level import Combination, member_features
from manihot.ensemble.stack import FITTED_BY_TORCH, STACKERS, fit_stack, mean_of_stacks
from manihot.ensemble.stages import check_blend
from manihot.errors import DataError, SettingsError
from manihot.records.folds import make_folds
from manihot.records.groups import group_numbers
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.settings import load_recipe
from test_ensemble_search import make_members

CLASSES = ("a", "b", "c", "d")


def save(path: Path, probs: np.ndarray, labels: np.ndarray | None, fold: np.ndarray | None = None) -> Path:
    ids = np.array([f"{i}.jpg" for i in range(len(probs))], dtype=object)
    Predictions.from_probs(ids, probs, CLASSES, labels, fold).save(path)
    return path


# means


@pytest.mark.parametrize("mean", MEANS)
@given(seed=st.integers(0, 1000), m=st.integers(1, 5))
@settings(max_examples=10, deadline=None)
def test_laws_of_means(mean: str, seed: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    probs, _ = make_members(seed, m, 40, 4)
    weights = rng.dirichlet(np.ones(m))
    mixed = blend(probs, weights, mean)
    assert (mixed >= 0).all()
    assert mixed.sum(axis=1) == pytest.approx(np.ones(40))
    members, classes = rng.permutation(m), rng.permutation(4)
    assert blend(probs[members], weights[members], mean) == pytest.approx(mixed, abs=1e-12)
    assert blend(probs[:, :, classes], weights, mean) == pytest.approx(mixed[:, classes], abs=1e-12)
    assert blend(probs, 17 * weights, mean) == pytest.approx(mixed, abs=1e-12)
    assert np.array_equal(blend(probs[:1], None, mean).argmax(axis=1), probs[0].argmax(axis=1))
    copies = np.stack([probs[0]] * 3)
    assert blend(copies, None, mean) == pytest.approx(blend(probs[:1], None, mean), abs=1e-12)


def test_means_are_those_of_the_textbook() -> None:
    probs, _ = make_members(0, 3, 50, 4)
    weights = np.array([0.5, 0.2, 0.3])
    geometric = gmean(probs, axis=0, weights=np.broadcast_to(weights[:, None, None], probs.shape))
    power = (np.tensordot(weights, probs**3, 1)) ** (1 / 3)
    assert blend(probs, weights) == pytest.approx(np.average(probs, axis=0, weights=weights))
    assert blend(probs, weights, "geometric") == pytest.approx(geometric / geometric.sum(axis=1, keepdims=True))
    assert blend(probs, weights, "power", power=3) == pytest.approx(power / power.sum(axis=1, keepdims=True))
    assert blend(probs, weights, "power", power=1) == pytest.approx(blend(probs, weights))
    assert blend(probs, weights, "power", power=1e-5) == pytest.approx(blend(probs, weights, "geometric"), abs=1e-4)
    assert blend(probs, weights, "power", power=60) == pytest.approx(
        probs.max(axis=0) / probs.max(axis=0).sum(axis=1, keepdims=True), abs=0.05
    )


def test_rank_mean_ignores_how_bold_a_member_is() -> None:
    probs, _ = make_members(1, 2, 60, 3)
    once = blend(probs, None, "rank")
    bolder = probs.copy()
    bolder[1] = probs[1] ** 3 / (probs[1] ** 3).max()  # a rising function of every probability
    assert blend(bolder, None, "rank") == pytest.approx(once)
    one = blend(probs[:, :1], None, "rank", reference=probs)
    assert one.argmax() == once[0].argmax()


def test_probabilities_of_zero_stay_finite() -> None:
    hard = np.eye(3)[np.array([[0, 1], [1, 1]])]
    for mean in MEANS:
        assert np.isfinite(blend(hard, None, mean)).all()


def test_views_first_members_second() -> None:
    views, _ = make_members(2, 5, 30, 4)
    two = blend(np.stack([blend_views(views[:3], [1, 1, 2]), blend_views(views[3:])]), [3, 1])
    by_hand = 0.75 * np.average(views[:3], axis=0, weights=[1, 1, 2]) + 0.25 * views[3:].mean(axis=0)
    assert two == pytest.approx(by_hand)
    # the untouched photograph against its views (28th place: 4 to 6)
    assert blend_views(views, [0.4, *[0.15] * 4]) == pytest.approx(0.4 * views[0] + 0.6 * views[1:].mean(axis=0))
    assert blend_views(views, [1, 0, 0, 0, 0]) == pytest.approx(views[0])


@pytest.mark.parametrize("weights", [[1, -1], [0, 0], [1], [np.nan, 1]])
def test_weights_that_make_no_sense_are_refused(weights: list[float]) -> None:
    with pytest.raises(DataError, match="weights"):
        blend(np.full((2, 3, 2), 0.5), weights)


def test_members_that_speak_of_other_things_are_refused() -> None:
    probs, labels = make_members(0, 1, 5, 4)
    ids = np.array(list("vwxyz"), dtype=object)
    first = Predictions.from_probs(ids, probs[0], CLASSES, labels)
    turned = first.take(np.arange(5)[::-1])
    both = stack_members([first, turned], ["one", "two"])
    assert both.pred_probs[0] == pytest.approx(both.pred_probs[1])
    other_classes = Predictions.from_probs(ids, probs[0], tuple("abce"), labels)
    other_ids = Predictions.from_probs(np.array(list("vwxyq"), dtype=object), probs[0], CLASSES, labels)
    other_labels = Predictions.from_probs(ids, probs[0], CLASSES, (labels + 1) % 4)
    for wrong, words in (
        (other_classes, "two: classes"),
        (other_ids, "two: .*no prediction"),
        (other_labels, "two: 5 labels differ"),
        (first.take(np.arange(4)), "two predicts 4"),
    ):
        with pytest.raises(DataError, match=words):
            stack_members([first, wrong], ["one", "two"])


# folds and stacks


def test_folds_keep_groups_whole_and_classes_even() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 600, p=[0.6, 0.3, 0.1])
    groups = np.array([f"g{g}" if g < 100 else "" for g in rng.integers(0, 200, 600)], dtype=object)
    folds = make_folds(labels, groups, 5, 1)
    for name in set(groups) - {""}:
        assert len(set(folds[groups == name])) == 1
    shares = [np.bincount(labels[folds == f], minlength=3) / (folds == f).sum() for f in range(5)]
    assert np.ptp(shares, axis=0).max() < 0.06
    assert len(np.unique(group_numbers(groups, 600)[groups == ""])) == (groups == "").sum()
    alone = make_folds(labels, None, 5, 1)
    assert [np.bincount(alone[labels == c]).max() - np.bincount(alone[labels == c]).min() for c in range(3)] <= [
        1,
        1,
        1,
    ]


def use_stacker(name: str) -> None:
    if name == "lightgbm":
        pytest.importorskip("lightgbm", reason="lightgbm is not installed (extra `ensemble`)")
    if name in FITTED_BY_TORCH:
        pytest.importorskip("torch", reason="torch is not installed (extra `train`)")
        import_module("manihot.train.stackers")


@pytest.mark.parametrize("classes", [2, 4])
def test_boosted_trees_answer_as_lightgbm_does(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lightgbm = pytest.importorskip("lightgbm", reason="lightgbm is not installed (extra `ensemble`)")
    rng = np.random.default_rng(1)
    labels = rng.integers(0, classes, 400)
    probs = softmax(2 * np.eye(classes)[labels] + rng.normal(size=(3, 400, classes)), axis=2)
    fitted = []
    monkeypatch.setattr(
        lightgbm.LGBMClassifier,
        "fit",
        lambda self, *args, fit=lightgbm.LGBMClassifier.fit: fitted.append(fit(self, *args)) or self,
    )
    part = STACKERS["lightgbm"](probs, labels, 0)
    features = (member_features(probs).reshape(400, -1) - part.arrays["centre"]) / part.arrays["spread"]
    np.testing.assert_allclose(part(probs), fitted[0].predict_proba(features), atol=1e-9)
    few = STACKERS["lightgbm"](probs[:, :30], labels[:30], 0)  # too few for any split
    np.testing.assert_allclose(few(probs[:, :2])[0], few(probs[:, :2])[1])


@pytest.mark.parametrize(
    ("name", "value"), [("left", 0), ("right", 99), ("left", -99), ("feature", 99), ("feature", -1)]
)
def test_damaged_trees_of_a_saved_blend_are_refused(tmp_path: Path, name: str, value: int) -> None:
    pytest.importorskip("lightgbm", reason="lightgbm is not installed (extra `ensemble`)")
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 300)
    probs = softmax(2 * np.eye(3)[labels] + rng.normal(size=(2, 300, 3)), axis=2)
    part = STACKERS["lightgbm"](probs, labels, 0)
    saved = Combination(("a", "b"), ("x", "y", "z"), ((part,),))
    saved.save(tmp_path / "blend.npz")
    np.testing.assert_array_equal(Combination.load(tmp_path / "blend.npz")(probs), part(probs))
    part.arrays[name][0, 0] = value
    saved.save(tmp_path / "blend.npz")
    with pytest.raises(DataError, match="not a saved blend"):
        Combination.load(tmp_path / "blend.npz")


@pytest.mark.parametrize("name", STACKERS)
def test_stackers_learn_which_member_to_trust_for_which_class(name: str) -> None:
    use_stacker(name)
    rng = np.random.default_rng(0)
    n = 900
    labels = rng.integers(0, 3, n)
    sure = np.eye(3)[labels] * 3.0
    knows_first = np.where(labels[:, None] == 0, sure, [0, 1.5, 1.5])  # tells class 0 from the others
    knows_rest = np.where(labels[:, None] == 0, rng.permuted(sure, axis=1), sure)
    probs = softmax(np.stack([knows_first, knows_rest]) + 0.7 * rng.normal(size=(2, n, 3)), axis=2)
    fit, new = np.arange(n) < 600, np.arange(n) >= 600
    predicted = STACKERS[name](probs[:, fit], labels[fit], 0)(probs[:, new])
    assert predicted.sum(axis=1) == pytest.approx(np.ones(300), abs=1e-6)
    plain = (probs[:, new].mean(axis=0).argmax(axis=1) == labels[new]).mean()
    assert (predicted.argmax(axis=1) == labels[new]).mean() > plain + 0.02


def test_a_stack_never_sees_the_photograph_it_judges() -> None:
    """With labels that are pure chance, a leak would show as accuracy above chance."""
    probs, _ = make_members(0, 3, 800, 4)
    labels = np.random.default_rng(1).integers(0, 4, 400)
    labels = np.repeat(labels, 2)
    probs = np.repeat(probs[:, :400], 2, axis=1)  # every photograph twice
    groups = np.repeat(np.arange(400), 2).astype(str)
    honest = fit_stack(probs, labels, "lightgbm" if _has("lightgbm") else "mlp", groups=groups)
    assert (honest.oof.argmax(axis=1) == labels).mean() < 0.32
    with pytest.raises(DataError, match="more than one fold"):
        fit_stack(probs, labels, folds=np.arange(800) % 5, groups=groups)


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def test_test_predictions_are_the_mean_over_second_level_folds() -> None:
    probs, labels = make_members(0, 3, 300)
    test, _ = make_members(1, 3, 20)
    stack = fit_stack(probs, labels, test=test, n_folds=3)
    by_hand = np.zeros((20, 4))
    for fold in range(3):
        away = stack.folds == fold
        predict = STACKERS["logistic"](probs[:, ~away], labels[~away], 0)
        by_hand += predict(test) / 3
        assert stack.oof[away] == pytest.approx(predict(probs[:, away]))
    assert stack.test == pytest.approx(by_hand)
    both = mean_of_stacks([stack, stack])
    assert both.oof == pytest.approx(stack.oof)
    assert both.method == "logistic+logistic"


def test_stackers_leave_torch_s_random_state_alone() -> None:
    use_stacker("cnn1d")
    import torch

    probs, labels = make_members(0, 3, 60)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = STACKERS["cnn1d"](probs, labels, 3, 2)(probs)
    assert torch.equal(before, torch.random.get_rng_state())
    assert one == pytest.approx(STACKERS["cnn1d"](probs, labels, 3, 2)(probs), abs=1e-6)


@pytest.mark.parametrize("name", FITTED_BY_TORCH)
def test_a_cnn_stacker_applied_without_torch_answers_as_torch_does(name: str) -> None:
    use_stacker(name)
    import torch

    from manihot.train.stackers import make_net

    probs, labels = make_members(2, 5, 90)
    part = STACKERS[name](probs, labels, 3, 2)
    net = make_net(name[3:], 5, 4).eval()
    net.load_state_dict({k[4:]: torch.from_numpy(v) for k, v in part.arrays.items() if k.startswith("net.")})
    features = (member_features(probs) - part.arrays["centre"]) / part.arrays["spread"]
    with torch.inference_mode():
        expected = torch.softmax(net(torch.from_numpy(features.astype(np.float32))).double(), dim=1).numpy()
    assert np.abs(part(probs) - expected).max() < 1e-6
    assert np.ptp(expected[:, 0]) > 0.01  # the answers differ from photograph to photograph


def test_without_torch_a_saved_cnn_stack_is_applied_and_a_new_one_refused(tmp_path: Path) -> None:
    use_stacker("cnn2d")
    probs, labels = make_members(2, 3, 60)
    part = STACKERS["cnn2d"](probs, labels, 0, 1)
    Combination(("x", "y", "z"), CLASSES, ((part,),)).save(tmp_path / "c.npz")
    np.save(tmp_path / "probs.npy", probs)
    for name, member in zip("xyz", probs):
        save(tmp_path / f"{name}.parquet", member, labels)
    code = f"""
import builtins
load = builtins.__import__
def without_torch(name, *more, **named):
    if name.split(".")[0] == "torch":
        raise ModuleNotFoundError("No module named 'torch'")
    return load(name, *more, **named)
builtins.__import__ = without_torch
import numpy as np
from pathlib import Path
from manihot.cli import app
from manihot.ensemble.second_level import Combination
from manihot.errors import MissingExtraError
here = Path({str(tmp_path)!r})
np.save(here / "again.npy", Combination.load(here / "c.npz")(np.load(here / "probs.npy")))
try:
    app(["stack", *(f"{{here}}/{{n}}.parquet" for n in "xyz"), "--method", "cnn2d", "--out", str(here / "out")],
        exit_on_error=False)
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert np.load(tmp_path / "again.npy") == pytest.approx(part(probs), abs=1e-12)
    assert "CNN stacker" in done.stdout and 'pip install "manihot[train]"' in done.stdout
    assert not (tmp_path / "out").exists()


def test_a_recipe_of_cnn_stackers_is_refused_where_torch_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manihot.ensemble.stages.find_spec", lambda name: None if name == "torch" else object())
    recipe = load_recipe("cassava2020-37")
    with pytest.raises(SettingsError, match=r"blend.stackers.*'cnn.d'.*extra 'train'") as error:
        check_blend(recipe)
    assert 'pip install "manihot[train]"' in error.value.remedy


# nested cross-validation


def test_paired_interval_is_the_plain_bootstrap() -> None:
    rng = np.random.default_rng(0)
    difference = rng.choice([-1.0, 0.0, 1.0], 400, p=[0.1, 0.7, 0.2])
    units = rng.integers(0, 150, 400)
    units = np.unique(units, return_inverse=True)[1]
    g = units.max() + 1
    mine = [np.flatnonzero(units == u) for u in range(g)]
    draws = []
    for _ in range(1500):
        rows = np.concatenate([mine[u] for u in rng.integers(0, g, g)])
        draws.append(difference[rows].mean())
    assert paired_interval(difference, units, (0.025, 0.975)) == pytest.approx(
        np.quantile(draws, [0.025, 0.975]), abs=0.01
    )
    continuous = difference + rng.normal(0, 0.01, 400)
    assert paired_interval(continuous, units, (0.025, 0.975)) == pytest.approx(
        np.quantile(draws, [0.025, 0.975]), abs=0.01
    )


def test_a_handful_of_lucky_answers_is_no_gain() -> None:
    difference = np.zeros(1000)
    difference[:6] = 1.0
    assert not shows_gain(difference, np.arange(1000), 0.002)
    difference[:30] = 1.0
    assert shows_gain(difference, np.arange(1000), 0.002)
    assert not shows_gain(difference, np.r_[np.zeros(30, int), np.arange(1, 971)], 0.002)  # one plant, seen 30 times
    assert not shows_gain(-difference, np.arange(1000), 0.002)


@pytest.mark.parametrize("bias", [0.0, 0.8])
def test_noise_copies_are_never_reported_as_a_gain(bias: float) -> None:
    """Members that differ by noise alone; bias tilts them all, which only recalibration mends."""
    methods = (*(name for name in DEFAULT_METHODS if name != "nelder_mead"), "logistic")  # slow, as simplex
    claimed = []
    for seed in range(20):
        probs, labels = make_members(100 + seed, 4, 240, 4)
        tilted = softmax(np.log(probs) + bias * np.array([1.0, 0, 0, -1.0]), axis=2)
        found = nested_cv(tilted, labels, methods=methods, n_folds=3, seed=seed)
        assert not found.table["is_gain"].any(), f"seed {seed}:\n{found.table}"
        assert found.chosen == "uniform"
        searched = found.table[found.table["method"].isin(["best_subset", "greedy", "differential_evolution"])]
        claimed.append((searched["claimed"] - searched["plain"]).max())
    assert np.mean(claimed) > 0.01  # what they promise in-sample, and what nested cross-validation refutes


@pytest.mark.slow
def test_noise_copies_of_a_real_blend_are_never_reported_as_a_gain() -> None:
    real = Predictions.load(shared_data("cassava/oof_blend_14th.csv"))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rows = rng.choice(len(real), 5000, replace=False)
        probs = softmax(real.logits[rows] + rng.normal(0, 0.6, (6, len(rows), 5)), axis=2)
        found = nested_cv(probs, real.labels[rows], methods=(*DEFAULT_METHODS, "logistic"), seed=seed)
        assert not found.table["is_gain"].any(), f"seed {seed}:\n{found.table}"


def test_a_real_gain_is_found_and_taken() -> None:
    probs, labels = make_members(0, 4, 1500, 4, noise=0.5)
    useless, _ = make_members(9, 4, 1500, 4)
    members = np.concatenate([probs[:2], useless])
    found = nested_cv(members, labels, methods=("best_subset", "simplex"))
    assert found.table.set_index("method").loc["best_subset", "is_gain"]
    assert found.chosen in ("best_subset", "simplex")
    predict = fit_method(found.chosen, members, labels)
    assert (predict(members).argmax(axis=1) == labels).mean() > (members.mean(axis=0).argmax(axis=1) == labels).mean()


def test_boldness_alone_is_no_gain_in_log_loss() -> None:
    """Shy members: every way to sharpen them gains log loss, but so does one temperature."""
    probs, labels = make_members(3, 4, 800, 4, noise=0.3)
    shy = softmax(0.3 * np.log(probs), axis=2)
    found = nested_cv(shy, labels, methods=("geometric", "simplex"), metric="log_loss")
    assert not found.table["is_gain"].any()
    assert found.table["fresh"].iloc[0] < 0.9 * -np.log(np.take_along_axis(shy.mean(0), labels[:, None], 1)).mean()


def test_groups_stay_whole_in_nested_folds_and_names_are_checked() -> None:
    probs, labels = make_members(0, 3, 200)
    found = nested_cv(probs, labels, np.repeat(np.arange(100), 2).astype(str), methods=("simplex",), repeats=2)
    assert found.table["method"].tolist() == ["uniform", "simplex"]
    with pytest.raises(SettingsError, match=r"simplx.*\n.*simplex"):
        nested_cv(probs, labels, methods=("simplx",))


# diversity


def test_diversity_tables() -> None:
    probs, labels = make_members(0, 3, 400, 4)
    probs = np.concatenate([probs, probs[:1]])
    wrong = probs.argmax(axis=2) != labels
    assert measure_error_correlation(probs, labels) == pytest.approx(np.corrcoef(wrong))
    different = measure_disagreement(probs)
    assert different[0, 3] == 0
    assert different == pytest.approx(different.T)
    table = measure_leave_one_out(probs, labels, list("abcd"))
    without = (probs[1:].mean(axis=0).argmax(axis=1) == labels).mean()
    assert table.loc[0, "without"] == pytest.approx(without)
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()


def test_pareto_front_holds_exactly_the_blends_nothing_beats() -> None:
    probs, labels = make_members(0, 5, 200, 4)
    latency, download = [0.03, 0.01, 0.05, 0.02, 0.02], [9, 30, 5, 14, 7]
    front = find_pareto_front(probs, labels, list("abcde"), latency, download)
    points = []
    for mask in range(1, 32):
        mine = [m for m in range(5) if mask >> m & 1]
        accuracy = (probs[mine].sum(axis=0).argmax(axis=1) == labels).mean()
        points.append((accuracy, -sum(latency[m] for m in mine), -sum(download[m] for m in mine)))
    values = np.round(np.array(points), 9)
    beaten = [any((v >= p).all() and (v > p).any() for v in values) for p in values]
    expected = {tuple(p) for p, b in zip(values, beaten, strict=True) if not b}
    mine_found = np.round(np.column_stack([front["accuracy"], -front["latency"], -front["download"]]), 9)
    assert {tuple(p) for p in mine_found} == expected


def test_diversity_picture_is_written(tmp_path: Path) -> None:
    probs, labels = make_members(0, 3, 50)
    draw_diversity(probs, labels, ["eins", "zwei", "três"], tmp_path / "d.png")
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [tmp_path / "d.png"]


# files


def test_blend_files_end_to_end(tmp_path: Path) -> None:
    probs, labels = make_members(0, 3, 240)
    test, _ = make_members(1, 3, 30)
    names = ["b4", "vit", "nfnet"]
    oof = [save(tmp_path / f"{n}.oof.parquet", p, labels) for n, p in zip(names, probs, strict=True)]
    tests = [save(tmp_path / f"{n}.test.csv", p, None) for n, p in zip(names, test, strict=True)]
    out = tmp_path / "blend"
    record = blend_files(oof, out, tests, methods=("simplex", "best_subset"))
    assert record["method"] == "uniform"
    assert record == json.loads((out / "blend.json").read_text(encoding="utf-8"))
    assert Predictions.load(out / "blend.oof.parquet").pred_probs == pytest.approx(probs.mean(axis=0), abs=1e-5)
    submission = pd.read_csv(out / "submission.csv")
    assert submission.columns.tolist() == ["image_id", "label"]
    assert submission["label"].tolist() == ["abcdefgh"[k] for k in test.mean(axis=0).argmax(axis=1)]
    table = pd.read_csv(out / "members.csv", index_col="member")
    assert table.index.tolist() == [*names, "blend"]
    vit = (probs[1].argmax(axis=1) == labels).mean()
    assert table.loc["vit", "accuracy"] == pytest.approx(vit)
    of_b = probs[1].argmax(axis=1)[labels == 1] == 1
    assert table.loc["vit", "recall[b]"] == pytest.approx(of_b.mean())
    expected = ["blend.json", "blend.oof.parquet", "blend.test.parquet", "combination.npz", "diversity.csv"]
    expected += ["diversity.png", "members.csv", "nested.csv", "submission.csv", "subsets.csv"]
    assert sorted(p.name for p in out.iterdir()) == expected


def test_all_subsets_are_ranked(tmp_path: Path) -> None:
    probs, labels = make_members(0, 4, 200)
    oof = [save(tmp_path / f"m{i}.oof.parquet", p, labels) for i, p in enumerate(probs)]
    record = blend_files(oof, tmp_path / "out", method="uniform")
    subsets = [[k for k in range(4) if mask >> k & 1] for mask in range(1, 16)]
    right = {tuple(f"m{k}" for k in one): int((probs[one].sum(0).argmax(1) == labels).sum()) for one in subsets}
    found = {tuple(row["members"]): row["right"] for row in record["subsets"]}
    assert found == right and len(record["subsets"]) == 15
    counts = [row["right"] for row in record["subsets"]]
    assert counts == sorted(counts, reverse=True) and record["subsets"][0]["accuracy"] == counts[0] / 200
    table = pd.read_csv(tmp_path / "out/subsets.csv")
    assert table["members"][0] == " + ".join(record["subsets"][0]["members"]) and table["right"].tolist() == counts
    alone = blend_files(oof[:1], tmp_path / "one", method="uniform")
    assert "subsets" not in alone and not (tmp_path / "one/subsets.csv").exists()


SMALL = {  # the lecture's table of ensembles: members as it writes them
    "lecture-eff2-regnety2": ["effb4-2019-dedup", "effb4-2020-719", "regnety40-2019-dedup", "regnety40-2020"],
    "lecture-eff-regnety": ["effb4-2020-719", "regnety40-2020"],
    "lecture-eff-vit": ["effb4-2020-719", "vit-relabel"],
    "lecture-eff-vit-regnety": ["effb4-2020-719", "vit-relabel", "regnety40-2020"],
    "lecture-lb-best-distill": [
        "effb4-2019-dedup",
        "effb4-2020-719",
        "effb4-2020-720",
        "regnety40-2019-dedup",
        "regnety40-2020",
        "distill",
    ],
}


@pytest.mark.parametrize("name", SMALL)
def test_the_lecture_s_small_ensembles_are_plans_of_a_run_of_its_avengers(name: str, tmp_path: Path) -> None:
    assert set(SMALL[name]) <= set(load_recipe("lecture-avengers").members)
    probs, labels = make_members(0, len(SMALL[name]), 24)
    for member, p in zip(SMALL[name], probs, strict=True):
        save(tmp_path / "predictions" / f"{member}.oof.parquet", p, labels)
    record = blend_plan(name, tmp_path, tmp_path / "out")
    assert (record["plan"], record["members"]) == (name, SMALL[name])
    mixed = Predictions.load(tmp_path / "out" / "blend.oof.parquet").pred_probs
    assert mixed == pytest.approx(probs.mean(0), abs=1e-5)


def test_fitted_blends_save_held_out_rows(tmp_path: Path) -> None:
    probs, labels = make_members(0, 4, 200)
    oof = [save(tmp_path / f"m{i}.oof.parquet", p, labels) for i, p in enumerate(probs)]
    record = blend_files(oof, tmp_path / "out", method="simplex", n_folds=4)
    fresh = Predictions.load(tmp_path / "out" / "blend.oof.parquet").pred_probs
    weights = np.array(list(record["weights"].values()))
    in_sample = np.tensordot(weights, probs, 1)
    assert weights.sum() == pytest.approx(1)
    true = np.arange(200), labels
    assert -np.log(fresh[true]).mean() > -np.log(in_sample[true]).mean()
    assert not np.allclose(fresh, in_sample, atol=1e-4)


def test_fixed_weights_manifest_groups_and_mistakes(tmp_path: Path) -> None:
    probs, labels = make_members(0, 2, 60)
    oof = [save(tmp_path / f"m{i}.oof.parquet", p, labels) for i, p in enumerate(probs)]
    table = pd.DataFrame(
        {"image_id": [f"{i}.jpg" for i in range(60)], "label": labels, "group": [f"g{i // 2}" for i in range(60)]}
    )
    Manifest.from_table(table, CLASSES, tmp_path).save(tmp_path / "manifest.parquet")
    record = blend_files(oof, tmp_path / "o", weights=[3, 1], mean="geometric", manifest=tmp_path / "manifest.parquet")
    assert record["weights"] == {"m0": 0.75, "m1": 0.25}
    assert record["metrics"]["interval"]["n_units"] == 30
    mixed = Predictions.load(tmp_path / "o" / "blend.oof.parquet").pred_probs
    assert mixed == pytest.approx(blend(probs, [3, 1], "geometric"), abs=1e-5)
    with pytest.raises(SettingsError, match="manihot stack"):
        blend_files(oof, tmp_path / "o", method="logistic")
    with pytest.raises(DataError, match="same order"):
        blend_files(oof, tmp_path / "o", test=oof[::-1])
    Manifest.from_table(table[:50], CLASSES, tmp_path).save(tmp_path / "short.parquet")
    with pytest.raises(DataError, match="10 photographs are not in the manifest"):
        blend_files(oof, tmp_path / "o", manifest=tmp_path / "short.parquet")


def test_stack_files_keep_the_first_level_s_folds(tmp_path: Path) -> None:
    probs, labels = make_members(0, 3, 240)
    test, _ = make_members(1, 3, 12)
    folds = np.arange(240) % 4
    oof = [save(tmp_path / f"m{i}.oof.parquet", p, labels, folds) for i, p in enumerate(probs)]
    tests = [save(tmp_path / f"m{i}.test.parquet", p, None) for i, p in enumerate(test)]
    record = stack_files(oof, tmp_path / "s", tests, methods=("logistic", "mlp"))
    assert record["method"] == "logistic+mlp"
    assert record["folds"] == "first level's"
    assert not record["gain"]
    saved = Predictions.load(tmp_path / "s" / "stack.oof.parquet")
    assert saved.fold.tolist() == folds.tolist()
    assert len(Predictions.load(tmp_path / "s" / "stack.test.parquet")) == 12


# plans


def test_the_lecture_s_final_ensembles_are_plans_that_blend_reads(tmp_path: Path) -> None:
    ten, six = load_plan("lecture-avengers"), load_plan("lecture-lb-best")
    assert [len(plan.members) for plan in (ten, six)] == [10, 6]
    assert {len(m.views) for m in ten.members} == {2}
    assert {len(m.views) for m in six.members} == {5}
    views, labels = make_members(0, 30, 24)
    for i, (member, view) in enumerate((m, v) for m in six.members for v in m.views):
        save(tmp_path / "predictions" / f"{member.name}.{view}.oof.parquet", views[i], labels)
    record = blend_plan("lecture-lb-best", tmp_path, tmp_path / "out")
    assert record["plan"] == "lecture-lb-best"
    assert Predictions.load(tmp_path / "out" / "blend.oof.parquet").pred_probs == pytest.approx(views.mean(0), abs=1e-5)


def test_views_averaged_by_the_member_itself_serve_equal_weights_only(tmp_path: Path) -> None:
    probs, labels = make_members(0, 3, 20)
    for member, p in zip(("effb4", "seresnext50", "vit"), probs, strict=True):
        save(tmp_path / "predictions" / f"{member}.oof.parquet", p, labels)
    with pytest.raises(DataError, match="averaged already"):
        blend_plan("cassava2020-28", tmp_path, tmp_path / "out")
    plan = tmp_path / "own.yaml"
    plan.write_text("views: {x: 1, y: 1}\nmembers: {effb4: 1, vit: {weight: 3}}\n", encoding="utf-8")
    blend_plan(plan, tmp_path, tmp_path / "out")
    mixed = Predictions.load(tmp_path / "out" / "blend.oof.parquet").pred_probs
    assert mixed == pytest.approx(0.25 * probs[0] + 0.75 * probs[2], abs=1e-5)
    with pytest.raises(DataError, match=r"no predictions (here|of member 'effb4')"):
        blend_plan("cassava2020-77", tmp_path / "nowhere", tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("members: {a: -1}", "members.a"),
        ("members: {a: {wieght: 1}}", "members.a"),
        ("mean: median\nmembers: {a: 1}", "no mean 'median'"),
        ("membres: {a: 1}", "plan.yaml:1: unknown key 'membres'"),
        ("mean: geometric", "a plan names its members"),
        ("- a\n", "a blend plan is a mapping"),
        ("mean: [1]\nmembers: {a: 1}", "plan.yaml:1: mean takes a text"),
        ("members:\n  a: 0\n  b: 0", "plan.yaml:1: members: all weights are 0"),
        ("members:\n  a: 1\n  b: .inf", "plan.yaml:3: not valid YAML: .inf is not a number"),
        ("members: {a: 1}\nview: {}", "unknown key 'view'"),
        ("members: [", "not valid YAML"),
    ],
)
def test_mistakes_in_a_plan_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=words) as caught:
        load_plan(path)
    assert "plan.yaml" in str(caught.value)


@pytest.mark.parametrize("name", plan_names())
def test_every_plan_of_the_package_loads(name: str) -> None:
    plan = load_plan(name)
    assert plan.name == name
    assert sum(plan.weights) > 0
