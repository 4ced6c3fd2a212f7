"""The onnxruntime runner, and linear heads over what it gives."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.numpy import save_file

from manihot.errors import DataError, SettingsError, WeightsError
from manihot.networks.card import KEY, REMEDY
from manihot.networks.graph import LAYOUT, POOLING
from manihot.records.files import atomic_path
from manihot.records.readers import check_file, parse_json, reading

# "embeddings" (N, D) and, where the network classifies, "logits" (N, K), and where it has that output, "unknown" (N,),
# the probability that a photograph shows something else; float32
Outputs = dict[str, np.ndarray]
Runner = Callable[[np.ndarray], Outputs]  # of uint8 (N, H, W, 3)

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
MAPS = "maps_"  # how the names of outputs begin that are given only when asked for
AT_ONCE = {"cpu": 4, "cuda": 1 << 30}  # photographs: on a CPU more only take memory and miss the caches
MOST_NETWORK = 1 << 31  # bytes, as protobuf has it
MOST_HEAD = 1 << 28  # bytes
AGAIN = "run the same `manihot run` again: it is rewritten"


@dataclass(frozen=True)
class Layout:
    """How embeddings were pooled from feature maps: the file's metadata, checked.

    channels: of the maps, in the order of the outputs. power: whether their signed square root was taken.
    """

    pooling: str
    power: bool
    channels: tuple[int, ...]


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


def count_threads() -> int:
    """Threads for one network: OMP_NUM_THREADS where it is set, else the cores that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isascii() and asked.isdigit() and 0 < int(asked) < 1 << 16:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _reading(path: Path, what: str, remedy: str = REMEDY) -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into a WeightsError that names it."""
    with reading(path, what, remedy, WeightsError):
        try:
            yield
        except (OSError, WeightsError):
            raise
        except Exception as error:  # protobuf's and onnxruntime's own families are not public
            raise ValueError(" ".join(str(error).split())) from error


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of an ONNX or a safetensors file; WeightsError where it is neither."""
    with _reading(path, "a network of manihot"):
        check_file(path, MOST_NETWORK)
        if path.suffix == ".onnx":
            import onnx

            model = onnx.load(str(path), load_external_data=False)
            return {one.key: one.value for one in model.metadata_props}
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})


class OnnxRunner:
    """A network in onnxruntime.

    Gives its outputs by name: those of `manihot.networks.graph`, or embeddings and logits of a fine-tuned network.
    threads: 0 as `count_threads`. device: 'cpu' or 'cuda'. Raises WeightsError for another file, SettingsError for a
    device that this onnxruntime can't compute on.
    """

    def __init__(self, path: Path, threads: int = 0, device: str = "cpu") -> None:
        import onnxruntime

        self.path, self.at_once = path, AT_ONCE[choose_device(device)]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or count_threads()
        options.log_severity_level = 3
        # memory patterns are kept for every size of batch and take half as much again; threads that spin while they
        # wait double the CPU time on a busy machine
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        with _reading(path, "a network that onnxruntime can read", AGAIN):
            check_file(path, MOST_NETWORK)
            self.session = onnxruntime.InferenceSession(str(path), options, providers=[PROVIDERS[device]])
        names = [output.name for output in self.session.get_outputs()]
        self.outputs = [name for name in names if not name.startswith(MAPS)]
        self.of_maps = [name for name in names if name.startswith(MAPS)]
        inputs = [(one.name, one.type, len(one.shape)) for one in self.session.get_inputs()]
        if "embeddings" not in names or inputs != [("photos", "tensor(uint8)", 4)]:
            raise WeightsError(f"{path}: an ONNX file, but no network of manihot", REMEDY)

    def __call__(self, photos: np.ndarray) -> Outputs:
        """uint8 (N, H, W, 3) to the outputs, without the maps."""
        return dict(zip(self.outputs, self._run(self.outputs, photos), strict=True))

    def maps(self, photos: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """uint8 (N, H, W, 3) to embeddings (N, D) and the feature maps (N, C, h, w) behind them."""
        found = self._run(["embeddings", *self.of_maps], photos)
        return found[0], found[1:]

    def _run(self, names: list[str], photos: np.ndarray) -> list[np.ndarray]:
        if photos.ndim != 4 or photos.shape[3] != 3 or photos.dtype != np.uint8 or not photos.size:
            raise DataError(
                f"{self.path.name} can't take photographs {photos.dtype} of shape {photos.shape}",
                "give at least one, as uint8 (N, height, width, 3)",
            )
        some = range(0, len(photos), self.at_once)
        try:
            parts = [self.session.run(names, {"photos": photos[at : at + self.at_once]}) for at in some]
        except Exception as error:  # onnxruntime's own families
            why = " ".join(str(error).split())[-200:]
            raise WeightsError(f"{self.path}: it fails on photographs {photos.shape} ({why})", AGAIN) from error
        return [np.concatenate(found) if len(found) > 1 else found[0] for found in zip(*parts, strict=True)]

    @cached_property
    def layout(self) -> Layout:
        """How the embeddings were pooled from the maps; WeightsError where the network doesn't say."""
        text = self.session.get_modelmeta().custom_metadata_map.get(LAYOUT)
        if text is None:
            raise WeightsError(f"{self.path}: the network gives no feature maps", REMEDY)
        with _reading(self.path, "a network with a description of its embeddings", AGAIN):
            found = TypeAdapter(Layout).validate_python(parse_json(text))
            if found.pooling not in POOLING or len(found.channels) != len(self.of_maps):
                raise ValueError(f"it describes {found}")
        return found


@dataclass(frozen=True)
class LinearHead:
    """weight (K, D) and bias (K,), float32."""

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, embeddings: np.ndarray) -> np.ndarray:
        """Embeddings (..., D) to logits (..., K)."""
        if embeddings.shape[-1] != self.weight.shape[1]:
            raise WeightsError(
                f"a linear head for {self.weight.shape[1]} features can't read {embeddings.shape[-1]}",
                "use the backbone that it was fitted on: keep head and backbone of one run together",
            )
        logits: np.ndarray = embeddings @ self.weight.T + self.bias
        return logits

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
        with _reading(path, "a network of manihot"):
            check_file(path, MOST_NETWORK)
            with safe_open(path, framework="numpy") as file:
                if set(file.keys()) != {"weight", "bias"}:
                    return None
                check_file(path, MOST_HEAD)
                weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
        with _reading(path, "a linear head"):
            if weight.ndim != 2 or not weight.size or bias.shape != weight.shape[:1]:
                raise ValueError(f"a weight of shape {weight.shape} and a bias of shape {bias.shape}")
            if weight.dtype != np.float32 or bias.dtype != np.float32:
                raise ValueError(f"values {weight.dtype} and {bias.dtype}, expected float32")
            if not np.isfinite(weight).all() or not np.isfinite(bias).all():
                raise ValueError("values that are not finite")
        return cls(weight, bias)
