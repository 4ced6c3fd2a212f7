"""The report's section on photographs from near and far."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manihot.audit.measurements import MEASUREMENTS
from manihot.audit.stages import save_table
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.report.material import gather
from manihot.report.parts import accuracy_by_source
from manihot.report.zoom import accuracy_by_zoom, zoom_ends
from test_report import CLASSES, make_run, read


def test_the_ends_of_a_class_are_its_lowest_and_highest(tmp_path: Path):
    ids = [f"{k}.jpg" for k in range(12)]
    table = pd.DataFrame({"image_id": ids, "path": ids, "label": [0] * 9 + [1, 1, 2]})
    manifest = Manifest.from_table(table, ("a", "b", "c"), tmp_path)
    zoom = pd.Series([5.0, 1, 9, 3, 7, 2, 8, np.nan, 6, 4, 2, 1], index=ids)
    a, b = zoom_ends(manifest, zoom)  # c has one photograph: no ends
    assert a["farthest"] == ["1.jpg", "5.jpg", "3.jpg", "0.jpg"] and a["nearest"] == [
        "2.jpg",
        "6.jpg",
        "4.jpg",
        "8.jpg",
    ]
    assert (a["n"], a["median"]) == (8, 5.5)
    assert b["farthest"] == ["10.jpg"] and b["nearest"] == ["9.jpg"]


def test_accuracy_in_fifths_by_zoom():
    n = 60
    ids = np.array([f"{k}.jpg" for k in range(n)], dtype=object)
    labels = np.arange(n) % 2
    right = np.arange(n) >= 12  # the farthest fifth is wrong, all others right
    probs = np.where((labels == 1)[:, None] == right[:, None], [[0.2, 0.8]], [[0.8, 0.2]])
    made = Predictions.from_probs(ids, probs, ("a", "b"), labels, np.zeros(n, dtype=int))
    shuffled = np.random.default_rng(0).permutation(n)
    parts = accuracy_by_zoom(made.take(shuffled), pd.Series(np.arange(n, dtype=float), index=ids))
    assert [part["value"] for part in parts] == [0, 1, 1, 1, 1]
    assert [(part["n"], part["least"], part["most"]) for part in parts][:2] == [(12, 0, 11), (12, 12, 23)]
    assert parts[0]["high"] < 0.3 and parts[1]["low"] > 0.7  # exact bounds, no width of zero
    assert accuracy_by_zoom(made.take(np.arange(49)), pd.Series(np.arange(n, dtype=float), index=ids)) == []


def test_the_section_stands_in_the_report(tmp_path: Path):
    run = make_run(tmp_path, n=80)
    _, page = read(run)
    assert "Close-ups and distant photographs" not in page.text  # without a measurement
    manifest = Manifest.load(run / "manifest.parquet")
    zoom = np.random.default_rng(1).normal(size=80)
    table = pd.DataFrame({"image_id": manifest.image_id, **dict.fromkeys(MEASUREMENTS, 0.5)}).assign(zoom=zoom)
    save_table(table, run, "composition")
    _, page = read(run)
    assert "Close-ups and distant photographs" in page.text and "nearest fifth" in page.text
    names = [label for label in page.all("img", "alt") if label.startswith("nearest of ")]
    assert set(names) <= {f"nearest of {name}" for name in CLASSES}


def test_accuracy_by_source_stands_in_the_report(tmp_path: Path):
    run = make_run(tmp_path, n=80)
    material = gather(run)
    made, (first, second) = material.predictions[material.split], accuracy_by_source(material)
    assert (first["name"], second["name"]) == ("2020", "2019") or (first["name"], second["name"]) == ("2019", "2020")
    assert first["n"] >= second["n"] and first["n"] + second["n"] == int((made.labels >= 0).sum())
    source = dict(zip(material.manifest.image_id, material.manifest.table["source"]))
    own = np.array([source[one] == first["name"] for one in made.image_id]) & (made.labels >= 0)
    right = float((made.pred_probs.argmax(1) == made.labels)[own].mean())
    assert first["value"] == pytest.approx(right) and first["low"] <= right <= first["high"]
    assert "Accuracy by source" in read(run)[1].text
    assert "Accuracy by source" not in read(make_run(tmp_path / "few", n=20))[1].text  # too few of each
