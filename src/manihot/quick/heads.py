"""The `features` method: a frozen backbone sees every photograph once, a linear head learns a fold.

Each view of a photograph is a training row of its own, so that the head learns what flips and crops leave
alone; a prediction is the mean over views, as for any other model. The standardisation of the features is
folded into the saved network's linear layer, so that it takes photographs like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from manihot.errors import RunFolderError
from manihot.infer.forward import Photos, forward_views
from manihot.networks.runner import LinearHead, Runner
from manihot.photos.preprocess import Preprocess
from manihot.quick.choose import Chosen, Examples, choose, fit_logistic
from manihot.records.files import atomic_path, is_held, one_at_a_time
from manihot.records.readers import read_features
from manihot.settings import Features, Model, View

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
    parts = read_features([path for path, _ in places])
    for (path, rows), part in zip(places, parts, strict=True):
        if len(part) != len(rows):
            raise RunFolderError(
                f"{path}: features of {len(part)} photographs, expected {len(rows)}",
                "remove the folder of features and run the same command again",
            )
    return np.concatenate(parts)


def fit_head(
    examples: Examples, classes: int, settings: Features, model: Model, views: Sequence[View], seed: int
) -> tuple[LinearHead, Chosen]:
    """A logistic regression for features as they come, and which of them it uses.

    The views, features and strength are chosen inside these photographs as `settings` says; features that it doesn't
    use have the weight 0.
    """
    # Products of this size are three times slower on two threads that wait for each other than on one.
    with threadpool_limits(1, "blas"):
        return _fit(examples, classes, settings, model, views, seed)


def _fit(
    examples: Examples, classes: int, settings: Features, model: Model, views: Sequence[View], seed: int
) -> tuple[LinearHead, Chosen]:
    chosen = choose(examples, settings, model, views, seed)
    rows = examples.features[:, chosen.views][:, :, chosen.columns]
    labels, weights = (np.repeat(one, len(chosen.views)) for one in (examples.labels, examples.weights))
    rows = rows.reshape(len(labels), -1)
    centre, scale = rows.mean(0), rows.std(0) + 1e-6
    rows -= centre
    rows /= scale
    fitted = fit_logistic(rows, labels, weights, chosen.strength)
    coefficients, intercept = fitted.coef_ / chosen.temperature, fitted.intercept_ / chosen.temperature
    if len(fitted.classes_) == 2:  # scikit-learn gives one row for two classes
        coefficients = np.vstack([-coefficients, coefficients]) / 2
        intercept = np.array([-intercept[0], intercept[0]]) / 2
    weight = np.zeros((classes, len(chosen.columns)), dtype=np.float32)
    bias = np.full(classes, -12.0, dtype=np.float32)  # a class without photographs: all but impossible
    weight[np.ix_(fitted.classes_, chosen.columns)] = coefficients / scale
    bias[fitted.classes_] = intercept
    return LinearHead(weight, (bias - weight[:, chosen.columns] @ centre).astype(np.float32)), chosen
