"""Sampling: how often an epoch sees each photograph, for every row of the registry."""

from __future__ import annotations

import numpy as np
import pytest

from manihot.data.dataset import EpochBatches
from manihot.data.sampling import SAMPLINGS, check_sampling, draw_epoch, expected_repeats
from manihot.errors import SettingsError
from manihot.settings import Choice, load_recipe
from manihot.train.check import check_recipe

LABELS = np.repeat([0, 1, 2, 4], [100, 37, 8, 1])  # no photograph of class 3


@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_sampling_is_decided_by_seed_and_epoch_and_keeps_its_length(name: str):
    one = Choice(name=name)
    first = draw_epoch(one, LABELS, 3, 0)
    assert np.array_equal(first, draw_epoch(one, LABELS, 3, 0))
    assert first.dtype == np.int64 and first.min() >= 0 and first.max() < len(LABELS)
    later = [draw_epoch(one, LABELS, 3, epoch) for epoch in range(1, 5)]
    assert {len(places) for places in later} == {len(first)}
    assert set(LABELS[first]) == set(LABELS)
    assert np.array_equal(draw_epoch(one, LABELS[:100], 3, 0), np.arange(100))  # one class: nothing to balance


def counts(name: str, **settings: float) -> np.ndarray:
    return np.bincount(LABELS[draw_epoch(Choice(name=name, **settings), LABELS, 0, 0)], minlength=5)


def test_how_many_of_each_class():
    assert counts("each_once").tolist() == [100, 37, 8, 0, 1]
    assert counts("oversample").tolist() == [100, 100, 40, 0, 5]
    assert counts("oversample", most=100).tolist() == [100, 100, 100, 0, 100]
    assert counts("undersample", ratio=10).tolist() == [10, 10, 8, 0, 1]
    assert counts("undersample").tolist() == [1, 1, 1, 0, 1]
    even = counts("balanced")
    assert even[[0, 1, 2, 4]].tolist() == [36, 36, 36, 36]  # 146 photographs, four classes
    assert counts("balanced", power=1.0).tolist() == counts("each_once").tolist()
    root = counts("balanced", power=0.5)
    assert root[0] / root[1] == pytest.approx((100 / 37) ** 0.5, rel=0.05)


def test_no_photograph_is_seen_much_more_often_than_another_of_its_class():
    for name in SAMPLINGS:
        seen = np.bincount(draw_epoch(Choice(name=name), LABELS, 1, 0), minlength=len(LABELS))
        for k in np.unique(LABELS):
            assert np.ptp(seen[k == LABELS]) <= 1


def test_expected_repeats():
    assert expected_repeats(Choice(name="each_once"), LABELS, 0).tolist() == [1.0] * len(LABELS)
    weights = expected_repeats(Choice(name="balanced"), LABELS, 0)
    shares = np.bincount(LABELS, weights=weights, minlength=5)
    assert np.ptp(shares[[0, 1, 2, 4]]) < 0.5


def test_batches_say_which_repetition_it_is():
    places = np.array([0, 0, 0, 1, 2])
    batches = EpochBatches(3, 2, 0, lambda epoch: places)
    items = [item for batch in batches for item in batch]
    assert sorted(place for _, place, _ in items) == [0, 0, 0, 1, 2]
    assert [repeat for _, place, repeat in items if place == 0] == [0, 1, 2]
    assert len(batches) == 3


@pytest.mark.parametrize("wrong", ["oversampel", "{name: oversample, most: 0.5}", "{name: each_once, most: 2}",
                                   "{name: balanced, power: high}"])  # fmt: skip
def test_a_wrong_sampling_is_named(wrong: str):
    text = wrong if wrong.startswith("{") else f"{{name: {wrong}}}"
    with pytest.raises(SettingsError, match="sampling"):
        check_recipe(load_recipe("standard", [f"sampling={text}"]))
    with pytest.raises(SettingsError):
        check_sampling(Choice(name="no"), "here")
