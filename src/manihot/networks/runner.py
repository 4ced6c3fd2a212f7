"""The onnxruntime runner, and linear heads over what it gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from manihot.errors import SettingsError, WeightsError
from manihot.networks.card import KEY, REMEDY
from manihot.networks.graph import LAYOUT
from manihot.records.files import atomic_path

# "embeddings" (N, D) and, where the network classifies, "logits" (N, K), and where it has that output, "unknown" (N,),
# the probability that a photograph shows something else; float32
Outputs = dict[str, np.ndarray]
Runner = Callable[[np.ndarray], Outputs]  # of uint8 (N, H, W, 3)

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
MAPS = "maps_"  # how the names of outputs begin that are computed only when asked for
LARGEST_HEAD = 1 << 28  # bytes


def choose_device(wanted: str = "auto") -> str:
    """'cpu' or 'cuda' for onnxruntime; SettingsError where the GPU that is asked for can't be had."""
    import onnxruntime

    offered = onnxruntime.get_available_providers()
    if wanted == "auto":
        return "cuda" if PROVIDERS["cuda"] in offered else "cpu"
    if wanted not in PROVIDERS or PROVIDERS[wanted] not in offered:
        has = [name for name, provider in PROVIDERS.items() if provider in offered]
        raise SettingsError(
            f"--device {wanted}: this onnxruntime computes on {' or '.join(has)}",
            "leave it out, or pip install onnxruntime-gpu in place of onnxruntime for an NVIDIA GPU",
        )
    return wanted


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of an ONNX or a safetensors file; WeightsError where it is neither."""
    try:
        if path.suffix == ".onnx":
            import onnx

            model = onnx.load(str(path), load_external_data=False)
            return {one.key: one.value for one in model.metadata_props}
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except Exception as error:  # protobuf, safetensors and the system raise unrelated families
        raise WeightsError(f"{path}: no network of manihot ({type(error).__name__}: {error})", REMEDY) from error


class OnnxRunner:
    """A network in onnxruntime.

    Gives its outputs by name: those of `manihot.networks.graph`, or logits and embeddings of a fine-tuned network.
    """

    def __init__(self, path: Path, threads: int = 0, device: str = "cpu") -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=[PROVIDERS[device]])
        except Exception as error:  # onnxruntime's own families, none of them public
            raise WeightsError(
                f"{path}: onnxruntime can't read this network ({' '.join(str(error).split())[:200]})",
                "run the same `manihot run` again: it is written anew",
            ) from error
        names = [output.name for output in self.session.get_outputs()]
        self.outputs = [name for name in names if not name.startswith(MAPS)]
        self.of_maps = [name for name in names if name.startswith(MAPS)]
        if "embeddings" not in names or [one.name for one in self.session.get_inputs()] != ["photos"]:
            raise WeightsError(f"{path}: an ONNX file, but no network of manihot", REMEDY)

    def __call__(self, photos: np.ndarray) -> Outputs:
        """uint8 (N, H, W, 3) to the outputs, without the maps."""
        return dict(zip(self.outputs, self.session.run(self.outputs, {"photos": photos}), strict=True))

    def maps(self, photos: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """uint8 (N, H, W, 3) to embeddings (N, D) and the feature maps (N, C, h, w) behind them."""
        found = self.session.run(["embeddings", *self.of_maps], {"photos": photos})
        return found[0], found[1:]

    @cached_property
    def layout(self) -> dict[str, Any]:
        """How the embeddings were pooled from the maps; {} where the network doesn't say."""
        return json.loads(self.session.get_modelmeta().custom_metadata_map.get(LAYOUT, "{}"))


@dataclass(frozen=True)
class LinearHead:
    """weight (K, D) and bias (K,), float32."""

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, embeddings: np.ndarray) -> np.ndarray:
        """Embeddings (..., D) to logits (..., K)."""
        return embeddings @ self.weight.T + self.bias

    def save(self, path: Path, card: str) -> None:
        """Write it and its model card, atomically."""
        with atomic_path(path) as temporary:
            save_file({"weight": self.weight, "bias": self.bias}, temporary, metadata={KEY: card})

    @classmethod
    def load(cls, path: Path) -> LinearHead:
        """Read a file of `save`; WeightsError when it is not one."""
        found = cls.load_if(path)
        if found is None:
            raise WeightsError(f"{path}: no linear head", REMEDY)
        return found

    @classmethod
    def load_if(cls, path: Path) -> LinearHead | None:
        """The same; None for a network of another kind."""
        if path.suffix == ".onnx":
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                if set(file.keys()) != {"weight", "bias"}:
                    return None
                if path.stat().st_size > LARGEST_HEAD:
                    raise ValueError(f"{path.stat().st_size} bytes")
                weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise WeightsError(f"{path}: no network of manihot ({error})", REMEDY) from error
        fits = weight.ndim == 2 and bias.shape == weight.shape[:1] and weight.dtype == bias.dtype == np.float32
        if not fits or not np.isfinite(weight).all() or not np.isfinite(bias).all():
            raise WeightsError(f"{path}: a damaged linear head of shapes {weight.shape}, {bias.shape}", "run again")
        return cls(weight, bias)
