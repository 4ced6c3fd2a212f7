"""The review page in a real Chromium, from a file: keys, undo, what is kept, what is hidden, speed and size."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import manihot
from manihot.audit.decision_files import read_decisions
from manihot.records.csv_files import csv_text
from manihot.records.manifest import Manifest
from manihot.records.run_places import RunPlaces
from manihot.review import pictures
from manihot.review.answers import Answer, decisions, standing
from manihot.review.forecast import forecast
from manihot.review.page import write_page
from manihot.review.ranking import Queue, make_queue
from review_browser import find_axe, serious_findings, start_browser, until
from review_runs import CLASSES, small_review

sync_api = pytest.importorskip("playwright.sync_api")
NEXT = 50.0  # milliseconds that the next picture may take


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = small_review(tmp_path_factory.mktemp("page"), edge=200)
    manihot.review(made)
    return made


@pytest.fixture(scope="module")
def axe() -> str:
    return find_axe()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        started = start_browser(play)
        yield started
        started.close()


class Opened:
    """A page from a file, in a context of its own; `said` are complaints, `asked` its requests."""

    def __init__(self, browser: Any, file: Path, script: str = "", **options: Any) -> None:
        self.context = browser.new_context(accept_downloads=True, **options)
        self.context.set_offline(True)
        self.said: list[str] = []
        self.asked: list[str] = []
        if script:
            self.context.add_init_script(script)
        self.open(file)

    def open(self, file: Path, name: str = "Ana Öz") -> Any:
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-ready]", timeout=60_000)
        if self.page.is_visible("#who"):
            self.page.fill("#name", name)
            self.page.keyboard.press("Enter")
        return self.page

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        until(self.page, "!document.getElementById('saved').textContent.startsWith('saving')")

    def saved(self, button: str, folder: Path) -> tuple[str, Path]:
        with self.page.expect_download() as download:
            self.page.click(button)
        path = folder / "saved"
        download.value.save_as(path)
        return download.value.suggested_filename, path


def lines_of(opened: Opened, folder: Path) -> list[Answer]:
    name, path = opened.saved("#save-lines", folder)
    assert name == "answers-Ana-Öz.jsonl"
    return [Answer.model_validate_json(text) for text in path.read_text(encoding="utf-8").splitlines()]


def test_answers_by_keys_come_out_as_decisions_that_clean_takes(run: Path, browser: Any, tmp_path: Path):
    queue = make_queue(run).table
    opened = Opened(browser, run / "review.html")
    opened.press("2", " ", "n", "x", "3", "u", "u", "1")
    lines = lines_of(opened, tmp_path)
    ids = list(queue["image_id"])
    said = [(line.image_id, line.verdict, line.label) for line in lines]
    assert said == [
        (ids[0], "class", CLASSES[1]),
        (ids[1], "class", queue["given_label"][1]),
        (ids[2], "unsure", ""),
        (ids[3], "drop", ""),
        (ids[4], "class", CLASSES[2]),
        (ids[4], "undo", ""),
        (ids[3], "undo", ""),
        (ids[3], "class", CLASSES[0]),
    ]
    assert {line.reviewer for line in lines} == {"Ana Öz"} and all(0 <= line.ms < 60_000 for line in lines)
    assert lines[0].seen == ("photo",) and "suggestion" in lines[7].seen
    name, path = opened.saved("#save-decisions", tmp_path)
    assert name == "decisions-Ana-Öz.csv"
    given = dict(zip(ids, queue["given_label"]))
    assert path.read_text(encoding="utf-8") == csv_text(decisions(standing(lines).values(), given, str(run)))
    table = read_decisions(path, Manifest.load(RunPlaces(run).manifest))
    assert len(table) == 4
    manihot.clean(run, out=tmp_path / "cleaned", decisions=shutil.copy(path, tmp_path / "decisions.csv"))
    assert not opened.said and {url.split(":")[0] for url in opened.asked} <= {"file", "data", "blob"}


def test_the_suggestion_is_hidden_until_the_first_answer(run: Path, browser: Any, tmp_path: Path):
    opened = Opened(browser, run / "review.html")
    page = opened.page
    assert page.inner_text("#suggested") == "" and page.inner_text("#last") == ""
    opened.press("2")
    assert page.inner_text("#suggested") == "" and "The model suggests" in page.inner_text("#last")
    opened.press("u")
    assert page.inner_text("#suggested").startswith("Suggested by the model: ")
    manihot.review(run, out=tmp_path / "shown.html", show_suggestion=True)
    assert Opened(browser, tmp_path / "shown.html").page.inner_text("#suggested") != ""


def test_undo_has_no_limit_and_outlives_the_tab(run: Path, browser: Any):
    opened = Opened(browser, run / "review.html")
    opened.press(*["2", "n", " "] * 10)
    assert opened.page.inner_text("#count") == "30 of 60 answered"
    opened.page.close()
    page = opened.open(run / "review.html")
    assert page.inner_text("#count") == "30 of 60 answered" and not page.is_visible("#who")
    opened.press(*["u"] * 31)
    assert page.inner_text("#count") == "0 of 60 answered"
    assert page.inner_text("#last") == "There is nothing to undo."
    opened.press(*[" "] * 60)
    assert page.is_visible("#done") and not page.is_visible("#work")
    opened.press("u")
    assert page.is_visible("#work") and page.inner_text("#count") == "59 of 60 answered"


NO_INDEXED = "Object.defineProperty(window, 'indexedDB', {get() { throw new Error('blocked'); }});"
NO_LOCAL = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('blocked'); }});"


def test_answers_are_kept_where_only_local_storage_is_allowed(run: Path, browser: Any):
    opened = Opened(browser, run / "review.html", NO_INDEXED)
    opened.press("2", "n")
    opened.page.close()
    page = opened.open(run / "review.html")
    assert page.inner_text("#count") == "2 of 60 answered" and not page.is_visible("#notice")


def test_where_everything_is_blocked_the_page_says_so_and_goes_on_from_a_file(run: Path, browser: Any, tmp_path: Path):
    opened = Opened(browser, run / "review.html", NO_INDEXED + NO_LOCAL)
    assert "answers are lost when the tab closes" in opened.page.inner_text("#notice")
    opened.press("2", "n", "3")
    assert opened.page.inner_text("#saved") == "not saved"
    _, path = opened.saved("#save-lines", tmp_path)
    other = Opened(browser, run / "review.html")
    other.page.set_input_files("#read-lines", str(path))
    until(other.page, "document.getElementById('read-says').textContent.startsWith('3 answers')")
    assert other.page.inner_text("#count") == "3 of 60 answered"
    other.page.set_input_files("#read-lines", [])
    other.page.set_input_files("#read-lines", str(path))
    until(other.page, "document.getElementById('read-says').textContent.startsWith('0 answers')")


def test_neighbours_and_the_original_are_shown_and_noted(run: Path, browser: Any, tmp_path: Path):
    opened = Opened(browser, run / "review.html")
    page = opened.page
    opened.press("g")
    assert page.locator("#near figure").count() == 5 and page.locator("#near img").first.evaluate("i => i.naturalWidth")
    opened.press("z")
    until(page, "document.getElementById('zoom-says').textContent.endsWith('pixels')")
    assert page.locator("#zoom img").evaluate("image => image.naturalWidth") == 266
    opened.press("z", "2")
    assert lines_of(opened, tmp_path)[0].seen == ("neighbours", "original", "photo")
    shutil.copy(run / "review.html", tmp_path / "elsewhere.html")
    away = Opened(browser, tmp_path / "elsewhere.html")
    away.press("z")
    until(away.page, "document.getElementById('zoom-says').textContent.includes('at hand')")


def test_the_page_says_what_python_expects_and_when_to_stop(run: Path, browser: Any):
    queue = make_queue(run).table
    opened = Opened(browser, run / "review.html")
    chance = queue["chance"].round(5).to_numpy()
    first = forecast(np.empty(0), np.empty(0), chance[:50])
    assert f"({first.low} to {first.high})" in opened.page.inner_text("#forecast")
    label = {name: str(k + 1) for k, name in enumerate(CLASSES)}
    opened.press(*(label[name] for name in queue["suggested_label"][:9]), *[" "] * 21)
    wrong = (np.arange(30) < 9) & (queue["suggested_label"] != queue["given_label"])[:30].to_numpy()
    after = forecast(chance[:30], wrong, chance[30:])
    text = opened.page.inner_text("#forecast")
    said = opened.page.evaluate("expectation()")
    assert text.startswith("The next 30 are expected to hold 0") and said["left"] == said["expected"]
    assert said["expected"] == pytest.approx(after.expected, rel=1e-6)
    assert f"({after.low} to {after.high})" in text and opened.page.is_visible("#stop") == (after.expected < 1)
    assert after.expected < 1 and opened.page.inner_text("#changed") == f"{wrong.sum()} labels corrected by you"


def test_a_held_key_or_one_with_a_modifier_answers_nothing(run: Path, browser: Any):
    opened = Opened(browser, run / "review.html")
    page = opened.page
    page.keyboard.down("2")
    for _ in range(5):
        page.keyboard.down("2")  # as the keyboard repeats it
    page.keyboard.up("2")
    opened.press("Control+3", "Alt+n")
    assert page.inner_text("#count") == "1 of 60 answered"
    page.click("#help summary")
    page.uncheck("#keys")
    opened.press("2", "n", " ")
    assert page.inner_text("#count") == "1 of 60 answered"


def test_the_page_can_be_used_without_a_mouse_by_its_buttons(run: Path, browser: Any):
    opened = Opened(browser, run / "review.html")
    page = opened.page
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "unsure":
            break
    opened.press("Enter")
    until(page, "document.getElementById('count').textContent === '1 of 60 answered'")
    assert page.evaluate("document.activeElement.id") == "stage"
    assert page.inner_text("#live").startswith("Photograph 2: ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_pages_have_no_serious_findings_and_fit(run: Path, browser: Any, axe: str, scheme: str, width: int):
    opened = Opened(browser, run / "review.html", viewport={"width": width, "height": 800}, color_scheme=scheme)
    opened.press("2", "n", " ", "g")
    assert serious_findings(opened.page, axe) == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    if folder := os.environ.get("MANIHOT_SCREENSHOTS"):
        opened.page.screenshot(path=str(Path(folder) / f"review-{scheme}-{width}.png"))


def test_hostile_names_are_text(run: Path, browser: Any):
    opened = Opened(browser, run / "review.html")
    opened.press("g", "2", "n", "u")
    assert opened.page.evaluate("document.querySelectorAll('main b, main img[src=x]').length") == 0
    assert CLASSES[0] in opened.page.inner_text("#classes") and not opened.said


def many(run: Path, page: Path, n: int) -> None:
    """A page of n photographs: those of the run under many ids."""
    manifest = Manifest.load(RunPlaces(run).manifest)
    rows = np.arange(n) % len(manifest)
    table = manifest.table.iloc[rows].assign(image_id=[f"{k:05d}.jpg" for k in range(n)])
    grown = Manifest.from_table(table, manifest.classes, manifest.root)
    given = np.array(manifest.classes)[grown.labels]
    queue = pd.DataFrame({"image_id": grown.image_id, "given_label": given, "suggested_label": CLASSES[0]})
    queue = queue.assign(chance=np.linspace(0.99, 0.001, n))
    queue["neighbours"] = [[f"{(k + j) % n:05d}.jpg" for j in range(1, 6)] for k in range(n)]
    queue["copies"] = [[] for _ in range(n)]
    about = {"show_suggestion": False, "unsure": "keep", "round": 1}
    write_page(page, run, grown, Queue(queue, 0, 0.0), about, 1)


def next_pictures(opened: Opened, n: int) -> np.ndarray:
    """Milliseconds from a key to the next picture on the screen, n times."""
    for k in range(n):
        opened.page.keyboard.press("2 n"[k % 3])
        opened.page.wait_for_timeout(60)
    found = opened.page.evaluate("performance.getEntriesByName('next picture').map(one => one.duration)")
    return np.array(found[1:])


def test_the_next_picture_comes_at_once(run: Path, browser: Any):
    took = next_pictures(Opened(browser, run / "review.html"), 40)
    assert len(took) == 40 and np.median(took) < NEXT


@pytest.mark.slow
def test_ten_thousand_photographs_stay_below_60_megabytes_and_fast(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = small_review(tmp_path, edge=600)  # noise compresses worse than any photograph
    monkeypatch.setattr(pictures, "draw", cache(pictures.draw))  # 60 files under 10,000 ids
    many(run, tmp_path / "many.html", 10_000)
    size = (tmp_path / "many.html").stat().st_size
    opened = Opened(browser, tmp_path / "many.html")
    took = next_pictures(opened, 60)
    print(json.dumps({"bytes": size, "median_ms": float(np.median(took)), "p95_ms": float(np.quantile(took, 0.95))}))
    assert size < 60_000_000 and np.median(took) < NEXT
    assert opened.page.inner_text("#count") == "60 of 10,000 answered"
