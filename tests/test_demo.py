"""The demo photographs hold what their truth says, and are the same whoever draws them."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from manihot.demo import make as demo
from manihot.demo.leaves import SYMPTOMS, draw_leaf
from manihot.demo.make import CLASSES, COPIES, FAULTS, ODDITIES, make_demo, plan_demo
from manihot.demo.scenes import ZOOMS, Shot, draw_photograph
from manihot.errors import DataError

PHOTOS = 30


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    out = tmp_path_factory.mktemp("demo") / "photos"
    return out, make_demo(out, photos=PHOTOS, seed=3, workers=2)


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def shown(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def test_layout_is_the_competitions(drawn: tuple[Path, pd.DataFrame]) -> None:
    out, truth = drawn
    train = pd.read_csv(out / "train.csv", dtype={"source": str})
    assert list(train.columns) == ["image_id", "label", "source"] and len(train) == PHOTOS
    assert set(train["image_id"]) == {file.name for file in (out / "train_images").iterdir()}
    names = json.loads((out / "label_num_to_disease_map.json").read_text(encoding="utf-8"))
    assert names == {str(k): name for k, name in enumerate(CLASSES)}
    pd.testing.assert_frame_equal(truth, pd.read_parquet(out / "truth.parquet"))
    assert (train["image_id"] == truth["image_id"]).all() and (train["label"] == truth["given_label"]).all()
    assert (train["source"] == truth["source"]).all()


def test_broken_files_fail_and_all_others_decode(drawn: tuple[Path, pd.DataFrame]) -> None:
    out, truth = drawn
    assert set(truth["fault"]) == {"", *FAULTS} and set(truth["oddity"]) == {"", *ODDITIES}
    for row in truth.itertuples():
        path = out / "train_images" / row.image_id
        if row.fault:
            with pytest.raises((OSError, SyntaxError)):
                shown(path)
        else:
            assert shown(path).shape == (row.height, row.width, 3), row


def test_odd_files_are_what_they_claim(drawn: tuple[Path, pd.DataFrame]) -> None:
    out, truth = drawn
    expected = {"png_alpha": ("PNG", "RGBA"), "png16": ("PNG", "I;16"), "cmyk": ("JPEG", "CMYK"), "grey": ("JPEG", "L")}
    for row in truth[truth["oddity"] != ""].itertuples():
        with Image.open(out / "train_images" / row.image_id) as image:
            if row.oddity == "gif":
                assert image.format == "GIF" and image.n_frames == 2
            else:
                assert (image.format, image.mode) == expected[row.oddity]


def test_a_turned_photograph_carries_the_orientation(drawn: tuple[Path, pd.DataFrame]) -> None:
    out, truth = drawn
    for row in truth[truth["fault"] == ""].itertuples():
        with Image.open(out / "train_images" / row.image_id) as image:
            assert image.getexif().get(0x0112, 1) == row.orientation
            stored = (row.width, row.height) if row.orientation == 1 else (row.height, row.width)
            assert image.size == stored


def test_one_worker_draws_the_same_files(drawn: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    """In the way of an interrupted run: what is there stays, the rest is drawn."""
    out, truth = drawn
    folder = tmp_path / "again" / "train_images"
    folder.mkdir(parents=True)
    settings = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    (tmp_path / "again" / "demo.json").write_text(json.dumps({**settings, "finished": False}), encoding="utf-8")
    kept = sorted(set(truth["image_id"]))[::2]
    for name in kept:
        (folder / name).write_bytes((out / "train_images" / name).read_bytes())
    again = make_demo(tmp_path / "again", photos=PHOTOS, seed=3, workers=1)
    pd.testing.assert_frame_equal(truth, again)
    assert digests(folder) == digests(out / "train_images")
    assert (out / "train.csv").read_bytes() == (tmp_path / "again" / "train.csv").read_bytes()


def test_finished_demo_is_recognised(drawn: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch) -> None:
    out, truth = drawn
    monkeypatch.setattr(demo, "_draw_all", lambda *_: pytest.fail("drawn again"))
    pd.testing.assert_frame_equal(truth, make_demo(out, photos=PHOTOS, seed=3, workers=1))


def test_refuses_what_it_must_not_touch(drawn: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    out, _ = drawn
    with pytest.raises(DataError, match=r"seed 3(.|\n)*remedy"):
        make_demo(out, photos=PHOTOS, seed=4)
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"not empty(.|\n)*remedy"):
        make_demo(tmp_path, photos=PHOTOS)
    assert [file.name for file in tmp_path.iterdir()] == ["holiday.jpg"]
    with pytest.raises(DataError, match="not a folder"):
        make_demo(tmp_path / "holiday.jpg", photos=PHOTOS)
    with pytest.raises(DataError, match="too few"):
        make_demo(tmp_path / "new", photos=5)
    with pytest.raises(DataError, match="wrong labels"):
        make_demo(tmp_path / "new", photos=PHOTOS, wrong=1.5)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("photos", "wrong"), [(600, 0.08), (600, 0.0), (250, 0.2)])
def test_plan_is_consistent(photos: int, wrong: float) -> None:
    plan = plan_demo(photos, 7, wrong)
    assert len(plan) == photos and plan["image_id"].is_unique
    assert (plan["is_wrong"] == (plan["true_label"] != plan["given_label"])).all()
    assert plan["is_wrong"].sum() == round(wrong * photos)
    shares = plan["true_label"].value_counts(normalize=True).sort_index().to_numpy()
    assert np.allclose(shares, [0.05, 0.10, 0.11, 0.62, 0.12], atol=0.025)
    old = plan["source"] == "2019"
    assert 0.2 < old.mean() < 0.3
    assert (plan.loc[old, "true_label"] == 4).mean() < (plan.loc[~old, "true_label"] == 4).mean()
    assert set(plan["zoom"]) == set(ZOOMS) and (plan.loc[plan["true_label"] == 4, "severity"] == 0).all()
    by_id = plan.set_index("image_id")
    copies = plan[plan["duplicate_of"] != ""]
    assert len(copies) == round(0.06 * photos) and set(copies["duplicate_kind"]) == set(COPIES)
    for row in copies.itertuples():
        original = by_id.loc[row.duplicate_of]
        assert (row.true_label, row.duplicate_group) == (original["true_label"], original["duplicate_group"])
        assert original["duplicate_of"] == "" and original["fault"] == ""
    for _, group in plan[plan["duplicate_group"] != ""].groupby("duplicate_group"):
        assert len(group) > 1
        assert (group["label_conflict"] == (group["given_label"].nunique() > 1)).all()
    assert not plan.loc[plan["duplicate_group"] == "", "label_conflict"].any()
    assert plan["label_conflict"].any() == (wrong > 0)


def test_wrong_labels_prefer_bad_photographs() -> None:
    plan = pd.concat([plan_demo(600, seed, 0.1) for seed in range(5)])
    plan = plan[plan["true_label"] != 4]
    assert plan.loc[plan["is_wrong"], "blur"].mean() > 1.1 * plan.loc[~plan["is_wrong"], "blur"].mean()
    assert plan.loc[plan["is_wrong"], "severity"].mean() < plan.loc[~plan["is_wrong"], "severity"].mean()


@pytest.mark.parametrize("kind", COPIES)
def test_copies_show_the_original(kind: str) -> None:
    rng = np.random.default_rng(0)
    original = draw_photograph(rng, Shot("mosaic", 0.7, "leaf", 300, 400, 0.5, 0, 0, 0.01, (1, 1, 1)))
    scale = {"resized": 0.6, "cropped80": 0.8}.get(kind, 1.0)
    height, width = (300, 400) if kind != "rotated90" else (400, 300)
    row = {"duplicate_kind": kind, "height": round(height * scale), "width": round(width * scale)}
    row |= {"quality": 80, "oddity": "", "fault": "", "orientation": 1}
    copy = demo._copy(rng, original, row)
    content = demo._encode(copy, row)
    decoded = np.asarray(Image.open(io.BytesIO(content)))
    assert decoded.shape == (row["height"], row["width"], 3)
    undo = {
        "rotated90": [np.rot90(decoded, k) for k in (1, 3)],
        "rotated180": [np.rot90(decoded, 2)],
        "flipped": [decoded[:, ::-1]],
        "resized": [np.asarray(Image.fromarray(decoded).resize((400, 300)))],
        "cropped80": [],
    }.get(kind, [decoded])
    if kind == "cropped80":
        tops = range(300 - 240 + 1)
        exact = [
            (t, x) for t in tops for x in range(400 - 320 + 1) if (copy == original[t : t + 240, x : x + 320]).all()
        ]
        assert len(exact) == 1
    else:
        nearest = min(np.abs(back.astype(float) - original).mean() for back in undo)
        assert nearest < 6 < np.abs(np.roll(original, 40, 1).astype(float) - original).mean()


def test_exact_copies_share_their_bytes(tmp_path: Path) -> None:
    plan = plan_demo(200, 0, 0.08)
    small = plan.assign(height=90, width=120)
    jobs = [job for job in demo._jobs(small) if any(c["duplicate_kind"] == "exact" for c in job.copies)]
    assert jobs
    for job in jobs:
        demo._draw(tmp_path, 0, job)
        for copy in job.copies:
            same = (tmp_path / copy["image_id"]).read_bytes() == (tmp_path / job.row["image_id"]).read_bytes()
            assert same == (copy["duplicate_kind"] == "exact")


@pytest.mark.parametrize("symptom", [name for name in SYMPTOMS if name != "healthy"])
def test_a_severe_leaf_looks_less_like_the_healthy_one(symptom: str) -> None:
    def redness(name: str, severity: float) -> float:
        """Red for green: higher in yellow, white and brown tissue than in green."""
        parts = []
        for seed in range(4):
            canvas = np.random.default_rng(seed), (120, 120), (60.0, 70.0), 55.0, -1.6
            rgb, alpha = draw_leaf(*canvas, name, severity)
            parts.append(rgb[alpha > 0.9])
        tissue = np.concatenate(parts)
        return float((tissue[:, 0] / tissue[:, 1]).mean())

    healthy, mild, severe = redness("healthy", 0.0), redness(symptom, 0.05), redness(symptom, 1.0)
    assert severe > mild + 0.02 and severe > healthy + 0.02


@pytest.mark.parametrize("zoom", ZOOMS)
def test_every_zoom_fills_the_range_of_sizes(zoom: str) -> None:
    for height, width in ((90, 121), (121, 90)):
        shot = Shot("blight", 0.5, zoom, height, width, 3.0, 9.0, -1.0, 0.03, (1.1, 1.0, 0.9))
        picture = draw_photograph(np.random.default_rng(1), shot)
        assert picture.shape == (height, width, 3) and picture.dtype == np.uint8 and picture.std() > 5
