"""What single pieces of evidence say about a given label: each score is low where the label looks wrong.

Confident learning: Northcutt, Jiang, Chuang 2021, doi 10.1613/jair.1.12125 (cleanlab's names and definitions, which
the tests hold these functions to). Area under the margin: Pleiss et al. 2020, arXiv 2001.10528.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.special import softmax
from scipy.stats import binomtest

STRENGTH = 200.0  # photographs' worth of prior belief in a noise channel that confuses all classes alike
LOWEST_THRESHOLD = 2e-6  # cleanlab's lower bound of a class's threshold
NEVER = 2.0  # threshold of a class that no photograph is labelled with: out of reach for a probability
STEPS, RATE, MOMENTUM = 100, 2.0, 0.9  # gradient descent of the linear head
BIAS_RATE = 0.2  # share of the rate that the biases get


def self_confidence(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """Probability of the given label, (N,). labels: int (N,) in 0..K-1; pred_probs: (N, K), out of fold."""
    found: np.ndarray = pred_probs[np.arange(len(labels)), labels]
    return found


def normalized_margin(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """(probability of the given label - highest other + 1) / 2, (N,)."""
    found: np.ndarray = (self_confidence(labels, pred_probs) - best_other(labels, pred_probs) + 1) / 2
    return found


def best_other(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The highest value (N,) of a class other than the given one; values (N, K)."""
    masked = np.array(values, dtype=np.float64)
    masked[np.arange(len(labels)), labels] = -np.inf
    return masked.max(axis=1) if masked.shape[1] > 1 else np.zeros(len(labels))


def beats_largest_class(labels: np.ndarray, predicted: np.ndarray) -> bool:
    """Whether predictions are right more often than naming the largest class: one-sided sign test at 5 %.

    labels, predicted: int (N,). A model that fails it has learned nothing that could be held against a label.
    """
    if not len(labels):
        return False
    right, largest = predicted == labels, labels == np.bincount(labels).argmax()
    won, lost = int((right & ~largest).sum()), int((~right & largest).sum())
    return won + lost > 0 and bool(binomtest(won, won + lost, alternative="greater").pvalue < 0.05)


def confident_thresholds(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """Mean probability of a class over the photographs labelled with it, (K,): imbalance sets its own bar."""
    k = pred_probs.shape[1]
    counts = np.bincount(labels, minlength=k)
    sums = np.bincount(labels, weights=self_confidence(labels, pred_probs), minlength=k)
    return np.maximum(np.where(counts > 0, sums / np.maximum(counts, 1), NEVER), LOWEST_THRESHOLD)


def confident_joint(labels: np.ndarray, pred_probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts (K, K) of given label by confidently predicted class, and who lies off the diagonal, bool (N,).

    A photograph counts where at least one class reaches its threshold; with several, the most probable class wins.
    Each diagonal cell holds at least 1. As cleanlab's compute_confident_joint without calibration.
    """
    k = pred_probs.shape[1]
    reached = pred_probs >= confident_thresholds(labels, pred_probs) - 1e-6
    many = reached.sum(axis=1)
    guess = np.where(many > 1, pred_probs.argmax(axis=1), reached.argmax(axis=1))
    sure = many > 0
    joint = np.zeros((k, k))
    np.add.at(joint, (labels[sure], guess[sure]), 1)
    diagonal = np.arange(k)
    joint[diagonal, diagonal] = np.maximum(joint[diagonal, diagonal], 1)
    return joint, sure & (guess != labels)


def calibrated_joint(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """Expected photographs (K, K) of each given (row) and true label (column); rows sum to the given labels."""
    joint, _ = confident_joint(labels, pred_probs)
    counts = np.bincount(labels, minlength=len(joint))
    found: np.ndarray = joint * (counts / joint.sum(axis=1))[:, None]
    return found


def confident_learning(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """Own share (N,) of probability against the best other class, each measured in its class's threshold.

    Below .5 another class is further above (or less below) its threshold than the given one.
    """
    relative = pred_probs / confident_thresholds(labels, pred_probs)
    own = self_confidence(labels, relative)
    found: np.ndarray = own / np.maximum(own + best_other(labels, relative), 1e-300)
    return found


def noise_channel(labels: np.ndarray, pred_probs: np.ndarray, strength: float = STRENGTH) -> np.ndarray:
    """P(given label | true label), (K, K) with the given label in rows and columns that sum to 1.

    From the calibrated joint, drawn by `strength` photographs per class towards a channel with the same share of errors
    that confuses all classes alike: with few photographs the joint's cells reflect chance more than annotators.
    """
    return shrink_channel(calibrated_joint(labels, pred_probs), strength)


def shrink_channel(joint: np.ndarray, strength: float = STRENGTH) -> np.ndarray:
    """P(given | true), (K, K), from expected counts (K, K) of given (row) and true labels; see `noise_channel`."""
    even = even_channel(len(joint), 1 - np.trace(joint) / max(joint.sum(), 1))
    found: np.ndarray = (joint + strength * even) / (joint.sum(axis=0) + strength)
    return found


def even_channel(k: int, rate: float) -> np.ndarray:
    """P(given | true), (K, K), where a share `rate` of the labels is wrong and falls on all other classes alike."""
    channel = np.full((k, k), rate / max(k - 1, 1))
    np.fill_diagonal(channel, 1 - rate)
    return channel


def normalise(values: np.ndarray) -> np.ndarray:
    """Rows scaled to sum to 1; rows of zeros become uniform."""
    total = values.sum(axis=1, keepdims=True)
    return np.where(total > 0, values / np.where(total > 0, total, 1), 1 / values.shape[1])


def area_under_margin(labels: np.ndarray, history: np.ndarray) -> np.ndarray:
    """Mean margin over epochs, (N,): own logit minus the highest other; NaN where no epoch saw the photograph.

    history: logits or log-probabilities (E, N, K), or margins (E, N); NaN for an epoch that left a photograph out.
    """
    if history.ndim == 3:
        own = history[:, np.arange(len(labels)), labels]
        history = own - np.stack([best_other(labels, epoch) for epoch in history])
    seen = np.isfinite(history)
    total = np.where(seen, history, 0).sum(axis=0)
    return np.where(seen.any(axis=0), total / np.maximum(seen.sum(axis=0), 1), np.nan)


def train_margins(labels: np.ndarray, features: np.ndarray, classes: int) -> np.ndarray:
    """Area under the margin (N,) of a linear head that learns the given labels from unit-length features (N, D).

    A wrong label is learned late, against its neighbours' gradients: its margin stays low for most of the way.
    """
    total, steps = np.zeros(len(labels)), 0
    for logits, _, _ in descend(features, np.eye(classes)[labels], np.ones((len(labels), 1), dtype=bool)):
        total += self_confidence(labels, logits[:, 0]) - best_other(labels, logits[:, 0])
        steps += 1
    return total / steps


def descend(
    features: np.ndarray, targets: np.ndarray, shown: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Logits (N, H, K), weights (D, H, K) and biases (H, K) of H linear heads after each step of gradient descent.

    Full batches with momentum, so that the order of photographs and classes plays no part. features: unit-length rows
    (N, D). targets: (N, K), rows sum to 1. shown: bool (N, H), which photographs a head learns from.
    """
    x, wanted = np.asarray(features, dtype=np.float32), np.asarray(targets, dtype=np.float32)
    heads, classes = shown.shape[1], wanted.shape[1]
    part = (shown / np.maximum(shown.sum(axis=0), 1)).astype(np.float32)
    weight, bias = np.zeros((x.shape[1], heads, classes), np.float32), np.zeros((heads, classes), np.float32)
    speed, bias_speed = np.zeros_like(weight), np.zeros_like(bias)
    logits = np.zeros((len(x), heads, classes), np.float32)
    for _ in range(STEPS - 1):
        gradient = (softmax(logits, axis=2) - wanted[:, None]) * part[:, :, None]
        speed = MOMENTUM * speed - RATE * (x.T @ gradient.reshape(len(x), heads * classes)).reshape(weight.shape)
        bias_speed = MOMENTUM * bias_speed - RATE * BIAS_RATE * gradient.sum(axis=0)
        weight, bias = weight + speed, bias + bias_speed
        logits = (x @ weight.reshape(x.shape[1], heads * classes)).reshape(logits.shape) + bias
        yield logits, weight, bias
