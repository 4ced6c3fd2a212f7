"""Recipes: reading, `extends:`, --set, members, and errors that name file, line, key and remedy."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest
from ruamel.yaml import YAML

from manihot.cli import answer
from manihot.errors import SettingsError
from manihot.extras import has_train
from manihot.settings import Blend, Group, Recipe, load_recipe, merge, recipe_names, suggest


@pytest.fixture
def write(tmp_path):
    """Write recipes and give the path of the last one."""

    def write_files(**texts: str) -> Path:
        for name, text in texts.items():
            path = tmp_path / f"{name}.yaml"
            path.write_text(text, encoding="utf-8")
        return path

    return write_files


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def test_defaults_of_an_empty_recipe(write):
    recipe = load_recipe(write(empty=""))
    assert recipe.name == "empty"
    assert recipe.resolved() == Recipe(name="empty").resolved()
    assert recipe.member_recipes() == {"main": recipe}


def test_extends_lays_the_child_over_a_chain_of_parents(write):
    path = write(
        low="description: low\nseed: 7\ntrain: {epochs: 3, batch: 8}\ntta: [{name: full}, {name: centre}]\n",
        middle="extends: low.yaml\ntrain: {batch: 16}\noptimizer: {lr: 0.1}\n",
        top="extends: middle.yaml\noptimizer: {head_lr: 0.2}\ntta: [{name: top_left}]\n",
    )
    recipe = load_recipe(path)
    assert recipe.name == "top"
    assert recipe.description == ""  # says what the parent is, not what the child is
    assert (recipe.seed, recipe.train.epochs, recipe.train.batch) == (7, 3, 16)
    assert (recipe.optimizer.lr, recipe.optimizer.head_lr) == (0.1, 0.2)
    assert [view.name for view in recipe.tta] == ["top_left"]  # lists are replaced whole


def test_extends_a_packaged_recipe(write):
    recipe = load_recipe(write(mine="extends: standard\ntrain: {epochs: 2}\n"))
    assert recipe.train.epochs == 2
    assert recipe.augment == load_recipe("standard").augment
    assert recipe.name == "mine"


def test_a_circle_of_extends_is_refused_however_the_files_are_named(write, tmp_path):
    text = refusal(write(b="extends: a.yaml\n", a=f"extends: ../{tmp_path.name}/b.yaml\n"))
    assert "circle" in text
    assert "a.yaml -> b.yaml -> a.yaml" in text


def test_extends_of_nothing_names_file_line_and_the_nearest_recipe(write):
    text = refusal(write(mine="seed: 1\nextends: standart\n"))
    assert "mine.yaml:2" in text
    assert "did you mean 'standard'" in text


def test_the_name_of_a_suite_says_how_to_see_it(write):
    for path in ("lecture-ablations", write(mine="extends: lecture-ablations\n")):
        with pytest.raises(SettingsError) as caught:
            load_recipe(path)
        assert "'lecture-ablations' is a suite" in str(caught.value)
        assert "manihot suite lecture-ablations --list" in str(caught.value)


def test_a_choice_of_another_name_replaces_the_one_below():
    low = {"loss": {"name": "focal", "gamma": 3}, "train": {"epochs": 1}}
    assert merge(low, {"loss": {"name": "gce"}})["loss"] == {"name": "gce"}
    assert merge(low, {"loss": {"name": "focal", "alpha": 1}})["loss"] == {"name": "focal", "gamma": 3, "alpha": 1}
    assert merge(low, {"loss": {"gamma": 1}})["loss"] == {"name": "focal", "gamma": 1}
    assert low == {"loss": {"name": "focal", "gamma": 3}, "train": {"epochs": 1}}


def test_another_optimizer_keeps_the_settings_below(write):
    low = {"optimizer": {"name": "adam", "lr": 1e-4, "sam": 0.05}}
    assert merge(low, {"optimizer": {"name": "sgd"}}) == {"optimizer": {"name": "sgd", "lr": 1e-4, "sam": 0.05}}
    path = write(
        low="optimizer: {name: adam, lr: 1.0e-4, weight_decay: 1.0e-6, sam: 0.05}\n",
        mine="extends: low.yaml\nstages: [{optimizer: {name: adamp}}, {optimizer: {lr: 1.0e-5}}]\n"
        "members: {a: {optimizer: {name: sgd, sam: 0}}}\n",
    )
    first, second = load_recipe(path).member_recipes()["a"].stage_recipes()
    assert (first.optimizer.name, second.optimizer.name) == ("adamp", "sgd")
    assert (first.optimizer.lr, second.optimizer.lr) == (1e-4, 1e-5)
    assert {(s.optimizer.weight_decay, s.optimizer.sam) for s in (first, second)} == {(1e-6, 0.0)}


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("train.epochs=3", lambda r: r.train.epochs, 3),
        ("optimizer.lr=1e-3", lambda r: r.optimizer.lr, 1e-3),
        ("optimizer.lr=1", lambda r: r.optimizer.lr, 1.0),
        ("model.pretrained=false", lambda r: r.model.pretrained, False),
        ("model.pretrained=a1_in1k", lambda r: r.model.pretrained, "a1_in1k"),
        ("model.taps=[2, 3]", lambda r: r.model.taps, (2, 3)),
        ("photo.size=[128,256]", lambda r: r.photo.size, (128, 256)),
        ("folds.only=[0]", lambda r: r.folds.only, (0,)),
        ("tta.1.flip=v", lambda r: [v.flip for v in r.tta], ["", "v", "v", "hv"]),
        ("loss={name: focal, gamma: 1}", lambda r: r.loss.settings, {"gamma": 1}),
        ("loss.smoothing=0.3", lambda r: r.loss.settings, {"smoothing": 0.3}),
        ("augment=[]", lambda r: r.augment, ()),
        ("augment.1.limit=45", lambda r: r.augment[1].settings["limit"], 45),
        ("description=a=b", lambda r: r.description, "a=b"),
    ],
)
def test_set_changes_one_setting(override, read, value):
    assert read(load_recipe("standard", [override])) == value


def test_later_sets_win():
    assert load_recipe("standard", ["train.epochs=3", "train={epochs: 5}"]).train.epochs == 5


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epoch=3", ["--set train.epoch=3", "unknown setting 'train.epoch'", "did you mean 'epochs'"]),
        ("strength=3", ["unknown setting 'strength'"]),
        ("train.bool=1", ["unknown setting 'train.bool'"]),
        ("train.epochs", ["expected key=value"]),
        ("=3", ["expected key=value"]),
        ("train.epochs=0", ["train.epochs", "greater than or equal to 1", "got 0"]),
        ("train.epochs=true", ["train.epochs", "integer", "got True"]),
        ("train.epochs='3'", ["train.epochs", "integer", "got '3'"]),
        ("train.epochs=[", ["not YAML"]),
        ("train.epochs.x=1", ["--set train.epochs.x=1"]),
        ("train=3", ["--set train=3", "train"]),
        ("tta.9.flip=h", ["no item 9 in a list of 4"]),
        ("tta.-1.flip=h", ["no item -1"]),
        ("tta.9={name: full}", ["no item 9"]),
        ("tta.0.flip=x", ["tta.0.flip", "'h'"]),
        ("tta=[]", ["tta", "at least 1 item"]),
        ("mixing.0.name=mixup", ["no item 0 in a list of 0", "mixing"]),
        ("model.taps=[0]", ["model.taps.0", "greater than or equal to 1"]),
        ("members.a.seed=x", ["seed", "integer"]),
        ("members.a.name=b", ["member 'a' can't set 'name'"]),
        ("members={a/b: {}}", ["member name 'a/b'", "letters, digits"]),
    ],
)
def test_a_wrong_set_is_explained(write, override, words):
    path = write(mine="extends: standard\nmixing: []\n")
    text = refusal(path, override)
    for word in words:
        assert word in text, text


def test_set_of_an_item_of_a_list_that_is_not_there(write):
    text = refusal(write(mine="seed: 1\n"), "tta.0.flip=h")
    assert "--set tta.0.flip=h" in text
    assert "tta=[" in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\ntrain:\n  batch: 4\n  epochs: many\n", ["mine.yaml:4: train.epochs", "integer", "'many'"]),
        ("seed: 1\ntrian: {}\n", ["mine.yaml:2: unknown setting 'trian'", "did you mean 'train'"]),
        ("train:\n  epochs: 2\n  strenght: 1\n", ["mine.yaml:3: unknown setting 'train.strenght'"]),
        ("tta:\n  - {name: full}\n  - {name: full,\n     flop: h}\n", ["mine.yaml:4", "tta.1.flop", "'flip'"]),
        ("optimizer: {lr: 0}\nfolds: {n: 1}\n", ["mine.yaml:1: optimizer.lr", "mine.yaml:2: folds.n"]),
        ("photo: {size: [1, a]}\n", ["mine.yaml:1: photo.size", "integer"]),
        ("model: {pretrained: 3}\n", ["mine.yaml:1: model.pretrained"]),
        ("seed: [1\n", ["mine.yaml:2", "not valid YAML"]),
        ("seed: 1\nseed: 2\n", ["mine.yaml:2", "not valid YAML", "seed"]),
        ("seed: \x01\n", ["mine.yaml", "not valid YAML"]),
        ("- 1\n- 2\n", ["mine.yaml", "a mapping of settings"]),
        ("members:\n  a: {}\n  b:\n    folds: {n: 3}\n", ["mine.yaml:4", "member 'b' can't set 'folds'"]),
        ("members:\n  a:\n    train: {epochs: x}\n", ["mine.yaml:3: train.epochs"]),
        ("members:\n  a:\n    trian: {}\n", ["mine.yaml:3: unknown setting 'trian'"]),
    ],
)
def test_errors_name_file_line_key_and_remedy(write, text, words):
    said = refusal(write(mine=text))
    for word in words:
        assert word in said, said
    assert "{'" not in said  # never the whole recipe


def test_errors_in_a_parent_name_the_parent(write):
    text = refusal(write(low="seed: 1\nfolds: {n: one}\n", mine="extends: low.yaml\nseed: 2\n"))
    assert "low.yaml:2: folds.n" in text


def test_a_file_that_is_no_text_and_a_recipe_that_is_not_there(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "not readable" in refusal(path)
    assert "there is no recipe" in refusal(tmp_path / "absent.yaml")
    with pytest.raises(SettingsError, match="did you mean 'quick'"):
        load_recipe("quik")


def test_anchors_may_be_merged_in(write):
    path = write(mine="train: &t {epochs: 2}\nmembers:\n  a:\n    train:\n      <<: *t\n      batch: 8\n")
    member = load_recipe(path).member_recipes()["a"]
    assert (member.train.epochs, member.train.batch) == (2, 8)


def test_members_lay_their_changes_over_the_recipe(write):
    path = write(
        mine="seed: 3\nloss: {name: focal, gamma: 1}\ntrain: {epochs: 9}\nmembers:\n"
        "  one: {seed: 4}\n  two:\n    loss: {name: gce}\n    train: {batch: 4}\n"
    )
    recipe = load_recipe(path)
    members = recipe.member_recipes()
    assert list(members) == ["one", "two"]
    assert (members["one"].seed, members["one"].loss.name, members["one"].train.epochs) == (4, "focal", 9)
    assert (members["two"].seed, members["two"].train.epochs, members["two"].train.batch) == (3, 9, 4)
    assert (members["two"].loss.name, members["two"].loss.settings) == ("gce", {})
    assert members["one"].members == {}
    assert recipe.where("members", "two", "train", "batch") == f"{path}:8"
    assert recipe.where("train", "epochs") == f"{path}:3"
    assert recipe.where("optimizer", "lr") == "mine"


def test_where_names_the_set_that_changed_a_key():
    assert load_recipe("standard", ["train.epochs=3"]).where("train", "epochs") == "--set train.epochs=3"


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("trian.epochs=3", "--set trian.epochs=3: unknown setting 'trian'"),
        ("members.a.trian.epochs=3", "--set members.a.trian.epochs=3: unknown setting 'trian'"),
        ("features.batch=many", "--set features.batch=many: features.batch"),
    ],
)
def test_a_wrong_set_is_the_place_of_its_error(write, override, place):
    assert refusal(write(mine="extends: standard\n"), override).startswith(place)


def test_a_set_below_a_group_of_a_file_is_named_with_it(write):
    path = write(mine="extends: standard\nloss: {name: focal}\n")
    recipe = load_recipe(path, ["optimizer.name=adamq", "loss.gamma=-1", "augment.0.scale=[2, 3]", "train.epochs=2"])
    assert recipe.where("optimizer") == "--set optimizer.name=adamq"
    assert recipe.where("optimizer", "lr").endswith("standard.yaml:20")
    assert recipe.where("loss") == f"{path}:2, with --set loss.gamma=-1"
    assert recipe.where("augment").endswith(", with --set augment.0.scale=[2, 3]")
    assert recipe.where("schedule").endswith("standard.yaml:21")


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("features: {batch: many}", "features.batch takes a whole number, for example 32"),
        ('seed: "3"', "seed takes a whole number, without quotes, for example 0"),
        ("optimizer: {lr: fast}", "optimizer.lr takes a number, for example 0.001"),
        ("optimizer: {head_lr: fast}", "optimizer.head_lr takes a number"),
        ("refit: 3", "refit takes true or false"),
        ("train: {precision: fp8}", "train.precision takes one of 'auto', 'fp32', 'bf16', 'fp16', for example auto"),
        ("features: {c: 0.1}", "features.c takes a list, each a number, for example [0.001, 0.003, 0.01, 0.03]"),
        ("features: {c: [0.1, x]}", "features.c.1 takes a number, for example 0.003"),
        ("model: {tiles: [1, 0]}", "model.tiles.1 takes a whole number, for example 1"),
        ("photo: {size: big}", "photo.size takes one of 'auto' or a list of 2, each a whole number, for example auto"),
        ("model: {pretrained: 3}", "model.pretrained takes true or false or a text, for example embedded"),
        ("loss: focal", "loss takes a technique, {name: ...}, for example {name: cross_entropy}"),
        ("train: 3", "train takes a group of settings, {key: value}"),
        ("tta: [{flip: 3}]", "tta.0.flip takes one of '', 'h', 'v', 'hv'"),
        ("members: {a: {train: {epochs: x}}}", "train.epochs takes a whole number, for example 12"),
        ("blend: {weights: {a: x}}", ""),
    ],
)
def test_a_wrong_value_is_told_what_the_setting_takes(write, text, remedy):
    said = refusal(write(mine=text))
    assert said.endswith(f"remedy: {remedy}") if remedy else "remedy" not in said, said


def test_suggest_offers_the_nearest_or_all():
    assert suggest("adamww", ["adamw", "sgd"]) == "did you mean 'adamw'?"
    assert suggest("zzz", ["sgd", "adamw"]) == "one of: adamw, sgd"


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_passes_its_check_and_is_described(name):
    recipe = load_recipe(name)
    if has_train() and find_spec("lightgbm") is not None:
        from manihot.train.check import check_recipe

        check_recipe(recipe)
    else:  # some blends need more than the core
        from manihot.members.check import check_recipe as check_without_torch

        check_without_torch(recipe.model_copy(update={"blend": Blend()}))
    assert recipe.description
    assert recipe.name == name


@pytest.mark.parametrize("name", recipe_names())
def test_what_recipes_show_prints_is_the_same_recipe(name, write, capsys):
    assert answer(["recipes", "show", name]) == 0
    again = load_recipe(write(saved=capsys.readouterr().out))
    assert again.resolved() == load_recipe(name).resolved()


def test_small_rates_and_members_survive_being_shown(write):
    recipe = load_recipe("standard", ["optimizer.lr=1.5e-7", "members={a: {seed: 4}, b: {loss: {name: gce}}}"])
    path = write(empty="")
    with open(path, "w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(recipe.resolved(), file)
    assert load_recipe(path).resolved() == recipe.resolved()


SELF_EVIDENT = {
    "Folds.kind",
    "Model.pooling",
    "Model.dropout",
    "Optimizer.name",
    "Train.epochs",
    "Train.batch",
    "Train.accumulate",
    "Train.channels_last",
    "Train.monitor",
    "Features.batch",
    "View.name",
    "View.flip",
    "View.transpose",
    "View.weight",
    *(
        f"Recipe.{key}"
        for key in (
            "name",
            "description",
            "method",
            "seed",
            "folds",
            "photo",
            "model",
            "augment",
            "mixing",
            "loss",
            "optimizer",
            "schedule",
            "averaging",
            "train",
            "features",
            "tta",
            "members",
        )
    ),
}


def test_every_setting_is_described_or_self_evident():
    groups = [*Group.__subclasses__()]
    assert Recipe in groups
    bare = {
        f"{group.__name__}.{key}"
        for group in groups
        for key, field in group.model_fields.items()
        if not field.description
    }
    assert bare <= SELF_EVIDENT, f"describe {sorted(bare - SELF_EVIDENT)}"
    assert all(group.__doc__ for group in groups)
    assert get_args(Recipe.model_fields["method"].annotation) == ("features", "finetune")
