"""The page of an audit that its own stages made: whole, broken in every part, hostile, large, without photographs."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from manihot.audit.burst_stages import group_bursts
from manihot.audit.stages import (
    audit_labels,
    audit_lookalikes,
    audit_predictions,
    audit_what_if,
    group_duplicates,
    save_table,
)
from manihot.audit.what_if import ARMS, TOGETHER
from manihot.errors import RunFolderError
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.run_folder import RunFolder
from manihot.report import audit_page
from manihot.report.audit_page import make_audit_page
from manihot.report.audit_tables import TABLES
from manihot.report.report import make_pages, make_report
from test_report import Page, make_run

CLASSES = ("<b>blight</b>", "mosaic & mottle", "葉 healthy")
N, WRONG = 90, 8
COPIES, TORN = 4, 2  # copies, and those of them, the last ones, that carry another label
NAMES = {0: "a'b & c #1 100%.jpg", 7: "ü<img src=x onerror=alert(1)>.jpg"}


def draw(seed: int) -> Image.Image:
    """A picture that is nothing like those of other seeds."""
    noise = np.random.default_rng(seed).integers(0, 255, (18, 24, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RUN as the stages of an audit leave it; photographs beside it: 8 wrong labels, 4 copies."""
    home = tmp_path_factory.mktemp("audit")
    rng = np.random.default_rng(0)
    ids = np.array([NAMES.get(i, f"leaf {i}.jpg") for i in range(N)], dtype=object)
    (home / "photos").mkdir()
    truth = np.arange(N) % 3
    truth[N - COPIES :] = truth[:COPIES]
    for i, name in enumerate(ids):
        picture = draw(i if i < N - COPIES else i - (N - COPIES))
        picture.save(home / "photos" / name, "JPEG", quality=90 if i < 60 else 75)
    labels = truth.copy()
    labels[10 : 10 + WRONG] = (truth[10 : 10 + WRONG] + 1) % 3
    labels[N - TORN :] = (truth[N - TORN :] + 1) % 3
    table = pd.DataFrame({"image_id": ids, "path": ids, "label": labels, "width": 160, "height": 120})
    table["source"] = np.where(np.arange(N) % 2, "2019", "2020 <i>")
    table["fold"] = np.arange(N) % 3
    table["split"] = np.where(np.arange(N) == N - 1, "val", "train")
    logits = rng.normal(size=(N, 3)) + 4 * np.eye(3)[truth]
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    embeddings = (rng.normal(size=(N, 12)) + 5 * np.eye(12)[truth]).astype(np.float32)
    with RunFolder(home / "run") as folder:
        manifest = Manifest.from_table(table, CLASSES, home / "photos")
        manifest.save(folder / "manifest.parquet")
        manifest = group_bursts(folder, group_duplicates(folder, manifest, workers=1), keep=False)
        manifest.save(folder / "folds.parquet")
        made = Predictions.from_probs(ids, probs, CLASSES, labels, table["fold"].to_numpy(), embeddings=embeddings)
        made.save(folder / "predictions/main.oof.parquet")
        audit_lookalikes(folder, manifest, "main")
        audit_labels(folder, manifest, "main")
        audit_what_if(folder, manifest, "main", seed=0)
    return home


@pytest.fixture
def run(audited: Path, tmp_path: Path) -> Path:
    """A copy of the audited run to break; its photographs stay where they are."""
    return Path(shutil.copytree(audited / "run", tmp_path / "run"))


def table_of(run: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(run / f"audit/{name}.parquet")


def read(run: Path) -> tuple[str, Page]:
    path = make_audit_page(run)
    assert path == run / "audit.html"
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert not page.wrong and not page.open, "tags that don't close"
    assert all(address.startswith("data:image/") for address in page.all("img", "src"))
    assert not {name for name, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert "http://" not in html and "https://" not in html and "@import" not in html and "url(" not in html
    assert "object at 0x" not in html and "method" not in re.findall(r"<built-in (\w+)", html)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids)), "two elements with one id"
    for link in page.all("a", "href"):
        assert link[1:] in ids if link.startswith("#") else (run / unquote(link)).is_file(), link
    return html, page


def cards(html: str) -> list[str]:
    return re.findall(r'<figure class="card[^"]*"><span class="rank">.*?</figure>', html, flags=re.S)


def test_the_worst_labels_stand_in_the_order_of_their_scores_and_lead_to_their_files(run: Path, audited: Path) -> None:
    html, page = read(run)
    issues = table_of(run, "label_issues")
    wrong = issues[issues["is_label_issue"]]
    assert len(wrong) > WRONG // 2, "most planted labels are found, or the test shows nothing"
    assert f"{len(wrong)} of {N} labels look wrong" in page.text
    shown = cards(html)
    assert len(shown) == len(wrong)
    for card, row in zip(shown, wrong.to_dict("records"), strict=True):
        text = Page(card).text
        assert text.index(row["given_label"]) < text.index(row["suggested_label"])
        links = {(run / unquote(link)).resolve() for link in re.findall(r'href="([^"]*)"', card)}
        assert links == {(audited / "photos" / row["image_id"]).resolve()}
    copies = [card for card in shown if "a copy is labelled as suggested" in card]
    assert copies and all(f"leaf {i}.jpg" not in card for card in copies for i in range(10, 10 + WRONG))


def test_each_class_pair_counts_its_labels_and_filters_the_sheet(run: Path) -> None:
    html, page = read(run)
    issues = table_of(run, "label_issues")
    wrong = issues[issues["is_label_issue"]]
    counts = sorted(Counter(zip(wrong["given_label"], wrong["suggested_label"])).values())
    cells = [(int(n), k) for k, n in re.findall(r'<td class="cell.*?<label for="pair-(\d+)".*?>(\d+)</label>', html)]
    assert sorted(n for n, _ in cells) == counts
    for n, k in cells:
        assert f'id="pair-{k}"' in html and f"#pair-{k}:checked~.cards>.card:not(.p{k}){{display:none}}" in html
        assert sum(f'class="card p{k}"' in card for card in cards(html)) == n
    assert [attrs["id"] for name, attrs in page.tags if name == "input" and "checked" in attrs] == ["pair-all"]


def test_groups_with_two_labels_come_first_with_all_their_members(run: Path) -> None:
    html, page = read(run)
    groups = re.findall(r'<div class="group.*?</div></div>', html, flags=re.S)
    texts = [Page(group).text for group in groups]
    table = table_of(run, "duplicates")
    assert table["group"].nunique() == len(groups) == COPIES and table["label_conflict"].sum() == 2 * TORN
    assert ["different labels" in text for text in texts] == [True] * TORN + [False] * (COPIES - TORN)
    assert "across train and test" in texts[0] and "across train and test" not in "".join(texts[1:])
    for _, rows in table.groupby("group"):
        assert sum(all(name in text for name in rows["image_id"]) for text in texts) == 1
    assert f"In {TORN} of them, copies have different labels" in page.text


def test_lookalikes_are_shown_what_pixels_confirm_first(run: Path) -> None:
    html, page = read(run)
    told = json.loads((run / "audit/audit.json").read_text(encoding="utf-8"))["lookalikes"]
    assert told["groups"] == table_of(run, "lookalikes")["group"].nunique() > 0
    assert f"in {told['groups']} groups alike by the features" in page.text
    fake = table_of(run, "duplicates")[["image_id", "label", "source", "split", "group"]]
    flags = {"label_conflict": False, "crosses_folds": False, "crosses_splits": False}
    sure = fake["group"].iloc[-1]
    fake = fake.assign(evidence=np.where(fake["group"] == sure, "pixels", "features"), distance=0.3, **flags)
    save_table(fake, run, "lookalikes")
    html, page = read(run)
    groups = re.findall(r'<div class="alike group.*?</div></div>', html, flags=re.S)
    assert ["confirmed by the pictures" in group for group in groups] == [True] + [False] * (COPIES - 1)
    assert all(f"leaf {k}.jpg" in Page(groups[0]).text for k in (3, N - 1))
    assert f"1 new and confirmed by the pictures, {COPIES - 1} found by the features alone" in page.text


def test_every_part_of_the_audit_is_shown(run: Path) -> None:
    _, page = read(run)
    headings = {attrs["id"] for name, attrs in page.tags if name == "section"}
    assert headings == {
        "result",
        "labels",
        "duplicates",
        "lookalikes",
        "outliers",
        "map",
        "composition",
        "sources",
        "what-if",
        "next",
        "how",
    }
    assert "Missing from this run folder" not in page.text
    drift = table_of(run, "drift").iloc[0]
    assert f"{drift['auc']:.2f}" in page.text and "Most typical of 2019" in page.text
    sentence = json.loads((run / "audit/what_if.json").read_text(encoding="utf-8"))["sentence"]
    assert page.text.count(sentence) == 2
    errors = table_of(run, "goes_with_errors")
    assert all(name.replace("_", " ") in page.text for name in errors["measurement"])
    for _, row in table_of(run, "what_if").iterrows():
        assert f"{100 * row['accuracy']:.1f}\u202f%" in page.text
    tables = {path.name for kind in ("csv", "parquet") for path in (run / "audit").glob(f"*.{kind}")}
    assert tables and {link.rsplit("/", 1)[1] for link in page.all("a", "href") if "audit/" in link} == tables


def test_what_users_bring_is_shown_as_text(run: Path) -> None:
    html, page = read(run)
    assert "<b>blight</b>" not in html and "<b>blight</b>" in page.text and "2020 <i>" in page.text
    assert "<img src=x" not in html


@pytest.mark.parametrize("how", ["absent", "broken", "without columns"])
@pytest.mark.parametrize("name", TABLES)
def test_each_table_may_be_missing(run: Path, name: str, how: str) -> None:
    path = run / f"audit/{name}.parquet"
    path.unlink()
    if how == "broken":
        path.write_bytes(b"PAR1\x00\xff{not this")
    elif how == "without columns":
        pd.DataFrame({"nothing": [1, 2]}).to_parquet(path)
    _, page = read(run)
    if TABLES[name].absent or how in ("broken", "without columns"):
        assert "Missing from this run folder" in page.text and f"audit/{name}.parquet" in page.text
    else:
        assert "Missing from this run folder" not in page.text
    if name == "what_if":
        assert "--what-if" in page.text


def test_a_broken_mean_picture_is_named(run: Path) -> None:
    (run / "audit/mean_source0.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    _, page = read(run)
    assert "audit/mean_source0.png" in page.text


def test_nothing_to_show_is_a_finding(run: Path) -> None:
    save_table(table_of(run, "duplicates").head(0), run, "duplicates")
    save_table(table_of(run, "label_issues").assign(is_label_issue=False), run, "label_issues")
    html, page = read(run)
    assert f"None of {N} labels looks wrong" in page.text and "No duplicates were found." in page.text
    assert len(cards(html)) == audit_page.LEAST_SURE and 'type="radio"' not in html


def test_photographs_that_are_gone_keep_their_pictures(run: Path, tmp_path: Path) -> None:
    before = read(run)[1].all("img", "src")
    manifest = Manifest.load(run / "manifest.parquet")
    Manifest(manifest.table, manifest.classes, tmp_path / "elsewhere").save(run / "manifest.parquet")
    html, page = read(run)
    assert page.all("img", "src") == before and len(before) > 20
    assert "saved thumbnails are shown instead" in page.text and 'class="photo none"' not in html
    shutil.rmtree(RunFolder(run).thumbnails("audit").parent)
    html, page = read(run)
    assert 'class="photo none"' in html and "there is no such file" in page.text and "can't be shown" in page.text


def test_the_page_says_how_labels_and_cleaning_were_really_judged(run: Path, tmp_path: Path) -> None:
    text = " ".join(read(run)[1].text.split())
    assert "Nadeau" not in text and "under 0.5" not in text and "confident learning" not in text
    head = "a linear head trained without the photograph"
    for words in ("Student's t over photographs", "together", "plus one standard deviation", head):
        assert words in text, words
    assert set(audit_page.ARM_NAMES) == {*ARMS, TOGETHER} and audit_page.ARM_NAMES[TOGETHER] in text
    alone = tmp_path / "alone"
    oof = Predictions.load(run / "predictions/main.oof.parquet")
    replace(oof, embeddings=None).save(tmp_path / "oof.parquet")
    audit_predictions(tmp_path / "oof.parquet", alone)
    text = " ".join(read(alone)[1].text.split())
    assert "at half its weight, the margin of the given label" in text and "a linear head" not in text


def test_predictions_without_photographs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(60) % 3
    probs = rng.dirichlet(np.ones(3), 60) * 0.2 + 0.8 * np.eye(3)[truth]
    labels = np.where(np.arange(60) < 5, (truth + 1) % 3, truth)
    table = pd.DataFrame(probs, columns=["c0", "c1", "c2"]).assign(image_id=[f"x{i}" for i in range(60)], label=labels)
    table.to_csv(tmp_path / "oof.csv", index=False)
    found = audit_predictions(tmp_path / "oof.csv", tmp_path / "run")
    _, page = read(tmp_path / "run")
    assert found["label_issues"] and f"{found['label_issues']} of 60 labels look wrong" in page.text
    assert "manifest.parquet: not found" in page.text and "x0" in page.text


def test_a_model_that_learned_nothing_is_said_to_mean_little(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    probs = {"guess": rng.dirichlet(np.ones(3), 60), "largest": np.tile([0.5, 0.3, 0.2], (60, 1))}
    probs["good"] = 0.4 * probs["guess"] + 0.6 * np.eye(3)[labels]
    said = {}
    for name, values in probs.items():
        table = pd.DataFrame(values, columns=["c0", "c1", "c2"]).assign(image_id=[f"x{i}" for i in range(60)])
        table.assign(label=labels).to_csv(tmp_path / f"{name}.csv", index=False)
        found = audit_predictions(tmp_path / f"{name}.csv", tmp_path / name)
        said[name] = found["beats_largest_class"]
        warned = "not clearly better than always naming the largest class"
        assert (warned in " ".join(capsys.readouterr().err.split())) == (name != "good")
        shown = warned.replace("naming", "predicting")
        assert (shown in " ".join(read(tmp_path / name)[1].text.split())) == (name != "good")
    assert said == {"guess": False, "largest": False, "good": True}


def test_thousands_of_labels_and_many_classes_stay_small(tmp_path: Path) -> None:
    classes = tuple(f"class {k}" for k in range(30))
    run = make_run(tmp_path, n=3_000, classes=classes)
    manifest = Manifest.load(run / "manifest.parquet")
    table, rng = manifest.table, np.random.default_rng(0)
    table["path"] = [f"leaf {i % 6}.jpg" for i in range(len(table))]
    for i in range(6):  # every pixel noise: the largest thumbnails there are
        noise = rng.integers(0, 255, (240, 320, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / f"leaf {i}.jpg", quality=95)
    Manifest.from_table(table, classes, tmp_path / "photos").save(run / "manifest.parquet")
    names, n = np.array(classes, dtype=object), len(table)
    issues = pd.DataFrame({"image_id": table["image_id"], "label_score": np.sort(rng.random(n))})
    issues["given_label"], issues["suggested_label"] = names[table["label"]], names[rng.integers(0, 30, n)]
    save_table(issues.assign(is_label_issue=np.arange(n) < 2000, anomaly_score=0.4), run, "label_issues")
    group = np.arange(n) // 20
    flags = {"label_conflict": group % 2 > 0, "crosses_folds": False, "crosses_splits": False}
    doubles = table[["image_id", "label", "source", "split"]].assign(group=group.astype(str), kind="exact", **flags)
    save_table(doubles, run, "duplicates")
    pairs = pd.DataFrame([(f"s{i}", f"s{i + 1}") for i in range(500)], columns=["first", "second"])
    save_table(pairs.assign(auc=0.9, low=0.8, high=0.95, within_class=0.8, differ=True), run, "drift")
    kinds = pd.DataFrame({"kind": list(audit_page.EXAMPLE_KINDS)})
    examples = pairs.head(4).merge(kinds, how="cross").merge(table[["image_id"]].head(8), how="cross")
    save_table(examples, run, "drift_examples")
    html, _ = read(run)
    assert len(html.encode()) < 5e6
    pictures = html.count("<img ")
    assert 200 <= pictures <= audit_page.WORST + audit_page.GROUP_PICTURES + audit_page.OUTLIERS + 48


def test_the_same_run_gives_the_same_bytes(run: Path) -> None:
    first = make_audit_page(run).read_bytes()
    assert make_audit_page(run).read_bytes() == first


def test_a_folder_without_an_audit(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="contains no audit"):
        make_audit_page(tmp_path)


def test_report_and_audit_lead_to_each_other_where_both_are(tmp_path: Path, audited: Path) -> None:
    run = make_run(tmp_path, n=20)
    assert [path.name for path in make_pages(run)] == ["report.html"]
    assert "audit.html" not in (run / "report.html").read_text(encoding="utf-8")
    (run / "report.html").unlink()
    shutil.copytree(audited / "run/audit", run / "audit")
    assert "./report.html" not in Page(make_audit_page(run).read_text(encoding="utf-8")).all("a", "href")
    (run / "audit.html").unlink()
    report, audit = (Page(path.read_text(encoding="utf-8")) for path in make_pages(run))  # as a first run does
    assert "./audit.html" in report.all("a", "href") and not report.wrong and not report.open
    assert "./report.html" in audit.all("a", "href")
    assert "./audit.html" in Page(make_report(run).read_text(encoding="utf-8")).all("a", "href")
