"""Is cleaning worth it: no effect without noise, a gain with it, and intervals that mean what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manihot.audit import what_if as module
from manihot.audit.evidence import save_embeddings
from manihot.audit.stages import audit_what_if
from manihot.audit.trusted import read_trusted
from manihot.audit.what_if import ARMS, paired_interval, what_if
from manihot.errors import DataError, SettingsError
from manihot.pipeline import run
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.run_folder import RunFolder
from manihot.records.run_places import RunPlaces
from manihot.settings.options import TableOptions


def blobs(
    n: int, noise: float, seed: int, dimensions: int = 24, spread: float = 0.75
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (N, D), given labels and true ones: four classes that overlap a little."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 4, n)
    centres = rng.normal(size=(4, dimensions)) * spread
    x = centres[true] + rng.normal(size=(n, dimensions))
    wrong = rng.random(n) < noise
    given = np.where(wrong, (true + rng.integers(1, 4, n)) % 4, true)
    return x, given, true


def test_without_planted_noise_nothing_is_claimed():
    claims = 0
    for seed in range(10):
        x, given, _ = blobs(240, 0.0, seed)
        table = what_if(x, given, repeats=2, seed=seed).table
        claims += (table["verdict"].isin(["helps", "hurts"])).any()
    assert claims <= 1


def test_with_a_fifth_of_wrong_labels_cleaning_helps():
    x, given, true = blobs(700, 0.2, 3, dimensions=150, spread=0.32)
    found = what_if(x, given, trusted=given == true, arms=("drop", "relabel"), seed=1)
    trusted = found.table[found.table["judged_on"] == "trusted"].set_index("arm")
    assert trusted.loc["drop", "verdict"] == "helps" and trusted.loc["drop", "gain"] > 0.01
    assert "Cleaning helps" in found.sentence()


def test_the_same_seed_gives_the_same_table():
    x, given, _ = blobs(150, 0.1, 0)
    one, two = (what_if(x, given, repeats=1, seed=5).table for _ in range(2))
    assert one.equals(two)
    assert one["arm"].tolist() == [*ARMS, "together"]
    assert one.loc[one["arm"] == "keep", "gain"].item() == 0


def test_unlabelled_photographs_and_groups_are_respected():
    x, given, _ = blobs(160, 0.1, 2)
    given[::10] = -1
    groups = np.array([f"plant{i // 4}" for i in range(160)], dtype=object)
    assert what_if(x, given, groups=groups, repeats=1).table["photographs"].tolist() == [144] * 6


def test_the_run_s_folds_are_the_first_repeat_s(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    x, given, _ = blobs(160, 0.1, 2)
    fold = np.arange(160) // 2 % 4
    seen = []
    fit = module._find_doubtful
    monkeypatch.setattr(module, "_find_doubtful", lambda part, *more: seen.append(part) or fit(part, *more))
    found = what_if(x, given, fold=fold, repeats=2)
    assert found.run_folds and len(seen) == 8  # as many folds in every repeat
    scaled = module._reduce(x, 0)
    for k, part in enumerate(seen[:4]):
        assert np.array_equal(part, scaled[fold != k])
    assert not any(np.array_equal(part, scaled[fold != k]) for k, part in enumerate(seen[4:]))
    assert "others are drawn" not in capsys.readouterr().err
    groups = np.array([f"plant{i // 4}" for i in range(160)], dtype=object)
    for settings, why in (
        ({"fold": fold, "groups": groups}, "split groups"),
        ({"fold": np.zeros(160, dtype=int)}, "hold out every photograph"),
        ({"fold": np.where(given == 1, 0, 1)}, "to learn from"),
    ):
        assert not what_if(x, given, arms=("drop",), repeats=1, **settings).run_folds
        assert why in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "cells", [[True, False, True], [1, 0, 1], [1.0, 0.0, 1.0], ["True", "False", "yes"], ["1", "NO", "1"]]
)
def test_a_trusted_column_means_what_it_says(cells: list):
    table = pd.DataFrame({"image_id": ["a", "b", "c"], "expert": cells})
    manifest = Manifest.from_table(table, ("x", "y"), Path("photos"))
    assert read_trusted(manifest, "expert").tolist() == [True, False, True]


@pytest.mark.parametrize("cell", ["maybe", "", None, 2, float("nan")])
def test_an_unclear_trusted_column_names_the_photograph(cell: object):
    table = pd.DataFrame({"image_id": ["a", "leaf b", "c"], "expert": pd.Series([True, cell, False], dtype=object)})
    manifest = Manifest.from_table(table, ("x", "y"), Path("photos"))
    with pytest.raises(DataError, match="'leaf b'") as caught:
        read_trusted(manifest, "expert")
    assert "yes or no" in caught.value.remedy
    with pytest.raises(DataError, match="no column 'exprt'"):
        read_trusted(manifest, "exprt")


def test_what_can_t_be_asked_is_an_error_before_training(small_photos: Path, tiny_recipe: Path, tmp_path: Path):
    out = tmp_path / "run"
    with pytest.raises(SettingsError, match="needs features") as caught:
        run(small_photos, out, str(tiny_recipe), what_if=True)
    assert "--recipe quick" in caught.value.remedy and not out.exists()
    with pytest.raises(SettingsError, match="holds none out"):
        run(small_photos, out, "quick", overrides=["folds.kind=none"], what_if=True)
    with pytest.raises(DataError, match="--trusted names a column, but"):
        run(small_photos, out, "quick", what_if=True, columns=TableOptions(trusted="expert"), workers=1)
    assert not (out / "predictions").exists() and not (out / "members").exists()


def test_features_of_the_audit_or_of_another_member_serve_too(tmp_path: Path):
    x, given, _ = blobs(120, 0.1, 1)
    ids = np.array([f"{i}.jpg" for i in range(120)], dtype=object)
    fold = np.arange(120) % 3
    table = pd.DataFrame({"image_id": ids, "path": ids, "label": given, "fold": fold})
    classes = tuple("abcd")
    with RunFolder(tmp_path) as folder:
        manifest = Manifest.from_table(table, classes, tmp_path)
        manifest.save(folder / "folds.parquet")
        probs = np.full((120, 4), 0.25)
        Predictions.from_probs(ids, probs, classes, given, fold).save(folder / "predictions/ensemble.oof.parquet")
        with pytest.raises(SettingsError, match="no features"):
            audit_what_if(folder, manifest, "ensemble", 0)
        mixed = np.random.default_rng(0).permutation(120)
        member = Predictions.from_probs(ids, probs, classes, given, fold, embeddings=x.astype(np.float32)).take(mixed)
        member.save(folder / "predictions/quick.oof.parquet")
        audit_what_if(folder, manifest, "ensemble", 0)
        one = pd.read_parquet(folder / "audit/what_if.parquet")
        (folder / "predictions/quick.oof.parquet").unlink()
        save_embeddings(RunPlaces(folder).audit.embeddings, ids[mixed], x.astype(np.float32)[mixed])
        audit_what_if(folder, manifest, "ensemble", 0)
        assert one.equals(pd.read_parquet(folder / "audit/what_if.parquet"))
        save_embeddings(RunPlaces(folder).audit.embeddings, ids[:9], x.astype(np.float32)[:9])
        with pytest.raises(DataError, match="111 photographs have no embedding"):
            audit_what_if(folder, manifest, "ensemble", 0)
    assert json.loads((tmp_path / "audit/what_if.json").read_text(encoding="utf-8"))["run_folds"]


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_leaves_shapes_and_undoubted_labels_alone(arm: str):
    rng = np.random.default_rng(0)
    targets, probs = np.eye(3)[rng.integers(0, 3, 50)], rng.dirichlet(np.ones(3), 50)
    doubtful = rng.random(50) < 0.3
    before = targets.copy()
    new, weights = ARMS[arm](targets, doubtful, probs)
    assert np.array_equal(targets, before)
    assert new.shape == (50, 3) and np.allclose(new.sum(axis=1), 1) and (weights >= 0).all()
    assert np.array_equal(new[~doubtful], targets[~doubtful]) and (weights[~doubtful] == 1).all()
    if arm != "keep":
        assert not np.array_equal(new[doubtful], targets[doubtful]) or (weights[doubtful] < 1).all()


def test_the_paired_interval():
    from scipy.stats import ttest_1samp

    gains = np.array([0.0, 1.0, 0.0, -1 / 3, 0.0, 2 / 3, 1.0])
    found = paired_interval(gains, np.arange(7), 0.95)
    wanted = ttest_1samp(gains, 0).confidence_interval(0.95)
    assert found == pytest.approx((gains.mean(), wanted.low, wanted.high))
    # every photograph twice is no more evidence
    twice = paired_interval(np.repeat(gains, 2), np.repeat(np.arange(7), 2), 0.95)
    assert twice == pytest.approx(found)
    assert paired_interval(np.zeros(5), np.arange(5), 0.95) == (0, 0, 0)


def test_too_little_to_tell_is_an_error():
    with pytest.raises(DataError, match="two classes"):
        what_if(np.zeros((20, 3)), np.zeros(20, dtype=int))
    with pytest.raises(DataError, match="no way of cleaning"):
        what_if(np.zeros((20, 3)), np.arange(20) % 2, arms=("wash",))
