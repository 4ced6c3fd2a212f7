"""Lookalikes: grouped by embeddings exactly as DBSCAN would, checked on pixels, told in the audit, kept in folds."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import DBSCAN

from manihot.audit import hashes, lookalikes
from manihot.audit.cleaning import clean
from manihot.audit.duplicates import find_duplicates
from manihot.audit.evidence import save_embeddings
from manihot.audit.hashes import SIDE, Thumbnails
from manihot.audit.lookalikes import COLUMNS, EPS, find_lookalikes, unit_embeddings, with_lookalikes
from manihot.audit.measurements import MEASUREMENTS
from manihot.audit.stages import audit_lookalikes, audit_predictions, save_table
from manihot.errors import DataError
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.run_folder import RunFolder
from manihot.records.run_places import RunPlaces
from manihot.report.audit_page import make_audit_page

N, DIMS = 40, 64
COPY, TURNED, FALSE = (0, 30), (1, 31), (2, 32)  # a copy, one that is mirrored, and two that only embed alike


def _embeddings(seed: int = 0) -> np.ndarray:
    """What all photographs share, three classes, their own, and three pairs that lie close."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(N, DIMS)) + 0.5 * rng.normal(size=(3, DIMS))[np.arange(N) % 3]
    for first, second in (COPY, TURNED, FALSE):
        own[second] = own[first] + 0.2 * rng.normal(size=DIMS)
    return (own + 20 * rng.normal(size=DIMS)).astype(np.float32)


def _manifest(**columns: object) -> Manifest:
    ids = [f"{k}.jpg" for k in range(N)]
    table = pd.DataFrame({"image_id": ids, "path": ids, "label": np.arange(N) % 3, "fold": np.arange(N) % 2})
    return Manifest.from_table(table.assign(**columns), ("a", "b", "c"), Path())


def _thumbnails() -> Thumbnails:
    rng = np.random.default_rng(0)
    pictures = np.stack(
        [
            cv2.resize(rng.integers(60, 200, (20, 20), dtype=np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
            for _ in range(N)
        ]
    )
    pictures[COPY[1]] = cv2.GaussianBlur(pictures[COPY[0]], (0, 0), 0.6)
    pictures[TURNED[1]] = pictures[TURNED[0]].T[::-1]
    ids = _manifest().image_id
    table = pd.DataFrame({"image_id": ids}).assign(**dict.fromkeys(MEASUREMENTS, 0.5))
    return Thumbnails(ids, pictures, hashes.pack_hashes(hashes.transform(pictures, 8)), table)


def _groups(found: pd.DataFrame) -> set[frozenset[str]]:
    return {frozenset(rows["image_id"]) for _, rows in found.groupby("group")}


def _names(*pairs: tuple[int, int]) -> set[frozenset[str]]:
    return {frozenset(f"{k}.jpg" for k in pair) for pair in pairs}


def test_groups_are_those_of_dbscan() -> None:
    rng = np.random.default_rng(1)
    vectors = _embeddings() + rng.normal(0, 0.01, (N, DIMS)).astype(np.float32)
    unit, shows = unit_embeddings(vectors)
    assert shows.all()
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    for eps in (0.3, EPS, 1.1, 1.25):
        found = find_lookalikes(_manifest(), vectors, eps=eps)
        label = DBSCAN(eps=eps, min_samples=1).fit_predict(unit)
        together = {frozenset(f"{k}.jpg" for k in np.flatnonzero(label == c)) for c in np.unique(label)}
        assert _groups(found) == {group for group in together if len(group) > 1}
        if len(found):
            row = found.iloc[0]
            first, nearest = (int(row[name].removesuffix(".jpg")) for name in ("image_id", "nearest"))
            assert row["distance"] == pytest.approx(np.linalg.norm(unit[first] - unit[nearest]), abs=1e-6)
    assert len(together - {g for g in together if len(g) == 1}) >= 1 and len(label) > label.max() + 1


def test_what_all_photographs_share_makes_no_lookalikes() -> None:
    found = find_lookalikes(_manifest(), _embeddings())
    assert list(found.columns) == list(COLUMNS) and _groups(found) == _names(COPY, TURNED, FALSE)
    assert set(found["evidence"]) == {"features"} and found["correlation"].isna().all()
    raw = _embeddings() / np.linalg.norm(_embeddings(), axis=1, keepdims=True)
    assert DBSCAN(eps=EPS, min_samples=1).fit_predict(raw).max() == 0, "not centred, all would be one group"


def test_pixels_confirm_and_groups_that_stand_there_are_known() -> None:
    found = find_lookalikes(_manifest(), _embeddings(), _thumbnails()).set_index("image_id")
    evidence = {pair: set(found.loc[[f"{k}.jpg" for k in pair], "evidence"]) for pair in (COPY, TURNED, FALSE)}
    assert evidence == {COPY: {"pixels"}, TURNED: {"pixels"}, FALSE: {"features"}}
    assert found.loc["2.jpg", "correlation"] < 0.5 < 0.9 < found.loc["0.jpg", "correlation"]
    beyond = find_lookalikes(_manifest(), _embeddings(), _thumbnails(), eps=0.05)
    assert _groups(beyond) == _names(COPY, TURNED), "beyond eps only what pixels confirm joins"
    group = np.where(np.isin(np.arange(N), COPY), "dup-0", "")
    found = find_lookalikes(_manifest(group=group), _embeddings(), _thumbnails()).set_index("image_id")
    assert set(found.loc[["0.jpg", "30.jpg"], "evidence"]) == {"known"}
    assert np.isnan(found.loc["0.jpg", "correlation"])


def test_conflicts_and_torn_folds_are_told() -> None:
    fold = np.zeros(N, int)
    fold[TURNED[1]] = 1
    label = np.zeros(N, int)
    label[FALSE[1]] = 2
    found = find_lookalikes(_manifest(fold=fold, label=label), _embeddings()).set_index("image_id")
    assert found["crosses_folds"].to_dict() == {i: i in ("1.jpg", "31.jpg") for i in found.index}
    assert found["label_conflict"].to_dict() == {i: i in ("2.jpg", "32.jpg") for i in found.index}


def test_only_as_many_pairs_as_photographs_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(lookalikes, "LEAST_CHECKS", 2)
    monkeypatch.setattr(lookalikes, "check_pairs", lambda _, rows, i, j: asked.append(len(i)) or np.zeros(len(i)))
    find_lookalikes(_manifest(), _embeddings(), _thumbnails(), eps=2.0)
    assert asked == [N]


def test_embeddings_that_say_nothing_or_do_not_fit() -> None:
    assert not len(find_lookalikes(_manifest(), np.ones((N, 8), np.float32)))
    assert not len(find_lookalikes(_manifest().take(np.arange(0)), np.ones((0, 8), np.float32)))
    with pytest.raises(DataError, match="don't fit"):
        find_lookalikes(_manifest(), _embeddings()[1:])
    with pytest.raises(DataError, match="not 2"):
        find_lookalikes(_manifest(), _embeddings()[:, 0])
    bad = _embeddings()
    bad[3, 5] = np.nan
    with pytest.raises(DataError, match="first row 3"):
        find_lookalikes(_manifest(), bad)


def test_confirmed_lookalikes_stay_in_one_fold_of_the_next_run() -> None:
    found = find_lookalikes(_manifest(), _embeddings(), _thumbnails())
    group = np.where(np.arange(N) < 2, "plant", "")
    joined = with_lookalikes(_manifest(group=group), found).table.set_index("image_id")["group"]
    assert joined["0.jpg"] == joined["30.jpg"] == joined["31.jpg"] == "plant"
    assert joined["2.jpg"] == joined["32.jpg"] == "", "what only the features say ties nothing"
    some = _manifest().take(np.arange(5))
    assert len(with_lookalikes(some, found)) == 5


def _predictions(manifest: Manifest) -> Predictions:
    probs = np.full((N, 3), 0.05) + 0.85 * np.eye(3)[manifest.labels]
    probs[5] = [0.05, 0.9, 0.05]
    return Predictions.from_probs(
        manifest.image_id, probs, manifest.classes, manifest.labels, manifest.fold, embeddings=_embeddings()
    )


@pytest.mark.parametrize("where", ["predictions", "file", "nowhere"])
def test_a_run_tells_its_lookalikes(tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    run, manifest = tmp_path / "run", _manifest()
    oof = _predictions(manifest)
    with RunFolder(run) as folder:
        for name in ("manifest", "folds"):
            manifest.save(folder / f"{name}.parquet")
        _thumbnails().save(folder / "audit/thumbnails")
        nothing = find_duplicates(manifest.with_columns(sha256=[f"{k}" for k in range(len(manifest))]))
        save_table(nothing, run, "duplicates")
        save_table(pd.DataFrame({"image_id": manifest.image_id}), run, "composition")
        if where == "file":
            save_embeddings(RunPlaces(run).audit.embeddings, manifest.image_id[::-1], _embeddings()[::-1])
        if where != "predictions":
            oof = Predictions(oof.image_id, oof.logits, oof.classes, oof.labels, oof.fold)
        oof.save(run / "predictions/main.oof.parquet")
        embeddings = RunPlaces(run).audit.embeddings if where == "file" else None
        audit_lookalikes(folder, manifest, "main", embeddings)
    said = " ".join(capsys.readouterr().err.split())
    if where == "nowhere":
        assert not (run / "audit/lookalikes.parquet").exists() and "Lookalikes" not in said
        return
    assert "2 new and confirmed by the pictures, 1 found by the features alone" in said
    found = pd.read_csv(run / "audit/lookalikes.csv")
    assert _groups(found) == _names(COPY, TURNED, FALSE)
    with RunFolder(run) as folder:
        audit_lookalikes(folder, manifest, "main", embeddings)
        assert "Lookalikes" not in capsys.readouterr().err, "a finished part is not done again"
    clean(run, tmp_path / "cleaned", ["flagged=keep"], predictions=run / "predictions/main.oof.parquet")
    group = Manifest.load(tmp_path / "cleaned/manifest.parquet").table.set_index("image_id")["group"]
    assert group["0.jpg"] == group["30.jpg"] != "" and group["2.jpg"] == group["32.jpg"] == ""


def test_predictions_alone_tell_lookalikes_and_that_nothing_checked_them(tmp_path: Path) -> None:
    _predictions(_manifest()).save(tmp_path / "oof.parquet")
    summary = audit_predictions(tmp_path / "oof.parquet", tmp_path / "out")
    assert summary["lookalikes"]["features_groups"] == 3 and summary["lookalikes"]["confirmed_groups"] == 0
    assert json.loads((tmp_path / "out/audit/audit.json").read_text(encoding="utf-8")) == summary
    assert _groups(pd.read_csv(tmp_path / "out/audit/lookalikes.csv")) == _names(COPY, TURNED, FALSE)
    page = make_audit_page(tmp_path / "out").read_text(encoding="utf-8")
    assert 'id="lookalikes"' in page and "30.jpg" in page
    assert "Without the photographs their pixels can't be compared" in page


def test_lookalikes_are_counted() -> None:
    label, fold = np.zeros(N, int), np.arange(N) == TURNED[1]
    label[FALSE[1]] = 2
    found = find_lookalikes(_manifest(label=label, fold=fold.astype(int)), _embeddings(), _thumbnails())
    counts = lookalikes.count_lookalikes(found)
    assert counts == {
        "groups": 3,
        "photographs": 6,
        "confirmed_groups": 2,
        "features_groups": 1,
        "conflicting_groups": 1,
        "groups_across_folds": 1,
    }
    none = lookalikes.count_lookalikes(pd.DataFrame(columns=list(COLUMNS)))
    assert not any(none.values()) and lookalikes.describe_lookalikes(none).startswith("no photographs")
