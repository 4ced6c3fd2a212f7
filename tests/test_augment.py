"""Augmentations: the contract every row of AUGMENTS keeps, exactness of fused operations, schedules."""

from __future__ import annotations

import io
import pickle
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from manihot.augment.augmenter import AUGMENTS, Augmenter, apply_colour, as_input, build_ops
from manihot.augment.canvas import Canvas, Op
from manihot.augment.erase import grid_mask
from manihot.augment.filters import find_superpixels
from manihot.errors import DataError, SettingsError
from manihot.photos.preprocess import Preprocess, Unresized, resize
from manihot.settings import Choice, load_recipe
from manihot.train.runners import Normalise

NESTED: dict[str, dict[str, Any]] = {
    "one_of": {"choices": [{"name": "rotate"}, {"name": "rgb_shift"}]},
    "compose": {"choices": [{"name": "rotate", "p": 1.0}, {"name": "rgb_shift", "p": 1.0}]},
}
SHAPES = {"landscape": (90, 120), "tall": (200, 20), "wide": (20, 200), "tiny": (8, 8), "one pixel": (1, 1)}


def leafy(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth coloured picture, so that sampling between pixels can be compared."""
    rng = np.random.default_rng(seed)
    small = rng.integers(30, 226, (5, 6, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def choice(name: str, **settings: Any) -> Choice:
    return Choice(name=name, **{**NESTED.get(name, {}), **settings})


def augment(*choices: Choice, size: tuple[int, int] = (64, 48), seed: int = 3, epochs: int = 10) -> Augmenter:
    return Augmenter(choices, size, seed, epochs)


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_operation_keeps_the_contract(name: str, shape: str) -> None:
    photo = leafy(*SHAPES[shape])
    if shape == "wide":  # the same level in all channels: a grey photograph
        photo = np.repeat(photo[:, :, :1], 3, axis=2)
    before = photo.copy()
    augmenter = augment(choice(name, p=1.0))
    again = pickle.loads(pickle.dumps(augmenter))
    for index in range(3):
        pixels, matrix = augmenter(photo, epoch=1, index=index)
        assert pixels.shape == (64, 48, 3) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
        assert matrix.shape == (3, 4) and matrix.dtype == np.float32 and np.isfinite(matrix).all()
        for same, same_matrix in (augmenter(photo, 1, index), again(photo, 1, index)):
            assert np.array_equal(same, pixels) and np.array_equal(same_matrix, matrix)
    assert np.array_equal(photo, before)
    assert not np.shares_memory(pixels, photo)


@pytest.mark.parametrize("name", AUGMENTS)
def test_every_operation_does_something_but_nothing_at_p_0(name: str) -> None:
    photo = leafy(90, 120)
    plain = resize(photo, (64, 48))
    pixels, matrix = augment(choice(name, p=0.0))(photo, 0, 0)
    assert np.array_equal(pixels, plain) and np.array_equal(matrix, np.eye(3, 4, dtype=np.float32))
    if name != "resize":
        seen = [apply_colour(*augment(choice(name, p=1.0))(photo, 1, index)) for index in range(8)]
        assert any(not np.array_equal(picture, plain) for picture in seen)


@pytest.mark.parametrize("name", AUGMENTS)
def test_every_setting_says_what_it_is(name: str) -> None:
    assert AUGMENTS[name].__doc__ and AUGMENTS[name].__doc__ != Op.__doc__
    assert all(field.description for field in AUGMENTS[name].model_fields.values())


def test_another_epoch_photograph_or_seed_draws_anew() -> None:
    photo, rotate = leafy(90, 120), choice("rotate", p=1.0)
    first = augment(rotate)(photo, 0, 0)[0]
    for seed, epoch, index in ((3, 1, 0), (3, 0, 1), (4, 0, 0)):
        assert not np.array_equal(augment(rotate, seed=seed)(photo, epoch, index)[0], first)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"name": "rotat"}, "did you mean 'rotate'"),
        ({"name": "rotate", "limt": 3}, "did you mean 'limit'"),
        ({"name": "rotate", "p": 1.5}, "rotate, p"),
        ({"name": "rotate", "limit": [9, 3]}, "larger than the second"),
        ({"name": "random_erasing", "ratio": [0, 2]}, "above 0"),
        ({"name": "rotate", "strength": [[0.5, 1], [0.2, 0]]}, "must rise"),
        ({"name": "one_of", "choices": [{"name": "rotat"}]}, "did you mean 'rotate'"),
        ({"name": "one_of", "choices": [{"name": "rotate", "limt": 3}]}, "did you mean 'limit'"),
        ({"name": "one_of", "choices": "rotate"}, "list of operations"),
    ],
)
def test_mistakes_are_found_before_training(bad: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        augment(Choice(**bad))


def test_other_than_uint8_rgb_is_refused() -> None:
    for wrong in (np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.float32), np.zeros((0, 9, 3), np.uint8)):
        with pytest.raises(DataError, match="photograph 7"):
            augment()(wrong, 0, 7)


def test_quarter_turns_flips_and_transpose_are_exact() -> None:
    photo = leafy(48, 48)
    for name, exact in (
        ("horizontal_flip", photo[:, ::-1]),
        ("vertical_flip", photo[::-1]),
        ("transpose", photo.transpose(1, 0, 2)),
    ):
        assert np.array_equal(augment(choice(name, p=1.0), size=(48, 48))(photo, 0, 0)[0], exact)
        twice = augment(choice(name, p=1.0), choice(name, p=1.0), size=(48, 48))(photo, 0, 0)[0]
        assert np.array_equal(twice, photo)
    turned = {augment(choice("rotate90", p=1.0), size=(48, 48))(photo, 0, i)[0].tobytes() for i in range(20)}
    assert turned == {np.rot90(photo, k).tobytes() for k in (1, 2, 3)}
    for k in (1, 2, 3):  # a rotation by so many degrees is the same as k quarter turns
        rotate = choice("rotate", p=1.0, limit=[90 * k, 90 * k])
        pixels = augment(rotate, size=(48, 48))(photo, 0, 0)[0]
        assert np.abs(pixels.astype(int) - np.rot90(photo, k)).max() <= 1


def fixed(name: str, **settings: Any) -> Choice:
    return choice(name, p=1.0, **settings)


def test_fused_rotation_and_crop_agree_with_one_after_the_other() -> None:
    photo = leafy(120, 160)
    rotate, crop = fixed("rotate", limit=[20, 20]), fixed("center_crop", share=0.5)
    turned = augment(rotate, size=(120, 160))(photo, 0, 0)[0]
    stepwise = augment(crop)(turned, 0, 0)[0]
    fused = augment(rotate, crop)(photo, 0, 0)[0]
    difference = np.abs(fused.astype(int) - stepwise)
    assert difference.mean() < 0.5 and difference.max() <= 3
    assert np.abs(fused.astype(int) - augment(crop)(photo, 0, 0)[0]).mean() > 5  # it did turn


def test_the_input_made_on_the_host_is_that_of_the_device() -> None:
    preprocess = Preprocess((64, 48), "squash", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    photo = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    jitter = fixed("color_jitter", brightness=[0.3, 0.3], contrast=[0.4, 0.4], saturation=[-0.5, -0.5])
    pixels, matrix = augment(jitter)(photo, 0, 0)
    right = Normalise(preprocess)(torch.from_numpy(pixels)[None], torch.from_numpy(matrix)[None])[0]
    levels = pixels.reshape(-1, 3) @ matrix[:, :3].T + matrix[:, 3]
    assert (levels > 256).any() or (levels < -1).any()  # there is something to clip
    got = as_input(pixels, matrix, preprocess)
    assert got.dtype == np.float32 and np.abs(got.transpose(2, 0, 1) - right.numpy()).max() < 1e-5
    into = np.empty_like(got)
    assert as_input(pixels, matrix, preprocess, into) is into and np.array_equal(into, got)


BENDS = [
    fixed("rotate", limit=[20, 20]),
    fixed("elastic", alpha=0.02),
    fixed("grid_distortion"),
    fixed("optical_distortion", k=0.25),
    fixed("piecewise_affine"),
    fixed("transpose"),
    fixed("perspective"),
    fixed("center_crop", share=0.8),
]


def test_geometry_and_bends_that_follow_each_other_sample_the_photograph_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled, photo = [], leafy(100, 120)
    for name in ("remap", "warpAffine", "warpPerspective", "resize"):
        real = getattr(cv2, name)

        def counted(picture: np.ndarray, *args: Any, _name: str = name, _real: Any = real, **more: Any) -> np.ndarray:
            if picture.dtype == np.uint8:  # the fields of displacements are float32
                sampled.append(_name)
            return _real(picture, *args, **more)

        monkeypatch.setattr(cv2, name, counted)
    shift = fixed("rgb_shift", red=[20, 20], green=0, blue=0)
    _, matrix = augment(*BENDS[:4], shift, *BENDS[4:])(photo, 0, 0)
    assert sampled == ["remap"]
    assert matrix[0, 3] == 20  # colours are left to the device


@pytest.mark.parametrize("last", range(2, len(BENDS) + 1))
@pytest.mark.parametrize("unresized", [False, True])
def test_fused_bends_agree_with_one_after_the_other(last: int, unresized: bool) -> None:
    photo: Any = leafy(200, 240)
    if unresized:
        photo = Unresized(leafy(500, 600), Preprocess((200, 240)))
    made = []
    for fused in (True, False):
        canvas, rng = Canvas(photo, (100, 120)), np.random.default_rng(5)
        for op in build_ops(BENDS[:last]):
            op.run(canvas, rng)
            if not fused:
                canvas.flush_geometry()
        made.append(canvas.flush().astype(int))
    middle = np.s_[40:-40, 40:-40] if last < len(BENDS) else np.s_[10:-10, 10:-10]  # beyond the edge more is seen
    assert made[0].shape == made[1].shape
    difference = np.abs(made[0] - made[1])[middle]
    assert difference.mean() < 0.7 and np.percentile(difference, 99) <= 4, (difference.mean(), difference.max())
    still = resize(photo.stored() if unresized else photo, made[0].shape[:2]).astype(int)
    assert np.abs(made[0] - still)[middle].mean() > 5


def test_bends_shrink_without_aliasing() -> None:
    stripes = np.zeros((320, 320, 3), np.uint8)
    stripes[:, ::2] = 255
    for name in ("elastic", "grid_distortion", "optical_distortion", "piecewise_affine"):
        pixels = augment(fixed(name), size=(64, 64))(stripes, 0, 0)[0][4:-4, 4:-4]
        assert abs(float(pixels.mean()) - 127.5) < 4 and pixels.std() < 30


def test_a_pixel_operation_between_flushes_the_geometry_before_it() -> None:
    photo = leafy(48, 48)
    hole, flip = fixed("cutout", fill=7), fixed("horizontal_flip")
    after = augment(flip, hole, size=(48, 48))(photo, 0, 0)[0]
    before = augment(hole, flip, size=(48, 48))(photo, 0, 0)[0]
    outside = np.any(after != 7, axis=2)
    assert np.array_equal(after[outside], photo[:, ::-1][outside])
    assert not np.array_equal(before, after)


def test_what_a_crop_cut_away_comes_back_when_a_shift_follows() -> None:
    photo = leafy(100, 100)
    shift = fixed("affine", translate_x=[0.25, 0.25], shear_x=0)
    pixels = augment(fixed("center_crop", share=0.5), shift, size=(50, 50))(photo, 0, 0)[0]
    left = 25 - 0.25 * 50
    expected = (photo[25:75, 12:62].astype(float) + photo[25:75, 13:63]) / 2  # left is 12.5
    assert left == 12.5 and np.abs(pixels - expected).max() <= 2


@pytest.mark.parametrize("border", ["reflect", "replicate", "constant"])
def test_borders_are_those_of_the_photograph(border: str) -> None:
    photo = leafy(60, 60)
    shift = fixed("affine", translate_x=[0.25, 0.25], shear_x=0, border=border, fill=9)
    pixels = augment(shift, size=(60, 60))(photo, 0, 0)[0].astype(int)
    beyond = {"reflect": photo[:, 14::-1], "replicate": photo[:, :1], "constant": np.full((60, 1, 3), 9)}[border]
    assert np.abs(pixels[:, 15:] - photo[:, :45]).max() <= 1
    assert np.abs(pixels[:, :15] - beyond).max() <= 1


@pytest.mark.parametrize("factor", [2.4, 3.5, 5.0])
def test_strong_shrinking_does_not_alias(factor: float) -> None:
    edge = round(64 * factor)
    stripes = np.zeros((edge, edge, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than the result can show: an even grey is right
    for op in (fixed("rotate", limit=[3, 3]), fixed("perspective", scale=0.01)):
        pixels = augment(op, size=(64, 64))(stripes, 0, 0)[0][4:-4, 4:-4]
        assert abs(float(pixels.mean()) - 127.5) < 4
        assert pixels.std() < 30  # sampled without shrinking first: above 70


def test_colour_chain_equals_its_steps_in_float() -> None:
    photo = leafy(64, 48)
    steps = [
        fixed("brightness_contrast", brightness=[0.05, 0.05], contrast=[0.2, 0.2], pivot=100.0),
        fixed("hue_saturation_value", hue=[25, 25], saturation=[-0.3, -0.3], value=[4, 4]),
        fixed("rgb_shift", red=[3, 3], green=[-5, -5], blue=[7, 7]),
    ]
    pixels, fused = augment(*steps)(photo, 0, 0)
    assert np.array_equal(pixels, photo)  # nothing happened on the host
    colours = photo.reshape(-1, 3).astype(np.float64)
    for step in steps:
        matrix = augment(step)(photo, 0, 0)[1].astype(np.float64)
        colours = colours @ matrix[:, :3].T + matrix[:, 3]
    at_once = photo.reshape(-1, 3) @ fused[:, :3].T + fused[:, 3]
    assert np.abs(at_once - colours).max() < 2e-3


def test_colour_is_applied_on_the_host_when_pixels_are_needed_after_it() -> None:
    photo, shift = leafy(64, 48), fixed("rgb_shift", red=[40, 40], green=0, blue=0)
    pixels, matrix = augment(shift, fixed("posterize", bits=8))(photo, 0, 0)
    assert np.array_equal(matrix, np.eye(3, 4, dtype=np.float32))
    assert np.array_equal(pixels, np.clip(photo.astype(int) + [40, 0, 0], 0, 255))


def test_colour_conventions() -> None:
    photo = leafy(64, 48)
    grey = apply_colour(*augment(fixed("to_gray"))(photo, 0, 0)).astype(int)
    assert np.abs(grey - cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[..., None]).max() <= 1
    flat = np.zeros((64, 48, 3), np.uint8)
    flat[:] = (150, 90, 90)
    turned = apply_colour(*augment(fixed("hue_saturation_value", hue=[120, 120], saturation=0, value=0))(flat, 0, 0))[
        0, 0
    ]
    assert turned[1] > turned[0] and turned[1] > turned[2]  # red by 120 degrees is green
    luma = np.array([0.299, 0.587, 0.114])
    assert abs(float(turned @ luma) - float(flat[0, 0] @ luma)) < 1
    contrast = fixed("brightness_contrast", brightness=0, contrast=[0.5, 0.5])
    more = apply_colour(*augment(contrast)(photo, 0, 0)).astype(float) @ luma
    assert abs(more.mean() - (photo @ luma).mean()) < 1  # contrast about the mean keeps it


@pytest.mark.parametrize("ratio", [0.3, 0.6])
@pytest.mark.parametrize("period", [16, 37])
def test_grid_mask_keeps_the_share_of_the_paper(ratio: float, period: int) -> None:
    kept = int(np.ceil(period * ratio))
    shares = [
        1 - grid_mask(224, 224, period, kept, degrees, (shift, 2 * shift)).mean()
        for degrees in (0, 17, 45, 200)
        for shift in range(0, period, 3)
    ]
    assert np.mean(shares) == pytest.approx(1 - (1 - kept / period) ** 2, abs=0.01)
    straight = grid_mask(4 * period, 4 * period, period, kept, 0.0, (0, 0))
    assert straight.sum() == (4 * (period - kept)) ** 2  # whole periods: exact


def test_grid_mask_draws_its_period_and_hides_with_its_level() -> None:
    white = np.full((100, 100, 3), 255, np.uint8)
    augmenter = augment(fixed("grid_mask", period=[0.2, 0.5], ratio=0.5, fill=3), size=(100, 100))
    periods = set()
    for index in range(30):
        pixels, notes = augmenter.explain(white, 0, index)
        assert set(np.unique(pixels)) == {3, 255}
        assert 0.55 < (pixels == 255).mean() < 0.92
        periods.add(notes[0][1]["period"])
    assert min(periods) >= 20 and max(periods) < 50 and len(periods) > 5


def test_erasing_stays_within_its_shares() -> None:
    white = np.full((100, 80, 3), 255, np.uint8)
    for index in range(20):
        box = augment(fixed("random_erasing", fill=0), size=(100, 80))(white, 0, index)[0]
        assert 0.015 < (box == 0).mean() < 0.34
        holes = augment(fixed("coarse_dropout", holes_count=[2, 2]), size=(100, 80))(white, 0, index)[0]
        assert 0.0025 < (holes == 0).mean() <= 2 * 0.15**2 + 0.002
        square = augment(fixed("cutout", share=0.5, fill="mean"), size=(100, 80))(white, 0, index)[0]
        assert (square == 255).all()  # the mean of white is white
        square = augment(fixed("cutout", share=0.5, fill=0), size=(100, 80))(white, 0, index)[0]
        assert 0.04 < (square == 0).mean() <= 0.2


def test_random_resized_crop_draws_area_and_proportion_as_asked() -> None:
    photo = np.zeros((600, 800, 3), np.uint8)
    augmenter = augment(fixed("random_resized_crop", scale=[0.3, 0.5], ratio=[0.9, 1.1]), size=(32, 32))
    boxes = [augmenter.explain(photo, 0, index)[1][0][1] for index in range(200)]
    areas = np.array([box["width"] * box["height"] for box in boxes])
    ratios = np.array([box["width"] * 800 / (box["height"] * 600) for box in boxes])
    assert areas.min() > 0.295 and areas.max() < 0.505 and abs(areas.mean() - 0.4) < 0.015
    assert ratios.min() > 0.89 and ratios.max() < 1.11
    lefts = np.array([box["left"] / max(1 - box["width"], 1e-9) for box in boxes])
    assert abs(lefts.mean() - 0.5) < 0.07


def test_random_resized_crop_keeps_the_proportion_of_a_wide_input() -> None:
    photo = np.zeros((300, 600, 3), np.uint8)
    crop = fixed("random_resized_crop", scale=[0.3, 0.5], ratio=1)
    augmenter = augment(crop, size=(32, 64))
    boxes = [augmenter.explain(photo, 0, index)[1][0][1] for index in range(20)]
    assert all(abs(box["width"] / box["height"] - 1) < 0.02 for box in boxes)  # shares of a 1:2 photograph


def test_noise_has_the_deviation_asked_for() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    pixels = augment(fixed("gauss_noise", std=10), size=(200, 200))(grey, 0, 0)[0].astype(float) - 128
    assert abs(pixels.mean()) < 0.15 and abs(pixels.std() - 10) < 0.15


def test_superpixels_keep_edges_between_colours() -> None:
    halves = np.zeros((96, 96, 3), np.uint8)
    halves[:, 40:] = (200, 120, 40)
    labels, colours = find_superpixels(halves, segments=36)
    assert labels.min() == 0 and labels.max() < len(colours) == 36
    assert np.abs(colours[labels].astype(int) - halves).max(axis=2)[:, :37].max() <= 60
    assert (np.abs(colours[labels].astype(int) - halves).max(axis=2) > 60).mean() < 0.03


def share_applied(op: Choice, epoch: int, epochs: int) -> float:
    white = np.full((8, 8, 3), 255, np.uint8)
    augmenter = augment(op, size=(8, 8), epochs=epochs)
    return float(np.mean([bool(augmenter.explain(white, epoch, index)[1]) for index in range(400)]))


def test_strength_schedules() -> None:
    ramp = AUGMENTS["grid_mask"](p=0.8, strength=[(0, 0), (1, 1)])
    assert [ramp.chance(epoch, 5) for epoch in range(5)] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    # 28th place: off at first, on, less, off in the last epoch
    lessen = AUGMENTS["rotate"](p=1.0, from_epoch=2, until_epoch=-1, strength=[(0.6, 1), (0.61, 0.4), (1, 0.4)])
    assert [lessen.chance(e, 10) for e in range(10)] == pytest.approx([0, 0, 1, 1, 1, 1, 0.4, 0.4, 0.4, 0])
    assert AUGMENTS["rotate"](p=0.5, strength=[(0, 3)]).chance(0, 4) == 1.0
    assert ramp.chance(0, 1) == pytest.approx(0.4)  # one epoch is its own middle


def test_schedules_reach_the_pixels_and_the_choices_within() -> None:
    op = fixed("grid_mask", strength=[[0, 0], [1, 1]])
    assert share_applied(op, 0, 11) == 0
    assert abs(share_applied(op, 5, 11) - 0.5) < 0.08
    assert share_applied(op, 10, 11) == 1
    either = choice("one_of", p=1.0, choices=[{"name": "rotate", "until_epoch": 1}, {"name": "blur", "from_epoch": 1}])
    white = np.full((8, 8, 3), 255, np.uint8)
    for epoch, name in ((0, "rotate"), (3, "blur")):
        augmenter = augment(either, size=(8, 8), epochs=5)
        assert {augmenter.explain(white, epoch, index)[1][0][0] for index in range(20)} == {name}


def test_one_of_draws_by_weight_and_compose_keeps_the_order() -> None:
    either = choice("one_of", p=0.5, choices=[{"name": "blur", "p": 0.9}, {"name": "jpeg", "p": 0.3}])
    photo, augmenter = leafy(16, 16), augment(either, size=(16, 16))
    seen = [tuple(name for name, _ in augmenter.explain(photo, 0, index)[1]) for index in range(600)]
    assert set(seen) == {(), ("blur",), ("jpeg",)}
    assert abs(seen.count(()) / 600 - 0.5) < 0.06
    assert abs(seen.count(("blur",)) / 600 - 0.375) < 0.06  # 0.5 times 3 in 4
    both = choice("compose", p=1.0, choices=[{"name": "blur", "p": 1.0}, {"name": "transpose", "p": 1.0}])
    assert [name for name, _ in augment(both).explain(photo, 0, 0)[1]] == ["blur", "transpose"]


def test_rand_augment_applies_its_whole_list_and_magnitude_0_changes_little() -> None:
    photo = leafy(64, 48)
    augmenter = augment(choice("rand_augment", n=3, magnitude=9))
    names = {name for index in range(150) for name, _ in augmenter.explain(photo, 0, index)[1]}
    assert names == {
        "auto_contrast",
        "equalize",
        "rotate",
        "solarize",
        "posterize",
        "color_jitter",
        "sharpen",
        "affine",
    }
    pictures = augment(choice("rand_augment", n=3, magnitude=0))
    still = {"auto_contrast", "equalize"}  # these have no magnitude
    for index in range(40):
        pixels, notes = pictures.explain(photo, 0, index)
        if not still & {name for name, _ in notes}:
            assert np.abs(pixels.astype(int) - photo).max() <= 1


def test_unsharp_mask_and_jpeg_do_what_they_say() -> None:
    photo = leafy(64, 48)
    assert np.abs(augment(fixed("sharpen", amount=0))(photo, 0, 0)[0].astype(int) - photo).max() <= 1
    edges = np.zeros((64, 48, 3), np.uint8) + 100
    edges[:, 24:] = 150
    sharp = augment(fixed("sharpen", amount=1.0))(edges, 0, 0)[0].astype(int)
    assert sharp.max() > 160 and sharp.min() < 90
    good, poor = (np.abs(augment(fixed("jpeg", quality=q))(photo, 0, 0)[0].astype(int) - photo).mean() for q in (95, 5))
    assert good < 2 < poor


def test_any_chain_works_on_any_shape() -> None:
    rng = np.random.default_rng(11)
    names = list(AUGMENTS)
    for seed in range(80):
        chain = [fixed(names[k]) for k in rng.integers(0, len(names), 6)]
        photo = leafy(*(int(v) for v in np.exp(rng.uniform(0, 5.5, 2)).astype(int)), seed=seed)
        before, size = photo.copy(), tuple(int(v) for v in rng.integers(1, 70, 2))
        pixels, matrix = augment(*chain, size=size, seed=seed)(photo, 0, seed)
        assert pixels.shape == (*size, 3) and pixels.dtype == np.uint8 and np.isfinite(matrix).all()
        assert np.array_equal(photo, before)


def test_jpeg_is_that_of_an_rgb_picture() -> None:
    photo = leafy(64, 48)
    packed = io.BytesIO()
    Image.fromarray(photo).save(packed, "JPEG", quality=30)
    right = np.asarray(Image.open(packed)).astype(int)
    pixels = augment(fixed("jpeg", quality=30))(photo, 0, 0)[0]
    assert np.abs(pixels - right).mean() < 0.5 < np.abs(right - photo).mean()


def found_in(settings: Any, name: str) -> dict[str, Any]:
    """The first operation called `name` in a resolved recipe, however deep."""
    if isinstance(settings, dict) and settings.get("name") == name:
        return settings
    inside = settings.values() if isinstance(settings, dict) else settings if isinstance(settings, list) else ()
    return next((found for one in inside if (found := found_in(one, name))), {})


def mean_move(op: Op, edge: int) -> float:
    """Mean length of an elastic field's displacements a direction, pixels."""
    places = np.arange(edge, dtype=np.float32) + np.float32(0.5)
    field = op.field(Canvas(np.zeros((edge, edge, 3), np.uint8), (edge, edge)), np.random.default_rng(0))  # type: ignore[attr-defined]
    return float(np.abs(field(places[None, :], places[:, None])).mean())


def test_the_hard_operations_of_the_18th_place_were_nearly_none_and_ours_by_default_are_not() -> None:
    recipe = load_recipe("cassava2020-18").resolved()
    colour, bend = ({**found_in(recipe, name), "p": 1.0} for name in ("hue_saturation_value", "elastic"))
    assert len(colour) > 2 and len(bend) > 2  # with settings of their own
    photo = leafy(512, 512).reshape(-1, 3).astype(np.float64)

    def moved(settings: dict[str, Any]) -> list[float]:
        draws = augment(Choice(**settings))
        matrices = [draws(np.zeros((8, 8, 3), np.uint8), 0, index)[1].astype(np.float64) for index in range(60)]
        return [float(np.abs(photo @ m[:, :3].T + m[:, 3] - photo).mean()) for m in matrices]

    assert np.mean(moved(colour)) < 0.8 and max(moved(colour)) < 1  # levels of 255
    assert np.mean(moved({"name": "hue_saturation_value", "p": 1.0})) > 8
    (hard,), (own,) = build_ops([bend]), build_ops([fixed("elastic")])
    assert mean_move(hard, 512) == pytest.approx(0.016, abs=0.004)  # pixels: .02 root mean square
    assert mean_move(own, 512) > 3
