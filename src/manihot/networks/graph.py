"""Embedded backbones as ONNX graphs, built from arrays: uint8 photographs in, pooled features out.

Batch norm is folded into the convolutions, padding is TensorFlow's SAME, height and width are free. Beside the
embeddings the graph gives the feature maps that were pooled, so that class activation maps need no second network.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manihot.errors import SettingsError
from manihot.networks.weights import EMBEDDED, STAGES, TAPPED, Embedded, embedded_state, random_state
from manihot.photos.preprocess import Preprocess
from manihot.records.files import atomic_path
from manihot.settings import Model

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

OPSET, IR = 17, 8  # what onnxruntime 1.20 and onnxruntime-web read
EPSILON = 1e-3  # of the batch norms
LAYOUT = "manihot.layout"  # of the embeddings, in the file's metadata


class Graph:
    """Nodes and constants of a graph being built; every method returns the name of what it computes."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, value: np.ndarray | float, kind: type = np.float32) -> str:
        """A constant of the graph."""
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(np.asarray(value, dtype=kind)), name))
        return name

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """A node with one output."""
        from onnx import helper

        out = name or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def convolution(
        self, x: str, weight: np.ndarray, norm: tuple[np.ndarray, ...], stride: int = 1, groups: int = 1,
        rectified: bool = True,
    ) -> str:  # fmt: skip
        """A convolution without bias, its batch norm (gamma, beta, mean, variance) folded in, and ReLU6."""
        gamma, beta, mean, variance = norm
        scale = gamma / np.sqrt(variance + EPSILON)
        folded = self.constant(weight * scale[:, None, None, None]), self.constant(beta - mean * scale)
        x = self.add(
            "Conv", x, *folded, auto_pad="SAME_UPPER", group=groups, strides=[stride, stride],
            kernel_shape=list(weight.shape[2:]),
        )  # fmt: skip
        return self.add("Clip", x, self.constant(0.0), self.constant(6.0)) if rectified else x


def build_backbone(model: Model, preprocess: Preprocess, path: Path, seed: int = 0) -> None:
    """Write the backbone of a recipe's `model` as ONNX, atomically; the same bytes for the same arguments.

    Input `photos` uint8 (N, H, W, 3); outputs `embeddings` float32 (N, D), as `manihot.train.networks.heads` computes
    them, and `maps_0` (the last), `maps_1`, ... (N, C, h, w). Raises WeightsError, SettingsError.
    """
    import onnx
    from onnx import TensorProto, helper

    if max(model.taps, default=0) > len(TAPPED):
        raise SettingsError(f"model.taps: {max(model.taps)}, but {model.backbone} has {len(TAPPED)} stages", "lower it")
    state = random_state(model.backbone, seed) if model.pretrained is False else embedded_state(model.backbone)
    graph = Graph()
    x = graph.add("Transpose", graph.add("Cast", "photos", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    mean, std = (255 * np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    x = graph.add("Div", graph.add("Sub", x, graph.constant(mean)), graph.constant(std))
    ends, widths = _stages(graph, x, state, EMBEDDED[model.backbone])
    last = graph.convolution(ends[-1], state["conv_head.weight"], _norm(state, "bn2"))
    maps = [last, *(ends[TAPPED[-tap]] for tap in model.taps)]
    channels = [len(state["conv_head.weight"]), *(widths[TAPPED[-tap]] for tap in model.taps)]
    pooled = graph.add("Concat", *(part for one in maps for part in _pool(graph, one, model.pooling)), axis=1)
    _power(graph, pooled) if model.power else graph.add("Identity", pooled, name="embeddings")
    outputs = [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", None])]
    for number, one in enumerate(maps):
        graph.add("Identity", one, name=f"maps_{number}")
        shape: list[str | int | None] = ["n", channels[number], f"h{number}", f"w{number}"]
        outputs.append(helper.make_tensor_value_info(f"maps_{number}", TensorProto.FLOAT, shape))
    photos = helper.make_tensor_value_info("photos", TensorProto.UINT8, ["n", "h", "w", 3])
    made = helper.make_model(
        helper.make_graph(graph.nodes, model.backbone, [photos], outputs, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="manihot",
    )  # fmt: skip
    layout = {"pooling": model.pooling, "power": model.power, "channels": channels}
    helper.set_model_props(made, {LAYOUT: json.dumps(layout)})
    with atomic_path(path) as temporary:
        onnx.save(made, str(temporary))


def _norm(state: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, ...]:
    return tuple(state[f"{name}.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var"))


def _stages(graph: Graph, x: str, state: dict[str, np.ndarray], network: Embedded) -> tuple[list[str], list[int]]:
    """The feature maps at the end of each stage, and their channels."""
    x = graph.convolution(x, state["conv_stem.weight"], _norm(state, "bn1"), 2)
    ends, widths = [], []
    for stage, (_, stride, expansion) in enumerate(STAGES):
        for block in range(network.blocks(stage)):
            place, before, step = f"blocks.{stage}.{block}", x, stride if block == 0 else 1
            layers = ["conv_dw", "conv_pw"] if expansion == 1 else ["conv_pw", "conv_dw", "conv_pwl"]
            for number, layer in enumerate(layers, 1):
                weight, norm = state[f"{place}.{layer}.weight"], _norm(state, f"{place}.bn{number}")
                deep = layer == "conv_dw"
                groups, last = len(weight) if deep else 1, number == len(layers)
                x = graph.convolution(x, weight, norm, step if deep else 1, groups, not last)
            if block:  # the same size and width as before
                x = graph.add("Add", before, x)
        ends.append(x)
        widths.append(len(weight))
    return ends, widths


def _pool(graph: Graph, maps: str, pooling: str) -> list[str]:
    """Maps (N, C, h, w) to one or two of (N, C)."""
    if pooling == "avgmax":
        return [*_pool(graph, maps, "avg"), *_pool(graph, maps, "max")]
    if pooling == "gem":
        floored = graph.add("Clip", maps, graph.constant(1e-6))
        mean = graph.add("GlobalAveragePool", graph.add("Pow", floored, graph.constant(3.0)))
        pooled = graph.add("Pow", mean, graph.constant(1 / 3))
    else:
        pooled = graph.add("GlobalAveragePool" if pooling == "avg" else "GlobalMaxPool", maps)
    return [graph.add("Flatten", pooled)]


def _power(graph: Graph, pooled: str) -> str:
    """Signed square root; the small number is torch's, where it keeps the gradient finite."""
    root = graph.add("Sqrt", graph.add("Add", graph.add("Abs", pooled), graph.constant(1e-8)))
    return graph.add("Mul", graph.add("Sign", pooled), root, name="embeddings")
