"""Duplicates: found under every change, not fooled by like outlines, grouped exactly as DBSCAN would, kept in folds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN
from threadpoolctl import threadpool_info, threadpool_limits

from conftest import shared_data
from manihot.audit import alignment, hashes, inverted, measurements
from manihot.audit.duplicates import COLUMNS, KINDS, find_duplicates, with_groups
from manihot.audit.folds import assign_folds
from manihot.audit.hashes import SIDE, Thumbnails, make_thumbnails
from manihot.audit.neighbours import components_within, pairs_within
from manihot.demo.make import make_demo
from manihot.errors import DataError, RunFolderError
from manihot.photos.scan import scan
from manihot.pipeline import prepare
from manihot.records.files import digest_file
from manihot.records.groups import group_by_name, propose_name_pattern, with_name_groups
from manihot.records.manifest import Manifest
from manihot.records.run_folder import RunFolder
from manihot.settings import Folds, load_recipe
from manihot.settings.options import TableOptions

ORIGINALS = 10


def _texture(rng: np.random.Generator, height: int = 300, width: int = 400) -> np.ndarray:
    """A picture with structure of all sizes, as photographs have."""
    out = np.zeros((height, width, 3))
    for cells, strength in ((3, 60), (8, 40), (25, 25), (90, 12)):
        grid = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        out += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return (out + 120).clip(0, 255).astype(np.uint8)


def _copies(picture: np.ndarray) -> dict[str, np.ndarray]:
    height, width = picture.shape[:2]
    return {
        "reencoded": picture,
        "resized": cv2.resize(picture, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA),
        "rotated": np.rot90(picture),
        "flipped": picture[::-1],
        "cropped": picture[int(0.13 * height) : int(0.93 * height), int(0.04 * width) : int(0.84 * width)],
    }


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures, and of the first five one copy each of another kind, and an exact one of the sixth."""
    folder = tmp_path_factory.mktemp("copied")
    rng = np.random.default_rng(0)
    for k in range(ORIGINALS):
        picture = _texture(rng)
        cv2.imwrite(str(folder / f"o{k}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
        if k < 5:
            name, copy = list(_copies(picture).items())[k]
            cv2.imwrite(str(folder / f"c{k}_{name}.jpg"), copy, [cv2.IMWRITE_JPEG_QUALITY, 60])
    (folder / "c5_exact.jpg").write_bytes((folder / "o5.jpg").read_bytes())
    return folder


@pytest.fixture(scope="module")
def looked(copied: Path) -> tuple[Manifest, Thumbnails]:
    manifest, _ = scan(copied)
    return manifest, make_thumbnails(manifest, workers=1)


def test_each_kind_of_copy_is_found_and_named(looked: tuple[Manifest, Thumbnails]) -> None:
    manifest, thumbnails = looked
    found = find_duplicates(manifest, thumbnails)
    assert list(found.columns) == list(COLUMNS)
    assert set(found["kind"]) == set(KINDS) - {"again"}
    for name, rows in found.groupby("group"):
        (copy,) = [i for i in rows["image_id"] if i.startswith("c")]
        assert set(rows["image_id"]) == {copy, f"o{copy[1]}.jpg"}, name
        assert set(rows["kind"]) == {copy[3:-4]}
    assert len(found) == 12
    exact = found["kind"] == "exact"
    assert (found.loc[exact, "distance"] == 0).all() and found["distance"].between(0, 0.05).all()


def test_without_thumbnails_only_exact_copies_are_found(looked: tuple[Manifest, Thumbnails]) -> None:
    found = find_duplicates(looked[0])
    assert sorted(found["image_id"]) == ["c5_exact.jpg", "o5.jpg"] and (found["phash_distance"] == -1).all()
    assert list(found["nearest"]) == list(found["image_id"])[::-1]


def test_order_of_the_photographs_does_not_matter(looked: tuple[Manifest, Thumbnails]) -> None:
    manifest, thumbnails = looked
    back = find_duplicates(manifest.take(np.arange(len(manifest))[::-1]), thumbnails)
    there = find_duplicates(manifest, thumbnails)
    parts = [{frozenset(rows["image_id"]) for _, rows in table.groupby("group")} for table in (there, back)]
    assert parts[0] == parts[1]


def test_embeddings_propose_but_pixels_decide(
    looked: tuple[Manifest, Thumbnails], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, thumbnails = looked
    monkeypatch.setattr("manihot.audit.duplicates.LIKELY", 2.0)  # no other proposal
    monkeypatch.setattr("manihot.audit.duplicates.HASH_LIKELY", 2.0)
    assert set(find_duplicates(manifest, thumbnails)["kind"]) == {"exact"}
    all_alike = np.ones((len(manifest), 8), np.float32)
    found = find_duplicates(manifest, thumbnails, all_alike)
    assert len(found) == 12 and found["group"].nunique() == 6
    with pytest.raises(DataError, match="pass thumbnails"):
        find_duplicates(manifest, embeddings=all_alike)
    with pytest.raises(DataError, match="don't fit"):
        find_duplicates(manifest, thumbnails, all_alike[1:])


def _leaves(count: int, rng: np.random.Generator) -> np.ndarray:
    """Leaves of nearly one outline on white; veins and spots differ."""
    out = np.full((count, SIDE, SIDE), 230, np.uint8)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    for leaf in out:
        high = 0.62 + rng.normal(0, 0.01) - 0.25 * x * (1 + 0.3 * x)
        inside = (x / 0.95) ** 2 + ((y + rng.normal(0, 0.01) + 0.15 * x**2 + 0.1 * x) / high) ** 2 < 1
        veins = cv2.resize(rng.normal(0, 14, (40, 40)), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        leaf[inside] = (80 + 30 * x + 20 * y + veins).clip(0, 255).astype(np.uint8)[inside]
    return out


def _thumbnails_of(pictures: np.ndarray) -> tuple[Manifest, Thumbnails]:
    ids = np.array([f"{k}.jpg" for k in range(len(pictures))], dtype=object)
    table = pd.DataFrame({"image_id": ids, "path": ids, "height": 400, "width": 600})
    thumbnails = Thumbnails(ids, pictures, hashes.pack_hashes(hashes.transform(pictures, 8)), table[["image_id"]])
    return Manifest.from_table(table, ("a", "b"), Path()), thumbnails


def test_like_outlines_are_no_duplicates_but_a_crop_of_one_is() -> None:
    leaves = _leaves(40, np.random.default_rng(1))
    crop = cv2.resize(leaves[7][10:112, 20:122], (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    manifest, thumbnails = _thumbnails_of(np.concatenate([leaves, crop[None, :, ::-1]]))
    close = sum(len(i) for i, *_ in hashes.hash_pairs(thumbnails.phash[:40], 6))
    assert close > 20, "the hashes must be fooled for this test to say anything"
    found = find_duplicates(manifest, thumbnails)
    assert sorted(found["image_id"]) == ["40.jpg", "7.jpg"] and set(found["kind"]) == {"cropped"}


def test_pictures_that_show_nothing_are_not_compared() -> None:
    flat = np.full((5, SIDE, SIDE), 255, np.uint8)
    assert not len(find_duplicates(*_thumbnails_of(flat)))


def test_conflicts_and_torn_folds_are_told(looked: tuple[Manifest, Thumbnails]) -> None:
    manifest, thumbnails = looked
    is_copy = manifest.table["image_id"].str.startswith("c").to_numpy()
    first = manifest.table["image_id"].str[1] == "0"
    told = manifest.with_columns(
        label=np.where(is_copy & first, 1, 0), fold=np.where(is_copy, 0, 1), split=np.where(first, "test", "train")
    )
    told = Manifest.from_table(told.table, ("a", "b"), manifest.root)
    found = find_duplicates(told, thumbnails).set_index("image_id")
    assert found["label_conflict"].to_dict() == {i: i[1] == "0" for i in found.index}
    assert found["crosses_folds"].to_dict() == {i: i[1] != "0" for i in found.index}
    assert not found["crosses_splits"].any()
    half = told.with_columns(split=np.where(is_copy, "test", "train"), fold=-1)
    found = find_duplicates(half, thumbnails)
    assert found["crosses_splits"].all() and not found["crosses_folds"].any()
    unlabelled = find_duplicates(manifest.with_columns(label=-1), thumbnails)
    assert not unlabelled["label_conflict"].any()


def test_no_duplicates_gives_an_empty_table(looked: tuple[Manifest, Thumbnails]) -> None:
    manifest, thumbnails = looked
    alone = manifest.take(manifest.table["image_id"].str.startswith("o").to_numpy())
    found = find_duplicates(alone, thumbnails)
    assert not len(found) and list(found.columns) == list(COLUMNS)
    assert (with_groups(alone, found).table["group"] == "").all()


# ------------------------------------------------------------------------------------------- thumbnails


def test_looks_survive_saving_and_an_interruption(
    copied: Path, looked: tuple[Manifest, Thumbnails], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, thumbnails = looked
    monkeypatch.setattr(hashes, "PART", 4)
    monkeypatch.setattr(hashes, "TASK", 2)
    real, calls = hashes.measure_files, []

    def stop_later(task: object) -> object:
        calls.append(task)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(task)  # type: ignore[arg-type]

    monkeypatch.setattr(hashes, "measure_files", stop_later)
    with pytest.raises(KeyboardInterrupt):
        make_thumbnails(manifest, 1, tmp_path)
    again = make_thumbnails(manifest, 1, tmp_path)
    assert len(calls) == 4 + 6, "the finished part of 4 is not done again"
    assert not (tmp_path / "parts").exists()
    (tmp_path / "parts/00000").mkdir(parents=True)  # killed while it removed them
    make_thumbnails(manifest, workers=1, folder=tmp_path)
    assert not (tmp_path / "parts").exists()
    np.testing.assert_array_equal(again.pictures, thumbnails.pictures)
    np.testing.assert_array_equal(again.phash, thumbnails.phash)
    pd.testing.assert_frame_equal(again.composition, thumbnails.composition)
    make_thumbnails(manifest, 1, tmp_path)
    assert len(calls) == 10, "finished thumbnails are found again"
    (tmp_path / "thumbnails.npy").unlink()
    with pytest.raises(RunFolderError, match="expected thumbnails"):
        Thumbnails.load(tmp_path)


def test_a_photograph_changed_since_the_scan_is_named(copied: Path, looked: tuple[Manifest, Thumbnails]) -> None:
    manifest = looked[0]
    sha256 = manifest.table["sha256"].to_numpy(copy=True)
    sha256[3] = "0" * 64
    with pytest.raises(DataError, match=str(manifest.paths[3].name)):
        make_thumbnails(manifest.with_columns(sha256=sha256), 1)


def test_hashes_of_all_orientations_come_from_one() -> None:
    picture = cv2.resize(_texture(np.random.default_rng(2))[..., 1], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    turned = np.stack([hashes.orient_pictures(picture, g) for g in range(8)])
    expected = hashes.pack_hashes(hashes.transform(turned, 8))
    got = hashes.turned_hashes(expected[:1])[0]
    assert hashes.count_bits(expected ^ got).max() <= 1  # a coefficient at zero may round either way
    assert len(set(expected.tolist())) == 8


@pytest.mark.parametrize("most", [0, 3, 6])
def test_pairs_of_hashes_are_those_of_a_full_comparison(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    bits = rng.random((260, 64)) < np.where(np.arange(64) < 40, 0.04, 0.5)  # an outline that all share
    bits[130:] = bits[:130] ^ (rng.random((130, 64)) < 0.05)
    bits[:, 0] = False
    phash = np.packbits(bits, axis=1, bitorder="little").view(np.uint64)[:, 0]
    phash[7:9] = phash[3]
    apart = hashes.count_bits(hashes.turned_hashes(phash)[:, :, None] ^ phash)
    expected = {(i, j, g, apart[i, g, j]) for i, g, j in np.argwhere(apart <= most) if i < j}
    assert len(expected) > 3
    monkeypatch.setattr(hashes, "HASHES_AT_ONCE", 50)
    found = [pair for block in hashes.hash_pairs(phash, most) for pair in zip(*(part.tolist() for part in block))]
    assert len(found) == len(set(found)) and set(found) == expected


def test_the_steepest_pixels_are_found_in_a_sample() -> None:
    rng = np.random.default_rng(0)
    for values in (rng.random(30000), np.repeat([0.0, 1.0], [900, 100]), np.zeros(50), np.arange(9.0), np.ones(1)):
        values = values.astype(np.float32)
        for count in {1, max(1, len(values) // 33), len(values)}:
            assert measurements._highest(values, count) == np.sort(values)[-count]


def test_bits_are_counted_alike_without_numpy_2(monkeypatch: pytest.MonkeyPatch) -> None:
    words = np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64)
    expected = [int(w).bit_count() for w in words]
    assert hashes.count_bits(words).tolist() == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert hashes.count_bits(words).tolist() == expected


def test_coefficients_of_a_crop_are_those_of_the_cut_picture() -> None:
    picture = np.random.default_rng(0).normal(size=(1, 40, 40)).astype(np.float32)
    cut = alignment.crop_coefficients(picture[:, 4:36, 8:40], np.array([0, 1, 0, 1]))
    np.testing.assert_allclose(
        alignment.crop_coefficients(picture, np.array([0.1, 0.9, 0.2, 1.0])), cut, rtol=1e-4, atol=1e-5
    )


def test_small_pictures_are_means_of_blocks() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (140, SIDE, SIDE), dtype=np.uint8)
    for side in (32, 64):
        blocks = pictures.reshape(-1, side, SIDE // side, side, SIDE // side)
        np.testing.assert_array_equal(alignment.shrink(pictures, side), blocks.mean(axis=(2, 4), dtype=np.float32))


def test_bounds_lose_no_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    pictures = np.stack([cv2.resize(_texture(rng, 64, 64)[..., 1], (SIDE, SIDE)) for _ in range(40)])
    cut = [cv2.resize(p[10:112, 5:107], (SIDE, SIDE)) for p in pictures[:8]]
    search = alignment.CropSearch(alignment.shrink(np.concatenate([pictures, cut, np.zeros_like(pictures[:1])]), 32))
    asked = np.flatnonzero(search.shows)
    (query, vectors), turn = alignment._canonical(search.describe(search.whole[asked]), alignment.MARGIN)
    (_, crops), crop_turn = alignment._canonical(search.crops_of(asked).reshape(-1, 35), None)
    score, count = vectors @ crops.T, len(alignment.CROPS)
    for name, value in (("OWNERS", 7), ("QUERIES", 5)):
        monkeypatch.setattr(alignment, name, value)
    for least in (0.4, 0.88):
        expected = {
            (query[q], c // count, alignment.COMPOSED[turn[q], crop_turn[c]], c % count): score[q, c]
            for q, c in np.argwhere(score >= least)
            if query[q] != c // count
        }
        found = {}
        for block in search.search(least):
            keys = zip(*(block[name].tolist() for name in ("part", "whole", "orientation", "crop")))
            found.update(zip(keys, block["score"]))
        assert len(expected) > 8 and found.keys() == expected.keys()
        assert all(abs(found[key] - expected[key]) < 1e-5 for key in found)


def test_threads_keep_the_order_and_give_blas_its_threads_back() -> None:
    def threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    seen = []

    def work(task: int) -> int:
        seen.append(threads())
        if task == 7:
            raise ValueError(task)
        return task

    with threadpool_limits(2, "blas"):
        assert list(alignment._in_threads(work, range(7))) == list(range(7))
        with pytest.raises(ValueError, match="7"):
            list(alignment._in_threads(work, range(20)))
        assert set(threads()) == {2} and {n for found in seen for n in found} == {1}
    assert len(seen) < 20, "nothing is begun after an error"


def test_orientations_compose() -> None:
    sample = np.arange(16).reshape(4, 4)
    for a in range(8):
        for b in range(8):
            undone = hashes.orient_pictures(hashes.orient_pictures(sample, alignment.COMPOSED[a, b]), b)
            np.testing.assert_array_equal(undone, hashes.orient_pictures(sample, a))


# ------------------------------------------------------------------------------------------- neighbours


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 120), dims=st.sampled_from([1, 3, 64, 66, 150]), eps=st.floats(0.05, 3), seed=st.integers(0, 99)
)
def test_components_are_those_of_dbscan(n: int, dims: int, eps: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, n // 3), dims))
    vectors = (centres[rng.integers(0, len(centres), n)] + rng.normal(0, 0.3 / dims**0.5, (n, dims))).astype(np.float32)
    expected = DBSCAN(eps=eps, min_samples=1).fit_predict(vectors)
    np.testing.assert_array_equal(components_within(vectors, eps), expected)
    i, j, distance = pairs_within(vectors, eps)
    exact = np.linalg.norm(vectors[:, None].astype(float) - vectors[None], axis=2)
    near = np.argwhere(np.triu(exact <= eps, 1))
    assert np.array_equal(np.stack([i, j], axis=1), near.reshape(-1, 2))
    np.testing.assert_allclose(distance, exact[i, j], atol=1e-9)


def test_many_blocks_give_the_same_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(300, 80)).astype(np.float32)
    vectors[200:] = vectors[:100] + 0.01
    whole = pairs_within(vectors, 9.0)
    assert len(whole[0]) > 100
    monkeypatch.setattr("manihot.audit.neighbours.BLOCK", 37)
    monkeypatch.setattr("manihot.audit.neighbours.EXACT", 500)
    for a, b in zip(whole, pairs_within(vectors, 9.0)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("vectors", "eps", "message"),
    [
        (np.zeros(3), 1, "dimensions"),
        (np.zeros((3, 2)), 0, "joins nothing"),
        (np.array([[0.0], [np.nan]]), 1, "first row 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(vectors: np.ndarray, eps: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pairs_within(vectors, eps)


# ------------------------------------------------------------------------------------------- groups


def _named(names: list[str], **columns: object) -> Manifest:
    table = pd.DataFrame({"image_id": names, "path": names, **columns})
    return Manifest.from_table(table, ("a", "b"), Path())


def test_duplicate_groups_join_those_that_are_there() -> None:
    manifest = _named(list("abcdefg"), group=["p", "p", "", "q", "", "", "r"])
    duplicates = pd.DataFrame({"image_id": list("bcdef"), "group": ["x", "x", "x", "y", "y"]})
    group = with_groups(manifest, duplicates).table["group"].tolist()
    assert group == ["p", "p", "p", "p", "y", "y", "r"]
    assert manifest.table["group"].tolist() == ["p", "p", "", "q", "", "", "r"], "the original is untouched"
    with pytest.raises(DataError, match="first 'z'"):
        with_groups(manifest, pd.DataFrame({"image_id": ["z"], "group": ["x"]}))


def test_no_fold_tears_a_group() -> None:
    names = [f"{k}.jpg" for k in range(90)]
    manifest = _named(
        names, label=[k % 2 for k in range(90)], group=[f"p{k // 2}" if k < 20 else "" for k in range(90)]
    )
    duplicates = pd.DataFrame({"image_id": names[1:80], "group": [f"d{k // 3}" for k in range(1, 80)]})
    grouped = with_groups(manifest, duplicates)
    fold = assign_folds(grouped, Folds(n=3))[0]
    for groups in (grouped.table["group"], manifest.table["group"], pd.Series(names).map(dict(duplicates.to_numpy()))):
        named = groups.fillna("").to_numpy() != ""
        assert pd.Series(fold[named]).groupby(groups.to_numpy()[named]).nunique().max() == 1


def test_file_names_tell_the_plant() -> None:
    crops = [f"train/{plant}_{k:04d}_0279.jpg" for plant in range(30) for k in range(1 + plant % 4)] + ["ferr071.jpg"]
    manifest = _named(crops)
    assert propose_name_pattern(manifest) == "{group}_*"
    group = with_name_groups(manifest).table["group"]
    assert group.iloc[-1] == "" and group.iloc[0] == "", "a plant with one photograph stands alone"
    assert group[group != ""].value_counts().to_dict() == {f"main:{p}": 1 + p % 4 for p in range(30) if p % 4}
    for names in ([f"IMG_{k}.jpg" for k in range(90)], [f"{k}.jpg" for k in range(90)]):
        assert propose_name_pattern(_named(names)) is None
        with pytest.raises(DataError, match="pattern"):
            with_name_groups(_named(names))
    two = _named(["1_a.jpg", "1_b.jpg", "1_c.jpg"], source=["x", "x", "y"])
    assert with_name_groups(two, "{group}_*").table["group"].tolist() == ["x:1", "x:1", ""]


def test_patterns_of_names() -> None:
    assert group_by_name(["IMG_p7-2", "p7"], "IMG_{group}-?").tolist() == ["p7", ""]
    assert group_by_name(["a.b.c"], "{group}.*").tolist() == ["a"]
    for pattern in ("*", "{group}{group}"):
        with pytest.raises(DataError, match="once"):
            group_by_name(["a"], pattern)
    with pytest.raises(DataError, match="fits"):
        with_name_groups(_named(["a.jpg"]), "{group}_*")


# ------------------------------------------------------------------------------------------- real and drawn sets


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_all_copies_of_the_demo_are_found(tmp_path: Path, seed: int) -> None:
    truth = make_demo(tmp_path / "demo", 240, seed, workers=2).set_index("image_id")
    manifest, _ = scan(tmp_path / "demo")
    found = find_duplicates(manifest, make_thumbnails(manifest)).set_index("image_id")
    truth = truth.loc[manifest.image_id]
    planted = truth[truth["duplicate_of"].isin(manifest.image_id)]
    both = (
        found["group"].reindex(planted.index).to_numpy() == found["group"].reindex(planted["duplicate_of"]).to_numpy()
    )
    assert both.mean() >= 0.95
    alone = truth.loc[found.index, "duplicate_group"]
    assert (alone != "").mean() >= 0.98 and (alone.groupby(found["group"]).nunique() == 1).all()


@pytest.mark.slow
def test_coffee_leaves_with_one_outline_are_told_apart() -> None:
    manifest, _ = scan(shared_data("bracol/leaf"))
    manifest = replace(manifest.with_columns(label=-1), soft_labels=None)
    thumbnails = make_thumbnails(manifest)
    fooled = sum(len(i) for i, *_ in hashes.hash_pairs(thumbnails.phash, 6))
    found = find_duplicates(manifest, thumbnails)
    assert fooled > 50 and found["group"].nunique() <= 12


@pytest.mark.slow
def test_crops_of_one_leaf_are_offered_as_a_group() -> None:
    manifest, _ = scan(shared_data("bracol/symptom"))
    assert propose_name_pattern(manifest) == "{group}_*"
    group = with_name_groups(manifest).table["group"]
    assert (group != "").mean() > 0.4 and group[group != ""].value_counts().max() <= 10


# In a run folder


def test_another_split_and_the_folds_reach_the_table_of_a_run(tmp_path: Path):
    """Of eight photographs the last is a copy of the first."""
    rng = np.random.default_rng(3)
    for i in range(7):
        cv2.imwrite(str(tmp_path / f"{i}.png"), _texture(rng, 90, 120))
    (tmp_path / "7.png").write_bytes((tmp_path / "0.png").read_bytes())
    names = [f"{i}.png" for i in range(8)]
    table = pd.DataFrame({"image_id": names, "path": names, "label": [0, 1, 0, 1, 0, 1, 1, 0], "split": "train"})
    table = table.assign(sha256=[digest_file(tmp_path / name) for name in names], height=90, width=120, fold=-1)
    recipe = load_recipe("quick", ["folds.n=2"])

    def found(**changes: list[object]) -> pd.DataFrame:
        changed = table.assign(**{name: [values[0], *table[name][1:7], values[1]] for name, values in changes.items()})
        Manifest.from_table(changed, ("sick", "healthy"), tmp_path).save(tmp_path / "all.parquet")
        with RunFolder(tmp_path / "run") as folder:
            prepare(folder, recipe, tmp_path / "all.parquet", TableOptions(), workers=1)
        out = pd.read_csv(tmp_path / "run/audit/duplicates.csv")
        assert out["image_id"].tolist() == ["0.png", "7.png"] and list(out.columns) == list(COLUMNS)
        saved = pd.read_parquet(tmp_path / "run/audit/duplicates.parquet")
        pd.testing.assert_frame_equal(out, saved, check_dtype=False)
        return out

    first = found()
    folds = Manifest.load(tmp_path / "run/folds.parquet").fold
    assert first["fold"].tolist() == [folds[0], folds[7]] and folds[0] == folds[7] >= 0
    assert not first["crosses_folds"].any() and not first["crosses_splits"].any()
    written = (tmp_path / "run/audit/duplicates.parquet").stat().st_mtime_ns
    found()
    assert (tmp_path / "run/audit/duplicates.parquet").stat().st_mtime_ns == written
    torn = found(split=["train", "test"])
    assert torn["crosses_splits"].all() and not torn["crosses_folds"].any() and torn["fold"].iloc[1] == -1
    table["fold"] = [0, 0, 0, 0, 1, 1, 1, 1]  # the user's own, which tear the copies apart
    own = found()
    assert own["fold"].tolist() == [0, 1] and own["crosses_folds"].all() and not own["crosses_splits"].any()


# Very many photographs: an index proposes


def _near_copies(n: int, dims: int, seed: int = 0) -> np.ndarray:
    """Unit vectors in loose clusters; a fifth of them lie within .3 of another, some of them in groups of 40."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((60, dims))
    vectors = centres[rng.integers(0, 60, n)] + 0.8 * rng.standard_normal((n, dims))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    copied = rng.permutation(n)[: n // 5]
    source = np.where(np.arange(len(copied)) % 4 == 0, copied[0] // 40 * 40, rng.integers(0, n, len(copied)))
    source = np.where(np.arange(len(copied)) % 4 == 0, (np.arange(len(copied)) // 160), source)
    noise = rng.standard_normal((len(copied), dims))
    noise *= rng.uniform(0.02, 0.28, (len(copied), 1)) / np.linalg.norm(noise, axis=1, keepdims=True)
    vectors[copied] = vectors[source] + noise
    found: np.ndarray = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return found


def test_an_index_finds_nearly_all_pairs_and_groups_of_many_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="the extra `large` is not installed")
    vectors = _near_copies(12_000, 96)
    first, second, distance = pairs_within(vectors, 0.35)
    label = components_within(vectors, 0.35)
    monkeypatch.setattr(inverted, "LARGE", 1000)
    i, j, apart = pairs_within(vectors, 0.35)
    exact, found = set(zip(first.tolist(), second.tolist())), set(zip(i.tolist(), j.tolist()))
    assert len(exact) > 5000 and found <= exact and len(found) >= 0.99 * len(exact)
    assert len(i) == len(found) and (apart <= 0.35).all() and (np.diff(i) >= 0).all()
    assert np.isclose(apart.sum(), distance[[pair in found for pair in zip(first.tolist(), second.tolist())]].sum())
    assert (components_within(vectors, 0.35) == label).mean() > 0.99


def test_an_index_finds_every_kind_of_copy(looked: tuple[Manifest, Thumbnails], monkeypatch) -> None:
    pytest.importorskip("faiss", reason="the extra `large` is not installed")
    manifest, thumbnails = looked
    exact = find_duplicates(manifest, thumbnails)
    monkeypatch.setattr(inverted, "LARGE", 1)
    pd.testing.assert_frame_equal(find_duplicates(manifest, thumbnails), exact)


def test_an_index_of_hashes_finds_what_differs_in_few_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="the extra `large` is not installed")
    rng = np.random.default_rng(0)
    phash = rng.integers(0, 1 << 62, 4000, dtype=np.uint64) << np.uint64(1)
    for k in range(0, 1000, 2):  # up to 6 bits apart, in an orientation
        flips = np.bitwise_or.reduce(np.uint64(1) << rng.integers(1, 64, k % 7).astype(np.uint64), initial=np.uint64(0))
        phash[k + 1] = hashes.turned_hashes(phash[[k]])[0, k % 8] ^ flips
    exact = {
        (a, b, o, d) for block in hashes.hash_pairs(phash, 6) for a, b, o, d in zip(*map(np.ndarray.tolist, block))
    }
    monkeypatch.setattr(inverted, "LARGE", 1000)
    found = {
        (a, b, o, d) for block in hashes.hash_pairs(phash, 6) for a, b, o, d in zip(*map(np.ndarray.tolist, block))
    }
    assert found <= exact and len(found) >= 0.99 * len(exact) >= 490


def test_the_search_of_all_pairs_among_very_many_says_its_cost(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(inverted, "has_faiss", lambda: False)
    inverted.tell_cost(20_000)
    assert not caplog.text
    inverted.tell_cost(200_000)
    assert "200,000 photographs is compared, in about 2 hours" in caplog.text and "manihot[large]" in caplog.text
    assert not inverted.uses_index(200_000)
