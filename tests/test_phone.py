"""The phone page: its resize is manihot's to the bit, and in a real Chromium, offline, it answers as Python does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import manihot
from manihot.errors import SettingsError
from manihot.export import phone
from manihot.networks.runner import OnnxRunner
from manihot.photos.decode import decode_photo
from manihot.photos.preprocess import Preprocess

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
    """Noise of many sizes, also whole multiples, shrunk, enlarged and both at once, fitted in each way."""
    rng, cases = np.random.default_rng(11), []
    for k in range(n):
        (h, w), (height, width) = rng.integers(1, 130, 2), rng.integers(1, 80, 2)
        if k % 4 == 0:
            down, across = rng.integers(1, 6, 2)
            h, w = height * down, width * across
        stored = None if k % 2 else (int(rng.integers(1, 90)), int(rng.integers(1, 90)))
        preprocess = Preprocess((int(height), int(width)), ("squash", "crop", "pad")[k % 3], stored=stored)
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
FAST = ["folds.n=2", "features.c=[0.01]", "photo.area=16384", "tta=[{name: full}]"]


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


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_page_answers_offline_as_python_does(exported: Path):
    api = pytest.importorskip("playwright.sync_api")
    about = json.loads((exported / "out/model.json").read_text(encoding="utf-8"))
    preprocess, runner = Preprocess.from_json(about["preprocess"]), OnnxRunner(exported / "out/model.onnx")
    files = photographs(exported)
    asked, said = [], []
    with api.sync_playwright() as play:
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = play.chromium.launch(executable_path=CHROMIUM, args=flags)
        context = browser.new_context(viewport={"width": 390, "height": 844}, offline=True)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((exported / "page.html").as_uri())
        tested = page.evaluate("ready", None)
        assert tested["good"] and tested["same"] and tested["differs"] < 1e-5, tested
        page.set_input_files("#gallery", [str(file) for file in files])
        page.wait_for_selector("#answer", state="visible", timeout=120_000)
        answers = page.evaluate("plant.map(one => [one.probabilities, Array.from(one.input.data)])")
        heading, shown = page.inner_text("#answer h2"), page.inner_text("#answer")
        wide = page.evaluate("document.documentElement.scrollWidth")
        low = page.evaluate("Math.min(...[...document.querySelectorAll('.button')].map(b => b.offsetHeight))")
        if folder := os.environ.get("MANIHOT_SCREENSHOTS"):
            page.screenshot(path=str(Path(folder) / "phone.png"), full_page=True)
        title = page.inner_text("h1")
        page.click("#again")
        empty = page.evaluate("plant.length")
        page.set_input_files("#gallery", [str(exported / "page.html")])
        page.wait_for_selector("#start.bad")
        bad = page.inner_text("#start")
        browser.close()
    for file, (probabilities, pixels) in zip(files, answers, strict=True):
        expected = preprocess(preprocess.for_store(decode_photo(file)))
        assert np.array_equal(np.array(pixels, np.uint8), expected.reshape(-1)), file
        assert np.abs(runner(expected[None])["probabilities"][0] - probabilities).max() < 1e-4, file
    mean = np.mean([probabilities for probabilities, _ in answers], axis=0)
    assert about["classes"][int(mean.argmax())] in shown and f"From {len(files)} photographs" in shown and heading
    assert title == "What's wrong </script> & <b>?" and wide <= 390 and low >= 64 and empty == 0
    assert "could not be read as a photograph" in bad
    assert {url.split(":")[0] for url in asked} <= {"file", "blob", "data"} and not said, (asked, said)
