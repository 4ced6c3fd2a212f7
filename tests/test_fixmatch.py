"""FixMatch against its definition, the batches without labels, and losses with several views."""

from __future__ import annotations

import json
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from manihot.augment.augmenter import Augmenter
from manihot.errors import SettingsError
from manihot.members.training_labels import LabelRequest, make_training_labels
from manihot.settings import Choice, load_recipe
from manihot.train.check import check_recipe
from manihot.train.data.dataset import EpochBatches, TrainingPhotos, make_loader
from manihot.train.data.unlabelled import STRONG, UnlabelledPhotos
from manihot.train.finetune import finetune
from manihot.train.networks.backbones import make_model, make_preprocess, set_training
from manihot.train.optim.losses import LOSSES, make_loss
from manihot.train.runners import Normalise
from manihot.train.steps import STEPS, StepState, make_step, unlabelled_settings
from manihot.train.training import make_training
from tiny_member import draw_photos, tiny_member

PHOTOS = np.random.default_rng(0).integers(0, 256, (30, 40, 40, 3), dtype=np.uint8)
FLIP = (Choice(name="horizontal_flip"),)


def dataset(mu: int = 2, views: int = 1, loss: bool = True) -> TrainingPhotos:
    """12 photographs of 3 classes, and 18 without a label."""
    unlabelled = UnlabelledPhotos(PHOTOS, np.arange(12, 30), (32, 32), 3, 4, mu=mu) if loss else None
    targets, augmenter = np.eye(3)[np.arange(12) % 3], Augmenter(FLIP, (32, 32), 3, 4)
    return TrainingPhotos(PHOTOS, np.arange(12), targets, np.ones(12), augmenter, None, unlabelled, views)


def a_step(tiny_recipe: Path, data: TrainingPhotos, loss: str = "cross_entropy", **settings):
    """A tiny network with frozen batch norms and no dropout, one batch, and the state of its step."""
    recipe = load_recipe(str(tiny_recipe), ["model.dropout=0", "mixing=[]"])
    model = make_model(recipe.model, 3, (32, 32), seed=1)
    set_training(model, freeze_norm=True)
    loader, _ = make_loader(data, 12, 0, 0, False)
    normalise = Normalise(make_preprocess(recipe.model, (32, 32), "squash"))
    with torch.no_grad():  # a random network says the same of all; this one is sure of some
        logits = model(normalise(torch.from_numpy(PHOTOS[:, :32, :32])))
        model.head.weight.mul_(2 / logits.std(0)[:, None])
        model.head.bias.copy_(-2 * logits.mean(0) / logits.std(0))
    state = StepState(torch.device("cpu"), normalise, make_loss(loss, settings, classes=3), torch.float32)
    return model, next(iter(loader)), state


@pytest.mark.parametrize(("threshold", "temperature"), [(0.0, 1.0), (0.6, 1.0), (0.6, 2.0)])
def test_the_loss_is_the_papers(tiny_recipe: Path, threshold: float, temperature: float):
    model, batch, state = a_step(tiny_recipe, dataset())
    assert batch["unlabelled_weak"].shape == (12, 2, 32, 32, 3)
    out = STEPS["fixmatch"](model, batch, state, threshold=threshold, temperature=temperature, weight=0.5)
    out["loss"].backward()
    got = model.head.weight.grad.clone()

    model.zero_grad()
    labelled = cross_entropy(model(state.normalise(batch["image"], batch["colour"])), batch["target"])
    terms, sure = [], 0
    for photo in range(12):  # one by one, as the definition reads
        for number in range(2):
            weak, strong = (
                model(
                    state.normalise(
                        batch[f"unlabelled_{v}"][photo, number][None],
                        batch[f"unlabelled_{v}_colour"][photo, number][None],
                    )
                )
                for v in ("weak", "strong")
            )
            p = (weak / temperature).softmax(1).detach()
            if p.max() >= threshold:
                terms.append(cross_entropy(strong, p.argmax(1)))
                sure += 1
    wanted = labelled + 0.5 * torch.stack(terms).sum() / 24
    wanted.backward()
    assert out["loss"].item() == pytest.approx(wanted.item(), rel=1e-4)
    assert torch.allclose(got, model.head.weight.grad, atol=1e-4)
    assert state.shares()["confident"] == pytest.approx(sure / 24, abs=1e-4)
    assert state.shares() == {}
    assert (0 < sure < 24) or threshold == 0


def test_without_confident_photographs_it_is_supervised_training(tiny_recipe: Path):
    model, batch, state = a_step(tiny_recipe, dataset())
    with torch.no_grad():
        model.head.weight.mul_(0)  # all probabilities are 1/3
        model.head.bias.mul_(0)
        alone = STEPS["supervised"](model, batch, state)["loss"]
        out = STEPS["fixmatch"](model, batch, state)
    assert out["loss"].item() == pytest.approx(alone.item(), rel=1e-5)
    assert out["unlabelled"] == 0


def test_the_second_look_of_sam_takes_the_first_ones_pseudo_labels(tiny_recipe: Path):
    model, batch, state = a_step(tiny_recipe, dataset())
    state.kept = {}
    with torch.no_grad():
        STEPS["fixmatch"](model, batch, state, threshold=0.5)
        _, labels = state.kept[0, "pseudo-labels"]
        shares = state.shares()
        model.head.weight.neg_()  # another network altogether would say otherwise
        STEPS["fixmatch"](model, batch, state, threshold=0.5)
    assert torch.equal(state.kept[0, "pseudo-labels"][1], labels)
    assert shares and not state.shares()  # counted once


def rows_of(data: TrainingPhotos, epoch: int) -> np.ndarray:
    """Rows without a label that come with each photograph of an epoch, (N, mu)."""
    return np.array([[data.unlabelled.row(epoch, 2 * slot + k)[0] for k in range(2)] for slot in range(len(data))])


def test_an_epoch_sees_each_photograph_once_before_one_is_seen_twice():
    data = dataset()
    first, second = rows_of(data, 0), rows_of(data, 1)
    assert sorted(first.reshape(-1)[:18]) == list(range(12, 30))
    assert len(set(first.reshape(-1)[18:])) == 6
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(rows_of(dataset(), 0), first)  # after a look at another epoch, and in another process
    item, again = data[0, 4, 0], dataset()[0, 4, 0]
    assert all(torch.equal(item[key], again[key]) for key in item)
    assert not torch.equal(item["unlabelled_weak"], item["unlabelled_strong"])
    assert not torch.equal(data[1, 4, 0]["unlabelled_weak"], item["unlabelled_weak"])
    repeated = data[0, 4, 1]  # a photograph that is sampled twice in an epoch brings others along
    assert not torch.equal(repeated["unlabelled_weak"], item["unlabelled_weak"])


def test_another_process_makes_the_same_items():
    data = dataset(views=2)
    sent = pickle.loads(pickle.dumps(data))
    for item in ((0, 3, 0), (1, 11, 1)):
        here, there = data[item], sent[item]
        assert all(torch.equal(here[key], there[key]) for key in here)


def test_processes_that_train_together_share_the_photographs_without_labels():
    """The slices of two processes hold what one sees with batches twice as large."""
    data = dataset()
    whole = [items for items in EpochBatches(12, 6, 0)]
    parts = [list(EpochBatches(12, 3, 0, None, (number, 2))) for number in range(2)]
    for items, a, b in zip(whole, *parts, strict=True):
        assert items == a + b
        both = torch.cat([data[item]["unlabelled_weak"] for item in a + b])
        assert torch.equal(both, torch.cat([data[item]["unlabelled_weak"] for item in items]))


FIXMATCH = ("step={name: fixmatch, threshold: 0.4, mu: 2}", "mixing=[]", "train.epochs=3")


def test_a_stopped_training_continues_to_the_same_network(tmp_path: Path, tiny_recipe: Path, monkeypatch):
    manifest = draw_photos(tmp_path / "photos")
    ends = []
    for name in ("whole", "stopped"):
        member = tiny_member(tmp_path / name, tiny_recipe, FIXMATCH, manifest)
        train, held = member.rows(0)
        if name == "stopped":
            seen = 0

            def stops(model, batch, state, **settings):
                nonlocal seen
                seen += 1
                if seen == 4:
                    raise KeyboardInterrupt
                return STEPS["fixmatch"](model, batch, state, **settings)

            with monkeypatch.context() as patch:
                patch.setattr("manihot.train.training.make_step", lambda choice: partial(stops, threshold=0.4))
                with pytest.raises(KeyboardInterrupt):
                    finetune(member, 0, train, held)
        finetune(member, 0, train, held)
        folder = member.folder(0)
        history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        ends.append(((folder / "best.safetensors").read_bytes(), [row["confident"] for row in history]))
    assert ends[0] == ends[1]
    assert len(ends[0][1]) == 3 and all(0 <= share <= 1 for share in ends[0][1])


class Linear(torch.nn.Module):
    """Two numbers instead of a photograph."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(2, 2, bias=False)
        torch.nn.init.zeros_(self.head.weight)

    def embed(self, points: torch.Tensor) -> torch.Tensor:
        return points

    def classify(self, points: torch.Tensor) -> torch.Tensor:
        return self.head(points)


@pytest.mark.parametrize(("weight", "least", "most"), [(0.0, 0.7, 0.9), (1.0, 0.97, 1.0)])
def test_what_strong_views_change_is_unlearned(weight: float, least: float, most: float):
    """The class is the sign of x. Two labelled points lie on the diagonal, and strong views draw y anew."""
    torch.manual_seed(0)
    points = torch.stack([torch.where(torch.rand(500) < 0.5, -1.0, 1.0), torch.randn(500)], 1)
    labelled = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    model = Linear()
    loss, numbers = make_loss("cross_entropy", {}, classes=2), lambda images, colour: images
    state = StepState(torch.device("cpu"), numbers, loss, torch.float32)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(150):
        weak = points[torch.randint(500, (2, 32))]
        strong = torch.stack([weak[..., 0], torch.randn(2, 32)], 2)
        batch = {
            "image": labelled,
            "colour": labelled,
            "target": torch.eye(2),
            "weight": torch.ones(2),
            "unlabelled_weak": weak,
            "unlabelled_weak_colour": weak,
            "unlabelled_strong": strong,
            "unlabelled_strong_colour": strong,
        }
        optimizer.zero_grad()
        STEPS["fixmatch"](model, batch, state, weight=weight)["loss"].backward()
        optimizer.step()
    right = (model.head(points).argmax(1) == (points[:, 0] < 0)).float().mean()
    assert least <= right <= most


def test_there_must_be_photographs_without_labels(tmp_path: Path, tiny_recipe: Path):
    member = tiny_member(tmp_path, tiny_recipe, FIXMATCH, draw_photos(tmp_path / "photos", unlabelled=0))
    train, _ = member.rows(0)
    with pytest.raises(SettingsError, match="fixmatch' found no photographs without a label") as caught:
        make_training(member, 0, make_training_labels(LabelRequest(member, 0, train)))
    assert "use: unlabelled" in caught.value.remedy


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("threshold: 1.5", "step: threshold = 1.5"),
        ("temperature: 0", "step: temperature = 0"),
        ("mu: 0", "step: mu = 0"),
        ("mu: true", "step: mu = True"),
        ("lambda_u: 1", "step: fixmatch has no setting 'lambda_u'"),
        ("strong: [{name: rand_aug}]", "step: strong: augment: there is no augmentation 'rand_aug'"),
    ],
)
def test_wrong_settings_are_refused(tiny_recipe: Path, settings: str, words: str):
    with pytest.raises(SettingsError, match=words) as caught:
        check_recipe(load_recipe(str(tiny_recipe), [f"step={{name: fixmatch, {settings}}}"]))
    assert caught.value.remedy
    with pytest.raises(SettingsError, match="supervised has no setting 'mu'"):
        check_recipe(load_recipe(str(tiny_recipe), ["step={name: supervised, mu: 2}"]))


def test_settings_reach_the_step_and_the_views():
    choice = Choice(name="fixmatch", threshold=0.9, mu=5, strong=[{"name": "cutout"}])
    assert make_step(choice).keywords == {"threshold": 0.9}
    assert unlabelled_settings(choice) == {"mu": 5, "strong": [{"name": "cutout"}]}
    assert [one["name"] for one in STRONG][-3:] == ["rand_augment", "rand_augment", "cutout"]
    load_recipe("standard", ["step={name: fixmatch, threshold: 0.95, mu: 7, temperature: 0.5, weight: 2}"])


def test_a_loss_of_several_views_gets_them(tiny_recipe: Path):
    model, batch, state = a_step(tiny_recipe, dataset(views=3), "gjs", views=3)
    assert batch["view"].shape == (12, 2, 32, 32, 3)
    out = STEPS["supervised"](model, batch, state)["loss"]
    logits = model(state.normalise(batch["image"], batch["colour"]))
    others = torch.stack([model(state.normalise(batch["view"][:, k], batch["view_colour"][:, k])) for k in range(2)])
    wanted = LOSSES["gjs"](logits, batch["target"], view_logits=others, views=3)
    assert out.item() == pytest.approx(wanted.item(), rel=1e-4)
    both = STEPS["fixmatch"](*a_step(tiny_recipe, dataset(views=3), "gjs", views=3), threshold=1.0)["loss"]
    assert both.item() == pytest.approx(wanted.item(), rel=1e-4)
    differ = [not torch.equal(batch["image"][i], batch["view"][i, k]) for i in range(12) for k in range(2)]
    assert sum(differ) > 5  # flips agree at times


def test_a_recipe_with_several_views_trains_without_mixing_only(tmp_path: Path, tiny_recipe: Path):
    loss = "loss={name: gjs, views: 2}"
    with pytest.raises(SettingsError, match="loss: gjs compares several views"):
        check_recipe(load_recipe(str(tiny_recipe), [loss]))
    sets = (loss, "mixing=[]", "train.epochs=1")
    check_recipe(load_recipe(str(tiny_recipe), list(sets)))
    member = tiny_member(tmp_path, tiny_recipe, sets)
    train, held = member.rows(0)
    finetune(member, 0, train, held)
    row = json.loads((member.folder(0) / "history.jsonl").read_text())
    assert np.isfinite(row["train_loss"])
