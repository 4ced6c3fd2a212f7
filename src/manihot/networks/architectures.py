"""Networks of inverted residual blocks as data: EfficientNet-Lite and MobileNetV2 (arXiv 1801.04381).

Both are a stem, stages of blocks, and a 1x1 convolution; they differ in a table of stages, padding, and the small
number of their batch norms. Parameters have timm's names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

STEM, LAST = 32, 1280  # channels of the first and the last convolution, which scaling leaves alone
NORM = ("weight", "bias", "running_mean", "running_var")


class Stage(NamedTuple):
    """Blocks of one size and width; the first has the stride, `expand` widens the inside of each."""

    kernel: int
    stride: int
    expand: int
    channels: int
    blocks: int


class Convolution(NamedTuple):
    """A convolution without bias, the batch norm after it, and ReLU6 where `rectified`."""

    name: str
    norm: str
    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    rectified: bool = True

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of its parameters, and of those of its batch norm."""
        inputs = 1 if self.depthwise else self.inputs
        weight = {f"{self.name}.weight": (self.outputs, inputs, self.kernel, self.kernel)}
        return weight | {f"{self.norm}.{leaf}": (self.outputs,) for leaf in NORM}


class Block(NamedTuple):
    """Convolutions in a row; with `residual`, what went in is added to what comes out."""

    convolutions: tuple[Convolution, ...]
    residual: bool = False
    ends_stage: bool = False  # whether timm taps its output


@dataclass(frozen=True)
class Architecture:
    """A table of stages, scaled in width and depth.

    same_padding: TensorFlow's, which depends on the size of the input; else half a kernel on every side.
    """

    stages: tuple[Stage, ...]
    epsilon: float
    same_padding: bool
    width: float = 1.0
    depth: float = 1.0

    def blocks(self) -> Iterator[Block]:
        """The network from the stem to the last convolution."""
        yield Block((Convolution("conv_stem", "bn1", 3, STEM, 3, 2),))
        channels = STEM
        for number, stage in enumerate(self.stages):
            out, count = self._channels(stage), self._count(number)
            following = self.stages[number + 1 : number + 2]
            tapped = not following or following[0].stride > 1
            for block in range(count):
                stride = stage.stride if block == 0 else 1
                convolutions = _inverted(f"blocks.{number}.{block}", channels, out, stage, stride)
                yield Block(convolutions, stride == 1 and channels == out, tapped and block == count - 1)
                channels = out
        yield Block((Convolution("conv_head", "bn2", channels, LAST),), ends_stage=True)

    def tapped(self) -> list[Block]:
        """The blocks whose maps can be pooled, the last convolution at the end."""
        return [block for block in self.blocks() if block.ends_stage]

    def places(self) -> list[str]:
        """Names of the blocks between stem and last convolution, in order."""
        return [f"blocks.{number}.{k}" for number in range(len(self.stages)) for k in range(self._count(number))]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters that the feature maps are computed from."""
        return {k: v for block in self.blocks() for one in block.convolutions for k, v in one.shapes.items()}

    def _count(self, number: int) -> int:
        """Blocks of a stage; the first and the last stage are not scaled."""
        count = self.stages[number].blocks
        return count if number in (0, len(self.stages) - 1) else math.ceil(count * self.depth)

    def _channels(self, stage: Stage) -> int:
        """A multiple of eight, not less than nine tenths of what scaling asks for."""
        wanted = stage.channels * self.width
        rounded = max(8, int(wanted + 4) // 8 * 8)
        return rounded if rounded >= 0.9 * wanted else rounded + 8


def _inverted(place: str, inputs: int, outputs: int, stage: Stage, stride: int) -> tuple[Convolution, ...]:
    """Expansion (where there is one), depthwise convolution, projection without ReLU6."""
    inner, found = inputs * stage.expand, []
    if stage.expand > 1:
        found.append(Convolution(f"{place}.conv_pw", f"{place}.bn1", inputs, inner))
    norms = [f"{place}.bn{len(found) + k}" for k in (1, 2)]
    found.append(Convolution(f"{place}.conv_dw", norms[0], inner, inner, stage.kernel, stride, depthwise=True))
    project = f"{place}.conv_pwl" if stage.expand > 1 else f"{place}.conv_pw"
    found.append(Convolution(project, norms[1], inner, outputs, rectified=False))
    return tuple(found)


LITE = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)
MOBILE = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(3, 2, 6, 32, 3),
    Stage(3, 2, 6, 64, 4),
    Stage(3, 1, 6, 96, 3),
    Stage(3, 2, 6, 160, 3),
    Stage(3, 1, 6, 320, 1),
)

# timm's names of the networks that can be built without torch
ARCHITECTURES = {
    "tf_efficientnet_lite0": Architecture(LITE, 1e-3, True),
    "tf_efficientnet_lite1": Architecture(LITE, 1e-3, True, depth=1.1),
    "tf_efficientnet_lite2": Architecture(LITE, 1e-3, True, width=1.1, depth=1.2),
    "mobilenetv2_100": Architecture(MOBILE, 1e-5, False),
}
