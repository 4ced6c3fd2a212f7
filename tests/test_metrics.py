"""Metrics against scikit-learn, their invariances, and whether the intervals cover what they claim."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from manihot import metrics as m
from manihot.errors import DataError


def draw(n: int, k: int, seed: int, signal: float = 1.5, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Labels with unequal classes and probabilities that know something of them."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(k, n, p=rng.dirichlet(np.full(k, 2.0)))
    logits = rng.normal(size=(n, k))
    logits[np.arange(n), labels] += signal
    if ties:
        logits = np.round(logits)
    probs = np.exp(logits)
    return labels, (probs / probs.sum(1, keepdims=True)).astype(np.float32)


sizes = st.tuples(st.integers(2, 200), st.integers(2, 7), st.integers(0, 10_000), st.booleans())


@given(sizes)
@settings(max_examples=60, deadline=None)
def test_parity_with_scikit_learn(size: tuple[int, int, int, bool]) -> None:
    n, k, seed, ties = size
    labels, probs = draw(n, k, seed, ties=ties)
    predicted, every = probs.argmax(1), np.arange(k)
    exact = probs.astype(np.float64) / probs.astype(np.float64).sum(1, keepdims=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, about classes that don't occur
        expected = {
            "accuracy": sk.accuracy_score(labels, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
            "macro_f1": sk.f1_score(labels, predicted, average="macro"),
            "log_loss": sk.log_loss(labels, exact, labels=every),
        }
        per_class = sk.precision_recall_fscore_support(labels, predicted, labels=every, zero_division=np.nan)
    for name, value in expected.items():
        assert m.METRICS[name](labels, probs) == pytest.approx(value, abs=1e-6), name
    counts = sk.confusion_matrix(labels, predicted, labels=every)
    np.testing.assert_array_equal(m.confusion(labels, probs), counts)
    occurs = np.isin(every, np.r_[labels, predicted])
    for ours, theirs in zip((m.precision, m.recall, m.f1), per_class[:3], strict=True):
        np.testing.assert_allclose(ours(labels, probs)[occurs], theirs[occurs])
    for c in every:
        area = m.roc_auc_per_class(labels, probs)[c]
        if 0 < (labels == c).sum() < n:
            assert area == pytest.approx(sk.roc_auc_score(labels == c, probs[:, c]))
        else:
            assert np.isnan(area)
    if len(np.unique(labels)) == k > 2:
        assert m.roc_auc(labels, probs) == pytest.approx(
            sk.roc_auc_score(labels, exact, multi_class="ovr", average="macro"), abs=1e-6
        )


def test_ece_by_hand() -> None:
    probs = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.45, 0.55]])
    labels = np.array([0, 1, 1, 0])
    # .9 twice, half right: gap .4 of weight 1/2; .6 right and .55 wrong share the bin (8/15, 9/15]: gap .075
    assert m.ece(labels, probs) == pytest.approx(0.5 * 0.4 + 0.5 * 0.075)
    bins = m.reliability(labels, probs)
    assert sum(bins["count"]) == 4 and bins["count"][8] == 2 and bins["accuracy"][0] is None
    parts = zip(bins["count"], bins["accuracy"], bins["confidence"], strict=True)
    gaps = [n * abs(a - c) for n, a, c in parts if n]
    assert sum(gaps) / 4 == pytest.approx(m.ece(labels, probs))


def test_a_probability_on_an_edge_belongs_to_the_lower_bin() -> None:
    assert m.reliability(np.array([0]), np.array([[1.0, 0.0]]))["count"][-1] == 1
    assert m.reliability(np.array([0]), np.array([[0.2] * 5]))["count"][2] == 1  # .2 = 3/15


@given(sizes)
@settings(max_examples=30, deadline=None)
def test_the_order_of_classes_and_rows_changes_nothing(size: tuple[int, int, int, bool]) -> None:
    n, k, seed, _ = size
    labels, probs = draw(n, k, seed)
    rng = np.random.default_rng(seed + 1)
    classes, rows = rng.permutation(k), rng.permutation(n)
    moved = np.argsort(classes)[labels]  # column classes[j] moves to j
    for name, metric in m.METRICS.items():
        value = metric(labels, probs)
        assert metric(moved[rows], probs[rows][:, classes]) == pytest.approx(value, nan_ok=True), name
    np.testing.assert_array_equal(
        m.confusion(moved, probs[:, classes]), m.confusion(labels, probs)[np.ix_(classes, classes)]
    )


@given(st.integers(2, 60), st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_perfect_predictions(n: int, k: int, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, k, n)
    probs = np.eye(k)[labels]
    for name, metric in m.METRICS.items():
        best = 0.0 if name in ("log_loss", "ece") else 1.0
        if name == "roc_auc" and len(np.unique(labels)) == 1:
            assert np.isnan(metric(labels, probs))
        else:
            assert metric(labels, probs) == pytest.approx(best), name


@given(sizes)
@settings(max_examples=20, deadline=None)
def test_integer_weights_are_repeated_rows(size: tuple[int, int, int, bool]) -> None:
    n, k, seed, ties = size
    labels, probs = draw(n, k, seed, ties=ties)
    weights = np.random.default_rng(seed).integers(0, 3, size=(2, 2, n))
    for name, metric in {**m.METRICS, **m.PER_CLASS}.items():
        values = np.asarray(metric(labels, probs, weights))
        assert values.shape[:2] == (2, 2)
        for i, j in np.ndindex(2, 2):
            repeated = np.repeat(np.arange(n), weights[i, j])
            expected = np.asarray(metric(labels[repeated], probs[repeated]))
            np.testing.assert_allclose(values[i, j], expected, atol=1e-9, err_msg=name)


@given(sizes, st.sampled_from([0.5, 0.9, 0.95]))
@settings(max_examples=25, deadline=None)
def test_the_interval_contains_the_value(size: tuple[int, int, int, bool], level: float) -> None:
    n, k, seed, ties = size
    labels, probs = draw(n, k, seed, ties=ties)
    found = m.bootstrap_intervals(labels, probs, repeats=60, level=level, seed=seed)
    for name, (value, low, high) in found.items():
        assert np.isnan(value) or low - 1e-12 <= value <= high + 1e-12, name


def coverage(rows_a_group: int, by_group: bool) -> float:
    """Share of 150 samples of a known accuracy (.7) whose 90 % interval holds it."""
    rng = np.random.default_rng(7)
    held = 0
    for trial in range(150):
        right = np.repeat(rng.random(240 // rows_a_group) < 0.7, rows_a_group)
        labels = np.where(right, 0, 1)
        probs = np.tile([0.7, 0.3], (240, 1))
        groups = np.repeat(np.arange(240 // rows_a_group), rows_a_group) if by_group else None
        _, low, high = m.bootstrap_intervals(
            labels, probs, ["accuracy"], groups=groups, repeats=200, level=0.9, seed=trial
        )["accuracy"]
        held += low <= 0.7 <= high
    return held / 150


def test_intervals_cover_as_they_say() -> None:
    assert 0.83 <= coverage(1, by_group=False) <= 0.96  # 90 % and three standard errors of 150 trials


def test_groups_are_drawn_whole() -> None:
    assert 0.83 <= coverage(6, by_group=True) <= 0.96
    assert coverage(6, by_group=False) < 0.65  # what forgetting the groups would claim


def test_intervals_of_the_other_metrics_cover_too() -> None:
    def field(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        labels = rng.choice(3, n, p=[0.1, 0.3, 0.6])
        logits = rng.normal(size=(n, 3)) * 1.3 + 1.5 * np.eye(3)[labels]
        probs = np.exp(1.4 * logits)  # too sure
        return labels, probs / probs.sum(1, keepdims=True)

    truth = {name: metric(*field(100_000, 0)) for name, metric in m.METRICS.items()}
    held = dict.fromkeys(truth, 0)
    for trial in range(80):
        found = m.bootstrap_intervals(*field(200, trial + 1), repeats=100, level=0.9, seed=trial)
        for name, (_, low, high) in found.items():
            held[name] += low <= truth[name] <= high
    for name, count in held.items():
        assert count / 80 >= 0.8, name  # 90 % less three standard errors of 80 trials


def test_an_empty_group_name_stands_alone() -> None:
    labels, probs = draw(120, 3, 0)
    alone = m.bootstrap_intervals(labels, probs, ["accuracy"], groups=np.full(120, ""), seed=3)
    assert alone == m.bootstrap_intervals(labels, probs, ["accuracy"], seed=3)


def test_all_right_is_not_certainty() -> None:
    labels = np.array([0, 1] * 15)
    found = m.bootstrap_intervals(labels, np.eye(2)[labels], {"accuracy": m.accuracy, "recall": m.recall})
    assert found["accuracy"][1] == pytest.approx(0.025 ** (1 / 30))  # Clopper-Pearson for 30 of 30
    np.testing.assert_allclose(found["recall"][1], 0.025 ** (1 / 15))
    assert found["accuracy"][2] == 1


def test_same_seed_same_interval() -> None:
    labels, probs = draw(80, 3, 0)
    first, again = (m.bootstrap_intervals(labels, probs, repeats=50, seed=5) for _ in range(2))
    assert first == again
    assert first != m.bootstrap_intervals(labels, probs, repeats=50, seed=6)


def test_chunks_don_t_change_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, probs = draw(80, 3, 0)
    whole = m.bootstrap_intervals(labels, probs, repeats=50)
    monkeypatch.setattr(m, "CHUNK", 80 * 7)
    for name, values in m.bootstrap_intervals(labels, probs, repeats=50).items():
        assert values == pytest.approx(whole[name]), name


def test_paired_difference_is_sharper_than_two_intervals() -> None:
    labels, a = draw(400, 4, 1)
    b = a.copy()
    wrong = np.flatnonzero(a.argmax(1) != labels)[:12]
    b[wrong] = np.eye(4)[labels[wrong]]  # b is right on twelve more
    difference, low, high = m.paired_difference(labels, b, a)
    assert difference == pytest.approx(12 / 400)
    assert 0 < low < difference < high
    one, other = (m.bootstrap_intervals(labels, p, ["accuracy"])["accuracy"] for p in (a, b))
    assert one[2] > other[1]  # their own intervals overlap
    same = m.paired_difference(labels, a, a, metric="log_loss")
    assert same == (0, 0, 0)
    swapped = m.paired_difference(labels, a, b)
    assert swapped[0] == pytest.approx(-difference)


def test_unlabelled_rows_are_ignored() -> None:
    labels, probs = draw(100, 3, 2)
    _, more = draw(20, 3, 3)
    both = np.r_[labels, np.full(20, -1)], np.r_[probs, more]
    for name, metric in m.METRICS.items():
        assert metric(*both) == metric(labels, probs), name
    groups = np.arange(120) // 2
    first = m.evaluate(labels, probs, "abc", groups=groups[:100], repeats=20)
    second = m.evaluate(*both, "abc", groups=groups, repeats=20)
    assert second.pop("unlabelled") == 20 and first.pop("unlabelled") == 0
    assert first == second
    weights = np.random.default_rng(0).integers(0, 3, (4, 120))
    np.testing.assert_allclose(m.accuracy(*both, weights), m.accuracy(labels, probs, weights[:, :100]))


def test_evaluate_is_json_with_an_absent_class() -> None:
    labels, probs = draw(60, 4, 4)
    labels[labels == 2] = 1
    found = m.evaluate(labels, probs, ["a", "b", "c", "d"], repeats=50)
    found = json.loads(json.dumps(found, allow_nan=False))
    assert found["n"] == 60 and np.sum(found["confusion"]) == 60
    absent = found["per_class"][2]
    assert absent["support"] == 0 and absent["recall"]["value"] is None and absent["roc_auc"]["value"] is None
    assert found["metrics"]["roc_auc"]["value"] is not None
    assert found["per_class"][0]["roc_auc"]["value"] == pytest.approx(m.roc_auc_per_class(labels, probs)[0])
    counts = np.bincount(labels, minlength=4)
    assert found["majority"] == {"class": "abcd"[counts.argmax()], "share": counts.max() / 60}


def test_evaluate_without_a_label() -> None:
    found = m.evaluate(np.full(5, -1), np.full((5, 2), 0.5), ["a", "b"])
    assert found["n"] == 0 and found["majority"] is None and found["metrics"]["accuracy"]["value"] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("labels", "probs", "says"),
    [
        (np.array([0, 1]), np.array([[2.0, -1.0], [0.3, 0.1]]), "sum to 1"),
        (np.array([0, 1]), np.array([[np.nan, np.nan], [0.5, 0.5]]), "sum to 1"),
        (np.array([0, 2]), np.array([[0.5, 0.5], [0.5, 0.5]]), "label 2"),
        (np.array([0]), np.array([[0.5, 0.5], [0.5, 0.5]]), "shape"),
    ],
)
def test_what_doesn_t_fit_is_refused(labels: np.ndarray, probs: np.ndarray, says: str) -> None:
    with pytest.raises(DataError, match=says):
        m.evaluate(labels, probs, ["a", "b"])


def test_unknown_metric_and_wrong_groups() -> None:
    labels, probs = draw(10, 2, 0)
    with pytest.raises(DataError, match="f2"):
        m.bootstrap_intervals(labels, probs, ["f2"])
    with pytest.raises(DataError, match="3 groups for 10"):
        m.bootstrap_intervals(labels, probs, groups=np.arange(3))
