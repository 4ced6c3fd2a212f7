"""SAM, ASAM and Lookahead: against their definitions and another implementation, and inside the training loop."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import timm.optim
import torch
from torch import nn

from manihot.augment.augmenter import Augmenter
from manihot.errors import DataError
from manihot.settings import Choice, Recipe, load_recipe
from manihot.train import loop
from manihot.train.data.dataset import TrainingPhotos, make_loader
from manihot.train.data.mixing import Mixer
from manihot.train.gradients import Training
from manihot.train.loop import Progress, fit
from manihot.train.networks.backbones import make_model, make_preprocess
from manihot.train.optim.losses import make_loss
from manihot.train.optim.optimizers import OPTIMIZERS, Lookahead
from manihot.train.optim.sam import Sam, frozen_statistics
from manihot.train.runners import Normalise
from manihot.train.steps import STEPS, StepState

PHOTOS = np.random.default_rng(0).integers(0, 256, (22, 40, 40, 3), dtype=np.uint8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(5, 6, generator=generator), torch.randint(3, (5,), generator=generator)) for _ in range(count)]


def weights_of(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# The perturbation


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_walk_is_of_its_definition_and_the_way_back_exact(adaptive: bool):
    model = network()
    (images, labels), *_ = batches(1)
    nn.functional.cross_entropy(model(images), labels).backward()
    before = weights_of(model)
    slope = torch.cat([p.grad.flatten() for p in model.parameters()])
    sam = Sam(model.parameters(), 0.3, adaptive)
    assert sam.perturb()
    moved = weights_of(model) - before
    size = before.abs() if adaptive else torch.ones_like(before)
    expected = 0.3 * size**2 * slope / (size * slope).norm()
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=1e-4)
    assert float((moved / size).norm()) == pytest.approx(0.3, rel=1e-4)
    sam.restore()
    assert torch.equal(weights_of(model), before)


def test_a_scaled_gradient_walks_to_the_same_place():
    """So the factor of a GradScaler needs no unscaling before the walk."""
    model, other = network(), network()
    (images, labels), *_ = batches(1)
    for net, scale in ((model, 1.0), (other, 65536.0)):
        (nn.functional.cross_entropy(net(images), labels) * scale).backward()
        Sam(net.parameters(), 0.05).perturb()
    torch.testing.assert_close(weights_of(other), weights_of(model), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0.0])
def test_without_a_direction_nothing_moves(value: float):
    model = network()
    before = weights_of(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    model[0].weight.grad[0, 0] = value
    sam = Sam(model.parameters(), 0.05)
    assert not sam.perturb()
    sam.restore()
    assert torch.equal(weights_of(model), before)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("base", ["sgd", "adamp"])
def test_sam_is_another_implementations(adaptive: bool, base: str):
    oracle = pytest.importorskip("pytorch_optimizer", reason="not installed (extra `oracles`)")
    ours, theirs = network(), network()
    kinds = {
        "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        "adamp": (timm.optim.AdamP, {"lr": 0.01}),
    }
    kind, settings = kinds[base]
    optimizer = kind(ours.parameters(), **settings)
    other = oracle.SAM(theirs.parameters(), kind, rho=0.1, adaptive=adaptive, **settings)
    sam = Sam(ours.parameters(), 0.1, adaptive)

    def loss(model, images, labels):
        return nn.functional.cross_entropy(model(images), labels)

    for images, labels in batches(12):
        optimizer.zero_grad()
        loss(ours, images, labels).backward()
        assert sam.perturb()
        optimizer.zero_grad()
        loss(ours, images, labels).backward()
        sam.restore()
        optimizer.step()
        loss(theirs, images, labels).backward()
        other.first_step(zero_grad=True)
        loss(theirs, images, labels).backward()
        other.second_step(zero_grad=True)
    torch.testing.assert_close(weights_of(ours), weights_of(theirs), atol=1e-6, rtol=1e-5)


def test_batch_norms_are_left_alone_but_normalise_by_the_batch():
    model = make_model(
        load_recipe("standard").model.model_copy(
            update={"backbone": "test_efficientnet", "pretrained": False, "freeze_stages": 0, "dropout": 0.0}
        ),
        3,
        (32, 32),
    )
    model.train()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) + 1
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    with frozen_statistics(model):
        quiet = model(images)
    assert all(torch.equal(value, dict(model.named_buffers())[name]) for name, value in buffers.items())
    loud = model(images)
    assert torch.equal(loud, quiet)  # the same function
    assert any(not torch.equal(value, dict(model.named_buffers())[name]) for name, value in buffers.items())


# In the loop


def training(
    recipe: Recipe, folder: Path, step=STEPS["supervised"], dtype: torch.dtype = torch.float32
) -> tuple[dict[str, torch.Tensor], Progress, nn.Module]:
    preprocess = make_preprocess(recipe.model, (32, 32), "squash")
    model = make_model(recipe.model, 3, (32, 32), seed=0)
    augmenter = Augmenter(recipe.augment, (32, 32), 0, recipe.train.epochs)
    data = TrainingPhotos(PHOTOS, np.arange(22), np.eye(3)[np.arange(22) % 3], np.ones(22), augmenter)
    loader, order = make_loader(data, recipe.train.batch, 0, 0, False)
    loss = make_loss(recipe.loss.name, recipe.loss.settings, classes=3, photographs=22)
    mixer = Mixer(recipe.mixing, len(order) * recipe.train.epochs, 0, epochs=recipe.train.epochs)
    state = StepState(torch.device("cpu"), Normalise(preprocess), loss, dtype, mixer)
    kept: dict[str, torch.Tensor] = {}

    def save(network):
        kept.update({k: v.clone() for k, v in network.state_dict().items()})

    scores = iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])

    def judge(network):
        return {"loss": next(scores), "accuracy": 0.5}

    progress = fit(Training(model, loader, order, step, state), recipe, 0, folder, judge, save, "test")
    return kept | {f"loss.{k}": v for k, v in loss.state_dict().items()}, progress, model


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    sets = ["model.drop_path=0.2", "model.dropout=0.3", "mixing=[{name: mixup, p: 0.5}, {name: cutmix, p: 0.5}]"]
    return load_recipe(str(tiny_recipe), [*sets, "averaging={name: none}"])


def with_optimizer(recipe: Recipe, **changes: object) -> Recipe:
    return recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update=changes)})


@pytest.mark.parametrize(("accumulate", "loss"), [(1, "elr"), (2, "cross_entropy")])
def test_the_second_look_sees_what_the_first_saw(recipe: Recipe, tmp_path: Path, accumulate: int, loss: str):
    """With a radius of nearly nothing SAM is the plain training to the bit.

    That holds only where both looks have the same mixed photographs and the same masks of dropout and stochastic
    depth, and where batch-norm statistics and the loss's memory move once a step.
    """
    recipe = recipe.model_copy(
        update={
            "loss": Choice(name=loss),
            "train": recipe.train.model_copy(update={"accumulate": accumulate, "epochs": 2}),
        }
    )
    plain, _, _ = training(recipe, tmp_path / "plain")
    near, _, model = training(with_optimizer(recipe, sam=1e-30), tmp_path / "near")
    assert all(torch.equal(plain[name], near[name]) for name in plain)
    counts = [int(v) for k, v in model.named_buffers() if k.endswith("num_batches_tracked")]
    assert set(counts) == {2 * 3}  # batches, not looks
    far, _, _ = training(with_optimizer(recipe, sam=0.2), tmp_path / "far")
    assert not torch.equal(far["head.weight"], plain["head.weight"])
    assert all(torch.isfinite(v).all() for v in far.values())


def with_a_broken_gradient(model, batch, state):
    """A finite loss with an infinite slope, in the second batch of the first epoch."""
    out = STEPS["supervised"](model, batch, state)
    if state.epoch == 0 and state.batch_number == 1:
        spike = (model.head.weight * 0).sum().abs().sqrt()  # 0 with slope 0 * inf
        out["loss"] = out["loss"] + spike
    return out


@pytest.mark.parametrize("clip", [0.0, 5.0])
@pytest.mark.parametrize("sam", [0.0, 0.05])
def test_one_infinite_gradient_leaves_the_weights_finite(recipe: Recipe, tmp_path: Path, capsys, clip, sam):
    recipe = with_optimizer(recipe, sam=sam)
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"clip": clip})})
    kept, progress, _ = training(recipe, tmp_path, with_a_broken_gradient)
    assert all(torch.isfinite(v).all() for v in kept.values())
    assert progress.step == 9
    assert "1 steps left out" in capsys.readouterr().err


@pytest.mark.parametrize("sam", [0.0, 0.05])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_nothing_but_infinite_gradients_ends_the_training(recipe: Recipe, tmp_path: Path, monkeypatch, sam, dtype):
    def broken(model, batch, state):
        out = STEPS["supervised"](model, batch, state)
        out["loss"] = out["loss"] + (model.head.weight * 0).sum().abs().sqrt()
        return out

    monkeypatch.setattr(loop, "MANY_IN_A_ROW", 7)  # of three steps an epoch
    with pytest.raises(DataError, match="epoch 3/3: the gradients of 7 steps in a row were not finite") as caught:
        training(with_optimizer(recipe, sam=sam), tmp_path, broken, dtype)
    assert "optimizer.lr" in caught.value.remedy


def test_sam_runs_under_a_gradient_scaler(recipe: Recipe, tmp_path: Path):
    recipe = with_optimizer(recipe, sam=0.05, lr=1e-3)
    kept, _, _ = training(recipe, tmp_path / "fp16", with_a_broken_gradient, torch.float16)
    assert all(torch.isfinite(v).all() for v in kept.values())
    state = torch.load(tmp_path / "fp16" / "last.ckpt", weights_only=True)
    assert state["scaler"]["scale"] < 65536  # it saw the infinite gradient
    plain, _, _ = training(recipe, tmp_path / "fp32")
    assert float((plain["head.weight"] - kept["head.weight"]).abs().max()) < 0.02


CYCLE, PLATEAU = Choice(name="one_cycle"), Choice(name="plateau", patience=0, drop=0.5)


@pytest.mark.parametrize(
    ("changes", "schedule"),
    [
        ({"lookahead": 2}, PLATEAU),
        ({"name": "ranger"}, CYCLE),
        ({"sam": 0.5, "sam_adaptive": True, "lookahead": 4, "name": "radam"}, PLATEAU),
        ({"sam": 0.1}, CYCLE),
    ],
    ids=str,
)
def test_a_stopped_training_continues_bit_for_bit(recipe: Recipe, tmp_path: Path, changes, schedule):
    recipe = with_optimizer(recipe, **changes).model_copy(update={"schedule": schedule})
    whole, progress, _ = training(recipe, tmp_path / "whole")
    looks = (2 if recipe.optimizer.sam else 1) * 3
    calls = 0

    def stops(model, batch, state):
        nonlocal calls
        calls += 1
        if calls == looks + 2:  # within the second epoch
            raise KeyboardInterrupt
        return STEPS["supervised"](model, batch, state)

    with pytest.raises(KeyboardInterrupt):
        training(recipe, tmp_path / "stopped", stops)
    state = torch.load(tmp_path / "stopped" / "last.ckpt", weights_only=True)
    assert state["schedule"] == {"steps": 3, "scores": [1.0]}
    resumed, again, _ = training(recipe, tmp_path / "stopped")
    if schedule.name == "plateau":  # the first score of the second process is 1 again: no gain, as with 2
        assert [row["lr"] for row in again.history] == [row["lr"] for row in progress.history]
        assert len({row["lr"] for row in again.history}) == 2
    assert len(again.history) == 3
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


# Lookahead


def test_lookahead_by_hand():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = Lookahead(torch.optim.SGD([weight], lr=1.0), k=3, alpha=0.5)
    seen = []
    for _ in range(7):
        weight.grad = torch.full((1,), -1.0)  # every step adds 1
        optimizer.step()
        seen.append(float(weight.detach()))
    assert seen == [1, 2, 1.5, 2.5, 3.5, 3.0, 4.0]  # after 3 steps half of the way from 0 to 3


def test_timms_lookahead_does_nothing_at_its_first_synchronisation():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = timm.optim.Lookahead(torch.optim.SGD([weight], lr=1.0), k=3, alpha=0.5)
    for _ in range(3):
        weight.grad = torch.full((1,), -1.0)
        optimizer.step()
    assert float(weight.detach()) == 3.0  # 1.5 by the paper; why Lookahead is our own


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "ranger"])
def test_lookahead_over_every_optimizer_is_another_implementations(name: str):
    oracle = pytest.importorskip("pytorch_optimizer", reason="not installed (extra `oracles`)")
    ours, theirs = network(), network()

    def base(model: nn.Module) -> torch.optim.Optimizer:
        return OPTIMIZERS[name]([{"params": list(model.parameters()), "lr": 0.02, "weight_decay": 0.01}], 0.02)

    one, two = Lookahead(base(ours), 4, 0.3), oracle.Lookahead(base(theirs), k=4, alpha=0.3)
    for images, labels in batches(13):
        for model, optimizer in ((ours, one), (theirs, two)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    torch.testing.assert_close(weights_of(ours), weights_of(theirs), atol=1e-6, rtol=1e-5)


def test_ranger_is_lookahead_over_radam():
    def walk(make) -> torch.Tensor:
        model = network()
        optimizer = make(model)
        for images, labels in batches(14):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        return weights_of(model)

    ours = walk(lambda model: OPTIMIZERS["ranger"]([{"params": list(model.parameters())}], 0.1))
    by_hand = walk(lambda model: Lookahead(torch.optim.RAdam(model.parameters(), lr=0.1), 6, 0.5))
    assert torch.equal(ours, by_hand)
    assert not torch.equal(ours, walk(lambda model: torch.optim.RAdam(model.parameters(), lr=0.1)))


def test_lookahead_keeps_its_slow_weights_in_its_state():
    model = network()
    optimizer = Lookahead(torch.optim.AdamW(model.parameters(), lr=0.1), 4, 0.5)

    def run(model: nn.Module, optimizer: Lookahead, part: slice) -> None:
        for images, labels in batches(9)[part]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

    run(model, optimizer, slice(0, 6))  # between two synchronisations
    saved, weights = deepcopy(optimizer.state_dict()), deepcopy(model.state_dict())
    run(model, optimizer, slice(6, 9))
    again = network()
    again.load_state_dict(weights)
    second = Lookahead(torch.optim.AdamW(again.parameters(), lr=0.1), 4, 0.5)
    second.load_state_dict(saved)
    run(again, second, slice(6, 9))
    assert torch.equal(weights_of(again), weights_of(model))
