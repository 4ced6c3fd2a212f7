"""The report of small runs: whole, broken in every part, hostile, and large."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from manihot.ensemble.stages import blend_stage
from manihot.errors import RunFolderError
from manihot.metrics import evaluate
from manihot.records.files import save_json
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.run_folder import RunFolder
from manihot.report.report import make_report
from manihot.report.words import signed
from manihot.settings import Blend

CLASSES = ("healthy", "mosaic", "brown streak")
VOID = {"meta", "img", "br", "input", "link"}


class Page(HTMLParser):
    """Tags with their attributes, the text outside <style>, and tags that close where they should not."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str, key: str) -> list[str]:
        return [str(attrs[key]) for name, attrs in self.tags if name == tag and key in attrs]


def draw_photo(path: Path, seed: int, size: tuple[int, int] = (200, 300)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (size[0] // 4, size[1] // 4, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size[::-1]).save(path, "JPEG")


def make_run(
    home: Path,
    n: int = 30,
    classes: tuple[str, ...] = CLASSES,
    test: bool = True,
    absent: int = -1,
    unlabelled: int = 0,
    names: dict[int, str] | None = None,
    members: tuple[str, ...] = ("main",),
    epochs: int = 0,
) -> Path:
    """A run as training leaves it; photographs 0..5 are on the disk, the rest are missing."""
    run, photos, rng = home / "run", home / "photos", np.random.default_rng(0)
    ids = np.array([(names or {}).get(i, f"leaf {i}.jpg") for i in range(n)], dtype=object)
    labels = rng.integers(0, len(classes), n)
    labels[labels == absent] = (absent + 1) % len(classes)
    labels[:unlabelled] = -1
    for i in range(min(6, n)):
        draw_photo(photos / ids[i], i)
    split = np.where(test & (np.arange(n) % 5 == 0), "test", "train")
    fold = np.where(split == "train", np.arange(n) % 3, -1)
    table = pd.DataFrame({"image_id": ids, "path": ids, "label": labels, "split": split, "fold": fold})
    table["source"] = np.where(np.arange(n) % 2, "2019", "2020")
    table["height"], table["width"], table["bytes"] = 200, np.where(np.arange(n) % 7, 300, 400), 9000
    Manifest.from_table(table.drop(columns="fold"), classes, photos).save(run / "manifest.parquet")
    Manifest.from_table(table, classes, photos).save(run / "folds.parquet")
    scores: dict = {"members": {}}
    for member in members:
        logits = rng.normal(size=(n, len(classes)))
        logits[np.arange(n), labels] += 2.0
        probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        scores["members"][member] = part = {}
        for name, rows in (("oof", split == "train"), ("test", split == "test")):
            if rows.any():
                made = Predictions.from_probs(ids[rows], probs[rows], classes, labels[rows], fold[rows])
                made.save(run / "predictions" / f"{member}.{name}.parquet")
                part[name] = evaluate(made.labels, made.pred_probs, classes, repeats=40)
        part["folds"] = {str(k): {"accuracy": 0.5 + k / 10, "n": 9} for k in range(3)}
        for k in range(2 if epochs else 0):
            history = run / "members" / member / f"fold{k}" / "history.jsonl"
            history.parent.mkdir(parents=True)
            loss = [{"epoch": e, "train_loss": 1 / (e + 1), "val_loss": 1.5 / (e + 1)} for e in range(epochs)]
            lines = [json.dumps({**row, "val_accuracy": row["epoch"] / 5}) for row in loss]
            history.write_text("\n".join(lines), encoding="utf-8")
    if len(members) > 1:
        scores["ensemble"] = {key: part[key] for key in ("oof", "test") if key in part}
    save_json(run / "metrics.json", scores)
    row = {"file": "cut.jpg", "fault": "truncated", "detail": "cut off", "remedy": "copy it again"}
    pd.DataFrame([{**row, "label": ""}]).to_csv(run / "quarantine.csv", index=False)
    stages = {"scan": {"status": "done", "seconds": 1.5}, "train": {"status": "done", "seconds": 65}}
    recipe = {"method": "finetune", "seed": 7, "train": {"keep": "best", "epochs": 4}, "audit": {"duplicates": True}}
    about = {"versions": {"numpy": "2.0"}, "device": "cpu", "stages": stages}
    save_json(run / "run.json", {"format": 2, "recipe_name": "quick", "recipe": recipe, **about})
    return run


def read(run: Path) -> tuple[str, Page]:
    path = make_report(run)
    assert path == run / "report.html"
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert not page.wrong and not page.open, "tags that don't close"
    for address in page.all("img", "src"):
        assert address.startswith("data:image/")
    names = {name for name, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert "http://" not in html and "https://" not in html and "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids)), "two elements with one id"
    return html, page


def test_a_whole_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, epochs=4)
    html, page = read(run)
    assert len(html) < 5e6
    scores = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["members"]["main"]["oof"]
    share = f"{100 * scores['metrics']['accuracy']['value']:.1f}\u202f%"
    assert f"Correct on {share} of unseen photographs" in page.text
    assert f"3-fold cross-validation, {scores['n']} photographs" in page.text
    assert f"Always predicting “{scores['majority']['class']}”" in page.text
    assert "selected the best epoch" in page.text and "Copies of a photograph were kept in the same fold" in page.text
    assert "No groups (plants, fields) were given" in page.text
    assert "On the 6 test photographs" in page.text
    assert re.search(r"30 photographs, 3 classes, 2 sources.*3 folds", page.text, flags=re.S)
    assert "copy it again" in page.text and "Missing from this run folder" not in page.text
    assert page.text.count("mean of 2 folds") == 3  # training loss, held-out loss, held-out accuracy
    assert "manihot run" in page.text and "train.epochs" in page.text and "1 min 06 s" in page.text


def test_the_mistakes_are_the_surest_wrong_ones_and_lead_to_their_files(tmp_path: Path) -> None:
    run = make_run(tmp_path, n=70)
    made = Predictions.load(run / "predictions" / "main.oof.parquet")
    top = made.pred_probs.max(1)
    wrong = np.flatnonzero(made.pred_probs.argmax(1) != made.labels)
    surest = wrong[np.argsort(-top[wrong])][:24]
    html, _ = read(run)
    cards = re.findall(r'<figure class="card mistake">.*?</figure>', html, flags=re.S)
    assert len(cards) == len(surest) > 2
    for card, row in zip(cards, surest, strict=True):
        assert made.image_id[row] in card and f"{100 * top[row]:.1f}" in card
        assert f"<b>label</b> {CLASSES[made.labels[row]]}" in card
        for link in re.findall(r'href="([^"]*)"', card):
            assert (run / unquote(link)).resolve() == (tmp_path / "photos" / made.image_id[row]).resolve()


def test_what_users_bring_is_shown_as_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>&\"'"
    classes = (evil, "{{ 7 * 7 }}", "$\\frac{$", "葉")
    names = {i: f"a'b&<img src=x onerror=alert({i})> #%.jpg".replace("/", "") for i in range(6)}
    run = make_run(tmp_path, classes=classes, names=names)
    row = {"file": evil, "fault": evil, "detail": evil, "remedy": evil, "label": evil}
    pd.DataFrame([row]).to_csv(run / "quarantine.csv", index=False)
    html, page = read(run)
    assert "<script" not in html and evil in page.text and "{{ 7 * 7 }}" in page.text
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert names[3] in page.text or names[3] in page.all("a", "title")
    photo_links = [link for link in page.all("a", "href") if "photos" in link]
    assert photo_links and all((run / unquote(link)).is_file() for link in photo_links)


PARTS = {
    "manifest.parquet": "manifest.parquet",
    "quarantine.csv": "quarantine.csv",
    "folds.parquet": None,  # a run that has only scanned has none
    "run.json": "run.json",
    "metrics.json": "metrics.json",
    "predictions/main.oof.parquet": "main.oof.parquet",
    "predictions/main.test.parquet": None,  # a run need not have test photographs
    "members": None,  # the `features` method has no epochs
}


@pytest.mark.parametrize(
    ("part", "how"), [*((part, "absent") for part in PARTS), *((part, "broken") for part in list(PARTS)[:6])]
)
def test_each_part_may_be_missing(tmp_path: Path, part: str, how: str) -> None:
    run = make_run(tmp_path, n=25, epochs=2 if part == "members" else 0)
    path = run / part
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
        if how == "broken":
            path.write_bytes(b"\x00\xff{not this")
    _, page = read(run)
    assert "of unseen photographs" in page.text
    if PARTS[part] or (how == "broken"):
        assert "Missing from this run folder" in page.text and Path(part).name in page.text


def test_a_run_that_has_only_scanned(tmp_path: Path) -> None:
    run = make_run(tmp_path, n=20, epochs=2)
    for name in ("metrics.json", "run.json"):
        (run / name).unlink()
    for name in ("predictions", "members"):
        shutil.rmtree(run / name)
    _, page = read(run)
    assert "No result yet" in page.text and "20 photographs, 3 classes" in page.text


def test_an_empty_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="not a run folder"):
        make_report(tmp_path)


def test_unfinished_folds_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path, test=False)
    (run / "metrics.json").unlink()
    made = Predictions.load(run / "predictions" / "main.oof.parquet")
    made.take(made.fold < 2).save(run / "predictions" / "main.oof.parquet")
    _, page = read(run)
    assert "2 folds so far" in page.text and "the run has not ended" in page.text


def test_no_test_part_a_class_without_photographs_and_unlabelled_rows(tmp_path: Path) -> None:
    run = make_run(tmp_path, test=False, absent=2, unlabelled=6)
    _, page = read(run)
    assert "test photograph" not in page.text
    assert "6 photographs without a label" in page.text
    assert "brown streak" in page.text


def test_no_labels_at_all(tmp_path: Path) -> None:
    _, page = read(make_run(tmp_path, n=15, test=False, unlabelled=15))
    assert "No result yet" in page.text and "Least certain predictions" in page.text


def test_one_class(tmp_path: Path) -> None:
    _, page = read(make_run(tmp_path, n=15, classes=("only",), test=False))
    assert "not clearly better" in page.text


def test_many_classes_are_a_picture(tmp_path: Path) -> None:
    html, page = read(make_run(tmp_path, n=200, classes=tuple(f"kind {k}" for k in range(30))))
    assert "heat map" in html and html.count('class="cell') == 0
    assert any(address.startswith("data:image/png") for address in page.all("img", "src"))


def test_the_ensemble_of_several_members_leads(tmp_path: Path) -> None:
    run = make_run(tmp_path, members=("one", "two"), epochs=2)
    scores = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    scores["ensemble"]["oof"]["metrics"]["accuracy"]["value"] = 0.4321
    save_json(run / "metrics.json", scores)
    _, page = read(run)
    assert "Correct on 43.2\u202f%" in page.text and "Members and folds" in page.text


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"method": "auto"}, ["The plain average of 2 members", "validation of 6 fitted methods", "In sample"]),
        ({"weights": {"one": 3, "two": 1}}, ["with weights fixed by the recipe", "75.0\u202f%"]),
        ({"method": "stack", "with_weights": True}, ["A stack of logistic and differential evolution", "points ("]),
        ({"method": "simplex"}, ["2 members combined by simplex, as the recipe asks"]),
        ({"members": ("two",)}, ["The predictions are those of “two” alone. Not used: one."]),
    ],
    ids=str,
)
def test_how_the_members_answer_together_is_told(asked: dict, words: list[str], tmp_path: Path) -> None:
    run = make_run(tmp_path, n=90, members=("one", "two"))
    Manifest.load(run / "manifest.parquet").save(run / "folds.parquet")
    with RunFolder(run) as folder:
        best = blend_stage(folder, ["one", "two"], Blend(**asked), 0)
    scores = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    if best != "ensemble":
        del scores["ensemble"]
    save_json(run / "metrics.json", {"best": best, **scores})
    _, page = read(run)
    for text in words:
        assert text in page.text
    assert ("significant gain" in page.text) == (asked.get("method") in ("auto", "stack"))


def pictures(page: Page) -> list[tuple[str, str]]:
    """What each picture of a page shows, and the picture."""
    return list(zip(page.all("img", "alt"), page.all("img", "src"), strict=True))


def test_photographs_that_are_gone_keep_the_pictures_of_the_last_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    before = pictures(read(run)[1])
    assert len(before) >= 6 and RunFolder(run).thumbnails("report").is_file()
    shutil.move(tmp_path / "photos", tmp_path / "elsewhere")
    capsys.readouterr()
    _, page = read(run)
    assert pictures(page) == before
    assert not [link for link in page.all("a", "href") if "photos" in link]
    told = f"{len({src for _, src in before})} photographs can't be read any more"
    assert told in page.text and "saved thumbnails are shown instead" in page.text
    assert told in " ".join(capsys.readouterr().err.split())
    assert make_report(run).read_bytes() == make_report(run).read_bytes() and pictures(read(run)[1]) == before


def test_photographs_without_a_saved_thumbnail_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, n=20)
    read(run)
    shutil.rmtree(tmp_path / "photos")
    shutil.rmtree(RunFolder(run).thumbnails("report").parent)
    capsys.readouterr()
    html, page = read(run)
    assert 'class="photo none"' in html and "there is no such file" in page.text and not pictures(page)
    told = f"{len(set(re.findall(r'photo none.*?<span>(.*?)</span>', html)))} photographs can't be shown"
    assert told in page.text and told in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("how", ["broken", "hostile"])
def test_saved_thumbnails_are_not_trusted(tmp_path: Path, how: str) -> None:
    run = make_run(tmp_path, n=20)
    first = read(run)[0]
    file = RunFolder(run).thumbnails("report")
    shutil.rmtree(tmp_path / "photos")
    if how == "broken":
        file.write_bytes(b"PAR1\x00\xff{not this")
    else:
        bad = '"><script>alert(1)</script>'
        table = pd.read_parquet(file)
        table.assign(uri="data:image/jpeg;base64,AAAA" + bad, name=bad).to_parquet(file)
    html, page = read(run)  # without scripts, and every tag closed
    assert html != first and not pictures(page) and "can't be shown" in page.text
    assert ("thumbnails/report.parquet" in page.text) == (how == "broken")


def test_a_run_whose_calibration_is_known_shows_both_curves(tmp_path: Path) -> None:
    run = make_run(tmp_path, n=60)
    assert "calibrated (ECE" not in read(run)[1].text
    made = Predictions.load(run / "predictions" / "main.oof.parquet")
    shutil.copytree(run / "predictions", run / "trust")
    sure = np.where(np.eye(3)[made.labels] > 0, 0.98, 0.01)  # right with a probability of 0.98
    made = Predictions.from_probs(made.image_id, sure, made.classes, made.labels, made.fold)
    made.save(RunFolder(run).trust.calibrated)
    assert "calibrated (ECE 0.020)" in read(run)[1].text


def test_twenty_thousand_photographs_stay_small(tmp_path: Path) -> None:
    run = make_run(tmp_path, n=20_000, classes=tuple(f"class {k}" for k in range(6)))
    table = Manifest.load(run / "manifest.parquet").table
    table["path"] = [f"leaf {i % 6}.jpg" for i in range(len(table))]  # noise, which JPEG can't make small
    table["height"] = np.random.default_rng(0).integers(200, 4000, len(table))
    classes = tuple(f"class {k}" for k in range(6))
    Manifest.from_table(table, classes, tmp_path / "photos").save(run / "manifest.parquet")
    rows = [{"file": f"{i}.jpg", "fault": "empty", "detail": "0 bytes"} for i in range(3000)]
    pd.DataFrame(rows).to_csv(run / "quarantine.csv", index=False)
    html, _ = read(run)
    assert len(html.encode()) < 5e6


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path, n=20)
    first = make_report(run).read_bytes()
    assert make_report(run).read_bytes() == first


def test_reports_need_no_torch() -> None:
    code = "import sys, manihot.report.report, manihot.report.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_differences_carry_their_sign() -> None:
    assert [signed(value, 1, 100) for value in (0.0123, -0.0123, -0.0001, None, float("nan"))] == [
        "+1.2",
        "−1.2",
        "+0.0",
        "–",
        "–",
    ]
    assert signed(-0.0104, 3) == "−0.010"
