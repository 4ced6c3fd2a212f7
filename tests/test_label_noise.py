"""Weights from cross-validation inside the labels."""

from __future__ import annotations

import numpy as np
import pytest

from manihot.audit.label_posterior import trust_labels


def blobs(n: int, classes: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, n)
    centre = rng.normal(size=(classes, 16)) * 2
    return (centre[label] + rng.normal(size=(n, 16)) * spread).astype(np.float32), label


def plant(label: np.ndarray, rate: float, classes: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    wrong = rng.choice(len(label), round(rate * len(label)), replace=False)
    given = label.copy()
    given[wrong] = (given[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return given


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.3])
def test_wrong_labels_are_doubted_and_their_rate_is_found(rate: float):
    x, true = blobs(600, 4, 1.0, 0)
    given = plant(true, rate, 4, 1)
    trust, found = trust_labels(x, given, 4, np.arange(600), 0)
    assert found == pytest.approx(rate, abs=0.05)
    assert trust[given != true].mean() < 0.2 < 0.8 < trust[given == true].mean()


def test_right_labels_keep_their_weight():
    x, true = blobs(600, 4, 1.0, 2)
    trust, rate = trust_labels(x, true, 4, np.arange(600), 0)
    assert rate < 0.05
    assert trust.mean() > 0.97


def test_labels_without_any_sign_of_a_class_in_the_features_are_not_doubted():
    rng = np.random.default_rng(0)
    trust, rate = trust_labels(rng.normal(size=(300, 8)), rng.integers(0, 3, 300), 3, np.arange(300), 0)
    assert rate == 0
    assert trust.min() > 0.99


def test_same_seed_same_weights_and_groups_stay_whole():
    x, true = blobs(200, 3, 2.0, 3)
    groups = np.arange(200) // 2
    first, _ = trust_labels(x, true, 3, groups, 5)
    again, _ = trust_labels(x, true, 3, groups, 5)
    assert np.array_equal(first, again)


def test_a_copy_in_the_same_group_does_not_vouch_for_a_wrong_label():
    x, true = blobs(300, 3, 1.0, 4)
    given = plant(true, 0.1, 3, 5)
    twice, labels = np.repeat(x, 2, axis=0), np.repeat(given, 2)
    grouped, _ = trust_labels(twice, labels, 3, np.repeat(np.arange(300), 2), 0)
    torn, _ = trust_labels(twice, labels, 3, np.arange(600), 0)
    wrong = np.repeat(given != true, 2)
    assert grouped[wrong].mean() < torn[wrong].mean()


@pytest.mark.parametrize("each", [1, 2, 4])
def test_few_photographs_a_class_are_no_error(each: int):
    rng = np.random.default_rng(0)
    trust, _ = trust_labels(rng.normal(size=(5 * each, 8)), np.tile(np.arange(5), each), 5, np.arange(5 * each), 0)
    assert trust.shape == (5 * each,)
    assert np.isfinite(trust).all()
