"""The phone page: its resize is manihot's to the bit, and in a real Chromium, offline, it answers as Python does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import manihot
from conftest import shared_data
from manihot.errors import SettingsError
from manihot.export import phone
from manihot.networks.runner import OnnxRunner
from manihot.photos.decode import decode_photo
from manihot.photos.preprocess import Preprocess
from manihot.trust.conformal import ConformalSets, fit_sets

PAGE = Path(phone.__file__).parent / "page"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
REPLAY = """
const fs = require('fs'), [cases, bytes, out] = process.argv.slice(2), all = fs.readFileSync(bytes), made = [];
let at = 0;
for (const one of JSON.parse(fs.readFileSync(cases))) {
  const n = one.h * one.w * 3;
  const img = {data: new Uint8Array(all.subarray(at, at + n)), h: one.h, w: one.w};
  made.push(Buffer.from(prepare(img, one.preprocess).data));
  at += n;
}
fs.writeFileSync(out, Buffer.concat(made));
"""


def draw_cases(n: int) -> list[tuple[np.ndarray, Preprocess]]:
    """Noise of many sizes, also whole multiples, shrunk, enlarged and both at once, fitted in each way,
    some with their own proportions in the first step."""
    rng, cases = np.random.default_rng(11), []
    for k in range(n):
        (h, w), (height, width) = rng.integers(1, 130, 2), rng.integers(1, 80, 2)
        if k % 4 == 0:
            down, across = rng.integers(1, 6, 2)
            h, w = height * down, width * across
        stored = None if k % 2 else (int(rng.integers(1, 90)), int(rng.integers(1, 90)))
        preprocess = Preprocess(
            (int(height), int(width)), ("squash", "crop", "pad")[k % 3], stored=stored, own=k % 5 < 2
        )
        cases.append((rng.integers(0, 256, (h, w, 3), dtype=np.uint8), preprocess))
    return cases


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_pages_resize_is_manihots_to_the_bit(tmp_path: Path):
    cases = draw_cases(600)
    about = [{"h": rgb.shape[0], "w": rgb.shape[1], "preprocess": how.to_json()} for rgb, how in cases]
    (tmp_path / "cases.json").write_text(json.dumps(about), encoding="utf-8")
    (tmp_path / "bytes").write_bytes(b"".join(rgb.tobytes() for rgb, _ in cases))
    script = (PAGE / "pixels.js").read_text(encoding="utf-8") + REPLAY
    (tmp_path / "replay.js").write_text(script, encoding="utf-8")
    files = [str(tmp_path / name) for name in ("replay.js", "cases.json", "bytes", "out")]
    subprocess.run(["node", *files], check=True, timeout=120)
    found, at = np.fromfile(tmp_path / "out", np.uint8), 0
    for rgb, how in cases:
        expected = how(how.for_store(rgb))
        part = found[at : at + expected.size].reshape(expected.shape)
        assert np.array_equal(part, expected), (rgb.shape, how)
        at += expected.size
    assert at == len(found)


def test_without_the_runtime_the_command_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MANIHOT_CACHE", str(tmp_path))
    with pytest.raises(SettingsError, match=r"npm pack onnxruntime-web@1\.30\.0"):
        phone.find_runtime()
    with pytest.raises(SettingsError, match="--runtime"):
        phone.find_runtime(tmp_path / "none")


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """onnxruntime-web: of $MANIHOT_CACHE, or got by npm."""
    try:
        return phone.find_runtime()
    except SettingsError:
        pass
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, and $MANIHOT_CACHE holds no onnxruntime-web")
    folder = tmp_path_factory.mktemp("runtime")
    name = f"onnxruntime-web@{phone.VERSION}"
    done = subprocess.run(["npm", "pack", name], cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm pack {name} failed: {done.stderr[-300:]}")
    shutil.unpack_archive(next(folder.glob("*.tgz")), folder, filter="data")
    return phone.find_runtime(folder)


ONE = manihot.Compute(workers=1)
FAST = [
    "model.backbone=tf_efficientnet_lite0",
    "features.choose=[]",
    "folds.n=2",
    "features.c=[0.01]",
    "photo.area=16384",
    "tta=[{name: full}]",
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, runtime: Path) -> Path:
    """A folder with a run of drawn photographs, its model and its page."""
    home = tmp_path_factory.mktemp("phone")
    manihot.demo_data(home / "demo", photos=60)
    manihot.run(home / "demo", out=home / "run", recipe="quick", set=FAST, compute=ONE)
    title = "What's wrong </script> & <b>?"
    manihot.export(home / "run", out=home / "out", phone=home / "page.html", runtime=runtime, title=title)
    return home


def photographs(home: Path) -> list[Path]:
    """Of the run; one turned by its EXIF orientation, one with transparency, one larger than a strip."""
    found = [path for path in sorted((home / "demo/train_images").glob("*.jpg")) if path.stat().st_size > 4000][:3]
    with Image.open(found[0]) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(home / "turned.jpg", exif=exif, quality=90)
        image.convert("RGB").resize((1403, 997)).save(home / "large.png")
    return [*found, home / "turned.jpg", home / "large.png"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium without a window."""
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


class Opened:
    """The page on a small screen, without a network; `asked` and `said` are its requests and complaints."""

    def __init__(self, browser: Any, page: Path) -> None:
        self.asked: list[str] = []
        self.said: list[str] = []
        context = browser.new_context(viewport={"width": 390, "height": 844}, offline=True)
        self.page = context.new_page()
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(page.as_uri())
        self.tested = self.page.evaluate("ready", None)

    def give(self, files: Sequence[Path]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Probabilities (K,) and the network's input, as bytes, of photographs of one plant."""
        self.page.set_input_files("#gallery", [str(file) for file in files])
        self.page.wait_for_selector("#answer", state="visible", timeout=300_000)
        found = self.page.evaluate("plant.map(one => [one.probabilities, Array.from(one.input.data)])")
        assert len(found) == len(files)
        return [(np.array(probabilities), np.array(pixels, np.uint8)) for probabilities, pixels in found]


def differences(out: Path, files: Sequence[Path], answers: list[tuple[np.ndarray, np.ndarray]]) -> tuple[int, float]:
    """How many photographs have other pixels than in Python, and the largest difference of a probability."""
    about = json.loads((out / "model.json").read_text(encoding="utf-8"))
    preprocess, runner = Preprocess.from_json(about["preprocess"]), OnnxRunner(out / "model.onnx")
    others, largest = 0, 0.0
    for file, (probabilities, pixels) in zip(files, answers, strict=True):
        expected = preprocess(preprocess.for_store(decode_photo(file)))
        others += not np.array_equal(pixels, expected.reshape(-1))
        largest = max(largest, float(np.abs(runner(expected[None])["probabilities"][0] - probabilities).max()))
    return others, largest


def test_the_page_answers_offline_as_python_does(exported: Path, browser: Any):
    files = photographs(exported)
    opened = Opened(browser, exported / "page.html")
    page, tested = opened.page, opened.tested
    assert tested["good"] and tested["same"] and tested["differs"] < 1e-5, tested
    answers = opened.give(files)
    others, largest = differences(exported / "out", files, answers)
    assert others == 0 and largest < 1e-4
    classes = json.loads((exported / "out/model.json").read_text(encoding="utf-8"))["classes"]
    mean = np.mean([probabilities for probabilities, _ in answers], axis=0)
    shown = page.inner_text("#answer")
    assert classes[int(mean.argmax())] in shown and f"From {len(files)} photographs" in shown
    assert page.inner_text("h1") == "What's wrong </script> & <b>?"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("Math.min(...[...document.querySelectorAll('.button')].map(b => b.offsetHeight))") >= 64
    if folder := os.environ.get("MANIHOT_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / "phone.png"), full_page=True)
    page.click("#again")
    assert page.evaluate("plant.length") == 0 and not page.is_visible("#answer")
    page.set_input_files("#gallery", [str(exported / "page.html")])
    page.wait_for_selector("#start.bad")
    assert "could not be read as a photograph" in page.inner_text("#start")
    assert {url.split(":")[0] for url in opened.asked} <= {"file", "blob", "data"}
    assert not opened.said


def test_a_device_that_computes_otherwise_says_so(exported: Path, browser: Any, tmp_path: Path):
    html = (exported / "page.html").read_text(encoding="utf-8")
    known = json.loads(html.split('id="facts">')[1].split("</script>")[0])["test"]["probabilities"]
    assert html.count(json.dumps(known)) == 1
    (tmp_path / "other.html").write_text(html.replace(json.dumps(known), json.dumps(known[::-1])), encoding="utf-8")
    opened = Opened(browser, tmp_path / "other.html")
    assert not opened.tested["good"] and opened.tested["differs"] > 0.01
    assert "this device differs" in opened.page.inner_text("#check.bad")


def sets_of(browser: Any, exported: Path, sets: ConformalSets, raw: np.ndarray) -> list[list[int]]:
    """The classes that the page names for each row of raw probabilities (n, K)."""
    opened = Opened(browser, exported / "page.html")
    words = "([sets, rows]) => { facts.sets = sets; return rows.map(row => predictionSet(row).sort()); }"
    return [sorted(map(int, one)) for one in opened.page.evaluate(words, [sets.to_json(), raw.tolist()])]


@pytest.mark.parametrize("kind", ["lac", "aps", "raps"])
def test_the_page_never_names_fewer_classes_than_python(exported: Path, browser: Any, kind: str):
    rng = np.random.default_rng(5)
    probs = rng.dirichlet(np.full(5, 0.6), 500)
    labels = np.array([rng.choice(5, p=row) for row in probs])
    sets = fit_sets(probs[:300], labels[:300], 0.8, kind=kind)
    found = sets_of(browser, exported, sets, probs[300:])
    held = np.zeros((200, 5), dtype=bool)
    for row, names in enumerate(found):
        held[row, names] = True
    largest = sets.predict_sets(probs[300:], np.zeros(200))  # the random share that lets most in
    assert np.array_equal(held, largest)


@pytest.mark.slow
def test_real_photographs_are_answered_as_in_python(exported: Path, browser: Any):
    leaves = sorted(shared_data("bracol/leaf").glob("*.jpg"))[::150]
    crops = sorted(shared_data("bracol/symptom").rglob("*.jpg"))[::150]
    files = [*leaves, *crops]
    others, largest = differences(exported / "out", files, Opened(browser, exported / "page.html").give(files))
    assert len(files) >= 20 and others == 0 and largest < 1e-4
