"""Networks that redraw a photograph of one class as one of another, and the judges they learn from.

CycleGAN (arXiv 1703.10593, appendix 7.2): a residual network with instance norm (arXiv 1607.08022) and reflection
padding as generator, a PatchGAN as discriminator. Pictures are float32 (N, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, Field
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from manihot.errors import WeightsError
from manihot.records.files import atomic_path
from manihot.records.readers import MOST_TENSORS, check_file, parse_json, reading

Net = TypeVar("Net", bound=nn.Module)
FORMAT = 1
SPREAD = 0.02  # deviation of fresh weights
MULTIPLE = 4  # edges are halved twice and doubled twice


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside the identity; the picture keeps its size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolution(width), nn.ReLU(True), *_convolution(width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, h, w) to the same shape."""
        found: Tensor = x + self.body(x)
        return found


def _convolution(width: int) -> tuple[nn.Module, ...]:
    return nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)


class Generator(nn.Module):
    """A picture to a picture of the same size, whose edges are multiples of 4.

    width: channels of the first layer, 64 in the paper. blocks: residual blocks at a quarter of the size.
    """

    def __init__(self, width: int = 64, blocks: int = 9) -> None:
        super().__init__()
        self.width, self.blocks = width, blocks
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7)]
        for channels in (width, 2 * width):
            layers += [nn.InstanceNorm2d(channels), nn.ReLU(True)]
            layers += [nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)]
        layers += [nn.InstanceNorm2d(4 * width), nn.ReLU(True)]
        layers += [ResidualBlock(4 * width) for _ in range(blocks)]
        for channels in (4 * width, 2 * width):
            layers += [nn.ConvTranspose2d(channels, channels // 2, 3, stride=2, padding=1, output_padding=1)]
            layers += [nn.InstanceNorm2d(channels // 2), nn.ReLU(True)]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, pictures: Tensor) -> Tensor:
        """(N, 3, H, W) to the same shape, values in [-1, 1]."""
        found: Tensor = self.layers(pictures)
        return found


class Discriminator(nn.Module):
    """Judges overlapping patches: a map of scores, 1 for a photograph and 0 for a made picture (least squares).

    layers: convolutions of stride 2; three see patches of 70 x 70 pixels, two of 34, one of 16. width: channels of
    the first.
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.width, self.layers = width, layers
        channels = [3, *(width * min(2**k, 8) for k in range(layers + 1))]
        body: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(channels)):
            body += [nn.Conv2d(before, after, 4, stride=2 if number < layers else 1, padding=1)]
            body += [nn.InstanceNorm2d(after)] if number else []  # none after the first: colours still count
            body += [nn.LeakyReLU(0.2, True)]
        body += [nn.Conv2d(channels[-1], 1, 4, padding=1)]
        self.body = nn.Sequential(*body)

    @property
    def patch(self) -> int:
        """Edge in pixels of the patch that one score sees."""
        seen = 1
        for convolution in reversed([m for m in self.body if isinstance(m, nn.Conv2d)]):
            seen = (seen - 1) * convolution.stride[0] + convolution.kernel_size[0]
        return seen

    def forward(self, pictures: Tensor) -> Tensor:
        """(N, 3, H, W) to scores (N, 1, h, w)."""
        found: Tensor = self.body(pictures)
        return found


def make_generator(size: int, width: int = 64, seed: int = 0) -> Generator:
    """A fresh generator for pictures of `size` pixels: 6 residual blocks, 9 from 256 on, as in the paper."""
    return _fresh(Generator(width, 6 if size < 256 else 9), seed)


def make_discriminator(size: int, width: int = 64, seed: int = 0) -> Discriminator:
    """A fresh discriminator whose patch is well below `size`: three layers, two under 128 pixels, one under 64."""
    return _fresh(Discriminator(width, 3 if size >= 128 else 2 if size >= 64 else 1), seed)


def _fresh(network: Net, seed: int) -> Net:
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, SPREAD, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def save_translator(path: Path, generator: Generator, about: dict[str, Any]) -> None:
    """Write one generator with what belongs to it (`from`, `to`, `size`, ...), atomically; safetensors, no pickle."""
    card = {"format": FORMAT, "width": generator.width, "blocks": generator.blocks, **about}
    state = {name: value.detach().to("cpu").contiguous() for name, value in generator.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata={"manihot_translator": json.dumps(card)})


class Shape(BaseModel):
    """What is stored beside a translator's weights, as far as its network follows from it."""

    format: Literal[1]
    width: Annotated[int, Field(ge=1, le=1024)]
    blocks: Annotated[int, Field(ge=0, le=64)]


def load_translator(path: Path) -> tuple[Generator, dict[str, Any]]:
    """Read what `save_translator` wrote: the generator and what belongs to it; WeightsError for anything else."""
    what, remedy = "a translator of manihot", "name a .safetensors that `manihot translate` wrote"
    with reading(path, what, remedy, WeightsError):
        check_file(path, MOST_TENSORS)
        with safe_open(path, framework="pt") as file:
            card = parse_json((file.metadata() or {})["manihot_translator"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a dict
        shape = Shape.model_validate(card)
        generator = Generator(shape.width, shape.blocks)
        generator.load_state_dict(state, strict=True)
        return generator.eval().requires_grad_(False), card
