"""Make the pictures of the README and the docs: a demo run, and its pages in Chromium.

    python tools/screenshots.py --work FOLDER                     # docs/images/{report,review-page,phone*}.png
    python tools/screenshots.py --work FOLDER --check PICTURES    # every page: light, dark, print and 400 px wide

FOLDER keeps the run, so that a second call only draws. It needs playwright, Chromium and, for the phone page, the
unpacked npm package onnxruntime-web (--runtime, or npm).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageFilter
from playwright.sync_api import sync_playwright

import manihot

IMAGES = Path(__file__).parents[1] / "docs/images"
ORT = "onnxruntime-web@1.30.0"
WAYS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1200, "height": 900}},
    "dark": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"},
    "narrow": {"viewport": {"width": 400, "height": 800}},
}


def make_pages(work: Path, photos: int, more: bool) -> None:
    """The demo run and its pages, in `work`; what is there already stays."""
    demo, run = work / "demo", work / "run"
    if not demo.exists():
        manihot.demo_data(demo, photos=photos)
    if not (run / "report.html").exists():
        manihot.run(demo, out=run, recipe="quick")
    manihot.report(run)
    manihot.review(run, n=60)
    if not more:
        return
    manihot.audit(demo, out=run, recipe="quick", what_if=True)
    manihot.clean(run, out=work / "cleaned", update=True)
    some = sorted((demo / "train_images").glob("*.jpg"))
    manihot.explain(run, some[:4], out=work / "explained.html")
    manihot.watch(run, demo, out=work / "watched")
    manihot.show_augment("standard", some[3], out=work / "augment.html")


def make_phone_page(work: Path, runtime: Path | None) -> Path:
    """The phone page of the run, made with onnxruntime-web from `runtime` or npm."""
    page = work / "phone.html"
    if not page.exists():
        if runtime is None:
            subprocess.run(["npm", "pack", "--silent", ORT], cwd=work, check=True)
            shutil.unpack_archive(next(work.glob("onnxruntime-web-*.tgz")), work, filter="data")
            runtime = work / "package"
        manihot.export(work / "run", phone=page, runtime=runtime, int8=True)
    return page


def examples(work: Path) -> list[Path]:
    """Two photographs of the same drawn disease, for the phone page."""
    demo = work / "demo/train_images"
    table = manihot.Manifest.load(work / "run/manifest.parquet").table
    ids = table["image_id"][table["label"] == int(table["label"].mode()[0])]
    return [demo / name for name in ids[:2]]


@contextmanager
def opened(browser: Any, page: Path, **context: Any) -> Iterator[Any]:
    """A page in a browser without a network."""
    held = browser.new_context(offline=True, **context)
    shown = held.new_page()
    shown.goto(page.as_uri())
    yield shown
    held.close()


def draw_images(browser: Any, work: Path, phone: Path, images: Path) -> None:
    """The pictures of the README and of docs/review.md."""
    with opened(browser, work / "run/report.html", viewport={"width": 1000, "height": 720}) as page:
        page.screenshot(path=images / "report.png")
    with opened(browser, work / "run/review.html", viewport={"width": 1000, "height": 720}) as page:
        page.fill("#name", "Ana")
        page.keyboard.press("Enter")
        page.keyboard.press("2")
        page.screenshot(path=images / "review-page.png")
    for scheme, width in (("light", 390), ("dark", 320)):
        how: dict[str, Any] = {"viewport": {"width": width, "height": 780}, "color_scheme": scheme}
        with opened(browser, phone, **how) as page:
            draw_phone(page, work, images, "" if scheme == "light" else "-dark")


def draw_phone(page: Any, work: Path, images: Path, ending: str) -> None:
    """The main screens of the phone page: a refused photograph, an answer, where it looked, what is kept."""

    def give(files: list[Path]) -> None:
        page.set_input_files("#gallery", [str(file) for file in files])
        page.wait_for_selector("#gallery:enabled", state="attached", timeout=120_000)

    def shot(name: str) -> None:
        path = images / f"phone{name}{ending}.png"
        page.screenshot(path=path)
        with Image.open(path) as shown:
            few = shown.convert("RGB").quantize(128)
        few.save(path, optimize=True)

    good = examples(work)
    with Image.open(good[0]) as photo:
        photo.convert("RGB").filter(ImageFilter.GaussianBlur(max(photo.size) / 60)).save(work / "blurred.png")
    page.evaluate("ready")
    give([work / "blurred.png"])
    shot("-poor")
    page.click("#again")
    give(good)
    shot("")
    page.click("#look")
    page.evaluate("document.getElementById('look').scrollIntoView()")
    shot("-looked")
    page.click("#again")
    page.evaluate("document.getElementById('history').open = true; document.getElementById('history').scrollIntoView()")
    shot("-history")


def draw_checks(browser: Any, work: Path, pictures: Path) -> None:
    """Every page in every way that a reader may see it, to be checked by eye."""
    names = ["run/report", "run/audit", "run/review", "cleaned/clean", "explained", "watched/WATCH", "augment", "phone"]
    for page in [work / f"{name}.html" for name in names]:
        for way, context in WAYS.items():
            with opened(browser, page, **context) as shown:
                shown.screenshot(path=pictures / f"{page.stem}-{way}.png", full_page=True)
        with opened(browser, page, **WAYS["light"]) as shown:
            shown.pdf(path=pictures / f"{page.stem}.pdf", format="A4")


def main() -> None:
    """Make the run, then the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=600)
    parser.add_argument("--runtime", type=Path)
    parser.add_argument("--images", type=Path, default=IMAGES)
    parser.add_argument("--check", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    make_pages(args.work, args.photos, args.check is not None)
    phone = make_phone_page(args.work, args.runtime)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        if args.check is None:
            draw_images(browser, args.work, phone, args.images)
        else:
            args.check.mkdir(parents=True, exist_ok=True)
            draw_checks(browser, args.work, args.check)
        browser.close()


if __name__ == "__main__":
    main()
