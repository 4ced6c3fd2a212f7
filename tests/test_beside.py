"""`beside`: another recipe fitted as a second member, both reported, the better one answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manihot.errors import SettingsError
from manihot.infer.models import load_model
from manihot.pipeline import run
from manihot.pipeline.opening import with_beside
from manihot.settings import load_recipe

pytestmark = pytest.mark.core
TINY = "photo: {size: [32, 32]}\ntta: [{name: full}]\naudit: {duplicates: false}\nfolds: {n: 2}\n"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, colour in (("green", 1), ("red", 0)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 120, (40, 40, 3))
            pixels[..., colour] += 40
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_standard_has_quick_beside_it_unless_told_otherwise():
    both, quick = with_beside(load_recipe("standard")), load_recipe("quick")
    assert list(both.members) == ["main", "quick"] and both.blend.method == "best_member"
    members = both.member_recipes()
    assert members["main"].method == "finetune" and members["main"].photo == load_recipe("standard").photo
    for group in ("method", "photo", "model", "features", "tta", "augment"):
        assert getattr(members["quick"], group) == getattr(quick, group)
    assert not with_beside(load_recipe("standard", ["beside=none"])).members


def test_the_worse_of_the_two_is_reported_and_does_not_answer(photos: Path, tmp_path: Path):
    other = write(tmp_path / "better.yaml", f"extends: quick\n{TINY}features: {{c: [0.1], choose: []}}\n")
    held_back = f"extends: quick\nbeside: {other.as_posix()}\n{TINY}features: {{c: [1.0e-9], choose: []}}\n"
    own = write(tmp_path / "own.yaml", held_back)
    scores = run(photos, tmp_path / "run", str(own), report=False)
    log_loss = {name: part["oof"]["metrics"]["log_loss"]["value"] for name, part in scores["members"].items()}
    assert set(log_loss) == {"main", "better"} and log_loss["better"] < log_loss["main"]
    models = load_model(tmp_path / "run")
    assert [model.card.member for model in models] == ["better"]


def test_a_recipe_with_members_stays_as_it_is(tmp_path: Path):
    path = write(tmp_path / "two.yaml", "extends: standard\nmembers: {a: {seed: 1}, b: {seed: 2}}\n")
    recipe = load_recipe(path)
    assert recipe.beside == "quick" and with_beside(recipe) is recipe


def test_a_recipe_beside_that_does_not_exist_is_an_error():
    with pytest.raises(SettingsError, match="quik"):
        with_beside(load_recipe("standard", ["beside=quik"]))
