"""P(true class | photograph, given label): several opinions of each photograph, weighed by the given labels themselves.

Opinions come from models and neighbours that never saw the photograph's own label. They are pooled log-linearly
(Genest and Zidek 1986, doi 10.1214/ss/1177013825), with weights, biases and a noise channel that make the given labels
likeliest: P(given) = sum over true classes of channel times pool (Patrini et al. 2017, arXiv 1609.03683; the channel by
expectation maximisation as in Dawid and Skene 1979, doi 10.2307/2346806). So an opinion that predicts badly on these
photographs counts little, and it need not be known which labels are wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, logit, softmax
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from manihot.audit.label_neighbours import neighbour_probs
from manihot.audit.label_scores import descend, even_channel, noise_channel, normalise, self_confidence, shrink_channel
from manihot.records.folds import split_groups

FOLDS = 5  # heads that each leave out a part of the photographs
PASSES = 2  # heads and neighbours learn the given labels first, then what was made of them
ROUNDS, ITERATIONS = 2, 12  # of channel and weights in turn, and steps of the latter
RIDGE = 1.0  # photographs' worth of belief in equal weights and no bias
BELIEF = 0.5  # in the confusions found: classes that look alike are confused by opinions, not by annotators alone
BLUR = 0.05  # of the first guess of the channel
LOWEST = 1e-6  # no opinion rules a class out
NO_NOISE = -9.0  # logit of a rate of all but 0
ENOUGH_EVIDENCE = 1.92  # nats: the likelihood-ratio test of one parameter at 5 %
EVEN_BELIEF = 20.0  # photographs a class; the audit's 200 would hide the confusions that a loss is to correct
STRENGTHS = (0.001, 0.003)  # of the first round, which must not believe wrong labels, and of the second


@dataclass(frozen=True)
class Pool:
    """probs: P(class | photograph) without the given label, (N, K). channel: P(given | true), (K, K), columns sum to 1.

    weights: what each opinion counts, (M,).
    """

    probs: np.ndarray
    channel: np.ndarray
    weights: np.ndarray

    def posterior(self, labels: np.ndarray) -> np.ndarray:
        """P(true class | photograph, given label), (N, K)."""
        return true_class(labels, self.probs, self.channel)


def true_class(labels: np.ndarray, probs: np.ndarray, channel: np.ndarray) -> np.ndarray:
    """P(true class | photograph, given label), (N, K), by Bayes' rule; probs: P(class | photograph)."""
    return normalise(probs * channel[labels])


def pool_opinions(labels: np.ndarray, opinions: Sequence[np.ndarray], channel: np.ndarray) -> Pool:
    """The log-linear pool of `opinions` under which the given labels are likeliest.

    labels: int (N,). opinions: logits or log-probabilities (N, K) each, own label unseen. channel: a first guess of
    P(given | true), (K, K).
    """
    stack = np.stack([np.asarray(o, dtype=np.float64) for o in opinions])
    stack -= stack.mean(axis=2, keepdims=True)
    count, _, k = stack.shape
    found = np.r_[np.full(count, 1 / count), np.zeros(k)]
    channel = (1 - BLUR) * channel + BLUR / k
    bounds = [(0, None)] * count + [(None, None)] * k
    for turn in range(ROUNDS):
        found = minimize(
            _cost, found, (stack, labels, channel), "L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": ITERATIONS}
        ).x
        probs = softmax(np.tensordot(found[:count], stack, 1) + found[count:], axis=1)
        if turn < ROUNDS - 1:
            joint = np.zeros((k, k))
            np.add.at(joint, labels, true_class(labels, probs, channel))
            channel = _level(shrink_channel(joint))
    return Pool(probs, channel, found[:count])


def _cost(found: np.ndarray, stack: np.ndarray, labels: np.ndarray, channel: np.ndarray) -> tuple[float, np.ndarray]:
    """Negative log-likelihood of the given labels, and its gradient by weights (M,) and biases (K,)."""
    count = len(stack)
    off, bias = found[:count] - 1 / count, found[count:]
    probs = softmax(np.tensordot(found[:count], stack, 1) + bias, axis=1)
    joint = probs * channel[labels]
    likely = joint.sum(axis=1)
    pull = joint / likely[:, None] - probs
    by_weight = np.einsum("mnk,nk->m", stack, pull)
    cost = RIDGE * (off @ off + bias @ bias) - np.log(likely).sum()
    return float(cost), np.r_[2 * RIDGE * off - by_weight, 2 * RIDGE * bias - pull.sum(axis=0)]


def _level(channel: np.ndarray) -> np.ndarray:
    """A channel (K, K) drawn by 1 - BELIEF towards one of as many errors that confuses all classes alike."""
    even = even_channel(len(channel), 1 - np.trace(channel) / len(channel))
    return BELIEF * channel + (1 - BELIEF) * even


def pool_predictions(labels: np.ndarray, pred_probs: np.ndarray) -> Pool:
    """The pool of one opinion: predictions rescaled to the confidence that the given labels warrant."""
    return pool_opinions(labels, [_log(pred_probs)], noise_channel(labels, pred_probs))


def pool_with_features(
    labels: np.ndarray,
    pred_probs: np.ndarray,
    features: np.ndarray,
    neighbours: np.ndarray,
    groups: np.ndarray,
    copies_say: np.ndarray,
) -> Pool:
    """The pool of predictions, neighbours, and linear heads that left the photograph's group out.

    In the second pass neighbours vote with, and heads learn, the posterior of the first: wrong labels mislead less.
    features: unit-length rows (N, D). neighbours: indices (N, k), -1 for none. groups: int (N,), never split.
    copies_say: likelihood (N, K) of the labels that copies were given.
    """
    n, k = pred_probs.shape
    channel = noise_channel(labels, pred_probs)
    share = (np.bincount(labels, minlength=k) + 1) / (n + k)
    votes, targets = true_class(labels, pred_probs, channel), np.eye(k)[labels]
    fold = split_by_rank(features, groups)
    for _ in range(PASSES):
        opinions = [
            _log(pred_probs),
            _log(neighbour_probs(neighbours, votes, share)),
            held_out_logits(features, targets, fold),
        ]
        pool = pool_opinions(labels, opinions, channel)
        votes = targets = normalise(pool.posterior(labels) * copies_say)
    return pool


def split_by_rank(features: np.ndarray, groups: np.ndarray, folds: int = FOLDS) -> np.ndarray:
    """Fold (N,) of each photograph: its group's rank along the first component, dealt out in turn.

    Alike in every fold, and the same for any order of rows.
    """
    _, group, size = np.unique(groups, return_inverse=True, return_counts=True)
    place = np.bincount(group, weights=features[:, 0], minlength=len(size)) / size
    rank = np.empty(len(size), dtype=np.int64)
    rank[np.argsort(place, kind="stable")] = np.arange(len(size))
    return (rank % folds)[group]


def held_out_logits(features: np.ndarray, targets: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Logits (N, K), averaged over the steps of training, of linear heads that never saw the photograph's fold.

    features: unit-length rows (N, D). targets: (N, K), rows sum to 1. fold: int (N,).
    """
    n, k = targets.shape
    heads = int(fold.max(initial=0)) + 1
    steps, weight, bias = 0, np.zeros((features.shape[1], heads, k)), np.zeros((heads, k))
    for _, at_weight, at_bias in descend(features, targets, fold[:, None] != np.arange(heads)):
        steps, weight, bias = steps + 1, weight + at_weight, bias + at_bias
    logits = np.zeros((n, k))
    for head in range(heads):
        rows = fold == head
        logits[rows] = features[rows] @ (weight[:, head] / steps) + bias[head] / steps
    return logits


def count_errors(labels: np.ndarray, posterior: np.ndarray) -> int:
    """How many given labels (N,) may be wrong by their posterior (N, K): expectation and a standard deviation more.

    With few photographs the expectation alone can leave out plainly wrong ones.
    """
    wrong = 1 - self_confidence(labels, posterior)
    return round(float(wrong.sum() + np.sqrt((wrong * (1 - wrong)).sum())))


def trust_labels(
    features: np.ndarray, labels: np.ndarray, classes: int, groups: np.ndarray, seed: int
) -> tuple[np.ndarray, float]:
    """The probability that each label (n,) is right, float64 (n,), and the estimated rate of wrong ones.

    features (n, D) of a frozen network; groups (n,): photographs that must not be separated. A linear head learns in
    five folds (the cross-validation of confident learning, Northcutt et al., arXiv 1911.00068); its out-of-fold answers
    weigh the labels, and a second round learns with these weights. The second round's answers, sharpened by a
    temperature, are taken for the probabilities of the true class.
    """
    rows = np.arange(len(labels))
    first = _answers(features, labels, np.ones(len(labels)), classes, groups, STRENGTHS[0], seed)
    weight = self_confidence(labels, first)
    second = _answers(features, labels, weight / weight.mean(), classes, groups, STRENGTHS[1], seed + 1)
    temperature, rate = fit_noise(second, labels)
    return true_class(labels, _sharpened(second, temperature), even_channel(classes, rate))[rows, labels], rate


def estimate_transition(
    features: np.ndarray, labels: np.ndarray, classes: int, groups: np.ndarray, seed: int
) -> np.ndarray:
    """P(given label | true class), (K, K), a row a true class: the confident joint of out-of-fold answers.

    Arguments as for `trust_labels`, whose first round's answers these are.
    """
    probs = _answers(features, labels, np.ones(len(labels)), classes, groups, STRENGTHS[0], seed)
    found: np.ndarray = noise_channel(labels, probs, EVEN_BELIEF).T
    return found


def fit_noise(probs: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Temperature and rate of wrong labels under which labels (n,) are likeliest, given out-of-fold probs (n, K)."""
    classes = probs.shape[1]
    most = 1 - 1 / classes  # more wrong labels than that would be no labels at all

    def cost(at: np.ndarray) -> float:
        own = self_confidence(labels, _sharpened(probs, float(np.exp(at[0]))))
        rate = expit(at[1]) * most
        return -float(np.log((1 - rate) * own + rate / (classes - 1) * (1 - own)).mean())

    starts = [np.array([np.log(t), logit(e / most)]) for t in (0.3, 1.0) for e in (0.02, 0.2)]
    found = [minimize(cost, start, method="L-BFGS-B", bounds=[(-3.0, 1.5), (NO_NOISE, 4.0)]) for start in starts]
    best = min(found, key=lambda one: one.fun)
    plain = minimize_scalar(lambda at: cost(np.array([at, NO_NOISE])), bounds=(-3.0, 1.5), method="bounded")
    if (plain.fun - best.fun) * len(labels) < ENOUGH_EVIDENCE:  # answers without wrong labels explain it as well
        return float(np.exp(plain.x)), 0.0
    return float(np.exp(best.x[0])), float(expit(best.x[1]) * most)


def _sharpened(probs: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / T), kept away from 0 and 1."""
    found: np.ndarray = np.clip(softmax(np.log(probs) / temperature, axis=1), LOWEST, 1 - LOWEST)
    return found


def _answers(
    features: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    classes: int,
    groups: np.ndarray,
    strength: float,
    seed: int,
) -> np.ndarray:
    """Probabilities (n, K) of heads that didn't learn the photograph, never quite 0."""
    probs = np.full((len(labels), classes), LOWEST)
    most = int(np.bincount(labels).max())  # of which class the splitter wants one photograph per fold
    if most < 2:
        return np.full_like(probs, 1 / classes)
    folds = split_groups(labels, groups, min(FOLDS, len(np.unique(groups)), most), seed)
    for fold in np.unique(folds):
        train, held = folds != fold, np.flatnonzero(folds == fold)
        if len(np.unique(labels[train])) < 2:
            probs[np.ix_(held, np.unique(labels[train]))] = 1.0
            continue
        centre, scale = features[train].mean(0), features[train].std(0) + 1e-6
        head = LogisticRegression(C=strength, max_iter=300, tol=1e-3)
        with threadpool_limits(1, "blas"):  # small products: two threads wait for each other
            head.fit((features[train] - centre) / scale, labels[train], sample_weight=weights[train])
        probs[np.ix_(held, head.classes_)] = head.predict_proba((features[held] - centre) / scale)
    found: np.ndarray = probs / probs.sum(1, keepdims=True)
    return found


def _log(probs: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.log(np.clip(probs, LOWEST, 1))
    return found
