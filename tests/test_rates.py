"""The optimiser, rates and weight decay that every network of the lecture's systems learns with, written out.

A setting lost on the way from a base to a member or stage would change nothing that else is looked at.
"""

from __future__ import annotations

from inspect import signature

import pytest

from manihot.settings import Recipe, load_recipe, recipe_names
from manihot.train.optim.schedules import SCHEDULES

# recipe | members | stages | optimiser | rate | weight decay | SAM's radius | schedule | lowest rate
TABLE = """
cassava2019-01 | all | 1 | adam | 0.0002 | 1e-06 | 0 | cosine | 0
cassava2019-02 | all | 1 | adam | 0.0002 | 1e-06 | 0 | cosine | 0
cassava2019-03 | all | 1 2 | adam | 0.0001 | 1e-06 | 0 | cosine | 0
cassava2020-01 | resnext50 mobilenet | 1 | adam | 0.0001 | 1e-06 | 0 | plateau | 0
cassava2020-01 | vit | 1 | adam | 1.43e-05 | 1e-06 | 0 | cosine_restarts | 0.0001
cassava2020-01 | effb4 | 1 | adam | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
cassava2020-02 | all | 1 | adam | 0.0001 | 1e-06 | 0 | plateau | 0
cassava2020-03 | all | 1 | adam | 0.0001 | 1e-06 | 0 | inverse_epoch | -
cassava2020-05 | all | 1 | adam | 0.0001 | 1e-06 | 0 | plateau | 0
cassava2020-07a | all | 1 | adam | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
cassava2020-07c | all | 1 | adam | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
cassava2020-07d | all | 1 | adam | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
cassava2020-07b | all | 1 | adam | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
cassava2020-08 | effb6 | 1 | adamp | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
cassava2020-08 | resnest50 | 1 | ranger | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
cassava2020-08 | vit | 1 | adamw | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
cassava2020-14 | all | 1 | adam | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
cassava2020-17 | all | 1 | adam | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
cassava2020-18 | all | 1 | adam | 0.0001 | 1e-06 | 0.05 | cosine | 0
cassava2020-18 | all | 2 | adamp_nesterov | 0.0001 | 1e-06 | 0.05 | cosine | 0
cassava2020-18 | all | 3 | adamp_nesterov | 1e-05 | 1e-06 | 0.05 | constant | -
cassava2020-25 | all | 1 | adamp | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
cassava2020-25 | all | 2 | adamp | 1e-05 | 1e-06 | 0 | cosine_restarts | 1e-07
cassava2020-28 | all | 1 | adam | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
cassava2020-30 | all | 1 | adam | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
cassava2020-34 | all | 1 | adam | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
cassava2020-37 | resnet50d resnext50 | 1 | adamw | 0.0005 | 1e-06 | 0 | cosine_restarts | 5e-06
cassava2020-37 | ecaresnet50d resnest50-1s4x24d regnety32 | 1 | adamw | 0.0005 | 1e-06 | 0 | cosine_restarts | 5e-06
cassava2020-37 | resnet101d resnext101 | 1 | adamw | 0.00025 | 1e-06 | 0 | cosine_restarts | 2.5e-06
cassava2020-37 | ecaresnet101d resnest101 regnety80 | 1 | adamw | 0.00025 | 1e-06 | 0 | cosine_restarts | 2.5e-06
cassava2020-40 | all | 1 | adamw | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
cassava2020-45 | all | 1 | adam | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
cassava2020-606b | all | 1 | radam | 0.0001 | 1e-06 | 0 | cosine | 1e-06
cassava2020-606 | all | 1 | radam | 0.0001 | 1e-06 | 0 | cosine | 1e-06
cassava2020-77 | first | 1 | adam | 0.0001 | 1e-06 | 0 | cosine | 1e-06
cassava2020-77 | effb4 effb3 vit-base-384 resnext50 vit-small-224 | 2 | adam | 0.0001 | 1e-06 | 0 | cosine | 1e-06
cassava2020-77 | effb4 effb3 | 1 | adam | 2e-05 | 1e-06 | 0 | cosine_restarts | 3e-05
cassava2020-77 | vit-base-384 resnext50 vit-small-224 | 1 | adam | 2e-05 | 1e-06 | 0 | cosine_restarts | 3e-05
cassava2020-78 | effb5-a seresnext50-a xception densenet121 | 1 2 | ranger | 0.001 | 1e-06 | 0 | one_cycle | 4e-09
cassava2020-78 | effb5-b seresnext50-b | 1 2 | adamw | 0.001 | 1e-06 | 0 | one_cycle | 4e-09
cassava2020-78 | effb1 resnext50 | 1 | adamp | 0.0005 | 1e-06 | 0 | one_cycle | 2e-09
cassava2020-78 | public-effb4 public-resnext50 | 1 | adam | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
heroseo | all | 1 | radam | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
heroseo | effb3-relabelled resnext50-relabelled | 2 | radam | 1e-05 | 1e-06 | 0 | cosine | 0
lecture-avengers | effb4-2020-719 | 1 | adam | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
lecture-avengers | effb4-2020-720 effb4-2019-dedup | 1 | adam | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
lecture-avengers | regnety40-2020 regnety40-2019-dedup | 1 | adamp | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
lecture-avengers | regnety40-2020-nofold | 1 | adamp | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
lecture-avengers | vit-relabel distill nfnet | 1 | adamp | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
lecture-avengers | fixmatch | 1 | adamp | 0.0004 | 1e-06 | 0 | cosine | 3e-05
lecture-distill | all | 1 | adamp | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
lecture-effb4 | all | 1 | adam | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
lecture-effb4-2019 | all | 1 | adam | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
lecture-fixmatch | all | 1 | adamp | 0.0004 | 1e-06 | 0 | cosine | 3e-05
lecture-lb-best | effb4-2020-719 | 1 | adam | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
lecture-lb-best | effb4-2020-720 effb4-2019-dedup | 1 | adam | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
lecture-lb-best | regnety40-2020 | 1 | adamp | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
lecture-lb-best | regnety40-2019-dedup regnety40-2020-nofold | 1 | adamp | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
lecture-nfnet | all | 1 | adamp | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
lecture-regnety40 | all | 1 | adamp | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
lecture-regnety40-2019 | all | 1 | adamp | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
lecture-regnety80 | all | 1 | adamp | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
lecture-vit | all | 1 | adamp | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
lecture-vit-2019 | all | 1 | adamp | 0.0001 | 1e-06 | 0 | cosine_restarts | 1e-06
plantpath2020-01 | all | 1 | adamw | 0.0001 | 0.01 | 0 | cosine | 0
plantpath2020-02 | all | 1 2 | adamw | 0.0001 | 0.01 | 0 | cosine | 0
plantpath2020-03 | all | 1 | adamw | 0.0001 | 0.01 | 0 | cosine | 0
plantpath2020-04 | all | 1 2 | adamw | 0.0001 | 0 | 0 | cosine | 0
plantpath2020-05 | all | 1 2 | adamw | 0.0001 | 0.01 | 0 | cosine | 0
plantpath2020-07 | all | 1 2 | adamw | 0.0001 | 0.01 | 0 | cosine | 0
plantpath2020-11 | all | 1 2 | sgd | 0.01 | 0.0001 | 0 | cosine | 0
"""
FAMILIES = ("lecture-", "cassava2020-", "cassava2019-", "plantpath2020-", "heroseo")
SYSTEMS = [name for name in recipe_names() if name.startswith(FAMILIES)]


def told(stage: Recipe) -> tuple[str, ...]:
    """What a row of the table says of a stage."""
    own = stage.optimizer
    default = signature(SCHEDULES[stage.schedule.name]).parameters.get("floor")
    floor = stage.schedule.settings.get("floor", default.default if default else None)
    lowest = "-" if floor is None else f"{own.lr * floor:.3g}"
    rates = (f"{value:.3g}" for value in (own.lr, own.weight_decay, own.sam))
    return own.name, *rates, stage.schedule.name, lowest


def rows(recipe: str, members: list[str]) -> dict[tuple[str, int], tuple[str, ...]]:
    """The table's words for each member and stage of a recipe."""
    out: dict[tuple[str, int], tuple[str, ...]] = {}
    for line in TABLE.strip().splitlines():
        name, who, stages, *words = line.split(" | ")
        if name != recipe:
            continue
        for member in members if who == "all" else who.split():
            for stage in stages.split():
                assert (member, int(stage)) not in out, line
                out[member, int(stage)] = tuple(words)
    return out


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_network_learns_as_the_table_says(name: str):
    members = load_recipe(name).member_recipes()
    found = {
        (member, number): told(stage)
        for member, recipe in members.items()
        for number, stage in enumerate(recipe.stage_recipes(), 1)
    }
    assert found == rows(name, list(members))


def test_the_table_names_systems_alone():
    assert {line.split(" | ")[0] for line in TABLE.strip().splitlines()} == set(SYSTEMS)


@pytest.mark.parametrize("name", ["lecture-effb4", "cassava2020-606"])
def test_another_optimizer_by_override_keeps_the_rates(name: str):
    before = load_recipe(name).optimizer
    assert before.weight_decay == 1e-6
    after = load_recipe(name, ["optimizer.name=adamp"]).optimizer
    assert after == before.model_copy(update={"name": "adamp"})
    assert load_recipe(name, ["optimizer={name: adamp}"]).optimizer == after
