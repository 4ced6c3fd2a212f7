"""The phone page: its numbers are manihot's, in node and in a real Chromium, offline."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import string
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import manihot
from conftest import shared_data
from manihot.errors import SettingsError
from manihot.export import pack, phone
from manihot.export.browser import find_browser, look_in_browser
from manihot.export.bundle import Bundle
from manihot.export.witness import STAGES, Place, compare, look
from manihot.photos.decode import decode_photo
from manihot.photos.preprocess import Preprocess
from manihot.photos.quality import MEASURES, fit_quality, measure_quality
from manihot.trust.conformal import ConformalSets, fit_sets
from phone_page import TITLE, Opened, differences, facts_of, photographs, run_node, with_facts
from review_browser import find_axe, serious_findings

READ = "import {readFileSync, writeFileSync} from 'node:fs'; const files = process.argv.slice(2);\n"
REPLAY = """
const [cases, bytes, out] = files, all = readFileSync(bytes), made = [];
let at = 0;
for (const one of JSON.parse(readFileSync(cases))) {
  const n = one.h * one.w * 3;
  const img = {data: new Uint8Array(all.subarray(at, at + n)), h: one.h, w: one.w};
  made.push(Buffer.from(prepare(img, one.preprocess).data));
  at += n;
}
writeFileSync(out, Buffer.concat(made));
"""
DIGESTS = """
const found = [];
for (const n of [0, 1, 55, 56, 63, 64, 65, 1000, 100001]) {
  const bytes = Uint8Array.from({length: n}, (_, k) => (k * 7919 + 13) % 256);
  found.push([sha256(bytes), crc32(bytes)]);
}
console.log(JSON.stringify(found));
"""
UNPACK = """
const [text, packed, out] = files, about = JSON.parse(readFileSync(packed));
const bytes = fromText(readFileSync(text, 'utf16le').slice(1), about.packed);
writeFileSync(out, about.way === 'lzma' ? unlzma(bytes, about.bytes) : about.way ? await gunzip(bytes) : bytes);
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


def test_the_pages_resize_is_manihots_to_the_bit(tmp_path: Path):
    cases = draw_cases(600)
    about = [{"h": rgb.shape[0], "w": rgb.shape[1], "preprocess": how.to_json()} for rgb, how in cases]
    (tmp_path / "cases.json").write_text(json.dumps(about), encoding="utf-8")
    (tmp_path / "bytes").write_bytes(b"".join(rgb.tobytes() for rgb, _ in cases))
    files = [tmp_path / name for name in ("cases.json", "bytes", "out")]
    run_node(READ + phone.joined(("pixels",)) + REPLAY, *files)
    found, at = np.fromfile(tmp_path / "out", np.uint8), 0
    for rgb, how in cases:
        expected = how(how.for_store(rgb))
        part = found[at : at + expected.size].reshape(expected.shape)
        assert np.array_equal(part, expected), (rgb.shape, how)
        at += expected.size
    assert at == len(found)


@pytest.mark.parametrize("way", ["", "gzip", "lzma"])
def test_packed_bytes_come_back(tmp_path: Path, way: pack.Way):
    rng = np.random.default_rng(3)
    words = rng.choice([b"call", b"local.get", b"\0asm", b"i32.add", b"\xff\xfe"], 30_000).tolist()
    for content in (b"", b"a", b"ab" * 40, b"".join(words), rng.integers(0, 256, 70_001, dtype=np.uint8).tobytes()):
        made = pack.pack(content, way)
        (tmp_path / "about").write_text(json.dumps(made.to_json()), encoding="utf-8")
        (tmp_path / "text").write_bytes(pack.as_file(pack.as_text(made.content)))
        run_node(READ + phone.joined(("unpack",)) + UNPACK, *(tmp_path / name for name in ("text", "about", "out")))
        assert (tmp_path / "out").read_bytes() == content
    assert way != "lzma" or lzma.decompress(made.content) == content


def test_digests_are_the_known_ones():
    found = json.loads(run_node(READ + phone.joined(("zip",)) + DIGESTS))
    for n, (sha, crc) in zip((0, 1, 55, 56, 63, 64, 65, 1000, 100001), found, strict=True):
        content = bytes((k * 7919 + 13) % 256 for k in range(n))
        assert sha == hashlib.sha256(content).hexdigest() and crc == zlib.crc32(content)


def words_of(language: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(phone._read(f"words/{language}.json"))
    return found


@pytest.mark.parametrize("language", phone.LANGUAGES)
def test_every_language_says_everything(language: str):
    english, own = words_of("en"), words_of(language)
    assert list(own) == list(english)
    for key, text in own.items():
        fields = [
            sorted(name for _, name, _, _ in string.Formatter().parse(one) if name) for one in (english[key], text)
        ]
        assert text.strip() and fields[0] == fields[1], key
    assert language == "en" or sum(own[key] == english[key] for key in own) < 5


def test_every_text_of_the_page_is_used_and_known():
    source = "".join(phone._read(f"{name}.js") for name in phone.MODULES) + phone._read("page.html")
    known = words_of("en")
    assert known["title"] == phone.TITLE
    for key in known:
        stem = key.rpartition(".")[0]
        made = key.startswith("fault.") or (key.endswith((".one", ".other")) and f"'{stem}'" in source)
        assert made or f"'{key}'" in source or f'data-say="{key}"' in source, key
    assert {key.removeprefix("fault.") for key in known if key.startswith("fault.")} == {
        *("dark", "bright", "blurred", "far", "strange")
    }


def test_without_the_runtime_the_command_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MANIHOT_CACHE", str(tmp_path))
    with pytest.raises(SettingsError, match=r"npm pack onnxruntime-web@1\.30\.0"):
        phone.find_runtime()
    with pytest.raises(SettingsError, match="--runtime"):
        phone.find_runtime(tmp_path / "none")


def test_the_page_answers_offline_as_python_does(phone_export: Path, chromium: Any):
    files = photographs(phone_export)
    opened = Opened(chromium, phone_export / "page.html")
    page, tested = opened.page, opened.tested
    assert tested["good"] and tested["same"] and tested["differs"] < 1e-5, tested
    answers = opened.give(files)
    others, largest = differences(phone_export / "out", files, answers)
    assert others == 0 and largest < 1e-4
    expected = Bundle.load(phone_export / "out").classify([decode_photo(file) for file in files])
    assert [one["answer"] for one in answers] == [one.answer for one in expected]
    assert f"From {sum(one['used'] for one in answers)} photograph" in page.inner_text("#answer")
    assert page.inner_text("h1") == TITLE == page.title()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("Math.min(...[...document.querySelectorAll('.bar .button')].map(b => b.offsetHeight))") >= 64
    page.click("#again")
    assert page.evaluate("manihot.plant.photos.length") == 0 and not page.is_visible("#answer")
    opened.give([phone_export / "page.html"])
    assert "could not be read as a photograph" in page.inner_text("#start.bad")
    assert {url.split(":")[0] for url in opened.asked} <= {"file", "blob", "data"}
    assert not opened.said


def test_the_certificate_sees_in_the_page_what_python_makes_of_photographs(phone_export: Path):
    pytest.importorskip("playwright.sync_api")
    browser, why = find_browser()
    if browser is None:
        pytest.skip(why)
    files, bundle = [*photographs(phone_export), phone_export / "page.html"], Bundle.load(phone_export / "out")
    with ThreadPoolExecutor(1) as apart:  # playwright runs once in a thread
        looked = apart.submit(look_in_browser, phone_export / "page.html", files, bundle, browser)
        seen, version = looked.result()
    python = Place("python", "", look(bundle, files, full=True))
    found = compare(Place("page", f"Chromium {version}", seen, "python"), python)
    for stage in STAGES:
        assert found[stage]["photographs"] >= 5 and found[stage]["equal"] >= 5, (stage, found[stage])
    assert seen[-1].fault and version[:1].isdigit()


def test_several_photographs_are_pooled_as_predict_pools_them(phone_export: Path, chromium: Any, tmp_path: Path):
    files = []
    for file in photographs(phone_export)[:3]:  # as PNG, which predict too decodes in full
        files.append(tmp_path / f"{file.stem}.png")
        Image.fromarray(decode_photo(file)).save(files[-1])
    table = pd.DataFrame({"image": [str(file) for file in files], "plant": "p1"})
    table.to_csv(tmp_path / "plants.csv", index=False)
    columns = manihot.TableOptions(image="image", group="plant")
    manihot.predict(
        phone_export / "out", tmp_path / "plants.csv", out=tmp_path / "new.csv", pool="group", columns=columns
    )
    expected = pd.read_csv(tmp_path / "new.plants.csv", keep_default_na=False).iloc[0]
    opened = Opened(chromium, phone_export / "page.html")
    opened.give(files)
    found = opened.page.evaluate("manihot.poolPlant(manihot.plant.photos, manihot.facts)")
    assert found["used"] == expected["used"] and found["of"] == expected["photographs"] == 3
    classes = facts_of(phone_export / "page.html")["classes"]
    assert np.allclose(found["probabilities"], [expected[f"c{k}"] for k in range(len(classes))], atol=1e-5)
    assert {classes[k] for k in found["could"]} == set(filter(None, expected["could_be"].split(", ")))


def test_a_device_that_computes_otherwise_says_so(phone_export: Path, chromium: Any, tmp_path: Path):
    test = facts_of(phone_export / "page.html")["test"]
    other = {**test, "probabilities": test["probabilities"][::-1]}
    opened = Opened(chromium, with_facts(phone_export / "page.html", tmp_path / "other.html", test=other))
    assert not opened.tested["good"] and opened.tested["differs"] > 0.01
    assert "this device differs" in opened.page.inner_text("#check.bad")


@pytest.mark.parametrize("kind", ["lac", "aps", "raps"])
def test_the_page_never_names_fewer_classes_than_python(kind: str, tmp_path: Path):
    rng = np.random.default_rng(5)
    probs = rng.dirichlet(np.full(5, 0.6), 500)
    labels = np.array([rng.choice(5, p=row) for row in probs])
    sets: ConformalSets = fit_sets(probs[:300], labels[:300], 0.8, kind=kind)
    (tmp_path / "in").write_text(json.dumps([sets.to_json(), probs[300:].tolist()]), encoding="utf-8")
    ask = "const [sets, rows] = JSON.parse(readFileSync(files[0])); "
    ask += "console.log(JSON.stringify(rows.map(row => predictionSet(row, sets))));"
    found = json.loads(run_node(READ + phone.joined(("quality", "answer")) + ask, tmp_path / "in"))
    held = np.zeros((200, 5), dtype=bool)
    for row, names in enumerate(found):
        held[row, names] = True
    largest = sets.predict_sets(probs[300:], np.zeros(200))  # the random share that lets most in
    assert np.array_equal(held, largest)


def spoiled(photo: np.ndarray) -> dict[str, np.ndarray]:
    """A photograph with each fault."""
    small = cv2.resize(photo, None, fx=0.2, fy=0.2, interpolation=cv2.INTER_AREA)
    return {
        "blurred": cv2.GaussianBlur(photo, (0, 0), max(photo.shape) / 60),
        "dark": (photo * 0.12).astype(np.uint8),
        "bright": np.clip(photo * 0.4 + 190, 0, 255).astype(np.uint8),
        "far": np.tile(small, (5, 5, 1)),
    }


def test_a_poor_photograph_is_refused_with_what_to_do(phone_export: Path, chromium: Any, tmp_path: Path):
    good = photographs(phone_export)[:3]
    preprocess = Bundle.load(phone_export / "out").preprocess
    values = [measure_quality(preprocess(preprocess.for_store(decode_photo(file)))) for file in good]
    limits = fit_quality([{name: one[name] for name in MEASURES} for one in values] * 40, 0.05)
    page = with_facts(
        phone_export / "page.html", tmp_path / "page.html", quality=limits.to_json(), unknown={"limit": 1e9}
    )
    opened = Opened(chromium, page)
    for name, pixels in spoiled(decode_photo(good[0])).items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        found = opened.give([tmp_path / f"{name}.png"])[-1]
        expected = limits.faults(measure_quality(preprocess(preprocess.for_store(pixels))))
        assert tuple(found["faults"]) == expected and not found["used"] and found["answer"] == "poor photograph"
        words = words_of("en")[f"fault.{expected[0]}"]
        assert words in opened.page.inner_text("#photographs li:last-child")
        assert opened.page.inner_text("#headline") == "Take another photograph"
        assert words in opened.page.inner_text("#answer")
    found = opened.give([good[1]])
    assert found[-1]["used"] and "From 1 photograph" in opened.page.inner_text("#answer")
    assert "4 of 5 photographs were not good enough" in opened.page.inner_text("#answer")


def test_a_photograph_of_something_else_is_refused(phone_export: Path, chromium: Any, tmp_path: Path):
    page = with_facts(phone_export / "page.html", tmp_path / "page.html", unknown={"limit": 0.0}, quality=None)
    opened = Opened(chromium, page)
    found = opened.give(photographs(phone_export)[:1])[0]
    assert found["strange"] and found["answer"] == "not a photograph of this kind"
    assert "Not like the photographs" in opened.page.inner_text("#answer")


def sets_that_hold(facts: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Prediction sets that hold these classes, whatever the photograph."""
    return {
        **facts["sets"],
        "kind": "lac",
        "thresholds": [None if name in names else -1.0 for name in facts["classes"]],
    }


def test_the_answer_in_words_with_its_promise_its_advice_and_where_it_looked(
    phone_export: Path, chromium: Any, tmp_path: Path
):
    facts = facts_of(phone_export / "page.html")
    row = {"class": "Healthy", "photographs": 212, "coverage": 0.93, "low": 0.88, "high": 0.96}
    always = {"quality": None, "unknown": None, "coverage": [row]}
    sets = sets_that_hold(facts, ["Healthy"])
    opened = Opened(chromium, with_facts(phone_export / "page.html", tmp_path / "one.html", **always, sets=sets))
    page = opened.page
    opened.give(photographs(phone_export)[:1])
    assert page.inner_text("#headline") == "Healthy plant"
    page.click("#answer summary")
    assert "93 of 100 photographs" in page.inner_text("#answer") and "88 to 96" in page.inner_text("#answer")
    assert "Look again in two weeks." in page.inner_text("#advice")
    assert page.get_attribute("#advice img", "alt") == "A healthy leaf"
    assert page.evaluate("document.querySelector('#advice img').naturalWidth") == 720
    assert not page.is_visible("canvas.heat")
    page.click("#look")
    assert page.is_visible("canvas.heat") and "spoke most for Healthy plant" in page.inner_text("#look-note")
    shown = page.evaluate(
        "(() => { const c = document.querySelector('canvas.heat'), d = c.getContext('2d').getImageData(0, 0, c.width, "
        "c.height).data; return [c.height, c.width, Array.from(d.filter((_, k) => k % 4 === 3))]; })()"
    )
    bundle = Bundle.load(phone_export / "out")
    maps = bundle.runner(bundle.prepare(decode_photo(photographs(phone_export)[0]))[None])["activation"][0]
    own = maps[facts["classes"].index("Healthy")]
    assert shown[:2] == list(own.shape)
    assert np.abs(np.array(shown[2]).reshape(own.shape) - 215 * own / own.max()).max() <= 1.5
    page.select_option("#language", "sw")
    assert page.inner_text("#headline") == "Mmea wenye afya" and "Hakuna la kufanya." in page.inner_text("#advice")
    assert page.evaluate("document.documentElement.lang") == "sw"
    sets = sets_that_hold(facts, ["Healthy", facts["classes"][0]])
    opened = Opened(chromium, with_facts(phone_export / "page.html", tmp_path / "two.html", **always, sets=sets))
    opened.give(photographs(phone_export)[:1])
    said = opened.page.inner_text("#headline")
    assert "Healthy plant" in said and facts["classes"][0] in said and " or " in said
    assert "Call <b>Amina</b>" in opened.page.inner_text("#answer")


def test_the_phones_language_is_taken_where_the_page_has_it(phone_export: Path, chromium: Any, tmp_path: Path):
    page = with_facts(phone_export / "page.html", tmp_path / "page.html", title=None)
    for locale, title in (("pt-BR", "O que tem esta planta?"), ("de-DE", phone.TITLE)):
        opened = Opened(chromium, page, locale=locale)
        assert opened.page.inner_text("h1") == title
        opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_the_page(phone_export: Path, chromium: Any, scheme: Any):
    options = {"color_scheme": scheme, "viewport": {"width": 320, "height": 640}}
    opened = Opened(chromium, phone_export / "page.html", **options)
    page, axe = opened.page, find_axe()
    assert not serious_findings(page, axe)
    opened.give(photographs(phone_export)[:2])
    page.click("#correct summary")
    page.evaluate("document.getElementById('history').open = true")
    for language in phone.LANGUAGES:
        page.select_option("#language", language)
        assert page.evaluate("document.documentElement.scrollWidth") <= 320, language
    assert not serious_findings(page, axe)
    found = page.evaluate("axe.run({runOnly: ['color-contrast-enhanced', 'target-size']}).then(a => a.violations)")
    assert not [[node["html"] for node in one["nodes"]] for one in found]  # 7 to 1, for the sun
    if folder := os.environ.get("MANIHOT_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"phone-{scheme}.png"), full_page=True)


@pytest.mark.slow
def test_real_photographs_are_answered_as_in_python(phone_export: Path, chromium: Any):
    leaves = sorted(shared_data("bracol/leaf").glob("*.jpg"))[::150]
    crops = sorted(shared_data("bracol/symptom").rglob("*.jpg"))[::150]
    files = [*leaves, *crops]
    answers = Opened(chromium, phone_export / "page.html").give(files)
    others, largest = differences(phone_export / "out", files, answers)
    assert len(files) >= 20 and others == 0 and largest < 1e-4
    bundle = Bundle.load(phone_export / "out")
    for file, found in zip(files, answers, strict=True):
        expected = measure_quality(bundle.prepare(decode_photo(file)))
        assert all(abs(found["quality"][name] - expected[name]) < 1e-9 for name in MEASURES)
        assert tuple(found["faults"]) == bundle.limits.faults(expected)
