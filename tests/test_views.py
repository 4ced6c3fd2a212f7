"""Views: exact geometry, one forward loop, and a mean that doesn't mind the order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from manihot.augment.views import CHANCE, VIEWS, check_views, make_view
from manihot.errors import SettingsError
from manihot.infer.forward import forward_views, merge_views
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
            view = View(name=name, flip=flip, transpose=transpose, scale=0.6, least=0.3)
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
    assert set(VIEWS) == known | set(CHANCE)


def test_an_unknown_view_is_refused():
    with pytest.raises(SettingsError, match="tta: unknown view 'center'") as caught:
        check_views((View(), View(name="center")))
    assert "'centre'" in caught.value.remedy
    check_views(tuple(View(name=name) for name in VIEWS))


GRID = np.stack([*np.mgrid[0:200, 0:250], np.zeros((200, 250))], axis=2).astype(np.uint8)  # a pixel says where it lies


def window(out: np.ndarray) -> tuple[float, float]:
    """Shares of the edges of GRID that a crop without turns keeps."""
    assert np.array_equal(out, GRID[out[0, 0, 0] : out[-1, 0, 0] + 1, out[0, 0, 1] : out[0, -1, 1] + 1])
    return out.shape[0] / 200, out.shape[1] / 250


def test_random_crops_keep_the_shares_they_are_told():
    views = [View(name="random", least=0.37, scale=0.85, draw=n) for n in range(400)]
    crops = [VIEWS["random"](GRID, view) for view in views]
    shares = np.array([window(crop) for crop in crops])
    assert np.abs(shares[:, 0] - shares[:, 1]).max() < 0.01
    assert 0.36 < shares.min() < 0.4 and 0.82 < shares.max() < 0.86
    assert shares.mean() == pytest.approx((0.37 + 0.85) / 2, abs=0.03)
    corners = np.array([crop[0, 0, :2] for crop in crops]) / (200, 250) / (1 - shares)
    assert np.abs(np.median(corners, axis=0) - 0.5).max() < 0.08  # anywhere, evenly
    assert corners.min() < 0.03 and corners.max() > 0.97


def test_random_resized_crops_keep_area_and_proportion():
    views = [View(name="random_resized", least=0.2, scale=0.6, draw=n) for n in range(400)]
    shares = np.array([window(VIEWS["random_resized"](GRID, view)) for view in views])
    area, proportion = shares.prod(1), shares[:, 1] / shares[:, 0]
    assert 0.19 < area.min() < 0.23 and 0.57 < area.max() < 0.61
    assert 0.73 < proportion.min() < 0.78 and 1.29 < proportion.max() < 1.36
    assert np.log(proportion).mean() == pytest.approx(0, abs=0.03)
    np.testing.assert_array_equal(VIEWS["random_resized"](GRID, View(name="random_resized")), GRID)  # nothing fits


def test_one_of_takes_each_of_three_and_turns_it():
    sizes, whole = [], []
    for n in range(300):
        out = VIEWS["one_of"](GRID, View(name="one_of", least=0.08, scale=0.8, draw=n))
        upright = out.transpose(1, 0, 2) if out[0, 0, 0] == out[-1, 0, 0] else out
        shape = upright.shape[:2]
        sizes.append("whole" if shape == (200, 250) else "centre" if shape == (160, 200) else "crop")
        if shape == (200, 250):
            whole.append((upright is not out, bool(upright[0, 0, 0]), bool(upright[0, 0, 1])))
    counts = {kind: sizes.count(kind) for kind in ("whole", "centre", "crop")}
    assert min(counts.values()) > 75, counts
    assert len(set(whole)) == 8  # all turns of the square


@pytest.mark.parametrize("name", CHANCE)
def test_chance_depends_on_the_photograph_and_the_draw_alone(name):
    """Not on the batch, the order, or what else is looked at."""
    photos = np.random.default_rng(1).integers(0, 256, (6, 40, 60, 3), dtype=np.uint8)
    views = [View(name=name, least=0.3, scale=0.9, draw=n) for n in range(3)]
    pre = Preprocess((16, 24))
    alone = np.stack([[Corner()(make_view(p, v, pre)[None])["logits"][0] for v in views] for p in photos])
    for rows, batch in ((np.arange(6), 1), (np.arange(6)[::-1], 4), (np.array([3, 1, 5]), 64)):
        out = forward_views([Corner()], photos, rows, pre, views, batch)
        np.testing.assert_array_equal(out, alone[rows])
    assert len(np.unique(alone[:, :, 0])) > 12  # photographs and draws differ
    flipped = VIEWS[name](photos[0][:, ::-1], views[0])  # a view of memory that isn't contiguous
    np.testing.assert_array_equal(flipped, VIEWS[name](np.ascontiguousarray(photos[0][:, ::-1]), views[0]))


def test_views_with_chance_that_can_not_be_are_refused():
    with pytest.raises(SettingsError, match=r"random keeps at least 1 and at most 0.85") as caught:
        check_views((View(name="random", scale=0.85),))
    assert "least" in caught.value.remedy
    twice = View(name="one_of", draw=2)
    with pytest.raises(SettingsError, match="one_of with draw 2 appears twice") as caught:
        check_views((twice, twice.model_copy(update={"weight": 2.0})))
    assert "draw: 3" in caught.value.remedy
    check_views((twice, twice.model_copy(update={"flip": "h"}), View(name="one_of", draw=3)))


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
