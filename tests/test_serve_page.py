"""The server in a real Chromium: the phone page, its answers beside those of predict and of the server, and returns."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

import manihot
from manihot.export import int8
from manihot.settings.options import Compute, NetworkChoice
from phone_page import FAST, ONE
from review_browser import find_axe, serious_findings, start_browser, until
from test_returns import sound
from test_serve import Running, running

TOKEN = "a-token-of-twenty-letters"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as play:
        started = start_browser(play)
        yield started
        started.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, runtime: Path) -> Path:
    """A folder with exports in single precision and in int8, each with its page."""
    home = tmp_path_factory.mktemp("same")
    manihot.demo_data(home / "demo", photos=60)
    manihot.run(home / "demo", out=home / "run", recipe="quick", set=FAST, compute=ONE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "check_int8", lambda *_: None)  # too few photographs to judge it on
        patch.setattr("manihot.export.write.COMPARED", 2)
        patch.setattr("manihot.export.certify.hard_photographs", lambda large: {})  # tests/test_export.py has them
        for name, small in (("fp32", False), ("int8", True)):
            choice = NetworkChoice(int8_kind="static")
            page = home / name / "phone.html"
            manihot.export(home / "run", out=home / name, int8=small, choice=choice, phone=page, runtime=runtime)
    (home / "int8/model.onnx").unlink()  # int8 alone: what predict then takes
    return home


@pytest.fixture(scope="module")
def photographs(home: Path) -> Path:
    """Photographs as they come: three times their size, turned by EXIF, PNG, odd sizes, one smaller than the input."""
    folder = home / "photographs"
    folder.mkdir()
    found = [path for path in sorted((home / "demo/train_images").glob("*.jpg")) if path.stat().st_size > 4000][:12]
    for path in found:
        shutil.copy(path, folder)
    with Image.open(found[0]) as image:
        rgb = image.convert("RGB")
    rgb.resize((2403, 1801)).save(folder / "large.jpg", quality=80)
    rgb.resize((701, 463)).save(folder / "odd.jpg", quality=95, subsampling=0)
    rgb.resize((101, 77)).save(folder / "small.png")
    rgb.resize((1403, 997)).save(folder / "large.png")
    rgb.convert("L").resize((333, 500)).save(folder / "grey.jpg")
    rgb.resize((640, 480)).save(folder / "progressive.jpg", progressive=True)
    for orientation in (3, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        rgb.resize((1602, 1201)).save(folder / f"turned{orientation}.jpg", exif=exif, quality=90)
    with Image.open(folder / "turned6.jpg") as image:
        assert ImageOps.exif_transpose(image).size == (1201, 1602)
    return folder


def of_predict(export: Path, photographs: Path, out: Path) -> dict[str, str]:
    """The JSON of the probabilities that `manihot predict EXPORT` writes, by file name."""
    manihot.predict(export, photographs, out=out, compute=Compute(workers=1))
    lines = out.with_name(f"{out.stem}.answers.jsonl").read_text(encoding="utf-8").splitlines()
    rows = map(json.loads, lines)
    return {row["image_id"]: json.dumps(row["probabilities"]) for row in rows}


def of_server(server: Running, photographs: Path) -> dict[str, str]:
    answers = {
        path.name: server.client.post("/v1/classify", content=path.read_bytes()) for path in photographs.iterdir()
    }
    return {name: json.dumps(answer.json()["probabilities"]) for name, answer in answers.items()}


def of_page(server: Running, browser: Any, photographs: Path) -> dict[str, list[float]]:
    """The probabilities that the page computes, which comes from the server."""
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.evaluate("ready", None)
    page.evaluate(
        "() => { const i = document.createElement('input'); i.type = 'file'; i.id = 'own'; document.body.append(i); }"
    )
    found = {}
    for path in sorted(photographs.iterdir()):
        page.set_input_files("#own", str(path))
        look = "async () => Array.from((await classify(document.getElementById('own').files[0])).probabilities)"
        found[path.name] = page.evaluate(look)
    page.close()
    return found


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_predict_the_server_and_the_phone_page_give_the_same_json(
    home: Path, photographs: Path, browser: Any, tmp_path: Path, precision: str
):
    """In int8 byte for byte. In single precision, predict and the server byte for byte; WebAssembly adds the products
    of a convolution in another order, which moves a probability by less than two of its last digit."""
    predicted = of_predict(home / precision, photographs, tmp_path / "out.csv")
    with running(home / precision, tmp_path / "log") as server:
        served, page = of_server(server, photographs), of_page(server, browser, photographs)
    names = {path.name for path in photographs.iterdir()}
    by_stem = {name: next(row for i, row in predicted.items() if i in (name, Path(name).stem)) for name in names}
    assert len(names) == 21 and len(predicted) == 21 and by_stem == served
    rounded = {name: json.dumps([round(p, 6) for p in row]) for name, row in page.items()}
    if precision == "int8":
        assert rounded == served
    else:
        far = [np.abs(np.array(row) - json.loads(served[name])).max() for name, row in page.items()]
        assert max(far) < 2e-6
        assert sum(rounded[name] == served[name] for name in names) > len(names) / 3


def test_phones_get_the_page_at_a_hotspot_and_keep_it(home: Path, browser: Any, tmp_path: Path):
    with running(home / "int8", tmp_path / "log") as server:
        context = browser.new_context(viewport={"width": 390, "height": 844})
        page, said = context.new_page(), []
        page.on("pageerror", lambda error: said.append(str(error)))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        answer = page.goto(f"http://127.0.0.1:{server.port}/")
        assert answer.status == 200 and answer.headers["cache-control"] == "no-cache"
        assert page.evaluate("ready", None)["good"]
        again = server.client.get("/", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304 and not again.content
        assert server.end() == 0
    photo = next(path for path in sorted((home / "demo/train_images").glob("*.jpg")) if path.stat().st_size > 4000)
    page.set_input_files("#gallery", str(photo))  # the server is gone: the page has all it needs
    page.wait_for_selector("#answer", state="visible", timeout=120_000)
    assert not said and {url.split(":")[0] for url in asked} <= {"http", "blob", "data"}
    assert sum(url.startswith("http") for url in asked) <= 2  # the page, and at most an icon
    context.close()


def test_a_phone_hands_in_its_returns_with_a_token(home: Path, browser: Any, tmp_path: Path):
    (tmp_path / "tokens").write_text(f"field {TOKEN}\n", encoding="utf-8")
    options = ("--returns", str(tmp_path / "returns"), "--tokens", str(tmp_path / "tokens"))
    archive = sound(tmp_path / "returns.zip")
    (tmp_path / "other.zip").write_bytes(b"PK\x03\x04 nothing")
    with running(home / "int8", tmp_path / "log", *options) as server:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto(f"http://127.0.0.1:{server.port}/returns")
        assert not page.is_visible("#token")
        page.set_input_files("#zip", str(archive))
        page.wait_for_selector("#token", state="visible")
        assert "token" in page.inner_text("#answer")
        page.fill("#token", TOKEN)
        page.set_input_files("#zip", str(tmp_path / "other.zip"))
        until(page, "!/Sending|token/.test(document.getElementById('answer').textContent)")
        assert "Received" not in page.inner_text("#answer")
        page.set_input_files("#zip", str(archive))
        until(page, "document.getElementById('answer').textContent.startsWith('Received')")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.close()
    kept = list((tmp_path / "returns").iterdir())
    assert [one.read_bytes() for one in kept] == [archive.read_bytes()]


def test_without_a_phone_page_the_server_classifies_what_a_phone_sends(home: Path, browser: Any, tmp_path: Path):
    shutil.copytree(home / "int8", tmp_path / "bare", ignore=shutil.ignore_patterns("phone.html"))
    photo = next(path for path in sorted((home / "demo/train_images").glob("*.jpg")) if path.stat().st_size > 4000)
    with running(tmp_path / "bare", tmp_path / "log") as server:
        page, said = browser.new_page(viewport={"width": 390, "height": 844}), []
        page.on("console", lambda message: said.append(message.text))
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.set_input_files("#photo", str(photo))
        until(page, "document.getElementById('answer').textContent.includes('%')")
        answer = server.client.post("/v1/classify", content=photo.read_bytes()).json()
        shown = page.inner_text("#answer")
        assert (answer["refused"] or answer["answer"]) in shown and all(name in shown for name in answer["classes"])
        page.set_input_files("#photo", str(Path(__file__)))
        until(page, "!document.getElementById('answer').textContent.includes('%')")
        until(page, "document.getElementById('answer').textContent.length > 5")
        assert "JPEG" in page.inner_text("#answer")
        assert serious_findings(page, find_axe()) == []
        assert [text for text in said if "favicon" not in text and "415" not in text and "404" not in text] == []
        page.close()
