"""The Python API: one function per verb, which the command line and the docs can't drift from."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import manihot
from manihot.cli import VERBS, app, recipes
from manihot.cli.show import SHOWN
from manihot.settings import Recipe
from manihot.settings import options as option_groups
from manihot.verbs import recipes as recipe_verbs

FUNCTIONS = {verb.__name__: verb for verb in (*VERBS, recipe_verbs.recipes, recipe_verbs.show_recipe)}
DOCS = (Path(__file__).parents[1] / "docs/python.md").read_text(encoding="utf-8")


def command_of(name: str):
    if name in ("recipes", "show_recipe"):
        return recipes if name == "recipes" else recipes["show"]
    return app[name.replace("_", "-")]


def hints(name: str) -> dict[str, object]:
    return typing.get_type_hints(FUNCTIONS[name])


def groups_of(name: str) -> dict[str, type]:
    """Arguments of a function that are groups of options."""
    return {key: hint for key, hint in hints(name).items() if dataclasses.is_dataclass(hint) and key != "return"}


def test_every_verb_is_a_function_of_manihot_and_the_other_way_round():
    verbs = {name for name in app if not name.startswith("-")}
    assert verbs == {name.replace("_", "-") for name in FUNCTIONS} - {"show-recipe"}
    assert set(FUNCTIONS) <= set(manihot.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_verb_and_its_function_have_the_same_names_and_defaults(name: str):
    function, command = FUNCTIONS[name], command_of(name)
    assert command.default_command is function
    expected: dict[str, object] = {}
    groups = groups_of(name)
    for key, argument in inspect.signature(function).parameters.items():
        if key in groups:
            assert argument.default == groups[key](), f"{name}({key})"
            expected |= {field.name: field.default for field in dataclasses.fields(groups[key])}
        else:
            expected[key] = argument.default
    arguments = [one for one in command.assemble_argument_collection() if not one.children]
    shown = {
        next(n for n in one.names if n.startswith("--")).removeprefix("--").replace("-", "_"): one.field_info.default
        for one in arguments
    }
    assert set(shown) == {key.rstrip("_") for key in expected}
    for key, default in expected.items():
        assert shown[key.rstrip("_")] is default or shown[key.rstrip("_")] == default, f"{name}: {key}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_takes_few_arguments_and_returns_a_frozen_record_that_is_shown(name: str):
    assert len(inspect.signature(FUNCTIONS[name]).parameters) <= 9
    found = hints(name)["return"]
    assert found in SHOWN
    if found is not Recipe:
        assert dataclasses.is_dataclass(found) and found.__dataclass_params__.frozen
        assert re.search(rf"^\| `{name}` \| `manihot [a-z -]+` \| `{found.__name__}` \|", DOCS, re.MULTILINE), name


@pytest.mark.parametrize("name", sorted({hint for key in FUNCTIONS for hint in groups_of(key).values()}, key=str))
def test_every_option_of_a_group_has_its_help_and_stands_in_the_docs(name: type):
    row = re.search(rf"^\| `{name.__name__}` \|[^|]*\|(.*)\|$", DOCS, re.MULTILINE)
    assert row and re.findall(r"`(\w+)`", row[1]) == [field.name for field in dataclasses.fields(name)]
    body = inspect.getsource(name)
    for field in dataclasses.fields(name):
        assert re.search(rf'^    {field.name}: [^\n]*\n    """', body, re.MULTILINE), field.name
    assert getattr(option_groups, name.__name__) is name and getattr(manihot, name.__name__) is name


@pytest.mark.parametrize(
    "verb", ["scan", "run", "prepare", "audit", "predict", "watch", "suite", "lr-find", "translate"]
)
def test_every_verb_that_reads_a_table_has_all_options_of_a_table(verb: str, capsys):
    app([verb, "--help"], exit_on_error=False, result_action="return_value")
    text = capsys.readouterr().out
    for field in dataclasses.fields(manihot.TableOptions):
        assert f"--{field.name.replace('_', '-')}" in text


def test_a_room_with_a_verb_s_name_answers_as_the_verb():
    code = (
        "import inspect, manihot; before = inspect.signature(manihot.audit)\n"
        "import manihot.audit.tables, manihot.report.words\n"
        "assert inspect.ismodule(manihot.audit) and manihot.audit.tables.__name__\n"
        "assert inspect.signature(manihot.audit) == before\n"
        "try:\n    manihot.audit(out='x')\n"
        "except manihot.ManihotError as error:\n    print(error.what)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "nothing to audit\n"


def test_the_names_that_a_type_checker_sees_are_those_that_are_found():
    source = Path(manihot.__file__).read_text(encoding="utf-8")
    found = re.findall(r"^    from (manihot[\w.]*) import \w+ as (\w+)$", source, re.MULTILINE)
    seen = {name: home for home, name in found}
    assert seen == {name: f"manihot.{home}" for name, home in manihot._HOME.items()}


def test_a_scan_from_python(small_photos: Path, tmp_path: Path):
    found = manihot.scan(str(small_photos), out=str(tmp_path), compute=manihot.Compute(workers=1))
    assert len(found.manifest) == 45 and len(found.quarantine) == 2 and found.path.is_file()
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.path = tmp_path  # type: ignore[misc]


def test_a_whole_recipe_is_not_changed_by_settings(small_photos: Path, tmp_path: Path):
    with pytest.raises(manihot.ManihotError, match="a Recipe is whole"):
        manihot.run(small_photos, out=tmp_path / "run", recipe=manihot.load_recipe("quick"), set=["seed=1"])
    assert not (tmp_path / "run").exists()


def test_a_run_gives_typed_scores(small_photos: Path, tmp_path: Path, tiny_recipe: Path):
    pytest.importorskip("torch")
    here = manihot.Compute(device="cpu", workers=1)
    found = manihot.run(small_photos, out=tmp_path / "run", recipe=tiny_recipe, set=["train.epochs=1"], compute=here)
    assert found.best == "main" and found.ensemble is None and found.report.is_file()
    scores = found.members["main"].oof
    assert scores is not None and 0 <= scores.metrics["accuracy"].value <= 1 and scores.n == 45
    board = manihot.compare(tmp_path / "run").table
    assert board["accuracy"].iloc[0] == scores.metrics["accuracy"].value
    new = manihot.predict(tmp_path / "run", small_photos, out=tmp_path / "new.csv", compute=here)
    assert len(new.predictions) == 45 and new.path.is_file()
