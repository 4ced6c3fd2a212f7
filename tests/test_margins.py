"""Margins of the given labels: noted while a fold is trained, without a trace in what it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from manihot.members.member import Member
from manihot.records.predictions import Predictions
from manihot.records.run_parts import FoldFolder
from manihot.train import training as module
from manihot.train.finetune import finetune
from manihot.train.margins import Margins
from manihot.train.networks.checkpoint import load_network
from manihot.train.steps import STEPS
from tiny_member import draw_photos, tiny_member

PLAIN = ("mixing=[]", "train.epochs=2")


def trained(home: Path, recipe: Path, *sets: str, **named: object) -> tuple[Member, pd.DataFrame]:
    """A member whose fold 0 was trained, and its margins."""
    member = tiny_member(home, recipe, sets, **named)
    finetune(member, 0, *member.rows(0))
    return member, pd.read_parquet(FoldFolder(member.folder(0)).margins)


def test_the_margin_is_the_given_labels_logit_less_the_highest_other():
    rng = np.random.default_rng(0)
    given = np.array([0, 2, 1, -1, 2])
    noted = Margins(np.array([*"abcde"], dtype=object), given, 3, torch.device("cpu"))
    batches = [np.array([0, 1, 3]), np.array([1, 4]), np.array([2])]
    logits = [rng.normal(size=(len(places), 4)).astype(np.float32) for places in batches]  # the last column: `unknown`
    for number, (places, values) in enumerate(zip(batches, logits)):
        noted.note(torch.from_numpy(places), torch.from_numpy(values), mixed=number == 2)
    found = noted.end_epoch().numpy()

    def margin(values: np.ndarray, label: int) -> float:
        return values[label] - np.delete(values[:3], label).max()

    wanted = [
        margin(logits[0][0], 0),
        (margin(logits[0][1], 2) + margin(logits[1][0], 2)) / 2,
        np.nan,
        np.nan,
        margin(logits[1][1], 2),
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert noted.end_epoch().isnan().all()


def test_a_fold_leaves_the_margins_of_its_training_photographs(tmp_path: Path, tiny_recipe: Path, monkeypatch):
    seen: list[tuple[int, np.ndarray, np.ndarray]] = []
    note = Margins.note

    def spy(self, places, logits, mixed=False):
        seen.append((mixed, places.numpy().copy(), logits.detach().numpy().copy()))
        note(self, places, logits, mixed)

    monkeypatch.setattr(Margins, "note", spy)
    member, margins = trained(tmp_path, tiny_recipe, *PLAIN)
    rows, held = member.rows(0)
    assert not any(mixed for mixed, _, _ in seen)
    assert list(margins.columns) == ["image_id", "epoch", "margin"]
    assert len(margins) == 2 * len(rows) and set(margins["epoch"]) == {0, 1}
    assert set(margins["image_id"]) == set(member.manifest.image_id[rows])
    assert not set(margins["image_id"]) & set(member.manifest.image_id[held])
    places = np.concatenate([one for _, one, _ in seen])[: len(rows)]
    logits = np.concatenate([one for _, _, one in seen])[: len(rows)]
    labels = member.manifest.labels[rows][places]
    other = np.where(np.arange(3) == labels[:, None], -np.inf, logits).max(1)
    first = margins[margins["epoch"] == 0].set_index("image_id")["margin"]
    wanted = logits[np.arange(len(labels)), labels] - other
    np.testing.assert_allclose(first[member.manifest.image_id[rows][places]], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("more", [(), ("optimizer.sam=0.05", "train.accumulate=2"), ("loss={name: elr}",)])
def test_noting_them_changes_nothing(tmp_path: Path, tiny_recipe: Path, monkeypatch, more: tuple[str, ...]):
    manifest = draw_photos(tmp_path / "photos", each=4)
    sets = ("mixing=[{name: mixup, p: 0.5}]", "train.epochs=2", *more)
    with_them, _ = trained(tmp_path / "with", tiny_recipe, *sets, manifest=manifest)
    without = tiny_member(tmp_path / "without", tiny_recipe, sets, manifest)
    monkeypatch.setattr(module, "make_margins", lambda *arguments: None)
    finetune(without, 0, *without.rows(0))
    assert not (FoldFolder(without.folder(0)).margins).exists()
    own, other = (load_network(one.folder(0) / "best.safetensors")[0] for one in (with_them, without))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in own.state_dict().items())
    answers = [Predictions.load(one.folder(0) / "oof.parquet").logits for one in (with_them, without)]
    assert np.array_equal(*answers)


@pytest.mark.parametrize(("p", "least", "most"), [(1.0, 0, 0), (0.5, 1, 23)])
def test_mixed_batches_say_nothing(tmp_path: Path, tiny_recipe: Path, p: float, least: int, most: int):
    _, margins = trained(tmp_path, tiny_recipe, f"mixing=[{{name: mixup, p: {p}}}]", "train.epochs=2", "train.batch=2")
    assert least <= len(margins) <= most


def test_a_stopped_training_ends_with_the_same_margins(tmp_path: Path, tiny_recipe: Path, monkeypatch):
    manifest = draw_photos(tmp_path / "photos", each=4)
    sets = (*PLAIN, "train.epochs=3", "train.batch=4")
    _, whole = trained(tmp_path / "whole", tiny_recipe, *sets, manifest=manifest)
    calls = 0

    def stops(model, batch, state, supervised=STEPS["supervised"]):
        nonlocal calls
        calls += 1
        if calls == 5:  # in the second epoch of two batches or more
            raise KeyboardInterrupt
        return supervised(model, batch, state)

    with monkeypatch.context() as patch:
        patch.setitem(STEPS, "supervised", stops)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "stopped", tiny_recipe, *sets, manifest=manifest)
    member, stopped = trained(tmp_path / "stopped", tiny_recipe, *sets, manifest=manifest)
    pd.testing.assert_frame_equal(whole, stopped)
    assert sorted(set(stopped["epoch"])) == [0, 1, 2]
    assert len(list(member.folder(0).glob("*.part*"))) == 0


def test_sams_second_look_is_not_noted(tmp_path: Path, tiny_recipe: Path, monkeypatch):
    calls = []
    note = Margins.note
    monkeypatch.setattr(Margins, "note", lambda self, *a, **n: (calls.append(0), note(self, *a, **n))[1])
    manifest = draw_photos(tmp_path / "photos", each=4)
    member, _ = trained(tmp_path, tiny_recipe, *PLAIN, "train.batch=4", "optimizer.sam=0.05", manifest=manifest)
    assert len(calls) == 2 * -(-len(member.rows(0)[0]) // 4)


def test_relabelled_photographs_are_measured_by_their_given_label(tmp_path: Path, tiny_recipe: Path):
    """All photographs are learned as the next class, which says that all given labels are wrong."""
    manifest = draw_photos(tmp_path / "photos", each=4)
    answers = Predictions.from_probs(
        manifest.image_id,
        np.roll(np.eye(3), 1, axis=1)[manifest.labels] * 0.96 + 0.01,
        manifest.classes,
        manifest.labels,
    )
    sets = (
        "train.epochs=8",
        "mixing=[]",
        "model.dropout=0",
        "members={a: {}, b: {labels: {name: oof, of: a, do: relabel}}}",
    )
    member = tiny_member(tmp_path, tiny_recipe, sets, manifest, "b")
    answers.save(member.run / "predictions/a.oof.parquet")
    finetune(member, 0, *member.rows(0))
    margins = pd.read_parquet(FoldFolder(member.folder(0)).margins)
    last = margins[margins["epoch"] >= 6]["margin"]
    assert (last < 0).mean() > 0.8


def test_stages_count_their_epochs_on_and_clusters_have_no_margins(tmp_path: Path, tiny_recipe: Path):
    stages = (
        "stages=[{labels: {name: clusters, k: 3, labelled: true}, train: {epochs: 1}}, {train: {epochs: 2}}, "
        "{train: {epochs: 1}}]"
    )
    member, margins = trained(tmp_path, tiny_recipe, "mixing=[]", stages)
    assert sorted(set(margins["epoch"])) == [1, 2, 3]
    assert not (FoldFolder(member.folder(0)).stage(1).margins).exists()
    assert len(pd.read_parquet(FoldFolder(member.folder(0)).stage(2).margins)) == 2 * len(member.rows(0)[0])


def test_photographs_that_show_no_class_have_no_margin(tmp_path: Path, tiny_recipe: Path):
    sets = (*PLAIN, "train.epochs=1", "model.unknown=true", "negatives={name: drawn}")
    member, margins = trained(tmp_path, tiny_recipe, *sets)
    assert set(margins["image_id"]) == set(member.manifest.image_id[member.rows(0)[0]])


def test_fixmatch_notes_the_labelled_part(tmp_path: Path, tiny_recipe: Path):
    member, margins = trained(tmp_path, tiny_recipe, *PLAIN, "train.epochs=1", "step={name: fixmatch, mu: 1}")
    assert set(margins["image_id"]) == set(member.manifest.image_id[member.rows(0)[0]])
