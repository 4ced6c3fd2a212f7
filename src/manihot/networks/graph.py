"""Embedded backbones as ONNX graphs, built from arrays: uint8 photographs in, pooled features out.

Batch norm and the division of the normalisation are folded into the convolutions; height and width are free. Beside the
embeddings the graph gives the feature maps that were pooled, so that class activation maps need no second network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manihot.errors import SettingsError
from manihot.networks.architectures import ARCHITECTURES, NORM, Architecture, Convolution
from manihot.networks.weights import EMBEDDED, Triple, embedded_state, random_state, split_backbone
from manihot.photos.preprocess import Preprocess
from manihot.records.files import write_atomic
from manihot.settings import Model, suggest

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

OPSET, IR = 17, 8  # what onnxruntime 1.20 and onnxruntime-web read
LAYOUT = "manihot.layout"  # of the embeddings, in the file's metadata
FLOOR = 1e-6  # of generalised-mean pooling
SMALL = 1e-8  # under the signed square root, where it keeps torch's gradient finite
POOLING = {"avg": ("avg",), "max": ("max",), "avgmax": ("avg", "max"), "gem": ("gem",)}

State = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Trunk:
    """One network of a graph.

    mean, std: of RGB in [0, 1]. prefix: of the names of its constants. half: whether the file holds its convolutions in
    half precision, as a second network's, so that both stay below 20 MB; they are computed in single precision.
    """

    architecture: Architecture
    state: State
    mean: Triple
    std: Triple
    prefix: str = ""
    half: bool = False


class Graph:
    """Nodes and constants of a graph being built; every method returns the name of what it computes."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}

    def constant(self, value: np.ndarray | float, name: str = "", kind: type = np.float32) -> str:
        """A constant of that type; numbers of one value are kept once."""
        from onnx import numpy_helper

        name = name or f"number_{value:g}"
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.array(value, dtype=kind, order="C"), name)
        return name

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """A node with one output."""
        from onnx import helper

        out = name or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        return out

    def convolution(self, x: str, one: Convolution, trunk: Trunk, scale: np.ndarray | float = 1.0) -> str:
        """A convolution with its batch norm folded in, and ReLU6; scale: of each input channel."""
        gamma, beta, mean, variance = (trunk.state[f"{one.norm}.{leaf}"].astype(np.float64) for leaf in NORM)
        gain = gamma / np.sqrt(variance + trunk.architecture.epsilon)
        folded = trunk.state[f"{one.name}.weight"] * gain[:, None, None, None] * np.reshape(scale, (-1, 1, 1))
        weight = self.constant(folded, f"{trunk.prefix}{one.name}.weight", np.float16 if trunk.half else np.float32)
        if trunk.half:
            weight = self.add("Cast", weight, to=1)
        bias = self.constant(beta - mean * gain, f"{trunk.prefix}{one.name}.bias")
        pads: dict[str, Any] = {"pads": [one.kernel // 2] * 4}
        if trunk.architecture.same_padding:
            pads = {"auto_pad": "SAME_UPPER"}
        x = self.add(
            "Conv",
            x,
            weight,
            bias,
            group=one.inputs if one.depthwise else 1,
            strides=[one.stride] * 2,
            kernel_shape=[one.kernel] * 2,
            **pads,
        )
        return self.add("Clip", x, self.constant(0.0), self.constant(6.0)) if one.rectified else x

    def features(self, pixels: str, trunk: Trunk) -> tuple[list[str], list[int]]:
        """Names and channels of the feature maps at every depth that timm taps, the last ones at the end."""
        depths, channels = [], []
        blocks = list(trunk.architecture.blocks())
        mean, std = (255 * np.array(values, np.float64) for values in (trunk.mean, trunk.std))
        # the mean comes off before the padding, whose zeros stand for it
        x = self.add("Sub", pixels, self.constant(mean.reshape(1, 3, 1, 1), f"{trunk.prefix}mean"))
        for number, block in enumerate(blocks):
            before = x
            for one in block.convolutions:
                x = self.convolution(x, one, trunk, 1 / std if number == 0 else 1.0)
            if block.residual:
                x = self.add("Add", before, x)
            if block.ends_stage:
                depths.append(x)
                channels.append(block.convolutions[-1].outputs)
        return depths, channels

    def pool(self, maps: str, kind: str) -> str:
        """Maps (N, C, h, w) to (N, C)."""
        if kind == "gem":
            cubes = self.add("Pow", self.add("Clip", maps, self.constant(FLOOR)), self.constant(3.0))
            pooled = self.add("Pow", self.add("GlobalAveragePool", cubes), self.constant(np.array(1 / 3), "a_third"))
        else:
            pooled = self.add("GlobalAveragePool" if kind == "avg" else "GlobalMaxPool", maps)
        return self.add("Flatten", pooled)

    def power(self, pooled: str) -> str:
        """Signed square root."""
        root = self.add("Sqrt", self.add("Add", self.add("Abs", pooled), self.constant(SMALL)))
        return self.add("Mul", self.add("Sign", pooled), root)


def whole_precision(model: ModelProto) -> ModelProto:
    """The same with weights that are kept in half precision written out in single, as quantisers need them."""
    import onnx
    from onnx import numpy_helper

    out = onnx.ModelProto()
    out.CopyFrom(model)
    known = {one.name: one for one in out.graph.initializer if one.data_type == onnx.TensorProto.FLOAT16}
    casts = [node for node in out.graph.node if node.op_type == "Cast" and node.input[0] in known]
    casts = [node for node in casts if node.attribute[0].i == onnx.TensorProto.FLOAT]
    for node in casts:
        half = known[node.input[0]]
        whole = numpy_helper.to_array(half).astype(np.float32)
        out.graph.initializer.remove(half)
        out.graph.initializer.append(numpy_helper.from_array(whole, node.output[0]))
        out.graph.node.remove(node)
    return out


def channels_of(model: Model) -> list[list[int]] | None:
    """Channels of the maps that are pooled, of each network from the last maps on; None for one that only torch builds.

    The features hold them in this order, those of one map pooled in each way of POOLING after another.
    """
    names = [one.partition(".")[0] for one in split_backbone(model.backbone)]
    if not all(name in ARCHITECTURES for name in names) or model.pooling not in POOLING:
        return None
    found = []
    for name in names:
        depths = [block.convolutions[-1].outputs for block in ARCHITECTURES[name].tapped()]
        found.append([depths[-1], *(depths[-1 - tap] for tap in sorted(set(model.taps), reverse=True))])
    return found


def build_backbone(model: Model, preprocess: Preprocess, path: Path, seed: int = 0) -> None:
    """Write the backbone of a recipe's `model` as ONNX, atomically; the same bytes for the same arguments.

    Input `photos` uint8 (N, H, W, 3) of any height and width; outputs `embeddings` float32 (N, D), as
    `manihot.train.networks.heads.Classifier.embed` computes them, and the maps (N, C, h, w) behind them: `maps_0` the
    last ones, then the taps from the finest on. seed: of random weights (`pretrained: false`). Raises WeightsError for
    weights that can't be had, SettingsError for a backbone or a head that only torch can build.
    """
    names = [one.partition(".")[0] for one in split_backbone(model.backbone)]
    if not all(name in ARCHITECTURES for name in names) or model.pretrained not in ("embedded", False):
        raise SettingsError(
            f"model.backbone: {model.backbone} with pretrained={model.pretrained!r} can't be built without torch",
            f"use model.pretrained: embedded with one of {', '.join(ARCHITECTURES)}",
        )
    if model.pooling not in POOLING:
        raise SettingsError(f"model.pooling: unknown {model.pooling!r}", suggest(model.pooling, list(POOLING)))
    if model.tiles != (1, 1):
        raise SettingsError(f"model.tiles: {model.tiles} needs a network that is trained", "use method: finetune")
    states = [random_state(name, seed) if model.pretrained is False else embedded_state(name) for name in names]
    write_atomic(path, make_graph(model, preprocess, states).SerializeToString(deterministic=True))


def make_graph(model: Model, preprocess: Preprocess, states: Sequence[State]) -> ModelProto:
    """The graph of `build_backbone` for given weights, one state for each network that the backbone is joined from.

    `preprocess` holds the first network's mean and spread; the others have their own.
    """
    from onnx import TensorProto, helper

    graph, used = Graph(), []
    pixels = graph.add("Cast", graph.add("Transpose", "photos", perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    for number, (part, state) in enumerate(zip(split_backbone(model.backbone), states, strict=True)):
        name = part.partition(".")[0]
        own = preprocess if number == 0 else EMBEDDED[name]
        trunk = Trunk(ARCHITECTURES[name], state, own.mean, own.std, f"{number}." if number else "", number > 0)
        depths, channels = graph.features(pixels, trunk)
        stages = len(depths) - 1
        if max(model.taps, default=0) > stages:
            what = f"model.taps: {max(model.taps)}, but {part} has {stages} stages"
            raise SettingsError(what, "use lower ones")
        # timm gives the tapped maps in the order of their depth, each once, however they are asked for
        used += [
            (depths[k], channels[k]) for k in (stages, *(stages - tap for tap in sorted(set(model.taps), reverse=True)))
        ]
    kinds = POOLING[model.pooling]
    pooled = graph.add("Concat", *(graph.pool(maps, kind) for maps, _ in used for kind in kinds), axis=1)
    graph.add("Identity", graph.power(pooled) if model.power else pooled, name="embeddings")
    width = sum(count for _, count in used) * len(kinds)
    outputs = [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", width])]
    for number, (maps, count) in enumerate(used):
        graph.add("Identity", maps, name=f"maps_{number}")
        shape: list[str | int | None] = ["n", count, f"h{number}", f"w{number}"]
        outputs.append(helper.make_tensor_value_info(f"maps_{number}", TensorProto.FLOAT, shape))
    photos = helper.make_tensor_value_info("photos", TensorProto.UINT8, ["n", "h", "w", 3])
    made = helper.make_model(
        helper.make_graph(graph.nodes, model.backbone, [photos], outputs, list(graph.constants.values())),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
        producer_name="manihot",
    )
    layout = {
        "backbone": model.backbone,
        "pooling": model.pooling,
        "taps": model.taps,
        "power": model.power,
        "channels": [count for _, count in used],
        "preprocess": preprocess.to_json(),
    }
    helper.set_model_props(made, {LAYOUT: json.dumps(layout)})
    return made
