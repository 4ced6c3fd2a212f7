"""The choice of precision and layout: measured by training steps that leave no trace, and remembered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from manihot.errors import SettingsError
from manihot.photos.preprocess import Preprocess
from manihot.settings import Recipe, load_recipe
from manihot.train import probe
from manihot.train.networks.backbones import make_model
from manihot.train.networks.heads import Classifier
from manihot.train.probe import Way, choose_way, fastest, measure_ways, possible_ways
from manihot.train.runners import Normalise
from manihot.train.training import make_training
from tiny_member import tiny_member

CPU, SIZE = torch.device("cpu"), (32, 32)
FP32, BF16 = Way("fp32", True), Way("bf16", True)


def asked(*sets: str) -> Recipe:
    tiny = ["model.backbone=test_efficientnet", "model.pretrained=false", "model.dropout=0.5"]
    return load_recipe("standard", [*tiny, *sets])


def network(recipe: Recipe) -> Classifier:
    return make_model(recipe.model, 3, SIZE, 0)


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Way, bool]]:
    """The steps that were timed, each way's, contiguous bf16 the fastest, and whether in training mode; no cache."""
    seen: list[tuple[Way, bool]] = []
    real = probe._step_seconds
    pace = {FP32: 3.0, Way("fp32", False): 2.9, BF16: 2.0, Way("bf16", False): 1.0}

    def timed(model: Classifier, images: torch.Tensor, precision: str, device: torch.device) -> float:
        real(model, images, precision, device)
        assert images.std() > 0.9
        last = images.is_contiguous(memory_format=torch.channels_last)
        weights = model.backbone.conv_stem.weight
        assert weights.is_contiguous(memory_format=torch.channels_last) == last
        seen.append((Way(precision, last), model.training))
        return pace[seen[-1][0]]

    monkeypatch.setattr(probe, "_step_seconds", timed)
    monkeypatch.setenv("MANIHOT_CACHE", str(tmp_path / "cache"))
    return seen


def test_auto_is_measured_by_training_steps_and_remembered(steps: list[tuple[Way, bool]], tmp_path: Path):
    recipe = asked("train.channels_last=auto")
    assert choose_way(recipe, network(recipe), SIZE, CPU) == ("bf16", False)
    assert {way for way, _ in steps} == {Way(p, last) for p in ("fp32", "bf16") for last in (True, False)}
    assert len(steps) == 4 * probe.TURNS and all(training for _, training in steps)
    assert choose_way(recipe, network(recipe), SIZE, CPU) == ("bf16", False)
    assert len(steps) == 4 * probe.TURNS
    (key,) = json.loads((tmp_path / "cache" / "ways.json").read_text(encoding="utf-8"))
    assert "test_efficientnet" in key and probe.describe_processor(CPU) in key
    choose_way(recipe, network(recipe), (64, 32), CPU)
    assert len(steps) == 8 * probe.TURNS


def test_the_layout_is_measured_where_it_is_left_open_only(steps: list[tuple[Way, bool]]):
    assert choose_way(asked(), network(asked()), SIZE, CPU) == BF16
    assert {way for way, _ in steps} == {FP32, BF16}
    steps.clear()
    for sets, way in (
        (["train.precision=fp32"], FP32),
        (["train.precision=bf16", "train.channels_last=false"], Way("bf16", False)),
    ):
        assert choose_way(asked(*sets), network(asked()), SIZE, CPU) == way
    assert not steps


def test_another_way_must_be_clearly_faster():
    assert fastest({FP32: 1.0, BF16: 0.9}) == FP32
    assert fastest({FP32: 1.0, BF16: 0.85}) == BF16
    assert fastest({FP32: float("inf"), BF16: 0.85}) == BF16


def test_a_way_that_is_far_behind_is_tried_once(monkeypatch: pytest.MonkeyPatch):
    tried = []

    def timed(model: Classifier, images: torch.Tensor, precision: str, device: torch.device) -> float:
        tried.append(precision)
        return {"fp32": 1.0, "bf16": 5.0}[precision]

    monkeypatch.setattr(probe, "_step_seconds", timed)
    assert measure_ways([FP32, BF16], network(asked()), (2, 3, *SIZE), CPU, False) == {FP32: 1.0, BF16: 5.0}
    assert tried.count("bf16") == 1 and tried.count("fp32") == probe.TURNS


@pytest.mark.parametrize("shorter", ["bf16", "fp16"])
def test_a_gpu_is_measured_too(shorter: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: shorter == "bf16")
    assert possible_ways(asked(), torch.device("cuda")) == [FP32, Way(shorter, True)]
    assert len(possible_ways(asked("train.channels_last=auto"), torch.device("cuda"))) == 4
    assert possible_ways(asked(), torch.device("mps")) == [FP32]


def test_measuring_leaves_model_and_random_numbers_as_they_were():
    model = network(asked())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    took = measure_ways([FP32, BF16], model, (4, 3, *SIZE), CPU, False)
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and all(second > 0 for second in took.values())


def test_the_processor_is_named(monkeypatch: pytest.MonkeyPatch):
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file() and "model name" in cpuinfo.read_text(encoding="utf-8"):
        name = cpuinfo.read_text(encoding="utf-8").split("model name")[1].splitlines()[0].strip(" \t:")
        assert name and name in probe.describe_processor(CPU)
    monkeypatch.setattr(probe, "_cpu_name", lambda: "")
    monkeypatch.setattr(probe.platform, "processor", lambda: "")
    assert probe.platform.machine() in probe.describe_processor(CPU)


def test_the_layout_reaches_the_images_and_the_network(tiny_recipe: Path, tmp_path: Path):
    from manihot.members.training_labels import LabelRequest, make_training_labels

    for value, last in (("true", True), ("false", False)):
        member = tiny_member(tmp_path / value, tiny_recipe, (f"train.channels_last={value}",))
        rows, _ = member.rows(0)
        training = make_training(member, 0, make_training_labels(LabelRequest(member, 0, rows)))
        batch = next(iter(training.loader))
        images = training.state.normalise(batch["image"], batch["colour"])
        assert images.is_contiguous(memory_format=torch.channels_last) is last and images.is_contiguous() is not last
        weights = training.model.backbone.conv_stem.weight
        assert weights.is_contiguous(memory_format=torch.channels_last) is last


def test_both_layouts_hold_the_same_numbers():
    preprocess = Preprocess(SIZE, "squash", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    photos = torch.randint(0, 256, (2, *SIZE, 3), dtype=torch.uint8)
    colour = torch.eye(3, 4).repeat(2, 1, 1)
    for more in ((), (colour,)):
        assert torch.equal(Normalise(preprocess)(photos, *more), Normalise(preprocess, False)(photos, *more))


def test_other_layouts_are_refused():
    with pytest.raises(SettingsError, match="channels_last"):
        asked("train.channels_last=last")
