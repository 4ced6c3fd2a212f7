"""Bursts: shots of one scene are found and kept together, independent photographs are not."""

from __future__ import annotations

import html
import json
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from manihot.audit.burst_stages import audit_bursts, compare_folds
from manihot.audit.bursts import find_bursts
from manihot.audit.hashes import Thumbnails, make_thumbnails
from manihot.demo.leaves import smooth_noise
from manihot.errors import SettingsError
from manihot.photos.scan import scan
from manihot.photos.times import Taken, read_times, time_in_name
from manihot.pipeline import prepare
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.run_folder import RunFolder
from manihot.report.audit_page import make_audit_page
from manihot.settings import load_recipe
from manihot.settings.options import TableOptions
from manihot.verbs.photos import scan as command

START = 1_500_000_000.0


def draw_scene(rng: np.random.Generator, white: bool = False) -> np.ndarray:
    """A scene of 150 x 190 pixels, of which a shot shows a part: a leaf or two before soil and grass, or on white."""
    ground = 245 + 0 * smooth_noise(rng, (150, 190), 30) if white else 110 + 45 * smooth_noise(rng, (150, 190), 30, 3)
    scene = np.stack([ground * tint for tint in (1.0, 1.0 if white else 1.05, 1.0 if white else 0.7)], axis=-1)
    for _ in range(1 if white else int(rng.integers(1, 4))):
        centre = (
            (95 + int(rng.integers(-12, 13)), 75 + int(rng.integers(-9, 10)))
            if white
            else (int(rng.integers(30, 160)), int(rng.integers(25, 125)))
        )
        axes = (int(rng.integers(42, 60)), int(rng.integers(18, 34)))
        angle = float(rng.uniform(-20, 20) if white else rng.uniform(0, 180))
        colour = tuple(float(v) for v in (rng.integers(40, 110), rng.integers(110, 190), rng.integers(30, 80)))
        cv2.ellipse(scene, (centre, (2 * axes[0], 2 * axes[1]), angle), colour, -1)
        for _ in range(int(rng.integers(0, 7))):
            spot = (centre[0] + int(rng.integers(-25, 26)), centre[1] + int(rng.integers(-12, 13)))
            cv2.circle(scene, spot, int(rng.integers(2, 7)), (120.0, 80.0, 30.0), -1)
    return np.clip(scene, 0, 255)


def take_shot(rng: np.random.Generator, scene: np.ndarray, shake: int = 5) -> np.ndarray:
    """What a hand that moves a little sees of a scene: 120 x 160 pixels."""
    top, left = rng.integers(15 - shake, 16 + shake, 2)
    shot = scene[top : top + 120, left : left + 160] * rng.uniform(0.93, 1.07) + rng.normal(0, 4, (120, 160, 1))
    return np.clip(shot, 0, 255).astype(np.uint8)


def save_shot(path: Path, pixels: np.ndarray, seconds: float | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if seconds is not None:
        whole = np.datetime64(int(seconds), "s").astype(object)
        exif.get_ifd(0x8769)[0x9003] = f"{whole:%Y:%m:%d %H:%M:%S}"
        exif.get_ifd(0x8769)[0x9291] = f"{round(seconds % 1 * 100):02d}"
        exif[0x0110] = "Phone 1"
    Image.fromarray(pixels).save(path, quality=90, exif=exif)


def shoot(
    home: Path,
    shots: list[int],
    times: bool = True,
    named: str = "IMG_{:04d}.jpg",
    white: bool = False,
    seed: int = 0,
    pause: tuple[float, float] = (40, 400),
    shake: int = 5,
) -> np.ndarray:
    """Photographs of len(shots) scenes in two class folders, one after the other; the scene of each, in name order."""
    rng = np.random.default_rng(seed)
    clock, number, scenes = START, 1, []
    for k, count in enumerate(shots):
        scene = draw_scene(rng, white)
        for _ in range(count):
            save_shot(home / "ab"[k % 2] / named.format(number), take_shot(rng, scene, shake), clock if times else None)
            scenes.append(k)
            number += 1
            clock += float(rng.uniform(0.4, 2.0))
        clock += float(rng.uniform(*pause))
    return np.array(scenes)


def prepared(home: Path) -> tuple[Manifest, Thumbnails, Taken]:
    manifest, _ = scan(home)
    return manifest, make_thumbnails(manifest, workers=1), read_times(manifest.paths)


def judge(home: Path, scenes: np.ndarray) -> tuple[float, float]:
    """Share of neighbouring shots of one scene that are tied, and share of tied photographs with a foreign one."""
    manifest, thumbnails, taken = prepared(home)
    found = find_bursts(manifest, thumbnails, taken)
    order = np.argsort(manifest.image_id)
    group = dict(zip(found["image_id"], found["group"]))
    names = manifest.image_id[order]
    together = [group.get(a, "x") == group.get(b, "y") for a, b in pairwise(names)]
    same = scenes[1:] == scenes[:-1]
    of_scene = dict(zip(names, scenes))
    kinds = found.groupby("group")["image_id"].agg(lambda own: len({of_scene[name] for name in own}))
    wrong = found["group"].map(kinds).gt(1).sum() / max(1, len(manifest))
    return (float(np.mean(np.array(together)[same])) if same.any() else 0.0), float(wrong)


SHOTS = [int(n) for n in np.random.default_rng(5).choice([1, 2, 3, 5], 60)]


@pytest.mark.parametrize("times", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_bursts_are_found(tmp_path: Path, times: bool, seed: int) -> None:
    found, wrong = judge(tmp_path, shoot(tmp_path, SHOTS, times, seed=seed))
    assert found >= 0.95 and wrong <= 0.05


def test_bursts_on_white_paper_are_found_by_their_times(tmp_path: Path) -> None:
    """Leaves on white look alike, so fewer pairs are certain, but no two leaves are tied."""
    found, wrong = judge(tmp_path, shoot(tmp_path, SHOTS, white=True))
    assert found >= 0.8 and wrong == 0


@pytest.mark.parametrize("white", [False, True])
@pytest.mark.parametrize(("times", "pause"), [(False, (1, 2)), (True, (1, 2)), (True, (40, 400))])
def test_independent_photographs_in_sequence_are_no_bursts(
    tmp_path: Path, white: bool, times: bool, pause: tuple[float, float]
) -> None:
    shoot(tmp_path, [1] * 120, times, white=white, pause=pause)
    assert len(find_bursts(*prepared(tmp_path))) <= 6  # of 120


def test_times_far_apart_contradict_names_in_sequence(tmp_path: Path) -> None:
    """The same scene photographed on the next day is no burst, though names follow each other."""
    rng, clock = np.random.default_rng(0), START
    for k in range(60):
        scene = draw_scene(rng)
        for shot in range(2):
            save_shot(tmp_path / f"a/IMG_{2 * k + shot:04d}.jpg", take_shot(rng, scene), clock)
            clock += 86_400
    assert not len(find_bursts(*prepared(tmp_path)))


def test_times_in_names_and_damaged_exif(tmp_path: Path) -> None:
    assert time_in_name("IMG_20190802_143012") == np.datetime64("2019-08-02T14:30:12").astype(float)
    assert time_in_name("2019-08-02 14.30.12") == time_in_name("PXL_20190802_143012")
    assert time_in_name("PXL_20190802_143012500") - time_in_name("PXL_20190802_143012") == 0.5
    assert np.isnan([time_in_name(name) for name in ("IMG_0001", "20191399_000000", "120190802143012", "x")]).all()
    shot = take_shot(np.random.default_rng(0), draw_scene(np.random.default_rng(0)))
    save_shot(tmp_path / "a.jpg", shot, START + 0.25)
    data = (tmp_path / "a.jpg").read_bytes()
    at = data.index(b"2017")
    for name, changed in (("b.jpg", data[:at] + b"xxxx" + data[at + 4 :]), ("c.jpg", data[:40]), ("d.jpg", b"")):
        (tmp_path / name).write_bytes(changed)
    Image.fromarray(shot).save(tmp_path / "e.jpg")
    taken = read_times([*(tmp_path / f"{name}.jpg" for name in "abcde"), tmp_path / "none.jpg"])
    assert taken.seconds[0] == START + 0.25 and taken.camera[0] == "Phone 1"
    assert np.isnan(taken.seconds[1:]).all()


def test_few_photographs_are_no_bursts(tmp_path: Path) -> None:
    shoot(tmp_path, [3, 2])
    assert not len(find_bursts(*prepared(tmp_path)))


def test_the_score_with_and_without_bursts_kept_together() -> None:
    """Features that tell the scene, not the class: with a mate in training the answer is known, without it is not."""
    rng = np.random.default_rng(0)
    scenes, shots = 120, 4
    labels = np.repeat(rng.integers(0, 2, scenes), shots)
    features = np.repeat(rng.normal(size=(scenes, 400)), shots, axis=0) + 0.1 * rng.normal(size=(scenes * shots, 400))
    units = np.repeat(np.arange(scenes), shots)
    apart = compare_folds(features, labels, np.arange(len(labels)), 0)
    together = compare_folds(features, labels, units, 0)
    assert apart.mean() > 0.95 and abs(together.mean() - 0.5) < 0.12


def test_bursts_are_offered_and_kept_together_when_asked(tmp_path: Path, capfd) -> None:
    """A run's folds, with predictions and features that know the scene rather than the class."""
    shoot(tmp_path / "in", [2] * 40, shake=14)
    recipe = load_recipe("quick", ["folds.n=3"])
    with RunFolder(tmp_path / "apart") as folder:
        manifest = prepare(folder, recipe, tmp_path / "in", TableOptions(), 1, weights=False)
        said = capfd.readouterr().err
        assert "Bursts: 80 of 80 photographs in 40 bursts, the largest of 2" in said and "--group auto" in said
        rng = np.random.default_rng(0)
        scene = np.array([(int(name[4:8]) - 1) // 2 for name in manifest.image_id])
        torn = np.array([len(set(manifest.fold[scene == k])) > 1 for k in scene])
        right = torn | (np.arange(80) % 2 == 0)
        probs = np.eye(2)[np.where(right, manifest.labels, 1 - manifest.labels)] * 0.8 + 0.1
        features = rng.normal(size=(40, 200))[scene] + 0.1 * rng.normal(size=(80, 200))
        Predictions.from_probs(
            manifest.image_id, probs, manifest.classes, manifest.labels, manifest.fold, features.astype(np.float32)
        ).save(folder / "predictions/main.oof.parquet")
        audit_bursts(folder, manifest, "main")
        about = json.loads(folder.audit.bursts.read_text(encoding="utf-8"))
        assert 20 < about["mate_in_training"] == torn.sum() and about["accuracy_with_mate"] == 1
        assert about["accuracy_without"] == pytest.approx(right[~torn].mean())
        assert about["apart"] > 0.6 and about["high"] < 0
        assert "Expect the lower on new scenes; use --group auto." in about["sentence"]
        assert about["sentence"] in capfd.readouterr().err
        page = make_audit_page(folder.path).read_text(encoding="utf-8")
        assert 'id="bursts"' in page and " s apart" in page and "12 of 40 bursts are shown" in page
        assert about["sentence"] in html.unescape(page).replace("\u202f", " ")
    with RunFolder(tmp_path / "together") as folder:
        manifest = prepare(folder, recipe, tmp_path / "in", TableOptions(group="auto"), 1, weights=False)
        assert "each stays in one fold" in capfd.readouterr().err
    assert manifest.table.groupby("group")["fold"].nunique().max() == 1 and manifest.table["group"].nunique() == 40
    off = load_recipe("quick", ["audit.duplicates=false"])
    with RunFolder(tmp_path / "off") as folder, pytest.raises(SettingsError, match=r"audit\.duplicates is false"):
        prepare(folder, off, tmp_path / "in", TableOptions(group="auto"), 1, weights=False)


def test_scan_keeps_bursts_when_asked(tmp_path: Path, capfd) -> None:
    shoot(tmp_path / "in", [2] * 30)
    command([tmp_path / "in"], out=tmp_path / "run")
    assert "60 of 60 photographs were taken within 3 seconds of another: --group auto" in capfd.readouterr().err
    command([tmp_path / "in"], out=tmp_path / "run", columns=TableOptions(group="auto"))
    assert Manifest.load(tmp_path / "run/manifest.parquet").table["group"].nunique() == 30
