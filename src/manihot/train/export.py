"""Networks as ONNX: uint8 photographs in, the preprocessing inside, compared with torch when they are written.

From there on every consumer uses onnxruntime. A network that can't be exported, or that differs, keeps its torch file.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from manihot.errors import RunFolderError, WeightsError
from manihot.infer.forward import Photos
from manihot.networks.card import KEY, ModelCard
from manihot.networks.graph import OPSET
from manihot.networks.runner import OnnxRunner
from manihot.photos.preprocess import Preprocess
from manihot.progress import say
from manihot.records.files import atomic_path
from manihot.train.networks.heads import Classifier, Snapshots
from manihot.train.runners import Normalise

BOUND = 1e-3  # largest difference between onnxruntime and torch in fp32, of a probability and of embeddings
COMPARED = 8  # photographs


class Network(nn.Module):
    """Normalisation, backbone and head in one graph: embeddings (N, D), logits (N, K) and, where it has it, unknown."""

    def __init__(self, model: Classifier | Snapshots, preprocess: Preprocess) -> None:
        super().__init__()
        self.normalise = Normalise(preprocess, channels_last=False)
        self.model = model

    def forward(self, photos: Tensor) -> tuple[Tensor, ...]:
        """uint8 (N, H, W, 3) to the outputs."""
        embeddings = self.model.embed(self.normalise(photos))
        logits = self.model.classify(embeddings)
        if self.model.unknown:
            return embeddings, logits[:, :-1], logits.softmax(1)[:, -1]
        return embeddings, logits


class Backbone(nn.Module):
    """Normalisation, backbone and pooling in one graph: embeddings (N, D)."""

    def __init__(self, model: Classifier, preprocess: Preprocess) -> None:
        super().__init__()
        self.normalise = Normalise(preprocess, channels_last=False)
        self.model = model

    def forward(self, photos: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) to embeddings (N, D)."""
        return self.model.embed(self.normalise(photos))


def export_network(path: Path, model: Classifier | Snapshots, card: ModelCard, photos: Photos, rows: np.ndarray) -> str:
    """Write a network as ONNX, compared on `rows` of stored photographs; '' or why there is no such file."""
    some = rows[:: max(1, len(rows) // COMPARED)][:COMPARED]
    batch = np.stack([card.preprocess(photos[int(row)]) for row in some])
    outputs = ["embeddings", "logits", *(["unknown"] if model.unknown else [])]
    path.unlink(missing_ok=True)
    was = next(model.parameters()).device
    try:
        why = export(path, Network(model, card.preprocess).to("cpu"), batch, outputs, {KEY: card.to_text()})
    finally:
        model.to(was)
    if why:
        say(f"No {path.name}: {why}. The run keeps the torch file, and predicting takes the extra 'train'")
    return why


def export_backbone(path: Path, model: Classifier, preprocess: Preprocess) -> None:
    """Write a frozen network that gives embeddings as ONNX, compared on noise; WeightsError where that can't be."""
    noise = np.random.default_rng(0).integers(0, 256, (COMPARED, *preprocess.size, 3), dtype=np.uint8)
    why = export(path, Backbone(model, preprocess), noise, ["embeddings"], {})
    if why:
        raise WeightsError(f"{path}: this backbone can't be written as ONNX: {why}", "take another backbone")


def export(path: Path, module: nn.Module, photos: np.ndarray, outputs: Sequence[str], metadata: dict[str, str]) -> str:
    """Write a module as ONNX for any number of photographs, atomically, if it computes what torch does; or why not.

    photos: uint8 (N, H, W, 3), on which the two are compared. torch's older exporter comes first: it is ten times as
    fast; what it can't do, the newer one may.
    """
    module = module.eval()
    example, why = torch.from_numpy(photos), ""
    with torch.inference_mode():
        wanted = module(example)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    for write in (_write_traced, _write_exported):
        try:
            with atomic_path(path) as temporary, _quiet():
                write(module, example[:2], str(temporary), list(outputs))
                model = onnx.load(str(temporary))
                onnx.helper.set_model_props(model, metadata)
                onnx.save(model, str(temporary))
                found = OnnxRunner(temporary)(photos)
                difference = max(_difference(name, found[name], there) for name, there in zip(outputs, wanted))
                if not difference <= BOUND:
                    raise ArithmeticError(f"it differs from torch by {difference:.2g}, more than {BOUND:g}")
            return ""
        except RunFolderError:
            raise
        except Exception as error:  # the exporters' many families: an operator that ONNX lacks, control flow, ...
            why = why or f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return why


def _difference(name: str, found: np.ndarray, wanted: Tensor) -> float:
    """Largest difference: of probabilities, or of embeddings in units of their largest."""
    if name == "logits":
        return float((torch.from_numpy(found).double().softmax(1) - wanted.double().softmax(1)).abs().max())
    return float((torch.from_numpy(found) - wanted).abs().max() / max(1.0, float(wanted.abs().max())))


def _write_traced(module: nn.Module, example: Tensor, path: str, outputs: list[str]) -> None:
    names = ["photos", *outputs]
    torch.onnx.export(
        module,
        (example,),
        path,
        dynamo=False,
        opset_version=OPSET,
        input_names=names[:1],
        output_names=names[1:],
        dynamic_axes={name: {0: "n"} for name in names},
    )


def _write_exported(module: nn.Module, example: Tensor, path: str, outputs: list[str]) -> None:
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        input_names=["photos"],
        output_names=outputs,
        dynamic_shapes={"photos": {0: batch}},
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters log and their own deprecations."""
    for noisy in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
