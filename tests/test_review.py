"""The label review without a browser: order, stop rule, agreement, answers, decisions, the page's content, a merge."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from scipy.special import expit, logit
from sklearn.metrics import cohen_kappa_score

import manihot
import manihot.review.page as page_module
from manihot.audit.decision_files import read_decisions
from manihot.errors import DataError, SettingsError
from manihot.records.csv_files import csv_text
from manihot.records.manifest import Manifest
from manihot.records.run_places import RunPlaces
from manihot.review import merge as merging
from manihot.review.agreement import NOBODY, by_class, cohen, krippendorff, pairs
from manihot.review.answers import Answer, decisions, standing
from manihot.review.curve import draw_curve, expected_found
from manihot.review.forecast import forecast
from manihot.review.pictures import Picture, draw_all, pack
from manihot.review.ranking import (
    COVERED,
    LEAST,
    Queue,
    entropy,
    error_minus_ambiguity,
    in_batches,
    make_queue,
    worth_a_look,
)
from review_runs import CLASSES, HOSTILE, answer, small_review

LOGIC = Path(page_module.__file__).parent / "page" / "logic.js"
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_review(tmp_path_factory.mktemp("review"))


def in_node(expression: str, value: Any) -> Any:
    """What the page's own functions make of a value."""
    script = LOGIC.read_text(encoding="utf-8") + (
        "\nconst given = JSON.parse(require('fs').readFileSync(0, 'utf8'));"
        f"\nprocess.stdout.write(JSON.stringify({expression}));"
    )
    done = subprocess.run(["node", "-e", script], input=json.dumps(value), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ------------------------------------------------------------------------------------------------ order


def test_error_minus_ambiguity_prefers_the_clear_of_two_equally_doubtful_labels():
    probs = np.array([[0.98, 0.01, 0.01], [0.4, 0.3, 0.3]])
    assert entropy(probs)[0] == pytest.approx(-(0.98 * np.log(0.98) + 0.02 * np.log(0.01)))
    chance = np.array([0.7, 0.7])
    found = error_minus_ambiguity(chance, entropy(probs))
    assert found == pytest.approx(logit(0.7) - entropy(probs)) and found[0] > found[1]
    assert error_minus_ambiguity(np.array([1.0, 0.0]), np.zeros(2)) == pytest.approx([9.21024, -9.21024], abs=1e-4)


def test_the_queue_begins_with_the_wrong_labels_and_names_neighbours(run: Path):
    queue = make_queue(run)
    assert len(queue.table) == 60 and queue.rest == 0
    wrong = {HOSTILE} | {f"p{i:05d}.jpg" for i in range(1, 9)}
    assert {Path(i).name for i in queue.table["image_id"][:9]} == wrong
    assert (queue.table["chance"][:9] > 0.5).all() and (queue.table["chance"][9:] < 0.5).all()
    assert all(len(ids) == 5 for ids in queue.table["neighbours"])
    few = make_queue(run, 7)
    assert list(few.table["image_id"]) == list(queue.table["image_id"][:7]) and few.rest == 53
    assert few.left == pytest.approx(expit(-1 + 0.9 * logit(queue.table["chance"][7:])).sum())


def test_batches_keep_every_class_in_view():
    given = np.array(["a"] * 300 + ["b"] * 20 + ["c"])
    order = in_batches(given, size=10, in_view=0.2)
    assert sorted(order) == list(range(321))
    first = order[:10]
    assert list(first) == [0, 1, 2, 3, 4, 5, 6, 7, 300, 320]  # the best ranked of b and of c
    assert all((given[order[k : k + 10]] == "b").any() for k in range(0, 200, 10))
    every = in_batches(np.array(["a", "b"] * 50), size=10)
    assert list(every) == list(range(100))  # nothing is moved where all are there


def test_many_classes_take_turns_in_what_a_batch_keeps_for_them():
    given = np.array(["a"] * 100 + [f"c{k}" for k in range(20)])
    order = in_batches(given, size=10, in_view=0.2)
    first = [given[order[k : k + 10]] for k in range(0, 100, 10)]
    assert all((batch != "a").sum() == 2 for batch in first)
    assert len({name for batch in first for name in batch}) == 21


def test_a_page_ends_where_hardly_an_error_is_expected():
    chance = np.r_[np.full(300, 0.9), np.full(5000, 1e-4)]
    n = worth_a_look(chance)
    assert chance[:n].sum() >= COVERED * chance.sum() > chance[: n - 1].sum()
    assert worth_a_look(np.full(50, 0.9)) == 50 and worth_a_look(np.zeros(1000) + 1e-4) in (990, 991)
    assert worth_a_look(np.r_[np.full(10, 0.99), np.full(990, 1e-6)]) == LEAST


def test_a_run_that_was_not_audited_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="no table of label issues"):
        make_queue(tmp_path)
    with pytest.raises(SettingsError, match="1 to 10,000"):
        make_queue(tmp_path, 0)


# ------------------------------------------------------------------------------------------------ stop rule


def test_before_the_first_answer_the_prior_discounts_the_audits_chances():
    ahead = np.array([0.9, 0.5, 0.1])
    found = forecast(np.empty(0), np.empty(0), ahead)
    assert found.photographs == 3 and found.expected == pytest.approx(expit(-1 + 0.9 * logit(ahead)).sum())
    assert found.low == 0 and found.high == 3


def test_the_forecast_is_right_where_the_chances_are_too_high():
    rng = np.random.default_rng(0)
    inside, off = 0, []
    for _ in range(200):
        said = np.sort(rng.beta(0.3, 1.5, 400))[::-1]
        truly = rng.random(400) < expit(logit(np.clip(said, 1e-4, 1 - 1e-4)) - 2)
        found = forecast(said[:100], truly[:100], said[100:150])
        inside += found.low <= truly[100:150].sum() <= found.high
        off.append(found.expected - truly[100:150].sum())
        before = said[100:150].sum() - truly[100:150].sum()
    assert inside >= 186  # of 200; 95 % is 190
    assert abs(np.mean(off)) < 1.5 and before > 2


@needs_node
def test_the_curve_rises_as_the_forecast_and_shows_what_was_found():
    chance = np.r_[np.full(40, 0.9), np.full(60, 0.3), np.full(100, 0.01)]
    queue = Queue(pd.DataFrame({"chance": chance}), rest=1000, left=2.0)
    looked, expected = expected_found(queue, np.empty(0), np.empty(0))
    assert looked.tolist() == [0, 50, 100, 150, 200] and expected[0] == 0
    assert [forecast(np.empty(0), np.empty(0), chance[:k]).expected for k in looked] == expected.tolist()
    steps = np.diff(expected)
    assert (steps > 0).all() and (np.diff(steps) < 1e-9).all()  # the first photographs hold most
    wrong = np.arange(50) % 2 == 0
    better = expected_found(queue, chance[:50], np.ones(50, bool))[1]
    worse = expected_found(queue, chance[:50], wrong)[1]
    assert (better[1:] > worse[1:]).all()
    plain, seen = draw_curve(queue), draw_curve(queue, chance[:50], wrong)
    assert "found so far" not in plain and "found so far" in seen and "% of all labels right" in plain
    draw_curve(Queue(pd.DataFrame({"chance": np.full(3, 1e-4)}), 0, 0.0), [1e-4], [False])  # nothing to find
    xml.etree.ElementTree.fromstring(str(seen))


def test_the_pages_forecast_is_pythons():
    rng = np.random.default_rng(1)
    clear = np.r_[np.full(9, 0.9999), np.full(40, 0.001)]  # all wrong labels first: the likelihood alone has no end
    cases = [(rng.random(n), rng.random(n) < 0.4) for n in (0, 1, 30, 400)] + [(clear, clear > 0.5)]
    for chance, wrong in cases:
        ahead = rng.random(50)
        expected = forecast(chance, wrong, ahead)
        value = {"chance": chance.tolist(), "wrong": wrong.tolist(), "ahead": ahead.tolist()}
        found = in_node("forecast(given.chance, given.wrong, given.ahead)", value)
        assert found["expected"] == pytest.approx(expected.expected, abs=1e-6)
        assert (found["photographs"], found["low"], found["high"]) == (50, expected.low, expected.high)


# ------------------------------------------------------------------------------------------------ agreement

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: four observers, twelve units
PUBLISHED = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]
# Cohen's kappa of 50 grants judged by two readers (yes yes 20, yes no 5, no yes 10, no no 15): 0.4
GRANTS = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15


def test_krippendorffs_alpha_of_his_own_example():
    answers = np.array([[NOBODY if cell == "." else int(cell) for cell in row.split()] for row in PUBLISHED])
    found = krippendorff(answers)
    assert found.value == pytest.approx(0.743, abs=0.0005) and found.photographs == 11
    assert found.low is not None and found.high is not None and found.low < 0.743 < found.high


def test_cohens_kappa_of_a_textbook_example_and_of_scikit_learn():
    a, b = np.array(GRANTS).T
    found = cohen(a, b)
    assert found.value == pytest.approx(0.4) and found.same == pytest.approx(0.7) and found.photographs == 50
    rng = np.random.default_rng(2)
    for _ in range(20):
        a = rng.integers(0, 5, 80)
        b = np.where(rng.random(80) < 0.6, a, rng.integers(0, 5, 80))
        missing = rng.random(80) < 0.2
        value = cohen(np.where(missing, NOBODY, a), b).value
        assert value == pytest.approx(cohen_kappa_score(a[~missing], b[~missing]))


def test_the_interval_of_kappa_holds_the_truth_about_as_often_as_it_says():
    rng, inside = np.random.default_rng(3), 0
    for k in range(120):  # the second says what the first says with .7, else anything of four alike: kappa .7
        a = rng.integers(0, 4, 150)
        b = np.where(rng.random(150) < 0.7, a, rng.integers(0, 4, 150))
        found = cohen(a, b, seed=k)
        inside += found.low <= 0.7 <= found.high
    assert 106 <= inside <= 120


def test_agreement_that_is_not_defined_is_none():
    same = cohen(np.zeros(9, int), np.zeros(9, int))
    assert same.value is None and same.same == 1.0
    nothing = krippendorff(np.full((2, 5), NOBODY))
    assert (nothing.photographs, nothing.value, nothing.same) == (0, None, None)
    assert pairs(["a", "b"], np.array([[0, NOBODY], [NOBODY, 1]])) == []


def test_agreement_by_class_tells_the_clear_from_the_confused():
    rng = np.random.default_rng(4)
    a = rng.integers(0, 3, 400)
    b = np.where((a == 0) | (rng.random(400) < 0.5), a, rng.integers(1, 3, 400))
    clear, *confused = by_class(np.stack([a, b]), 3)
    assert clear.value == pytest.approx(1.0) and clear.same == 1.0
    assert all(0.3 < one.value < 0.85 and one.same < 0.9 for one in confused)


# ------------------------------------------------------------------------------------------------ answers


def line(**values: Any) -> Answer:
    return Answer.model_validate(answer("0" * 16, "ana", "p1") | values)


def test_an_undo_takes_back_the_last_answer_to_its_photograph():
    lines = [
        line(label="green"),
        line(label="red"),
        line(image_id="p2"),
        line(verdict="undo", label=""),
        line(reviewer="ben", verdict="unsure", label=""),
        line(image_id="p3"),
        line(image_id="p3", verdict="undo", label=""),
        line(image_id="p3", verdict="undo", label=""),
    ]
    stands = standing(lines)
    assert {who: one.label for who, one in stands.items()} == {
        ("ana", "p1"): "green",
        ("ana", "p2"): "green",
        ("ben", "p1"): "",
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": "../../etc"},
        {"verdict": "delete"},
        {"ms": -1},
        {"at": "yesterday"},
        {"at": "2026-01-01T00:00:00"},
        {"seen": ["everything"]},
        {"round": 3},
        {"more": 1},
        {"image_id": ""},
        {"review": "x"},
    ],
)
def test_a_line_that_no_page_writes_is_refused(wrong: dict[str, Any]):
    with pytest.raises(ValidationError):
        line(**wrong)


ABOUT = {"unsure": "down_weight", "round": 1, "run": "/runs/a, b", "safe": False}
GIVEN = {"p1": "green", 'p"2': "red", "p3": "green", "=p4": "red", "p5": "red"}
LINES = [
    answer("0" * 16, "ana", "p1", ms=3210),
    answer("0" * 16, "ana", 'p"2', label="blue, \n</script>", seen=["original", "photo"]),
    answer("0" * 16, "ana", "p3", verdict="unsure", label=""),
    answer("0" * 16, "ana", "=p4", verdict="drop", label=""),
    answer("0" * 16, "ana", "p5"),
    answer("0" * 16, "ana", "p5", verdict="undo", label=""),
    answer("0" * 16, "ana", "elsewhere"),
]


@needs_node
@pytest.mark.parametrize("safe", [False, True])
def test_the_pages_decisions_are_pythons_to_the_byte(safe: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MANIHOT_SAFE_CSV", str(int(safe)))
    stands = standing(map(Answer.model_validate, LINES)).values()
    text = csv_text(decisions(stands, GIVEN, ABOUT["run"], "down_weight"))
    value = {"lines": LINES, "labels": list(GIVEN.items()), "about": ABOUT | {"safe": safe}}
    found = in_node("decisionsCsv(given.lines, 'ana', new Map(given.labels), given.about)", value)
    assert found == text
    assert ("'=p4" in text) == safe
    rows = {row["image_id"]: row for row in decisions(stands, GIVEN, "", "down_weight").to_dict("records")}
    assert [rows[i]["action"] for i in ("p1", 'p"2', "p3", "=p4")] == ["keep", "relabel", "down_weight", "drop"]
    assert rows["p3"]["weight"] == 0.5 and rows["p1"]["seconds"] == "3.2" and rows["p1"]["seen"] == "photo"


def test_an_action_that_can_not_stand_for_cannot_tell_is_named(run: Path):
    with pytest.raises(SettingsError, match="keep, drop, down_weight"):
        manihot.review(run, unsure="relabel")


# ------------------------------------------------------------------------------------------------ the page


def facts_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="facts">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    facts: dict[str, Any] = json.loads(found[1])
    return facts


def test_the_page_holds_the_queue_and_no_name_ends_its_script(run: Path, tmp_path: Path):
    found = manihot.review(run, out=tmp_path / "review.html", n=20)
    assert found.photographs == 20 and found.expected == pytest.approx(9, abs=2)
    html = (tmp_path / "review.html").read_text(encoding="utf-8")
    facts = facts_of(html)
    assert facts["classes"] == list(CLASSES)
    assert len(facts["queue"]["picture"]) == 20 and facts["run"] == str(run)
    assert HOSTILE in facts["pictures"]["name"] and "<img src=x" not in html and "</script><b>" not in html
    assert "http://" not in html and "https://" not in html
    assert "expected, in random order" in html and "found so far" not in html  # the curve
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy and "script-src 'sha256-" in policy[1].replace("&#39;", "'") and "connect-src" in policy[1]
    again = manihot.review(run, out=tmp_path / "again.html", n=20)
    assert again.page is not None and again.page.read_text(encoding="utf-8") == html


def test_pictures_keep_to_their_budget(tmp_path: Path):
    home = small_review(tmp_path, photos=30, edge=600)
    paths = Manifest.load(RunPlaces(home).manifest).paths
    large = draw_all(paths, [], 1, 10_000_000)
    small = draw_all(paths[:20], paths[20:], 1, 150_000)
    size = sum(len(one.content) for one in small) * 4 / 3
    assert size < 150_000 < sum(len(one.content) for one in large) * 4 / 3
    assert all(one.content for one in small)
    texts, place = pack([Picture(b"abcd"), Picture(), Picture(b"xyz")])
    assert texts == ["YWJjZA==eHl6"] and place == {"chunk": [0, 0, 0], "at": [0, 8, 8], "size": [8, 0, 4]}


def test_a_photograph_that_is_gone_is_named_in_its_place(tmp_path: Path):
    home = small_review(tmp_path, photos=12, wrong=3)
    Manifest.load(RunPlaces(home).manifest).paths[5].unlink()
    page = manihot.review(home).page
    assert page is not None
    facts = facts_of(page.read_text(encoding="utf-8"))
    assert sum(bool(fault) for fault in facts["pictures"]["fault"]) == 1


# ------------------------------------------------------------------------------------------------ together


def person(run: Path, path: Path, name: str, answers: dict[str, str], number: int = 1) -> Path:
    """A file as a reviewer's page saves it: photograph to class, '' for can't tell."""
    manifest = Manifest.load(RunPlaces(run).manifest)
    given = dict(zip(manifest.image_id, np.array(manifest.classes)[manifest.labels]))
    lines = [
        line(reviewer=name, image_id=i, label=label, verdict="class" if label else "unsure", round=number)
        for i, label in answers.items()
    ]
    path.write_text(csv_text(decisions(lines, given, str(run))), encoding="utf-8")
    return path


def test_two_people_are_merged_and_what_they_disagree_on_is_adjudicated(run: Path, tmp_path: Path):
    ids = list(make_queue(run).table["image_id"][:12])
    first = dict.fromkeys(ids, "green")
    second = first | {ids[0]: CLASSES[2], ids[1]: ""}
    a, b = person(run, tmp_path / "a.csv", "ana", first), person(run, tmp_path / "b.csv", "ben", second)
    found = manihot.review(merge=[a, b], out=tmp_path / "merged")
    assert (found.photographs, found.decided, found.disagreed) == (12, 10, 2)
    (one,) = found.pairs
    assert one[:2] == ("ana", "ben") and one[2].same == pytest.approx(10 / 12)
    assert found.page is not None and found.decisions is not None and found.alpha is not None
    facts = facts_of(found.page.read_text(encoding="utf-8"))
    shown = [facts["pictures"]["id"][p] for p in facts["queue"]["picture"]]
    assert set(shown) == set(ids[:2]) and facts["round"] == 2
    assert sorted(map(sorted, facts["queue"]["said"])) == sorted(
        map(sorted, [["green", merging.UNSURE], ["green", CLASSES[2]]])
    )
    c = person(run, tmp_path / "c.csv", "lead", dict.fromkeys(ids[:2], "green"), number=2)
    again = manihot.review(run, merge=[a, b, c], out=tmp_path / "merged")
    assert (again.decided, again.disagreed, again.page) == (12, 0, None)
    assert again.alpha == found.alpha and not (tmp_path / "merged/disagreements.html").exists()
    table = pd.read_csv(tmp_path / "merged/decisions.csv").set_index("image_id")
    assert table.loc[ids[0], "reason"].startswith("adjudicated by lead")
    assert table.loc[ids[5], "reviewer"] == "ana, ben"
    saved = json.loads((tmp_path / "merged/agreement.json").read_text(encoding="utf-8"))
    assert saved["people"] == ["ana", "ben"] and saved["krippendorff_alpha"]["value"] == found.alpha.value


def test_clean_takes_the_decisions_of_a_review(run: Path, tmp_path: Path):
    queue = make_queue(run).table
    right = dict(zip(queue["image_id"][:9], queue["suggested_label"][:9]))
    path = person(run, tmp_path / "decisions.csv", "ana", right)
    assert list(read_decisions(path)["action"]) == ["relabel"] * 9
    manihot.clean(run, out=tmp_path / "cleaned", decisions=path)
    after = Manifest.load(tmp_path / "cleaned/manifest.parquet")
    for image_id, label in right.items():
        row = list(after.image_id).index(image_id)
        assert after.classes[after.labels[row]] == label and "reviewed by ana" in after.table["reason"][row]


def test_files_that_can_not_be_merged_are_named(run: Path, tmp_path: Path):
    a = person(run, tmp_path / "a.csv", "ana", {make_queue(run).table["image_id"][0]: "green"})
    with pytest.raises(SettingsError, match="two files or more"):
        manihot.review(run, merge=[a])
    hand = tmp_path / "ben.csv"
    hand.write_text("image_id,action\nnobody.jpg,keep\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"ben\.csv: line 2, column image_id"):
        manihot.review(run, merge=[a, hand])
    hand.write_text("image_id,action,round\nnobody.jpg,keep,7\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"ben\.csv: line 2, column round"):
        manihot.review(run, merge=[a, hand])
    hand.write_text("image_id,action\nnobody.jpg,keep\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="name it: manihot review RUN"):
        manihot.review(merge=[hand, hand])


def test_a_file_written_by_hand_takes_part_under_its_own_name(run: Path, tmp_path: Path):
    queue = make_queue(run).table
    first, second = queue["image_id"][:2]
    a = person(run, tmp_path / "a.csv", "ana", {first: queue["given_label"][0], second: "green"})
    hand = tmp_path / "ben.csv"
    hand.write_text(f'image_id,action,new_label\n"{first}",keep,\n"{second}",relabel,green\n', encoding="utf-8")
    found = manihot.review(run, merge=[a, hand], out=tmp_path / "out")
    assert (found.decided, found.disagreed) == (2, 0) and found.pairs[0][:2] == ("ana", "ben")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "nothing to review"),
        ({"run": "x", "team": manihot.ReviewTeam(reviewers=("ana",))}, "--reviewers: nothing is served"),
        ({"run": "x", "serve": True, "merge": ["a", "b"]}, "do different things"),
        ({"run": "x", "serve": True, "out": "y"}, "writes no page"),
    ],
)
def test_options_that_nothing_follows_are_refused(options: dict[str, Any], said: str):
    with pytest.raises(SettingsError, match=said):
        manihot.review(**options)
