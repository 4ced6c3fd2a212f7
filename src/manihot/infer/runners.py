"""Runners: a network ready to be fed uint8 photographs, on a device, in a precision.

A frozen backbone on a CPU belongs in onnxruntime: about twice torch's rate there.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from manihot.photos.preprocess import Preprocess
from manihot.records.files import atomic_path
from manihot.train.networks.heads import Classifier

# "embeddings" (N, D) and, where the runner classifies, "logits" (N, K), and where the model has that output, "unknown"
# (N,), the probability that a photograph shows something else; float32
Outputs = dict[str, np.ndarray]
Runner = Callable[[np.ndarray], Outputs]  # of uint8 (N, H, W, 3)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(wanted: str = "auto") -> torch.device:
    """The torch device for 'auto', 'cpu', 'cuda', 'mps', ..."""
    if wanted != "auto":
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def describe_device(device: torch.device) -> str:
    """The device in words, for records and reports."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} (GPU)"
    return f"{device.type}, {torch.get_num_threads()} threads, {platform.machine()}"


class Normalise(nn.Module):
    """uint8 (N, H, W, 3) to normalised float32 (N, 3, H, W), after an optional colour matrix (N, 3, 4).

    The colour matrix acts on RGB in [0, 255], its last column is an offset; the result is clipped. channels_last: how
    the result lies in memory.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess, channels_last: bool = True) -> None:
        super().__init__()
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.register_buffer(
            "mean", torch.tensor(preprocess.mean).mul(255).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer("std", torch.tensor(preprocess.std).mul(255).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, colour: Tensor | None = None) -> Tensor:
        """See the class."""
        x = images.permute(0, 3, 1, 2).float()
        if colour is not None:
            n, _, h, w = x.shape
            x = torch.baddbmm(colour[:, :, 3:], colour[:, :, :3], x.reshape(n, 3, h * w)).view(n, 3, h, w)
            # in place: on a CPU fresh memory for each result costs more than the arithmetic
            x.clamp_(0, 255).sub_(self.mean).div_(self.std)
            return x.contiguous(memory_format=self.layout)
        return ((x - self.mean) / self.std).contiguous(memory_format=self.layout)


class TorchRunner:
    """Embeddings and logits of a Classifier, which is brought to the device and the layout.

    like: the runner of a model that gives the same embeddings (`same_embeddings`), whose last ones are taken where it
    saw the same photographs.
    """

    def __init__(
        self, model: Classifier, preprocess: Preprocess, device: torch.device, precision: str = "fp32",
        channels_last: bool = True, like: TorchRunner | None = None,
    ) -> None:  # fmt: skip
        self.like = like
        self.shared = False  # whether other runners take this one's embeddings
        self.last: tuple[np.ndarray, Tensor] | None = None
        if like is not None:
            like.shared = True
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(device, memory_format=layout).eval()  # type: ignore[call-overload]
        self.normalise = Normalise(preprocess, channels_last).to(device)
        self.device = device
        self.dtype = PRECISIONS[precision]

    @torch.inference_mode()
    def __call__(self, photos: np.ndarray) -> Outputs:
        """uint8 (N, H, W, 3) to embeddings (N, D), logits (N, K), and `unknown` (N,) where the model has that output.

        The softmax of the K logits is what the classes' probabilities are given that it is none of something else: they
        are divided by 1 - unknown.
        """
        embeddings = (self.like or self).embed(photos)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model.classify(embeddings)
        out = {"embeddings": embeddings.float().cpu().numpy(), "logits": logits.float().cpu().numpy()}
        if self.model.unknown:
            out["unknown"] = logits.float().softmax(1)[:, -1].cpu().numpy()
            out["logits"] = out["logits"][:, :-1]
        return out

    @torch.inference_mode()
    def embed(self, photos: np.ndarray) -> Tensor:
        """uint8 (N, H, W, 3) to embeddings (N, D) on the device; computed once for all runners that share them."""
        if self.last is not None and self.last[0] is photos:
            return self.last[1]
        images = self.normalise(torch.from_numpy(photos).to(self.device, non_blocking=True))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            embeddings = self.model.embed(images)
        self.last = (photos, embeddings) if self.shared else None
        return embeddings


def make_runners(
    models: Sequence[Classifier], preprocess: Preprocess, device: torch.device, precision: str = "fp32"
) -> list[TorchRunner]:
    """A runner a model; a frozen backbone that several of them have (the folds of `features`) runs once a batch."""
    runners: list[TorchRunner] = []
    for model in models:
        like = next((one for one in runners if one.like is None and same_embeddings(one.model, model)), None)
        runners.append(TorchRunner(model, preprocess, device, precision, like=like))
    return runners


def same_embeddings(one: Classifier, other: Classifier) -> bool:
    """Whether two models give the same embeddings: all but their heads is equal, weights and settings."""
    parts = [{k: v for k, v in model.state_dict().items() if not k.startswith("head.")} for model in (one, other)]
    settings = [
        (type(model.backbone), model.pooling, model.taps, model.power, model.tiles) for model in (one, other)
    ]
    if settings[0] != settings[1] or parts[0].keys() != parts[1].keys():
        return False
    return all(torch.equal(value.cpu(), parts[1][key].cpu()) for key, value in parts[0].items())


class Embedder(nn.Module):
    """Normalisation and backbone in one graph, for export."""

    def __init__(self, model: Classifier, preprocess: Preprocess) -> None:
        super().__init__()
        self.normalise = Normalise(preprocess)
        self.model = model

    def forward(self, photos: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) to embeddings (N, D)."""
        return self.model.embed(self.normalise(photos))


class OnnxRunner:
    """Embeddings of a frozen backbone in onnxruntime on the CPU."""

    def __init__(
        self, model: Classifier, preprocess: Preprocess, path: Path, threads: int | None = None
    ) -> None:
        import onnxruntime

        if not path.exists():
            export_embedder(model, preprocess, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, photos: np.ndarray) -> Outputs:
        """uint8 (N, H, W, 3) to embeddings (N, D)."""
        return {"embeddings": self.session.run(None, {"photos": photos})[0]}


def export_embedder(model: Classifier, preprocess: Preprocess, path: Path) -> None:
    """Write the embedder as ONNX for any number of photographs, atomically."""
    import logging
    import warnings

    example = torch.zeros(2, *preprocess.size, 3, dtype=torch.uint8)
    embedder = Embedder(model, preprocess).eval()
    for noisy in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        batch = torch.export.Dim("batch", min=1, max=4096)
        program = torch.onnx.export(
            embedder,
            (example,),
            dynamo=True,
            input_names=["photos"],
            dynamic_shapes={"photos": {0: batch}},
            verbose=False,
        )
    with atomic_path(path) as temporary:
        program.save(str(temporary), external_data=False)  # type: ignore[union-attr]
