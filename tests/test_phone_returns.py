"""What the phone page keeps on a device, and the returns.zip that it hands out, read by manihot."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import manihot
from manihot.export.bundle import Bundle
from manihot.photos.decode import decode_photo
from manihot.photos.scan import scan
from phone_page import Opened, facts_of, photographs, with_facts
from review_browser import until

SPOT = {"latitude": -6.8, "longitude": 39.28, "accuracy": 12.0}
NO_DATABASE = "Object.defineProperty(window, 'indexedDB', {get() { throw new Error('refused here'); }});"


def read_zip(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {one.date_time[0] for one in archive.infolist()} == {1980}
        contents = {one.filename: archive.read(one) for one in archive.infolist()}
    return json.loads(contents.pop("returns.json")), contents


def correct(page: Any, choice: str, who: str) -> None:
    """Say what the present plant really is: the number of a class, or `other`."""
    page.click("#correct summary")
    page.select_option("#correct select", choice)
    page.fill("#correct input", who)
    page.click("#correct button")
    page.wait_for_selector("#correct [role=status]:not(:empty)")


def test_what_the_page_hands_out_is_a_source_of_photographs(phone_export: Path, chromium: Any, tmp_path: Path):
    files = photographs(phone_export)
    opened = Opened(chromium, phone_export / "page.html")
    first = opened.give(files[:2])
    correct(opened.page, "4", "Amina")
    opened.page.click("#again")
    second = opened.give(files[3:])
    saved = opened.save(tmp_path / "returns.zip")
    assert "4 photographs in returns.zip" in opened.page.inner_text("#hand-told")
    about, contents = read_zip(saved)
    assert about["model"]["sha256"] == json.loads((phone_export / "out/model.json").read_text())["sha256"]
    for row in about["photographs"]:
        assert row["sha256"] == hashlib.sha256(contents[row["file"]]).hexdigest()
        assert row["taken"] is None and row["place"] is None
    found, quarantine = scan(saved, out=tmp_path / "run")
    assert not len(quarantine) and len(found) == 4
    labels = [found.classes[k] if k >= 0 else "" for k in found.labels]
    assert labels == ["Healthy", "Healthy", "", ""]
    groups = found.table["group"].tolist()
    assert groups[0] == groups[1] != groups[2] == groups[3]
    table = pd.read_csv(found.root / "returns.csv", keep_default_na=False)
    assert table["who"].tolist() == ["Amina", "Amina", "", ""]
    assert table["answer"].tolist() == [one["answer"] for one in [*first, *second]]
    for file, kept in zip([*files[:2], *files[3:]], found.paths, strict=True):
        assert np.array_equal(decode_photo(kept), decode_photo(file)), file
    turned = contents[about["photographs"][2]["file"]]
    assert b"2026:05:04" in files[3].read_bytes() and b"2026:05:04" not in turned


def test_old_photographs_and_what_came_back_are_read_together(phone_export: Path, chromium: Any, tmp_path: Path):
    opened = Opened(chromium, phone_export / "page.html")
    opened.give(photographs(phone_export)[:3])
    correct(opened.page, "4", "Juma")
    saved = opened.save(tmp_path / "returns.zip")
    found = manihot.scan([phone_export / "demo", saved], out=tmp_path / "run").manifest
    back = (found.table["source"] == "returns").to_numpy()
    assert back.sum() == 3 and (found.labels[back] == found.classes.index("Healthy")).all() and len(found) > 40


def test_a_photograph_that_cannot_be_kept_is_answered_and_the_others_are_handed_out(
    phone_export: Path, chromium: Any, tmp_path: Path
):
    opened = Opened(chromium, phone_export / "page.html")
    page = opened.page
    page.evaluate(
        "() => { const put = IDBObjectStore.prototype.put; IDBObjectStore.prototype.put = function (one) { "
        "if (this.name === 'files' && one.bytes.byteLength === window.tooLarge) throw new Error('disk full'); "
        "return put.call(this, one); }; }"
    )
    files = photographs(phone_export)[:2]
    page.evaluate(f"window.tooLarge = {files[0].stat().st_size}")
    assert len(opened.give(files[:1])) == 1
    assert "could not be kept (disk full)" in page.inner_text("#start.bad") and page.is_visible("#headline")
    opened.give(files[1:])
    assert len(read_zip(opened.save(tmp_path / "returns.zip"))[0]["photographs"]) == 1


def test_time_and_place_are_handed_out_only_where_they_are_allowed(phone_export: Path, chromium: Any, tmp_path: Path):
    allowed: dict[str, Any] = {"geolocation": SPOT, "permissions": ["geolocation"]}
    opened = Opened(chromium, phone_export / "page.html", **allowed)
    page, turned = opened.page, photographs(phone_export)[3]
    page.evaluate("document.getElementById('history').hidden = false; document.getElementById('history').open = true")
    page.check("#allow-place")
    page.check("#allow-time")
    opened.give([turned], by="camera")
    correct(page, "other", "")
    about, contents = read_zip(opened.save(tmp_path / "returns.zip"))
    row = about["photographs"][0]
    assert row["place"] == pytest.approx(SPOT) and row["taken"] and row["correction"]["when"]
    assert row["correction"]["label"] == "" and contents[row["file"]] == turned.read_bytes()
    assert len(scan(tmp_path / "returns.zip", out=tmp_path / "run")[0]) == 1
    page.uncheck("#allow-time")
    about, contents = read_zip(opened.save(tmp_path / "again.zip"))
    row = about["photographs"][0]
    assert row["place"] == pytest.approx(SPOT) and row["taken"] is None and row["correction"]["when"] is None
    assert b"2026:05:04" not in contents[row["file"]]
    page.uncheck("#allow-place")
    assert read_zip(opened.save(tmp_path / "third.zip"))[0]["photographs"][0]["place"] is None


def test_a_device_that_does_not_say_where_it_is_is_told_of(phone_export: Path, chromium: Any):
    opened = Opened(chromium, phone_export / "page.html")
    page = opened.page
    page.evaluate("document.getElementById('history').hidden = false; document.getElementById('history').open = true")
    page.check("#allow-place")
    until(page, "document.getElementById('place-told').textContent.includes('does not say where it is')")


def test_the_history_stays_until_it_is_deleted(phone_export: Path, chromium: Any, tmp_path: Path):
    opened = Opened(chromium, phone_export / "page.html")
    opened.give(photographs(phone_export)[:2])
    opened.page.close()
    opened.open(phone_export / "page.html")
    page = opened.page
    until(page, "document.getElementById('history-title').textContent === 'Earlier plants (1)'")
    assert len(read_zip(opened.save(tmp_path / "returns.zip"))[0]["photographs"]) == 2
    page.click("#plants summary")
    page.select_option("#plants select", "0")
    page.click("#plants form button")
    until(page, "document.querySelector('#plants').innerText.includes('A person says')")
    row = read_zip(opened.save(tmp_path / "corrected.zip"))[0]
    assert {one["correction"]["label"] for one in row["photographs"]} == {row["classes"][0]}
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#forget-all")
    until(page, "document.getElementById('history').hidden")
    opened.page.close()
    opened.open(phone_export / "page.html")
    assert opened.page.evaluate("document.getElementById('history').hidden")
    assert not opened.said


def test_a_browser_that_keeps_nothing_says_so_and_hands_out_all_the_same(
    phone_export: Path, chromium: Any, tmp_path: Path
):
    text = (
        (phone_export / "page.html")
        .read_text(encoding="utf-16")
        .replace("<script", f"<script>{NO_DATABASE}</script><script", 1)
    )
    (tmp_path / "page.html").write_bytes(b"\xff\xfe" + text.encode("utf-16-le"))
    opened = Opened(chromium, tmp_path / "page.html")
    assert "private mode" in opened.page.inner_text("#not-kept.bad")
    opened.give(photographs(phone_export)[:2])
    correct(opened.page, "4", "")
    saved = opened.save(tmp_path / "returns.zip")
    assert len(scan(saved, out=tmp_path / "run")[0]) == 2


def test_photographs_of_two_models_become_two_files(phone_export: Path, chromium: Any, tmp_path: Path):
    (tmp_path / "a").mkdir()
    other = with_facts(phone_export / "page.html", tmp_path / "a/page.html", model="f" * 64)
    opened = Opened(chromium, phone_export / "page.html")
    opened.give(photographs(phone_export)[:1])
    opened.open(other)
    opened.give(photographs(phone_export)[1:2])
    page, saved = opened.page, []
    page.on("download", lambda one: saved.append(one))
    page.evaluate("document.getElementById('history').open = true")
    page.click("#hand-out")
    until(page, "document.getElementById('hand-told').textContent.includes('returns-2.zip')")
    page.wait_for_timeout(1000)
    found = []
    for one in saved:
        one.save_as(tmp_path / one.suggested_filename)
        found.append(read_zip(tmp_path / one.suggested_filename)[0]["model"]["sha256"])
    assert sorted(found) == sorted([facts_of(phone_export / "page.html")["model"], "f" * 64])


def test_a_jpeg_keeps_its_pixels_and_colours_without_its_facts(phone_export: Path, chromium: Any, tmp_path: Path):
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (61, 83, 3), dtype=np.uint8)
    profile = phone_profile()
    files = []
    for orientation in (1, 3, 6, 8):
        for progressive in (False, True):
            exif = Image.Exif()
            exif[0x0112], exif[0x010F], exif[0x0132] = orientation, "Maker", "2026:05:04 03:02:01"
            path = tmp_path / f"{orientation}{progressive}.jpg"
            more = {"icc_profile": profile} if orientation == 6 else {}
            Image.fromarray(pixels).save(path, exif=exif, progressive=progressive, comment=b"secret", **more)
            path.write_bytes(path.read_bytes() + b"\xff\xd8trailer 2026:05:04")
            files.append(path)
    opened = Opened(chromium, phone_export / "page.html")
    opened.give(files)
    about, contents = read_zip(opened.save(tmp_path / "returns.zip"))
    for file, row in zip(files, about["photographs"], strict=True):
        own = contents[row["file"]]
        assert row["file"].endswith(".jpg") and not [w for w in (b"2026", b"Maker", b"secret") if w in own]
        (tmp_path / "own.jpg").write_bytes(own)
        assert np.array_equal(decode_photo(tmp_path / "own.jpg"), decode_photo(file))
    assert Bundle.load(phone_export / "out").classify([tmp_path / "own.jpg"])


def phone_profile() -> bytes:
    """A colour profile."""
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
