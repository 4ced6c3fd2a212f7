"""The resize inside an exported graph: photographs of any size to the network's, as `manihot.photos.preprocess` does.

Area averaging down and bilinear up are two matrix products each, with a rounding to whole grey levels after each step,
so that every runtime does the same arithmetic. A photograph of the network's own size passes as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from manihot.export.nodes import BOOL, BYTE, FLOAT, WHOLE, Graph
from manihot.photos.preprocess import Preprocess

if TYPE_CHECKING:
    from onnx import GraphProto


def add_resize(graph: Graph, photos: str, preprocess: Preprocess) -> str:
    """uint8 (N, h, w, 3) of any size to (N, height, width, 3): first to the stored size, as in training.

    Photographs of other proportions are squashed, whatever the fit: cut or pad them before.
    """
    from onnx import helper

    size = graph.add("Slice", graph.add("Shape", photos), *(graph.constant([at], np.int64) for at in (1, 3)))
    same = _all(graph, "Equal", size, graph.constant(preprocess.size, np.int64))
    out = "sized"
    node = helper.make_node(
        "If", [same], [out], name=out, then_branch=_as_it_is(photos), else_branch=_resized(photos, preprocess)
    )
    graph.nodes.append(node)
    return out


def _as_it_is(photos: str) -> GraphProto:
    graph = Graph("same_")
    return _branch(graph, graph.add("Identity", photos))


def _resized(photos: str, preprocess: Preprocess) -> GraphProto:
    graph = Graph("sized_")
    values = graph.add("Cast", graph.add("Transpose", photos, perm=[0, 3, 1, 2]), to=FLOAT)
    for size in dict.fromkeys([preprocess.stored or preprocess.size, preprocess.size]):
        values = _step(graph, values, size)
    return _branch(graph, graph.add("Transpose", graph.add("Cast", values, to=BYTE), perm=[0, 2, 3, 1]))


def _branch(graph: Graph, out: str) -> GraphProto:
    from onnx import helper

    output = helper.make_tensor_value_info(out, BYTE, ["n", None, None, 3])
    return helper.make_graph(graph.nodes, f"{graph.prefix}branch", [], [output], graph.constants)


def _step(graph: Graph, values: str, size: tuple[int, int]) -> str:
    """Maps float (N, 3, h, w) to `size`, whole numbers in 0..255."""
    edges = graph.add("Slice", graph.add("Shape", values), *(graph.constant([at], np.int64) for at in (2, 4)))
    wanted = graph.constant(size, np.int64)
    product = [graph.add("ReduceProd", one, keepdims=0) for one in (wanted, edges)]
    down = graph.add("Less", *product)
    grows = graph.add("Not", _all(graph, "LessOrEqual", wanted, edges))
    rows, columns = (
        _shares(graph, graph.add("Gather", edges, graph.constant(k, np.int64), axis=0), to, down, grows)
        for k, to in enumerate(size)
    )
    across = graph.add("MatMul", values, graph.add("Transpose", columns, perm=[1, 0]))
    found = graph.add("MatMul", rows, across)
    # opencv rounds a half to even, but up where it takes the mean of two by two
    halved = _all(graph, "Equal", graph.add("Mul", wanted, graph.constant(2, np.int64)), edges)
    up = graph.add("Floor", graph.add("Add", found, graph.constant(0.5)))
    found = graph.add("Where", halved, up, graph.add("Round", found))
    return graph.add("Clip", found, graph.constant(0.0), graph.constant(255.0))


def _all(graph: Graph, compare: str, left: str, right: str) -> str:
    """Whether a comparison holds for every number, bool."""
    each = graph.add("Cast", graph.add(compare, left, right), to=WHOLE)
    return graph.add("Cast", graph.add("ReduceMin", each, keepdims=0), to=BOOL)


def _shares(graph: Graph, edge: str, to: int, down: str, grows: str) -> str:
    """What each of `edge` places gives to each of `to`, (to, edge).

    Down by the area that they share; up, and where an edge `grows` while the picture shrinks, by two neighbours.
    """
    zero, one = graph.constant(0.0), graph.constant(1.0)
    counted = graph.add("Range", graph.constant(0, np.int64), edge, graph.constant(1, np.int64))
    source, length = graph.add("Cast", counted, to=FLOAT), graph.add("Cast", edge, to=FLOAT)
    target = np.arange(to, dtype=np.float32)[:, None]
    scale = graph.add("Div", length, graph.constant(float(to)))
    begin = graph.add("Mul", graph.constant(target), scale)
    last = graph.add("Min", graph.add("Add", source, one), graph.add("Add", begin, scale))
    shared = graph.add("Div", graph.add("Max", graph.add("Sub", last, graph.add("Max", source, begin)), zero), scale)
    between = graph.add("Sub", graph.add("Mul", graph.constant(target + 0.5), scale), graph.constant(0.5))
    whole = graph.add("Floor", begin)
    rest = graph.add("Sub", graph.constant(target + 1), graph.add("Div", graph.add("Add", whole, one), scale))
    rest = graph.add("Max", rest, zero)
    rest = graph.add("Sub", rest, graph.add("Floor", rest))
    place = graph.add("Where", down, graph.add("Add", whole, rest), between)
    place = graph.add("Min", graph.add("Max", place, zero), graph.add("Sub", length, one))
    near = graph.add("Sub", one, graph.add("Abs", graph.add("Sub", source, place)))
    by_area = graph.add("And", down, graph.add("Not", grows))
    return graph.add("Where", by_area, shared, graph.add("Max", near, zero))
