"""advice.yaml: read whole, or refused with file and line."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manihot.errors import SettingsError
from manihot.export import advice
from manihot.export.advice import read_advice

pytestmark = pytest.mark.core
CLASSES, LANGUAGES = ("healthy", "rust"), ("en", "sw")


def write(folder: Path, text: str) -> Path:
    (folder / "advice.yaml").write_text(text, encoding="utf-8")
    return folder / "advice.yaml"


def test_pictures_are_embedded_small_and_without_their_facts(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    Image.new("RGB", (2000, 1000), (90, 140, 40)).save(tmp_path / "roots.jpg", exif=exif)
    text = "classes:\n  rust:\n    text: {en: Cut it off}\n    pictures: [{file: roots.jpg, text: {en: Roots}}]\n"
    found = read_advice(write(tmp_path, text), CLASSES, LANGUAGES)
    assert found["expert"] is None and found["classes"]["rust"]["text"] == {"en": "Cut it off"}
    picture = found["classes"]["rust"]["pictures"][0]
    content = base64.b64decode(picture["uri"].removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (picture["width"], picture["height"]) == (360, 720)
    assert picture["text"] == {"en": "Roots"} and b"Maker" not in content


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("classes:\n  rus:\n    text: {en: x}\n", r"advice\.yaml:2: there is no class 'rus'"),
        ("classes:\n  rust:\n    text:\n      en: x\n      xx: y\n", r"advice\.yaml:5: the page has no language 'xx'"),
        ("expert:\n  fr: x\n", r"advice\.yaml:2: the page has no language 'fr'"),
        ("classes:\n  rust:\n    advise: {en: x}\n", r"advice\.yaml:3: unknown setting"),
        ("classes:\n  rust:\n    text:\n      en: 3\n", r"advice\.yaml:4: classes\.rust\.text\.en"),
        ("classes:\n  rust:\n    text: x\n", r"advice\.yaml:3: classes\.rust\.text"),
        ("- a\n", r"a file of advice is a mapping"),
        ("classes:\n  rust:\n    pictures:\n      - {file: none.jpg}\n", r"advice\.yaml:4: .*none\.jpg"),
        ("classes:\n  rust:\n    pictures:\n      - file: page.jpg\n", r"advice\.yaml:4: .*page\.jpg"),
        (
            "classes:\n  rust:\n    pictures:\n      - {file: a, text: {zz: b}}\n",
            r"advice\.yaml:4: the page has no lang",
        ),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(tmp_path: Path, text: str, words: str):
    (tmp_path / "page.jpg").write_text("<html></html>", encoding="utf-8")
    with pytest.raises(SettingsError, match=words):
        read_advice(write(tmp_path, text), CLASSES, LANGUAGES)


def test_too_many_pictures_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    monkeypatch.setattr(advice, "MOST_PICTURES", 100_000)
    text = "classes:\n  rust:\n    pictures:\n      - file: noise.png\n      - file: noise.png\n"
    with pytest.raises(SettingsError, match=r"advice\.yaml:5: .*more than 100,000 bytes"):
        read_advice(write(tmp_path, text), CLASSES, LANGUAGES)


def test_a_file_that_is_not_there_is_told_of(tmp_path: Path):
    with pytest.raises(SettingsError, match="--advice"):
        read_advice(tmp_path / "none.yaml", CLASSES, LANGUAGES)
