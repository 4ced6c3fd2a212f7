"""The training loop: accumulation, resume, checkpoints, checks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from manihot.augment.augmenter import Augmenter
from manihot.errors import DataError, SettingsError
from manihot.settings import Choice, Recipe, load_recipe
from manihot.train.check import check_recipe
from manihot.train.data.dataset import EpochBatches, TrainingPhotos, make_loader
from manihot.train.gradients import Training
from manihot.train.loop import fit
from manihot.train.networks.backbones import make_model, make_preprocess
from manihot.train.optim.losses import make_loss
from manihot.train.runners import Normalise
from manihot.train.steps import STEPS, StepState

PHOTOS = np.random.default_rng(0).integers(0, 256, (22, 40, 40, 3), dtype=np.uint8)
LABELS = np.arange(22) % 3


def training(recipe: Recipe, folder: Path, step=STEPS["supervised"], judge=None):
    """Train a tiny network by `recipe` in `folder`; the weights kept and the progress."""
    preprocess = make_preprocess(recipe.model, (32, 32), "squash")
    model = make_model(recipe.model, 3, (32, 32), seed=0)
    data = TrainingPhotos(
        PHOTOS,
        np.arange(22),
        np.eye(3)[LABELS],
        np.ones(22),
        Augmenter(recipe.augment, (32, 32), 0, recipe.train.epochs),
    )
    loader, batches = make_loader(data, recipe.train.batch, 0, 0, False)
    state = StepState(
        torch.device("cpu"), Normalise(preprocess), make_loss("cross_entropy", {}, classes=3), torch.float32
    )
    kept: dict[str, torch.Tensor] = {}

    def save(network):
        kept.update({k: v.clone() for k, v in network.state_dict().items()})

    def alike(network):
        return {"loss": float(len(kept)), "accuracy": 0.5}

    progress = fit(Training(model, loader, batches, step, state), recipe, 0, folder, judge or alike, save, "test")
    return kept, progress


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(str(tiny_recipe), ["mixing=[]", "augment=[{name: horizontal_flip}]"])


def test_a_stopped_training_continues_bit_for_bit(recipe: Recipe, tmp_path: Path):
    whole, _ = training(recipe, tmp_path / "whole")
    calls = 0

    def stops(model, batch, state):
        nonlocal calls
        calls += 1
        if calls == 5:  # in the second epoch of three batches
            raise KeyboardInterrupt
        return STEPS["supervised"](model, batch, state)

    with pytest.raises(KeyboardInterrupt):
        training(recipe, tmp_path / "stopped", stops)
    resumed, progress = training(recipe, tmp_path / "stopped")
    assert progress.epoch == 3
    assert len(progress.history) == 3
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("name", ["none", "ema", "swa"])
def test_every_kind_of_averaging_survives_a_resume(recipe: Recipe, tmp_path: Path, name: str):
    recipe = recipe.model_copy(update={"averaging": Choice(name=name)})
    whole, _ = training(recipe, tmp_path / "whole")
    shorter = recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": 3})})
    calls = 0

    def stops(model, batch, state):
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return STEPS["supervised"](model, batch, state)

    with pytest.raises(KeyboardInterrupt):
        training(shorter, tmp_path / "stopped", stops)
    resumed, _ = training(shorter, tmp_path / "stopped")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_accumulation_weighs_by_photographs(recipe: Recipe, tmp_path: Path):
    """8 + 7 + 7 photographs in three parts make the step of all 22 at once (no batch norm in training, no dropout)."""
    plain = {
        "averaging": Choice(name="none"),
        "model": recipe.model.model_copy(update={"freeze_norm": True, "dropout": 0.0}),
        "augment": (),
        "optimizer": recipe.optimizer.model_copy(update={"name": "sgd", "lr": 0.1}),
        "schedule": Choice(name="constant"),
    }
    parts = recipe.model_copy(
        update={**plain, "train": recipe.train.model_copy(update={"epochs": 1, "batch": 8, "accumulate": 3})}
    )
    whole = recipe.model_copy(update={**plain, "train": recipe.train.model_copy(update={"epochs": 1, "batch": 22})})
    a, _ = training(parts, tmp_path / "a")
    b, _ = training(whole, tmp_path / "b")
    assert max(float((a[k].float() - b[k].float()).abs().max()) for k in a) < 1e-5


def test_parts_that_weigh_alike_are_another_gradient():
    """Why photographs weigh and not batches: of 8 + 8 + 4, each divided by 3, the last 4 weigh two thirds too much."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(20, 6, generator=generator), torch.arange(20) % 3
    weight = (0.1 * torch.randn(3, 6, generator=generator)).requires_grad_()

    def gradient_of(part: slice) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(images[part] @ weight.T, labels[part])
        return torch.autograd.grad(loss, weight)[0]

    whole, parts = gradient_of(slice(20)), [gradient_of(slice(a, b)) for a, b in ((0, 8), (8, 16), (16, 20))]
    weighed = sum(part * share for part, share in zip(parts, (0.4, 0.4, 0.2)))
    torch.testing.assert_close(weighed, whole)
    assert 0.1 < float((sum(parts) / 3 - whole).norm() / whole.norm()) < 0.6


def test_accumulation_warns_where_batch_norms_see_parts(recipe: Recipe, tmp_path: Path, capsys):
    train = recipe.train.model_copy(update={"epochs": 1, "accumulate": 2})
    training(recipe.model_copy(update={"train": train}), tmp_path / "a")
    assert "batch norms see 8 photographs at a time, not the 16 of a step" in capsys.readouterr().err
    frozen = recipe.model.model_copy(update={"freeze_norm": True})
    training(recipe.model_copy(update={"train": train, "model": frozen}), tmp_path / "b")
    training(recipe.model_copy(update={"train": train.model_copy(update={"accumulate": 1})}), tmp_path / "c")
    assert "batch norms" not in capsys.readouterr().err


def test_batch_norms_make_accumulation_another_gradient(recipe: Recipe, tmp_path: Path):
    """Why the warning: 8 + 7 + 7 photographs in parts, batch norms in training mode, against 22 at once."""
    plain = {
        "averaging": Choice(name="none"),
        "augment": (),
        "schedule": Choice(name="constant"),
        "model": recipe.model.model_copy(update={"dropout": 0.0}),
        "optimizer": recipe.optimizer.model_copy(update={"name": "sgd", "lr": 1e-3}),
    }
    start = make_model(plain["model"], 3, (32, 32), seed=0).state_dict()
    moved = []
    for name, batch, accumulate in (("parts", 8, 3), ("whole", 22, 1)):
        train = recipe.train.model_copy(update={"epochs": 1, "batch": batch, "accumulate": accumulate, "clip": 0.0})
        kept, _ = training(recipe.model_copy(update={**plain, "train": train}), tmp_path / name)
        moved.append(torch.cat([(kept[k] - start[k]).flatten() for k in kept if k.endswith("weight")]))
    assert float((moved[0] - moved[1]).norm() / moved[1].norm()) > 0.2


def test_a_plateau_without_held_out_photographs_is_refused(recipe: Recipe, tmp_path: Path):
    recipe = recipe.model_copy(update={"schedule": Choice(name="plateau")})
    with pytest.raises(SettingsError, match="plateau watches held-out photographs"):
        fit(None, recipe, 0, tmp_path, None, None, "test")  # type: ignore[arg-type]


@pytest.mark.parametrize(("watch", "falls"), [({"watch": "loss"}, True), ({"watch": "accuracy"}, False), ({}, False)])
def test_a_plateau_watches_its_own_score(recipe: Recipe, tmp_path: Path, watch, falls):
    """The loss rises while accuracy, by which the epoch is chosen, still gains."""
    scores = iter([(1.0, 0.5), (2.0, 0.6), (3.0, 0.7)])

    def judge(network: torch.nn.Module) -> dict[str, float]:
        loss, accuracy = next(scores)
        return {"loss": loss, "accuracy": accuracy}

    train = recipe.train.model_copy(update={"epochs": 3, "monitor": "accuracy", "keep": "best"})
    choice = Choice(name="plateau", patience=0, drop=0.5, **watch)
    recipe = recipe.model_copy(update={"train": train, "schedule": choice, "averaging": Choice(name="none")})
    _, progress = training(recipe, tmp_path, judge=judge)
    rates = [row["lr"] for row in progress.history]
    assert rates[2] == pytest.approx(rates[0] * (0.5 if falls else 1.0))
    assert progress.best_epoch == 2


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["averaging={name: swa}", "train.keep=best"], r"train: keep 'best' .* average of averaging 'swa'"),
        (["schedule={name: plateau}", "folds.kind=none"], "schedule: plateau watches held-out"),
        (["optimizer.name=ranger", "optimizer.lookahead=5"], "optimizer: ranger has its own Lookahead"),
        (["model.tiles=[2, 2]", "mixing=[{name: snapmix}]"], "mixing: SnapMix needs"),
        (["model.tiles=[2, 2]", "method=features"], "model: the method 'features'"),
        (["model.tile_attention=tan"], "model.tile_attention: there is no tile attention 'tan'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tiny_recipe: Path, sets, words):
    with pytest.raises(SettingsError, match=words) as caught:
        check_recipe(load_recipe(str(tiny_recipe), sets))
    assert caught.value.remedy
    check_recipe(load_recipe(str(tiny_recipe), ["averaging={name: ema}", "train.keep=best", "optimizer.sam=0.1"]))


def test_a_loss_that_is_not_finite_is_named_with_the_remedy(recipe: Recipe, tmp_path: Path):
    def broken(model, batch, state):
        return {"loss": STEPS["supervised"](model, batch, state)["loss"] * float("nan")}

    with pytest.raises(DataError, match="loss is nan") as error:
        training(recipe, tmp_path, broken)
    assert "optimizer.lr" in error.value.remedy


def test_early_stopping_and_best_epoch(recipe: Recipe, tmp_path: Path):
    train = recipe.train.model_copy(update={"epochs": 9, "patience": 2, "keep": "best"})
    _, progress = training(recipe.model_copy(update={"train": train}), tmp_path)
    # the judge's loss is 0 before anything is kept and larger afterwards: the first epoch stays the best
    assert progress.best_epoch == 0
    assert progress.epoch == 3


def test_batches_hold_every_photograph_once_and_none_is_tiny():
    batches = EpochBatches(33, 8, seed=1)
    seen = [place for batch in batches for _, place, _ in batch]
    assert sorted(seen) == list(range(33))
    assert min(len(batch) for batch in batches) >= 6
    first = list(batches)
    batches.epoch = 1
    assert list(batches) != first


def test_workers_change_nothing():
    augmenter = Augmenter((Choice(name="random_resized_crop"), Choice(name="color_jitter")), (32, 32), 0, 2)
    data = TrainingPhotos(PHOTOS, np.arange(22), np.eye(3)[LABELS], np.ones(22), augmenter)
    alone, _ = make_loader(data, 8, 0, 0, False)
    helped, _ = make_loader(data, 8, 0, 1, False)
    for a, b in zip(alone, helped):
        assert all(torch.equal(a[key], b[key]) for key in a)


FAMILIES = (
    Choice(name="random_resized_crop", scale=[0.4, 1.0]),
    Choice(name="one_of", p=0.8, choices=[{"name": "rotate"}, {"name": "elastic"}, {"name": "grid_distortion"}]),
    Choice(name="one_of", p=0.8, choices=[{"name": "gauss_noise"}, {"name": "motion_blur"}, {"name": "jpeg"}]),
    Choice(name="compose", choices=[{"name": "posterize", "p": 0.5}, {"name": "gamma", "p": 0.5}]),
    Choice(name="rand_augment", n=2),
    Choice(name="coarse_dropout", fill="noise", p=0.7),
    Choice(name="fancy_pca", p=0.7),
    Choice(name="hue_saturation_value", p=0.7, strength=[[0, 0.2], [1, 1]]),
)


def epochs_of(augmenter: Augmenter, workers: int) -> list[torch.Tensor]:
    """Every tensor of two epochs' batches, in order."""
    data = TrainingPhotos(PHOTOS, np.arange(22), np.eye(3)[LABELS], np.ones(22), augmenter, views=2)
    loader, batches = make_loader(data, 8, 0, workers, False)
    seen = []
    for batches.epoch in range(2):
        seen += [batch[key] for batch in loader for key in sorted(batch)]
    return seen


@pytest.mark.parametrize("workers", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
def test_the_number_of_workers_changes_nothing_in_any_family(workers: int):
    augmenter = Augmenter(FAMILIES, (32, 32), 0, 2)
    alone = epochs_of(augmenter, 0)
    assert all(torch.equal(a, b) for a, b in zip(alone, epochs_of(augmenter, 0), strict=True))
    assert not torch.equal(alone[1], alone[len(alone) // 2 + 1])  # the epochs differ
    assert all(torch.equal(a, b) for a, b in zip(alone, epochs_of(augmenter, workers), strict=True))
