"""Opinions are weighed by what they know, heads never see what they judge, and the combination beats its parts."""

from __future__ import annotations

import numpy as np
from scipy.optimize import approx_fprime
from scipy.special import softmax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from manihot.audit import label_posterior
from manihot.audit.label_errors import SCORES, find_label_errors
from manihot.audit.label_neighbours import reduce_embeddings
from manihot.audit.label_posterior import count_errors, held_out_logits, pool_opinions, pool_predictions, split_by_rank

EVEN = np.full((4, 4), 0.1 / 3) + np.eye(4) * (0.9 - 0.1 / 3)


def opinions(n: int = 3000, seed: int = 0, sure: float = 2) -> tuple[np.ndarray, np.ndarray]:
    """True labels and the logits of a calibrated opinion of them."""
    rng = np.random.default_rng(seed)
    logits = sure * rng.normal(size=(n, 4))
    true = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return true, logits


def test_an_opinion_that_knows_nothing_counts_nothing_and_a_timid_one_is_made_bolder() -> None:
    true, logits = opinions()
    noise = np.random.default_rng(1).normal(size=logits.shape)
    pool = pool_opinions(true, [logits / 4, noise], EVEN * 1e-3 + 0.999 * np.eye(4))
    assert pool.weights[1] < 0.15
    assert 3 < pool.weights[0] < 5
    np.testing.assert_allclose(pool.probs.sum(axis=1), 1)
    np.testing.assert_allclose(pool.channel.sum(axis=0), 1)
    assert abs(pool.probs - softmax(logits, axis=1)).mean() < 0.02


def test_wrong_labels_change_the_channel_and_leave_the_pool_as_sure() -> None:
    true, logits = opinions(sure=6)
    rng = np.random.default_rng(2)
    moved = (true == 0) & (rng.random(len(true)) < 0.3)
    given = np.where(moved, 2, true)
    probs = softmax(logits, axis=1)
    pool = pool_predictions(given, probs)
    assert 0.1 < pool.channel[2, 0] < 0.3
    assert pool.channel[2, 0] > 2.5 * max(pool.channel[1, 0], pool.channel[3, 0])
    assert abs(count_errors(given, pool.posterior(given)) - moved.sum()) < 0.4 * moved.sum()
    assert 0.8 < pool.weights[0] < 1.3
    found = (pool.posterior(given).argmax(axis=1) != given) & moved
    assert found.sum() > 0.7 * moved.sum()


def test_a_first_guess_without_errors_is_left_where_predictions_tell_of_some() -> None:
    true, logits = opinions(sure=6)
    given = np.where(np.random.default_rng(3).random(len(true)) < 0.1, (true + 1) % 4, true)
    pool = pool_opinions(given, [logits], np.eye(4))
    assert 0.05 < 1 - np.trace(pool.channel) / 4 < 0.15
    assert pool.channel[1, 0] > max(pool.channel[2, 0], pool.channel[3, 0])


def test_the_gradient_is_that_of_the_cost() -> None:
    true, logits = opinions(50)
    stack = np.stack([logits, logits[::-1] / 3])
    at = np.array([0.7, 0.2, 0.1, -0.2, 0.3, 0.0])
    numeric = approx_fprime(at, lambda v: label_posterior._cost(v, stack, true, EVEN)[0], 1e-6)
    np.testing.assert_allclose(label_posterior._cost(at, stack, true, EVEN)[1], numeric, atol=1e-3)


def test_no_head_learns_what_it_judges() -> None:
    rng = np.random.default_rng(0)
    x = reduce_embeddings(rng.normal(size=(60, 8)))
    fold, targets = np.arange(60) % 5, np.eye(3)[rng.integers(0, 3, 60)]
    before = held_out_logits(x, targets, fold)
    other = targets.copy()
    other[fold == 2] = np.roll(targets[fold == 2], 1, axis=1)
    after = held_out_logits(x, other, fold)
    np.testing.assert_allclose(after[fold == 2], before[fold == 2], atol=1e-6)
    assert (abs(after - before)[fold != 2] > 1e-4).any(axis=1).all()


def test_folds_keep_groups_whole_and_follow_the_photographs_not_their_order() -> None:
    rng = np.random.default_rng(0)
    x = reduce_embeddings(rng.normal(size=(200, 8)))
    groups = rng.integers(0, 80, 200)
    fold = split_by_rank(x, groups)
    assert all(len(set(fold[groups == g])) == 1 for g in set(groups))
    assert set(fold) == set(range(5))
    order = rng.permutation(200)
    np.testing.assert_array_equal(split_by_rank(x[order], 90 - groups[order]), fold[order])
    assert np.ptp(np.bincount(split_by_rank(x, np.arange(200)))) == 0


def test_the_combination_beats_every_single_score_on_handwritten_digits() -> None:
    data = load_digits()
    x = (data.data + np.random.default_rng(9).normal(size=data.data.shape) * 4) / 6
    for kind in ("uniform", "class"):
        ahead = []
        for seed in range(2):
            rng = np.random.default_rng([seed, 77])
            rows = rng.choice(len(x), 900, replace=False)
            true = data.target[rows] // 2
            wrong = rng.random(900) < 0.15
            step = rng.integers(1, 5, 900) if kind == "uniform" else np.where(rng.random(900) < 0.8, 1, 2)
            given = np.where(wrong, (true + step) % 5, true)
            folds = StratifiedKFold(4, shuffle=True, random_state=seed)
            model = LogisticRegression(C=3e-2, max_iter=300, tol=1e-3)
            probs = cross_val_predict(model, x[rows], given, cv=folds, method="predict_proba")
            table = find_label_errors(given, probs, embeddings=x[rows]).sort_values("image_id")
            ap = {name: average_precision_score(wrong, -table[name]) for name in ("label_score", *SCORES)}
            ahead.append(ap.pop("label_score") - max(ap.values()))
        assert np.mean(ahead) > 0.01, (kind, ahead)
