"""The page of augmented pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manihot.errors import DataError, SettingsError
from manihot.report.show_augment import EDGE, augmented_pictures, show_augment
from manihot.settings import Choice, Recipe, Train


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    rgb = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "leaf <1>.png")
    return tmp_path / "leaf <1>.png"


RECIPE = Recipe(
    name="turn",
    augment=(Choice(name="rotate", p=1.0, from_epoch=2), Choice(name="rgb_shift", p=1.0, from_epoch=2)),
    train=Train(epochs=4),
)


def test_pictures_follow_the_schedule_and_say_what_was_drawn(photo: Path) -> None:
    shown = augmented_pictures(RECIPE, np.asarray(Image.open(photo)), n=8)
    assert len(shown) == 9 and {picture.shape for _, picture in shown} == {(192, 256, 3)}
    plain = shown[0][1]
    for caption, picture in shown[1:]:
        assert ("rotate degrees=" in caption) == (not np.array_equal(picture, plain))
    captions = [caption for caption, _ in shown[1:]]
    assert captions[0] == "epoch 0\nnothing applied"
    assert captions[-1].startswith("epoch 3\nrotate degrees=") and "rgb_shift red=" in captions[-1]


def test_html_page_opens_offline_and_png_sheet_shows_all(photo: Path, tmp_path: Path) -> None:
    page = show_augment(RECIPE, photo, tmp_path / "page.html", n=5).read_text(encoding="utf-8")
    assert page.count("<img") == 6 and page.count("data:image/jpeg") == 6
    assert "leaf &lt;1&gt;.png" in page and "http:" not in page and "https:" not in page
    with Image.open(show_augment(RECIPE, photo, tmp_path / "sheet.png", epochs=[3], n=5)) as sheet:
        assert sheet.width >= 6 * EDGE * 3 // 4


def test_members_have_their_own_sections(photo: Path, tmp_path: Path) -> None:
    recipe = Recipe(name="two", members={"a": {}, "b": {"augment": [{"name": "blur", "p": 1.0}]}})
    page = show_augment(recipe, photo, tmp_path / "page.html", n=2).read_text(encoding="utf-8")
    assert "<h2>a</h2>" in page and "<h2>b</h2>" in page and page.count("blur kernel=") == 2 * 2


def test_mistakes_are_named(photo: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"\.html or \.png"):
        show_augment(RECIPE, photo, tmp_path / "page.gif")
    with pytest.raises(SettingsError, match="no epoch 4"):
        show_augment(RECIPE, photo, tmp_path / "page.html", epochs=[4])
    (tmp_path / "empty.jpg").touch()
    for broken in ("empty.jpg", "nowhere.jpg"):
        with pytest.raises(DataError, match=broken):
            show_augment(RECIPE, tmp_path / broken, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_mixes_are_drawn_with_their_shares(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import manihot
    from manihot.train.show_mixes import OF_A_MIX, mixed_pictures

    rows = ("mixup", "cutmix", "fmix", "snapmix")
    recipe = Recipe(name="mixes", mixing=tuple(Choice(name=name, p=0.2) for name in rows), augment=())
    black, white = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    shown = mixed_pictures(recipe, [black, white])
    assert [caption.split("\n")[0] for caption, _ in shown] == [name for name in rows for _ in range(OF_A_MIX)]
    for caption, picture in shown[: 3 * OF_A_MIX]:  # the share of white pixels is the share of the white photograph
        told = dict(part.split(" of ")[::-1] for part in caption.split("\n")[1].split(", "))
        assert picture.mean() / 255 == pytest.approx(float(told.get("2", "0%").rstrip("%")) / 100, abs=0.012)
    for name, pixels in (("a.png", black), ("b.png", white)):
        Image.fromarray(pixels).save(tmp_path / name)
    places = {"out": tmp_path / "p.html", "mix_with": tmp_path / "b.png"}
    page = manihot.show_augment(recipe, tmp_path / "a.png", n=2, **places).page
    assert page.read_text().count("<img") == 3 + 4 * OF_A_MIX and "main, mixed" in page.read_text()
    with pytest.raises(SettingsError, match="mixes nothing"):
        manihot.show_augment(RECIPE, tmp_path / "a.png", mix_with=tmp_path / "b.png")
