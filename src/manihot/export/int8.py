"""A network of a quarter of the size: weights of 8 bits, or weights and activations of 8 bits.

`weights`: the weights of convolutions are kept in 8 bits per channel and become floating point again when the network
is opened. It computes as fast as before, and the heads stay as they are. `static`: activations have 8 bits too, which
is faster where the processor multiplies bytes. That changed 4 to 5 % of a fitted head's decisions on BRACOL, so linear
heads are refitted on what the int8 backbone sees. Calibration and prediction sets are refitted for both, on
held-out answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.special import softmax

from manihot.errors import SettingsError
from manihot.export.certificate import Judged, check_int8, compare_held_out, evenly, held_out
from manihot.export.graph import Networks, parts_of, slim
from manihot.export.source import Source
from manihot.infer.forward import PhotoFiles
from manihot.infer.models import HeadRunner, SharedBackbone, networks_by_fold
from manihot.members.member import Member
from manihot.members.toolbox import Toolbox
from manihot.networks.graph import whole_precision
from manihot.networks.runner import LinearHead, OnnxRunner, Runner
from manihot.progress import say
from manihot.quick.fold import learn_head
from manihot.quick.heads import make_features
from manihot.settings import Recipe
from manihot.trust.calibrate import Calibrator, fit_calibrator
from manihot.trust.conformal import ConformalSets, fit_sets

if TYPE_CHECKING:
    from onnx import ModelProto

SHOWN = 128  # photographs on which the ranges of int8 are measured
FEWEST = 40  # held-out photographs, below which int8 can't be judged
EARLY = 0.03  # share of all weights that the first convolutions, which get 16 bits, hold at most
QUANTISED = ("Conv", "Clip", "Add")

Kind = Literal["weights", "static"]


@dataclass(frozen=True)
class Small:
    """An int8 network that answers as well as the one in single precision, and what both said of held-out photographs.

    calibrator, sets: fitted on its own answers.
    """

    networks: Networks
    judged: Judged
    measured: dict[str, Any]
    calibrator: Calibrator
    sets: ConformalSets | None


def make_int8(source: Source, full: Judged, folder: Path, kind: Kind = "weights") -> Small:
    """Quantise in `folder`; WeightsError where int8 is worse on held-out photographs, with how much worse it is.

    full: what single precision says of held-out photographs.
    """
    make = {"weights": lambda network, out, batch: pack_weights(network, out), "static": quantise}[kind]
    model, manifest = source.model, source.manifest
    folds = networks_by_fold(source.member)
    rows = full.rows
    if len(rows) < FEWEST:
        raise SettingsError(
            f"int8 is judged on held-out photographs, and there are {len(rows)}, fewer than {FEWEST}",
            "leave --int8 out",
        )
    photos = PhotoFiles(manifest.paths, model.preprocess)
    shown = evenly(source.usable, SHOWN)[: None if kind == "static" else 0]
    batch = [model.preprocess(photos[int(row)])[None] for row in shown]
    networks = parts_of(model)
    if networks.heads and kind == "static":
        backbone = make(networks.files[0], folder / "small.onnx", batch)
        heads, judged = _refit(source, backbone, folder, list(folds), rows)
        networks = Networks([backbone], heads, networks.layout)
    else:
        wanted = [*networks.files, *(() if networks.heads else folds.values())]
        small = {file: make(file, folder / f"small{k}.onnx", batch) for k, file in enumerate(dict.fromkeys(wanted))}
        runners = _runners(networks, small, folds)
        judged = held_out(runners, photos, manifest, rows, model.preprocess)
        networks = replace(networks, files=[small[file] for file in networks.files])
    measured = {"kind": kind, **compare_held_out(full.probs, judged.probs, manifest.labels[rows])}
    check_int8(measured, model.classes)
    calibrator, sets = _trust(source, judged.probs, manifest.labels[rows])
    say(
        f"int8: accuracy {measured['int8']['accuracy']:.1%} held out ({measured['fp32']['accuracy']:.1%} before), "
        f"{measured['equal_decisions']:.1%} equal decisions"
    )
    return Small(networks, judged, measured, calibrator, sets)


def _runners(networks: Networks, small: Mapping[Path, Path], folds: Mapping[int, Path]) -> dict[int, Runner]:
    """The folds' networks in 8 bits; heads share one backbone."""
    if not networks.heads:
        return {fold: OnnxRunner(small[file]) for fold, file in folds.items()}
    backbone = SharedBackbone(small[networks.files[0]], "cpu")
    return {fold: HeadRunner(backbone, LinearHead.load(file)) for fold, file in folds.items()}


def _trust(source: Source, probs: np.ndarray, labels: np.ndarray) -> tuple[Calibrator, ConformalSets | None]:
    """The run's kind of calibration and of sets, fitted on int8's held-out probabilities."""
    classes, old = source.model.classes, source.sets
    calibrator = fit_calibrator(probs, labels, source.calibrator.kind, classes)
    if old is None:
        return calibrator, None
    sets = fit_sets(probs, labels, old.coverage, old.per_class, old.kind, "random", old.seed, classes, **old.settings)
    return calibrator, sets


def _refit(
    source: Source, backbone: Path, folder: Path, folds: list[int], rows: np.ndarray
) -> tuple[list[LinearHead], Judged]:
    """Heads of the exported folds on the int8 backbone's features, and what they say of the held-out `rows`."""
    card, manifest = source.model.card, source.manifest
    recipe = Recipe.model_validate(source.run.record["recipe"]).member_recipes()[card.member]
    photos = PhotoFiles(manifest.paths, card.preprocess)
    member = Member(card.member, recipe, manifest, card.preprocess, photos, source.run, Toolbox())
    runner = OnnxRunner(backbone)
    features = make_features(
        folder / "int8 features", runner, photos, card.preprocess, recipe.tta, recipe.features.batch
    )
    heads = {
        fold: learn_head(member, fold, member.rows(fold)[0], features)[0]
        for fold in sorted({*folds, *source.model.folds})
    }
    probs = np.zeros((len(rows), len(source.model.classes)))
    for fold in folds:
        own = manifest.fold[rows] == fold
        logits = heads[fold].logits(features[rows[own], 0])
        probs[own] = softmax(logits.astype(np.float64), axis=1)
    return [heads[fold] for fold in source.model.folds], Judged(rows, probs, features[rows, 0])


def pack_weights(network: Path, out: Path) -> Path:
    """The weights of convolutions in 8 bits, symmetric, with a scale per channel; the arithmetic stays as it is.

    Depthwise convolutions and the first ones, whose errors all others pass on and which hold few of the weights, get
    16 bits.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = whole_precision(slim(onnx.load(str(network)), maps=True))
    values = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    plain = [node.input[1] for node in model.graph.node if node.op_type == "Conv" and node.input[1] in values]
    weights = {name: values[name] for name in plain if values[name].dtype == np.float32}
    early, total = EARLY * sum(one.size for one in weights.values()), 0
    nodes, packed = [], []
    for name, own in weights.items():
        total += own.size
        parts = [f"{name}_{part}" for part in ("packed", "scale", "whole")]
        if own.shape[1] == 1 or total <= early:  # of one channel: depthwise
            packed.append(numpy_helper.from_array(own.astype(np.float16), parts[0]))
            nodes.append(helper.make_node("Cast", parts[:1], [name], to=onnx.TensorProto.FLOAT))
            continue
        scale = np.maximum(np.abs(own).reshape(len(own), -1).max(1), 1e-12) / 127
        scale = scale.astype(np.float32).reshape(-1, *[1] * (own.ndim - 1))
        packed.append(numpy_helper.from_array(np.rint(own / scale).astype(np.int8), parts[0]))
        packed.append(numpy_helper.from_array(scale, parts[1]))
        nodes.append(helper.make_node("Cast", parts[:1], parts[2:], to=onnx.TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [parts[2], parts[1]], [name]))
    nodes += list(model.graph.node)
    packed += [one for one in model.graph.initializer if one.name not in weights]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(packed)
    onnx.save(model, str(out))
    return out


def quantise(network: Path, out: Path, batch: list[np.ndarray]) -> Path:
    """Convolutions and sums of feature maps in int8, weights per channel; the rest stays in single precision.

    batch: photographs uint8 (1, H, W, 3) that show which ranges occur. Weights have 7 bits: with 8, processors without
    VNNI saturate, and would not compute what a phone does.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[np.ndarray] = iter(batch)

        def get_next(self) -> dict[str, np.ndarray] | None:
            photos = next(self.left, None)
            return None if photos is None else {"photos": photos}

    model = whole_precision(slim(onnx.load(str(network)), maps=True))
    constants = {one.name for one in model.graph.initializer}
    for number, node in enumerate(model.graph.node):
        node.name = f"node{number}"
    apart = [node.name for node in model.graph.node if node.op_type == "Add" and constants & set(node.input)]
    whole = out.with_name(f"whole.{out.name}")
    onnx.save(model, str(whole))
    with _quiet():
        quantize_static(
            str(whole),
            str(out),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=list(QUANTISED),
            nodes_to_exclude=apart,
        )
    onnx.save(pool_in_double(onnx.load(str(out))), str(out))
    return out


def pool_in_double(model: ModelProto) -> ModelProto:
    """The same with average pooling in double precision, which gives the same embeddings in whatever order it sums.

    All before it is whole numbers and products of two: an int8 network then answers equal to the bit on x86-64 and in
    WebAssembly.
    """
    from onnx import TensorProto, helper

    nodes = []
    for node in model.graph.node:
        if node.op_type != "GlobalAveragePool":
            nodes.append(node)
            continue
        wide, mean = (f"{node.output[0]}_{part}" for part in ("wide", "mean"))
        nodes.append(helper.make_node("Cast", list(node.input), [wide], to=TensorProto.DOUBLE))
        nodes.append(helper.make_node("ReduceMean", [wide], [mean], axes=[2, 3], keepdims=1))
        nodes.append(helper.make_node("Cast", [mean], list(node.output), to=TensorProto.FLOAT))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice on the root logger."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
