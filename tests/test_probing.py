"""Constant submissions, the shares that their scores give, and predictions for other shares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import manihot
from manihot.errors import DataError, SettingsError
from manihot.records.predictions import Predictions

CLASSES = ("CBB", "CBSD", "CGM", "CMD", "Healthy")


def competition(folder: Path) -> tuple[Path, Path]:
    sample, names = folder / "sample_submission.csv", folder / "map.json"
    sample.write_text("image_id,label\nb.jpg,4\na.jpg,4\n")
    names.write_text(json.dumps({str(k): name for k, name in enumerate(CLASSES)}))
    return sample, names


def test_a_probe_names_one_class_as_the_sample_has_it(tmp_path: Path):
    sample, names = competition(tmp_path)
    found = manihot.probe_prior(sample, out=tmp_path / "probes", classes=names)
    assert [path.name for path in found.files] == [f"probe_{k}_{name}.csv" for k, name in enumerate(CLASSES)]
    assert found.files[3].read_text() == "image_id,label\nb.jpg,3\na.jpg,3\n" and found.shares is None
    wide = tmp_path / "wide.csv"
    wide.write_text("id,x,y z\n1,.5,.5\n")
    found = manihot.probe_prior(wide, out=tmp_path / "wide")
    assert found.files[1].name == "probe_1_y_z.csv" and pd.read_csv(found.files[1])["y z"].tolist() == [1]
    with pytest.raises(SettingsError, match="names one answer per photograph"):
        manihot.probe_prior(sample, out=tmp_path / "probes")


def test_the_lectures_five_shares(tmp_path: Path):
    sample, names = competition(tmp_path)
    given = ("0=.048", "CBSD=.106", "2=.103", "CMD=.602")
    found = manihot.probe_prior(sample, out=tmp_path / "p", classes=names, scores=given, photographs=2676)
    table = found.shares.set_index("class")
    assert table["share"].round(3).tolist() == [0.048, 0.106, 0.103, 0.602, 0.141]
    # sqrt(.602 .398 / 2676) and half a unit of the third decimal
    assert table.loc["CMD", "error"] == pytest.approx(0.009462 + 0.0005, abs=1e-6)
    assert pd.read_csv(tmp_path / "p/shares.csv")["class"].tolist() == list(CLASSES)
    for wrong, words in (
        ("CMD:.6", "expected CLASS=SCORE"),
        ("CMD=much", "is not a score"),
        ("rust=.1", "expected CLASS"),
    ):
        with pytest.raises(SettingsError, match=words):
            manihot.probe_prior(sample, out=tmp_path / "p", classes=names, scores=(wrong,))
    with pytest.raises(SettingsError, match="twice"):
        manihot.probe_prior(sample, out=tmp_path / "p", classes=names, scores=("3=.6", "CMD=.6"))


def drawn(n: int, shares: tuple[float, ...], seed: int) -> Predictions:
    """Exact posteriors under even shares of normal scores about each class's own."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(shares), n, p=shares)
    scores = rng.normal(size=(n, len(shares))) + 2 * np.eye(len(shares))[labels]
    probs = np.exp(2 * scores)
    ids = np.array([f"{k}.jpg" for k in range(n)], dtype=object)
    return Predictions.from_probs(ids, probs / probs.sum(1, keepdims=True), CLASSES[: len(shares)], labels)


@pytest.mark.parametrize("method", ["em", "bbse"])
def test_predictions_for_other_shares(tmp_path: Path, method: str):
    drawn(3000, (1 / 3, 1 / 3, 1 / 3), 0).save(tmp_path / "oof.parquet")
    new = drawn(3000, (0.7, 0.2, 0.1), 1)
    new.save(tmp_path / "new.parquet")
    places = {"oof": tmp_path / "oof.parquet", "out": tmp_path / "out.parquet"}
    found = manihot.reweight(tmp_path / "new.parquet", method=method, **places)
    table = found.shares
    np.testing.assert_allclose(table["share"], [0.7, 0.2, 0.1], atol=0.03)
    assert ((table["low"] <= table["share"]) & (table["share"] <= table["high"])).all()
    better = Predictions.load(tmp_path / "out.parquet")
    right = [float((one.pred_probs.argmax(1) == one.labels).mean()) for one in (new, better)]
    assert right[1] > right[0] + 0.02
    (tmp_path / "shares.csv").write_text("class,share\nCGM,.1\nCBB,.7\nCBSD,.2\n")
    manihot.reweight(tmp_path / "new.parquet", shares=tmp_path / "shares.csv", **places)
    prior = np.bincount(drawn(3000, (1 / 3,) * 3, 0).labels) / 3000
    wanted = new.pred_probs * np.array([0.7, 0.2, 0.1]) / prior
    got = Predictions.load(tmp_path / "out.parquet").pred_probs
    np.testing.assert_allclose(got, wanted / wanted.sum(1, keepdims=True), atol=1e-5)
    (tmp_path / "shares.csv").write_text("class,share\nCGM,.1\nCBB,.7\n")
    with pytest.raises(DataError, match="'CBSD' has none"):
        manihot.reweight(tmp_path / "new.parquet", shares=tmp_path / "shares.csv", **places)
