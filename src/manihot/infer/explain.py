"""Where in a photograph a network found its answer: heat maps that lie right over the photograph.

Networks with feature maps: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391), which for average pooling and a
linear head is the class activation map (Zhou et al. 2016, arXiv 1512.04150). Where a head reads several depths
(`model.taps`), the maps of all of them are added, the evidence of each depth at its own places. Transformers of
tokens: attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928), which knows no class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy.special import softmax

from manihot.augment.views import make_view
from manihot.errors import DataError, MissingExtraError
from manihot.infer.placement import merge_maps
from manihot.networks.activation import activation_maps
from manihot.networks.card import ModelCard
from manihot.networks.runner import LinearHead, OnnxRunner
from manihot.photos.decode import decode_sized
from manihot.photos.faults import PhotoFault
from manihot.photos.preprocess import Preprocess
from manihot.progress import track
from manihot.records.probabilities import TINY
from manihot.records.run_folder import BACKBONE
from manihot.settings import View

EDGE = 512  # pixels of a heat map's longer edge
CHUNK = 4  # photographs whose feature maps are held at once
ROUNDING = 1e-5  # share of a map's values within which its places are the same

Evidence = Callable[[np.ndarray], np.ndarray]  # classes int64 (N, C) -> maps float32 (N, C, h, w), not negative


class Explainer(Protocol):
    """A network that shows where its answers come from.

    method: 'grad_cam' or 'attention_rollout'. depths: feature maps that its head reads. flops: of one photograph.
    """

    method: str
    depths: int
    flops: int

    def __call__(self, photos: np.ndarray) -> tuple[np.ndarray, Evidence]:
        """uint8 (N, H, W, 3) to logits (N, K) and the maps of any classes."""
        ...


OpenExplainer = Callable[[Path, str], Explainer]  # of a network's file and a device; what the extra `train` offers


class HeadExplainer:
    """Grad-CAM of a linear head over a frozen backbone: its gradient is known without computing one."""

    method = "grad_cam"
    flops = 0  # of the maps: next to nothing beside the forward pass

    def __init__(self, path: Path, device: str) -> None:
        self.head = LinearHead.load(path)
        self.backbone = OnnxRunner(path.parents[1] / BACKBONE, device=device)
        self.depths = len(self.backbone.of_maps)

    def __call__(self, photos: np.ndarray) -> tuple[np.ndarray, Evidence]:
        """uint8 (N, H, W, 3) to logits (N, K) and the maps of any classes."""
        embeddings, maps = self.backbone.maps(photos)

        def evidence(classes: np.ndarray) -> np.ndarray:
            return activation_maps(self.backbone.layout, maps, embeddings, self.head.weight[classes])

        return self.head.logits(embeddings), evidence


def open_explainer(path: Path, device: str, other: OpenExplainer | None) -> Explainer:
    """What explains the network in a file; MissingExtraError where that takes torch and `other` is None."""
    if LinearHead.load_if(path) is not None:
        return HeadExplainer(path, device)
    if other is None:
        raise MissingExtraError(f"{path}: explaining a fine-tuned network")
    return other(path, device)


@dataclass(frozen=True)
class Explanation:
    """Heat maps of one photograph.

    maps: float32 (C, h, w) in [0, 1], each divided by its own strongest place, in the coordinates of the upright
    photograph. classes: int64 (C,), the class of each map. pred_probs: float64 (K,), by the networks and views
    explained. seen: float32 (h, w), 1 where some view of the network covers the photograph. method: of METHODS.
    """

    maps: np.ndarray
    classes: np.ndarray
    pred_probs: np.ndarray
    seen: np.ndarray
    method: str


def explain_photos(
    explainers: Sequence[Explainer],
    card: ModelCard,
    photos: Sequence[np.ndarray | Path],
    classes: np.ndarray | None = None,
    *,
    top: int = 2,
    every_view: bool = True,
    edge: int = EDGE,
) -> Iterator[Explanation]:
    """Heat maps of photographs for some classes, one photograph after the other.

    explainers: networks of one card; of several the mean, each map divided by its own maximum. photos: uint8 RGB
    (H, W, 3), upright, or files. classes: int (N, C); the `top` most probable ones when left out. every_view: the mean
    over the views that the model's predictions average, or the first alone. edge: pixels of the maps' longer edge.
    Raises DataError for an unreadable file or a class that isn't there.
    """
    wanted = _check_classes(classes, len(photos), len(card.classes))
    views, preprocess = card.views if every_view else card.views[:1], card.preprocess
    for at in track(range(0, len(photos), CHUNK), "Explaining photographs, in fours"):
        pictures = [_upright(photo, preprocess) for photo in photos[at : at + CHUNK]]
        stored = [preprocess.for_store(picture, full) for picture, full in pictures]
        batches = [np.stack([make_view(p, view, preprocess) for p in stored]) for view in views]
        seen = [[explainer(batch) for batch in batches] for explainer in explainers]  # network -> view
        probs = _mean_probs([[logits for logits, _ in part] for part in seen], views, len(card.classes))
        chosen = np.argsort(-probs, axis=1, kind="stable")[:, :top] if wanted is None else wanted[at : at + CHUNK]
        raw = [[evidence(chosen) for _, evidence in of_views] for of_views in seen]
        for i, (picture, _) in enumerate(pictures):
            shape = _scaled(picture.shape[:2], edge)
            layers = []
            for explainer, of_views in zip(explainers, raw, strict=True):
                maps, covered = merge_maps([maps[i] for maps in of_views], views, preprocess, picture.shape, shape)
                layers.append(scale_maps(maps, explainer.method))
            maps = scale_maps(np.mean(layers, axis=0), "") if len(layers) > 1 else layers[0]
            method = " and ".join(dict.fromkeys(explainer.method for explainer in explainers))
            yield Explanation(maps, chosen[i], probs[i], covered, method)


def _check_classes(classes: np.ndarray | None, n: int, k: int) -> np.ndarray | None:
    if classes is None:
        return None
    wanted = np.asarray(classes, dtype=np.int64)
    if wanted.ndim != 2 or len(wanted) != n or (wanted < 0).any() or (wanted >= k).any():
        raise DataError(
            f"classes of shape {wanted.shape} can't be explained for {n} photographs and {k} classes",
            f"one row of class numbers from 0 to {k - 1} for each photograph",
        )
    return wanted


def _upright(photo: np.ndarray | Path, preprocess: Preprocess) -> tuple[np.ndarray, tuple[int, int]]:
    """The photograph as prediction decodes it, before it is brought to size, and its (height, width) in full."""
    if isinstance(photo, np.ndarray):
        return photo, (photo.shape[0], photo.shape[1])
    try:
        return decode_sized(photo, at_least=preprocess.for_store.size)
    except PhotoFault as fault:
        raise DataError(f"{photo}: {fault.kind}: {fault.detail}", fault.remedy) from fault


def _mean_probs(logits: list[list[np.ndarray]], views: Sequence[View], classes: int) -> np.ndarray:
    """Logits (N, K) by network and view to the mean probabilities (N, K)."""
    weights = np.array([view.weight for view in views])
    probs = softmax(np.array(logits, dtype=np.float64)[..., :classes], axis=3)
    found: np.ndarray = np.einsum("mvnk,v->nk", probs, weights / weights.sum()) / len(logits)
    return found


def scale_maps(maps: np.ndarray, method: str) -> np.ndarray:
    """Each map (h, w) of (C, h, w) to [0, 1] by its strongest place; a map without evidence stays 0.

    A rollout, which is nowhere 0, also loses what its weakest place has.
    """
    noise = ROUNDING * maps.max(axis=(1, 2), keepdims=True) + TINY
    if method == "attention_rollout":
        maps = maps - maps.min(axis=(1, 2), keepdims=True)
    strongest = maps.max(axis=(1, 2), keepdims=True)
    return np.where(strongest > noise, maps / np.maximum(strongest, noise), 0).clip(0, 1).astype(np.float32)


def _scaled(shape: Sequence[int], edge: int) -> tuple[int, int]:
    scale = min(1.0, edge / max(shape))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
