"""Cross-entropy that also looks at the pooled features: ISDA and batch-hard triplets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from manihot.train.optim.losses.contract import check


class Isda(nn.Module):
    """Cross-entropy of features moved along their class's covariance, in closed form (arXiv 1909.12220).

    The logit of class j under label y becomes z_j + strength/2 (w_j - w_y)^T Sigma_y (w_j - w_y), where
    strength = lam epoch/epochs. Sigma is the running covariance of each class, K A^2 numbers for A features;
    it learns in training mode, from the most likely label of a soft row. Before the first `start_epoch` the
    strength is lam.
    """

    needs = ("features", "weight")

    def __init__(self, *, classes: int, photographs: int | None = None, lam: float = 0.5) -> None:
        super().__init__()
        check("isda", "lam", lam, lam >= 0, "a number from 0")
        self.lam, self.strength = lam, lam
        self.mean: Tensor
        self.covariance: Tensor
        self.count: Tensor
        self.register_buffer("mean", torch.zeros(classes, 0))
        self.register_buffer("covariance", torch.zeros(classes, 0, 0))
        self.register_buffer("count", torch.zeros(classes))

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Set the strength for `epoch`, counted from 0."""
        self.strength = self.lam * epoch / epochs

    def forward(self, logits: Tensor, target: Tensor, features: Tensor, weight: Tensor) -> Tensor:
        """(N,K) values; features (N,A), weight (K,A) of the last linear layer."""
        features, weight = features.to(logits.dtype), weight.to(logits.dtype)
        if self.training:
            self._learn(features.detach(), target.argmax(1))
        if not self.covariance.shape[1]:  # nothing learnt yet
            return -logits.log_softmax(1)
        apart = weight.unsqueeze(0) - weight.unsqueeze(1)  # [y, j] = w_j - w_y
        spread = (torch.bmm(apart, self.covariance.to(apart)) * apart).sum(2)
        moved = logits.unsqueeze(1) + 0.5 * self.strength * spread
        return moved.logsumexp(2) - logits

    @torch.no_grad()
    def _learn(self, features: Tensor, labels: Tensor) -> None:
        if self.covariance.shape[1] != features.shape[1]:
            classes, width = len(self.count), features.shape[1]
            self.mean = features.new_zeros(classes, width)
            self.covariance = features.new_zeros(classes, width, width)
            self.count = features.new_zeros(classes)
        for k in labels.unique().tolist():
            rows = features[labels == k]
            share = len(rows) / (self.count[k] + len(rows))
            gap = rows.mean(0) - self.mean[k]
            centred = rows - rows.mean(0)
            # share * (covariance within the batch + (1 - share) gap gap^T), in one pass over the A x A matrix
            news = torch.cat([centred * (share / len(rows)).sqrt(), gap[None] * (share * (1 - share)).sqrt()])
            self.covariance[k].mul_(1 - share).addmm_(news.T, news)
            self.mean[k] += share * gap
            self.count[k] += len(rows)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("mean", "covariance"):  # their width is known only once features came
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name], device=self.count.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


class Triplet(nn.Module):
    """Cross-entropy + weight * batch-hard triplet loss on the features (arXiv 1703.07737).

    For each photograph: the farthest of its class against the nearest of another, by Euclidean distance.
    margin: a number, or "soft" for softplus. normalise: features to length 1 first. Photographs whose class
    stands alone in the batch have no triplet, and the mean is over those that have one.
    """

    needs = ("features",)

    def __init__(
        self,
        *,
        classes: int,
        photographs: int | None = None,
        weight: float = 1.0,
        margin: float | str = "soft",
        normalise: bool = False,
    ) -> None:
        super().__init__()
        fine = margin == "soft" or (isinstance(margin, (int, float)) and margin >= 0)
        check("triplet", "margin", margin, fine, "a number from 0, or 'soft'")
        check("triplet", "weight", weight, weight >= 0, "a number from 0")
        self.weight, self.margin, self.normalise = weight, margin, normalise

    def forward(self, logits: Tensor, target: Tensor, features: Tensor) -> Tensor:
        """(N,K) values; features (N,A)."""
        features = features.to(logits.dtype)
        if self.normalise:
            features = nn.functional.normalize(features)
        labels = target.argmax(1)
        same = labels.unsqueeze(0) == labels.unsqueeze(1)
        other = ~same
        same = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
        farthest = distance.masked_fill(~same, 0).amax(1)
        nearest = distance.masked_fill(other.logical_not(), torch.finfo(distance.dtype).max).amin(1)
        has = same.any(1) & other.any(1)
        gap = torch.where(has, farthest - nearest, torch.zeros_like(nearest))
        cost = nn.functional.softplus(gap) if self.margin == "soft" else (gap + float(self.margin)).relu()
        cost = torch.where(has, cost, torch.zeros_like(cost)) * len(labels) / has.sum().clamp_min(1)
        return self.weight * cost.unsqueeze(1) - logits.log_softmax(1)
