"""Heads: how a backbone's feature maps become one vector, and the vector becomes logits.

GeM: arXiv 1711.02512. Average and maximum side by side: the lecture's and fastai's `avgmax`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from manihot.errors import SettingsError


def average(maps: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C): the mean over places."""
    return maps.mean((2, 3))


def maximum(maps: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C): the largest value over places."""
    return maps.amax((2, 3))


def average_and_maximum(maps: Tensor) -> Tensor:
    """(N, C, H, W) to (N, 2C): mean and maximum side by side."""
    return torch.cat([average(maps), maximum(maps)], 1)


def generalised_mean(maps: Tensor, power: float = 3.0, floor: float = 1e-6) -> Tensor:
    """(N, C, H, W) to (N, C): the power mean over places, between average (1) and maximum (infinity)."""
    return maps.clamp(min=floor).pow(power).mean((2, 3)).pow(1 / power)


POOLING: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": average,
    "max": maximum,
    "avgmax": average_and_maximum,
    "gem": generalised_mean,
}


class Classifier(nn.Module):
    """A timm backbone, pooling, dropout and one linear layer.

    taps: stages pooled beside the last one, counted from the end (2 = the stage before the last stage).
    power: signed square root of the pooled features (power normalisation, Perronnin et al. 2010), which
    tames the few large values that a linear head would follow. size: (height, width) of the input; only
    transformers mind. Token models (ViT, DeiT) keep their own pooling under 'avg'.
    """

    backbone: Any  # a timm model: forward_features, forward_head, forward_intermediates

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        pooling: str,
        dropout: float,
        taps: tuple[int, ...] = (),
        power: bool = False,
        size: tuple[int, int] = (64, 64),
    ) -> None:
        super().__init__()
        self.power = power
        self.backbone = backbone
        self.pooling = pooling
        self.taps = taps
        self.drop = nn.Dropout(dropout)
        with torch.inference_mode():
            was_training = backbone.training
            backbone.eval()
            width = self.embed(torch.zeros(1, 3, *size)).shape[1]
            backbone.train(was_training)
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to pooled features (N, D)."""
        if self.taps:
            last, maps = self.backbone.forward_intermediates(images, indices=[-tap for tap in self.taps])
            pooled = torch.cat([self._pool(last), *(POOLING[self.pooling](m) for m in maps)], 1)
        else:
            pooled = self._pool(self.backbone.forward_features(images))
        if self.power:  # the small number keeps the gradient finite where a feature is 0
            return pooled.sign() * (pooled.abs() + 1e-8).sqrt()
        return pooled

    def _pool(self, features: Tensor) -> Tensor:
        if features.ndim == 4 and self.backbone_is_nchw:
            return POOLING[self.pooling](features)
        if self.pooling != "avg":
            raise SettingsError(
                f"model.pooling: {self.pooling!r} needs feature maps, this backbone has tokens",
                "use model.pooling=avg: its own pooling",
            )
        return self.backbone.forward_head(features, pre_logits=True)

    @property
    def backbone_is_nchw(self) -> bool:
        """Whether the feature maps are (N, C, H, W); some transformers give (N, H, W, C) or tokens."""
        return getattr(self.backbone, "output_fmt", "NCHW") == "NCHW"

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to logits (N, K)."""
        return self.classify(self.embed(images))

    def classify(self, embeddings: Tensor) -> Tensor:
        """Pooled features (N, D) to logits (N, K)."""
        return self.head(self.drop(embeddings))
