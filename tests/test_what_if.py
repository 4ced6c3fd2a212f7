"""Is cleaning worth it: no effect without noise, a gain with it, and intervals that mean what they say."""

from __future__ import annotations

import numpy as np
import pytest

from manihot.audit.what_if import ARMS, paired_interval, what_if
from manihot.errors import DataError


def blobs(
    n: int, noise: float, seed: int, dimensions: int = 24, spread: float = 0.75
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (N, D), given labels and true ones: four classes that overlap a little."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 4, n)
    centres = rng.normal(size=(4, dimensions)) * spread
    x = centres[true] + rng.normal(size=(n, dimensions))
    wrong = rng.random(n) < noise
    given = np.where(wrong, (true + rng.integers(1, 4, n)) % 4, true)
    return x, given, true


def test_without_planted_noise_nothing_is_claimed():
    claims = 0
    for seed in range(10):
        x, given, _ = blobs(240, 0.0, seed)
        table = what_if(x, given, repeats=2, seed=seed).table
        claims += (table["verdict"].isin(["helps", "hurts"])).any()
    assert claims <= 1


def test_with_a_fifth_of_wrong_labels_cleaning_helps():
    x, given, true = blobs(700, 0.2, 3, dimensions=150, spread=0.32)
    found = what_if(x, given, trusted=given == true, arms=("drop", "relabel"), seed=1)
    trusted = found.table[found.table["judged_on"] == "trusted"].set_index("arm")
    assert trusted.loc["drop", "verdict"] == "helps" and trusted.loc["drop", "gain"] > 0.01
    assert "Cleaning helps" in found.sentence()


def test_the_same_seed_gives_the_same_table():
    x, given, _ = blobs(150, 0.1, 0)
    one, two = (what_if(x, given, repeats=1, seed=5).table for _ in range(2))
    assert one.equals(two)
    assert one["arm"].tolist() == [*ARMS, "together"]
    assert one.loc[one["arm"] == "keep", "gain"].item() == 0


def test_unlabelled_photographs_and_groups_are_respected():
    x, given, _ = blobs(160, 0.1, 2)
    given[::10] = -1
    groups = np.array([f"plant{i // 4}" for i in range(160)], dtype=object)
    assert what_if(x, given, groups=groups, repeats=1).table["photographs"].tolist() == [144] * 6


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_leaves_shapes_and_undoubted_labels_alone(arm: str):
    rng = np.random.default_rng(0)
    targets, probs = np.eye(3)[rng.integers(0, 3, 50)], rng.dirichlet(np.ones(3), 50)
    doubtful = rng.random(50) < 0.3
    before = targets.copy()
    new, weights = ARMS[arm](targets, doubtful, probs)
    assert np.array_equal(targets, before)
    assert new.shape == (50, 3) and np.allclose(new.sum(axis=1), 1) and (weights >= 0).all()
    assert np.array_equal(new[~doubtful], targets[~doubtful]) and (weights[~doubtful] == 1).all()
    if arm != "keep":
        assert not np.array_equal(new[doubtful], targets[doubtful]) or (weights[doubtful] < 1).all()


def test_the_paired_interval():
    from scipy.stats import ttest_1samp

    gains = np.array([0.0, 1.0, 0.0, -1 / 3, 0.0, 2 / 3, 1.0])
    found = paired_interval(gains, np.arange(7), 0.95)
    wanted = ttest_1samp(gains, 0).confidence_interval(0.95)
    assert found == pytest.approx((gains.mean(), wanted.low, wanted.high))
    # every photograph twice is no more evidence
    twice = paired_interval(np.repeat(gains, 2), np.repeat(np.arange(7), 2), 0.95)
    assert twice == pytest.approx(found)
    assert paired_interval(np.zeros(5), np.arange(5), 0.95) == (0, 0, 0)


def test_too_little_to_tell_is_an_error():
    with pytest.raises(DataError, match="two classes"):
        what_if(np.zeros((20, 3)), np.zeros(20, dtype=int))
    with pytest.raises(DataError, match="no way of cleaning"):
        what_if(np.zeros((20, 3)), np.arange(20) % 2, arms=("wash",))
