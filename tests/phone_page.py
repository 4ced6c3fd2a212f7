"""The phone page of a small run, and the page opened in a real Chromium without a network."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import manihot
from manihot.errors import SettingsError
from manihot.export import certify, phone
from manihot.networks.runner import OnnxRunner
from manihot.photos.decode import decode_photo
from manihot.photos.preprocess import Preprocess
from npm import npm_package
from review_browser import start_browser

ONE = manihot.Compute(workers=1)
FAST = [
    "model.backbone=tf_efficientnet_lite0",
    "features.choose=[]",
    "folds.n=2",
    "features.c=[0.01]",
    "photo.area=16384",
    "tta=[{name: full}]",
]
TITLE = "What's wrong </script> & <b>?"
ADVICE = """
expert: {en: "Call <b>Amina</b>", sw: Mpigie Amina}
classes:
  Healthy:
    name: {en: Healthy plant, sw: Mmea wenye afya}
    text:
      en: |
        Nothing to do.

        Look again in two weeks.
      sw: Hakuna la kufanya.
    pictures:
      - {file: leaf.png, text: {en: A healthy leaf}}
"""


@pytest.fixture(scope="session")
def runtime() -> Path:
    """onnxruntime-web: of $MANIHOT_CACHE, or got by npm."""
    try:
        return phone.find_runtime()
    except SettingsError:
        return phone.find_runtime(npm_package("onnxruntime-web", phone.VERSION))


@pytest.fixture(scope="session")
def phone_export(tmp_path_factory: pytest.TempPathFactory, runtime: Path) -> Path:
    """A folder with a run of drawn photographs, its model, its page, and the page as an app.

    The certificate's look into the page, which takes minutes, is tested apart.
    """
    home = tmp_path_factory.mktemp("phone")
    manihot.demo_data(home / "demo", photos=60)
    manihot.run(home / "demo", out=home / "run", recipe="quick", set=FAST, compute=ONE)
    (home / "advice.yaml").write_text(ADVICE, encoding="utf-8")
    Image.new("RGB", (1600, 900), (40, 120, 50)).save(home / "leaf.png")
    extras = manihot.PageOptions(title=TITLE, advice=home / "advice.yaml", app=home / "app")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certify, "find_browser", lambda: (None, "not looked for"))
        manihot.export(home / "run", out=home / "out", phone=home / "page.html", runtime=runtime, page=extras)
    return home


@pytest.fixture(scope="module")  # a browser that stays open holds the event loop, which other tests need
def browser_of_pages() -> Iterator[Any]:
    """A real Chromium without a window."""
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as play:
        started = start_browser(play)
        yield started
        started.close()


@pytest.fixture
def chromium(browser_of_pages: Any) -> Iterator[Any]:
    """The browser; what a test opens in it is closed in the end, as every page holds a model."""
    yield browser_of_pages
    for context in browser_of_pages.contexts:
        context.close()


def facts_of(page: Path) -> dict[str, Any]:
    """The facts that a page holds."""
    html = page.read_text(encoding="utf-16")
    found: dict[str, Any] = json.loads(html.split('id="facts">')[1].split("</script>")[0])
    return found


def with_facts(page: Path, out: Path, **changes: Any) -> Path:
    """The page with other facts."""
    head, rest = page.read_text(encoding="utf-16").split('id="facts">')
    text = json.dumps({**facts_of(page), **changes}, ensure_ascii=False).replace("<", "\\u003c")
    html = f'{head}id="facts">{text}</script>{rest.split("</script>", 1)[1]}'
    out.write_bytes(b"\xff\xfe" + html.encode("utf-16-le"))
    return out


class Opened:
    """The page on a small screen, without a network; `asked` and `said` are its requests and complaints."""

    def __init__(self, browser: Any, page: Path | str, offline: bool = True, **options: Any) -> None:
        self.asked: list[str] = []
        self.said: list[str] = []
        options = {"viewport": {"width": 390, "height": 844}, **options}
        self.context = browser.new_context(offline=offline, accept_downloads=True, **options)
        self.open(page)

    def open(self, page: Path | str) -> None:
        """Open a page in the same browser profile."""
        self.page = self.context.new_page()
        self.page.set_default_timeout(90_000)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(page.as_uri() if isinstance(page, Path) else page)
        self.tested = self.page.evaluate("manihot.ready", None)

    def give(self, files: Sequence[Path], by: str = "gallery") -> list[dict[str, Any]]:
        """What the page makes of photographs of one plant, beside those that it has."""
        self.page.set_input_files(f"#{by}", [str(file) for file in files])
        self.page.wait_for_selector("#gallery:enabled", state="attached")
        script = """manihot.plant.photos.map(one => ({
          probabilities: one.probabilities, raw: one.raw, faults: one.faults, strange: one.strange, used: one.used,
          quality: one.quality, strangeness: one.strangeness, input: Array.from(one.input.data),
          answer: manihot.answerOf(one, manihot.facts),
        }))"""
        found: list[dict[str, Any]] = self.page.evaluate(script)
        return found

    def save(self, to: Path) -> Path:
        """The file that the page hands out."""
        self.page.evaluate("document.getElementById('history').open = true")
        with self.page.expect_download() as waiting:
            self.page.click("#hand-out")
        waiting.value.save_as(to)
        return to

    def close(self) -> None:
        """Close the page and forget its profile."""
        self.context.close()


def differences(out: Path, files: Sequence[Path], answers: Sequence[dict[str, Any]]) -> tuple[int, float]:
    """How many photographs have other pixels than in Python, and the largest difference of a probability."""
    about = json.loads((out / "model.json").read_text(encoding="utf-8"))
    preprocess, runner = Preprocess.from_json(about["preprocess"]), OnnxRunner(out / "model.onnx")
    others, largest = 0, 0.0
    for file, answer in zip(files, answers, strict=True):
        expected = preprocess(preprocess.for_store(decode_photo(file)))
        others += not np.array_equal(np.array(answer["input"], np.uint8), expected.reshape(-1))
        found = runner(expected[None])["probabilities"][0]
        largest = max(largest, float(np.abs(found - answer["probabilities"]).max()))
    return others, largest


def photographs(home: Path) -> list[Path]:
    """Of the run; one turned by its EXIF orientation, one with transparency, one larger than a strip."""
    found = [path for path in sorted((home / "demo/train_images").glob("*.jpg")) if path.stat().st_size > 4000][:3]
    with Image.open(found[0]) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        exif[0x9003] = "2026:05:04 03:02:01"
        image.save(home / "turned.jpg", exif=exif, quality=90)
        image.convert("RGB").resize((1403, 997)).save(home / "large.png")
    return [*found, home / "turned.jpg", home / "large.png"]


def run_node(script: str, *files: Path) -> str:
    """What a script of ES modules joined into one prints."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    done = subprocess.run(
        ["node", "--input-type=module", "-", *map(str, files)],
        input=script,
        check=True,
        timeout=300,
        capture_output=True,
        encoding="utf-8",
    )
    return done.stdout
