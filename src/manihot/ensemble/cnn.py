"""The convolutional stackers of the 37th place (from Mechanisms of Action): small nets over (member x class).

torch is imported inside the functions, so that everything else of this room starts without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from manihot.ensemble.second_level import member_features

if TYPE_CHECKING:
    import torch

BATCH = 256
WIDTH = 24


def make_net(kind: str, m: int, k: int) -> torch.nn.Module:
    """A net from (B, M, K) to logits (B, K): '1d' slides along the members, '2d' over members and classes."""
    from torch import nn

    if kind == "1d":

        class MembersLast(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x.transpose(1, 2)

        first: list[nn.Module] = [MembersLast(), nn.Conv1d(k, WIDTH, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*first, nn.Flatten(), nn.Dropout(0.2), nn.Linear(WIDTH * m, k))
    convolved = [nn.Unflatten(1, (1, m)), nn.Conv2d(1, WIDTH // 2, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*convolved, nn.Flatten(), nn.Dropout(0.2), nn.Linear(WIDTH // 2 * m * k, k))


def fit_cnn(
    kind: str, features: np.ndarray, labels: np.ndarray, seed: int, epochs: int
) -> dict[str, np.ndarray]:
    """Train a net on features (N, M, K) with AdamW and a cosine; gives all that `apply_cnn` needs."""
    import torch
    from torch.nn import functional

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
    return {"kind": np.array(kind), "centre": centre, "spread": spread, **weights}


def apply_cnn(arrays: dict[str, np.ndarray], pred_probs: np.ndarray) -> np.ndarray:
    """Members (M, N, K) to probabilities (N, K) with a net that `fit_cnn` trained."""
    import torch

    with torch.random.fork_rng(devices=[]):  # a net begins with random weights
        net = make_net(str(arrays["kind"]), pred_probs.shape[0], pred_probs.shape[2])
    own = {name.removeprefix("net."): value for name, value in arrays.items() if name.startswith("net.")}
    net.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in own.items()})
    new = (member_features(pred_probs) - arrays["centre"]) / arrays["spread"]
    with torch.inference_mode():
        logits = net.eval()(torch.from_numpy(new.astype(np.float32)))
    return torch.softmax(logits.double(), dim=1).numpy()
