"""Cross-entropy and its close kin. In all of them z = logits, p = softmax(z).

Terms give (N,K), the loss for each possible label; see `contract`.
"""

from __future__ import annotations

from torch import Tensor


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-log p_y; with `smoothing` the label smoothing of arXiv 1512.00567."""
    return -logits.log_softmax(1)
