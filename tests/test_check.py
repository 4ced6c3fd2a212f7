"""Checks of a recipe before anything is computed: losses by the photographs' classes, and contradictions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from manihot.errors import SettingsError
from manihot.members.training_labels import TrainingLabels
from manihot.settings import load_recipe
from manihot.train.check import check_classes, check_recipe
from manihot.train.networks.backbones import gives_maps
from manihot.train.training import make_mixer, make_training
from tiny_member import CLASSES, tiny_member

NUMBERS = {k: str(list(range(1, k + 1))) for k in (3, 7)}
PER_CLASS = [
    "{name: cross_entropy, class_weights: %s}",
    "{name: focal, alpha: %s}",
    "{name: combo, terms: [{name: nce}, {name: focal, class_weights: %s}]}",
    "{name: combo, terms: [{name: combo, terms: [{name: focal, alpha: %s}]}]}",
    "{name: class_balanced, counts: %s}",
    "{name: class_balanced, inner: {name: focal, alpha: %s}}",
]


@pytest.mark.parametrize("k", NUMBERS)
@pytest.mark.parametrize("loss", PER_CLASS)
def test_a_number_a_class_fits_the_photographs_classes(tiny_recipe: Path, loss: str, k: int):
    recipe = load_recipe(str(tiny_recipe), [f"loss={loss % NUMBERS[k]}"])
    check_recipe(recipe)  # before the scan any number of classes may come
    check_classes(recipe, CLASSES if k == 3 else [str(n) for n in range(7)])
    with pytest.raises(SettingsError, match="loss") as caught:
        check_classes(recipe, ["healthy", "rust", "blight", "mosaic"])
    assert "there are 4 classes: healthy, rust, blight, mosaic" in caught.value.remedy


def test_lists_of_different_lengths_are_refused_before_the_scan(tiny_recipe: Path):
    terms = f"{{name: focal, alpha: {NUMBERS[3]}}}, {{name: nce, class_weights: {NUMBERS[7]}}}"
    with pytest.raises(SettingsError, match="class_weights"):
        check_recipe(load_recipe(str(tiny_recipe), [f"loss={{name: combo, terms: [{terms}]}}"]))


def test_losses_of_clusters_count_clusters(tiny_recipe: Path):
    first = "{labels: {name: clusters, k: 7}, loss: {name: focal, alpha: %s}, mixing: []}" % NUMBERS[7]  # noqa: UP031
    recipe = load_recipe(str(tiny_recipe), [f"stages=[{first}, {{}}]"])
    check_classes(recipe, CLASSES)
    shorter = load_recipe(str(tiny_recipe), [f"stages=[{first.replace('k: 7', 'k: 8')}, {{}}]"])
    with pytest.raises(SettingsError) as caught:
        check_classes(shorter, CLASSES)
    assert "there are 8 clusters" in caught.value.remedy


@pytest.mark.parametrize(
    "loss",
    [
        "{name: cross_entropy, reduction: none}",
        "{name: combo, terms: [{name: nce}, {name: focal, reduction: none}]}",
        "{name: combo, reduction: none, terms: [{name: nce}]}",
        "{name: class_balanced, inner: {name: focal, reduction: none}}",
    ],
)
def test_a_training_needs_the_mean(tiny_recipe: Path, loss: str):
    with pytest.raises(SettingsError, match="loss: reduction = 'none'") as caught:
        check_recipe(load_recipe(str(tiny_recipe), [f"loss={loss}"]))
    assert caught.value.remedy
    check_recipe(load_recipe(str(tiny_recipe), [f"loss={loss.replace('none', 'mean')}"]))


@pytest.mark.parametrize(
    ("loss", "mix"),
    [("{name: elr}", "mixup"), ("{name: sop}", "cutmix"), ("{name: combo, terms: [{name: elr}]}", "resizemix")],
)
def test_a_loss_that_remembers_photographs_refuses_mixed_ones(tiny_recipe: Path, loss: str, mix: str):
    with pytest.raises(SettingsError, match="remembers each photograph") as caught:
        check_recipe(load_recipe(str(tiny_recipe), [f"loss={loss}", f"mixing=[{{name: {mix}}}]"]))
    assert "mixing: []" in caught.value.remedy
    for mixing in ("[]", "[{name: cutout}]"):
        check_recipe(load_recipe(str(tiny_recipe), [f"loss={loss}", f"mixing={mixing}"]))


@pytest.mark.parametrize("backbone", ["test_vit", "swin_tiny_patch4_window7_224"])
def test_snapmix_needs_maps(tiny_recipe: Path, backbone: str):
    sets = [f"model.backbone={backbone}", "mixing=[{name: snapmix}]"]
    with pytest.raises(SettingsError, match=rf"mixing: SnapMix needs feature maps .* {backbone}") as caught:
        check_recipe(load_recipe(str(tiny_recipe), sets))
    assert "cutmix" in caught.value.remedy
    check_recipe(load_recipe(str(tiny_recipe), sets[1:]))
    assert gives_maps("no such backbone")  # told elsewhere


def test_snapmix_on_tokens_that_no_check_saw_is_no_stack_trace(tmp_path: Path, tiny_recipe: Path):
    sets = ("photo.size=[160,160]", "model.backbone=test_vit", "mixing=[{name: snapmix, p: 1.0}]")
    member = tiny_member(tmp_path, tiny_recipe, sets)
    rows, _ = member.rows(0)
    training = make_training(
        member,
        0,
        TrainingLabels(rows, torch.eye(3)[member.manifest.labels[rows]].numpy(), torch.ones(len(rows)).numpy()),
    )
    mixer = make_mixer(member.recipe, 1, 0, training.model)
    with pytest.raises(SettingsError, match="SnapMix needs feature maps"):
        mixer(torch.zeros(2, 3, 160, 160), torch.eye(3)[:2], 0, 0)


@pytest.mark.parametrize(
    ("patience", "start", "fine"), [(4, 0.5, False), (5, 0.5, True), (1, 0.1, True), (0, 0.5, True)]
)
def test_a_stop_before_the_average_begins_is_refused(tiny_recipe: Path, patience: int, start: float, fine: bool):
    sets = ["train.epochs=10", f"train.patience={patience}", f"averaging={{name: swa, start: {start}}}"]
    if fine:
        check_recipe(load_recipe(str(tiny_recipe), sets))
        return
    with pytest.raises(SettingsError, match=r"patience 4 .* averaging 'swa' begins, after 5 epochs") as caught:
        check_recipe(load_recipe(str(tiny_recipe), sets))
    assert "train.patience: 5" in caught.value.remedy
    check_recipe(load_recipe(str(tiny_recipe), [*sets, "folds.kind=none"]))  # nothing to watch, so it never stops
