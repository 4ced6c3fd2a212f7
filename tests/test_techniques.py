"""The names of techniques: those of the registries, and a recipe that names another one is refused without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import pytest

from manihot.errors import MissingExtraError, SettingsError
from manihot.extras import has_train, need_train
from manihot.members.check import check_recipe, needs_train
from manihot.settings import load_recipe
from manihot.settings.techniques import TECHNIQUES

REGISTRIES = {
    "augmentation": "augment.augmenter:AUGMENTS",
    "mix": "train.data.mixing:MIXES",
    "loss": "train.optim.losses:LOSSES",
    "optimiser": "train.optim.optimizers:OPTIMIZERS",
    "schedule": "train.optim.schedules:SCHEDULES",
    "averaging": "train.optim.averaging:AVERAGING",
    "step": "train.steps:STEPS",
    "sampling": "members.sampling:SAMPLINGS",
    "labels": "members.training_labels:LABELS",
    "negatives": "train.data.negatives:NEGATIVES",
    "pooling": "train.networks.heads:POOLING",
    "tile attention": "train.networks.heads:TILE_ATTENTION",
    "view": "augment.views:VIEWS",
    "mean": "ensemble.blend:MEANS",
    "search": "ensemble.search:SEARCHES",
    "stacker": "ensemble.stack:STACKERS",
}


def told_apart(kind: str, rows: Iterable[str]) -> str:
    """What to do where the names of a kind are not those of its registry."""
    rows, names = list(rows), list(TECHNIQUES[kind])
    missing, extra = [n for n in rows if n not in names], [n for n in names if n not in rows]
    todo = [f"add {name!r}" for name in missing] + [f"take out {name!r}" for name in extra]
    todo = todo or [f"order them like the rows of {REGISTRIES[kind]}"]
    return f"settings/techniques.py, TECHNIQUES[{kind!r}]: {', '.join(todo)}"


def test_every_kind_has_its_registry():
    assert set(REGISTRIES) == set(TECHNIQUES)


@pytest.mark.parametrize("kind", REGISTRIES)
def test_names_are_those_of_the_registry(kind: str):
    if REGISTRIES[kind].startswith("train.") and not has_train():
        pytest.skip("the extra 'train' is not installed")
    module, _, registry = REGISTRIES[kind].partition(":")
    rows = getattr(import_module(f"manihot.{module}"), registry)
    assert list(rows) == list(TECHNIQUES[kind]), told_apart(kind, rows)


def test_a_forgotten_name_is_told():
    assert told_apart("step", [*TECHNIQUES["step"], "mine"]).endswith("TECHNIQUES['step']: add 'mine'")
    assert told_apart("step", [name for name in TECHNIQUES["step"] if name != "fixmatch"]).endswith(
        "take out 'fixmatch'"
    )
    assert told_apart("step", ["fixmatch", "supervised", *TECHNIQUES["step"][2:]]).endswith(
        "order them like the rows of train.steps:STEPS"
    )


WRONG = [
    ("model: {pooling: avgg}", "no pooling 'avgg'", "'avg'"),
    ("model: {tile_attention: tanhh}", "no tile attention 'tanhh'", "'tanh'"),
    ("augment: [{name: rotat}]", "no augmentation 'rotat'", "'rotate'"),
    ("augment: [{name: one_of, choices: [{name: rotat}]}]", "no augmentation 'rotat'", "'rotate'"),
    ("mixing: [{name: cutmixx}]", "no mix 'cutmixx'", "'cutmix'"),
    ("mixing: [{name: mixup_without_hesitation, inner: mixupp}]", "no mix 'mixupp'", "'mixup'"),
    ("loss: {name: focall}", "no loss 'focall'", "'focal'"),
    ("loss: {name: combo, terms: [{name: nce}, {name: focall}]}", "no loss 'focall'", "'focal'"),
    ("loss: {name: class_balanced, inner: {name: focall}}", "no loss 'focall'", "'focal'"),
    ("optimizer: {name: adamm}", "no optimiser 'adamm'", "'adam"),
    ("optimizer: {name: sam}", "'sam' is not an optimiser but goes with any", "optimizer.sam: 0.05"),
    ("schedule: {name: cosin}", "no schedule 'cosin'", "'cosine'"),
    ("averaging: {name: emma}", "no averaging 'emma'", "'ema'"),
    ("sampling: {name: balance}", "no sampling 'balance'", "'balanced'"),
    ("labels: {name: pseudoo}", "no labels 'pseudoo'", "'pseudo'"),
    ("step: {name: fixmach}", "no step 'fixmach'", "'fixmatch'"),
    ("negatives: {name: drwn}", "no negatives 'drwn'", "'drawn'"),
    ("tta: [{name: center}]", "view 'center'", "'centre'"),
    ("blend: {method: greedyy}", "'greedyy'", "'greedy'"),
    ("blend: {stackers: [logistics]}", "'logistics'", "'logistic'"),
    ("members: {a: {loss: {name: focall}}, b: {}}", "no loss 'focall'", "'focal'"),
    ("stages: [{loss: {name: focall}}, {}]", "no loss 'focall'", "'focal'"),
]


@pytest.mark.parametrize(("text", "words", "remedy"), WRONG)
def test_an_unknown_technique_is_refused_with_file_line_and_the_nearest(
    tmp_path: Path, text: str, words: str, remedy: str
):
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: standard\n{text}\n", encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        check_recipe(load_recipe(path))
    assert words in caught.value.what and f"{path}:2" in caught.value.what
    assert remedy in caught.value.remedy


def test_every_packaged_recipe_is_checked_without_loading_torch():
    code = """
import sys
from manihot.members.check import check_recipe
from manihot.settings import load_recipe, recipe_names
for name in recipe_names():
    recipe = load_recipe(name)
    check_recipe(recipe.model_copy(update={"blend": type(recipe.blend)()}))  # a blend may need other extras
print(sorted({"torch", "timm"} & set(sys.modules)))
"""
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


@pytest.fixture
def no_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the extra `train` were not installed."""
    monkeypatch.setattr("manihot.extras.find_spec", lambda name: None)


def test_what_a_recipe_needs():
    assert needs_train(load_recipe("quick")) == needs_train(load_recipe("robust")) == ""
    assert needs_train(load_recipe("quick", ["model.pretrained=false"])) == ""
    assert needs_train(load_recipe("standard")) == "recipe 'standard' fine-tunes a network, which"
    for change in ("model.backbone=resnet50", "model.pretrained=true", "model.pretrained=mine.safetensors"):
        assert "into ONNX" in needs_train(load_recipe("quick", [change]))
    both = load_recipe("quick", ["members={a: {}, b: {method: finetune}}"])
    assert "fine-tunes" in needs_train(both)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("standard", "recipe 'standard' fine-tunes a network, which needs the extra 'train', which is not installed"),
        ("quick", "recipe 'quick' turns the backbone 'resnet50' into ONNX, which needs the extra 'train'"),
    ],
)
def test_a_run_that_needs_torch_says_so_before_it_reads_photographs(
    tmp_path: Path, no_train: None, recipe: str, words: str
):
    from manihot.pipeline import run

    with pytest.raises(MissingExtraError) as caught:
        run(tmp_path / "absent", tmp_path / "run", recipe=recipe, overrides=["model.backbone=resnet50"])
    assert words in caught.value.what
    assert 'pip install "manihot[train]"' in caught.value.remedy and "--torch-backend=cpu" in caught.value.remedy
    assert caught.value.exit_code == 2 and not (tmp_path / "run").exists()


def test_a_misspelt_recipe_is_said_before_the_missing_extra(tmp_path: Path, no_train: None):
    from manihot.pipeline import run

    with pytest.raises(SettingsError, match="no loss 'focall'") as caught:
        run(tmp_path / "absent", tmp_path / "run", recipe="standard", overrides=["loss={name: focall}"])
    assert not isinstance(caught.value, MissingExtraError)


def test_the_room_of_torch_says_what_it_needs():
    code = """
import sys
sys.modules.update(torch=None, timm=None)
try:
    import manihot.train.loop
except Exception as error:
    print(type(error).__name__, error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("MissingExtraError this part of manihot trains networks") and "manihot[train]" in out


def test_nothing_is_needed_where_it_is_installed():
    if has_train():
        need_train("this")
    else:
        with pytest.raises(MissingExtraError):
            need_train("this")
