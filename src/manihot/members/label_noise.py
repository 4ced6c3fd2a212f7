"""How likely each given label is right, from features of a frozen network and cross-validation inside the labels.

A linear head learns in five folds; its out-of-fold answers weigh the labels, and a second round learns with these
weights. The second round's answers, sharpened by a temperature T, are taken for the probabilities of the true class;
given labels are the true ones but for a rate e of wrong ones that fall on all other classes alike. T and e are those
under which the given labels are likeliest, and Bayes' rule gives the probability that a label is right:
(1 - e) p(given) / [(1 - e) p(given) + e / (K - 1) (1 - p(given))]. The noise model is the symmetric one of Patrini et
al. (arXiv 1609.03683), the cross-validation that of confident learning (Northcutt et al., arXiv 1911.00068).
"""

from __future__ import annotations

import warnings

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, logit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

FOLDS = 5
NO_NOISE = -9.0  # logit of a rate of all but 0
ENOUGH_EVIDENCE = 1.92  # nats: the likelihood-ratio test of one parameter at 5 %
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
    temperature, rate = fit_noise(second, labels)
    own = _sharpened(second, temperature)[rows, labels]
    right = own * (1 - rate)
    wrong = (1 - own) * rate / (classes - 1)
    return right / (right + wrong), rate


def fit_noise(probs: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Temperature and rate of wrong labels under which labels (n,) are likeliest, given out-of-fold probs (n, K)."""
    classes = probs.shape[1]
    rows = np.arange(len(labels))

    def cost(at: np.ndarray) -> float:
        own = _sharpened(probs, float(np.exp(at[0])))[rows, labels]
        rate = expit(at[1]) * (1 - 1 / classes)  # more than that would be no label at all
        return -float(np.log((1 - rate) * own + rate / (classes - 1) * (1 - own)).mean())

    starts = [np.array([np.log(t), logit(e / (1 - 1 / classes))]) for t in (0.3, 1.0) for e in (0.02, 0.2)]
    found = [minimize(cost, start, method="L-BFGS-B", bounds=[(-3.0, 1.5), (NO_NOISE, 4.0)]) for start in starts]
    best = min(found, key=lambda one: one.fun)
    plain = minimize_scalar(lambda at: cost(np.array([at, NO_NOISE])), bounds=(-3.0, 1.5), method="bounded")
    if (plain.fun - best.fun) * len(labels) < ENOUGH_EVIDENCE:  # answers without wrong labels explain it as well
        return float(np.exp(plain.x)), 0.0
    best = best.x
    return float(np.exp(best[0])), float(expit(best[1]) * (1 - 1 / classes))


def _sharpened(probs: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / T), kept away from 0 and 1."""
    return np.clip(softmax(np.log(probs) / temperature, axis=1), 1e-6, 1 - 1e-6)


def _out_of_fold(
    features: np.ndarray, labels: np.ndarray, weights: np.ndarray, classes: int, groups: np.ndarray, strength: float,
    seed: int,
) -> np.ndarray:  # fmt: skip
    """Probabilities (n, K) of heads that didn't learn the photograph, never quite 0."""
    probs = np.full((len(labels), classes), 1e-6)
    most = int(np.bincount(labels).max())  # of which class the splitter wants one photograph a fold
    if most < 2:
        return np.full_like(probs, 1 / classes)
    folds = min(FOLDS, len(np.unique(groups)), most)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
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
