"""Sampling: how often an epoch sees each photograph, for every row of the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manihot import pipeline
from manihot.errors import SettingsError
from manihot.members.sampling import SAMPLINGS, check_sampling, draw_epoch, expected_repeats, with_class_numbers
from manihot.members.smoke import smoke_classes
from manihot.members.training_labels import LabelRequest, make_training_labels
from manihot.settings import Choice, load_recipe
from manihot.train.check import check_recipe
from manihot.train.data.dataset import EpochBatches
from manihot.train.training import make_training
from tiny_member import tiny_member

LABELS = np.repeat([0, 1, 2, 4], [100, 37, 8, 1])  # no photograph of class 3


@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_sampling_is_decided_by_seed_and_epoch_and_keeps_its_length(name: str):
    one = Choice(name=name)
    first = draw_epoch(one, LABELS, 3, 0)
    assert np.array_equal(first, draw_epoch(one, LABELS, 3, 0))
    assert first.dtype == np.int64 and first.min() >= 0 and first.max() < len(LABELS)
    later = [draw_epoch(one, LABELS, 3, epoch) for epoch in range(1, 5)]
    assert {len(places) for places in later} == {len(first)}
    assert set(LABELS[first]) == set(LABELS)
    assert np.array_equal(draw_epoch(one, LABELS[:100], 3, 0), np.arange(100))  # one class: nothing to balance


def counts(name: str, **settings: Any) -> np.ndarray:
    return np.bincount(LABELS[draw_epoch(Choice(name=name, **settings), LABELS, 0, 0)], minlength=5)


def test_how_many_of_each_class():
    assert counts("each_once").tolist() == [100, 37, 8, 0, 1]
    assert counts("oversample").tolist() == [100, 100, 40, 0, 5]
    assert counts("oversample", most=100).tolist() == [100, 100, 100, 0, 100]
    assert counts("undersample", ratio=10).tolist() == [10, 10, 8, 0, 1]
    assert counts("undersample").tolist() == [1, 1, 1, 0, 1]
    even = counts("balanced")
    assert even[[0, 1, 2, 4]].tolist() == [36, 36, 36, 36]  # 146 photographs, four classes
    assert counts("balanced", power=1.0).tolist() == counts("each_once").tolist()
    root = counts("balanced", power=0.5)
    assert root[0] / root[1] == pytest.approx((100 / 37) ** 0.5, rel=0.05)


def test_named_classes_alone_are_repeated_or_as_often_as_is_said():
    assert counts("oversample", classes=[2]).tolist() == [100, 37, 40, 0, 1]
    assert counts("oversample", classes=[2, 3], most=100).tolist() == [100, 37, 100, 0, 1]
    assert counts("oversample", times={0: 3}).tolist() == [300, 100, 40, 0, 5]
    # the 78th place: all classes up-sampled, and one more than they
    assert counts("oversample", most=2, times={1: 3.5, 9: 4}).tolist() == [100, 130, 16, 0, 2]
    assert counts("oversample", most=1, times={4: 2}).tolist() == [100, 37, 8, 0, 2]
    weights = expected_repeats(Choice(name="oversample", most=1, times={2: 2.5}), LABELS, 0)
    assert [weights[k == LABELS].mean() for k in (0, 1, 2, 4)] == [1, 1, 2.5, 1]


def test_classes_are_given_by_name_or_number():
    classes = ("blight", "3", "healthy", "mosaic")
    given = Choice(name="oversample", classes=["healthy", 1, "3"], times={"mosaic": 2, "0": 3})
    assert with_class_numbers(given, classes).settings == {"classes": [2, 1, 1], "times": {3: 2, 0: 3}}
    plain = Choice(name="oversample", most=2)
    assert with_class_numbers(plain, classes) is plain
    with pytest.raises(SettingsError, match=r"(?s)here: there is no class 'helthy'.*'healthy'.*0 to 3"):
        with_class_numbers(Choice(name="oversample", classes=["helthy"]), classes, "here")
    with pytest.raises(SettingsError, match="there is no class '4'"):
        with_class_numbers(Choice(name="oversample", times={"4": 2}), classes, "here")


def test_a_class_that_is_not_there_is_told_before_training(small_photos: Path, tiny_recipe: Path, tmp_path: Path):
    text = tiny_recipe.read_text(encoding="utf-8") + "sampling: {name: oversample, times: {gren: 2}}\n"
    tiny_recipe.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=r"(?s)tiny.yaml:\d+: sampling: there is no class 'gren'.*'green'"):
        pipeline.run(small_photos, tmp_path / "out", str(tiny_recipe), workers=1)
    assert not (tmp_path / "out/store").exists()


def test_a_training_sees_the_classes_that_are_named(tmp_path: Path, tiny_recipe: Path):
    member = tiny_member(tmp_path, tiny_recipe, ("sampling={name: oversample, times: {blue: 2}}",))
    train, _ = member.rows(0)
    batches = make_training(member, 0, make_training_labels(LabelRequest(member, 0, train))).batches
    labels = member.manifest.labels[train]
    seen = np.bincount([labels[place] for batch in batches for _, place, _ in batch])
    assert seen.tolist() == [4, 4, 8]


def test_in_a_smoke_run_other_classes_play_those_that_are_not_there():
    sampling = "sampling={name: oversample, classes: [mosaic, rust, 7], times: {4: 3, rust: 2}}"
    recipe = load_recipe("standard", [sampling])
    made, said = smoke_classes(recipe, ("healthy", "rust"))
    assert made.sampling.settings["classes"] == ["healthy", "rust", "healthy"]
    assert made.sampling.settings["times"] == {"healthy": 3, "rust": 2}
    assert "class '4' isn't here: 'healthy' stands in for it" in said
    check_recipe(made)


def test_clusters_have_no_class_names():
    stages = "stages=[{labels: {name: clusters, k: 3, labelled: true}}, {labels: {name: given}}]"
    with pytest.raises(SettingsError, match=r"sampling.*clusters"):
        check_recipe(load_recipe("standard", [stages, "sampling={name: oversample, classes: [rust]}"]))


def test_no_photograph_is_seen_much_more_often_than_another_of_its_class():
    for name in SAMPLINGS:
        seen = np.bincount(draw_epoch(Choice(name=name), LABELS, 1, 0), minlength=len(LABELS))
        for k in np.unique(LABELS):
            assert np.ptp(seen[k == LABELS]) <= 1


def test_expected_repeats():
    assert expected_repeats(Choice(name="each_once"), LABELS, 0).tolist() == [1.0] * len(LABELS)
    weights = expected_repeats(Choice(name="balanced"), LABELS, 0)
    shares = np.bincount(LABELS, weights=weights, minlength=5)
    assert np.ptp(shares[[0, 1, 2, 4]]) < 0.5


def test_batches_say_which_repetition_it_is():
    places = np.array([0, 0, 0, 1, 2])
    batches = EpochBatches(3, 2, 0, lambda epoch: places)
    items = [item for batch in batches for item in batch]
    assert sorted(place for _, place, _ in items) == [0, 0, 0, 1, 2]
    assert [repeat for _, place, repeat in items if place == 0] == [0, 1, 2]
    assert len(batches) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        "oversampel",
        "{name: oversample, most: 0.5}",
        "{name: each_once, most: 2}",
        "{name: balanced, power: high}",
        "{name: oversample, classes: rust}",
        "{name: oversample, classes: []}",
        "{name: oversample, times: {rust: 0.5}}",
        "{name: oversample, times: 3}",
        "{name: balanced, classes: [rust]}",
    ],
)
def test_a_wrong_sampling_is_named(wrong: str):
    text = wrong if wrong.startswith("{") else f"{{name: {wrong}}}"
    with pytest.raises(SettingsError, match="sampling"):
        check_recipe(load_recipe("standard", [f"sampling={text}"]))
    with pytest.raises(SettingsError):
        check_sampling(Choice(name="no"), "here")
