"""Anomaly detection among the photographs of one label: the lecture's wish for finding wrong labels.

One-class support vector machine: Schoelkopf et al., Neural Computation 2001. It sees a class alone and asks which of
its photographs lie where few others do; a photograph of another class that looks like them is not found. So the score
stands beside the evidence that the label score is made of, and is no part of it (docs/audit.md has the figures).
"""

from __future__ import annotations

import numpy as np
from sklearn.svm import OneClassSVM

NU = 0.5  # share of the class that may lie outside; tried .1 and .5
FEWEST = 5  # photographs of a class
MOST = 4000  # photographs that a class is learned from: time grows with their square


def one_class_scores(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How much each photograph lies where its class does, in (0, 1), (N,); low for one that doesn't belong.

    s / (s + t): s the machine's density of the class at the photograph, t the median of s in the class, so that the
    middle of each class has .5. features: unit-length rows (N, D) of a network that never learned the labels. NaN for
    classes of fewer than FEWEST photographs; of more than MOST an even choice is learned from, and all are scored.
    """
    out = np.full(len(labels), np.nan)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < FEWEST:
            continue
        learned = rows[:: -(-len(rows) // MOST)]
        density = OneClassSVM(nu=NU, gamma="scale").fit(features[learned]).score_samples(features[rows])
        out[rows] = density / np.maximum(density + np.median(density), 1e-12)
    return out
