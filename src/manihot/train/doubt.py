"""How likely each given label is right, from features of a frozen network and cross-validation inside the labels.

A linear head learns in five folds; its out-of-fold answers weigh the labels, and a second round learns with these
weights. From the second round comes the rate of wrong labels, and by Bayes' rule the probability that a label is
right: answer(given) (1 - rate), against the sum over the other classes of answer(k) rate / (K - 1). Weights of this
kind: Northcutt et al., Confident Learning (arXiv 1911.00068), and Reed et al. (arXiv 1412.6596); the rate assumes
that wrong labels fall on all other classes alike.
"""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

FOLDS = 5
STRENGTHS = (0.001, 0.003)  # of the first round, which must not believe wrong labels, and of the second


def trust_labels(
    features: np.ndarray, labels: np.ndarray, classes: int, groups: np.ndarray, seed: int
) -> tuple[np.ndarray, float]:
    """The probability that each label (n,) is right, float64 (n,), and the estimated rate of wrong ones.

    features (n, D); groups (n,): photographs that must not be torn apart.
    """
    rows = np.arange(len(labels))
    first = _out_of_fold(features, labels, np.ones(len(labels)), classes, groups, STRENGTHS[0], seed)
    weight = first[rows, labels]
    second = _out_of_fold(features, labels, weight / weight.mean(), classes, groups, STRENGTHS[1], seed + 1)
    own = second[rows, labels]
    # a head that is right and knows its doubts gives its own answer (1 - max) of doubt; more than that is wrong labels
    rate = float(np.clip((1 - own).mean() - (1 - second.max(1)).mean(), 0.0, 1 - 1 / classes))
    right = own * (1 - rate)
    wrong = (1 - own) * rate / max(1, classes - 1)
    return right / np.maximum(right + wrong, 1e-12), rate


def _out_of_fold(
    features: np.ndarray, labels: np.ndarray, weights: np.ndarray, classes: int, groups: np.ndarray, strength: float,
    seed: int,
) -> np.ndarray:  # fmt: skip
    """Probabilities (n, K) of heads that didn't learn the photograph, never quite 0."""
    probs = np.full((len(labels), classes), 1e-6)
    splitter = StratifiedGroupKFold(min(FOLDS, len(np.unique(groups))), shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # a class of two or three photographs is in few of the folds
        warnings.filterwarnings("ignore", message="The least populated class in y has only")
        parts = list(splitter.split(features, labels, groups))
    for train, held in parts:
        if len(np.unique(labels[train])) < 2:
            probs[np.ix_(held, np.unique(labels[train]))] = 1.0
            continue
        centre, scale = features[train].mean(0), features[train].std(0) + 1e-6
        head = LogisticRegression(C=strength, max_iter=300, tol=1e-3)
        head.fit((features[train] - centre) / scale, labels[train], sample_weight=weights[train])
        probs[np.ix_(held, head.classes_)] = head.predict_proba((features[held] - centre) / scale)
    return probs / probs.sum(1, keepdims=True)
