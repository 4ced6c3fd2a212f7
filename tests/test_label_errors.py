"""Scores agree with cleanlab's, planted errors are found, order plays no part, odd inputs are survived or refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from conftest import shared_data
from manihot.audit import label_scores
from manihot.audit.label_errors import find_label_errors, label_issues
from manihot.audit.label_neighbours import find_neighbours, reduce_embeddings, typicality
from manihot.errors import DataError
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions


def arrays(seed: int, n: int = 200, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Unequal classes, predictions that are right more often than not, no ties."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(k, n, p=rng.dirichlet(np.full(k, 2.0)))
    labels[:k] = np.arange(k)
    return labels, softmax(rng.normal(size=(n, k)) + 1.5 * np.eye(k)[labels], axis=1)


def planted(seed: int = 0, n: int = 400, k: int = 4, share: float = 0.1) -> tuple[np.ndarray, ...]:
    """Given labels, who is wrong, out-of-fold probabilities and embeddings of overlapping clusters."""
    rng = np.random.default_rng(seed)
    true = rng.choice(k, n, p=[0.5, 0.25, 0.15, 0.1][:k])
    x = (rng.normal(size=(n, 20)) + 3.0 * np.eye(k, 20)[true]).astype(np.float32)
    wrong = np.zeros(n, dtype=bool)
    wrong[rng.choice(n, round(share * n), replace=False)] = True
    labels = np.where(wrong, (true + rng.integers(1, k, n)) % k, true)
    folds = StratifiedKFold(4, shuffle=True, random_state=seed)
    probs = cross_val_predict(LogisticRegression(C=0.1), x, labels, cv=folds, method="predict_proba")
    return labels, wrong, probs, x


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values("image_id", ignore_index=True)


@pytest.mark.parametrize("seed", range(5))
def test_scores_agree_with_cleanlab(seed: int) -> None:
    from cleanlab.count import calibrate_confident_joint, compute_confident_joint, get_confident_thresholds
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    labels, probs = arrays(seed)
    table = in_order(find_label_errors(labels, probs))
    for method in ("self_confidence", "normalized_margin"):
        np.testing.assert_allclose(table[method], get_label_quality_scores(labels, probs, method=method), atol=1e-9)
    np.testing.assert_array_equal(table["cleanlab_issue"], find_label_issues(labels, probs))
    np.testing.assert_allclose(
        label_scores.confident_thresholds(labels, probs), get_confident_thresholds(labels, probs)
    )
    joint, rows = compute_confident_joint(labels, probs, calibrate=False, return_indices_of_off_diagonals=True)
    mine, off = label_scores.confident_joint(labels, probs)
    np.testing.assert_array_equal(mine, joint)
    np.testing.assert_array_equal(np.flatnonzero(off), rows)
    assert off.any()
    theirs = calibrate_confident_joint(joint, labels)
    assert abs(label_scores.calibrated_joint(labels, probs) - theirs).max() <= 1  # cleanlab rounds to whole counts


def test_confident_learning_is_below_half_for_every_photograph_off_the_diagonal() -> None:
    labels, probs = arrays(3, n=500)
    _, off = label_scores.confident_joint(labels, probs)
    sure_of_own = probs[np.arange(500), labels] >= label_scores.confident_thresholds(labels, probs)[labels]
    score = label_scores.confident_learning(labels, probs)
    assert (score[off & ~sure_of_own] < 0.5).all()
    assert ((score >= 0) & (score <= 1)).all()


def test_noise_channel_columns_are_distributions_and_know_the_planted_confusion() -> None:
    labels, _, probs, _ = planted(n=2000)
    labels = labels.copy()
    moved = np.random.default_rng(1).choice(np.flatnonzero(labels == 0), 150, replace=False)
    labels[moved] = 2
    channel = label_scores.noise_channel(labels, probs)
    np.testing.assert_allclose(channel.sum(axis=0), 1)
    assert channel[2, 0] > 1.5 * max(channel[1, 0], channel[3, 0])


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_planted_errors_are_found_and_the_combination_beats_cleanlab(share: float) -> None:
    gains, precision = [], []
    for seed in range(3):
        labels, wrong, probs, x = planted(seed, share=share)
        table = in_order(find_label_errors(labels, probs, embeddings=x))
        ap = {
            name: average_precision_score(wrong, -table[name])
            for name in (
                "label_score",
                "self_confidence",
                "normalized_margin",
                "knn_score",
                "anomaly_score",
                "trajectory_score",
                "confident_learning",
            )
        }
        assert min(ap.values()) > 1.5 * wrong.mean(), ap  # better than chance, each of them
        gains.append(ap["label_score"] - ap["self_confidence"])
        flagged = table["is_label_issue"].to_numpy()
        precision.append(wrong[flagged].mean())
        assert abs(flagged.sum() - wrong.sum()) < 0.6 * wrong.sum()
    assert np.mean(gains) > 0, gains
    assert np.mean(precision) > 0.6, precision


def test_suggested_labels_of_issues_differ_from_the_given_and_are_mostly_right() -> None:
    labels, wrong, probs, x = planted(share=0.15)
    table = in_order(find_label_errors(labels, probs, embeddings=x))
    issue = table["is_label_issue"].to_numpy()
    assert (table["suggested_label"] != table["given_label"])[issue].all()
    rng = np.random.default_rng(0)  # the truth, drawn again as `planted` draws it
    true = rng.choice(4, 400, p=[0.5, 0.25, 0.15, 0.1])
    assert (table["suggested_label"].to_numpy() == true)[issue & wrong].mean() > 0.8


def test_order_of_rows_and_classes_plays_no_part() -> None:
    labels, _, probs, x = planted(1)
    groups = np.where(np.arange(400) < 40, np.arange(400) // 2, -1)
    plain = find_label_errors(labels, probs, embeddings=x, groups=groups)
    rng = np.random.default_rng(2)
    rows, classes = rng.permutation(400), rng.permutation(4)
    other = find_label_errors(
        np.argsort(classes)[labels][rows],
        probs[rows][:, classes],
        embeddings=x[rows],
        groups=groups[rows],
        image_id=np.arange(400)[rows],
    )
    plain, other = in_order(plain), in_order(other)
    numbers = ["label_score", "self_confidence", "confident_learning", "knn_score", "anomaly_score", "trajectory_score"]
    np.testing.assert_allclose(plain[numbers], other[numbers].astype(float), atol=2e-5)
    assert (classes[other["suggested_label"]] == plain["suggested_label"]).all()
    assert (other["is_label_issue"] == plain["is_label_issue"]).all()
    assert [sorted(row) for row in other["neighbours"]] == [sorted(row) for row in plain["neighbours"]]


def test_inputs_are_not_changed_and_the_same_call_gives_the_same_table() -> None:
    labels, _, probs, x = planted(2)
    kept = labels.copy(), probs.copy(), x.copy()
    first = find_label_errors(labels, probs, embeddings=x)
    pd.testing.assert_frame_equal(first, find_label_errors(labels, probs, embeddings=x))
    for before, now in zip(kept, (labels, probs, x)):
        np.testing.assert_array_equal(before, now)


def test_a_photograph_is_not_judged_by_its_own_duplicate_group() -> None:
    labels, _, probs, x = planted(3)
    x[1], labels[0], labels[1] = x[0], 0, 0
    groups = np.array([""] * 400, dtype=object)
    table = in_order(find_label_errors(labels, probs, embeddings=x, groups=groups))
    assert 1 in table["neighbours"][0]
    groups[:2] = "g"
    table = in_order(find_label_errors(labels, probs, embeddings=x, groups=groups))
    assert 1 not in table["neighbours"][0]
    assert all(i not in row for i, row in enumerate(table["neighbours"]))


def test_a_copy_with_another_label_counts_against_the_one_that_predictions_doubt() -> None:
    labels, _, probs, _ = planted(4)
    labels[:2], probs[:2] = [0, 1], [0.55, 0.25, 0.1, 0.1]
    alone = in_order(find_label_errors(labels, probs))
    torn = in_order(find_label_errors(labels, probs, groups=np.r_[0, 0, -np.ones(398, dtype=int)]))
    assert (torn["label_score"][:2] < alone["label_score"][:2]).all()
    assert torn["label_score"][1] < torn["label_score"][0]
    np.testing.assert_allclose(torn["label_score"][2:], alone["label_score"][2:])
    plants = in_order(
        find_label_errors(labels, probs, groups=np.r_[0, 0, -np.ones(398, dtype=int)], copies=-np.ones(400, dtype=int))
    )
    np.testing.assert_allclose(plants["label_score"], alone["label_score"])  # one plant, but not one picture


def test_copies_with_two_labels_are_not_each_called_wrong_by_the_other() -> None:
    labels, _, probs, _ = planted(4)
    groups = np.r_[0, 0, -np.ones(398, dtype=int)]
    for sure in (0.34, 0.38, 0.45):  # of the first one's label; the second's is less likely, the third's most unlikely
        labels[:2], probs[:2] = [0, 1], [sure, 0.32, (0.68 - sure) / 2, (0.68 - sure) / 2]
        table = in_order(find_label_errors(labels, probs, groups=groups))
        assert table["is_label_issue"][:2].tolist() == [False, True]
        assert table["suggested_label"][:2].tolist() == [0, 0]
    probs[:2] = [0.01, 0.01, 0.97, 0.01]  # both are wrong
    table = in_order(find_label_errors(labels, probs, groups=groups))
    assert table["is_label_issue"][:2].all() and table["suggested_label"][:2].tolist() == [2, 2]


def test_history_of_margins_or_logits_gives_the_area_under_the_margin() -> None:
    labels, wrong, probs, _ = planted(5)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 400, 4)) + np.where(wrong, 0.0, 2.0)[None, :, None] * np.eye(4)[labels]
    logits[2, 7] = np.nan
    table = in_order(find_label_errors(labels, probs, history=logits))
    own = logits[:, np.arange(400), labels]
    rest = np.where(np.eye(4, dtype=bool)[labels], -np.inf, logits)
    margins = own - rest.max(axis=2)
    np.testing.assert_allclose(table["trajectory_score"], expit(np.nanmean(margins, axis=0)))
    same = in_order(find_label_errors(labels, probs, history=margins))
    np.testing.assert_allclose(same["label_score"], table["label_score"])
    plain = in_order(find_label_errors(labels, probs))
    ap = [average_precision_score(wrong, -t["label_score"]) for t in (plain, table)]
    assert ap[1] > ap[0]
    margins[:, 3] = np.nan  # never trained on: judged by the rest
    partial = in_order(find_label_errors(labels, probs, history=margins))
    assert np.isnan(partial["trajectory_score"][3]) and np.isfinite(partial["label_score"]).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 12), st.integers(2, 5))
def test_small_and_odd_inputs_give_scores_between_0_and_1(seed: int, n: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, k, n)
    probs = rng.dirichlet(np.full(k, 0.3), n) if n else np.zeros((0, k))
    x = rng.integers(0, 2, (n, 3)).astype(np.float32)  # many ties
    table = find_label_errors(labels, probs, embeddings=x)
    assert len(table) == (labels >= 0).sum() and table.attrs["unlabelled"] == (labels < 0).sum()
    assert table["label_score"].between(0, 1).all()
    assert table["label_score"].is_monotonic_increasing
    for score in ("knn_score", "anomaly_score", "trajectory_score"):
        assert (table[score].dropna().between(0, 1)).all()


def test_an_absent_class_is_never_suggested_with_confidence_and_one_class_alone_has_no_issue() -> None:
    labels, _, probs, x = planted(6)
    wide = np.c_[probs * 0.999, np.full(400, 0.001)]
    table = in_order(find_label_errors(labels, wide, embeddings=x))
    assert not (table["suggested_label"] == 4).any()
    one = find_label_errors(np.zeros(50, dtype=int), probs[:50], embeddings=x[:50])
    assert not one["cleanlab_issue"].any()
    assert len(one) == 50 and one["label_score"].between(0, 1).all()


def test_equal_predictions_flag_nothing() -> None:
    table = find_label_errors(np.arange(40) % 4, np.full((40, 4), 0.25))
    assert not table["is_label_issue"].any()


def test_neighbours_are_those_of_a_full_search(monkeypatch: pytest.MonkeyPatch) -> None:
    from manihot.audit import label_neighbours

    monkeypatch.setattr(label_neighbours, "BLOCK", 700)  # several blocks
    rng = np.random.default_rng(0)
    x = reduce_embeddings(rng.normal(size=(90, 12)))
    groups = np.r_[np.repeat(np.arange(20), 3), np.arange(100, 130)]
    square = ((x[:, None] - x[None]) ** 2).sum(2)
    square[groups[:, None] == groups[None]] = np.inf
    index, distance = find_neighbours(x, groups, 7)
    np.testing.assert_array_equal(index, np.argsort(square, axis=1)[:, :7])
    np.testing.assert_allclose(distance, np.sqrt(np.sort(square, axis=1)[:, :7]), atol=1e-3)
    few, far = find_neighbours(x[:4], np.array([0, 0, 0, 1]), 3)
    assert few[0].tolist() == [3, -1, -1] and np.isinf(far[0, 1:]).all()


def test_reduction_keeps_the_leading_components() -> None:
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(300, 5)) * [9, 8, 7, 6, 5]
    wide = (hidden @ rng.normal(size=(5, 1500)) + 0.01 * rng.normal(size=(300, 1500))).astype(np.float32)
    small = reduce_embeddings(wide, dimensions=5)  # by subspace iteration
    x = (wide - wide.mean(0)) / wide.std(0)
    _, scale, axes = np.linalg.svd(x, full_matrices=False)
    exact = x @ axes[:5].T
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    np.testing.assert_allclose(small @ small.T, exact @ exact.T, atol=1e-3)
    assert scale[5] < 0.05 * scale[4]


def test_an_outlier_of_its_class_is_the_least_typical() -> None:
    rng = np.random.default_rng(0)
    x = reduce_embeddings(np.r_[rng.normal(size=(60, 8)) + 4, rng.normal(size=(60, 8)) - 4])
    labels = np.repeat([0, 1], 60)
    labels[5] = 1
    score = typicality(x, labels, np.arange(120), 10)
    assert score[labels == 1].argmin() == 0  # row 5 comes first among those labelled 1
    assert np.isnan(typicality(x[:3], np.array([0, 1, 1]), np.arange(3), 10)[0])


# ---------------------------------------------------------------------------------------------- records


def records(seed: int = 0) -> tuple[Predictions, Manifest]:
    labels, _, probs, x = planted(seed, n=120)
    ids = np.array([f"{i:03d}.jpg" for i in range(120)], dtype=object)
    classes = ("blight", "streak", "mosaic", "healthy")
    fold = np.arange(120) % 3
    table = pd.DataFrame({"image_id": ids, "label": labels, "fold": fold})
    return Predictions.from_probs(ids, probs, classes, labels, fold, x), Manifest.from_table(table, classes, Path())


def test_records_give_names_and_take_the_manifests_labels_and_groups() -> None:
    predictions, manifest = records()
    table = label_issues(predictions, manifest)
    assert set(table["given_label"]) <= set(manifest.classes)
    assert set(table["image_id"]) == set(manifest.image_id)
    changed = manifest.labels.copy()
    changed[4], changed[5] = -1, (changed[5] + 1) % 4
    after = label_issues(predictions, manifest.with_columns(label=changed)).set_index("image_id")
    assert "004.jpg" not in after.index
    assert after.loc["005.jpg", "given_label"] == manifest.classes[changed[5]]
    history = pd.DataFrame(
        {"image_id": np.repeat(manifest.image_id, 2), "epoch": [0, 1] * 120, "margin": np.arange(240.0) - 120}
    )
    scores = label_issues(predictions, manifest, history).set_index("image_id")["trajectory_score"]
    assert scores["000.jpg"] == pytest.approx(expit(-119.5)) and scores["100.jpg"] == pytest.approx(expit(80.5))


def test_averaged_predictions_are_refused_unless_vouched_for() -> None:
    predictions, _ = records()
    averaged = Predictions.from_probs(
        predictions.image_id, predictions.pred_probs, predictions.classes, predictions.labels
    )
    with pytest.raises(DataError, match="120 of 120 labelled photographs have predictions without a fold"):
        label_issues(averaged)
    assert len(label_issues(averaged, out_of_fold=True)) == 120


def test_groups_across_folds_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    predictions, manifest = records()
    duplicates = pd.DataFrame({"image_id": ["000.jpg", "003.jpg"], "group": [7, 7]})
    label_issues(predictions, manifest, duplicates=duplicates)
    assert "Warning" not in capsys.readouterr().err  # both of fold 0
    duplicates = pd.DataFrame({"image_id": ["000.jpg", "001.jpg"], "group": [7, 7]})
    label_issues(predictions, manifest, duplicates=duplicates)
    assert "1 groups of photographs were predicted by models of different folds" in capsys.readouterr().err


def test_errors_name_what_is_wrong() -> None:
    predictions, manifest = records()
    with pytest.raises(DataError, match="classes"):
        label_issues(predictions, Manifest(manifest.table, ("a", "b", "c", "d"), manifest.root))
    with pytest.raises(DataError, match="not in the manifest"):
        label_issues(predictions, manifest.take(np.arange(60)))
    with pytest.raises(DataError, match="lacks the columns margin"):
        label_issues(predictions, manifest, pd.DataFrame({"image_id": [], "epoch": []}))
    labels, probs = arrays(0, n=20)
    for bad, text in (
        ({"labels": labels[:5]}, "don't fit 20 photographs"),
        ({"labels": labels + 1}, "has label 4, but there are 4 classes"),
        ({"labels": labels + 0.5}, "row 0 has label .*5"),
        ({"pred_probs": probs * 2}, "20 rows are not probabilities, first in row 0: .* sum to 2"),
        ({"embeddings": np.zeros((3, 2))}, "embeddings of shape"),
        ({"embeddings": np.full((20, 2), np.nan)}, "not finite"),
        ({"history": np.zeros((2, 19))}, "history of shape"),
        ({"groups": np.zeros(3)}, "groups of shape"),
        ({"combine": "best"}, "combine='best'"),
    ):
        with pytest.raises(DataError, match=text):
            find_label_errors(**{"labels": labels, "pred_probs": probs, **bad})


def test_the_table_goes_to_parquet_and_back(tmp_path: Path) -> None:
    predictions, manifest = records()
    table = label_issues(predictions, manifest)
    table.to_parquet(tmp_path / "label_issues.parquet", index=False)
    back = pd.read_parquet(tmp_path / "label_issues.parquet")
    np.testing.assert_allclose(back["label_score"], table["label_score"])
    assert [*back["neighbours"][0]] == [*table["neighbours"][0]]
    assert back.attrs == table.attrs


def test_no_torch_is_loaded() -> None:
    code = (
        "import sys, numpy as np; from manihot.audit.label_errors import find_label_errors;"
        "find_label_errors(np.arange(8) % 2, np.full((8, 2), .5)); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_real_predictions_find_what_two_competitors_found_and_leave_odd_photographs_alone() -> None:
    folder = shared_data("cassava")
    found = Predictions.load(folder / "oof_blend_14th.csv")
    lists = json.loads((folder / "noise_lists.json").read_text(encoding="utf-8"))
    wrong, also_wrong, odd = (
        np.isin(found.image_id, lists[name]) for name in ("riron_consensus_noise", "25th_outliers", "monofo_invalid")
    )
    table = label_issues(found, out_of_fold=True).set_index("image_id").loc[found.image_id]
    reference = wrong & also_wrong
    ap = {name: average_precision_score(reference, -table[name]) for name in ("label_score", "self_confidence")}
    assert ap["label_score"] > ap["self_confidence"] > 10 * reference.mean()
    flagged = table["is_label_issue"].to_numpy()
    streak = (found.labels == 1) & ~odd
    assert flagged[odd].mean() <= flagged[streak].mean()
