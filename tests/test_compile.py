"""train.compile: the same training, with averages and saved networks of its own weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from manihot.errors import SettingsError
from manihot.settings import load_recipe
from manihot.train.finetune import finetune
from manihot.train.training import compiled
from tiny_member import tiny_member


def weights(home: Path, recipe: Path, *sets: str) -> dict[str, torch.Tensor]:
    member = tiny_member(home, recipe, ("train.epochs=1", "train.accumulate=2", *sets))
    finetune(member, 0, *member.rows(0))
    return load_file(member.folder(0) / "best.safetensors")


@pytest.mark.parametrize(
    "sets",
    [
        pytest.param(("optimizer.sam=0.05", "model.freeze_norm_affine=true"), id="sam", marks=pytest.mark.slow),
        pytest.param(("averaging={name: swa, start: 0}",), id="swa"),
    ],
)
def test_a_compiled_training_is_the_same(tmp_path: Path, tiny_recipe: Path, monkeypatch, sets: tuple[str, ...]):
    """Traced by torch.compile but not made into machine code, which would round differently."""
    plain = weights(tmp_path / "plain", tiny_recipe, *sets)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    traced = weights(tmp_path / "traced", tiny_recipe, *sets, "train.compile=true")
    assert traced.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(traced[name], value, rtol=1e-5, atol=1e-6)


def test_a_failing_compiler_is_explained(tmp_path: Path, tiny_recipe: Path, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no working compiler found")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    with pytest.raises(SettingsError, match=r"train\.compile: torch.compile failed here") as caught:
        weights(tmp_path, tiny_recipe, "train.compile=true")
    assert "C++ compiler" in caught.value.remedy and "train.compile: false" in caught.value.remedy


@pytest.mark.slow
def test_machine_code_has_the_same_values_and_gradients():
    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))

        def embed(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.gelu(images @ self.weight).square()

    model, images = Small(), torch.linspace(-2, 2, 15).view(5, 3)
    run = compiled(model)  # type: ignore[arg-type]
    found = []
    for embed in (run, model.embed):
        model.zero_grad()
        features = embed(images)
        features.sum().backward()
        found.append((features.detach(), model.weight.grad.clone()))
    torch.testing.assert_close(found[0], found[1])


def test_settings_that_came_later_leave_older_runs_what_they_were():
    plain = load_recipe("standard").resolved()
    assert "compile" not in plain["train"] and "freeze_norm_affine" not in plain["model"]
    changed = load_recipe("standard", ["train.compile=true", "model.freeze_norm_affine=true"]).resolved()
    assert changed["train"]["compile"] and changed["model"]["freeze_norm_affine"]
