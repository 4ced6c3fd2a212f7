"""Every page in a real Chromium, light, dark and narrow: axe-core finds nothing serious, nothing is cut off."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import manihot
from npm import npm_package

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
AXE = "4.10.3"
SERIOUS = {"serious", "critical"}
FAST = ["folds.n=2", "features.c=[0.01]", "photo.area=16384", "tta=[{name: full}]"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every kind of page."""
    home = tmp_path_factory.mktemp("pages")
    compute = manihot.Compute(workers=1)
    manihot.demo_data(home / "demo", photos=60)
    manihot.run(home / "demo", out=home / "run", recipe="quick", set=FAST, compute=compute)
    manihot.clean(home / "run", out=home / "cleaned")
    some = sorted((home / "demo/train_images").glob("*.jpg"))[:4]
    manihot.explain(home / "run", some, out=home / "explained.html", compute=compute)
    manihot.watch(home / "run", home / "demo", out=home / "watched", compute=compute)
    manihot.show_augment("standard", some[3], out=home / "augment.html")
    return home


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


PAGES = ("run/report.html", "run/audit.html", "cleaned/clean.html", "explained.html", "watched/*.html", "augment.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_used_by_everybody(pages: Path, browser: Any, name: str, scheme: str) -> None:
    axe = npm_package("axe-core", AXE) / "axe.min.js"
    context = browser.new_context(color_scheme=scheme, offline=True, bypass_csp=True)
    page = context.new_page()
    page.goto(next(pages.glob(name)).as_uri())
    page.add_script_tag(path=str(axe))
    found = page.evaluate("axe.run()")
    wrong = [
        f"{one['id']}: {one['help']}: {[node['html'][:120] for node in one['nodes'][:3]]}"
        for one in found["violations"]
        if one["impact"] in SERIOUS
    ]
    assert not wrong, "\n".join(wrong)
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()
