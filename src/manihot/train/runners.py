"""Networks in torch, ready to be fed uint8 photographs, on a device, in a precision."""

from __future__ import annotations

import platform

import numpy as np
import torch
from torch import Tensor, nn

from manihot.networks.runner import Outputs
from manihot.photos.preprocess import Preprocess
from manihot.train.networks.heads import Classifier, Snapshots

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
        self.register_buffer("mean", torch.tensor(preprocess.mean).mul(255).view(1, 3, 1, 1), persistent=False)
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
    """Embeddings and logits of a Classifier, which is brought to the device and the layout."""

    def __init__(
        self,
        model: Classifier | Snapshots,
        preprocess: Preprocess,
        device: torch.device,
        precision: str = "fp32",
        channels_last: bool = True,
    ) -> None:
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
        images = self.normalise(torch.from_numpy(photos).to(self.device, non_blocking=True))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            embeddings = self.model.embed(images)
            logits = self.model.classify(embeddings)
        out = {"embeddings": embeddings.float().cpu().numpy(), "logits": logits.float().cpu().numpy()}
        if self.model.unknown:
            out["unknown"] = logits.float().softmax(1)[:, -1].cpu().numpy()
            out["logits"] = out["logits"][:, :-1]
        return out
