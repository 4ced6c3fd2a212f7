"""Evidence about labels beside the predictions: margins of training, a frozen network's embeddings, what is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from manihot.audit.duplicates import COLUMNS
from manihot.audit.evidence import describe_evidence, find_margins, load_embeddings, load_margins, say_evidence
from manihot.audit.label_errors import find_label_errors, label_issues
from manihot.audit.stages import audit_labels, audit_predictions, save_table
from manihot.errors import DataError
from manihot.pipeline import run
from manihot.quick import audit_embeddings as frozen
from manihot.records.files import digest_file
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.run_folder import RunFolder
from manihot.records.run_places import RunPlaces
from manihot.report.audit_page import make_audit_page
from manihot.settings import Recipe, load_recipe

N = 120


def planted(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Given labels, which are wrong, and the logits (E, N, 3) of a training and (N, 3) of answers out of fold.

    A fifth of the labels is wrong. The answers are unsure of some photographs, and the network learns wrong labels
    only in the end.
    """
    rng = np.random.default_rng(seed)
    true = np.arange(N) % 3
    wrong = rng.random(N) < 0.2
    given = np.where(wrong, (true + rng.integers(1, 3, N)) % 3, true)
    hard = rng.normal(1.0, 0.8, N)[:, None]
    out_of_fold = hard * np.eye(3)[true] + 0.8 * rng.normal(size=(N, 3))
    epochs = []
    for learned in np.linspace(0, 1, 6):
        seen = (1 - 0.6 * learned) * 2 * np.eye(3)[true] + 2.5 * learned * np.eye(3)[given]
        epochs.append(seen + rng.normal(size=(N, 3)))
    return given, wrong, np.array(epochs), out_of_fold


def margin_table(given: np.ndarray, logits: np.ndarray, rows: np.ndarray) -> pd.DataFrame:
    own = logits[:, np.arange(N), given]
    other = np.where(np.eye(3, dtype=bool)[given], -np.inf, logits).max(2)
    return pd.DataFrame(
        {
            "image_id": np.tile([f"{i}.jpg" for i in rows], len(logits)),
            "epoch": np.repeat(np.arange(len(logits)), len(rows)),
            "margin": (own - other)[:, rows].ravel(),
        }
    )


def a_run(home: Path, seed: int, margins: bool = True) -> tuple[Manifest, Predictions, np.ndarray]:
    """A run folder as a fine-tuned member with two folds leaves it."""
    given, wrong, logits, out_of_fold = planted(seed)
    ids = np.array([f"{i}.jpg" for i in range(N)], dtype=object)
    fold = np.arange(N) // 3 % 2
    manifest = Manifest.from_table(
        pd.DataFrame({"image_id": ids, "path": ids, "label": given, "fold": fold}), ("a", "b", "c"), home
    )
    predictions = Predictions(ids, out_of_fold.astype(np.float32), manifest.classes, given, fold)
    manifest.save(home / "folds.parquet")
    predictions.save(home / "predictions/main.oof.parquet")
    save_table(pd.DataFrame({name: [] for name in COLUMNS}), home, "duplicates")
    rng = np.random.default_rng(0)
    save_table(pd.DataFrame({"image_id": ids, "sharpness": rng.random(N)}), home, "composition")
    for k in (0, 1) if margins else ():
        path = home / f"members/main/fold{k}/margins.parquet"
        path.parent.mkdir(parents=True)
        margin_table(given, logits + 0.2 * k, np.flatnonzero(fold != k)).to_parquet(path)
    return manifest, predictions, wrong


def test_margins_and_embeddings_find_more_than_predictions_alone():
    """Over several draws each of them, and both more than one, rank wrong labels better."""
    found: dict[str, list[float]] = {"alone": [], "margins": [], "embeddings": [], "both": []}
    for seed in range(6):
        given, wrong, logits, out_of_fold = planted(seed)
        probs = np.exp(out_of_fold) / np.exp(out_of_fold).sum(1, keepdims=True)
        rng = np.random.default_rng(100 + seed)
        features = 1.5 * np.eye(12)[np.arange(N) % 3] + rng.normal(size=(N, 12))
        arms = {
            "alone": {},
            "margins": {"history": logits},
            "embeddings": {"embeddings": features},
            "both": {"history": logits, "embeddings": features},
        }
        for name, more in arms.items():
            score = find_label_errors(given, probs, **more).sort_values("image_id")["label_score"]
            found[name].append(roc_auc_score(wrong, -score))
    mean = {name: float(np.mean(values)) for name, values in found.items()}
    assert mean["margins"] > mean["alone"] + 0.01 and mean["embeddings"] > mean["alone"] + 0.01, mean
    assert mean["both"] > max(mean["margins"], mean["embeddings"]), mean


def test_the_audit_of_a_fine_tuned_run_takes_the_margins_of_its_training(tmp_path: Path, capsys):
    manifest, predictions, _ = a_run(tmp_path, 0)
    with RunFolder(tmp_path) as folder:
        audit_labels(folder, manifest, "main")
    issues = pd.read_parquet(tmp_path / "audit/label_issues.parquet")
    paths = find_margins(tmp_path, ["main"], predictions.fold)
    assert len(paths) == 2
    wanted = label_issues(predictions, manifest, load_margins(paths))
    np.testing.assert_allclose(issues["trajectory_score"], wanted["trajectory_score"])
    assert issues["trajectory_score"].notna().all()
    evidence = json.loads((tmp_path / "audit/audit.json").read_text(encoding="utf-8"))["evidence"]
    assert "trajectory_score" in evidence["used"] and set(evidence["missing"]) == {"knn_score", "anomaly_score"}
    said = capsys.readouterr().err
    assert "in the training of the network" in said
    assert "without knn_score, anomaly_score (the predictions hold no features)" in said
    assert "in the training of the network" in make_audit_page(tmp_path).read_text(encoding="utf-8")


def test_margins_that_come_later_make_the_audit_anew(tmp_path: Path):
    manifest, _, _ = a_run(tmp_path, 0, margins=False)
    with RunFolder(tmp_path) as folder:
        audit_labels(folder, manifest, "main")
        assert "trajectory_score" not in pd.read_parquet(tmp_path / "audit/label_issues.parquet")
        evidence = json.loads((tmp_path / "audit/audit.json").read_text(encoding="utf-8"))["evidence"]
        assert evidence["missing"]["trajectory_score"] == "no training left its margins"
        given, _, logits, _ = planted(0)
        (tmp_path / "members/main/fold0").mkdir(parents=True)
        rows = np.flatnonzero(manifest.fold != 0)
        margin_table(given, logits, rows).to_parquet(tmp_path / "members/main/fold0/margins.parquet")
        audit_labels(folder, manifest, "main")
    score = pd.read_parquet(tmp_path / "audit/label_issues.parquet").set_index("image_id")["trajectory_score"]
    assert set(score.index[score.notna()]) == {f"{i}.jpg" for i in rows}


def test_margins_of_folds_are_averaged_and_members_brought_to_one_spread(tmp_path: Path):
    def write(member: str, fold: int, rows: list[tuple[str, int, float]]) -> Path:
        path = tmp_path / f"members/{member}/fold{fold}/margins.parquet"
        path.parent.mkdir(parents=True)
        pd.DataFrame(rows, columns=["image_id", "epoch", "margin"]).to_parquet(path)
        return path

    first = [
        write("a", 0, [("x", 0, 1.0), ("y", 0, 3.0), ("x", 1, 2.0)]),
        write("a", 1, [("x", 0, 2.0), ("z", 0, 5.0)]),
    ]
    one = load_margins(first)
    assert one is not None
    assert one.set_index(["image_id", "epoch"])["margin"].to_dict() == {
        ("x", 0): 1.5,
        ("x", 1): 2.0,
        ("y", 0): 3.0,
        ("z", 0): 5.0,
    }
    write("a", 4, [("x", 0, 99.0)])  # a fold of before `--update`
    second = write("b", 0, [("x", 0, 100.0), ("y", 0, 300.0), ("x", 1, 100.0)])
    fold = np.array([0, 1, -1])
    assert find_margins(tmp_path, ["a", "b"], fold) == [*first, second]
    both = load_margins([*first, second])
    assert both is not None
    spreads = both.groupby("epoch")["margin"].std(ddof=0)
    assert spreads.iloc[0] == pytest.approx(spreads.iloc[1])
    few = load_margins(first, np.array(["z", "other"], dtype=object))
    assert few is not None and few["image_id"].tolist() == ["z"]
    assert load_margins(first, np.array(["other"], dtype=object)) is None  # one part alone is ever held out
    assert load_margins([]) is None
    assert load_margins([write("c", 0, [])]) is None


def test_what_is_said_of_the_evidence():
    issues = pd.DataFrame({"self_confidence": [0.5], "trajectory_score": [np.nan]})
    found = describe_evidence(issues, why_no_features="audit.embeddings is false", why_no_margins="all mixed")
    assert say_evidence(found) == (
        "Labels are judged by out-of-fold predictions; without knn_score, anomaly_score (audit.embeddings is false); "
        "trajectory_score (all mixed)"
    )
    head = issues.assign(knn_score=0.5, anomaly_score=0.5, trajectory_score=0.5)
    found = describe_evidence(head, features="a frozen network", why_no_margins="all mixed")
    assert found["missing"] == {}
    assert "neighbours and nearness by a frozen network" in say_evidence(found)
    assert "of a linear head on features, as that of the network has none: all mixed" in say_evidence(found)


def test_predictions_alone_say_what_they_lack(tmp_path: Path, capsys):
    _, predictions, _ = a_run(tmp_path / "run", 0)
    predictions.save(tmp_path / "main.oof.parquet")
    evidence = audit_predictions(tmp_path / "main.oof.parquet", tmp_path / "out")["evidence"]
    assert set(evidence["missing"]) == {"knn_score", "anomaly_score", "trajectory_score"}
    assert "without knn_score" in capsys.readouterr().err


def test_embeddings_are_the_default_and_leave_older_runs_as_they_are():
    assert Recipe().audit.embeddings and Recipe().resolved()["audit"] == {"duplicates": True, "labels": True}
    off = load_recipe("standard", ["audit.embeddings=false"])
    assert off.resolved()["audit"]["embeddings"] is False


def test_a_fine_tuned_run_looks_once_with_a_frozen_network(
    small_photos: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch
):
    looks = []
    features_of = frozen.features_of
    monkeypatch.setattr(frozen, "features_of", lambda *a: (looks.append(0), features_of(*a))[1])
    sets = ["audit.embeddings=true", "train.epochs=1"]
    for _ in range(2):  # the second time there is nothing to do
        run(small_photos, tmp_path, str(tiny_recipe), overrides=sets, workers=1, report=False)
    assert len(looks) == 1
    ids = Predictions.load(tmp_path / "predictions/main.oof.parquet").image_id
    values = load_embeddings(RunPlaces(tmp_path).audit.embeddings, ids)
    assert len(values) == 45 and values.std(0).max() > 0
    assert Predictions.load(tmp_path / "predictions/main.oof.parquet").embeddings is None
    issues = pd.read_parquet(tmp_path / "audit/label_issues.parquet")
    assert issues[["knn_score", "anomaly_score"]].notna().all().all() and issues["neighbours"].str.len().min() == 5
    np.testing.assert_allclose(issues["knn_score"], 14 / 20)  # all others of the colour are the nearest
    assert pq.read_table(RunPlaces(tmp_path).audit.embeddings).column_names == ["image_id", "embedding"]
    with pytest.raises(DataError, match="1 photographs have no embedding, first 'other'"):
        load_embeddings(RunPlaces(tmp_path).audit.embeddings, np.array(["other", ids[0]], dtype=object))
    before = digest_file(RunPlaces(tmp_path).audit.embeddings)
    run(
        small_photos,
        tmp_path,
        str(tiny_recipe),
        overrides=["audit.embeddings=false", "train.epochs=1"],
        workers=1,
        report=False,
        update=True,
    )
    assert digest_file(RunPlaces(tmp_path).audit.embeddings) == before and len(looks) == 1
    assert "knn_score" not in pd.read_parquet(tmp_path / "audit/label_issues.parquet")
    evidence = json.loads((tmp_path / "audit/audit.json").read_text(encoding="utf-8"))["evidence"]
    assert evidence["missing"]["knn_score"] == "audit.embeddings is false"
