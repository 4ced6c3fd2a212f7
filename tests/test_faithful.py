"""Figures of the lecture's systems, written out with the place they come from.

"Notebook NN" is code/NN of the lecture team's repository (github.com/choco9966/Cassava-Leaf-Disease-Classification,
Apache-2.0); "the lecture" the slides on Cassava 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from manihot.augment.augmenter import AUGMENTS, Augmenter
from manihot.settings import Choice, Recipe, load_recipe, recipe_names
from manihot.suites.format import load_suite
from manihot.train.data.unlabelled import STRONG
from manihot.train.optim.averaging import first_averaged
from manihot.train.optim.losses import make_loss
from manihot.train.optim.schedules import step_factor

SHAPE = (512, 512)
GRID = {"period": pytest.approx(1 / 3), "ratio": 0.5, "rotate": 0}
BOXES = {"holes_count": [8, 8], "edge": 8}


def members(name: str) -> dict[str, Recipe]:
    return load_recipe(name).member_recipes()


def augments(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Every augmentation of all stages, those inside one_of too."""
    for stage in recipe.stage_recipes():
        for one in stage.augment:
            yield {"name": one.name, **one.settings}
            yield from one.settings.get("choices", ())


def named(recipe: Recipe, name: str) -> list[dict[str, Any]]:
    return [one for one in augments(recipe) if one["name"] == name]


def hidden(settings: dict[str, Any]) -> list[float]:
    """Share of a white picture of 512 x 512 that is painted over, in 30 draws."""
    augmenter = Augmenter([Choice(**{**settings, "p": 1.0})], SHAPE, 0, 1)
    white = np.full((*SHAPE, 3), 255, np.uint8)
    return [float((augmenter(white, 0, index)[0] != 255).any(axis=2).mean()) for index in range(30)]


# lecture-base: notebook 01, CFG and get_train_transforms


def test_gridmask_has_three_cells_a_side_and_hides_a_quarter():
    (grid,) = named(load_recipe("lecture-effb4"), "grid_mask")
    assert {**grid, "name": "", "p": 0} == {"name": "", "p": 0, "fill": 115, **GRID}
    assert grid["p"] == 0.5 and "strength" not in grid
    assert hidden(grid) == pytest.approx([0.25] * 30, abs=0.01)


def test_coarse_dropout_is_eight_boxes_of_eight_pixels():
    (boxes,) = named(load_recipe("lecture-effb4"), "coarse_dropout")
    assert boxes == {"name": "coarse_dropout", "p": 0.5, "fill": 115, **BOXES}
    shares = hidden(boxes)
    assert max(shares) == 8 * 64 / 512**2  # boxes may overlap
    assert min(shares) > 7 * 64 / 512**2


def test_other_strengths_of_notebook_01():
    recipe = load_recipe("lecture-effb4")
    (colour,), (light,) = named(recipe, "hue_saturation_value"), named(recipe, "brightness_contrast")
    assert (colour["hue"], colour["saturation"], colour["value"]) == (0.4, 0.001, 0.2)  # .2 of 180, of 255, of 255
    assert (light["brightness"], light["contrast"]) == (0.1, 0.1)
    assert [one["name"] for one in augments(recipe)] == [
        "random_resized_crop",
        "transpose",
        "horizontal_flip",
        "vertical_flip",
        "shift_scale_rotate",
        "hue_saturation_value",
        "brightness_contrast",
        "coarse_dropout",
        "grid_mask",
    ]
    assert (recipe.train.epochs, recipe.train.batch, recipe.train.accumulate) == (10, 16, 2)
    assert (recipe.loss.settings["smoothing"], recipe.loss.settings["smoothing_over"]) == (0.2, "K-1")


# lecture-fixmatch: notebook 10


def test_fixmatch_averages_four_epochs_after_its_rate_has_fallen():
    for recipe in (load_recipe("lecture-fixmatch"), members("lecture-avengers")["fixmatch"]):
        assert first_averaged(recipe.train.epochs, **recipe.averaging.settings) == 3  # 3, 4, 5, 6: "CusSwa4"
        steps = 100
        rates = [
            recipe.optimizer.lr * step_factor(step, recipe.schedule, recipe.train.epochs, steps)
            for step in range(7 * steps)
        ]
        assert rates[0] == pytest.approx(4e-4)
        assert rates[150] == pytest.approx((4e-4 + 3e-5) / 2, rel=1e-3)  # the middle of three epochs
        assert rates[299] > 3.0001e-5 and rates[300:] == pytest.approx([3e-5] * 400, rel=1e-4)
        assert (recipe.train.epochs, recipe.train.batch, recipe.train.accumulate) == (7, 9, 2)
        assert recipe.step.settings["threshold"] == 0.85 and recipe.step.settings["mu"] == 2
        assert not recipe.model.freeze_norm


def test_fixmatch_and_vit_draw_one_of_three_and_the_vit_loses_boxes_twice():
    """Notebooks 07 and 10, get_train_transforms; CenterCrop of 600 x 800 pixels in shares of the largest square."""
    fixmatch = [load_recipe("lecture-fixmatch"), members("lecture-avengers")["fixmatch"]]
    vits = [*members("lecture-vit").values(), *members("lecture-vit-2019").values()]
    vits.append(members("lecture-avengers")["vit-relabel"])
    for recipe in (*fixmatch, *vits):
        size = recipe.photo.size[0]
        drawn = recipe.augment[0]
        assert drawn.name == "one_of" and drawn.settings["p"] == 1.0
        share = pytest.approx(size / 600, abs=5e-4)
        assert drawn.settings["choices"] == [
            {"name": "resize"},
            {"name": "center_crop", "share": share},
            {"name": "random_resized_crop"},
        ]
        assert [view.scale for view in recipe.tta] == [share] * 2
        assert len(named(recipe, "coarse_dropout")) == (1 if size == 512 else 2)
        assert all(
            one == {"name": "coarse_dropout", "p": 0.5, "fill": 115, **BOXES} for one in named(recipe, "coarse_dropout")
        )
    for recipe in fixmatch:  # RandomCrop(512, padding=64, padding_mode="reflect"): a square, an eighth beyond the edge
        for kind in ("weak", "strong"):
            names = [one["name"] for one in recipe.step.settings[kind]]
            assert names[:3] == ["horizontal_flip", "random_crop", "shift_scale_rotate"]
            assert recipe.step.settings[kind][2]["shift"] == 64 / 512
        assert tuple(recipe.step.settings["strong"][3:]) == STRONG[2:]


def test_the_strong_view_is_two_operations_and_a_grey_square_of_half_the_edge():
    *_, first, second, square = STRONG
    assert first == second == {"name": "rand_augment", "n": 1, "p": 0.5, "magnitude": [1.0, 9.0]}  # of RandAugmentMC
    assert square == {"name": "cutout", "p": 1.0, "share": 0.5, "fill": 127}
    assert max(hidden(square)) == pytest.approx(0.25, abs=0.01)


def test_magnitudes_of_randaugment_are_drawn_evenly():
    turns = []
    augmenter = Augmenter([Choice(name="rand_augment", n=1, magnitude=[1, 9])], (64, 64), 0, 1)
    for index in range(3000):
        notes = augmenter.explain(np.zeros((64, 64, 3), np.uint8), 0, index)[1]
        turns += [abs(drawn["degrees"]) for name, drawn in notes if name == "rotate"]
    assert 3 <= min(turns) < 5 and 25 < max(turns) <= 27  # 30 degrees at magnitude 10
    assert np.mean(turns) == pytest.approx(15, abs=1.5)


# lecture-vit: notebook 07; RegNetY: notebooks 04 and 05


def test_the_vit_starts_again_at_its_eleventh_epoch():
    learners = [*members("lecture-vit").values(), *members("lecture-vit-2019").values()]
    for recipe in (*learners, members("lecture-avengers")["vit-relabel"]):
        assert (recipe.train.epochs, recipe.schedule.settings["period"]) == (11, 10)
        assert step_factor(1000, recipe.schedule, 11, 100) == 1.0
        assert (recipe.loss.settings["smoothing"], recipe.loss.settings["smoothing_over"]) == (0.3, "K")
        assert (recipe.train.batch, recipe.train.accumulate) == (8, 2)


def test_regnety_learns_20_epochs_and_averages_from_the_third_on():
    alone = [load_recipe(f"lecture-{name}") for name in ("regnety40", "regnety40-2019", "regnety80")]
    others = [
        recipe
        for name in ("lecture-avengers", "lecture-lb-best", "lecture-distill")
        for recipe in members(name).values()
        if recipe.model.backbone.startswith("regnety_040")
    ]
    assert len(others) == 4 + 3 + 2
    for recipe in (*alone, *others):
        assert (recipe.train.epochs, recipe.train.batch, recipe.train.accumulate) == (20, 24, 1)
        assert first_averaged(20, **recipe.averaging.settings) == 2  # swa_start = 2 epochs of steps, counted from 0


# The competition's solutions, as the lecture prints them


@pytest.mark.parametrize("name", [f"cassava2020-{place}" for place in ("07a", "08", "28", "37", "77")])
def test_plain_hue_saturation_value_turns_by_20_of_180(name: str):
    found = [one for recipe in members(name).values() for one in named(recipe, "hue_saturation_value")]
    assert found and all("hue" not in one for one in found)
    assert AUGMENTS["hue_saturation_value"]().hue == (-40.0, 40.0)


@pytest.mark.parametrize(("name", "times"), [("08", 1), ("25", 2), ("28", 1), ("37", 2), ("77", 2)])
def test_where_the_class_alone_is_named_boxes_are_those_of_its_default(name: str, times: int):
    for recipe in members(f"cassava2020-{name}").values():
        stages = len(recipe.stage_recipes())
        found = named(recipe, "coarse_dropout")
        assert len(found) == times * stages
        assert all(BOXES.items() <= one.items() for one in found)
        assert not named(recipe, "cutout")


def test_boxes_of_the_first_places_vit():
    found = named(members("cassava2020-01")["vit"], "coarse_dropout")
    assert len(found) == 2 and all(BOXES.items() <= one.items() and one["fill"] == 115 for one in found)


def test_optical_distortion_of_the_18th_place_moves_the_corner_as_opencv_does():
    for recipe in members("cassava2020-18").values():
        (lens,) = named(recipe, "optical_distortion")
        r2 = 0.5  # of the corner, in edges from the middle
        assert lens["k"] == 1.0 * r2 + 1.0 * r2**2


def test_the_606th_place_searched_the_whole_simplex_for_accuracy():
    assert load_recipe("cassava2020-606").blend.method == "differential_evolution"


# The suite


def test_the_suite_asks_networks_that_learned_the_views():
    suite = load_suite("lecture-ablations")
    recipes = suite.recipe.member_recipes()
    learned = {one.name for one in recipes["heroseo"].augment}
    assert {"transpose", "horizontal_flip", "vertical_flip"} <= learned
    looks = [name for name in suite.arms if name.startswith("tta-")]
    assert len(looks) == 6 and all(suite.arms[name].of == "heroseo" for name in looks)
    assert suite.arms["tta-flips"].against == "heroseo"
    for name in looks:
        for view in recipes[name].tta:
            if view.name in ("one_of", "random_resized"):
                assert view.least == 0.08  # RandomResizedCrop's scale (.08, 1)
            if view.name == "random_resized":
                assert view.scale == 1.0


def test_the_suites_boxes_and_grid_are_the_teams():
    recipes = load_suite("lecture-ablations").recipe.member_recipes()
    (grid,) = named(recipes["gridmask"], "grid_mask")
    assert hidden(grid) == pytest.approx([0.25] * 30, abs=0.01)
    (boxes,) = named(recipes["blur-transpose-dropout"], "coarse_dropout")
    assert max(hidden(boxes)) == 8 * 64 / 512**2


def notebook_focal(logits: Tensor, target: Tensor) -> Tensor:
    """The linked notebook's: the mean cross-entropy L of a batch, times (1 - exp(-L))^2."""
    loss = nn.functional.cross_entropy(logits, target)
    return (1 - (-loss).exp()) ** 2 * loss


def notebook_sce(logits: Tensor, target: Tensor) -> Tensor:
    """The linked notebook's: .1 CE + 1 "RCE", whose logarithm is of the prediction."""
    onehot = nn.functional.one_hot(target, 5)
    reverse = (-onehot * logits.softmax(1).clamp(1e-7, 1.0).log()).sum(1).mean()
    return 0.1 * nn.functional.cross_entropy(logits, target) + reverse


@pytest.mark.parametrize(
    ("arm", "computed", "proper"),
    [("focal-notebook", notebook_focal, "focal"), ("symmetric-ce-notebook", notebook_sce, "symmetric-ce")],
)
def test_the_suite_has_what_the_linked_notebook_computed_beside_the_proper_losses(
    arm: str, computed: Callable[[Tensor, Tensor], Tensor], proper: str
):
    recipes = load_suite("lecture-ablations").recipe.member_recipes()
    torch.manual_seed(0)
    logits, target = torch.randn(64, 5, dtype=torch.float64, requires_grad=True), torch.randint(0, 5, (64,))
    losses = [make_loss(recipes[name].loss.name, recipes[name].loss.settings, classes=5) for name in (arm, proper)]
    ours, other = (loss(logits, target) for loss in losses)
    theirs = computed(logits, target)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    slopes = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    assert torch.allclose(*slopes, rtol=1e-5)
    assert abs(other.item() - theirs.item()) > 0.01


def test_headers_cite_the_repository_where_settings_come_from_it():
    from importlib import resources

    folder = resources.files("manihot.recipes")
    for name in ("lecture-base", "lecture-fixmatch", "lecture-vit", "lecture-regnety40", "suites/lecture-ablations"):
        text = folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
        assert "github.com/choco9966/Cassava-Leaf-Disease-Classification" in text, name
    assert "lecture-fixmatch" in recipe_names()
