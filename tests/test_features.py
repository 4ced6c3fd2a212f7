"""The features method: chunks survive a stop, the head solves what scikit-learn solves, odd classes don't break it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from manihot.photos.preprocess import Preprocess
from manihot.quick import heads as features
from manihot.quick.heads import fit_head, make_features
from manihot.settings import View

PHOTOS = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
VIEWS = (View(), View(flip="h"))


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
    weight, bias = fit_head(x, labels, 3, np.ones(60), np.arange(60), [0.5], 0)
    rows = x.reshape(120, 5)
    scaler = StandardScaler().fit(rows)
    oracle = LogisticRegression(C=0.5, tol=1e-6, max_iter=2000).fit(scaler.transform(rows), np.repeat(labels, 2))
    logits = rows @ weight.T + bias
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    assert np.abs(probs - oracle.predict_proba(scaler.transform(rows))).max() < 0.01


@pytest.mark.parametrize("present", [(0, 2), (0, 1, 2)])
def test_a_class_without_photographs_is_never_predicted(present: tuple[int, ...]):
    rng = np.random.default_rng(2)
    labels = rng.choice(present, 40)
    x = (rng.normal(size=(40, 1, 4)) + 2 * labels[:, None, None]).astype(np.float32)
    weight, bias = fit_head(x, labels, 4, np.ones(40), np.arange(40), [0.1, 1.0], 0)
    found = (x[:, 0] @ weight.T + bias).argmax(1)
    assert set(found) <= set(present)
    assert (found == labels).mean() > 0.8


def test_the_strength_is_chosen_without_tearing_groups_apart(monkeypatch: pytest.MonkeyPatch):
    seen: list[np.ndarray] = []
    real = features.StratifiedGroupKFold.split

    def spy(self, x, y, groups):
        seen.append(groups)
        return real(self, x, y, groups)

    monkeypatch.setattr(features.StratifiedGroupKFold, "split", spy)
    rng = np.random.default_rng(3)
    labels = np.arange(40) % 2
    groups = np.arange(40) // 4
    fit_head(rng.normal(size=(40, 1, 3)).astype(np.float32), labels, 2, np.ones(40), groups, [0.1, 1.0], 0)
    assert (seen[0] == groups).all()
