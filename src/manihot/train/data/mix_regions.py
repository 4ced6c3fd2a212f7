"""Where and how much of one photograph shows in another: boxes, Fourier masks, activation maps, partners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Box(NamedTuple):
    """Rows top to bottom and columns left to right of a photograph, in pixels, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def area(self) -> int:
        """Pixels inside."""
        return (self.bottom - self.top) * (self.right - self.left)


def partners(n: int, generator: np.random.Generator, device: torch.device) -> Tensor:
    """For each photograph the index of its partner: one random cycle, so never itself unless n is 1."""
    order = generator.permutation(n)
    other = np.empty(n, dtype=np.int64)
    other[order] = np.roll(order, 1)
    return torch.from_numpy(other).to(device)


def random_box(images: Tensor, share: float, generator: np.random.Generator) -> Box:
    """A box of about `share` of the area with the photograph's proportions, its centre anywhere, clipped."""
    edges = []
    for length in images.shape[-2:]:
        half = round(length * share**0.5) / 2
        centre = generator.uniform(0, length)
        edges += [max(0, round(centre - half)), min(length, round(centre + half))]
    return Box(*edges)


def inside(images: Tensor, box: Box) -> Tensor:
    """The part of the images within the box, as a view."""
    return images[:, :, box.top : box.bottom, box.left : box.right]


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with area weighting where it shrinks; the type stays."""
    precise = images if images.dtype == torch.float64 else images.float()
    out = F.interpolate(precise, size=size, mode="bilinear", antialias=True)
    return out.to(images.dtype) if images.is_floating_point() else out.round().clamp(0, 255).to(images.dtype)


def pixels(images: Tensor) -> int:
    """Pixels of one photograph."""
    return images.shape[-2] * images.shape[-1]


def fourier_mask(size: Sequence[int], share: float, decay: float, generator: np.random.Generator) -> np.ndarray:
    """A bool mask (H,W) of low-frequency blobs, true on round(share H W) pixels."""
    height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = np.maximum(frequency, 1 / max(height, width)) ** -decay
    noise = generator.standard_normal((2, *frequency.shape))
    grey = np.fft.irfft2(amplitude * (noise[0] + 1j * noise[1]), (height, width)).ravel()
    mask = np.zeros(height * width, dtype=bool)
    count = round(share * mask.size)
    if count:
        mask[np.argpartition(grey, mask.size - count)[mask.size - count :]] = True
    return mask.reshape(height, width)


@torch.no_grad()
def class_activation(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The normalised class activation map (N,h,w) of each photograph's label; each sums to 1, none negative.

    features (N,A,h,w) of the last convolution, weight (K,A) of the linear layer after average pooling, labels
    int (N,) or soft (N,K). A flat map becomes uniform.
    """
    rows = weight[labels] if labels.ndim == 1 else labels.to(weight) @ weight
    maps = torch.einsum("nahw,na->nhw", features.float(), rows.float())
    maps = maps - maps.amin((1, 2), keepdim=True)
    total = maps.sum((1, 2), keepdim=True)
    return torch.where(total > 0, maps / total.clamp_min(1e-12), torch.full_like(maps, 1 / maps[0].numel()))


def activation_share(maps: Tensor, box: Box, size: Sequence[int]) -> Tensor:
    """How much of each map (N,h,w) falls into `box` of a photograph of `size` once enlarged to it; (N,).

    Bilinear enlarging is separable, so only the two edges are enlarged, never the maps.
    """
    sums = []
    for edge, length, begin, end in (
        (maps.shape[1], size[0], box.top, box.bottom),
        (maps.shape[2], size[1], box.left, box.right),
    ):
        unit = torch.eye(edge, device=maps.device).unsqueeze(0)
        weights = F.interpolate(unit, size=int(length), mode="linear")[0]  # (edge, length)
        sums.append(torch.stack([weights[:, begin:end].sum(1), weights.sum(1)]))
    maps = maps.float()
    part = torch.einsum("nhw,h,w->n", maps, sums[0][0], sums[1][0])
    whole = torch.einsum("nhw,h,w->n", maps, sums[0][1], sums[1][1])
    return torch.where(whole > 0, part / whole.clamp_min(1e-30), torch.full_like(whole, box.area / (size[0] * size[1])))
