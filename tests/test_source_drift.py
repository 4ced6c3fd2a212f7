"""Drift between sources: chance is called chance, a planted difference is found and named."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
import pytest

from manihot.audit.drift import auc_interval, compare_priors, draw_mean, find_drift, mean_images
from manihot.errors import DataError


def _two_sources(n: int = 300, shift: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    source = np.where(rng.random(n) < 0.3, "2019", "2020").astype(object)
    x = rng.normal(size=(n, 40))
    x[:, 3] += shift * (source == "2020")
    return source, x, rng.integers(0, 4, n)


def test_sources_without_difference_are_called_different_at_chance_only() -> None:
    called = 0
    for seed in range(20):
        source, x, labels = _two_sources(seed=seed)
        called += find_drift(source, embeddings=x, labels=labels, seed=seed)[0].differ
    assert called <= 3  # one-sided 2.5 %, and an interval that leaves out the folds' own variation


def test_a_planted_difference_is_found_named_and_shown() -> None:
    source, x, labels = _two_sources(shift=2.0)
    measured = pd.DataFrame(x[:, :6], columns=["blur", "exposure", "contrast", "zoom", "aspect", "colour"])
    drift = find_drift(source, measurements=measured, labels=labels)[0]
    assert (drift.first, drift.second) == ("2019", "2020")
    assert drift.low > 0.8 and drift.within_class > 0.8
    assert drift.features["measurement"].iloc[0] == "zoom"
    assert drift.features["median_second"].iloc[0] - drift.features["median_first"].iloc[0] == pytest.approx(2, abs=0.4)
    examples = drift.examples(5)
    assert (source[examples["typical_first"]] == "2019").all() and (source[examples["typical_second"]] == "2020").all()
    assert x[examples["typical_second"], 3].mean() > x[examples["typical_first"], 3].mean() + 2
    assert x[examples["second_like_first"], 3].mean() < x[examples["first_like_second"], 3].mean() + 1


def test_other_class_shares_alone_are_not_called_other_photographs() -> None:
    rng = np.random.default_rng(0)
    source = np.repeat(np.array(["a", "b"], dtype=object), 400)
    labels = np.where(rng.random(800) < np.where(source == "a", 0.1, 0.9), 1, 0)
    x = rng.normal(size=(800, 10))
    x[:, 0] += 3 * labels
    drift = find_drift(source, embeddings=x, labels=labels)[0]
    assert drift.auc > 0.8
    assert abs(drift.within_class - 0.5) < 0.07


def test_groups_never_stand_on_both_sides() -> None:
    """Copies of one photograph in both sources would let the adversary learn them by heart."""
    rng = np.random.default_rng(1)
    x = np.repeat(rng.normal(size=(60, 200)), 4, axis=0) + rng.normal(scale=1e-3, size=(240, 200))
    owner = np.repeat(np.arange(60), 4)
    source = np.where(owner % 2, "a", "b").astype(object)  # by plant, not by looks
    groups = owner.astype(str).astype(object)
    torn = find_drift(source, embeddings=x)[0]
    whole = find_drift(source, embeddings=x, groups=groups)[0]
    assert torn.auc > 0.9
    assert whole.auc < 0.7


def test_one_source_or_too_few_photographs_say_nothing() -> None:
    x = np.zeros((60, 3))
    assert find_drift(np.full(60, "one", dtype=object), embeddings=x) == []
    assert find_drift(np.array(["a"] * 50 + ["b"] * 10, dtype=object), embeddings=x) == []
    with pytest.raises(DataError, match="embeddings or measurements"):
        find_drift(np.full(60, "one", dtype=object))
    with pytest.raises(DataError):
        find_drift(np.full(60, "one", dtype=object), embeddings=x[:5])


def test_missing_measurements_do_not_stop_it() -> None:
    source, x, _ = _two_sources(shift=2.0)
    measured = pd.DataFrame(x[:, :5]).add_prefix("m")
    measured.iloc[::7, 3] = np.nan
    assert find_drift(source, measurements=measured)[0].auc > 0.8


def test_the_interval_holds_the_true_area() -> None:
    from scipy.stats import norm

    true = norm.cdf(1 / np.sqrt(2))
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        truth = np.r_[np.zeros(80, bool), np.ones(60, bool)]
        _, low, high = auc_interval(truth, rng.normal(size=140) + truth)
        held += low <= true <= high
    assert held >= 180


def test_shares_of_the_classes_with_intervals() -> None:
    source = np.array(["a"] * 100 + ["b"] * 100, dtype=object)
    labels = np.array([0] * 90 + [1] * 10 + [0] * 50 + [1] * 50)
    table = compare_priors(source, labels, ("x", "y"))
    assert table["share"].tolist() == [0.9, 0.1, 0.5, 0.5]
    assert ((table["low"] < table["share"]) & (table["share"] < table["high"])).all()
    assert table.attrs["p_value"] < 1e-6 and table.attrs["distance"] == pytest.approx(0.4)
    same = compare_priors(source, np.tile([0, 1], 100), ("x", "y"))
    assert same.attrs["p_value"] > 0.9 and same.attrs["distance"] == 0


def test_mean_image_of_a_source() -> None:
    pictures = np.stack([np.full((4, 4), v, dtype=np.uint8) for v in (0, 100, 200, 255)])
    means = mean_images(pictures, np.array(["a", "a", "b", "b"], dtype=object))
    assert (means["a"] == 50).all() and (means["b"] == 228).all()


@pytest.mark.parametrize("name", ["2019", "a $5 phone_{", "季节" + "x" * 90])
def test_a_mean_picture_carries_the_name_of_its_source(name: str) -> None:
    picture = np.full((128, 128), 60, np.uint8)
    drawn, other = (
        cv2.imdecode(np.frombuffer(draw_mean(picture, text), np.uint8), cv2.IMREAD_GRAYSCALE) for text in (name, "2")
    )
    assert drawn.shape == (256, 256) and (drawn[:200] == 60).all()
    assert (drawn[220:] > 200).sum() > 20 and (drawn != other).any()
    assert (drawn[:, :2] == 60).all() and (drawn[:, -2:] == 60).all(), "the name fits"
