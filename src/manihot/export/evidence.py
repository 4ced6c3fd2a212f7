"""Class activation maps inside an exported graph: what `manihot.networks.activation` computes, of every class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from manihot.export.nodes import FLOAT, Graph
from manihot.networks.graph import FLOOR, POOLING
from manihot.networks.runner import Layout, LinearHead


def add_activation(
    graph: Graph,
    embeddings: str,
    maps: Sequence[str],
    layout: Layout,
    heads: Sequence[LinearHead],
    half: bool,
    name: str,
) -> None:
    """The output `name`, float32 (N, K, h, w), not negative, on the finest grid: of the mean of the heads.

    maps: (N, channels, h, w) of each depth, in the order of `layout`. embeddings: (N, D).
    """
    weight = np.stack([head.weight for head in heads]).mean(0, dtype=np.float64).astype(np.float32)
    slope = graph.weights(weight[None], half)
    if layout.power:  # e = sign(p) sqrt(|p| + s), so that de/dp = 1 / 2|e|, and 0 at 0
        size, zero = graph.add("Abs", embeddings), graph.constant(0.0)
        inverse = graph.add("Div", graph.constant(0.5), graph.add("Max", size, graph.constant(1e-30)))
        inverse = graph.add("Where", graph.add("Greater", size, zero), inverse, zero)
        slope = graph.add("Mul", slope, graph.add("Unsqueeze", inverse, graph.constant([1], np.int64)))
    grid = graph.add("Slice", graph.add("Shape", finest(maps)), *(graph.constant([at], np.int64) for at in (2, 4)))
    total, at = [], 0
    for one, channels in zip(maps, layout.channels, strict=True):
        gains = []
        for kind in POOLING[layout.pooling]:
            ends = (graph.constant([end], np.int64) for end in (at, at + channels, 2))
            part = graph.add("Slice", slope, *ends)
            gains.append(graph.add("Mul", part, _gem_gain(graph, one)) if kind == "gem" else part)
            at += channels
        gain = gains[0] if len(gains) == 1 else graph.add("Add", *gains)
        total.append(_enlarged(graph, _weighted(graph, one, gain, len(weight)), grid))
    summed = total[0] if len(total) == 1 else graph.add("Sum", *total)
    graph.add("Relu", summed, name=name)


def finest(maps: Sequence[str]) -> str:
    """The maps with the finest grid: the last ones come first, the others from the finest on."""
    return maps[1] if len(maps) > 1 else maps[0]


def _weighted(graph: Graph, maps: str, gain: str, classes: int) -> str:
    """Maps (N, C, h, w) and gains (N or 1, K, C) to (N, K, h, w)."""
    flat = graph.add("Reshape", maps, graph.constant([0, 0, -1], np.int64))
    shape = graph.add("Shape", maps)
    edges = graph.add("Slice", shape, graph.constant([2], np.int64), graph.constant([4], np.int64))
    wanted = graph.add("Concat", graph.constant([0, classes], np.int64), edges, axis=0)
    return graph.add("Reshape", graph.add("MatMul", gain, flat), wanted)


def _gem_gain(graph: Graph, maps: str) -> str:
    """Sum over places of d pooled / d map, (N, 1, C), for pooled = (mean of max(A, floor)^3)^(1/3)."""
    floor = graph.constant(FLOOR)
    floored = graph.add("Max", maps, floor)
    square = graph.add("Mul", floored, floored)
    known = graph.add("Cast", graph.add("GreaterOrEqual", maps, floor), to=FLOAT)
    top = graph.add("GlobalAveragePool", graph.add("Mul", square, known))
    cube = graph.add("GlobalAveragePool", graph.add("Mul", square, floored))
    gain = graph.add("Div", top, graph.add("Pow", cube, graph.constant(2 / 3)))
    return graph.add("Reshape", gain, graph.constant([0, 1, -1], np.int64))


def _enlarged(graph: Graph, maps: str, grid: str) -> str:
    """Bilinear between the centres of cells, to the grid."""
    front = graph.add("Slice", graph.add("Shape", maps), *(graph.constant([at], np.int64) for at in (0, 2)))
    sizes = graph.add("Concat", front, grid, axis=0)
    return graph.add("Resize", maps, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel")
