"""Rules pick whom they say; decisions change a copy of the manifest and nothing else; files name their mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manihot.audit.decision_files import read_decisions
from manihot.audit.decisions import ACTIONS, RULES, SOFT, apply_decisions, compare_manifests, decide, merge_decisions
from manihot.errors import DataError, SettingsError
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions

CLASSES = ("blight", "mosaic, green", "Healthy")
IDS = [f"{i}.jpg" for i in range(8)]


def make_manifest() -> Manifest:
    table = pd.DataFrame({"image_id": IDS, "label": [0, 0, 1, 1, 2, 2, 2, -1], "weight": [1, 2, 1, 1, 1, 1, 1, 1]})
    return Manifest.from_table(table, CLASSES, Path("photos"))


def make_issues() -> pd.DataFrame:
    """Photographs 0 to 6, worst first: 4, 0, 2, 5, 6, 1, 3."""
    return pd.DataFrame(
        {
            "image_id": ["4.jpg", "0.jpg", "2.jpg", "5.jpg", "6.jpg", "1.jpg", "3.jpg"],
            "given_label": ["Healthy", "blight", "mosaic, green", "Healthy", "Healthy", "blight", "mosaic, green"],
            "suggested_label": ["blight", "Healthy", "blight", "blight", "Healthy", "blight", "mosaic, green"],
            "label_score": [0.01, 0.05, 0.2, 0.3, 0.6, 0.8, 0.9],
            "is_label_issue": [True, True, True, False, False, False, False],
            "cleanlab_issue": [True, False, False, True, False, False, False],
            "predicted_label": ["blight", "Healthy", "blight", "blight", "Healthy", "blight", "mosaic, green"],
            "predicted_probability": [0.97, 0.92, 0.9, 0.6, 0.99, 0.95, 0.99],
        }
    )


def make_duplicates() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": ["0.jpg", "1.jpg", "2.jpg", "5.jpg", "6.jpg"],
            "group": ["a", "a", "b", "b", "b"],
            "kind": "near",
            "label": ["blight", "blight", "mosaic, green", "Healthy", "Healthy"],
            "label_conflict": [False, False, True, True, True],
        }
    )


def probs() -> Predictions:
    p = np.array([[0.1, 0.3, 0.6]] * 8)
    p[4] = [0.8, 0.1, 0.1]
    return Predictions.from_probs(np.array(IDS, dtype=object), p, CLASSES)


def picked(table: pd.DataFrame, action: str = "drop") -> list[str]:
    return table.loc[table["action"] == action, "image_id"].tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rule": "confident"}, ["4.jpg", "0.jpg"]),  # 0.9 itself is not above .9
        ({"rule": "confident", "threshold": 0.5}, ["4.jpg", "0.jpg", "2.jpg", "5.jpg"]),
        ({"rule": "worst", "n": 3}, ["4.jpg", "0.jpg", "2.jpg"]),
        ({"rule": "worst", "n": 2, "classes": ["Healthy"]}, ["4.jpg", "5.jpg"]),
        ({"rule": "flagged"}, ["4.jpg", "0.jpg", "2.jpg"]),
        ({"rule": "flagged", "n": 1}, ["4.jpg"]),
        ({"rule": "cleanlab"}, ["4.jpg", "5.jpg"]),
        ({"rule": "duplicates"}, ["0.jpg", "2.jpg", "5.jpg"]),  # 1 and 6 have the better scores
        ({"rule": "conflicts"}, ["2.jpg", "5.jpg", "6.jpg"]),
        ({"rule": "conflicts", "classes": ["Healthy"]}, ["5.jpg", "6.jpg"]),
    ],
)
def test_rules_pick_whom_they_say(settings: dict, expected: list[str]) -> None:
    shuffled = make_issues().sample(frac=1, random_state=1)
    table = decide(shuffled, make_duplicates(), **settings)
    assert picked(table) == expected
    assert (table["reason"].str.len() > 10).all()
    assert not table["image_id"].duplicated().any()


def test_relabelling_follows_the_prediction_or_the_suggestion() -> None:
    table = decide(make_issues(), rule="confident", action="relabel")
    assert table[["image_id", "new_label"]].to_numpy().tolist() == [["4.jpg", "blight"], ["0.jpg", "Healthy"]]
    table = decide(make_issues(), rule="worst", n=5, action="relabel")
    assert picked(table, "keep") == ["6.jpg"]  # its suggestion is what it has


def test_soft_labels_spread_what_the_score_takes_away() -> None:
    table = decide(make_issues(), rule="worst", n=2, action="soft", predictions=probs())
    soft = table[[SOFT + name for name in CLASSES]].to_numpy()
    np.testing.assert_allclose(soft[0], [0.99 * 0.8 / 0.9, 0.99 * 0.1 / 0.9, 0.01], atol=1e-6)
    np.testing.assert_allclose(soft[1], [0.05, 0.95 * 0.3 / 0.9, 0.95 * 0.6 / 0.9], atol=1e-6)
    plain = decide(make_issues(), rule="worst", n=2, action="soft")
    manifest, _ = apply_decisions(make_manifest(), plain)
    assert manifest.soft_labels is not None
    np.testing.assert_allclose(manifest.soft_labels[4], [0.99, 0, 0.01], atol=1e-6)
    np.testing.assert_allclose(manifest.soft_labels[0], [0.05, 0, 0.95], atol=1e-6)
    assert np.isnan(manifest.soft_labels[[1, 2, 3, 5, 6, 7]]).all()


def test_conflicting_copies_get_their_shares_their_majority_or_less_weight() -> None:
    soft = decide(None, make_duplicates(), rule="conflicts", action="soft")
    np.testing.assert_allclose(soft[[SOFT + "mosaic, green", SOFT + "Healthy"]], [[1 / 3, 2 / 3]] * 3)
    weighed = decide(make_issues(), make_duplicates(), rule="conflicts", action="soft")
    np.testing.assert_allclose(weighed[[SOFT + "mosaic, green", SOFT + "Healthy"]], [[2 / 11, 9 / 11]] * 3)
    for score in (0.0, np.nan):  # 0 for all copies, unknown for some
        issues = make_issues()
        issues.loc[issues["given_label"] == "Healthy" if np.isnan(score) else issues.index, "label_score"] = score
        soft = decide(issues, make_duplicates(), rule="conflicts", action="soft")
        np.testing.assert_allclose(soft[[SOFT + "mosaic, green", SOFT + "Healthy"]], [[1 / 3, 2 / 3]] * 3)
        assert soft["reason"].tolist() == ["copies in duplicate group b are labelled Healthy, mosaic, green"] * 3
    major = decide(None, make_duplicates(), rule="conflicts", action="relabel")
    assert major[["image_id", "action", "new_label"]].to_numpy().tolist() == [
        ["2.jpg", "relabel", "Healthy"],
        ["5.jpg", "keep", ""],
        ["6.jpg", "keep", ""],
    ]
    tie = decide(None, make_duplicates().drop(index=4), rule="conflicts", action="relabel")
    assert (tie["action"] == "keep").all() and tie["reason"].str.contains("no label has the majority").all()
    light = decide(None, make_duplicates(), rule="conflicts", action="down_weight", weight=0.25)
    assert (light["weight"] == 0.25).all()


def test_one_photograph_of_each_group_stays_even_without_scores() -> None:
    table = decide(None, make_duplicates(), rule="duplicates")
    assert picked(table, "keep") == ["0.jpg", "2.jpg"]
    manifest, dropped = apply_decisions(make_manifest(), table)
    assert set(dropped["image_id"]) == {"1.jpg", "5.jpg", "6.jpg"}
    assert len(manifest) + len(dropped) == len(make_manifest())


def test_a_tiny_score_is_not_called_0() -> None:
    issues = make_issues().assign(label_score=[1e-5, 0.0, 0.2, 0.3, 0.6, 0.8, 0.9])
    said = decide(issues, rule="worst", n=3, action="drop")["reason"].str.removesuffix(", among the 3 worst")
    assert sorted(said) == ["label score 0.000", "label score 0.200", "label score below 0.001"]


def test_applying_changes_a_copy_and_says_what_it_did() -> None:
    manifest, issues = make_manifest(), make_issues()
    before, before_issues = manifest.table.copy(), issues.copy()
    decisions = merge_decisions(
        decide(issues, rule="confident", action="relabel"),
        decide(issues, rule="worst", n=3, action="drop"),
        decide(issues, rule="worst", n=4, action="down_weight", weight=0.5),
        decide(issues, rule="flagged", action="soft"),
    )
    cleaned, dropped = apply_decisions(manifest, decisions)
    pd.testing.assert_frame_equal(manifest.table, before)
    pd.testing.assert_frame_equal(issues, before_issues)
    assert dropped["image_id"].tolist() == ["2.jpg"]
    assert dropped["reason"].tolist() == ["label score 0.200, among the 3 worst"]
    table = cleaned.table.set_index("image_id")
    assert table.loc["4.jpg", ["label", "original_label", "decision"]].tolist() == [0, 2, "relabel"]
    assert table.loc["0.jpg", ["label", "original_label"]].tolist() == [2, 0]
    assert table.loc["5.jpg", "weight"] == 0.5 and table.loc["5.jpg", "decision"] == "down_weight"
    assert table.loc["1.jpg", "decision"] == "" and table.loc["1.jpg", "weight"] == 2
    assert "predicted blight with 0.970" in table.loc["4.jpg", "reason"]
    again, _ = apply_decisions(cleaned, decide(issues, rule="worst", n=1, action="relabel"))
    assert again.table.set_index("image_id").loc["4.jpg", "original_label"] == 2


def test_a_relabelled_photograph_loses_its_soft_label_and_others_keep_theirs(tmp_path: Path) -> None:
    soft = np.full((8, 3), 1 / 3, dtype=np.float32)
    manifest = Manifest(make_manifest().table, CLASSES, Path("photos"), soft)
    cleaned, _ = apply_decisions(manifest, decide(make_issues(), rule="worst", n=1, action="relabel"))
    assert cleaned.soft_labels is not None and np.isnan(cleaned.soft_labels[4]).all()
    assert np.isfinite(cleaned.soft_labels[[0, 1, 2, 3, 5, 6, 7]]).all()
    assert np.isfinite(soft).all()
    cleaned.save(tmp_path / "clean.parquet")
    back = Manifest.load(tmp_path / "clean.parquet")
    assert back.table["original_label"].tolist() == manifest.labels.tolist()
    assert back.table["decision"].tolist()[4] == "relabel"


def test_before_and_after_are_counted_class_by_class() -> None:
    manifest, issues = make_manifest(), make_issues()
    decisions = merge_decisions(
        decide(issues, rule="confident", action="relabel"),
        decide(issues, rule="worst", n=3),
        decide(issues, rule="worst", n=4, action="down_weight"),
    )
    cleaned, _ = apply_decisions(manifest, decisions)
    table = compare_manifests(manifest, cleaned).set_index("class")
    assert table.loc["blight"].tolist() == [2, 2, 0, 1, 1, 0, 0]
    assert table.loc["mosaic, green"].tolist() == [2, 1, 1, 0, 0, 0, 0]
    assert table.loc["Healthy"].tolist() == [3, 3, 0, 1, 1, 0, 1]
    assert (table["before"] - table["dropped"] - table["relabelled_away"] + table["relabelled_to"]).equals(
        table["after"]
    )


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_decisions_come_back_as_they_were(tmp_path: Path, suffix: str) -> None:
    decisions = merge_decisions(
        decide(make_issues(), rule="worst", n=1, action="soft", predictions=probs()),
        decide(make_issues(), rule="confident", action="relabel"),
        decide(make_issues(), make_duplicates(), rule="duplicates"),
        decide(make_issues(), rule="cleanlab", action="down_weight", weight=0.3),
    )
    path = tmp_path / f"decisions.{suffix}"
    if suffix == "parquet":
        decisions.to_parquet(path, index=False)
    else:
        decisions.to_csv(path, index=False)
    back = read_decisions(path, make_manifest())
    pd.testing.assert_frame_equal(back[decisions.columns[:6]], decisions[decisions.columns[:6]], check_dtype=False)
    for one, other in zip(apply_decisions(make_manifest(), decisions), apply_decisions(make_manifest(), back)):
        a, b = (x.table if isinstance(x, Manifest) else x for x in (one, other))
        pd.testing.assert_frame_equal(a, b)


def test_a_short_file_written_by_hand_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text('\ufeffaction,image_id,new_label\ndrop ,0.jpg,\nrelabel,2.jpg,"Healthy"\n', encoding="utf-8")
    cleaned, dropped = apply_decisions(make_manifest(), read_decisions(path, make_manifest()))
    assert dropped["image_id"].tolist() == ["0.jpg"]
    assert cleaned.table.set_index("image_id").loc["2.jpg", "label"] == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image_id,weight\n1.jpg,1\n", ["line 1", "no column action"]),
        ("image_id,action\n1.jpg,drop\n2.jpg,delete\n", ["line 3", "column action", "'delete'", "drop, relabel"]),
        ("image_id,action\n1.jpg,drop\n1.jpg,keep\n", ["line 3", "column image_id", "decided already"]),
        ("image_id,action\n,drop\n", ["line 2", "column image_id", "empty"]),
        ("image_id,action\n99.jpg,drop\n", ["line 2", "column image_id", "'99.jpg'", "not in the manifest"]),
        ("image_id,action,new_label\n1.jpg,relabel,\n", ["line 2", "column new_label", "empty"]),
        ("image_id,action,new_label\n1.jpg,relabel,rust\n", ["line 2", "column new_label", "'rust'", "Healthy"]),
        ("image_id,action,weight\n1.jpg,down_weight,\n", ["line 2", "column weight", "empty"]),
        ("image_id,action,weight\n1.jpg,down_weight,half\n", ["line 2", "column weight", "'half'"]),
        ("image_id,action,weight\n1.jpg,down_weight,1.5\n", ["line 2", "column weight", "0 to 1"]),
        ("image_id,action\n1.jpg,soft\n", ["line 2", "soft_<class>"]),
        ("image_id,action,soft_blight\n1.jpg,soft,0.4\n", ["line 2", "soft_blight", "not a distribution"]),
        ("image_id,action,soft_rust\n1.jpg,soft,1\n", ["'soft_rust' is not a class", "Healthy"]),
    ],
)
def test_mistakes_in_a_file_are_named_with_line_column_and_remedy(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_decisions(path, make_manifest())
    for word in ["mine.csv", *words]:
        assert word in str(caught.value)
    assert caught.value.remedy


def test_rules_that_make_no_sense_are_refused() -> None:
    issues = make_issues()
    for settings, words in (
        ({"rule": "magic"}, "no rule 'magic'"),
        ({"action": "burn"}, "no action 'burn'"),
        ({"rule": "worst"}, "how many"),
        ({"rule": "worst", "n": -1}, "n=-1"),
        ({"weight": 2.0}, "weight of 2.0"),
        ({"rule": "duplicates", "action": "relabel"}, "can't relabel"),
    ):
        with pytest.raises(SettingsError, match=words):
            decide(issues, make_duplicates(), **settings)
    with pytest.raises(DataError, match="needs the table of duplicates"):
        decide(issues, rule="conflicts")
    with pytest.raises(DataError, match="predicted_label"):
        decide(issues.drop(columns="predicted_label"), rule="confident")
    assert set(RULES) == {"confident", "worst", "one_class", "flagged", "cleanlab", "duplicates", "conflicts"}


def test_decisions_that_dont_fit_the_manifest_are_refused() -> None:
    manifest = make_manifest()
    one = decide(make_issues(), rule="worst", n=1)
    with pytest.raises(DataError, match=r"not in the manifest, first 'no\.jpg'"):
        apply_decisions(manifest, one.assign(image_id="no.jpg"))
    with pytest.raises(DataError, match="decided more than once"):
        apply_decisions(manifest, pd.concat([one, one]))
    with pytest.raises(DataError, match="drop all 2 photographs"):
        apply_decisions(manifest.take(np.array([0, 4])), decide(make_issues(), rule="worst", n=2))
    with pytest.raises(DataError, match="doesn't sum to 1"):
        apply_decisions(manifest, one.assign(action="soft"))


@pytest.mark.parametrize("action", ACTIONS)
def test_a_rule_that_touches_nobody_leaves_the_manifest_as_it_is(action: str) -> None:
    decisions = decide(make_issues(), rule="confident", threshold=1.0, action=action, predictions=probs())
    assert len(decisions) == 0
    cleaned, dropped = apply_decisions(make_manifest(), decisions)
    assert len(dropped) == 0
    pd.testing.assert_frame_equal(cleaned.table[make_manifest().table.columns], make_manifest().table)
    assert cleaned.soft_labels is None
