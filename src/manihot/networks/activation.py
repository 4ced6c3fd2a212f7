"""Class activation of a linear head over pooled feature maps: Grad-CAM without a backward pass.

A map is ReLU(sum_k a_k A_k), a_k the sum over places of the class logit's gradient (Selvaraju et al. 2017, arXiv
1610.02391, times the number of places). Through average, maximum and generalised mean, the signed square root and a
linear layer that sum is known from maps and embeddings alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from manihot.networks.graph import FLOOR, POOLING
from manihot.networks.runner import Layout


def activation_maps(
    layout: Layout, maps: Sequence[np.ndarray], embeddings: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Maps float32 (N, C, h, w), not negative, of the classes whose head rows are weight (N, C, D).

    layout: `OnnxRunner.layout`. maps: (N, channels, h, w) of each depth, embeddings: (N, D), both of
    `OnnxRunner.maps`. The result lies on the finest grid, to which the maps of other depths are enlarged.
    """
    slope = weight.astype(np.float64)
    if layout.power:  # e = sign(p) sqrt(|p| + s), so that de/dp = 1 / 2|e|, and 0 at 0
        size = np.abs(embeddings).astype(np.float64)
        slope = slope * np.divide(0.5, size, out=np.zeros_like(size), where=size > 0)[:, None]
    grid = max((one.shape[2:] for one in maps), key=lambda shape: shape[0] * shape[1])
    total, at = np.zeros((*weight.shape[:2], *grid)), 0
    for one in maps:
        gain = np.zeros((*weight.shape[:2], one.shape[1]))
        for kind in POOLING[layout.pooling]:
            part = slope[..., at : at + one.shape[1]]
            gain += part * _gem_gain(one)[:, None] if kind == "gem" else part
            at += one.shape[1]
        found = np.einsum("nkhw,nck->nchw", one.astype(np.float64), gain, optimize=True)
        total += np.stack([[_enlarged(cells, grid) for cells in photo] for photo in found])
    return np.maximum(total, 0).astype(np.float32)


def _gem_gain(maps: np.ndarray) -> np.ndarray:
    """Sum over places of d pooled / d map (N, K) for pooled = (mean of max(A, floor)^3)^(1/3)."""
    floored = np.maximum(maps.astype(np.float64), FLOOR)
    gain: np.ndarray = np.where(maps >= FLOOR, floored**2, 0).mean((2, 3)) / (floored**3).mean((2, 3)) ** (2 / 3)
    return gain


def _enlarged(cells: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Bilinear between the centres of cells, as torch's interpolate."""
    grown: np.ndarray = cv2.resize(cells, (grid[1], grid[0]), interpolation=cv2.INTER_LINEAR)
    return grown
