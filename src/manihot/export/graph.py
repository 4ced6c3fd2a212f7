"""One ONNX graph of a whole model: its networks, the mean over its folds, and the calibration.

What follows the networks computes in double precision, as `manihot predict` does, so that the answers are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manihot.errors import WeightsError
from manihot.export.evidence import add_activation
from manihot.export.nodes import BYTE, DOUBLE, FLOAT, Graph
from manihot.export.refusal import SmallDetector, add_sets, add_strangeness
from manihot.export.sized import add_resize
from manihot.infer.models import TrainedModel
from manihot.networks.runner import MAPS, Layout, LinearHead, OnnxRunner
from manihot.photos.preprocess import Preprocess
from manihot.records.files import atomic_path
from manihot.records.probabilities import TINY
from manihot.records.run_folder import BACKBONE, HEAD
from manihot.trust.calibrate import Calibrator
from manihot.trust.conformal import ConformalSets

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Networks:
    """What answers: one backbone with heads, or networks that classify themselves.

    layout: how the backbone pools its maps, where heads stand on it; None otherwise. half: the heads' weights are kept
    in 16 bits.
    """

    files: Sequence[Path]
    heads: Sequence[LinearHead] = ()
    layout: Layout | None = None
    half: bool = False


@dataclass(frozen=True)
class Trust:
    """What is said of an answer. sets: None where there are none. detectors: one for each network's file, or none."""

    calibrator: Calibrator
    sets: ConformalSets | None = None
    detectors: Sequence[SmallDetector] = ()


def build_model(
    networks: Networks, trust: Trust, classes: int, preprocess: Preprocess, path: Path, metadata: dict[str, str]
) -> None:
    """Write networks as one graph, atomically.

    Input `photos` uint8 (N, height, width, 3) of any size. Outputs, float32: `embeddings` (N, D), the mean over the
    networks; `logits` (N, K), the logarithm of the networks' mean probability; `probabilities` (N, K), calibrated;
    where there are sets `held`, uint8 (N, K), where there are detectors `strangeness` (N,), and where heads stand on a
    backbone `activation` (N, K, h, w). Raises WeightsError for networks that don't go together.
    """
    import onnx

    opened = [onnx.load(str(file)) for file in networks.files]
    versions = {tuple(sorted((one.domain, one.version) for one in model.opset_import)) for model in opened}
    if len(versions) > 1:
        raise WeightsError("these networks were written for different versions of ONNX", "train their folds alike")
    graph, inside = Graph(), [_named(model, f"n{k}_", maps=bool(networks.heads)) for k, model in enumerate(opened)]
    sized = add_resize(graph, "photos", preprocess)
    first = len(graph.nodes)  # the networks come after these
    embeddings = [f"n{k}_embeddings" for k in range(len(inside))]
    heads = networks.heads
    logits = _of_heads(graph, embeddings[0], networks, classes) if heads else _of_networks(graph, len(inside), classes)
    _mean(graph, [graph.add("Cast", one, to=DOUBLE) for one in embeddings], "embeddings")
    outputs = _answer(graph, logits, len(heads) or len(inside), classes, trust)
    if trust.detectors:
        add_strangeness(graph, embeddings, trust.detectors, "strangeness")
        outputs["strangeness"] = (FLOAT, ["n"])
    if heads and networks.layout is not None:
        maps = [f"n0_maps_{k}" for k in range(len(networks.layout.channels))]
        add_activation(graph, embeddings[0], maps, networks.layout, heads, networks.half, "activation")
        outputs["activation"] = (FLOAT, ["n", classes, None, None])
    nodes, constants = graph.nodes[:first], list(graph.constants)
    for model in inside:
        for node in model.graph.node:
            node.input[:] = [sized if name == "photos" else name for name in node.input]
        nodes += list(model.graph.node)
        constants += list(model.graph.initializer)
    nodes += graph.nodes[first:]
    photos = ("photos", (BYTE, ["n", "h", "w", 3]))
    _write(nodes, constants, photos, {"embeddings": (FLOAT, ["n", None]), **outputs}, opened, path, metadata)


Shape = tuple[int, list[Any]]  # a type of numbers and the edges


def _answer(graph: Graph, logits: str, count: int, classes: int, trust: Trust) -> dict[str, Shape]:
    """Probabilities and sets from the logits (N, M, K) of `count` networks; the outputs with their shapes."""
    each = graph.add("Softmax", graph.add("Cast", logits, to=DOUBLE), axis=2)
    raw = graph.add("MatMul", graph.constant(np.full((1, count), 1 / count), np.float64), each)
    raw = graph.add("Reshape", raw, graph.constant([0, classes], np.int64))
    log = graph.add("Log", graph.add("Max", raw, graph.constant(TINY, np.float64)))
    graph.add("Cast", log, to=FLOAT, name="logits")
    graph.add("Cast", calibrate(graph, raw, log, trust.calibrator, classes), to=FLOAT, name="probabilities")
    outputs: dict[str, Shape] = {name: (FLOAT, ["n", classes]) for name in ("logits", "probabilities")}
    if trust.sets is not None:
        add_sets(graph, raw, trust.sets, "held")
        outputs["held"] = (BYTE, ["n", classes])
    return outputs


def _write(
    nodes: list[Any],
    constants: list[Any],
    photos: tuple[str, Shape],
    outputs: dict[str, Shape],
    opened: Sequence[ModelProto],
    path: Path,
    metadata: dict[str, str],
) -> None:
    import onnx
    from onnx import helper

    inputs = [helper.make_tensor_value_info(photos[0], *photos[1])]
    told = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()]
    made = helper.make_model(
        helper.make_graph(nodes, "manihot", inputs, told, constants),
        opset_imports=list(opened[0].opset_import),
        ir_version=max(model.ir_version for model in opened),
        producer_name="manihot",
    )
    helper.set_model_props(made, metadata)
    with atomic_path(path) as temporary:
        onnx.save(made, str(temporary))


def parts_of(model: TrainedModel) -> Networks:
    """A model's networks, and its linear heads where these share a backbone.

    Raises WeightsError for networks that only torch opens.
    """
    files = model.files
    if all(file.name == HEAD for file in files):
        backbone = files[0].parents[1] / BACKBONE
        return Networks([backbone], [LinearHead.load(file) for file in files], OnnxRunner(backbone).layout)
    for file in files:
        if file.suffix != ".onnx":
            raise WeightsError(
                f"{file}: this network was not written as ONNX, and only such can be exported",
                "train it again with a backbone that can; the run said why when it was trained",
            )
    return Networks(list(files))


def slim(model: ModelProto, maps: bool = False) -> ModelProto:
    """The same without the outputs that aren't needed here, and what only these need. maps: keep the feature maps."""
    import onnx

    known = [output.name for output in model.graph.output]
    wanted = [name for name in known if name in ("embeddings", "logits") or (maps and name.startswith(MAPS))]
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


def _named(model: ModelProto, prefix: str, maps: bool) -> ModelProto:
    """A slim model with names of its own, but for its input."""
    from onnx import compose

    return compose.add_prefix(slim(model, maps), prefix, rename_inputs=False)


def _of_heads(graph: Graph, embeddings: str, networks: Networks, classes: int) -> str:
    """Logits (N, M, K) of M heads, by one product."""
    heads = networks.heads
    weight = np.concatenate([head.weight for head in heads]).T
    bias = np.concatenate([head.bias for head in heads])
    kept = graph.constant(weight, np.float16 if networks.half else np.float32)
    product = graph.add("MatMul", graph.add("Cast", embeddings, to=DOUBLE), graph.add("Cast", kept, to=DOUBLE))
    flat = graph.add("Add", product, graph.constant(bias, np.float64))
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
    best, place = graph.top(raw)
    numbers = graph.constant(np.arange(classes).reshape(1, -1), np.int64)
    top = graph.add("Cast", graph.add("Equal", numbers, place), to=DOUBLE)
    one = graph.constant(1.0, np.float64)
    others = graph.add("Mul", graph.add("Max", raw, graph.constant(TINY, np.float64)), graph.add("Sub", one, top))
    others = _to_one(graph, others, classes)
    second, _ = graph.top(others)
    least = graph.add("Div", second, graph.add("Add", one, second))
    least = graph.add("Mul", least, graph.constant(1 + 1e-9, np.float64))
    sure = graph.add("Max", _curve(graph, best, curve), least)
    rest = graph.add("Mul", others, graph.add("Sub", one, sure))
    return graph.add("Add", rest, graph.add("Mul", top, sure))


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
