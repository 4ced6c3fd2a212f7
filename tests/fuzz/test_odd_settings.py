"""Settings of techniques: whatever value stands for one, the check of a recipe passes it or names it in an error."""

from __future__ import annotations

import inspect
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from manihot.augment.augmenter import AUGMENTS
from manihot.errors import SettingsError
from manihot.members.sampling import SAMPLINGS
from manihot.members.training_labels import LABELS
from manihot.settings import Recipe, load_recipe, make_recipe
from manihot.settings.techniques import TECHNIQUES

pytest.importorskip("torch")

from manihot.train.check import check_classes, check_recipe
from manihot.train.data.mixing import MIXES
from manihot.train.data.negatives import NEGATIVES
from manihot.train.optim.averaging import AVERAGING
from manihot.train.optim.losses import LOSSES
from manihot.train.optim.schedules import SCHEDULES
from manihot.train.steps import step_settings

TRIED = 300  # where --fuzz-inputs names no number
LONGEST = 2.0  # seconds of CPU
CLASSES = ("healthy", "rust", "blight")
PLAIN: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    7,
    0.5,
    -0.5,
    1.0,
    3.5,
    1e-300,
    1e308,
    -0.0,
    10**6,
    10**18,
    -(10**18),
    "",
    "a",
    "none",
    "mixup",
    "focal",
    "nce",
    "cleanlab",
    "drop",
    "held_out",
    "mean",
    "🙂",
    "1",
    "../x",
    "rust",
]
NESTED: list[Any] = [
    [],
    [1],
    [1, 2],
    [0.1, 0.5],
    [0.5, 0.1],
    [[1]],
    ["a"],
    ["a", "b"],
    [None],
    [True, False],
    [1] * 3,
    [0.2, 0.3, 0.5],
    ["rust"],
    [0] * 3,
    [-1, 1, 1],
    [1, "a", 2],
    [1e308] * 3,
    [{}],
    [{"name": 3}],
    [{"name": "nce", "weight": "x"}],
    [{"name": "nce", "weight": True}],
    [{"name": "nce"}, {"name": "focal", "gamma": 1}],
    ["rotate"],
    [{"name": "rotate"}],
    [{"name": "rotate", "limit": "x"}],
    {},
    {"a": 1},
    {"rust": 2},
    {"rust": "x"},
    {"0": 2},
    {"name": "focal"},
    {"name": "mixup"},
    {"name": "mixup", "alpha": "x"},
    {"name": "focal", "gamma": []},
    {"name": 3},
    {"name": "combo", "terms": [1]},
    {"name": "class_balanced", "inner": {"name": "class_balanced"}},
    {"a": {"b": [1]}},
]


def named(function: Callable[..., Any]) -> list[str]:
    return [*inspect.signature(function).parameters]


OWN: dict[str, tuple[str, Callable[[str], Sequence[str]]]] = {  # group of the recipe: kind, settings of a row
    "loss": ("loss", lambda name: [*LOSSES[name].settings]),
    "mixing": ("mix", lambda name: [*named(MIXES[name])[3:], "p", "from_epoch", "until_epoch"]),
    "augment": ("augmentation", lambda name: [*AUGMENTS[name].model_fields]),
    "schedule": ("schedule", lambda name: [*named(SCHEDULES[name])[2:], "warmup"]),
    "averaging": ("averaging", lambda name: named(AVERAGING[name])[2:]),
    "sampling": ("sampling", lambda name: named(SAMPLINGS[name])[2:]),
    "labels": ("labels", lambda name: [*named(LABELS[name])[1:], "one_a_group"]),
    "negatives": ("negatives", lambda name: named(NEGATIVES[name])[1:]),
    "step": ("step", lambda name: [*step_settings(name)]),
}
LISTS = ("mixing", "augment")


def odd(chance: random.Random, deep: bool = True) -> Any:
    """A value that may or may not do."""
    return chance.choice(NESTED) if deep and chance.random() < 0.5 else chance.choice(PLAIN)


def technique(chance: random.Random, group: str) -> dict[str, Any]:
    """A row with some of its own settings, at odd values."""
    kind, settings_of = OWN[group]
    name = chance.choice(TECHNIQUES[kind])
    known = [*settings_of(name), "nothing"]
    wanted = ["terms", "inner", "of", "source", "choices"] if chance.random() < 0.7 else []
    chosen = [key for key in known if key in wanted] + chance.sample(known, min(len(known), chance.randint(0, 2)))
    return {"name": name, **{key: odd(chance) for key in chosen}}


def odd_changes(chance: random.Random) -> dict[str, Any]:
    """Changes of one or two groups of a recipe."""
    changes: dict[str, Any] = {}
    for group in chance.sample([*OWN], chance.randint(1, 2)):
        rows = [technique(chance, group) for _ in range(chance.randint(1, 2))]
        changes[group] = rows if group in LISTS else rows[0]
    return changes


def odd_recipe(seed: int) -> Recipe:
    """`standard` with odd techniques, in a member or a stage now and then."""
    chance = random.Random(seed)
    values, changes = load_recipe("standard").resolved(), odd_changes(chance)
    if chance.random() < 0.4:
        values["members"] = {"a": {}, "b": changes}
    elif chance.random() < 0.3:
        values["stages"] = [changes, {}]
    else:
        values |= changes
    if chance.random() < 0.15:
        values["blend"] = {
            chance.choice(["method", "members", "weights", "mean", "stackers", "groups", "with_weights"]): odd(chance)
        }
    if chance.random() < 0.1:
        values["method"] = "features"
    return make_recipe(values, {})


def test_odd_settings_are_checked_or_named(fuzz_inputs: int):
    passed = refused = 0
    tried = fuzz_inputs or TRIED
    for seed in range(tried):
        begun = time.process_time()
        try:
            recipe = odd_recipe(seed)
            check_recipe(recipe)
            check_classes(recipe, CLASSES)
            passed += 1
        except SettingsError as error:
            assert error.what
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        assert time.process_time() - begun < LONGEST, seed
    assert passed > tried / 50 and refused > tried / 3
