"""From findings to a new manifest, and the audit of predictions alone: files in, files out, nothing overwritten."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manihot.audit.cleaning import clean
from manihot.audit.stages import audit_labels, audit_predictions, group_duplicates
from manihot.errors import DataError, RunFolderError, SettingsError
from manihot.records.files import digest_file
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.run_folder import RunFolder

CLASSES = ("healthy", "mosaic", "rust")
WRONG = np.arange(5)  # photographs whose given label is wrong


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as training leaves it, audited: 90 photographs, five wrong labels, one copy with another label."""
    import cv2

    run = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    true = np.arange(90) % 3
    given = true.copy()
    given[WRONG] = (true[WRONG] + 1) % 3
    for i in range(90):
        picture = cv2.resize(
            rng.integers(0, 255, (24, 32, 3), dtype=np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC
        )
        cv2.imwrite(str(run / f"{i:02d}.png"), picture)
    (run / "89.png").write_bytes((run / "87.png").read_bytes())  # classes 0 and 2
    names = [f"{i:02d}.png" for i in range(90)]
    table = pd.DataFrame(
        {
            "image_id": names,
            "path": names,
            "label": given,
            "source": np.where(np.arange(90) < 45, "a", "b"),
            "sha256": [digest_file(run / name) for name in names],
            "height": 240,
            "width": 320,
        }
    )
    manifest = Manifest.from_table(table, CLASSES, run)
    with RunFolder(run) as folder:
        manifest = group_duplicates(folder, manifest, workers=1)
        manifest = manifest.with_columns(fold=np.arange(90) // 3 % 3)
        manifest.save(run / "manifest.parquet")
        manifest.save(run / "folds.parquet")
        probs = np.full((90, 3), 0.03) + rng.random((90, 3)) * 0.02
        probs[np.arange(90), true] = 0.9
        oof = Predictions.from_probs(
            manifest.image_id, probs / probs.sum(1, keepdims=True), CLASSES, given, manifest.fold
        )
        oof.save(run / "predictions/main.oof.parquet")
        audit_labels(folder, manifest, "main")
    return run


def test_the_audit_leaves_its_tables(audited: Path):
    issues = pd.read_csv(audited / "audit/label_issues.csv")
    flagged = issues.loc[issues["is_label_issue"], "image_id"]
    assert set(flagged) == {f"{i:02d}.png" for i in WRONG}
    assert issues["image_id"].tolist()[:5] == flagged.tolist()  # worst first
    duplicates = pd.read_csv(audited / "audit/duplicates.csv")
    assert set(duplicates["image_id"]) == {"87.png", "89.png"} and duplicates["label_conflict"].all()
    summary = json.loads((audited / "audit/audit.json").read_text(encoding="utf-8"))
    assert summary["label_issues"] == 5 and summary["conflicting_groups"] == 1 and summary["kinds"] == {"exact": 2}
    assert sum(pair["count"] for pair in summary["class_pairs"]) == 5
    for name in ("composition", "drift", "priors", "goes_with_errors", "classes"):
        assert (audited / f"audit/{name}.parquet").is_file(), name
    grouped = Manifest.load(audited / "folds.parquet").table.set_index("image_id")["group"]
    assert grouped["87.png"] == grouped["89.png"] != ""


def test_the_default_rules(audited: Path, tmp_path: Path):
    before = digest_file(audited / "manifest.parquet")
    counts = clean(audited, tmp_path / "c")
    assert digest_file(audited / "manifest.parquet") == before
    cleaned = Manifest.load(tmp_path / "c/manifest.parquet")
    decisions = pd.read_csv(tmp_path / "c/decisions.csv").set_index("image_id")
    assert (decisions.loc[[f"{i:02d}.png" for i in WRONG], "action"] == "drop").all()
    assert decisions.loc["87.png", "action"] == "soft" and decisions.loc["87.png", "reason"]
    assert len(cleaned) == 85 and counts["dropped"].sum() == 5
    assert len(pd.read_csv(tmp_path / "c/dropped.csv")) == 5
    at = cleaned.image_id.tolist().index("87.png")
    issues = pd.read_csv(audited / "audit/label_issues.csv").set_index("image_id")
    pair = issues.loc[["87.png", "89.png"]].sort_values("given_label")
    assert pair["given_label"].tolist() == ["healthy", "rust"]
    first, last = pair["label_score"] / pair["label_score"].sum()
    assert cleaned.soft_labels is not None
    np.testing.assert_allclose(cleaned.soft_labels[at], [first, 0, last], atol=1e-6)
    assert (cleaned.table["path"].map(lambda name: (cleaned.root / name).is_file())).all()


def test_rules_a_hand_made_file_and_predictions_of_another_model(audited: Path, tmp_path: Path):
    clean(audited, tmp_path / "r", ["confident=relabel"], n=2, classes=["mosaic"])
    relabelled = Manifest.load(tmp_path / "r/manifest.parquet").table
    changed = relabelled[relabelled["label"] != relabelled["original_label"]]
    assert len(changed) == 2 and (changed["original_label"] == 1).all()
    own = tmp_path / "own.csv"
    own.write_text("image_id,action,new_label\n10.png,relabel,rust\n11.png,drop,\n", encoding="utf-8")
    clean(audited, tmp_path / "h", decisions=own)
    table = Manifest.load(tmp_path / "h/manifest.parquet").table.set_index("image_id")
    assert table.loc["10.png", "label"] == 2 and "11.png" not in table.index
    oof = Predictions.load(audited / "predictions/main.oof.parquet")
    Predictions.from_probs(oof.image_id, oof.pred_probs, CLASSES, oof.labels).save(tmp_path / "other.parquet")
    clean(audited / "manifest.parquet", tmp_path / "p", ["flagged=drop"], predictions=tmp_path / "other.parquet")
    assert len(Manifest.load(tmp_path / "p/manifest.parquet")) == 85


def test_mistakes_are_named_and_nothing_is_written(audited: Path, tmp_path: Path):
    with pytest.raises(SettingsError, match="RULE=ACTION"):
        clean(audited, tmp_path / "x", ["flagged"])
    with pytest.raises(SettingsError, match="no rule"):
        clean(audited, tmp_path / "x", ["flaged=drop"])
    with pytest.raises(SettingsError, match="no class"):
        clean(audited, tmp_path / "x", ["flagged=drop"], classes=["helthy"])
    with pytest.raises(DataError, match="another folder"):
        clean(audited, audited, ["flagged=drop"])
    with pytest.raises(DataError, match="no manifest"):
        clean(tmp_path, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_what_others_wrote_is_never_written_over(audited: Path, tmp_path: Path):
    with RunFolder(tmp_path / "other") as folder:
        folder.update_record(seed=0)
    for name, content in (("other", {"run.json"}), ("scanned", {"manifest.parquet"}), ("mine", {"decisions.csv"})):
        (tmp_path / name).mkdir(exist_ok=True)
        if "manifest.parquet" in content or name == "other":
            Manifest.load(audited / "manifest.parquet").save(tmp_path / name / "manifest.parquet")
        if name == "mine":
            (tmp_path / name / "decisions.csv").write_text("image_id,action\n", encoding="utf-8")
        before = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        with pytest.raises(RunFolderError, match="contains") as caught:
            clean(audited, tmp_path / name, update=True)
        assert "--out" in caught.value.remedy
        assert {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} == before


def test_the_same_call_again_leaves_the_same_files(audited: Path, tmp_path: Path):
    """As after a kill in its last moments."""
    clean(audited, tmp_path / "c")
    first = {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir() if path.is_file()}
    clean(audited, tmp_path / "c")
    assert {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir() if path.is_file()} == first


def test_decisions_edited_by_hand_are_kept(audited: Path, tmp_path: Path):
    out, edited = tmp_path / "c", tmp_path / "c/decisions.csv"
    clean(audited, out)
    clean(audited, out, ["flagged=relabel"])  # nobody touched it in between
    table = pd.read_csv(edited, dtype=str, keep_default_na=False)
    table.loc[0, "action"], table["remark"] = "keep", "seen in the field"
    table.to_csv(edited, index=False)
    before = edited.read_bytes()
    with pytest.raises(RunFolderError, match="was changed") as caught:
        clean(audited, out)
    assert edited.read_bytes() == before
    assert f"--decisions {edited}" in caught.value.remedy and "--update" in caught.value.remedy
    clean(audited, out, decisions=edited)
    kept = pd.read_csv(edited, dtype=str)
    assert kept.loc[0, "action"] == "keep" and (kept["remark"] == "seen in the field").all()
    clean(audited, out, decisions=edited)  # follows itself, and is known now
    clean(audited, out)
    edited.write_bytes(before)
    clean(audited, out, update=True)
    assert "remark" not in pd.read_csv(edited)


def test_options_that_nothing_would_follow_are_refused(audited: Path, tmp_path: Path):
    own = tmp_path / "own.csv"
    own.write_text("image_id,action\n10.png,drop\n", encoding="utf-8")
    idle: list[tuple[dict, str]] = [
        ({"n": 2}, "--n"),
        ({"classes": ["healthy"]}, "--only"),
        ({"predictions": tmp_path / "no"}, "--predictions"),
        ({"threshold": 0.9}, "--threshold"),
        ({"weight": 0.5}, "--weight"),
        ({"rules": ["flagged=drop"]}, "--rule"),
    ]
    for settings, name in idle:
        with pytest.raises(SettingsError, match=name):
            clean(audited, tmp_path / "x", decisions=own, **settings)
    with pytest.raises(SettingsError, match="not a probability"):
        clean(audited, tmp_path / "x", ["confident=drop"], threshold=5)
    with pytest.raises(SettingsError, match="only to the rule 'confident'"):
        clean(audited, tmp_path / "x", threshold=0.5)
    with pytest.raises(SettingsError, match="only to the action down_weight"):
        clean(audited, tmp_path / "x", weight=0.25)
    assert not (tmp_path / "x").exists()
    clean(audited, tmp_path / "x", decisions=own, classes=[])


def test_a_bare_file_of_decisions_says_by_whom_and_what_was_given(audited: Path, tmp_path: Path):
    own = tmp_path / "own.csv"
    own.write_text("image_id,action,new_label,reason\n10.png,relabel,rust,\n11.png,drop,,blurred\n", encoding="utf-8")
    clean(audited, tmp_path / "h", decisions=own)
    table = pd.read_csv(tmp_path / "h/decisions.csv", dtype=str, keep_default_na=False)
    assert table["given_label"].tolist() == ["mosaic", "rust"]
    assert table["reason"].tolist() == ["decided by hand in own.csv", "blurred"]
    cleaned = Manifest.load(tmp_path / "h/manifest.parquet").table.set_index("image_id")
    assert cleaned.loc["10.png", "reason"] == "decided by hand in own.csv"


def test_a_cleaned_manifest_is_cleaned_again_with_predictions_and_says_so_without(audited: Path, tmp_path: Path):
    clean(audited, tmp_path / "one", ["flagged=drop"])
    cleaned = tmp_path / "one/manifest.parquet"
    with pytest.raises(DataError, match="was not audited") as caught:
        clean(cleaned, tmp_path / "two", ["flagged=drop"])
    assert f"manihot run {cleaned}" in caught.value.remedy and "--predictions" in caught.value.remedy
    oof = audited / "predictions/main.oof.parquet"
    with pytest.raises(DataError, match="duplicates") as caught:
        clean(cleaned, tmp_path / "two", predictions=oof)
    assert "--rule flagged=drop" in caught.value.remedy
    clean(cleaned, tmp_path / "two", ["worst=down_weight"], n=3, predictions=oof)
    table = Manifest.load(tmp_path / "two/manifest.parquet").table
    assert len(table) == 85 and (table["weight"] < 1).sum() == 3


def test_predictions_alone_are_audited_without_torch(audited: Path, tmp_path: Path):
    oof = Predictions.load(audited / "predictions/main.oof.parquet")
    table = pd.DataFrame({"image_id": oof.image_id, "label": oof.labels})
    for k in range(3):
        table[f"c{k}"] = oof.pred_probs[:, k]
    table.to_csv(tmp_path / "oof.csv", index=False)
    assert audit_predictions(tmp_path / "oof.csv", tmp_path / "a")["label_issues"] == 5
    code = (
        "import sys; sys.argv = ['manihot', 'audit', '--predictions', sys.argv[1], '--out', sys.argv[2]]\n"
        "from manihot.cli import main\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert not e.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "oof.csv", tmp_path / "b"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "5 of 90 labels look wrong" in done.stdout
    assert (tmp_path / "b/audit/label_issues.csv").is_file()


def write_oof(audited: Path, path: Path) -> pd.DataFrame:
    oof = Predictions.load(audited / "predictions/main.oof.parquet")
    columns = {f"c{k}": values for k, values in enumerate(oof.pred_probs.T)}
    table = pd.DataFrame({"image_id": oof.image_id, "label": oof.labels, **columns})
    table.to_csv(path, index=False)
    return table


def test_predictions_alone_may_name_their_classes(audited: Path, tmp_path: Path):
    table = write_oof(audited, tmp_path / "oof.csv")
    names = tmp_path / "names.json"
    names.write_text('{"0": "healthy", "1": "mosaic", "2": "rust"}', encoding="utf-8")
    audit_predictions(tmp_path / "oof.csv", tmp_path / "a", names)
    issues = pd.read_csv(tmp_path / "a/audit/label_issues.csv")
    assert set(issues["given_label"]) == set(CLASSES)
    named = table.rename(columns={f"c{k}": name for k, name in enumerate(CLASSES)})
    named.assign(label=np.array(CLASSES)[table["label"]]).to_csv(tmp_path / "named.csv", index=False)
    audit_predictions(tmp_path / "named.csv", tmp_path / "b")
    assert issues.equals(pd.read_csv(tmp_path / "b/audit/label_issues.csv"))
    for text, words in (('["healthy", "rust"]', "classes"), ('{"1": "a", "2": "b", "3": "c"}', "not 0 to 2")):
        names.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=words):
            audit_predictions(tmp_path / "oof.csv", tmp_path / "x", names)
    pd.concat([table, table.head(2)]).to_csv(tmp_path / "twice.csv", index=False)
    with pytest.raises(DataError, match=r"2 photographs are predicted more than once, first '00\.png'"):
        audit_predictions(tmp_path / "twice.csv", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_an_audit_of_predictions_refuses_what_it_would_ignore(audited: Path, tmp_path: Path):
    from manihot.cli import app

    write_oof(audited, tmp_path / "oof.csv")
    words = ["audit", "--predictions", str(tmp_path / "oof.csv"), "--out", str(tmp_path / "x")]
    for more in (["--what-if"], ["--trusted", "foo"], ["--recipe", "nosuch"], ["--label", "y"], ["--workers", "4"]):
        with pytest.raises(SettingsError, match=more[0]):
            app([*words, *more], exit_on_error=False, result_action="return_value")
    assert not (tmp_path / "x").exists()
