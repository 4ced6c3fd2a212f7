"""Prediction sets and strangeness inside an exported graph, and the small detector that is exported.

A run's detector remembers thousands of photographs. The exported one remembers a few hundred, by their embeddings in
8 bits, and has a limit of its own, fitted in the same way on photographs that it doesn't remember.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from manihot.export.nodes import BYTE, FLOAT, Graph
from manihot.trust.conformal import DECIMALS, ConformalSets
from manihot.trust.out_of_distribution import FALSE_REJECTION
from manihot.trust.unknown import fit_threshold, score_knn

REMEMBERED = 192  # photographs: a quarter of a megabyte
FEATURES = 1280  # of the embeddings, the first: of EfficientNet and MobileNetV2 the mean of their last maps
NEIGHBOUR = 10  # of all photographs; of fewer the one that is as near


@dataclass(frozen=True)
class SmallDetector:
    """Distance to the k-th nearest of some remembered photographs, in units of its limit: above 1 is refused.

    known: int8 (M, D), the first D features of embeddings of unit length, each row divided by its scale (M,).
    """

    known: np.ndarray
    scale: np.ndarray
    k: int
    limit: float

    @property
    def remembered(self) -> np.ndarray:
        """The remembered embeddings, float32 (M, D)."""
        found: np.ndarray = self.known.astype(np.float32) * self.scale[:, None]
        return found

    def strangeness(self, embeddings: np.ndarray) -> np.ndarray:
        """Of embeddings (N, D or more): (N,)."""
        found: np.ndarray = score_knn(self.remembered, embeddings[:, : self.known.shape[1]], self.k) / self.limit
        return found


def fit_detector(
    embeddings: np.ndarray, false_rejection: float = FALSE_REJECTION, seed: int = 0
) -> SmallDetector | None:
    """Fit on held-out photographs (N, D); None where these are too few to promise the rate.

    Half of them may be remembered, the other half gives the limit.
    """
    order = np.random.default_rng(seed).permutation(len(embeddings))
    memory, judged = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    kept = memory[:: max(1, -(-len(memory) // REMEMBERED))]
    if not len(kept):
        return None
    part = embeddings[:, :FEATURES].astype(np.float32)
    own = part[kept] / np.maximum(np.linalg.norm(part[kept], axis=1, keepdims=True), 1e-12)
    scale = np.maximum(np.abs(own).max(1), 1e-12) / 127
    known = np.rint(own / scale[:, None]).astype(np.int8)
    k = max(1, min(len(kept), round(NEIGHBOUR * len(kept) / len(memory))))
    made = SmallDetector(known, scale.astype(np.float32), k, 1.0)
    limit = fit_threshold(made.strangeness(part[judged]), false_rejection)
    return SmallDetector(known, made.scale, k, max(limit, 1e-12)) if np.isfinite(limit) else None


def add_strangeness(graph: Graph, embeddings: Sequence[str], detectors: Sequence[SmallDetector], name: str) -> None:
    """The output `name`, float32 (N,): the median of the detectors' opinions, each of its own embeddings."""
    each = [_distance(graph, own, one) for own, one in zip(embeddings, detectors, strict=True)]
    count = len(each)
    ordered, _ = graph.top(graph.add("Concat", *each, axis=1) if count > 1 else each[0], count)
    share = np.zeros((count, 1), np.float32)
    share[[(count - 1) // 2, count // 2]] = 1.0 if count % 2 else 0.5
    median = graph.add("MatMul", ordered, graph.constant(share))
    graph.add("Reshape", median, graph.constant([-1], np.int64), name=name)


def _distance(graph: Graph, embeddings: str, one: SmallDetector) -> str:
    """In units of the limit, (N, 1)."""
    ends = (graph.constant([end], np.int64) for end in (0, one.known.shape[1], 1))
    part = graph.add("Slice", embeddings, *ends)
    square = graph.add("MatMul", graph.add("Mul", part, part), graph.constant(np.ones((one.known.shape[1], 1))))
    length = graph.add("Sqrt", square)
    part = graph.add("Div", part, graph.add("Max", length, graph.constant(1e-12)))
    known = graph.add("Cast", graph.constant(one.known, np.int8), to=FLOAT)
    inverse = one.scale / np.linalg.norm(one.remembered, axis=1)
    known = graph.add("Mul", known, graph.constant(inverse[:, None]))
    near = graph.add("MatMul", part, graph.add("Transpose", known, perm=[1, 0]))
    nearest, _ = graph.top(near, one.k)
    nearest = graph.add("Gather", nearest, graph.constant([one.k - 1], np.int64), axis=1)
    two = graph.constant(2.0)
    square = graph.add("Sub", two, graph.add("Mul", two, nearest))
    distance = graph.add("Sqrt", graph.add("Max", square, graph.constant(0.0)))
    return graph.add("Div", distance, graph.constant(one.limit))


def add_sets(graph: Graph, raw: str, sets: ConformalSets, name: str) -> None:
    """The output `name`, uint8 (N, K): which classes can't be ruled out, by raw probabilities (N, K), double.

    Where the rule is random, at ties and with APS, the larger set.
    """
    classes = len(sets.thresholds)
    scores = graph.add("Sub", graph.constant(1.0, np.float64), raw)
    if sets.kind != "lac":
        scores = _above(graph, raw, classes, sets.settings.get("penalty", 0.0), sets.settings.get("free", 0.0))
    unit = graph.constant(10.0**DECIMALS, np.float64)
    scores = graph.add("Div", graph.add("Round", graph.add("Mul", scores, unit)), unit)
    limits = np.where(np.isfinite(sets.thresholds), sets.thresholds, 1e300)
    graph.add("Cast", graph.add("LessOrEqual", scores, graph.constant(limits, np.float64)), to=BYTE, name=name)


def _above(graph: Graph, raw: str, classes: int, penalty: float, free: float) -> str:
    """The probability of all likelier classes, and the penalty of the rank, (N, K)."""
    ordered, places = graph.top(raw, classes)
    total = graph.add("CumSum", ordered, graph.constant(1, np.int64), exclusive=1)
    ranks = penalty * np.maximum(np.arange(1, classes + 1) - free, 0)
    total = graph.add("Add", total, graph.constant(ranks, np.float64))
    nothing = graph.add("Mul", raw, graph.constant(0.0, np.float64))
    return graph.add("ScatterElements", nothing, places, total, axis=1)
