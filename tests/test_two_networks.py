"""Co-teaching and DivideMix against their definitions, on planted wrong labels, and from recipe to ONNX."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from manihot.errors import SettingsError
from manihot.members.smoke import smoke_recipe
from manihot.members.training_labels import LabelRequest, make_training_labels
from manihot.networks.runner import OnnxRunner
from manihot.records.manifest import Manifest
from manihot.settings import load_recipe
from manihot.train.check import check_recipe
from manihot.train.finetune import finetune
from manihot.train.networks.checkpoint import load_network
from manihot.train.networks.heads import Snapshots
from manihot.train.optim.losses import make_loss
from manihot.train.optim.optimizers import parameter_groups
from manihot.train.steps import STEPS, StepState
from manihot.train.training import make_training
from manihot.train.two_networks import clean_probability, kept_share, mix_all, mixed_loss, refine, sharpen, smallest
from tiny_member import draw_photos, tiny_member

PLAIN = ("mixing=[]", "train.epochs=3")
STEP = {
    "co_teaching": "step={name: co_teaching, wrong: 0.3, ramp: 2}",
    "dividemix": "step={name: dividemix, warmup: 1, ramp: 2, weight: 5}",
}


def test_the_share_that_is_kept_falls_to_that_of_right_labels():
    assert [kept_share(epoch, 0.4, 4) for epoch in (0, 1, 2, 4, 9)] == pytest.approx([1, 0.9, 0.8, 0.6, 0.6])
    losses = torch.tensor([3.0, 0.5, 2.0, 0.1, 1.0])
    assert smallest(losses, 0.6).tolist() == [3, 1, 4]
    assert smallest(losses, 0.01).tolist() == [3]


def test_the_lower_of_two_gaussians_is_the_right_labels():
    rng = np.random.default_rng(0)
    losses = np.concatenate([rng.normal(0.3, 0.1, 80), rng.normal(2.5, 0.4, 20)]).astype(np.float32)
    found = clean_probability(losses, 0)
    assert (found[:80] > 0.9).all() and (found[80:] < 0.1).all()
    assert np.array_equal(found, clean_probability(losses, 0))
    assert clean_probability(np.full(5, 0.7), 0).tolist() == [1] * 5


def test_labels_are_refined_and_sharpened_as_in_the_paper():
    assert sharpen(torch.tensor([[0.6, 0.3, 0.1]]), 0.5).numpy() == pytest.approx(
        np.array([[0.36, 0.09, 0.01]]) / 0.46, abs=1e-6
    )
    target, probs = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.2, 0.8], [0.2, 0.8]])
    found = refine(target, probs, torch.tensor([1.0, 0.5]), 0.5)
    assert found.numpy() == pytest.approx(np.array([[1, 0], [0.36 / 0.52, 0.16 / 0.52]]), abs=1e-6)


def test_the_mix_keeps_the_larger_part():
    torch.manual_seed(3)
    images, targets = torch.eye(6).view(6, 1, 1, 6), torch.eye(6)
    for _ in range(8):
        mixed, wanted = mix_all(images, targets, 0.7)
        assert torch.equal(mixed.view(6, 6), wanted)  # pixels and labels in the same shares
        assert (wanted.diagonal() >= 0.5).all() and wanted.sum(1).numpy() == pytest.approx(np.ones(6))


def test_the_loss_of_mixed_photographs_is_the_papers():
    logits, targets = torch.randn(5, 3), torch.rand(5, 3).softmax(1)
    labelled, weights = torch.tensor([True, False, True, False, False]), torch.tensor([1.0, 9, 3, 9, 9])
    probs = logits.softmax(1)
    cross = -(targets * probs.log()).sum(1)
    loss_x = (cross[0] + 3 * cross[2]) / 4
    loss_u = ((probs - targets) ** 2)[~labelled].mean()
    penalty = (1 / 3 * ((1 / 3) / probs.mean(0)).log()).sum()
    assert float(mixed_loss(logits, targets, labelled, weights, 7.0)) == pytest.approx(
        float(loss_x + 7 * loss_u + penalty), rel=1e-5
    )
    assert float(mixed_loss(logits, targets, ~labelled & labelled, weights, 0.0)) == pytest.approx(float(penalty))


class Points(torch.nn.Module):
    """Two numbers in place of a photograph, a linear layer in place of a network."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = torch.nn.Linear(2, 2)

    def embed(self, points: torch.Tensor) -> torch.Tensor:
        return points

    def classify(self, points: torch.Tensor) -> torch.Tensor:
        return self.layer(points)


def points_step(clean: torch.Tensor | None = None, epoch: int = 0):
    """A pair, a batch of 40 points whose class is the sign of x, a quarter of them labelled wrong, and a state."""
    torch.manual_seed(1)
    points = torch.randn(40, 2) + torch.tensor([3.0, 0.0]) * torch.where(torch.arange(40) % 2 == 0, 1, -1)[:, None]
    wrong = (torch.arange(40) % 8 == 1) | (torch.arange(40) % 8 == 4)
    label = (torch.arange(40) % 2 == 0).long()
    target = torch.eye(2)[torch.where(wrong, 1 - label, label)]
    pair = torch.nn.Module()
    pair.networks = torch.nn.ModuleList([Points(5), Points(6)])
    batch = {
        "image": points,
        "colour": points,
        "view": points[:, None],
        "view_colour": points[:, None],
        "target": target,
        "weight": torch.ones(40),
        "index": torch.arange(40),
    }
    loss = make_loss("cross_entropy", {}, classes=2)
    state = StepState(torch.device("cpu"), lambda images, colour: images, loss, torch.float32, epoch=epoch)  # type: ignore[arg-type]
    state.clean = clean
    return pair, batch, state, wrong, label


def test_each_network_learns_what_the_other_chose():
    pair, batch, state, _, _ = points_step(epoch=9)
    first, second = (network(batch["image"]) for network in (p.classify for p in pair.networks))
    each = [torch.nn.functional.cross_entropy(own, batch["target"], reduction="none") for own in (first, second)]
    chosen = [own.argsort()[:30] for own in each]
    assert set(chosen[0].tolist()) != set(chosen[1].tolist())
    wanted = each[0][chosen[1]].mean() + each[1][chosen[0]].mean()
    out = STEPS["co_teaching"](pair, batch, state, wrong=0.25, ramp=2)
    assert out["loss"].item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["co_teaching", "dividemix", "supervised"])
def test_planted_wrong_labels_are_not_learned(name: str):
    """What is chosen is right, and the networks are sure of the truth; learning all labels they are not."""
    settings = {"co_teaching": {"wrong": 0.25}, "dividemix": {"warmup": 5, "weight": 1.0}, "supervised": {}}[name]
    pair, batch, state, wrong, label = points_step()
    optimizer = torch.optim.SGD(pair.parameters(), lr=0.2)

    def losses() -> list[torch.Tensor]:
        logits = [network.classify(batch["image"]).detach() for network in pair.networks]
        return [torch.nn.functional.cross_entropy(own, batch["target"], reduction="none") for own in logits]

    for epoch in range(60):
        state.epoch = epoch
        if name == "dividemix" and epoch >= 5:
            state.clean = torch.from_numpy(np.stack([clean_probability(own.numpy(), 0) for own in losses()]))
        optimizer.zero_grad()
        how = {"co_teaching": name, "dividemix": name, "supervised": "co_teaching"}[name]
        STEPS[how](pair, batch, state, **(settings or {"wrong": 0.0}))["loss"].backward()
        optimizer.step()
    for network, own in zip(pair.networks, losses()):
        clean = torch.from_numpy(clean_probability(own.numpy(), 0)) > 0.5
        chosen = clean if name == "dividemix" else smallest(own, 0.75)
        assert float(wrong[chosen].float().mean()) < 0.06  # 0.25 of all
        probs = network.classify(batch["image"]).detach().softmax(1)
        sure = float(probs.gather(1, label[:, None])[:, 0][wrong].mean())
        assert (sure < 0.85) if name == "supervised" else (sure > 0.9), sure


def test_a_network_divides_by_the_others_losses():
    """Where one network's losses call all labels wrong, it is the other that learns none of them."""
    clean = torch.stack([torch.zeros(40), torch.ones(40)])  # by the losses of the first, of the second
    pair, batch, state, _, _ = points_step(clean, epoch=5)
    gradients = []
    for turned in (False, True):
        if turned:
            batch["target"] = batch["target"].flip(1)
        pair.zero_grad()
        torch.manual_seed(2)
        STEPS["dividemix"](pair, batch, state, warmup=5)["loss"].backward()
        gradients.append([network.layer.weight.grad.clone() for network in pair.networks])
    assert torch.equal(gradients[0][1], gradients[1][1])  # the second hears of no label
    assert not torch.allclose(gradients[0][0], gradients[1][0])
    assert state.shares()["clean"] == 0.5


def noisy(home: Path) -> tuple[Manifest, np.ndarray]:
    """Photographs of three classes, an eighth of them labelled as the next class; and which."""
    manifest = draw_photos(home / "photos", each=16, unlabelled=0, test=0)
    table = manifest.table.copy()
    wrong = np.arange(len(table)) % 8 == 3
    table.loc[wrong, "label"] = (table.loc[wrong, "label"] + 1) % 3
    return replace(manifest, table=table), wrong


@pytest.mark.parametrize("name", [*STEP])
def test_a_stopped_training_continues_to_the_same_networks_and_is_exported(
    tmp_path: Path, tiny_recipe: Path, monkeypatch, name: str
):
    manifest, _ = noisy(tmp_path)
    ends, extra = [], ("optimizer.sam=0.05",) if name == "dividemix" else ()
    for where in ("whole", "stopped"):
        member = tiny_member(tmp_path / where, tiny_recipe, (*PLAIN, STEP[name], *extra), manifest)
        if where == "stopped":
            seen = 0

            def stops(*words, step=STEPS[name], **settings):
                nonlocal seen
                seen += 1
                if seen == 8:
                    raise KeyboardInterrupt
                return step(*words, **settings)

            with monkeypatch.context() as patch:
                patch.setattr(
                    "manihot.train.training.make_step", lambda choice: lambda *w: stops(*w, **choice.settings)
                )
                with pytest.raises(KeyboardInterrupt):
                    finetune(member, 0, *member.rows(0))
            assert (member.folder(0) / "last.ckpt").is_file()
        finetune(member, 0, *member.rows(0))
        ends.append((member.folder(0) / "best.safetensors").read_bytes())
    assert ends[0] == ends[1]
    network, card = load_network(member.folder(0) / "best.safetensors")
    assert isinstance(network, Snapshots) and len(network.networks) == 2
    heads = [one.head.weight for one in network.networks]
    assert not torch.allclose(heads[0], heads[1])
    photos = np.stack([card.preprocess(member.photos[row]) for row in range(4)])
    answers = torch.from_numpy(OnnxRunner(member.folder(0) / "network.onnx")(photos)["logits"]).softmax(1)
    images = torch.from_numpy(photos).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(v).mul(255).view(1, 3, 1, 1) for v in (card.preprocess.mean, card.preprocess.std))
    each = torch.stack([one((images - mean) / std).softmax(1) for one in network.networks])
    assert answers.numpy() == pytest.approx(each.mean(0).numpy(), abs=1e-3)


def test_the_optimiser_treats_both_networks_alike(tmp_path: Path, tiny_recipe: Path):
    sets = (*PLAIN, STEP["co_teaching"], "optimizer.layer_decay=0.5")
    member = tiny_member(tmp_path, tiny_recipe, sets)
    labels = make_training_labels(LabelRequest(member, 0, member.rows(0)[0], None))
    pair = make_training(member, 0, labels).model
    both = parameter_groups(pair, member.recipe.optimizer)
    one = parameter_groups(pair.networks[0], member.recipe.optimizer)
    assert [(g["lr"], g["weight_decay"], 2 * len(g["params"])) for g in one] == [
        (g["lr"], g["weight_decay"], len(g["params"])) for g in both
    ]


@pytest.mark.parametrize(
    ("name", "sets", "words"),
    [
        ("co_teaching", ["mixing=[{name: mixup}]"], "doesn't go with mixing"),
        ("co_teaching", ["loss={name: elr}"], "give logits alone"),
        ("dividemix", ["train.compile=true"], "doesn't go with train.compile"),
        ("dividemix", ["train.epochs=1"], "1 epochs of warm-up, and the training has 1"),
        ("dividemix", ["step={name: dividemix, warmup: -1}"], "warmup = -1"),
        ("co_teaching", ["step={name: co_teaching, wrong: 1}"], "wrong = 1"),
        ("co_teaching", ["stages=[{train: {epochs: 1}}, {train: {epochs: 2}}]"], "doesn't go with stages"),
    ],
)
def test_what_does_not_combine_is_refused(tiny_recipe: Path, name: str, sets: list[str], words: str):
    check_recipe(load_recipe(str(tiny_recipe), [*PLAIN, STEP[name]]))
    with pytest.raises(SettingsError, match=words):
        check_recipe(load_recipe(str(tiny_recipe), [*PLAIN, STEP[name], *sets]))


def test_a_smoke_run_of_one_epoch_divides_at_once(tiny_recipe: Path):
    recipe, _ = smoke_recipe(load_recipe(str(tiny_recipe), [*PLAIN, STEP["dividemix"]]))
    assert recipe.train.epochs == 1 and recipe.step.settings["warmup"] == 0
    check_recipe(recipe)
