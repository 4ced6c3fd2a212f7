"""Translated pictures: CycleGAN's parts are as defined, training continues bit by bit, no copy crosses a fold."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from manihot.audit.folds import assign_folds
from manihot.audit.sources import TRAIN_ONLY, use_sources
from manihot.cli import app
from manihot.errors import DataError, RunFolderError, SettingsError, WeightsError
from manihot.members.member import Member
from manihot.photos.scan import scan
from manihot.pipeline import run
from manihot.records.columns import ALWAYS_TRAIN
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.settings import Folds, Recipe, Source
from manihot.settings.options import TranslatedPictures, Translation
from manihot.train import cyclegan
from manihot.train.cyclegan import (
    WAYS,
    CycleGan,
    Pool,
    adversarial_loss,
    epoch_pairs,
    rate_factor,
    to_network,
    to_pictures,
)
from manihot.train.networks.translators import (
    Discriminator,
    Generator,
    load_translator,
    make_discriminator,
    make_generator,
    save_translator,
)
from manihot.train.translate import choose_photographs, draw_rows, find_class
from manihot.train.translate import translate as redraw
from manihot.train.translated import ORIGINAL, file_names, join_made, made_manifest, own_groups, picture_size

TINY = {"size": 32, "epochs": 2, "width": 2, "batch": 8, "workers": 1, "device": "cpu"}
CPU = torch.device("cpu")


def translate(photos: Path, out: Path, from_: str, to: str, **options: object) -> dict:
    """`redraw` with the fields of its groups of options given one by one."""
    groups = {
        key: kind(**{field.name: options.pop(field.name) for field in fields(kind) if field.name in options})
        for key, kind in (("training", Translation), ("made", TranslatedPictures))
    }
    return redraw(photos, out, from_, to, **groups, **options)


# ------------------------------------------------------------------------------------------------ networks


@pytest.mark.parametrize(("size", "blocks", "layers", "patch"), [(32, 6, 1, 16), (64, 6, 2, 34), (256, 9, 3, 70)])
def test_networks_fit_the_size(size: int, blocks: int, layers: int, patch: int):
    generator, judge = make_generator(size, 4), make_discriminator(size, 4)
    assert (generator.blocks, judge.layers, judge.patch) == (blocks, layers, patch)
    pictures = torch.rand(2, 3, size, size) * 2 - 1
    with torch.no_grad():
        made = generator(pictures)
        assert made.shape == pictures.shape
        assert made.abs().max() <= 1
        edge = (size // 2**layers) - 2  # two convolutions of 4 with padding 1 and stride 1 follow
        assert judge(pictures).shape == (2, 1, edge, edge)


def test_a_score_sees_the_patch_it_claims_and_no_more():
    judge = make_discriminator(64, 4, seed=1)
    for module in judge.modules():
        if isinstance(module, torch.nn.InstanceNorm2d):  # a mean over the picture would see all of it
            module.forward = lambda x: x  # type: ignore[method-assign]
    picture = torch.rand(1, 3, 128, 128, requires_grad=True)
    scores = judge(picture)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    seen = picture.grad.abs().sum((0, 1)) > 0
    for axis in (0, 1):
        along = torch.nonzero(seen.any(axis))
        assert int(along.max() - along.min()) + 1 == judge.patch == 34


def test_the_paper_s_sizes():
    """Parameters of the paper's networks, counted by hand from its appendix 7.2 with biases."""

    def convolution(a: int, b: int, k: int) -> int:
        return a * b * k * k + b

    wanted = convolution(3, 64, 7) + convolution(64, 128, 3) + convolution(128, 256, 3)
    wanted += 9 * 2 * convolution(256, 256, 3)
    wanted += convolution(256, 128, 3) + convolution(128, 64, 3) + convolution(64, 3, 7)
    assert sum(p.numel() for p in Generator().parameters()) == wanted
    wanted = convolution(3, 64, 4) + convolution(64, 128, 4) + convolution(128, 256, 4)
    wanted += convolution(256, 512, 4) + convolution(512, 1, 4)
    assert sum(p.numel() for p in Discriminator().parameters()) == wanted


def test_fresh_weights_are_drawn_by_the_seed_with_the_paper_s_spread():
    first, again, other = (
        torch.cat([p.flatten() for p in make_generator(64, 16, seed).parameters() if p.dim() > 1]) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.std().item() == pytest.approx(0.02, rel=0.02)
    assert first.mean().item() == pytest.approx(0, abs=2e-4)


def test_pixels_survive_the_way_to_the_network_and_back():
    pictures = np.arange(256, dtype=np.uint8).repeat(12).reshape(1, 32, 32, 3)
    tensor = to_network(pictures, CPU)
    assert (tensor.min().item(), tensor.max().item()) == (-1.0, 1.0)
    assert (to_pictures(tensor) == pictures).all()


def test_a_translator_is_saved_without_pickle_and_loads_the_same(tmp_path: Path):
    generator = make_generator(64, 4, seed=5)
    save_translator(tmp_path / "a.safetensors", generator, {"from": "healthy", "to": "mosaic", "size": 64})
    loaded, about = load_translator(tmp_path / "a.safetensors")
    assert (about["from"], about["to"], about["size"], about["width"], about["blocks"]) == (
        "healthy",
        "mosaic",
        64,
        4,
        6,
    )
    picture = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(picture), generator(picture))
    (tmp_path / "b.safetensors").write_bytes(b"no weights")
    for name in ("b", "absent"):
        with pytest.raises(WeightsError, match=f"{name}.safetensors"):
            load_translator(tmp_path / f"{name}.safetensors")


# ------------------------------------------------------------------------------------------------ training


def test_the_adversarial_loss_is_least_squares():
    scores = torch.tensor([[0.0, 1.0], [2.0, -1.0]])
    assert adversarial_loss(scores, 1).item() == pytest.approx((1 + 0 + 1 + 4) / 4)
    assert adversarial_loss(scores, 0).item() == pytest.approx((0 + 1 + 4 + 1) / 4)


def test_the_losses_of_a_step_are_those_of_the_paper():
    """The step's figures against the definitions, computed from the networks as they were before it."""
    settings = Translation(size=32, width=4, batch=2, lr=1e-9)
    model = CycleGan(settings, CPU)
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2))
    there, back = (model.generators[way] for way in WAYS)
    judge_second, judge_first = (model.discriminators[way] for way in WAYS)
    with torch.no_grad():
        adversarial = ((judge_second(there(first)) - 1) ** 2).mean() + ((judge_first(back(second)) - 1) ** 2).mean()
        cycle = (back(there(first)) - first).abs().mean() + (there(back(second)) - second).abs().mean()
        identity = (there(second) - second).abs().mean() + (back(first) - first).abs().mean()
        judged = ((judge_second(second) - 1) ** 2).mean() + (judge_second(there(first)) ** 2).mean()
        judged = judged + ((judge_first(first) - 1) ** 2).mean() + (judge_first(back(second)) ** 2).mean()
    found = model.step(first, second, np.random.default_rng(0))
    wanted = torch.stack([adversarial, cycle, identity, judged / 2]) / 2
    assert torch.allclose(found, wanted, atol=1e-5)


def test_the_weights_of_the_losses_are_used():
    """The generators' gradient is the adversarial one, and cycle's and identity's in proportion to their weights."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2))

    def gradient(cycle_weight: float, identity_weight: float) -> torch.Tensor:
        settings = Translation(size=32, width=4, cycle_weight=cycle_weight, identity_weight=identity_weight, lr=1e-9)
        model = CycleGan(settings, CPU)
        model.step(first, second, np.random.default_rng(0))
        return torch.cat([p.grad.flatten() for p in model.generators.parameters()])

    plain, cycle, both = gradient(0, 0), gradient(2, 0), gradient(2, 0.5)
    assert torch.allclose(gradient(6, 0) - plain, 3 * (cycle - plain), atol=1e-4)
    assert torch.allclose(gradient(2, 1.5) - cycle, 3 * (both - cycle), atol=1e-4)
    assert (cycle - plain).abs().max() > 1e-3
    assert (both - cycle).abs().max() > 1e-3


def test_a_step_moves_both_kinds_of_networks_and_judges_learn_from_detached_pictures():
    model = CycleGan(Translation(size=32, width=4), CPU)
    before = {name: p.clone() for name, p in model.generators.named_parameters()}
    judges = {name: p.clone() for name, p in model.discriminators.named_parameters()}
    model.step(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32), np.random.default_rng(0))
    assert any(not torch.equal(p, before[name]) for name, p in model.generators.named_parameters())
    assert any(not torch.equal(p, judges[name]) for name, p in model.discriminators.named_parameters())
    assert all(not picture.requires_grad for pool in model.pools.values() for picture in pool.pictures)


def test_the_pool_gives_new_pictures_first_and_old_ones_half_the_time():
    pool, rng = Pool(50), np.random.default_rng(0)
    numbers = torch.arange(2000.0).view(-1, 1, 1, 1)
    for k in range(50):
        assert pool.swap(numbers[k : k + 1], rng).item() == k
    given = [pool.swap(numbers[k : k + 1], rng).item() for k in range(50, 2000)]
    old = [value for k, value in zip(range(50, 2000), given) if value != k]
    assert len(pool.pictures) == 50
    assert 0.45 < len(old) / len(given) < 0.55
    assert len(set(old)) == len(old)  # a picture that was given back has left the pool
    kept = {int(picture.item()) for picture in pool.pictures}
    assert kept | {int(v) for v in old} | {k for k, v in zip(range(50, 2000), given) if v == k} == set(range(2000))


def test_the_pool_keeps_no_batch_alive():
    pool = Pool(4)
    pool.swap(torch.rand(8, 3, 4, 4), np.random.default_rng(0))
    assert all(picture.untyped_storage().nbytes() == 3 * 4 * 4 * 4 for picture in pool.pictures)


def test_the_rate_is_constant_and_then_falls_in_a_line():
    factors = [rate_factor(epoch, 200) for epoch in range(200)]
    assert factors[:100] == [1.0] * 100
    assert np.diff(factors[99:]) == pytest.approx(np.full(100, -1 / 101))
    assert factors[-1] == pytest.approx(1 / 101)
    assert rate_factor(0, 1) == 1.0


@pytest.mark.parametrize(("first", "second", "batch"), [(3, 8, 1), (8, 3, 3), (5, 5, 2), (4, 1, 9)])
def test_an_epoch_shows_every_photograph(first: int, second: int, batch: int):
    steps = list(epoch_pairs(first, second, batch, seed=1, epoch=2))
    assert all(len(own) == len(other) for own, other in steps)
    assert max(len(own) for own, _ in steps) <= batch
    for number, photographs in enumerate((first, second)):
        items = [item for step in steps for item in step[number]]
        assert len(items) == len(set(items)) == max(first, second)  # a photograph comes again in another way
        assert {place for place, _ in items} == set(range(photographs))
    again = list(epoch_pairs(first, second, batch, seed=1, epoch=2))
    assert steps == again
    if min(first, second) > 2:
        assert steps != list(epoch_pairs(first, second, batch, seed=1, epoch=3))


# ------------------------------------------------------------------------------------------------ pictures and groups


def manifest_of(n: int = 40, **columns: object) -> Manifest:
    """Half healthy, half mosaic, without files."""
    table = pd.DataFrame({"image_id": [f"p{i}.jpg" for i in range(n)], "path": [f"p{i}.jpg" for i in range(n)]})
    table = table.assign(label=np.arange(n) % 2, height=60, width=80, **columns)
    return Manifest.from_table(table, ("Healthy", "Mosaic (CMD)"), Path("photos"))


def made_of(manifest: Manifest, rows: np.ndarray, source: str = "translated") -> Manifest:
    facts = pd.DataFrame({"sha256": [f"{r:064d}" for r in rows], "height": 55, "width": 74, "bytes": 900})
    files = file_names(manifest.image_id[rows], "Mosaic (CMD)")
    return made_manifest(manifest, rows, "Mosaic (CMD)", source, files, facts, Path("/made").absolute())


def test_only_training_photographs_are_learned_from():
    split = np.array(["train"] * 30 + ["val"] * 5 + ["test"] * 5, dtype=object)
    manifest = manifest_of(split=split, weight=np.where(np.arange(40) == 2, 0.0, 1.0))
    labels = manifest.labels.copy()
    labels[4] = -1
    manifest = manifest.with_columns(label=labels)
    first, second = choose_photographs(manifest, "Healthy", "Mosaic (CMD)")
    assert set(first) == set(range(0, 30, 2)) - {2, 4}
    assert set(second) == set(range(1, 30, 2))
    with pytest.raises(DataError, match=r"'Mosaic \(CMD\)' has 4 photographs"):
        choose_photographs(manifest.take(np.arange(40) % 8 < 2).take(np.arange(9)), "Mosaic (CMD)", "Healthy")
    with pytest.raises(SettingsError, match="both 'Healthy'"):
        choose_photographs(manifest, "Healthy", "Healthy")


def test_a_fold_left_out_takes_its_groups_with_it():
    fold = np.arange(40) // 2 % 2  # 0, 0, 1, 1, ...
    group = np.full(40, "", dtype=object)
    group[[0, 2]] = "leaf"  # torn between the folds
    manifest = manifest_of(fold=fold, group=group)
    first, second = choose_photographs(manifest, "Healthy", "Mosaic (CMD)", without_fold=0)
    assert set(first) == {k for k in range(0, 40, 2) if fold[k] == 1} - {2}
    assert set(second) == {k for k in range(1, 40, 2) if fold[k] == 1}
    with pytest.raises(SettingsError, match=r"has the folds \[0, 1\]"):
        choose_photographs(manifest, "Healthy", "Mosaic (CMD)", without_fold=2)
    with pytest.raises(SettingsError, match="no folds"):
        choose_photographs(manifest_of(), "Healthy", "Mosaic (CMD)", without_fold=0)


def test_a_class_is_found_by_a_part_of_its_name():
    classes = ("Cassava Bacterial Blight (CBB)", "Cassava Mosaic Disease (CMD)", "Healthy", "Mosaic")
    assert find_class("healthy", classes) == "Healthy"
    assert find_class("blight", classes) == "Cassava Bacterial Blight (CBB)"
    assert find_class("mosaic", classes) == "Mosaic"  # a whole name comes first
    with pytest.raises(SettingsError, match="several classes: Cassava Bacterial"):
        find_class("cassava", classes)
    with pytest.raises(SettingsError, match="did you mean 'Healthy'"):
        find_class("Helthy", classes)
    with pytest.raises(SettingsError, match="no class ''"):
        find_class("", classes)


def test_the_pictures_of_so_many_photographs_are_drawn_by_the_seed():
    rows = np.arange(100, 200)
    drawn = draw_rows(rows, 7, seed=1)
    assert len(set(drawn)) == 7
    assert set(drawn) <= set(rows)
    assert (np.diff(drawn) > 0).all()
    assert (draw_rows(rows, 7, seed=1) == drawn).all()
    assert (draw_rows(rows, 7, seed=2) != drawn).any()
    assert (draw_rows(rows, None, seed=1) == rows).all()


def test_files_have_names_that_every_system_allows():
    names = file_names(np.array(["a/b:c*?.jpg", "A/B:C*?.JPG", "" + "x" * 300, "葉.jpg"], dtype=object), "Mosaic (CMD)")
    assert len({name.casefold() for name in names}) == 4
    assert all(len(name) < 120 and name.endswith("Mosaic-CMD.jpg") for name in names)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.") for name in names)


def test_a_picture_has_its_original_s_proportion():
    assert picture_size(64, 0, 0) == (64, 64)
    assert picture_size(64, 300, 300) == (64, 64)
    height, width = picture_size(64, 600, 800)
    assert width / height == pytest.approx(4 / 3, rel=0.03)
    assert height * width == pytest.approx(64**2, rel=0.03)
    assert picture_size(64, 10, 10000) == (32, 128)


def test_original_and_picture_stand_in_one_group():
    group = np.array(["" if k % 4 else f"leaf{k}" for k in range(40)], dtype=object)
    group[6] = "p2.jpg"  # the name of a photograph that stands alone
    manifest = manifest_of(group=group, district=["north", "south"] * 20)
    rows = np.arange(0, 40, 2)
    made = made_of(manifest, rows)
    joined = join_made(manifest, made)
    table = joined.table
    assert len(joined) == 60
    by_id = table.set_index("image_id")
    for picture in table[table[ORIGINAL] != ""].itertuples():
        original = by_id.loc[picture.translated_from]
        assert picture.group == original["group"] != ""
        assert (picture.district, picture.source, picture.split) == (original["district"], "translated", "train")
        assert joined.classes[picture.label] == "Mosaic (CMD)"
        assert (picture.fold, picture.weight) == (ALWAYS_TRAIN, 1)
    assert by_id.loc["p2.jpg", "group"] != by_id.loc["p6.jpg", "group"]  # nobody else is drawn in
    assert (table["group"][:40][np.arange(40) % 2 == 1] == "").all()  # photographs without a picture stay alone
    assert (own_groups(manifest) != "").all()
    paths = joined.paths
    assert paths[0] == Path("photos/p0.jpg")
    assert paths[40] == made.paths[0] == Path("/made").absolute() / made.table["path"][0]
    assert (manifest.table["group"] == group).all()  # what came in is as it was


def test_pictures_of_pictures_are_never_made_and_a_second_way_can_join():
    manifest = manifest_of()
    joined = join_made(manifest, made_of(manifest, np.arange(0, 40, 2)))
    first, second = choose_photographs(joined, "Healthy", "Mosaic (CMD)")
    assert first.max() < 40
    assert second.max() < 40
    with pytest.raises(DataError, match="20 pictures are in the manifest already"):
        join_made(joined, made_of(joined, np.arange(0, 40, 2)))
    twice = join_made(joined, made_of(joined, np.arange(0, 40, 2), "again"))
    assert len(twice) == 80
    assert (twice.table.groupby("group").size()[lambda s: s.index != ""] == 3).all()


def test_soft_labels_stay_and_pictures_have_none():
    manifest = manifest_of()
    soft = np.tile(np.array([0.7, 0.3], dtype=np.float32), (40, 1))
    manifest = replace(manifest, soft_labels=soft)
    joined = join_made(manifest, made_of(manifest, np.arange(0, 40, 2)))
    assert (joined.soft_labels[:40] == soft).all()
    assert np.isnan(joined.soft_labels[40:]).all()


@pytest.mark.parametrize(
    "sources",
    [{"translated": Source(use="train")}, {}, {"main": Source(use="all")}],
    ids=["told", "nothing said", "another source told"],
)
def test_a_fold_never_trains_on_a_picture_of_what_it_holds_out(sources: dict[str, Source]):
    """Nor does it judge pictures; with `sources: {translated: {use: train}}` or without any word about them."""
    manifest = manifest_of()
    joined = join_made(manifest, made_of(manifest, np.arange(0, 40, 2)))
    used, _ = use_sources(joined, sources)
    fold, _ = assign_folds(used, Folds(kind="stratified", n=4))
    used = used.with_columns(fold=fold)
    member = Member("main", Recipe(), used, None, None, CPU, None)  # type: ignore[arg-type]
    original = used.table[ORIGINAL].to_numpy()
    held_once = []
    for k in range(4):
        train, held = member.rows(k)
        held_once += held.tolist()
        assert (original[held] == "").all()
        made = train[original[train] != ""]
        assert 10 < len(made) < 20
        assert not set(original[made]) & set(used.image_id[held])
    assert sorted(held_once) == list(range(40))


# ------------------------------------------------------------------------------------------------ the command


def test_translate_writes_pictures_that_join(small_photos: Path, tmp_path: Path):
    found = translate(small_photos, tmp_path / "out", "green", "blue", both=True, pictures=9, **TINY)
    assert found["pictures"] == 18
    made, joined = Manifest.load(found["manifest"]), Manifest.load(found["joined"])
    assert made.classes == joined.classes == ("blue spots", "green", "red")
    assert made.class_counts().tolist() == [9, 9, 0]
    assert (made.table["source"] == "translated").all()
    assert len(joined) == 45 + 18
    for path, row in zip(made.paths, made.table.itertuples()):
        with Image.open(path) as picture:
            assert picture.size == (row.width, row.height) == (37, 28)  # 64 x 48 in about 32 x 32 pixels
            assert path.stat().st_size == row.bytes
    assert {p.as_posix() for p in made.paths} == {p.as_posix() for p in joined.paths[45:]}
    rows = [json.loads(line) for line in found["history"].read_text(encoding="utf-8").splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1]
    assert rows[0]["lr"] == 2e-4
    assert rows[1]["lr"] == pytest.approx(1e-4)
    with Image.open(found["samples"]) as sheet:
        assert sheet.size[0] == 3 * 132 + 4
    kept = {p.name for p in (tmp_path / "out/samples").iterdir()}
    assert kept == {"epoch0001.png", "epoch0002.png"}
    assert not (tmp_path / "out/last.ckpt").exists()  # of no use once both networks are finished
    # joined photographs can be scanned, stored and sampled like any other
    use_sources(joined, {"translated": Source(use="train", classes=("blue spots",))})
    assert joined.table[TRAIN_ONLY].sum() == 18


def test_a_run_trains_on_joined_pictures_and_judges_photographs_alone(
    small_photos: Path, tiny_recipe: Path, tmp_path: Path
):
    found = translate(small_photos, tmp_path / "made", "green", "blue", **{**TINY, "epochs": 1})
    sets = ["sources={translated: {use: train}}", "train.epochs=1", "audit.labels=false", "tta=[{name: full}]"]
    scores = run(found["joined"], tmp_path / "run", str(tiny_recipe), overrides=sets, workers=1, report=False)
    oof = Predictions.load(tmp_path / "run/predictions/main.oof.parquet")
    assert len(oof) == 45
    assert not any(name.startswith("translated/") for name in oof.image_id)
    assert 0 <= scores["members"]["main"]["oof"]["metrics"]["accuracy"]["value"] <= 1
    table = Manifest.load(tmp_path / "run/folds.parquet").table
    assert (table.loc[table[ORIGINAL] != "", "fold"] == ALWAYS_TRAIN).all()


def test_a_finished_call_does_nothing_again_and_other_settings_are_refused(small_photos: Path, tmp_path: Path):
    options = {**TINY, "epochs": 1}
    found = translate(small_photos, tmp_path / "out", "green", "blue", **options)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.*") if p.name != "run.json"}
    translate(small_photos, tmp_path / "out", "green", "blue", **options)
    assert before == {p: p.stat().st_mtime_ns for p in before}
    with pytest.raises(RunFolderError, match=r"to \(blue -> red\)"):
        translate(small_photos, tmp_path / "out", "green", "red", **options)
    Manifest.load(found["manifest"]).paths[0].unlink()
    translate(small_photos, tmp_path / "out", "green", "blue", **options)  # what is missing comes back
    assert all(path.is_file() for path in Manifest.load(found["manifest"]).paths)
    translate(small_photos, tmp_path / "out", "green", "red", update=True, **options)
    made = Manifest.load(found["manifest"])
    assert set(made.labels) == {2}
    assert {p.name for p in (tmp_path / "out/photos").iterdir()} == {p.name for p in made.paths}


def test_a_stopped_training_continues_bit_by_bit(small_photos: Path, tmp_path: Path, monkeypatch):
    translate(small_photos, tmp_path / "whole", "green", "blue", **TINY)
    save, saved = cyclegan._save, []

    class Stopped(BaseException):
        pass

    def stop_after_the_first(*arguments) -> None:
        save(*arguments)
        saved.append(True)
        raise Stopped

    monkeypatch.setattr(cyclegan, "_save", stop_after_the_first)
    with pytest.raises(Stopped):
        translate(small_photos, tmp_path / "cut", "green", "blue", **TINY)
    monkeypatch.setattr(cyclegan, "_save", save)
    assert saved == [True]
    assert (tmp_path / "cut/last.ckpt").exists()
    assert not (tmp_path / "cut/manifest.parquet").exists()
    torch.manual_seed(99)  # nothing depends on what ran before
    translate(small_photos, tmp_path / "cut", "green", "blue", **TINY)
    for name in ("there.safetensors", "back.safetensors", "samples.png"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    one, two = (Manifest.load(tmp_path / name / "manifest.parquet").table for name in ("cut", "whole"))
    assert one["sha256"].tolist() == two["sha256"].tolist()


def test_a_broken_checkpoint_and_a_folder_of_something_else_are_named(small_photos: Path, tmp_path: Path):
    (tmp_path / "mine/photos").mkdir(parents=True)
    (tmp_path / "mine/photos/there-1.jpg").write_bytes(b"a user's own")
    with pytest.raises(RunFolderError, match="holds photos already"):
        translate(small_photos, tmp_path / "mine", "green", "blue", **TINY)
    assert (tmp_path / "mine/photos/there-1.jpg").read_bytes() == b"a user's own"
    with pytest.raises(SettingsError, match="no class 'gren'"):
        translate(small_photos, tmp_path / "out", "gren", "blue", **TINY)
    (tmp_path / "out/last.ckpt").write_bytes(b"half a file")
    with pytest.raises(RunFolderError, match=r"last\.ckpt"):  # and the mistyped class doesn't stand in the way
        translate(small_photos, tmp_path / "out", "green", "blue", **TINY)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 66}, "multiple of 4 from 32 to 1024, for instance 64"),
        ({"size": 16}, "for instance 32"),
        ({"epochs": 0}, "--epochs 0"),
        ({"lr": 0.0}, "--lr 0"),
        ({"pictures": 0}, "--pictures 0"),
        ({"seed": -1}, "--seed -1"),
        ({"name": " "}, "--name is empty"),
    ],
)
def test_numbers_that_can_not_be_are_refused_before_anything_is_read(options, said: str, tmp_path: Path):
    with pytest.raises(SettingsError, match=said):
        translate(tmp_path / "absent", tmp_path / "out", "a", "b", **options)
    assert not (tmp_path / "out").exists()


def test_the_name_of_an_own_source_is_refused(small_photos: Path, tmp_path: Path):
    manifest, _ = scan(small_photos, workers=1)
    manifest.save(tmp_path / "m.parquet")
    with pytest.raises(SettingsError, match="45 photographs have this source"):
        translate(tmp_path / "m.parquet", tmp_path / "out", "green", "blue", name="main", **TINY)


def test_the_command_takes_its_options_and_says_what_is_wrong(small_photos: Path, tmp_path: Path):
    words = ["translate", small_photos, "--from", "gren", "--to", "blue", "--size", "64", "--out", tmp_path / "out"]
    with pytest.raises(SettingsError, match="did you mean 'green'"):
        app(list(map(str, words)), exit_on_error=False, result_action="return_value")


# ------------------------------------------------------------------------------------------------ what it learns


def draw_leaf(rng: np.random.Generator, sick: bool) -> np.ndarray:
    """A green leaf on brown soil, 72 x 72; a sick one has yellow blotches."""
    soil = rng.normal((120, 85, 60), 12, (72, 72, 3))
    picture = cv2.GaussianBlur(soil, (0, 0), 1.0)
    centre, axes = rng.uniform(30, 42, 2), rng.uniform(20, 30, 2)
    angle = float(rng.uniform(0, 180))
    leaf = np.zeros((72, 72), np.uint8)
    cv2.ellipse(leaf, (tuple(map(float, centre)), tuple(map(float, 2 * axes)), angle), 1, -1)
    green = np.array((50, 125, 45)) * rng.uniform(0.8, 1.2) + rng.normal(0, 6, (72, 72, 3))
    picture = np.where(leaf[..., None] == 1, green, picture)
    if sick:
        blotches = np.zeros((72, 72), np.uint8)
        for _ in range(10):
            cv2.circle(blotches, tuple(map(int, rng.integers(14, 58, 2))), int(rng.integers(3, 7)), 1, -1)
        yellow = np.array((205, 190, 60)) + rng.normal(0, 6, (72, 72, 3))
        picture = np.where(((blotches & leaf) == 1)[..., None], yellow, picture)
    return np.clip(cv2.GaussianBlur(picture, (0, 0), 0.6), 0, 255).astype(np.uint8)


def yellow_share(picture: np.ndarray) -> float:
    """Pixels in which red is near green and both are far above blue."""
    red, green, blue = (picture[..., k].astype(int) for k in range(3))
    return float(((red > 0.85 * green) & (green - blue > 60) & (red > 130)).mean())


@pytest.mark.slow
def test_healthy_leaves_get_yellow_blotches(tmp_path: Path):
    """64 pixels, a few minutes on one core: pictures move to the class they are made for, and the way back is known."""
    rng = np.random.default_rng(0)
    for name in ("healthy", "mosaic"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(40):
            picture = Image.fromarray(draw_leaf(rng, sick=name == "mosaic"))
            picture.save(tmp_path / "photos" / name / f"{name}{k:02d}.png")
    shares = {
        name: np.array(
            [yellow_share(np.asarray(Image.open(p))) for p in sorted((tmp_path / "photos" / name).iterdir())]
        )
        for name in ("healthy", "mosaic")
    }
    assert shares["healthy"].max() < 0.01 < 0.05 < shares["mosaic"].mean()  # the measure tells the classes apart
    found = translate(
        tmp_path / "photos", tmp_path / "out", "healthy", "mosaic", size=64, epochs=14, width=8, workers=1, device="cpu"
    )
    made = Manifest.load(found["manifest"])
    yellow = np.array([yellow_share(np.asarray(Image.open(path))) for path in made.paths])
    history = [json.loads(line) for line in found["history"].read_text(encoding="utf-8").splitlines()]
    assert (yellow > shares["healthy"].max()).mean() > 0.8
    assert yellow.mean() > 0.25 * shares["mosaic"].mean()
    assert history[-1]["cycle"] < 0.6 * history[0]["cycle"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_step_at_256_pixels_on_a_gpu():
    """The paper's networks at the paper's size: finite losses, and the cycle is learned within a few steps."""
    model = CycleGan(Translation(size=256), torch.device("cuda"))
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)
    first, second = (to_network(pictures[k : k + 1], model.device) for k in range(2))
    cycle = [model.step(first, second, rng)[1].item() for _ in range(60)]
    assert np.isfinite(cycle).all()
    assert np.mean(cycle[-5:]) < 0.7 * np.mean(cycle[:5])
