"""The map of the network's features, and one-class scores of the labels."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import OneClassSVM

from manihot.audit import embedding_map
from manihot.audit.decisions import decide
from manihot.audit.embedding_map import map_photographs, place_on_map
from manihot.audit.label_errors import find_label_errors
from manihot.audit.label_neighbours import reduce_embeddings
from manihot.audit.one_class import one_class_scores
from manihot.errors import DataError, SettingsError
from manihot.report.feature_map import draw_map


def clusters(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (n, 16) about k far middles, and which each belongs to."""
    rng = np.random.default_rng(seed)
    of = np.arange(n) % k
    return 6 * rng.normal(size=(k, 16))[of] + rng.normal(size=(n, 16)), of


def issues_of(n: int, wrong: int) -> pd.DataFrame:
    ids = [f"{k}.jpg" for k in range(n)]
    flags = np.arange(n) < wrong
    score = np.where(flags, 0.1, 0.9) + np.arange(n) / (10 * n)
    columns = {"given_label": "a", "label_score": score, "is_label_issue": flags}
    return pd.DataFrame({"image_id": ids, **columns}).sample(frac=1, random_state=1)


def test_neighbours_in_the_features_are_neighbours_on_the_map():
    features, of = clusters(120, 4)
    places = place_on_map(features.astype(np.float32))
    assert places.min() == 0 and places.max() == 1
    _, index = NearestNeighbors(n_neighbors=6).fit(places).kneighbors()
    assert (of[index] == of[:, None]).mean() > 0.98
    np.testing.assert_array_equal(places, place_on_map(features.astype(np.float32)))  # fixed seed


def test_of_many_photographs_the_suspicious_ones_are_on_the_map(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedding_map, "MOST", 60)
    monkeypatch.setattr(embedding_map, "SUSPICIOUS", 12)
    features, _ = clusters(200, 3)
    issues = issues_of(200, 15)
    found = map_photographs(issues, np.array([f"{k}.jpg" for k in range(200)], dtype=object), features)
    assert len(found) == 60 and found["image_id"].is_unique
    flagged = found.loc[found["is_label_issue"], "image_id"]
    assert {f"{k}.jpg" for k in range(12)} <= set(flagged)  # the worst twelve; others by chance
    few = map_photographs(issues.head(5), np.array([f"{k}.jpg" for k in range(200)], dtype=object), features)
    assert few.empty and {"x", "y"} <= set(few.columns)


def test_the_figure_rings_what_is_suspicious():
    rng = np.random.default_rng(0)
    names = [f"class {k}" for k in range(9)]
    label = np.repeat(names, range(11, 2, -1))
    flag = np.arange(len(label)) < 4
    table = pd.DataFrame({"x": rng.random(len(label)), "y": rng.random(len(label)), "given_label": label})
    drawn = draw_map(table.assign(is_label_issue=flag))
    assert drawn is not None and (drawn["n"], drawn["suspicious"]) == (63, 4)
    assert [row["n"] for row in drawn["legend"]] == [11, 10, 9, 8, 7, 6, 5, 4 + 3]
    assert drawn["legend"][-1]["name"] == "other classes"
    marks = re.findall(r"<use [^>]*style=\"([^\"]*)\"", drawn["figure"])
    assert len(marks) == 63 + 4 and sum("stroke: var(--ink)" in style for style in marks) == 4
    assert draw_map(None) is None


def test_one_class_scores_are_the_machines():
    features, of = clusters(60, 2)
    x = reduce_embeddings(features)
    x[0] = -x[2]  # a photograph of class 0 that looks like nothing of it
    scores = one_class_scores(x, of)
    rows = np.flatnonzero(of == 1)
    density = OneClassSVM(nu=0.5, gamma="scale").fit(x[rows]).score_samples(x[rows])
    np.testing.assert_allclose(scores[rows], density / (density + np.median(density)))
    assert scores[of == 0].argmin() == 0 and np.median(scores[rows]) == pytest.approx(0.5)
    assert np.isnan(one_class_scores(x[:6], np.array([0, 0, 0, 0, 0, 1]))[5])  # one of its class


def test_one_class_scores_find_photographs_of_other_classes_and_clean_follows_them():
    features, truth = clusters(90, 3)
    labels = truth.copy()
    labels[:5] = (labels[:5] + 1) % 3
    probs = np.full((90, 3), 0.1) + 0.7 * np.eye(3)[truth]
    table = find_label_errors(labels, probs, embeddings=features)
    lowest = table.sort_values("one_class_score").head(5)["image_id"]
    assert set(lowest) == set(range(5))
    assert "one_class_score" not in find_label_errors(labels, probs)
    named = table.assign(image_id=table["image_id"].astype(str), given_label=table["given_label"].astype(str))
    named["suggested_label"] = table["suggested_label"].astype(str)
    decided = decide(named, rule="one_class", action="drop", n=5)
    assert set(decided["image_id"]) == set("01234") and (decided["action"] == "drop").all()
    only = decide(named, rule="one_class", action="drop", n=1, classes=("2",))
    assert set(only["image_id"]) <= set(named.loc[named["given_label"] == "2", "image_id"]) and len(only) == 1
    with pytest.raises(SettingsError, match="'one_class' needs to know how many"):
        decide(named, rule="one_class")
    with pytest.raises(DataError, match="one_class_score"):
        decide(named.drop(columns="one_class_score"), rule="one_class", n=5)
