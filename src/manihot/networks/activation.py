"""Class activation of a linear head over pooled feature maps: Grad-CAM without a backward pass.

A map is ReLU(sum_k a_k A_k), a_k the sum over places of the class logit's gradient (Selvaraju et al. 2017, arXiv
1610.02391, times the number of places). Through average, maximum and generalised mean, the signed square root and a
linear layer that sum is known from the embeddings alone.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

FLOOR = 1e-6  # of generalised-mean pooling
SMALL = 1e-8  # under the signed square root


def activation_maps(
    layout: dict[str, Any], maps: list[np.ndarray], embeddings: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Maps (N, C, h, w), not negative, of the classes whose head rows are weight (N, C, D).

    layout: `OnnxRunner.layout`. maps: (N, channels, h, w) of each depth; the result lies on the finest grid, to which
    the others are enlarged. embeddings: (N, D).
    """
    slope = weight.astype(np.float64)
    pooled = embeddings.astype(np.float64)
    if layout["power"]:  # e = sign(p) sqrt(|p| + s), so de/dp = 1 / 2|e|
        slope = slope / (2 * np.maximum(np.abs(pooled), np.sqrt(SMALL)))[:, None]
        pooled = np.sign(pooled) * np.maximum(pooled**2 - SMALL, 0)
    grid = max((one.shape[2:] for one in maps), key=lambda shape: shape[0] * shape[1])
    total, at = np.zeros((*weight.shape[:2], *grid)), 0
    for one in maps:
        channels = one.shape[1]
        gain = np.zeros((*weight.shape[:2], channels))
        for kind in ("avg", "max") if layout["pooling"] == "avgmax" else (layout["pooling"],):
            part = slice(at, at + channels)
            gain += slope[..., part] * (_gem_gain(one, pooled[:, part])[:, None] if kind == "gem" else 1.0)
            at += channels
        found = np.einsum("nchw,nkc->nkhw", one, gain)
        total += np.stack([[_enlarged(cells, grid) for cells in photo] for photo in found])
    return np.maximum(total, 0).astype(np.float32)


def _gem_gain(maps: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    """Sum over places of d pooled / d map: p^(1-3) times the mean of A^2 where A isn't at its floor."""
    floored = np.maximum(maps.astype(np.float64), FLOOR)
    return np.where(maps > FLOOR, floored**2, 0).mean((2, 3)) / np.maximum(pooled, FLOOR) ** 2


def _enlarged(cells: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Bilinear between the centres of cells, as torch's interpolate."""
    return cv2.resize(cells, (grid[1], grid[0]), interpolation=cv2.INTER_LINEAR)
