"""Heads: how a backbone's feature maps become one vector, and the vector becomes logits.

GeM: arXiv 1711.02512. Average and maximum side by side: the lecture's and fastai's `avgmax`. Attention over
tiles and several dropouts: the third place's of Cassava 2020 (multi-sample dropout: arXiv 1905.09788, which
averages losses; the third place averaged logits, and so do we).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manihot.errors import SettingsError
from manihot.records.probabilities import TINY


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
    """(N, C, H, W) to (N, C): the power mean over places, between average (1) and maximum (infinity).

    In float32 at least: in half precision the cube of .001 is 0, and that of 50 infinite.
    """
    precise = maps if maps.dtype == torch.float64 else maps.float()
    return precise.clamp(min=floor).pow(power).mean((2, 3)).pow(1 / power).to(maps.dtype)


POOLING: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": average,
    "max": maximum,
    "avgmax": average_and_maximum,
    "gem": generalised_mean,
}


def cut_tiles(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """(N, C, H, W) to (N * rows * columns, C, H / rows, W / columns); a photograph's tiles lie row by row."""
    rows, columns = grid
    channels, height, width = images.shape[1:]
    apart = images.reshape(-1, channels, rows, height // rows, columns, width // columns)
    tiles = apart.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, height // rows, width // columns)
    return tiles.contiguous(memory_format=torch.channels_last)


def linear_score(width: int) -> nn.Module:
    """Pattern A: one linear layer scores a tile."""
    return nn.Linear(width, 1)


def tanh_score(width: int) -> nn.Module:
    """Pattern B: 256 hidden units and tanh."""
    return nn.Sequential(nn.Linear(width, 256), nn.Tanh(), nn.Linear(256, 1))


TILE_ATTENTION: dict[str, Callable[[int], nn.Module]] = {"linear": linear_score, "tanh": tanh_score}


class Classifier(nn.Module):
    """A timm backbone, pooling, dropout and one linear layer.

    taps: stages pooled beside the last one, counted from the end (2 = the stage before the last stage).
    power: signed square root of the pooled features (power normalisation, Perronnin et al. 2010), which
    tames the few large values that a linear head would follow. size: (height, width) of the input; only
    transformers mind. Token models (ViT, DeiT) keep their own pooling under 'avg'. tiles: the photograph is
    cut into a grid of (rows, columns); the features are the tiles' mean, weighted by the softmax of what the row
    `tile_attention` gives each. dropout_samples: dropouts whose logits are averaged in training. unknown: one output
    more, the last, for photographs of something else.
    """

    backbone: Any  # a timm model: forward_features, forward_head, forward_intermediates
    attention: nn.Module | None

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        pooling: str,
        dropout: float,
        taps: tuple[int, ...] = (),
        power: bool = False,
        size: tuple[int, int] = (64, 64),
        tiles: tuple[int, int] = (1, 1),
        tile_attention: str = "linear",
        dropout_samples: int = 1,
        unknown: bool = False,
    ) -> None:
        super().__init__()
        self.power = power
        self.tiles = tiles
        self.dropout_samples = dropout_samples
        self.backbone = backbone
        self.pooling = pooling
        self.taps = taps
        self.drop = nn.Dropout(dropout)
        with torch.inference_mode():
            was_training = backbone.training
            backbone.eval()
            width = self._embed(torch.zeros(1, 3, size[0] // tiles[0], size[1] // tiles[1])).shape[1]
            backbone.train(was_training)
        self.unknown = unknown
        self.head = nn.Linear(width, classes + unknown)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.attention = TILE_ATTENTION[tile_attention](width) if tiles != (1, 1) else None

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to pooled features (N, D)."""
        if self.attention is None:
            return self._embed(images)
        features = self._embed(cut_tiles(images, self.tiles)).unflatten(0, (-1, self.tiles[0] * self.tiles[1]))
        found: Tensor = (self.weigh_tiles(features).unsqueeze(2) * features).sum(1)
        return found

    def weigh_tiles(self, features: Tensor) -> Tensor:
        """Features of tiles (N, T, D) to their weights (N, T), which sum to 1."""
        assert self.attention is not None
        found: Tensor = self.attention(features).squeeze(2).softmax(1)
        return found

    def _embed(self, images: Tensor) -> Tensor:
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
        found: Tensor = self.backbone.forward_head(features, pre_logits=True)
        return found

    @property
    def backbone_is_nchw(self) -> bool:
        """Whether the feature maps are (N, C, H, W); some transformers give (N, H, W, C) or tokens."""
        return getattr(self.backbone, "output_fmt", "NCHW") == "NCHW"

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to logits (N, K), or (N, K + 1) with the output `unknown`."""
        return self.classify(self.embed(images))

    def classify(self, embeddings: Tensor) -> Tensor:
        """Pooled features (N, D) to logits (N, K), or (N, K + 1) with the output `unknown`."""
        if self.dropout_samples == 1 or not self.training:
            found: Tensor = self.head(self.drop(embeddings))
            return found
        # the head is linear: the logits of the mean are the mean of the logits, at the price of one
        samples = [self.drop(embeddings) for _ in range(self.dropout_samples)]
        found = self.head(torch.stack(samples).mean(0))
        return found


class Snapshots(nn.Module):
    """One network after several epochs of its training, or two that learned together: their mean probability answers.

    The features are those of all, side by side.
    """

    def __init__(self, networks: Sequence[Classifier]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.unknown = networks[0].unknown
        self.widths = [network.head.in_features for network in networks]

    @property
    def last(self) -> Classifier:
        """The network after the latest of the epochs."""
        found = self.networks[-1]
        assert isinstance(found, Classifier)
        return found

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to pooled features (N, D of all)."""
        return torch.cat([network.embed(images) for network in self.networks], 1)  # type: ignore[operator]

    def classify(self, embeddings: Tensor) -> Tensor:
        """Pooled features to the logarithm of the mean probabilities (N, K), or (N, K + 1) with `unknown`."""
        parts = embeddings.split(self.widths, 1)
        probs = [network.classify(part).float().softmax(1) for network, part in zip(self.networks, parts)]  # type: ignore[operator]
        return torch.stack(probs).mean(0).clamp(min=TINY).log()

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to what `classify` gives."""
        return self.classify(self.embed(images))
