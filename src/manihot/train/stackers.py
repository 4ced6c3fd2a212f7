"""The convolutional stackers of the 37th place (from Mechanisms of Action): small nets over (member x class).

Importing this module puts them into `manihot.ensemble.stack.STACKERS`. What they learn is kept as arrays that
`manihot.ensemble.second_level` applies without torch.
"""

from __future__ import annotations

import numpy as np

from manihot.ensemble.second_level import Part, member_features
from manihot.ensemble.stack import STACKERS
from manihot.errors import MissingExtraError

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError as error:
    raise MissingExtraError("fitting a CNN stacker") from error

BATCH = 256
WIDTH = 24


class MembersLast(nn.Module):
    """(B, M, K) to (B, K, M)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


def make_net(kind: str, m: int, k: int) -> nn.Module:
    """A net from (B, M, K) to logits (B, K): '1d' slides along the members, '2d' over members and classes."""
    if kind == "1d":
        first: list[nn.Module] = [MembersLast(), nn.Conv1d(k, WIDTH, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*first, nn.Flatten(), nn.Dropout(0.2), nn.Linear(WIDTH * m, k))
    convolved = [nn.Unflatten(1, (1, m)), nn.Conv2d(1, WIDTH // 2, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*convolved, nn.Flatten(), nn.Dropout(0.2), nn.Linear(WIDTH // 2 * m * k, k))


def fit_cnn(kind: str, pred_probs: np.ndarray, labels: np.ndarray, seed: int, epochs: int) -> Part:
    """Train a net on members (M, N, K) with AdamW and a cosine schedule."""
    features = member_features(pred_probs)
    centre, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    x = torch.from_numpy(((features - centre) / spread).astype(np.float32))
    y = torch.from_numpy(np.asarray(labels, dtype=np.int64))
    order = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
        torch.manual_seed(seed)
        net = make_net(kind, x.shape[1], x.shape[2]).train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            for batch in np.array_split(order.permutation(len(y)), max(1, len(y) // BATCH)):
                rows = torch.from_numpy(batch)
                loss = functional.cross_entropy(net(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
    weights = {f"net.{name}": value.numpy() for name, value in net.state_dict().items()}
    return Part("cnn", {"kind": np.array(kind), "centre": centre, "spread": spread, **weights})


def fit_cnn1d(pred_probs: np.ndarray, labels: np.ndarray, seed: int = 0, epochs: int = 12) -> Part:
    """A convolution along the members, classes as channels (37th place)."""
    return fit_cnn("1d", pred_probs, labels, seed, epochs)


def fit_cnn2d(pred_probs: np.ndarray, labels: np.ndarray, seed: int = 0, epochs: int = 12) -> Part:
    """A convolution over the (member x class) matrix (37th place)."""
    return fit_cnn("2d", pred_probs, labels, seed, epochs)


STACKERS.update(cnn1d=fit_cnn1d, cnn2d=fit_cnn2d)
