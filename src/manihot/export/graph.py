"""One ONNX graph of a whole model: its networks, the mean over its folds, and the calibration.

What follows the networks computes in double precision, as `manihot predict` does, so that the answers are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manihot.errors import WeightsError
from manihot.infer.models import TrainedModel
from manihot.networks.runner import LinearHead
from manihot.records.files import atomic_path
from manihot.records.probabilities import TINY
from manihot.records.run_folder import BACKBONE, HEAD
from manihot.trust.calibrate import Calibrator

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

OUTPUTS = ("embeddings", "logits", "probabilities")
DOUBLE, FLOAT = 11, 1  # of onnx.TensorProto


class Graph:
    """Nodes and constants of a graph being built; every method returns the name of what it computes."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, value: np.ndarray | Sequence[float] | float, kind: type = np.float32) -> str:
        """A constant of that type."""
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype=kind, order="C"), name))
        return name

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """A node with one output."""
        from onnx import helper

        out = name or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        return out


def build_model(
    networks: Sequence[Path],
    heads: Sequence[LinearHead],
    classes: int,
    calibrator: Calibrator,
    size: tuple[int, int],
    path: Path,
    metadata: dict[str, str],
) -> None:
    """Write networks as one graph, atomically.

    networks: a backbone, with its `heads`, or fine-tuned networks, with none. Input `photos` uint8 (N, height, width,
    3) of `size`. Outputs, float32: `embeddings` (N, D), the mean over the networks; `logits` (N, K), the logarithm of
    the networks' mean probability; `probabilities` (N, K), calibrated. Raises WeightsError for networks that don't go
    together.
    """
    import onnx
    from onnx import helper

    opened = [onnx.load(str(file)) for file in networks]
    versions = {tuple(sorted((one.domain, one.version) for one in model.opset_import)) for model in opened}
    if len(versions) > 1:
        raise WeightsError("these networks were written for different versions of ONNX", "train their folds alike")
    graph, inside = Graph(), [_named(model, f"n{k}_") for k, model in enumerate(opened)]
    embeddings = [f"n{k}_embeddings" for k in range(len(inside))]
    logits = _of_heads(graph, embeddings[0], heads, classes) if heads else _of_networks(graph, len(inside), classes)
    _mean(graph, [graph.add("Cast", one, to=DOUBLE) for one in embeddings], "embeddings")
    count = len(heads) or len(inside)
    each = graph.add("Softmax", graph.add("Cast", logits, to=DOUBLE), axis=2)
    raw = graph.add("MatMul", graph.constant(np.full((1, count), 1 / count), np.float64), each)
    raw = graph.add("Reshape", raw, graph.constant([0, classes], np.int64))
    log = graph.add("Log", graph.add("Max", raw, graph.constant(TINY, np.float64)))
    graph.add("Cast", log, to=FLOAT, name="logits")
    graph.add("Cast", calibrate(graph, raw, log, calibrator, classes), to=FLOAT, name="probabilities")
    photos = helper.make_tensor_value_info("photos", 2, ["n", *size, 3])
    outputs = [helper.make_tensor_value_info(name, FLOAT, ["n", None]) for name in OUTPUTS]
    nodes, constants = [], []
    for model in inside:
        nodes += list(model.graph.node)
        constants += list(model.graph.initializer)
    made = helper.make_model(
        helper.make_graph([*nodes, *graph.nodes], "manihot", [photos], outputs, [*constants, *graph.constants]),
        opset_imports=list(opened[0].opset_import),
        ir_version=max(model.ir_version for model in opened),
        producer_name="manihot",
    )
    helper.set_model_props(made, metadata)
    with atomic_path(path) as temporary:
        onnx.save(made, str(temporary))


def parts_of(model: TrainedModel) -> tuple[list[Path], list[LinearHead]]:
    """A model's networks, and its linear heads where these share a backbone.

    Raises WeightsError for networks that only torch opens.
    """
    files = model.files
    if all(file.name == HEAD for file in files):
        return [files[0].parents[1] / BACKBONE], [LinearHead.load(file) for file in files]
    for file in files:
        if file.suffix != ".onnx":
            raise WeightsError(
                f"{file}: this network was not written as ONNX, and only such can be exported",
                "train it again with a backbone that can; the run said why when it was trained",
            )
    return list(files), []


def slim(model: ModelProto) -> ModelProto:
    """The same without the outputs that aren't needed here, feature maps above all, and what only these need."""
    import onnx

    known = {output.name for output in model.graph.output}
    wanted = [name for name in ("embeddings", "logits") if name in known]
    keep, needed = [], set(wanted)
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            keep.append(node)
            needed |= set(node.input)
    small = onnx.ModelProto()
    small.CopyFrom(model)
    del small.graph.node[:]
    small.graph.node.extend(reversed(keep))
    for output in [one for one in small.graph.output if one.name not in wanted]:
        small.graph.output.remove(output)
    del small.graph.value_info[:]
    return small


def _named(model: ModelProto, prefix: str) -> ModelProto:
    """A slim model with names of its own, but for its input."""
    from onnx import compose

    return compose.add_prefix(slim(model), prefix, rename_inputs=False)


def _of_heads(graph: Graph, embeddings: str, heads: Sequence[LinearHead], classes: int) -> str:
    """Logits (N, M, K) of M heads, by one product."""
    weight = np.concatenate([head.weight for head in heads]).T
    bias = np.concatenate([head.bias for head in heads])
    flat = graph.add("Add", graph.add("MatMul", embeddings, graph.constant(weight)), graph.constant(bias))
    return graph.add("Reshape", flat, graph.constant([0, len(heads), classes], np.int64))


def _of_networks(graph: Graph, count: int, classes: int) -> str:
    shape = graph.constant([0, 1, classes], np.int64)
    each = [graph.add("Reshape", f"n{k}_logits", shape) for k in range(count)]
    return graph.add("Concat", *each, axis=1)


def _mean(graph: Graph, values: Sequence[str], name: str) -> None:
    total = values[0] if len(values) == 1 else graph.add("Sum", *values)
    graph.add("Cast", graph.add("Div", total, graph.constant(len(values), np.float64)), to=FLOAT, name=name)


def calibrate(graph: Graph, raw: str, log: str, calibrator: Calibrator, classes: int) -> str:
    """Calibrated probabilities (N, K), double, from raw ones and their logarithm: what `Calibrator` computes."""
    params = calibrator.params
    if calibrator.kind == "none":
        return raw
    if calibrator.kind == "temperature":
        scaled = graph.add("Div", log, graph.constant(params["temperature"], np.float64))
        return graph.add("Softmax", scaled, axis=1)
    if calibrator.kind == "vector":
        scaled = graph.add("Mul", log, graph.constant(params["weights"], np.float64))
        return graph.add("Softmax", graph.add("Add", scaled, graph.constant(params["bias"], np.float64)), axis=1)
    if calibrator.kind == "isotonic":
        columns = [graph.add("Gather", raw, graph.constant([k], np.int64), axis=1) for k in range(classes)]
        steps = [_curve(graph, column, curve) for column, curve in zip(columns, params["curves"], strict=True)]
        return _to_one(graph, graph.add("Concat", *steps, axis=1), classes)
    return _confidence(graph, raw, params["curve"], classes)


def _confidence(graph: Graph, raw: str, curve: dict[str, Any], classes: int) -> str:
    """The top class gets its calibrated probability, the others share the rest."""
    best, place = _top(graph, raw)
    numbers = graph.constant(np.arange(classes).reshape(1, -1), np.int64)
    top = graph.add("Cast", graph.add("Equal", numbers, place), to=DOUBLE)
    one = graph.constant(1.0, np.float64)
    others = graph.add("Mul", graph.add("Max", raw, graph.constant(TINY, np.float64)), graph.add("Sub", one, top))
    others = _to_one(graph, others, classes)
    second, _ = _top(graph, others)
    least = graph.add("Div", second, graph.add("Add", one, second))
    least = graph.add("Mul", least, graph.constant(1 + 1e-9, np.float64))
    sure = graph.add("Max", _curve(graph, best, curve), least)
    rest = graph.add("Mul", others, graph.add("Sub", one, sure))
    return graph.add("Add", rest, graph.add("Mul", top, sure))


def _top(graph: Graph, values: str) -> tuple[str, str]:
    """Largest of each row (N, 1), and its place (N, 1), the first of equal ones."""
    from onnx import helper

    names = f"top{len(graph.nodes)}", f"place{len(graph.nodes)}"
    inputs = [values, graph.constant([1], np.int64)]
    graph.nodes.append(helper.make_node("TopK", inputs, list(names), axis=1))
    return names


def _curve(graph: Graph, x: str, curve: dict[str, Any]) -> str:
    """A rising line through points, level beyond them, of x (N, 1), double: (N, 1)."""
    at, value = np.asarray(curve["x"], np.float64), np.asarray(curve["y"], np.float64)
    wide = np.diff(at) > 0
    if not wide.any():
        level = graph.add("Mul", x, graph.constant(0.0, np.float64))
        return graph.add("Add", level, graph.constant(value[-1], np.float64))
    start, width, rise = at[:-1][wide], np.diff(at)[wide], np.diff(value)[wide]
    along = graph.add("Max", graph.add("Sub", x, graph.constant(start, np.float64)), graph.constant(0.0, np.float64))
    along = graph.add("Min", along, graph.constant(width, np.float64))
    climbed = graph.add("MatMul", along, graph.constant((rise / width)[:, None], np.float64))
    return graph.add("Add", climbed, graph.constant(value[0], np.float64))


def _to_one(graph: Graph, values: str, classes: int) -> str:
    """Rows scaled to the sum of one."""
    total = graph.add("MatMul", values, graph.constant(np.ones((classes, 1)), np.float64))
    return graph.add("Div", values, total)
