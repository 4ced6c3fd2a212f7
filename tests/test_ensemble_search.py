"""Searches over members: counts against the plain definition, laws of weights, parity with scipy."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import softmax

from conftest import shared_data
from manihot.ensemble.search import (
    SEARCHES,
    fit_best_subset,
    fit_greedy,
    fit_nelder_mead,
    fit_simplex,
    open_margins,
    rank_subsets,
    score_subsets,
    search_folds,
    subset_members,
)
from manihot.errors import DataError
from manihot.records.predictions import Predictions


def make_members(seed: int, m: int = 5, n: int = 300, k: int = 4, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z = 2.0 * rng.normal(size=(n, k))
    labels = (softmax(z, axis=1).cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return softmax(z + noise * rng.normal(size=(m, n, k)), axis=2), labels


def count_naively(pred_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The definition: sum in member order, argmax, compare."""
    counts = np.zeros(2 ** len(pred_probs) - 1, dtype=np.int64)
    for size in range(1, len(pred_probs) + 1):
        for subset in combinations(range(len(pred_probs)), size):
            summed = pred_probs[list(subset)].sum(axis=0)
            counts[sum(1 << m for m in subset) - 1] = (summed.argmax(axis=1) == labels).sum()
    return counts


@given(
    seed=st.integers(0, 10_000),
    m=st.integers(1, 6),
    k=st.integers(2, 6),
    kind=st.sampled_from(["float64", "float32", "votes", "coarse", "constant", "logits"]),
)
@settings(max_examples=60, deadline=None)
def test_subset_counts_equal_the_definition_ties_included(seed: int, m: int, k: int, kind: str) -> None:
    probs, labels = make_members(seed, m, 150, k)
    if kind == "float32":
        probs = probs.astype(np.float32)
    elif kind == "votes":
        probs = np.eye(k)[probs.argmax(axis=2)]
    elif kind == "coarse":
        probs = np.round(probs, 1)
    elif kind == "constant":
        probs = np.full_like(probs, 1.0 / k)
    elif kind == "logits":
        probs = 1e3 * np.log(probs)
    assert np.array_equal(score_subsets(probs, labels), count_naively(probs, labels))


def test_subset_counts_across_row_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    import manihot.ensemble.search as search

    probs, labels = make_members(3, 4, 1000, 5)
    expected = count_naively(probs, labels)
    monkeypatch.setattr(search, "SUBSET_ROWS", 7)
    assert np.array_equal(score_subsets(probs, labels), expected)


def test_tied_photographs_go_to_the_lowest_class() -> None:
    probs = np.full((2, 3, 3), 1 / 3)
    assert score_subsets(probs, np.array([0, 1, 2])).tolist() == [1, 1, 1]


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_order_of_members_and_classes_changes_no_count(seed: int) -> None:
    rng = np.random.default_rng(seed)
    probs, labels = make_members(seed, 4, 200, 5)
    counts = score_subsets(probs, labels)
    classes, members = rng.permutation(5), rng.permutation(4)
    assert np.array_equal(counts, score_subsets(probs[:, :, classes], np.argsort(classes)[labels]))
    shuffled = score_subsets(probs[members], labels)
    for index in range(len(counts)):
        mask = sum(1 << int(members[m]) for m in subset_members(index))
        assert shuffled[index] == counts[mask - 1]


def test_real_labels_all_subsets_equal_the_definition() -> None:
    real = Predictions.load(shared_data("cassava/oof_blend_14th.csv"))
    rng = np.random.default_rng(0)
    rows = rng.choice(len(real), 6000, replace=False)
    noise = rng.normal(0, 0.7, (6, len(rows), 5))
    probs = softmax(real.logits[rows] + noise, axis=2).astype(np.float32)
    probs[5] = real.pred_probs[rows]  # thousands of photographs with the very same probabilities
    assert np.array_equal(score_subsets(probs, real.labels[rows]), count_naively(probs, real.labels[rows]))


def test_best_subsets_come_first_and_larger_ones_before_smaller() -> None:
    ranked = rank_subsets(np.array([5, 7, 7]), top=2)  # {0}, {1}, {0, 1}
    assert ranked == [((0, 1), 7), ((1,), 7)]


@pytest.mark.parametrize("name", [name for name in SEARCHES if name != "optuna"])
@given(seed=st.integers(0, 500), m=st.integers(1, 5))
@settings(max_examples=6, deadline=None)
def test_weights_lie_on_the_simplex(name: str, seed: int, m: int) -> None:
    probs, labels = make_members(seed, m, 120, 3)
    weights = SEARCHES[name](probs, labels, seed)
    assert weights.shape == (m,)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1.0, abs=1e-9)
    assert np.array_equal(weights, SEARCHES[name](probs, labels, seed))


def test_the_best_member_has_the_least_log_loss_not_the_most_right_answers() -> None:
    labels = np.array([0, 0, 0, 0])
    sure = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.45, 0.55]])  # one wrong answer
    unsure = np.full((4, 2), 0.5) + [0.01, -0.01]  # none wrong
    assert SEARCHES["best_member"](np.stack([unsure, sure]), labels).tolist() == [0, 1]
    assert SEARCHES["best_member"](np.stack([sure, sure]), labels).tolist() == [1, 0]


@pytest.mark.parametrize("name", ["best_subset", "greedy", "differential_evolution"])
def test_searches_for_accuracy_are_no_worse_in_sample_than_plain_averaging(name: str) -> None:
    probs, labels = make_members(5, 6, 400)
    right = open_margins(probs, labels).count_right(np.stack([SEARCHES[name](probs, labels, 1), np.full(6, 1 / 6)]))
    assert right[0] > right[1]


def test_the_first_places_two_steps_weigh_the_best_subset_alone() -> None:
    probs, labels = make_members(5, 6, 400)
    probs[3] = np.roll(probs[3], 1, axis=1)  # a member that is always elsewhere
    inside = fit_best_subset(probs, labels) > 0
    weights = SEARCHES["subset_evolution"](probs, labels, 8)
    assert not inside[3] and inside.sum() > 1
    assert not weights[~inside].any()
    folds = np.arange(400) // 100
    assert weights[inside] == pytest.approx(search_folds(probs[inside], labels, folds, seed=8).mean)
    assert np.array_equal(weights, SEARCHES["subset_evolution"](probs, labels, 0))  # a run passes its own seed


def test_settled_photographs_don_t_change_what_weights_score() -> None:
    probs, labels = make_members(8, 5, 600, 5)
    weights = np.random.default_rng(0).dirichlet(np.ones(5), 40)
    expected = [(np.tensordot(w, probs, 1).argmax(axis=1) == labels).sum() for w in weights]
    part = open_margins(probs, labels)
    assert part.margins.shape[2] < 600
    assert part.count_right(weights).tolist() == expected


def test_simplex_weights_agree_with_a_general_minimiser() -> None:
    probs, labels = make_members(1, 4, 500)
    probs[0] = softmax(np.log(probs[0]) + np.random.default_rng(0).normal(size=probs[0].shape) * 3, axis=1)
    true = np.take_along_axis(probs, labels[None, :, None], axis=2)[:, :, 0]
    oracle = minimize(lambda x: -np.log(softmax(x) @ true).mean(), np.zeros(4), method="BFGS")
    mine = fit_simplex(probs, labels)
    assert -np.log(mine @ true).mean() == pytest.approx(oracle.fun, abs=1e-6)
    assert mine == pytest.approx(softmax(oracle.x), abs=0.01)
    assert -np.log(fit_nelder_mead(probs, labels) @ true).mean() == pytest.approx(oracle.fun, abs=1e-4)


def test_greedy_selection_follows_caruana_step_by_step() -> None:
    probs, labels = make_members(2, 4, 200)
    total, picks, scores = np.zeros_like(probs[0]), [], []
    for step in range(1, 13):
        losses = [-np.log((total + p)[np.arange(200), labels] / step).mean() for p in probs]
        picks.append(int(np.argmin(losses)))
        total += probs[picks[-1]]
        scores.append(min(losses))
    best = int(np.argmin(scores)) + 1
    expected = np.bincount(picks[:best], minlength=4) / best
    assert fit_greedy(probs, labels, steps=12, metric="log_loss") == pytest.approx(expected)


def test_weights_a_fold_are_scored_on_the_photographs_held_out() -> None:
    probs, labels = make_members(4, 4, 400)
    folds = np.arange(400) % 4
    found = search_folds(probs, labels, folds)
    assert found.weights.shape == (4, 4)
    assert found.mean.sum() == pytest.approx(1.0)
    for fold, (weights, accuracy) in enumerate(zip(found.weights, found.accuracy, strict=True)):
        away = folds == fold
        mixed = np.tensordot(weights, probs[:, away], 1)
        assert accuracy == pytest.approx((mixed.argmax(axis=1) == labels[away]).mean())


def test_optuna_search_gives_weights_on_the_simplex() -> None:
    pytest.importorskip("optuna", reason="optuna is not installed (extra `ensemble`)")
    probs, labels = make_members(6, 3, 150)
    weights = SEARCHES["optuna"](probs, labels, 0, trials=12)
    assert weights.sum() == pytest.approx(1.0)
    assert (open_margins(probs, labels).count_right(np.stack([weights, np.ones(3)])) @ [1, -1]) >= 0


@pytest.mark.parametrize(
    ("probs", "labels", "words"),
    [
        (np.ones((3, 4)), np.zeros(4, int), "shape"),
        (np.full((2, 3, 2), np.nan), np.zeros(3, int), "member 0: 3 rows are not finite, .* row 0: column 0 holds nan"),
        (np.full((2, 3, 2), 0.5), np.array([0, 1, 2]), "row 2 has label 2"),
        (np.full((2, 3, 2), 0.5), np.array([0, 1, -1]), "no label"),
        (np.full((21, 3, 2), 0.5), np.zeros(3, int), "too many"),
    ],
)
def test_what_does_not_fit_is_named(probs: np.ndarray, labels: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        score_subsets(probs, labels)
