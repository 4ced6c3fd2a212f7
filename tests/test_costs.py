"""Decisions by cost: against every other answer by hand, files of costs, what they save on labelled photographs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manihot.errors import DataError, SettingsError
from manihot.metrics import accuracy
from manihot.records.predictions import Predictions
from manihot.trust.calibrate import make_temperature
from manihot.trust.costs import Costs, decide_files, load_costs
from manihot.trust.words import ASK

CLASSES = ("healthy", "mosaic", "no")  # `no` is false in careless YAML


def calibrated(n: int = 3000, seed: int = 0) -> Predictions:
    """Labels drawn from the probabilities themselves: what they promise holds."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet([1.2, 0.5, 0.6], n)
    labels = (rng.random((n, 1)) > probs.cumsum(axis=1)).sum(axis=1)
    return Predictions.from_probs(np.array([f"{i}.jpg" for i in range(n)], dtype=object), probs, CLASSES, labels)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_decisions_are_the_cheapest_of_all_answers():
    made, costs = calibrated(200), Costs(np.array([[0, 1, 2.0], [9, 0, 3], [1, 4, 0]]), 0.8)
    answer, price = costs.decide(made.pred_probs)
    for row, (probs, chosen) in enumerate(zip(made.pred_probs.astype(float), answer)):
        every = [sum(probs[t] * costs.matrix[t, a] for t in range(3)) for a in range(3)] + [0.8]
        assert every[chosen] == pytest.approx(min(every)) and price[row] == pytest.approx(min(every))
    assert set(answer) == {0, 1, 2, 3}
    without, _ = Costs(costs.matrix).decide(made.pred_probs)
    assert np.array_equal(without, (made.pred_probs.astype(float) @ costs.matrix).argmin(axis=1))
    assert (Costs(costs.matrix, 0.0).decide(made.pred_probs)[0] == 3).all()
    assert np.array_equal(Costs(costs.matrix, 99.0).decide(made.pred_probs)[0], without)


def test_equal_costs_give_the_most_probable_class(tmp_path: Path):
    calibrated().save(tmp_path / "p.parquet")
    found = decide_files(tmp_path / "p.parquet", write(tmp_path / "c.yaml", "missed: {mosaic: 1}"), tmp_path / "out")
    assert found["changed"] == 0 and found["asked"] == 0
    measured, made = found["measured"], calibrated()
    assert (
        measured["cost_plain"] == measured["cost_decided"] == pytest.approx(1 - accuracy(made.labels, made.pred_probs))
    )
    assert measured["cost_sensitive_accuracy_plain"] == pytest.approx(measured["accuracy_plain"])


def test_costs_save_what_they_promise_on_calibrated_probabilities(tmp_path: Path):
    made = calibrated()
    made.save(tmp_path / "p.parquet")
    costs = write(tmp_path / "c.yaml", "missed: {mosaic: 10}\nask: 0.7\n")
    found = decide_files(tmp_path / "p.parquet", costs, tmp_path / "out")
    measured = found["measured"]
    assert measured["cost_decided"] == pytest.approx(found["expected_cost"], rel=0.08)  # as promised
    assert measured["difference"]["high"] < 0 and measured["cost_decided"] < 0.6 * measured["cost_plain"]
    assert measured["found"]["mosaic"]["plain"] < 0.7 and 0.05 < found["asked"] < 0.9
    table = pd.read_csv(tmp_path / "out" / "decisions.csv", keep_default_na=False)
    assert table["image_id"].tolist() == made.image_id.tolist() and set(table["answer"]) == {*CLASSES, ASK}
    assert (table["expected_cost"] <= table["expected_cost_of_most_probable"] + 1e-9).all()
    assert json.loads((tmp_path / "out" / "costs.json").read_text(encoding="utf-8"))["measured"] == measured


def test_files_of_costs_say_the_same(tmp_path: Path):
    by_rows = "costs:\n  mosaic: {healthy: 10, 'no': 10}\nask: 0.5\n"
    table = "true,no,healthy,mosaic,ask\nhealthy,1,0,1,0.5\nmosaic,10,10,0,0.5\nno,0,1,1,0.5\n"
    expected = np.array([[0, 1, 1], [10, 0, 10], [1, 1, 0.0]])
    for name, text in (("a.yaml", "missed: {mosaic: 10}\nask: 0.5"), ("b.yaml", by_rows), ("c.csv", table)):
        found = load_costs(write(tmp_path / name, text), CLASSES)
        assert np.array_equal(found.matrix, expected) and found.ask == 0.5, name


@pytest.mark.parametrize(
    "name, text, says",
    [
        ("a.yaml", "missed: {mosiac: 10}", "no class 'mosiac'"),
        ("b.yaml", "prices: {mosaic: 10}", "found prices"),
        ("c.yaml", "missed: {mosaic: dear}", "c.yaml:1: the cost of missing 'mosaic' is 'dear', which is not a number"),
        ("d.yaml", "missed: {mosaic: -1}", "the cost of missing 'mosaic' is -1; costs cannot be negative"),
        ("e.yaml", "missed: {mosaic: 2}\ncosts: {mosaic: {healthy: 2}}", "both say"),
        ("f.yaml", "ask: -1", "asking an expert is -1; costs cannot be negative"),
        ("g.yaml", "ask: 1\nmissed: [", "g.yaml:2: not valid YAML"),
        ("h.csv", "true,healthy,mosaic\nhealthy,0,1\nmosaic,1,0\n", "'no' is missing"),
        ("i.csv", "true,healthy,mosaic,no\nhealthy,1,1,1\nmosaic,1,0,1\nno,1,1,0\n", "'healthy': '1' is the"),
        ("k.csv", "true,healthy,mosaic,no\nhealthy,0,1,1\nmosaic,-2,0,1\nno,1,1,0\n", "line 3.*'healthy': '-2' can't"),
        ("l.csv", "true,healthy,mosaic,no\nhealthy,0,1,much\nmosaic,2,0,1\nno,1,1,0\n", "line 2.*'no': 'much'"),
        ("m.csv", "true,healthy,mosaic,no\nhealthy,0,1,1,1\n", "line 2: 5 fields under 4 columns"),
        ("n.csv", "true,healthy,mosaic,no\nno,0,1,1\nno,0,1,1\n", "'no' is there twice"),
        ("j.csv", "true,healthy,mosaic,no,ask\nhealthy,0,1,1,1\nmosaic,1,0,1,2\nno,1,1,0,1\n", "several prices"),
    ],
)
def test_wrong_costs_name_the_file(tmp_path: Path, name: str, text: str, says: str):
    with pytest.raises((DataError, SettingsError), match=says) as error:
        load_costs(write(tmp_path / name, text), CLASSES)
    assert name in error.value.what and error.value.remedy
    with pytest.raises(SettingsError, match="not readable"):
        load_costs(tmp_path / "absent.yaml", CLASSES)


def test_overconfident_probabilities_are_warned_of_and_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = calibrated()
    sharp = made.pred_probs.astype(float) ** 4
    tilted = Predictions.from_probs(made.image_id, sharp / sharp.sum(1, keepdims=True), CLASSES, made.labels)
    tilted.save(tmp_path / "p.parquet")
    costs = write(tmp_path / "c.yaml", "missed: {mosaic: 10}\nask: 0.7\n")
    before = decide_files(tmp_path / "p.parquet", costs, tmp_path / "a")
    assert "calibrate first" in capsys.readouterr().err
    make_temperature(tilted.pred_probs, tilted.labels).save(tmp_path / "calibrator.json")
    after = decide_files(tmp_path / "p.parquet", costs, tmp_path / "b", calibrator=tmp_path / "calibrator.json")
    assert "calibrate first" not in capsys.readouterr().err
    assert after["measured"]["cost_decided"] < before["measured"]["cost_decided"]


def test_without_labels_nothing_is_measured(tmp_path: Path):
    made = calibrated(50)
    Predictions.from_probs(made.image_id, made.pred_probs, CLASSES).save(tmp_path / "p.csv")
    costs = write(tmp_path / "c.csv", "true,c0,c1,c2\nc0,0,1,1\nc1,5,0,5\nc2,1,1,0\n")
    assert decide_files(tmp_path / "p.csv", costs, tmp_path / "out")["measured"] is None
