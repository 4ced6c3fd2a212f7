"""What a cleaning shows: a page with counts and every changed photograph, a table that fits a terminal, the report."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from manihot.audit.cleaning import CARRIED, carry_counts, clean
from manihot.errors import DataError
from manihot.records.manifest import Manifest
from manihot.report import clean_page
from manihot.report.clean_page import counts_grid, make_clean_page
from manihot.report.report import make_report
from test_report import Page, draw_photo, make_run

CLASSES = ("<b>blight</b>", "mosaic", "葉 healthy")
NAMES = ["a'b & c #1 100%.jpg", *(f"leaf {i}.jpg" for i in range(1, 9))]
DECISIONS = """image_id,action,new_label,weight,reason,soft_mosaic,soft_葉 healthy
a'b & c #1 100%.jpg,drop,,,blurred <i>,,
leaf 1.jpg,relabel,葉 healthy,,,,
leaf 4.jpg,soft,,,copies disagree,0.7,0.3
leaf 5.jpg,down_weight,,0.25,far away,,
leaf 8.jpg,keep,,,fine,,
"""


@pytest.fixture
def cleaned(tmp_path: Path) -> Path:
    """Nine photographs, three a class, cleaned by hand."""
    photos = tmp_path / "photos"
    for i, name in enumerate(NAMES[:6]):
        draw_photo(photos / name, i)
    table = pd.DataFrame({"image_id": NAMES, "path": NAMES, "label": np.arange(9) % 3})
    Manifest.from_table(table, CLASSES, photos).save(tmp_path / "run/manifest.parquet")
    (tmp_path / "own.csv").write_text(DECISIONS, encoding="utf-8")
    clean(tmp_path / "run", tmp_path / "cleaned", decisions=tmp_path / "own.csv")
    return tmp_path / "cleaned"


def read(folder: Path) -> tuple[str, Page]:
    path = make_clean_page(folder)
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert not page.wrong and not page.open, "tags that don't close"
    assert all(address.startswith("data:image/") for address in page.all("img", "src"))
    assert not {name for name, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert "http://" not in html and "https://" not in html and "object at 0x" not in html
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    for link in page.all("a", "href"):
        assert link[1:] in ids if link.startswith("#") else (folder / unquote(link)).is_file(), link
    return html, page


def test_every_changed_photograph_is_shown_with_both_labels_reason_and_file(cleaned: Path) -> None:
    html, page = read(cleaned)
    assert "4 of 9 photographs changed" in page.text and "kept: 1 photograph." in page.text
    cards = dict(zip(("drop", "relabel", "soft", "down"), re.findall(r'<figure class="card">.*?</figure>', html, re.S)))
    wanted = {
        "drop": (NAMES[0], "<b>blight</b>", "blurred <i>"),
        "relabel": (NAMES[1], "mosaic", "葉 healthy", "decided by hand in own.csv"),
        "soft": (NAMES[4], "mosaic 70", "葉 healthy 30", "copies disagree"),
        "down": (NAMES[5], "weight 0.25", "far away"),
    }
    for action, (name, *words) in wanted.items():
        text = Page(cards[action]).text
        assert all(word in text for word in words), (action, text)
        links = {(cleaned / unquote(link)).resolve() for link in re.findall(r'href="([^"]*)"', cards[action])}
        assert links == {(cleaned.parent / "photos" / name).resolve()}
    assert "<b>blight</b>" not in html and "leaf 8.jpg" not in page.text


def test_counts_without_columns_of_zeros(cleaned: Path) -> None:
    _, page = read(cleaned)
    for head in ("before", "after", "left out", "moved away", "moved here", "soft", "weighted down"):
        assert head in page.text
    clean(cleaned.parent / "run", cleaned, decisions=_drop_one(cleaned.parent), update=True)
    html, page = read(cleaned)
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", html)
    assert heads == ["class", "before", "after", "left out"]
    assert [re.findall(r">([\d,]+)</td>", row) for row in re.findall(r"<tr>.*?</tr>", html)][1] == ["3", "2", "1"]


def _drop_one(home: Path) -> Path:
    (home / "one.csv").write_text("image_id,action\nleaf 3.jpg,drop\n", encoding="utf-8")
    return home / "one.csv"


def test_many_are_cut_and_the_same_files_give_the_same_bytes(cleaned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_clean_page(cleaned).read_bytes()
    assert make_clean_page(cleaned).read_bytes() == first
    monkeypatch.setattr(clean_page, "SHOWN", 1)
    path = cleaned.parent / "three.csv"
    path.write_text("image_id,action\nleaf 3.jpg,drop\nleaf 4.jpg,drop\nleaf 5.jpg,drop\n", encoding="utf-8")
    clean(cleaned.parent / "run", cleaned, decisions=path)
    html, page = read(cleaned)
    assert html.count("<figure") == 1 and "1 of 3 are shown" in page.text and "3 photographs" in page.text
    with pytest.raises(DataError):
        make_clean_page(cleaned.parent)


def test_the_table_can_be_read_in_80_columns() -> None:
    names = ["Cassava Mosaic Disease (CMD)", "Cassava Brown Streak Disease (CBSD)", "Healthy"]
    counts = pd.DataFrame({"class": names, "before": [13158, 2189, 2577], "after": [12001, 2100, 2500]})
    for name in ("dropped", "relabelled_away", "relabelled_to", "soft", "down_weighted"):
        counts[name] = [1157, 88, 7]
    console = Console(width=80)
    with console.capture() as shown:
        console.print(counts_grid(counts))
    text = shown.get()
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    for word in ("before", "after", "weighted", "13158", "2189", "17924"):
        assert word in text
    with console.capture() as shown:
        console.print(counts_grid(counts.assign(soft=0, down_weighted=0, relabelled_to=0, relabelled_away=0)))
    assert shown.get().split()[:4] == ["class", "before", "after", "left"]


def test_the_report_of_a_run_on_a_cleaned_manifest_says_so(cleaned: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "made", n=20)
    assert "Labels were cleaned" not in make_report(run).read_text(encoding="utf-8")
    Manifest.load(cleaned / "manifest.parquet").save(run / "manifest.parquet")
    page = Page(make_report(run).read_text(encoding="utf-8"))
    assert "Labels were cleaned" in page.text and "The number left out is unknown" in page.text
    carry_counts(cleaned / "manifest.parquet", run)
    page = Page(make_report(run).read_text(encoding="utf-8"))
    assert "1 left out" in page.text and "moved here" in page.text and not page.wrong and not page.open
    assert "1 have another label, 1 a soft label, and 1 a lower weight" in " ".join(page.text.split())
    carry_counts(run / "predictions/none.parquet", run)
    assert not (run / CARRIED).exists()
