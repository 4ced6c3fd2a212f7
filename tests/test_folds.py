"""Folds: nothing straddles them, classes are shared out, the user's splits are kept."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from manihot.audit.folds import assign_folds
from manihot.errors import DataError
from manihot.records.columns import ALWAYS_TRAIN
from manihot.records.manifest import Manifest
from manihot.settings import Folds

pytestmark = pytest.mark.filterwarnings("error")  # scikit-learn's own warnings never reach the user


def manifest_of(labels, classes: int = 3, **columns: object) -> Manifest:
    table = pd.DataFrame({"image_id": [f"p{i}" for i in range(len(labels))], "label": labels}).assign(**columns)
    return Manifest.from_table(table, tuple(f"class{k}" for k in range(classes)), Path())


def random_labels(n: int, shares: tuple[float, ...] = (0.6, 0.3, 0.1), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(len(shares), n, p=shares)


@example(seed=32, n=2, photographs=30, groups=8, kind="holdout", share=0.1)  # fewer groups than tenths
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(2, 5),
    st.integers(30, 120),
    st.integers(8, 40),
    st.sampled_from(["stratified", "holdout"]),
    st.sampled_from([0.1, 0.2, 0.33, 0.45]),
)
def test_no_group_straddles_folds(seed, n, photographs, groups, kind, share):
    rng = np.random.default_rng(seed)
    group = np.array([f"g{g}" if g else "" for g in rng.integers(0, groups, photographs)], dtype=object)
    manifest = manifest_of(rng.integers(0, 3, photographs), group=group)
    fold, _ = assign_folds(manifest, Folds(kind=kind, n=n, share=share), seed % 1000)
    by_group = pd.Series(fold[group != ""]).groupby(group[group != ""]).nunique()
    assert (by_group == 1).all()
    if kind == "stratified":
        assert (fold >= 0).all()
        assert fold.max() < n
    else:
        assert set(fold) == {ALWAYS_TRAIN, 0}


@pytest.mark.parametrize("grouped", [False, True])
def test_each_fold_has_each_class_in_the_same_share(grouped):
    labels = random_labels(1000)
    group = [f"g{i // 2}" for i in range(1000)] if grouped else [""] * 1000
    fold, said = assign_folds(manifest_of(labels, group=group), Folds(n=5))
    assert said == []
    table = pd.crosstab(fold, labels)
    expected = np.bincount(labels) / 5
    assert abs(table.to_numpy() - expected).max() <= (6 if grouped else 1)
    assert sorted(np.unique(fold)) == [0, 1, 2, 3, 4]


def test_groups_of_one_leave_plain_stratification_as_it_is():
    labels = random_labels(200)
    plain, _ = assign_folds(manifest_of(labels), Folds())
    named, _ = assign_folds(manifest_of(labels, group=[f"g{i}" for i in range(200)]), Folds())
    np.testing.assert_array_equal(plain, named)


@pytest.mark.parametrize("kind", ["stratified", "holdout"])
@pytest.mark.parametrize("grouped", [False, True])
def test_folds_follow_the_seed_alone(kind, grouped):
    group = [f"g{i // 3}" for i in range(300)] if grouped else [""] * 300
    manifest = manifest_of(random_labels(300), group=group)

    def fold(seed: int, own: int | None = None) -> list[int]:
        np.random.seed(seed + 1)  # global state must not matter
        return assign_folds(manifest, Folds(kind=kind, seed=own), seed)[0].tolist()

    assert fold(1) == fold(1)
    assert fold(1) != fold(2)
    assert fold(1, own=7) == fold(2, own=7)  # folds.seed goes before the recipe's


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("grouped", [False, True])
def test_holdout_takes_its_share(share, grouped):
    labels = random_labels(600)
    group = [f"g{i // 2}" for i in range(600)] if grouped else [""] * 600
    fold, said = assign_folds(manifest_of(labels, group=group), Folds(kind="holdout", share=share))
    assert said == []
    assert (fold == 0).mean() == pytest.approx(share, abs=0.04)
    if not grouped:
        shares = np.bincount(labels[fold == 0], minlength=3) / np.bincount(labels)
        np.testing.assert_allclose(shares, share, atol=0.02)


def test_test_and_unlabelled_photographs_are_never_held_out():
    labels = random_labels(100)
    labels[:10] = -1
    split = np.array(["train"] * 80 + ["test"] * 20, dtype=object)
    for kind in ("stratified", "holdout"):
        fold, _ = assign_folds(manifest_of(labels, split=split), Folds(kind=kind))
        assert (fold[:10] == ALWAYS_TRAIN).all()
        assert (fold[80:] == ALWAYS_TRAIN).all()
        assert (fold[10:80] >= 0).any()
    assert (assign_folds(manifest_of(labels, split=split), Folds(kind="stratified"))[0][10:80] >= 0).all()
    assert (assign_folds(manifest_of(labels), Folds(kind="none"))[0] == ALWAYS_TRAIN).all()


def test_the_users_fold_column_is_kept():
    labels, own = random_labels(60), np.arange(60) % 4
    own[:5] = -1
    manifest = manifest_of(labels, fold=own)
    for kind in ("auto", "column"):
        fold, said = assign_folds(manifest, Folds(kind=kind))
        np.testing.assert_array_equal(fold, own)
        assert said == []
    other, _ = assign_folds(manifest, Folds(kind="stratified", n=3))
    assert set(other) == {0, 1, 2}


def test_the_users_val_split_is_one_fold():
    labels = random_labels(60)
    split = np.array(["train"] * 40 + ["val"] * 10 + ["test"] * 10, dtype=object)
    manifest = manifest_of(labels, split=split)
    fold, _ = assign_folds(manifest, Folds())
    np.testing.assert_array_equal(fold, np.where(split == "val", 0, ALWAYS_TRAIN))
    pooled, _ = assign_folds(manifest, Folds(kind="stratified"))  # asked for: the val split joins in
    assert (pooled[:50] >= 0).all()
    assert (pooled[50:] == ALWAYS_TRAIN).all()


def test_a_val_split_without_labels_is_no_val_split():
    labels = random_labels(60)
    labels[50:] = -1
    split = np.array(["train"] * 50 + ["val"] * 10, dtype=object)
    fold, _ = assign_folds(manifest_of(labels, split=split), Folds())
    assert set(fold[:50]) == {0, 1, 2, 3, 4}


def test_groups_torn_by_the_users_folds_are_counted():
    group = ["a", "a", "b", "b", "", "", "c", "c"]
    manifest = manifest_of([0, 1] * 4, group=group, fold=[0, 1, 0, 0, 0, 1, 1, 0])
    _, said = assign_folds(manifest, Folds())
    assert said == ["2 groups are in more than one of the given folds: scores may be too good"]


def test_a_rare_class_is_a_warning_that_names_it():
    labels = [0] * 20 + [1] * 20 + [2] * 3
    fold, said = assign_folds(manifest_of(labels), Folds(n=5))
    assert len(said) == 1
    assert "'class2' has 3 photographs, fewer than 5 folds" in said[0]
    assert sorted(np.bincount(fold)) == [8, 8, 9, 9, 9]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assign_folds(manifest_of(labels, group=[f"g{i // 2}" for i in range(43)]), Folds(n=5))
        assign_folds(manifest_of(labels), Folds(n=5))
    assert caught == []


def test_a_fold_that_stays_empty_is_a_warning():
    group = ["a"] * 5 + ["b"] + ["c"] * 3 + ["d"] + ["e"] * 2
    labels = [0] * 5 + [1] + [0] * 3 + [1] + [0] * 2
    fold, said = assign_folds(manifest_of(labels, group=group), Folds(n=5))
    assert len(set(fold)) == 4
    assert any("1 of 5 folds hold no photograph" in text for text in said)


@pytest.mark.parametrize("kind", ["auto", "stratified", "holdout", "column", "none"])
def test_one_class_can_not_be_learned(kind):
    manifest = manifest_of([1] * 20, fold=np.arange(20) % 2 if kind == "column" else -1)
    with pytest.raises(DataError, match="of one class, 'class1'"):
        assign_folds(manifest, Folds(kind=kind))


@pytest.mark.parametrize(
    ("manifest", "folds", "words"),
    [
        (manifest_of([-1] * 5), Folds(), "no labelled photographs"),
        (manifest_of([0, 1] * 5, split="test"), Folds(), "no labelled photographs"),
        (manifest_of([0, 1]), Folds(), "2 photographs in 2 groups can't make 5 folds"),
        (manifest_of([0, 1] * 20, group=["a", "b"] * 20), Folds(), "in 2 groups can't make 5 folds"),
        (manifest_of([0, 0, 1, 1, 2, 2]), Folds(n=3), "no class has as many photographs"),
        (manifest_of([0, 1] * 10), Folds(kind="column"), "no photograph has a fold"),
        (manifest_of([0, 1] * 10, fold=3), Folds(), "all photographs are in fold 3"),
        (manifest_of([0, 1] * 10, split="val"), Folds(), "all photographs are in fold 0"),
        (manifest_of([0] * 10 + [1]), Folds(kind="holdout"), "can't hold out 20%"),
        (manifest_of([0, 1, 2] * 3), Folds(kind="holdout", share=0.1), "can't hold out 10%"),
    ],
)
def test_what_can_not_be_split_is_explained(manifest, folds, words):
    with pytest.raises(DataError, match=words) as caught:
        assign_folds(manifest, folds)
    assert caught.value.remedy


@pytest.mark.parametrize(("labels", "n"), [([0, 1, 2], 2), ([0, 0, 1, 1], 3)])
def test_folds_are_lowered_only_to_what_can_be(labels, n):
    with pytest.raises(DataError, match="no class has as many") as caught:
        assign_folds(manifest_of(labels), Folds(n=n), 0)
    assert ("folds.n=2 or lower" in caught.value.remedy) == (n == 3)
    assert "folds.kind=none" in caught.value.remedy


def test_twenty_thousand_groups_take_no_time():
    group = [f"g{i // 2}" for i in range(40_000)]
    manifest = manifest_of(np.arange(40_000) % 3, group=group, fold=np.arange(40_000) // 2 % 5)
    _, said = assign_folds(manifest, Folds())
    assert said == []
