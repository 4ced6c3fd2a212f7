"""The transition matrix of the loss corrections, estimated inside the training part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from manihot.audit.label_posterior import estimate_transition
from manihot.errors import SettingsError
from manihot.members.training_labels import LabelRequest, make_training_labels
from manihot.members.transition import asks_for_transition, with_transition
from manihot.settings import load_recipe
from manihot.train.check import check_recipe
from manihot.train.training import make_training
from tiny_member import tiny_member

PLANTED = np.array([[0.9, 0.1, 0.0], [0.0, 0.7, 0.3], [0.0, 0.05, 0.95]])
ESTIMATED = ("mixing=[]", "loss={name: forward_correction, transition: estimate}")


def test_a_planted_matrix_is_found():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, 1500)
    features = np.eye(3, 8)[true] * 3 + rng.normal(size=(1500, 8))
    labels = np.array([rng.choice(3, p=PLANTED[one]) for one in true])
    found = estimate_transition(features, labels, 3, np.arange(1500), 0)
    assert found.sum(1) == pytest.approx(np.ones(3))
    assert np.abs(found - PLANTED).max() < 0.08
    assert found[1, 2] > 3 * found[2, 1]  # a row is a true class
    assert np.array_equal(found, estimate_transition(features, labels, 3, np.arange(1500), 0))


def test_it_stands_where_it_was_asked_for():
    combo = {"terms": [{"name": "cross_entropy"}, {"name": "backward_correction", "transition": "estimate"}]}
    assert asks_for_transition(combo) and not asks_for_transition({"transition": [[1.0, 0.0], [0.0, 1.0]]})
    assert with_transition(combo, np.eye(2))["terms"][1]["transition"] == [[1.0, 0.0], [0.0, 1.0]]


def test_a_fold_learns_with_the_matrix_of_its_training_part(tmp_path: Path, tiny_recipe: Path):
    member = tiny_member(tmp_path, tiny_recipe, ESTIMATED)
    train, held = member.rows(0)
    labels = make_training_labels(LabelRequest(member, 0, train))
    assert labels.transition is not None and labels.transition.sum(1) == pytest.approx(np.ones(3))
    loss = make_training(member, 0, labels).state.loss
    assert loss.term.keywords["transition"] == labels.transition.tolist()
    table = member.manifest.table
    table.loc[held, "label"] = (table.loc[held, "label"] + 1) % 3  # what is held out says nothing
    again = make_training_labels(
        LabelRequest(tiny_member(tmp_path / "b", tiny_recipe, ESTIMATED, member.manifest), 0, train)
    )
    assert np.array_equal(again.transition, labels.transition)


def test_it_is_of_the_classes_alone(tiny_recipe: Path):
    check_recipe(load_recipe(str(tiny_recipe), [*ESTIMATED]))
    with pytest.raises(SettingsError, match="of the classes of the labels alone"):
        check_recipe(load_recipe(str(tiny_recipe), [*ESTIMATED, "model.unknown=true", "negatives={name: drawn}"]))
