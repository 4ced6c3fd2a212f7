"""Composition: measurements follow what they are named after, and their link with errors is judged honestly."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from manihot.audit.composition import describe_classes, goes_with_errors, holm, imbalance_ratio
from manihot.audit.hashes import make_thumbnails
from manihot.audit.measurements import (
    MEASUREMENTS,
    measure_colourfulness,
    measure_photo,
    measure_sharpness,
    measure_zoom,
)
from manihot.demo.make import make_demo
from manihot.errors import DataError
from manihot.photos.scan import scan
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions


def _picture(seed: int = 0, cells: int = 40, height: int = 150, width: int = 200) -> np.ndarray:
    rng = np.random.default_rng(seed)
    spots = rng.integers(0, 256, (cells, cells, 3)).astype(np.uint8)
    return cv2.resize(spots, (width, height), interpolation=cv2.INTER_NEAREST)


def test_all_measurements_are_taken() -> None:
    values = measure_photo(_picture())
    assert set(values) | {"megapixels"} == set(MEASUREMENTS)
    assert all(np.isfinite(v) for v in values.values())
    assert values["aspect"] == pytest.approx(4 / 3)
    assert all(np.isfinite(v) for v in measure_photo(np.zeros((3, 2, 3), np.uint8)).values())


def test_sharpness_falls_with_blur_and_not_with_contrast() -> None:
    grey = cv2.cvtColor(_picture(cells=20), cv2.COLOR_RGB2GRAY)
    blurred = [measure_sharpness(cv2.GaussianBlur(grey, (0, 0), sigma)) for sigma in (0.5, 1, 2, 4)]
    assert all(a > b + 0.1 for a, b in pairwise(blurred))
    faint = (grey.astype(float) * 0.5 + 60).astype(np.uint8)
    assert abs(measure_sharpness(grey) - measure_sharpness(faint)) < 0.05
    soft = cv2.GaussianBlur(grey, (0, 0), 3)
    large = cv2.resize(soft, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    assert measure_sharpness(large) == pytest.approx(measure_sharpness(soft), abs=0.5)


def test_exposure_is_told() -> None:
    black, white = (measure_photo(np.full((60, 80, 3), level, np.uint8)) for level in (0, 255))
    assert (black["brightness"], black["dark_share"], black["bright_share"], black["contrast"]) == (0, 1, 0, 0)
    assert (white["brightness"], white["dark_share"], white["bright_share"]) == pytest.approx((1, 0, 1))


def test_colourfulness_is_that_of_its_paper() -> None:
    rgb = _picture(cells=64, height=64, width=64)
    red, green, blue = (rgb[..., k].astype(float) for k in range(3))
    rg, yb = red - green, 0.5 * (red + green) - blue
    expected = np.sqrt(rg.var() + yb.var()) + 0.3 * np.sqrt(rg.mean() ** 2 + yb.mean() ** 2)
    assert measure_colourfulness(rgb) == pytest.approx(expected, rel=1e-4)
    assert measure_colourfulness(np.repeat(rgb[..., :1], 3, axis=2)) == 0


def test_zoom_rises_with_the_size_of_structures() -> None:
    scores = [measure_zoom(_picture(cells=cells)[..., 0]) for cells in (64, 32, 16, 8)]
    assert all(a < b for a, b in pairwise(scores))


def test_megapixels_come_from_the_file(small_photos: Path) -> None:
    manifest, _ = scan(small_photos)
    table = make_thumbnails(manifest, 1).composition
    assert list(table["image_id"]) == list(manifest.image_id)
    assert set(table.columns) == {"image_id", *MEASUREMENTS}
    np.testing.assert_allclose(table["megapixels"], 48 * 64 / 1e6)


# ------------------------------------------------------------------------------------------- classes


def test_classes_and_sources_are_counted() -> None:
    table = pd.DataFrame(
        {
            "image_id": range(9),
            "label": [0, 0, 0, 0, 1, 1, -1, 0, 1],
            "source": list("xxxyxyxxy"),
            "split": ["train"] * 7 + ["val", "test"],
        }
    )
    manifest = Manifest.from_table(table, ("a", "b", "none"), Path())
    found = describe_classes(manifest)
    assert found["class"].tolist() == ["a", "b", "none"]
    assert found["photographs"].tolist() == [5, 2, 0]
    assert found["share"].tolist() == pytest.approx([5 / 7, 2 / 7, 0])
    assert found["times_rarest"].tolist() == [2.5, 1, 0]
    assert found["source: x"].tolist() == [4, 1, 0] and found["source: y"].tolist() == [1, 1, 0]
    assert imbalance_ratio(manifest) == 2.5
    assert np.isnan(imbalance_ratio(manifest.with_columns(label=-1)))


# ------------------------------------------------------------------------------------------- errors


def _judged(n: int, seed: int) -> tuple[pd.DataFrame, Predictions]:
    rng = np.random.default_rng(seed)
    wrong = rng.random(n) < 0.25
    ids = np.array([f"p{k}" for k in range(n)], dtype=object)
    table = pd.DataFrame(
        {
            "image_id": ids,
            "linked": rng.normal(size=n) + 0.8 * wrong,
            "free": rng.normal(size=n),
            "ties": rng.integers(0, 3, n),
            "constant": 1.0,
            "class": "text",
        }
    )
    probs = np.where(wrong[:, None], [0.1, 0.9], [0.9, 0.1])
    return table, Predictions.from_probs(ids, probs, ("a", "b"), np.zeros(n, int))


def test_what_goes_with_errors_comes_first() -> None:
    table, predictions = _judged(800, 0)
    found = goes_with_errors(table.sample(frac=1, random_state=0), predictions).set_index("measurement")
    assert next(iter(found.index)) == "linked" and set(found.index) == {"linked", "free", "ties"}
    wrong = predictions.pred_probs.argmax(axis=1) == 1
    for name in found.index:
        assert found.loc[name, "auc"] == pytest.approx(roc_auc_score(wrong, table[name]))
        assert found.loc[name, "correlation"] == pytest.approx(np.corrcoef(wrong, table[name])[0, 1])
        assert found.loc[name, "low"] <= found.loc[name, "auc"] <= found.loc[name, "high"]
    assert found.loc["linked", "low"] > 0.5 and found.loc["linked", "p_holm"] < 0.001
    assert found.loc["free", "p_holm"] > 0.05 and (found["p_holm"] >= found["p"]).all()


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    from scipy.stats import norm

    truth, inside, false_alarms = norm.cdf(0.8 / 2**0.5), 0, 0
    for seed in range(100):
        found = goes_with_errors(*_judged(200, seed)).set_index("measurement")
        inside += found.loc["linked", "low"] <= truth <= found.loc["linked", "high"]
        false_alarms += (found.loc[["free", "ties"], "p_holm"] < 0.05).any()
    assert 0.88 <= inside / 100 <= 0.99
    assert false_alarms / 100 <= 0.10


def test_holm_is_the_step_down_procedure() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])).tolist() == [1, 1]


def test_too_few_errors_are_refused() -> None:
    table, predictions = _judged(10, 1)
    with pytest.raises(DataError, match="too few"):
        goes_with_errors(table, predictions)


@pytest.mark.slow
def test_measurements_follow_the_demo_truth(tmp_path: Path) -> None:
    truth = make_demo(tmp_path / "demo", 300, 5, workers=2).set_index("image_id")
    manifest, _ = scan(tmp_path / "demo")
    table = make_thumbnails(manifest).composition
    truth = truth.loc[table["image_id"]]
    ends = (truth["zoom"] != "leaf").to_numpy()
    assert roc_auc_score(truth["zoom"][ends] == "closeup", table["zoom"][ends]) > 0.85
    blur = np.hypot(truth["blur"], truth["motion"] / 3).to_numpy() / truth[["height", "width"]].min(axis=1).to_numpy()
    assert spearmanr(blur, table["sharpness"]).statistic < -0.65
    assert spearmanr(truth["exposure"], table["brightness"]).statistic > 0.45
