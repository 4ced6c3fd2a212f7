"""The `features` method: a frozen backbone sees every photograph once, a linear head learns a fold.

Each view of a photograph is a training row of its own, so that the head learns what flips and crops leave
alone; a prediction is the mean over views, as for any other model. The standardisation of the features is
folded into the saved network's linear layer, so that it takes photographs like any other.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold

from manihot.infer.forward import Photos, forward_views
from manihot.networks.runner import Runner
from manihot.photos.preprocess import Preprocess
from manihot.progress import say
from manihot.records.files import atomic_path, is_held, one_at_a_time
from manihot.settings import View

CHUNK = 256  # photographs whose features are saved together: what a killed run loses at most


def make_features(
    folder: Path, runner: Runner, photos: Photos, preprocess: Preprocess, views: Sequence[View], batch: int
) -> np.ndarray:
    """Features of every photograph in every view, float32 (N, V, D), kept in `folder` in chunks.

    `folder` belongs to these photographs, this backbone and these views alone (its name holds their digest). Several
    processes that want the same features compute each chunk once between them.
    """
    total = len(photos)
    places = [(folder / f"{at:08d}.npy", np.arange(at, min(at + CHUNK, total))) for at in range(0, total, CHUNK)]
    for others_too in (False, True):  # several processes share the chunks out; at the end each waits for the others'
        for path, rows in places:
            if path.exists() or (is_held(path) and not others_too):
                continue
            with one_at_a_time(path, f"Features {rows[0]}-{rows[-1] + 1}: another process is at it; waiting"):
                if not path.exists():
                    what = f"Features {rows[0]}-{rows[-1] + 1} of {total}"
                    values = forward_views([runner], photos, rows, preprocess, views, batch, "embeddings", what)
                    with atomic_path(path) as temporary:
                        np.save(temporary, values)
    return np.concatenate([np.load(folder / f"{at:08d}.npy") for at in range(0, total, CHUNK)])


def fit_head(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    weights: np.ndarray,
    groups: np.ndarray,
    strengths: Sequence[float],
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """A logistic regression on features (N, V, D): weight (K, D) and bias (K,) for features as they come.

    labels (N,) in 0..K-1, weights (N,), groups (N,): photographs that must not be torn apart. The
    regression's strength is chosen inside these photographs.
    """
    n, views, _ = features.shape
    rows = features.reshape(n * views, -1)
    centre, scale = rows.mean(0), rows.std(0) + 1e-6
    rows = (rows - centre) / scale
    strength = strengths[0] if len(strengths) == 1 else _choose(rows, labels, weights, groups, views, strengths, seed)
    model = _logistic(rows, np.repeat(labels, views), np.repeat(weights, views), strength)
    weight = np.zeros((classes, rows.shape[1]), dtype=np.float32)
    bias = np.full(classes, -12.0, dtype=np.float32)  # a class without photographs: all but impossible
    coefficients, intercept = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn gives one row for two classes
        coefficients, intercept = (
            np.vstack([-coefficients, coefficients]) / 2,
            np.array([-intercept[0], intercept[0]]) / 2,
        )
    weight[model.classes_], bias[model.classes_] = coefficients, intercept
    weight = weight / scale
    return weight.astype(np.float32), (bias - weight @ centre).astype(np.float32)


def _logistic(rows: np.ndarray, labels: np.ndarray, weights: np.ndarray, strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=300, tol=1e-3).fit(rows, labels, sample_weight=weights)


def _choose(
    rows: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    groups: np.ndarray,
    views: int,
    strengths: Sequence[float],
    seed: int,
) -> float:
    """The strength with the lowest log loss on a held-out quarter: one in four a class, whole groups."""
    counts = np.bincount(labels)
    if counts[counts > 0].min() < 2 or counts.max() < 4 or len(np.unique(groups)) < 4:
        return min(strengths)
    splitter = StratifiedGroupKFold(4, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # a class of two or three photographs is in few of the quarters
        warnings.filterwarnings("ignore", message="The least populated class in y has only")
        inside, outside = next(iter(splitter.split(np.zeros(len(labels)), labels, groups)))
    by_photo = rows.reshape(len(labels), views, -1)
    seen = np.isin(labels[outside], labels[inside])
    outside = outside[seen]
    if len(np.unique(labels[inside])) < 2 or not len(outside):
        return min(strengths)
    losses = []
    for strength in strengths:
        model = _logistic(
            by_photo[inside].reshape(len(inside) * views, -1),
            np.repeat(labels[inside], views),
            np.repeat(weights[inside], views),
            strength,
        )
        probs = model.predict_proba(by_photo[outside].reshape(len(outside) * views, -1)).reshape(
            len(outside), views, -1
        )
        losses.append(log_loss(labels[outside], probs.mean(1), labels=model.classes_, sample_weight=weights[outside]))
    best = strengths[int(np.argmin(losses))]
    say(f"  strength {best:g} of {', '.join(f'{s:g}' for s in strengths)} (held-out log loss {min(losses):.3f})")
    return best
