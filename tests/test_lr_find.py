"""The learning-rate finder: known curves give known rates, a sweep stops where it should and leaves little behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from manihot.cli import app
from manihot.demo.make import FORMAT
from manihot.errors import RunFolderError, SettingsError
from manihot.records.run_folder import RunFolder
from manihot.settings import load_recipe
from manihot.settings.options import TableOptions
from manihot.train.lr_find import draw_curve, lr_find, suggest_rates


def curve() -> pd.DataFrame:
    """Falls fastest at 1e-3, lowest near 1e-1, runs away afterwards."""
    lr = np.geomspace(1e-6, 1.0, 121)
    logs = np.log10(lr)
    loss = 1 / (1 + np.exp(4 * (logs + 3))) + np.where(logs > -1, (logs + 1) ** 2 * 4, 0)
    return pd.DataFrame({"lr": lr, "loss": loss, "smoothed": loss})


def test_a_known_curve_gives_its_rates():
    found = suggest_rates(curve())
    assert found["steepest"] == pytest.approx(1e-3, rel=0.13)  # a grid step is 12 %
    assert found["tenth_of_minimum"] == pytest.approx(1e-2, rel=0.15)
    assert found["suggestion"] == min(found["steepest"], found["tenth_of_minimum"])


def test_a_curve_that_only_falls_or_only_rises_still_gives_a_rate():
    for sign in (1, -1):
        table = pd.DataFrame({"lr": np.geomspace(1e-4, 1, 9), "smoothed": sign * np.linspace(0, 1, 9)})
        found = suggest_rates(table)
        assert all(1e-5 <= rate <= 1 for rate in found.values())


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_curve_is_drawn(tmp_path: Path, kind: str):
    path = tmp_path / f"lr.{kind}"
    draw_curve(curve(), suggest_rates(curve()), path)
    if kind == "png":
        with Image.open(path) as picture:
            assert picture.size == (840, 480)
    else:
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    with pytest.raises(SettingsError, match=r"lr\.pdf"):
        draw_curve(curve(), suggest_rates(curve()), tmp_path / "lr.pdf")


@pytest.fixture
def recipe(tiny_recipe: Path):
    # SnapMix looks at the network's own activation maps
    return load_recipe(
        str(tiny_recipe), ["mixing=[{name: snapmix, p: 0.5}]", "train.accumulate=2", "optimizer.head_lr=0.03"]
    )


def test_a_sweep_writes_a_table_and_a_picture_and_is_the_same_again(recipe, small_photos: Path, tmp_path: Path):
    found = lr_find(small_photos, recipe, tmp_path / "a", steps=30, workers=1)
    table = pd.read_csv(found["table"])
    assert list(table) == ["lr", "loss", "smoothed"]
    assert table["lr"].iloc[0] == pytest.approx(1e-7)
    ratio = table["lr"].iloc[1:].to_numpy() / table["lr"].iloc[:-1].to_numpy()
    assert ratio == pytest.approx(np.full(len(ratio), 1e8 ** (1 / 29)))
    assert np.isfinite(table.to_numpy()).all()
    assert table["loss"].iloc[:5].mean() == pytest.approx(np.log(3), abs=0.5)  # nothing is learnt yet
    assert table["smoothed"].std() < table["loss"].std()
    assert found["picture"].stat().st_size > 5000
    assert 1e-7 < found["suggestion"] <= found["steepest"] < 10
    assert not list((tmp_path / "a").rglob("*.ckpt")) + list((tmp_path / "a").rglob("*.safetensors"))
    again = lr_find(small_photos, recipe, tmp_path / "b", steps=30, workers=1)
    pd.testing.assert_frame_equal(pd.read_csv(again["table"]), table)


def test_a_sweep_stops_where_the_loss_runs_away(recipe, small_photos: Path, tmp_path: Path):
    wild = {"optimizer": recipe.optimizer.model_copy(update={"name": "sgd", "head_lr": None, "sam": 0.05})}
    wild |= {"train": recipe.train.model_copy(update={"clip": 0.0}), "mixing": ()}
    found = lr_find(small_photos, recipe.model_copy(update=wild), tmp_path, lowest=1e-3, highest=1e9, steps=40)
    table = pd.read_csv(found["table"])
    assert len(table) < 40
    assert found["suggestion"] < table["lr"].iloc[-1] / 3


def test_what_can_not_be_swept_is_refused(recipe, small_photos: Path, tmp_path: Path):
    with pytest.raises(SettingsError, match="'features' has no learning rate"):
        lr_find(small_photos, "quick", tmp_path)
    with pytest.raises(SettingsError, match="no member 'mian'"):
        lr_find(small_photos, recipe, tmp_path, member="mian")
    with pytest.raises(SettingsError, match="a sweep from 1 to"):
        lr_find(small_photos, recipe, tmp_path, lowest=1.0, highest=0.1)
    with RunFolder(tmp_path / "run") as folder:
        folder.update_record(stages={})
    with pytest.raises(RunFolderError, match="contains a run"):
        lr_find(small_photos, recipe, tmp_path / "run")


def test_the_command_needs_a_recipe_only(tiny_recipe: Path, small_photos: Path, tmp_path: Path, monkeypatch, capsys):
    drawn = []

    def draw(folder: Path, photos: int, workers: int) -> None:
        drawn.append((folder, photos))
        shutil.copytree(small_photos, folder)

    monkeypatch.setattr("manihot.train.lr_find.make_demo", draw)
    monkeypatch.setenv("MANIHOT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    words = ["lr-find", str(tiny_recipe), "--steps", "10", "--device", "cpu", "--workers", "1"]
    app(words, exit_on_error=False, result_action="return_value")
    assert drawn == [(tmp_path / "cache" / f"demo-200-{FORMAT}", 200)]
    assert len(pd.read_csv("lr-tiny/lr.csv")) == 10 and Path("lr-tiny/lr.png").is_file()
    said = capsys.readouterr().err
    assert "No photographs are named" in said and f"manihot lr-find {tiny_recipe} PHOTOS" in said.replace("\n", "")


def test_a_table_without_photographs_is_refused(recipe, tmp_path: Path):
    with pytest.raises(SettingsError, match="--csv without photographs"):
        lr_find(None, recipe, tmp_path / "out", columns=TableOptions(csv=tmp_path / "train.csv", image=None))
    assert not (tmp_path / "out").exists()
