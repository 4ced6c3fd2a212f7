"""What an epoch's line says beside the losses, and the curves that the report draws of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from manihot.report.figures import learning_curves

ROWS = [
    {"epoch": e, "lr": 1e-3 / (e + 1), "train_loss": 1.0, "train_accuracy": 0.4 + e / 10, "val_accuracy": 0.5}
    for e in range(3)
]


def test_the_share_of_a_label_that_the_answer_hits_is_counted_once():
    torch = pytest.importorskip("torch")
    from manihot.train.steps import StepState

    state = StepState(torch.device("cpu"), None, None, torch.float32)  # type: ignore[arg-type]
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0], [5.0, 0.0, 0.0]])
    targets = torch.tensor([[0.7, 0.3, 0.0], [0.0, 2.0, 0.0], [0.0, 0.5, 0.5]])  # a row of SnapMix may sum to 2
    state.kept = {}
    state.note_right(logits, targets)
    state.note_right(-logits, targets)  # SAM's second look at the same batch
    assert state.shares() == {"train_accuracy": round((0.7 + 1.0 + 0.0) / 3, 4)}
    assert state.shares() == {}


def test_a_training_that_learns_colours_by_heart_says_so(tmp_path: Path, tiny_recipe: Path):
    pytest.importorskip("torch")
    from manihot.train.finetune import finetune
    from tiny_member import tiny_member

    sets = ("train.epochs=6", "mixing=[]", "augment=[]", "optimizer.lr=0.01", "optimizer.sam=0.01")
    member = tiny_member(tmp_path, tiny_recipe, sets)
    finetune(member, 0, *member.rows(0))
    rows = [json.loads(line) for line in (member.folder(0) / "history.jsonl").read_text().splitlines()]
    right = [row["train_accuracy"] for row in rows]
    assert all(0 <= value <= 1 and math.isclose(value * 12, round(value * 12), abs_tol=1e-3) for value in right)
    assert right[-1] > right[0] and right[-1] >= 0.75
    assert [row["lr"] for row in rows][-1] < max(row["lr"] for row in rows)


def test_curves_of_accuracy_and_rate():
    drawn = learning_curves({"fold0": ROWS}, "accuracy", "main")
    assert "training accuracy" in drawn and "held-out accuracy" in drawn
    assert "learning rate of the head" in learning_curves({"fold0": ROWS, "fold1": ROWS}, "learning rate", "main")
    older = [{"epoch": 0, "val_accuracy": 0.5}]
    assert "training accuracy" not in learning_curves({"fold0": older}, "accuracy", "main")
    assert learning_curves({"fold0": older}, "learning rate", "main") == ""
