"""Augmentations: the contract every row of AUGMENTS keeps, exactness of fused operations, schedules."""

from __future__ import annotations

import pickle
from typing import Any

import cv2
import numpy as np
import pytest

from manihot.data.augment import AUGMENTS, Augmenter, apply_colour
from manihot.data.canvas import Op
from manihot.errors import DataError, SettingsError
from manihot.photos.preprocess import resize
from manihot.settings import Choice

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
