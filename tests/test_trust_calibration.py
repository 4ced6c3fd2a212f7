"""Calibration, conformal sets, decisions: laws, oracles, and figures on real out-of-fold predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import binomtest

from conftest import shared_data
from manihot.errors import DataError, SettingsError
from manihot.metrics import ece, log_loss
from manihot.records.predictions import Predictions
from manihot.trust.calibrate import (
    CALIBRATORS,
    Calibrator,
    cross_calibrate,
    fit_calibrator,
    fit_temperature,
    scale_temperature,
)
from manihot.trust.conformal import (
    SCORES,
    ConformalSets,
    binomial_interval,
    fit_sets,
    measure_abstention,
    measure_coverage,
    uniforms_from_ids,
)
from manihot.trust.costs import Costs
from manihot.trust.decide import check_costs, cost_sensitive_accuracy, fit_class_thresholds, mean_cost
from manihot.trust.files import apply_trust, calibrate_files


def make_probs(seed: int, n: int = 1000, k: int = 4, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities p ** (1 / temperature) whose labels are drawn from p."""
    rng = np.random.default_rng(seed)
    z = 2.0 * rng.normal(size=(n, k)) + np.linspace(0, 1.5, k)
    labels = (softmax(z, axis=1).cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return softmax(z / temperature, axis=1), labels


def real_halves(splits: int):
    real = Predictions.load(shared_data("cassava/oof_blend_14th.csv"))
    probs, labels = real.pred_probs, real.labels
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(len(labels))
        fit, new = order[: len(order) // 2], order[len(order) // 2 :]
        yield probs[fit], labels[fit], probs[new], labels[new]


# calibration


@pytest.mark.parametrize("kind", CALIBRATORS)
@given(seed=st.integers(0, 300))
@settings(max_examples=8, deadline=None)
def test_laws_of_calibration(kind: str, seed: int) -> None:
    probs, labels = make_probs(seed, 300)
    fitted = fit_calibrator(probs, labels, kind, tuple("abcd"))
    calibrated = fitted(probs)
    assert (calibrated > 0).all()
    assert calibrated.sum(axis=1) == pytest.approx(np.ones(300))
    again = Calibrator.from_json(json.loads(json.dumps(fitted.to_json())))
    assert again(probs) == pytest.approx(calibrated)
    assert again.classes == tuple("abcd")
    classes = np.random.default_rng(seed).permutation(4)
    turned = fit_calibrator(probs[:, classes], np.argsort(classes)[labels], kind)
    assert turned(probs[:, classes]) == pytest.approx(calibrated[:, classes], abs=1e-3)
    if kind in ("none", "temperature", "confidence"):
        assert np.array_equal(calibrated.argmax(axis=1), probs.argmax(axis=1))


@pytest.mark.parametrize("truth", [0.5, 0.8, 1.0, 2.0, 4.0])
def test_temperature_is_recovered(truth: float) -> None:
    probs, labels = make_probs(0, 20_000, 5, temperature=truth)
    found = fit_temperature(probs, labels)
    assert isinstance(found, float)
    assert found == pytest.approx(1 / truth, rel=0.04)
    assert scale_temperature(probs, 1.0) == pytest.approx(probs, abs=1e-9)


def test_temperature_agrees_with_scikit_learn() -> None:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    class Given(ClassifierMixin, BaseEstimator):
        def __init__(self) -> None:
            self.classes_ = np.arange(4)

        def fit(self, x, y):
            return self

        def predict(self, x):
            return x.argmax(axis=1)

        def decision_function(self, x):
            return x

    probs, labels = make_probs(1, 2000, temperature=0.5)
    try:
        oracle = CalibratedClassifierCV(FrozenEstimator(Given()), method="temperature", cv=2, ensemble=False)
        oracle.fit(np.log(probs), labels)
    except (ValueError, TypeError) as error:
        pytest.skip(f"this scikit-learn has no temperature scaling: {error}")
    mine = scale_temperature(probs, fit_temperature(probs, labels))
    assert mine == pytest.approx(oracle.predict_proba(np.log(probs)), abs=2e-3)


def test_isotonic_agrees_with_scikit_learn() -> None:
    from sklearn.isotonic import IsotonicRegression

    probs, labels = make_probs(2, 800)
    curves = fit_calibrator(probs, labels, "isotonic").params["curves"]
    for k, curve in enumerate(curves):
        oracle = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(probs[:, k], labels == k)
        mine = np.interp(probs[:, k], curve["x"], curve["y"])
        assert mine == pytest.approx(oracle.predict(probs[:, k]), abs=1e-3)


def test_vector_scaling_mends_a_class_that_is_always_overstated() -> None:
    probs, labels = make_probs(3, 8000)
    tilted = softmax(np.log(probs) + np.array([1.5, 0, 0, 0]), axis=1)
    mended = fit_calibrator(tilted, labels, "vector")(tilted)
    assert np.abs(mended - probs).mean() < 0.01
    assert log_loss(labels, mended) < log_loss(labels, fit_calibrator(tilted, labels, "temperature")(tilted)) - 0.05


def test_held_out_calibration_uses_other_folds_only() -> None:
    probs, labels = make_probs(4, 200)
    folds = np.arange(200) % 4
    out = cross_calibrate(probs, labels, folds, "temperature")
    changed = labels.copy()
    changed[folds == 2] = 0
    assert cross_calibrate(probs, changed, folds, "temperature")[folds == 2] == pytest.approx(out[folds == 2])


def test_real_calibration_error_falls_from_five_hundredths_below_one_point_two() -> None:
    before, after = [], []
    for probs, labels, new, new_labels in real_halves(5):
        before.append(ece(new_labels, new))
        after.append(ece(new_labels, fit_calibrator(probs, labels, "confidence")(new)))
    assert np.mean(before) == pytest.approx(0.050, abs=0.003)
    assert np.mean(after) < 0.012
    assert np.max(after) < 0.016  # a perfect model of this size shows .005 to .008


@pytest.mark.parametrize(
    ("probs", "labels", "words"),
    [
        (np.full((3, 2), 0.9), np.zeros(3, int), "sum to 1"),
        (np.full((3, 2), np.nan), np.zeros(3, int), "row 0: column 0 holds nan"),
        (np.full((3, 2), 0.5), np.full(3, -1), "no photograph has a label"),
        (np.full((3, 2), 0.5), np.array([0, 1, 2]), "row 2 has label 2, but there are 2 classes"),
        (np.full((3, 2), 0.5), np.zeros(2, int), "labels of shape"),
    ],
)
def test_what_can_t_be_calibrated_is_named(probs: np.ndarray, labels: np.ndarray, words: str) -> None:
    for fit in (fit_temperature, fit_sets):
        with pytest.raises(DataError, match=words):
            fit(probs, labels)
    with pytest.raises(SettingsError, match="temprature"):
        fit_calibrator(np.full((3, 2), 0.5), np.zeros(3, int), "temprature")


# conformal sets


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("per_class", [True, False])
def test_coverage_is_what_was_asked_on_exchangeable_data(kind: str, per_class: bool) -> None:
    covered, classwise = [], []
    for seed in range(25):
        probs, labels = make_probs(seed, 1200, temperature=0.6)
        rules = fit_sets(probs[:600], labels[:600], 0.85, per_class, kind, seed=seed)
        sets = rules.predict_sets(probs[600:])
        hit = sets[np.arange(600), labels[600:]]
        covered.append(hit.mean())
        classwise.append([hit[labels[600:] == c].mean() for c in range(4)])
    assert np.mean(covered) == pytest.approx(0.85, abs=0.012)
    if per_class:
        assert np.mean(classwise, axis=0) == pytest.approx(np.full(4, 0.85), abs=0.03)


def test_coverage_holds_where_most_photographs_share_a_few_values() -> None:
    rng = np.random.default_rng(0)
    values = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    kinds = rng.choice(3, 40_000, p=[0.7, 0.2, 0.1])
    probs, labels = values[kinds], (rng.random(40_000) > values[kinds, 0]).astype(int)
    half = slice(0, 20_000), slice(20_000, None)
    exact = fit_sets(probs[half[0]], labels[half[0]], 0.9).predict_sets(probs[half[1]])
    table = measure_coverage(exact, labels[half[1]])
    assert table["coverage"].to_numpy() == pytest.approx(0.9, abs=0.01)
    all_in = fit_sets(probs[half[0]], labels[half[0]], 0.9, ties="all").predict_sets(probs[half[1]])
    assert measure_coverage(all_in, labels[half[1]])["coverage"].max() > 0.93


@given(seed=st.integers(0, 200), coverage=st.floats(0.5, 0.99))
@settings(max_examples=15, deadline=None)
def test_laws_of_sets(seed: int, coverage: float) -> None:
    probs, labels = make_probs(seed, 300)
    rules = fit_sets(probs, labels, coverage, True)
    sets = rules.predict_sets(probs)
    assert sets.dtype == bool
    assert sets.shape == probs.shape
    more = fit_sets(probs, labels, min(0.995, coverage + 0.004), True).predict_sets(probs)
    assert not (sets & ~more).any()
    classes = np.random.default_rng(seed).permutation(4)
    turned = fit_sets(probs[:, classes], np.argsort(classes)[labels], coverage, True)
    assert np.array_equal(turned.predict_sets(probs[:, classes]), sets[:, classes])
    again = ConformalSets.from_json(json.loads(json.dumps(rules.to_json())))
    assert np.array_equal(again.predict_sets(probs), sets)


def test_threshold_is_the_textbook_s() -> None:
    """The ceil((n + 1) * coverage)-th smallest score (Vovk et al. 2005)."""
    probs, labels = make_probs(0, 400, 3)
    rules = fit_sets(probs, labels, 0.9, per_class=False)
    scores = np.sort(1 - probs[np.arange(400), labels])
    assert rules.thresholds == pytest.approx(np.full(3, scores[int(np.ceil(401 * 0.9)) - 1]), abs=1e-9)
    rare = fit_sets(probs[:12], labels[:12] * 0, 0.95, per_class=True)
    assert np.isinf(rare.thresholds).all()
    assert rare.predict_sets(probs).all()


@pytest.mark.parametrize("per_class", [True, False])
def test_sets_agree_with_crepes(per_class: bool) -> None:
    crepes = pytest.importorskip("crepes", reason="crepes is not installed")
    probs, labels = make_probs(5, 900, 4, temperature=0.7)
    fit, new = slice(0, 500), slice(500, None)
    own = 1 - probs[fit][np.arange(500), labels[fit]]
    columns = []
    for c in range(4):  # the Mondrian kind is one conformal classifier a class
        oracle = crepes.ConformalClassifier()
        oracle.fit(own[labels[fit] == c] if per_class else own)
        # a p-value of exactly 0.1 stays out of a set; crepes lets it in
        columns.append(oracle.predict_set(1 - probs[new], confidence=0.9 - 1e-9, smoothing=False)[:, c])
    predicted = np.column_stack(columns)
    mine = fit_sets(probs[fit], labels[fit], 0.9, per_class, ties="all").predict_sets(probs[new])
    assert np.array_equal(mine, predicted.astype(bool))


def test_sets_agree_with_mapie() -> None:
    classification = pytest.importorskip("mapie.classification", reason="mapie is not installed")
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Given(ClassifierMixin, BaseEstimator):
        """Hands on its input as probabilities."""

        def fit(self, x, y):
            self.classes_ = np.arange(x.shape[1])
            return self

        def predict_proba(self, x):
            return x

        def predict(self, x):
            return x.argmax(axis=1)

    probs, labels = make_probs(6, 900, 4)
    fit, new = slice(0, 500), slice(500, None)
    oracle = classification.SplitConformalClassifier(
        Given().fit(probs, labels), confidence_level=0.9, conformity_score="lac", prefit=True
    )
    oracle.conformalize(probs[fit], labels[fit])
    _, sets = oracle.predict_set(probs[new])
    mine = fit_sets(probs[fit], labels[fit], 0.9, per_class=False).predict_sets(probs[new])
    assert np.array_equal(mine, np.asarray(sets)[:, :, 0].astype(bool))


def test_real_sets_cover_every_class_with_few_labels() -> None:
    coverage, sizes = [], []
    for probs, labels, new, new_labels in real_halves(20):
        table = measure_coverage(fit_sets(probs, labels, coverage=0.9, per_class=True).predict_sets(new), new_labels)
        coverage.append(table["coverage"].to_numpy()[:5])
        sizes.append(table["mean_size"].iloc[-1])
        # one half holds 543 photographs of the rarest class: chance alone moves it by 1.8 points
        assert np.abs(coverage[-1] - 0.9).max() < 0.065
    assert np.abs(np.mean(coverage, axis=0) - 0.9).max() < 0.02
    assert np.mean(sizes) < 1.35


def test_a_photograph_s_set_does_not_depend_on_its_neighbours() -> None:
    probs = np.tile([[0.9, 0.1]], (500, 1))
    labels = (np.arange(500) % 10 == 0).astype(int)
    rules = fit_sets(probs, labels, 0.8, per_class=True)
    ids = np.array([f"{i}.jpg" for i in range(500)], dtype=object)
    uniforms = uniforms_from_ids(ids)
    assert (uniforms >= 0).all() and (uniforms < 1).all()
    assert uniforms.mean() == pytest.approx(0.5, abs=0.05)
    sets = rules.predict_sets(probs, uniforms)
    assert sets[:, 0].mean() == pytest.approx(0.8, abs=0.06)
    backwards = rules.predict_sets(probs[::-1], uniforms_from_ids(ids[::-1]))
    assert np.array_equal(backwards[::-1], sets)


def test_coverage_table_and_intervals() -> None:
    sets = np.array([[1, 0], [1, 1], [0, 0], [0, 1]], dtype=bool)
    table = measure_coverage(sets, np.array([0, 0, 0, 1]), ["sick", "healthy"])
    assert table["class"].tolist() == ["sick", "healthy", "all"]
    assert table["coverage"].tolist() == pytest.approx([2 / 3, 1.0, 0.75])
    assert table["mean_size"].tolist() == pytest.approx([1.0, 1.0, 1.0])
    for hits, n in ((0, 10), (3, 10), (10, 10), (57, 60)):
        oracle = binomtest(hits, n).proportion_ci(0.95, "exact")
        low, high = binomial_interval(np.array(hits), np.array(n))
        assert (float(low), float(high)) == pytest.approx((oracle.low, oracle.high))


def test_price_of_abstention() -> None:
    top = np.array([0.9, 0.8, 0.8, 0.8, 0.6])
    probs = np.column_stack([top, 1 - top])
    labels = np.array([0, 0, 0, 1, 1])
    table = measure_abstention(probs, labels, shares=(1.0, 0.6, 0.2))
    # of the two answered among three tied ones, two thirds are right on average
    assert table["accuracy"].tolist() == pytest.approx([3 / 5, (1 + 2 * 2 / 3) / 3, 1.0])
    assert table["to_expert"].tolist() == [0, 2, 4]
    assert table["threshold"].tolist() == [0.6, 0.8, 0.9]


# decisions


def test_least_cost_decisions() -> None:
    costs = np.array([[0.0, 9.0], [1.0, 0.0]])  # a missed mosaic, and a false alarm
    probs = np.array([[0.2, 0.8], [0.05, 0.95]])
    assert Costs(costs).decide(probs)[0].tolist() == [0, 1]  # above a tenth, the alarm is cheaper
    assert mean_cost(np.array([0, 1]), np.array([1, 0]), costs) == 5.0
    assert cost_sensitive_accuracy(np.array([0, 1, 1]), np.array([0, 1, 0]), 1.0 - np.eye(2)) == pytest.approx(2 / 3)
    for wrong, words in ((-2.0, "answer 1 to the true class 0 is -2"), (np.nan, "is nan")):
        with pytest.raises(DataError, match=words):
            check_costs(np.array([[0.0, wrong], [1.0, 0.0]]), 2)
    with pytest.raises(DataError, match=r"shape \(2, 2\) doesn't fit 3 classes"):
        check_costs(costs, 3)
    with pytest.raises(DataError, match=r"answer 1 to the true class 1 is 0\.5"):
        check_costs(np.array([[0.0, 1.0], [1.0, 0.5]]), 2)


@given(seed=st.integers(0, 200))
@settings(max_examples=10, deadline=None)
def test_no_decision_is_cheaper_on_calibrated_probabilities(seed: int) -> None:
    probs, _ = make_probs(seed, 200)
    costs = np.random.default_rng(seed).uniform(0, 5, (4, 4))
    np.fill_diagonal(costs, 0)
    expected = probs @ costs
    chosen, _ = Costs(costs).decide(probs)
    assert expected[np.arange(200), chosen].sum() <= expected[np.arange(200), probs.argmax(axis=1)].sum() + 1e-12


def test_costs_pay_on_real_predictions() -> None:
    probs, labels, new, new_labels = next(real_halves(1))
    costs = 1.0 - np.eye(5)  # cbb, cbsd, cgm, cmd, healthy
    costs[:2] *= 10
    calibrated = fit_calibrator(probs, labels, "vector")(new)
    plain, careful = new.argmax(axis=1), Costs(costs).decide(calibrated)[0]
    assert mean_cost(new_labels, careful, costs) < 0.9 * mean_cost(new_labels, plain, costs)


def test_a_threshold_a_class() -> None:
    probs, labels = make_probs(0, 4000)
    table = fit_class_thresholds(probs, labels, precision=0.85, classes=list("abcd"))
    top = probs.argmax(axis=1)
    answers = np.where(probs.max(axis=1) >= table["threshold"].to_numpy()[top], top, -1)
    for c in range(4):
        assert (labels[answers == c] == c).mean() >= 0.85
        assert (labels[answers == c] == c).mean() == pytest.approx(table.loc[c, "precision"])
    impossible = fit_class_thresholds(np.tile([0.6, 0.4], (50, 1)), np.arange(50) % 2, precision=0.9)
    assert np.isinf(impossible.loc[0, "threshold"])


# files


def test_calibrate_files_end_to_end(tmp_path: Path) -> None:
    probs, labels = make_probs(0, 800, temperature=0.5)
    ids = np.array([f"{i}.jpg" for i in range(800)], dtype=object)
    labels[:10] = -1
    Predictions.from_probs(ids, probs, tuple("abcd"), labels).save(tmp_path / "oof.parquet")
    record = calibrate_files(tmp_path / "oof.parquet", tmp_path / "trust", coverage=0.8)
    assert record["photographs"] == 790
    assert record["ece"]["after"] < 0.5 * record["ece"]["before"]
    assert record == json.loads((tmp_path / "trust" / "trust.json").read_text(encoding="utf-8"))
    coverage = pd.read_csv(tmp_path / "trust" / "coverage.csv")
    assert coverage["coverage"].to_numpy() == pytest.approx(0.8, abs=0.06)
    assert (tmp_path / "trust" / "reliability.png").read_bytes().startswith(b"\x89PNG")
    calibrated = Predictions.load(tmp_path / "trust" / "calibrated.oof.parquet")
    assert ece(labels, calibrated.pred_probs) == pytest.approx(record["ece"]["after"], abs=1e-3)
    told = apply_trust(calibrated.take(np.arange(50)), tmp_path / "trust")
    assert told["image_id"].tolist() == ids[:50].tolist()
    sure = told["answer"] != "ask an expert"
    assert (told.loc[sure, "answer"] == told.loc[sure, "could_be"]).all()
