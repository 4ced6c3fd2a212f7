"""The features method: chunks survive a stop, the head solves what scikit-learn solves, odd classes don't break it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from manihot.networks.runner import LinearHead
from manihot.photos.preprocess import Preprocess
from manihot.quick import choose
from manihot.quick import heads as features
from manihot.quick.choose import Chosen, Examples, blocks_of, principal_axes, view_options
from manihot.quick.heads import fit_head, make_features
from manihot.settings import Features, Model, View, load_recipe

PHOTOS = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
VIEWS = (View(), View(flip="h"))


UNKNOWN = Model(backbone="resnet50")  # whose features are one block
JOINED = Model(backbone="tf_efficientnet_lite0+mobilenetv2_100", pooling="avgmax", taps=(2, 3), power=True)
QUICK = load_recipe("quick")


def fit(
    x: np.ndarray,
    labels: np.ndarray,
    classes: int,
    strengths: list[float],
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[LinearHead, Chosen]:
    """A head on features (N, V, D) that chooses its strength alone."""
    groups = np.arange(len(labels)) if groups is None else groups
    examples = Examples(x, labels, np.ones(len(labels)), groups)
    return fit_head(examples, classes, Features(c=tuple(strengths)), UNKNOWN, [View()] * x.shape[1], seed)


class Means:
    """A runner whose embeddings are the mean colours; counts its photographs."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.seen, self.stop_after = 0, stop_after

    def __call__(self, photos: np.ndarray) -> dict[str, np.ndarray]:
        if self.seen + len(photos) > self.stop_after:
            raise KeyboardInterrupt
        self.seen += len(photos)
        return {"embeddings": photos.mean((1, 2)).astype(np.float32)}


def test_features_that_were_computed_are_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(features, "CHUNK", 4)
    whole = make_features(tmp_path / "whole", Means(), PHOTOS, Preprocess((8, 8)), VIEWS, 3)
    with pytest.raises(KeyboardInterrupt):
        make_features(tmp_path / "stopped", Means(stop_after=10), PHOTOS, Preprocess((8, 8)), VIEWS, 3)
    again = Means()
    resumed = make_features(tmp_path / "stopped", again, PHOTOS, Preprocess((8, 8)), VIEWS, 3)
    assert again.seen == 12  # of the 20 views, the 8 of the first chunk were kept
    assert (whole == resumed).all()
    assert whole.shape == (10, 2, 3)


def test_the_head_is_scikit_learns_on_standardised_rows():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 60)
    x = (rng.normal(size=(60, 2, 5)) * [1, 10, 0.1, 3, 1] + labels[:, None, None]).astype(np.float32)
    head, _ = fit(x, labels, 3, [0.5])
    rows = x.reshape(120, 5)
    scaler = StandardScaler().fit(rows)
    oracle = LogisticRegression(C=0.5, tol=1e-6, max_iter=2000).fit(scaler.transform(rows), np.repeat(labels, 2))
    logits = head.logits(rows)
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    assert np.abs(probs - oracle.predict_proba(scaler.transform(rows))).max() < 0.01


@pytest.mark.parametrize("present", [(0, 2), (0, 1, 2)])
def test_a_class_without_photographs_is_never_predicted(present: tuple[int, ...]):
    rng = np.random.default_rng(2)
    labels = rng.choice(present, 40)
    x = (rng.normal(size=(40, 1, 4)) + 2 * labels[:, None, None]).astype(np.float32)
    found = fit(x, labels, 4, [0.1, 1.0])[0].logits(x[:, 0]).argmax(1)
    assert set(found) <= set(present)
    assert (found == labels).mean() > 0.8


def test_the_strength_is_chosen_without_tearing_groups_apart(monkeypatch: pytest.MonkeyPatch):
    seen: list[np.ndarray] = []
    real = choose.StratifiedGroupKFold.split

    def spy(self, x, y, groups):
        seen.append(groups)
        return real(self, x, y, groups)

    monkeypatch.setattr(choose.StratifiedGroupKFold, "split", spy)
    rng = np.random.default_rng(3)
    labels = np.arange(40) % 2
    groups = np.arange(40) // 4
    fit(rng.normal(size=(40, 1, 3)).astype(np.float32), labels, 2, [0.1, 1.0], groups)
    assert (seen[0] == groups).all()


# What a head looks at


def drawn(n: int, useful: slice, views: tuple[int, ...], seed: int = 0) -> Examples:
    """Photographs of three classes, which show in some columns of the joined networks' features and in some views."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    x = rng.normal(size=(n, 4, 5680)).astype(np.float32)
    signal = rng.normal(size=(3, 5680))[labels].astype(np.float32)
    for view in views:
        x[:, view, useful] += 0.5 * signal[:, useful]
    return Examples(x, labels, np.ones(n), np.arange(n))


def held_out_accuracy(examples: Examples, learn: np.ndarray, seed: int = 0) -> tuple[float, Chosen]:
    head, chosen = fit_head(examples.take(learn), 3, QUICK.features, JOINED, QUICK.tta, seed)
    held = np.setdiff1d(np.arange(len(examples.labels)), learn)
    logits = head.logits(examples.features[held][:, chosen.views]).mean(1)
    return float((logits.argmax(1) == examples.labels[held]).mean()), chosen


def test_blocks_are_the_columns_of_the_joined_networks():
    blocks = blocks_of(JOINED, 5680)
    assert [(b.network, b.depth, b.kind, b.columns.start, b.columns.stop) for b in blocks[:3]] == [
        (0, 0, "avg", 0, 1280),
        (0, 0, "max", 1280, 2560),
        (0, 1, "avg", 2560, 2600),
    ]
    assert [b.columns.stop for b in blocks[:-1]] == [b.columns.start for b in blocks[1:]]
    assert blocks[-1].columns.stop == 5680 and blocks[6].network == 1 and blocks[6].columns.start == 2864


def test_sets_of_views_keep_the_first_and_leave_out_what_lies_or_stands_on_its_head():
    assert view_options(QUICK.tta) == {"all": [0, 1, 2, 3], "upright": [0, 1]}
    views = (View(), View(transpose=True), View(flip="v"), View(flip="h"), View(name="one_of"))
    assert view_options(views) == {"all": [0, 1, 2, 3, 4], "without turns": [0, 2, 3], "upright": [0, 3]}
    assert view_options((View(flip="v"),)) == {"all": [0]}


def test_views_and_network_that_mislead_are_left_out():
    examples = drawn(240, slice(2864, 5680), (0, 1))
    accuracy, chosen = held_out_accuracy(examples, np.arange(160))
    assert chosen.views == [0, 1]
    assert not chosen.columns[:2864].any() and chosen.columns[2864:].any()
    assert accuracy > 0.9
    told = {row["what"]: row["option"] for row in chosen.evidence if row["chosen"]}
    assert told["views and networks"] == "upright, mobilenetv2_100"
    options = [row for row in chosen.evidence if row["what"] == "views and networks"]
    assert len(options) == 6
    assert min(row["log_loss"] for row in options) == next(row["log_loss"] for row in options if row["chosen"])


def test_what_helps_equally_is_all_kept():
    _, chosen = held_out_accuracy(drawn(240, slice(0, 5680), (0, 1, 2, 3)), np.arange(160))
    assert chosen.views == [0, 1, 2, 3]


def test_with_random_labels_the_choice_gains_nothing_on_what_it_is_judged_on():
    rng = np.random.default_rng(5)
    base = drawn(300, slice(0, 0), ())
    right = 0
    for seed in range(3):
        examples = Examples(base.features, rng.permutation(base.labels), base.weights, base.groups)
        for fold in range(2):
            learn = np.flatnonzero(np.arange(300) % 2 != fold)
            right += round(150 * held_out_accuracy(examples, learn, seed)[0])
    low, high = binom.interval(0.99, 900, 1 / 3)
    assert low <= right <= high


def test_the_choice_does_not_see_what_it_is_judged_on(tmp_path: Path):
    examples = drawn(120, slice(0, 2864), (0, 1, 2, 3))
    learn = np.arange(80)
    before = fit_head(examples.take(learn), 3, QUICK.features, JOINED, QUICK.tta, 0)
    examples.features[80:] = 1e3  # the held-out photographs change altogether
    after = fit_head(examples.take(learn), 3, QUICK.features, JOINED, QUICK.tta, 0)
    assert (before[0].weight == after[0].weight).all() and before[1].evidence == after[1].evidence


def test_principal_axes_are_those_of_the_covariance():
    rng = np.random.default_rng(0)
    for shape in ((30, 8), (8, 30)):
        rows = rng.normal(size=shape) * np.arange(1, shape[1] + 1)
        axes = principal_axes(rows, 3)
        wanted = np.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][:3].T
        assert axes.shape == (shape[1], 3)
        np.testing.assert_allclose(np.abs((axes * wanted).sum(0)), 1, atol=1e-3)
    assert (principal_axes(rows, 30) == np.eye(30)).all()


def test_a_small_strength_is_as_sure_as_the_labels_warrant():
    examples = drawn(300, slice(0, 2864), (0, 1, 2, 3))
    head, chosen = fit_head(examples.take(np.arange(200)), 3, QUICK.features, JOINED, QUICK.tta, 0)
    logits = head.logits(examples.features[200:][:, chosen.views])
    sure = softmax(logits, axis=2).mean(1).max(1).mean()
    right = (logits.mean(1).argmax(1) == examples.labels[200:]).mean()
    assert abs(sure - right) < 0.12
