"""The words keep up with the code: settings, names, commands, techniques, dependencies; their code runs."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel

import manihot
from manihot import settings
from manihot.augment.augmenter import AUGMENTS, Augmenter
from manihot.augment.canvas import Op
from manihot.augment.views import VIEWS
from manihot.cli import app
from manihot.errors import SettingsError
from manihot.members.sampling import SAMPLINGS
from manihot.members.training_labels import LABELS
from manihot.metrics import METRICS, PER_CLASS
from manihot.settings import Choice, load_recipe
from manihot.settings.techniques import TECHNIQUES
from manihot.train.check import check_recipe
from manihot.train.data.mixing import MIXES, NEEDS
from manihot.train.data.negatives import NEGATIVES
from manihot.train.networks.heads import POOLING, TILE_ATTENTION
from manihot.train.optim.averaging import AVERAGING
from manihot.train.optim.losses import LOSSES
from manihot.train.optim.losses.contract import COMMON, Row
from manihot.train.optim.optimizers import OPTIMIZERS
from manihot.train.optim.schedules import SCHEDULES
from manihot.train.steps import STEPS, step_settings

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
GROUPS = {
    "The recipe": settings.Recipe,
    "`folds`": settings.Folds,
    "`sources`": settings.Source,
    "`audit`": settings.Audit,
    "`trust`": settings.Trust,
    "`photo`": settings.Photo,
    "`model`": settings.Model,
    "`optimizer`": settings.Optimizer,
    "`train`": settings.Train,
    "`features`": settings.Features,
    "`tta`": settings.View,
    "`blend`": settings.Blend,
}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """What stands under `## heading`, up to the next one."""
    start = text.index(f"\n## {heading}\n")
    return text[start : (text + "\n## ").index("\n## ", start + 1)]


def rows(text: str) -> dict[str, list[str]]:
    """First cell -> the other cells, of every table row whose first cell is `code`."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and re.fullmatch(r"`[^`]+`", cells[0]):
            found[cells[0].strip("`")] = cells[1:]
    return found


@pytest.mark.parametrize("heading", GROUPS)
def test_every_setting_stands_under_its_group(heading: str):
    told = rows(section(read("docs/recipes.md"), heading))
    assert set(told) == set(GROUPS[heading].model_fields)


def test_every_group_of_settings_is_listed_here():
    groups = {
        kind
        for _, kind in inspect.getmembers(settings, inspect.isclass)
        if issubclass(kind, BaseModel) and kind.__module__.startswith(settings.__name__)
    }
    parts = {settings.BlendSettings, settings.BlendGroup}  # of Blend
    own = {settings.Group, settings.Choice, *parts}
    assert groups - own == set(GROUPS.values())
    one, group = settings.BlendSettings, settings.BlendGroup
    assert set(group.model_fields) == set(one.model_fields) < set(settings.Blend.model_fields)


def own_settings(function: Callable[..., Any], skipped: tuple[str, ...]) -> set[str]:
    return set(inspect.signature(function).parameters) - set(skipped)


def keyword_settings(name: str) -> set[str]:
    parameters = inspect.signature(MIXES[name]).parameters.items()
    keyword = {key for key, p in parameters if p.kind is p.KEYWORD_ONLY}
    return keyword - {"in_place", *NEEDS.get(name, ())}


REGISTRIES: dict[str, tuple[dict[str, Any], Callable[[str], set[str]]]] = {
    "Losses": (LOSSES, lambda name: set(LOSSES[name].settings) - set(COMMON)),
    "Sampling": (SAMPLINGS, lambda name: own_settings(SAMPLINGS[name], ("labels", "rng"))),
    "Labels": (LABELS, lambda name: own_settings(LABELS[name], ("asked",))),
    "Steps": (STEPS, lambda name: set(step_settings(name))),
    "Negatives": (NEGATIVES, lambda name: own_settings(NEGATIVES[name], ("material",))),
    "Augmentations": (AUGMENTS, lambda name: set(AUGMENTS[name].model_fields) - (set(Op.model_fields) - {"p"})),
    "Mixes": (MIXES, keyword_settings),
    "Optimisers": (OPTIMIZERS, lambda name: set()),
    "Schedules": (SCHEDULES, lambda name: own_settings(SCHEDULES[name], ("epoch", "epochs", "scores"))),
    "Averages of the weights": (AVERAGING, lambda name: own_settings(AVERAGING[name], ("model", "epochs"))),
    "Pooling": (POOLING, lambda name: set()),
    "Attention over tiles": (TILE_ATTENTION, lambda name: set()),
    "Views": (VIEWS, lambda name: set()),
    "Metrics": (METRICS, lambda name: set()),
    "Metrics of each class": (PER_CLASS, lambda name: set()),
}


@pytest.mark.parametrize("heading", REGISTRIES)
def test_every_technique_is_explained_with_its_settings(heading: str):
    registry, settings_of = REGISTRIES[heading]
    told = rows(section(read("docs/techniques.md"), heading))
    assert list(told) == list(registry)
    for name, cells in told.items():
        assert len(cells[0]) >= 10, f"{name} has no explanation"
        named = set(re.findall(r"`(\w+)`", cells[1])) if len(cells) > 1 else set()
        assert named == settings_of(name), name


def test_every_public_name_stands_in_the_words():
    words = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [name for name in manihot.__all__ if not re.search(rf"\b{re.escape(name)}\b", words)]
    assert not missing


def commands() -> list[str]:
    found = []
    for name in app:
        if not name.startswith("-"):
            found += [name] + [f"{name} {below}" for below in app[name] if not below.startswith("-")]
    return found


def test_every_command_stands_in_the_words():
    words = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert len(commands()) >= 8
    missing = [name for name in commands() if not re.search(rf"\bmanihot {name}\b", words)]
    assert not missing


def test_every_command_in_the_readme_can_be_parsed():
    text = read("README.md")
    fenced = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    lines = re.findall(r"^manihot (.+)$", fenced, re.MULTILINE) + re.findall(r"`manihot ([^`\n]+)`", text)
    assert len(lines) >= 15
    for line in lines:
        app.parse_args(line, print_error=False, exit_on_error=False)


def test_every_dependency_has_its_reason():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    told = read("docs/dependencies.md")
    extras = project["optional-dependencies"]
    core = rows(section(told, "Core"))
    assert {re.split(r"[<>=!~ \[]", d)[0] for d in project["dependencies"]} <= set(core)
    named = {(extra, re.split("[<>=!~ ]", package)[0]) for extra in extras for package in extras[extra]}
    assert named == set(re.findall(r"\| `(\w+)` \| `([^`]+)` \|", section(told, "Extras")))


def test_every_page_is_in_the_sites_contents():
    contents = read("mkdocs.yml")
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if f": {page}\n" not in contents] == []


def test_links_lead_to_files():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not target.startswith("docs/images/"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def blocks(heading: str, language: str) -> list[str]:
    text = section(read("docs/adding.md"), heading)
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def add_row(heading: str, registry: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[str, Any]:
    """A section of adding.md as a module: its code, its row, its recipe; (name, row)."""
    code, row = blocks(heading, "python")
    module = "added_" + heading.lower().replace(" ", "_")
    (tmp_path / f"{module}.py").write_text("from __future__ import annotations\n" + code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    names = {"Row": Row, **vars(importlib.import_module(module))}
    monkeypatch.delitem(sys.modules, module)
    ((name, value),) = eval("{" + row + "}", names).items()
    monkeypatch.setitem(registry, name, value)
    kind = re.search(r"its name under `(\w+)` in `settings/techniques.py`", section(read("docs/adding.md"), heading))
    assert kind is not None
    monkeypatch.setitem(TECHNIQUES, kind[1], (*TECHNIQUES[kind[1]], name))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(blocks(heading, "yaml")[0], encoding="utf-8")
    check_recipe(load_recipe(recipe))
    return name, value


def test_the_loss_of_the_page_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    _, row = add_row("A loss", LOSSES, monkeypatch, tmp_path)
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    p = logits.softmax(1)[torch.arange(6), labels]
    wanted = (-p.log() + 2 * (1 - p)).mean().item()
    assert row(logits, labels, epsilon=2.0).item() == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(SettingsError):
        row(logits, labels, epsilon=-2.0)


def test_the_augmentation_of_the_page_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    name, _ = add_row("An augmentation", AUGMENTS, monkeypatch, tmp_path)
    grey = np.full((8, 16, 3), 200, dtype=np.uint8)
    out, _ = Augmenter([Choice(name=name, p=1, depth=0.5)], (8, 16), seed=0, epochs=1)(grey, 0, 0)
    edges = sorted((int(out[0, 0, 0]), int(out[0, -1, 0])))
    assert edges == [100, 200]


def test_the_mix_of_the_page_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    _, mix = add_row("A mix", MIXES, monkeypatch, tmp_path)
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 10, 20).clone()
    mixed = mix(images, torch.eye(4), np.random.default_rng(1))
    seen = mixed.images.mean((1, 2, 3))  # a photograph's pixels are its number, so means are shares
    assert torch.allclose(seen, mixed.targets @ torch.arange(4.0), atol=1e-6)
    assert (mixed.targets.max(1).values < 1).all()


def test_the_recipe_of_the_page_loads(tmp_path: Path):
    path = tmp_path / "longer.yaml"
    path.write_text(blocks("A recipe", "yaml")[0], encoding="utf-8")
    recipe = load_recipe(path, ["train.epochs=1", "folds.only=[0]"])
    check_recipe(recipe)
    assert (recipe.name, recipe.train.epochs, recipe.folds.only) == ("longer", 1, (0,))
    assert recipe.augment == load_recipe("standard").augment


def test_recipes_on_the_settings_page_load(tmp_path: Path):
    found = re.findall(r"```yaml\n(.*?)```", read("docs/recipes.md"), re.DOTALL)
    assert len(found) >= 2
    for n, text in enumerate(found):
        path = tmp_path / f"recipe{n}.yaml"
        path.write_text(text, encoding="utf-8")
        sets = ["augment.1.limit=30", "tta=[{name: full}]", "loss={name: focal, gamma: 1.5}"]
        check_recipe(load_recipe(path, sets))
