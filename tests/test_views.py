"""Views: exact geometry, one forward loop, and a mean that doesn't mind the order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from manihot.data.views import VIEWS, check_views, make_view
from manihot.errors import SettingsError
from manihot.infer.predict import forward_views, merge_views
from manihot.photos.preprocess import Preprocess
from manihot.settings import View

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
AS_IT_IS = Preprocess((40, 60))


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("shape", [(40, 60), (61, 33), (1, 1), (3, 200)])
def test_every_view_gives_the_models_input(name, fit, shape):
    photo = PHOTO[: shape[0], : shape[1]] if shape[0] <= 40 and shape[1] <= 60 else np.full((*shape, 3), 9, np.uint8)
    before = photo.copy()
    for flip in ("", "h", "v", "hv"):
        for transpose in (False, True):
            view = View(name=name, flip=flip, transpose=transpose, scale=0.6)
            out = make_view(photo, view, Preprocess((32, 48), fit))
            assert out.shape == (32, 48, 3)
            assert out.dtype == np.uint8
            assert out.flags.c_contiguous
    np.testing.assert_array_equal(photo, before)


def test_flips_are_exact():
    def look(flip: str) -> np.ndarray:
        return make_view(PHOTO, View(flip=flip), AS_IT_IS)

    np.testing.assert_array_equal(look(""), PHOTO)
    np.testing.assert_array_equal(look("h"), PHOTO[:, ::-1])
    np.testing.assert_array_equal(look("v"), PHOTO[::-1])
    np.testing.assert_array_equal(look("hv"), PHOTO[::-1, ::-1])


def test_a_flip_of_the_input_is_the_input_of_the_flip():
    pre = Preprocess((20, 30))
    for flip, turned in (("h", PHOTO[:, ::-1]), ("v", PHOTO[::-1]), ("hv", PHOTO[::-1, ::-1])):
        turned = np.ascontiguousarray(turned)
        np.testing.assert_array_equal(make_view(PHOTO, View(flip=flip), pre), make_view(turned, View(), pre))


def test_transpose_swaps_rows_and_columns():
    view = View(transpose=True)
    np.testing.assert_array_equal(make_view(PHOTO, view, Preprocess((60, 40))), PHOTO.transpose(1, 0, 2))
    both = make_view(PHOTO, View(transpose=True, flip="h"), Preprocess((60, 40)))
    np.testing.assert_array_equal(both, PHOTO.transpose(1, 0, 2)[:, ::-1])


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("full", slice(0, 40), slice(0, 60)),
        ("centre", slice(10, 30), slice(15, 45)),
        ("top_left", slice(0, 20), slice(0, 30)),
        ("top_right", slice(0, 20), slice(30, 60)),
        ("bottom_left", slice(20, 40), slice(0, 30)),
        ("bottom_right", slice(20, 40), slice(30, 60)),
    ],
)
def test_crops_lie_where_they_say(name, rows, columns):
    out = VIEWS[name](PHOTO, View(name=name, scale=0.5))
    np.testing.assert_array_equal(out, PHOTO[rows, columns])
    np.testing.assert_array_equal(VIEWS[name](PHOTO, View(name=name)), PHOTO)  # scale 1


def test_every_view_has_its_row_here():
    known = {"full", "centre", "top_left", "top_right", "bottom_left", "bottom_right"}
    assert set(VIEWS) == known


def test_an_unknown_view_is_refused():
    with pytest.raises(SettingsError, match="tta: unknown view 'center'") as caught:
        check_views((View(), View(name="center")))
    assert "'centre'" in caught.value.remedy
    check_views(tuple(View(name=name) for name in VIEWS))


logits_and_weights = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(2, 5), st.integers(0, 2**31))


@settings(max_examples=50, deadline=None)
@given(logits_and_weights)
def test_merging_is_the_weighted_mean_probability_in_any_order(drawn):
    n, v, k, seed = drawn
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, (n, v, k)).astype(np.float32)
    views = [View(weight=w) for w in rng.uniform(0.1, 5, v)]
    weights = np.array([view.weight for view in views])
    merged = merge_views(logits, views)
    assert merged.dtype == np.float32
    expected = (softmax(logits, axis=2) * weights[:, None]).sum(1) / weights.sum()
    np.testing.assert_allclose(softmax(merged, axis=1), expected, atol=1e-5)
    order = rng.permutation(v)
    again = merge_views(logits[:, order], [views[i] for i in order])
    np.testing.assert_allclose(merged, again, atol=1e-5)
    tenfold = merge_views(logits, [View(weight=10 * view.weight) for view in views])
    np.testing.assert_allclose(merged, tenfold, atol=1e-5)


def test_one_view_keeps_its_logits():
    logits = np.array([[[3.0, -80.0]]], dtype=np.float32)
    np.testing.assert_array_equal(merge_views(logits, [View(weight=2)]), logits[:, 0])


class Corner:
    """A runner whose answer is the input itself: the upper left pixel and the mean."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.batches: list[int] = []

    def __call__(self, photos: np.ndarray) -> dict[str, np.ndarray]:
        self.batches.append(len(photos))
        values = np.concatenate([photos[:, 0, 0], photos.mean((1, 2))], axis=1).astype(np.float32)
        return {"embeddings": self.factor * values, "logits": self.factor * values / 50}


@pytest.mark.parametrize("want", ["embeddings", "logits"])
def test_the_order_of_predictions_does_not_depend_on_the_batch(want):
    rng = np.random.default_rng(1)
    photos = rng.integers(0, 256, (11, 24, 16, 3), dtype=np.uint8)
    rows = rng.permutation(11)[:9]
    views = [View(), View(flip="h"), View(name="bottom_right", scale=0.5, transpose=True)]
    pre = Preprocess((12, 8))
    expected = np.stack([[Corner()(make_view(photos[r], v, pre)[None])[want][0] for v in views] for r in rows])
    for batch in (1, 2, 4, 9, 64):
        runner = Corner()
        out = forward_views([runner], photos, rows, pre, views, batch, want)
        np.testing.assert_array_equal(out, expected)
        assert out.dtype == np.float32
        assert max(runner.batches) <= batch
        assert sum(runner.batches) == 27


def test_several_networks_are_averaged_as_probabilities():
    photos = np.random.default_rng(2).integers(0, 256, (5, 12, 8, 3), dtype=np.uint8)
    pre, rows, views = Preprocess((12, 8)), np.arange(5), [View()]
    runners = [Corner(1.0), Corner(-0.5)]
    logits = forward_views(runners, photos, rows, pre, views)
    alone = [softmax(forward_views([r], photos, rows, pre, views), axis=2) for r in runners]
    np.testing.assert_allclose(softmax(logits, axis=2), np.mean(alone, axis=0), atol=1e-6)
    embeddings = forward_views(runners, photos, rows, pre, views, want="embeddings")
    one = forward_views(runners[:1], photos, rows, pre, views, want="embeddings")
    np.testing.assert_allclose(embeddings, one * 0.25, atol=1e-4)


def test_a_photograph_that_can_not_be_read_stops_the_loop():
    class Broken:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> np.ndarray:
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        forward_views([Corner()], Broken(), np.arange(3), replace(AS_IT_IS, size=(8, 8)), [View()])


def test_no_photographs_give_no_rows():
    assert forward_views([Corner()], PHOTO[None], np.arange(0), AS_IT_IS, [View()]).shape == (0, 1, 0)
