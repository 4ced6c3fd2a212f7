"""Where in a photograph a network found its answer: heat maps that lie right over the photograph.

Networks with feature maps: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391), which for average pooling and a
linear head is the class activation map (Zhou et al. 2016, arXiv 1512.04150). Where a head reads several depths
(`model.taps`), the maps of all of them are added, the evidence of each depth at its own places. Transformers of
tokens: attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928), which knows no class.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from manihot.augment.views import make_view
from manihot.errors import DataError, SettingsError
from manihot.infer.placement import merge_maps
from manihot.infer.runners import Normalise, choose_device
from manihot.photos.decode import decode_photo
from manihot.photos.faults import PhotoFault
from manihot.photos.preprocess import Preprocess
from manihot.progress import track
from manihot.settings import View
from manihot.train.networks.checkpoint import TrainedModel
from manihot.train.networks.heads import Classifier

EDGE = 512  # pixels of a heat map's longer edge
CHUNK = 4  # photographs whose feature maps are held at once
ROUNDING = 1e-5  # share of a map's values within which its places are the same
TINY = 1e-12

Evidence = Callable[[Tensor], Tensor]  # classes int64 (N, C) -> maps float32 (N, C, h, w), not negative


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
    model: TrainedModel, photos: Sequence[np.ndarray | Path], classes: np.ndarray | None = None, *,
    top: int = 2, every_fold: bool = False, every_view: bool = True, edge: int = EDGE,
    device: torch.device | None = None,
) -> Iterator[Explanation]:  # fmt: skip
    """Heat maps of photographs for some classes, one photograph after the other.

    photos: uint8 RGB (H, W, 3), upright, or files. classes: int (N, C); the `top` most probable ones when left
    out. every_fold: the mean over all networks of the model, each map divided by its own maximum; the first one
    alone otherwise. every_view: the mean over the views that the model's predictions average, or the first alone.
    edge: pixels of the maps' longer edge. Raises DataError for an unreadable file or a class that isn't there,
    SettingsError for a network without feature maps or attention.
    """
    device = device or choose_device()
    wanted = _check_classes(classes, len(photos), len(model.classes))
    views = model.views if every_view else model.views[:1]
    networks = [n.to(device).eval() for n in (model.networks if every_fold else model.networks[:1])]
    methods = [choose_method(network, model.preprocess.size) for network in networks]
    normalise = Normalise(model.preprocess).to(device)
    for at in track(range(0, len(photos), CHUNK), "Explaining photographs, in fours"):
        pictures = [_upright(photo, model.preprocess) for photo in photos[at : at + CHUNK]]
        stored = [model.preprocess.for_store(picture) for picture in pictures]
        seen: list[list[tuple[Tensor, Evidence]]] = []  # network -> view
        for network, method in zip(networks, methods, strict=True):
            seen.append([])
            for view in views:
                batch = np.stack([make_view(picture, view, model.preprocess) for picture in stored])
                seen[-1].append(METHODS[method](network, normalise(torch.from_numpy(batch).to(device))))
        probs = _mean_probs(seen, views, len(model.classes))
        chosen = np.argsort(-probs, axis=1, kind="stable")[:, :top] if wanted is None else wanted[at : at + CHUNK]
        raw = [
            [evidence(torch.from_numpy(chosen).to(device)).cpu().numpy() for _, evidence in of_views]
            for of_views in seen
        ]
        for i, picture in enumerate(pictures):
            shape = _scaled(picture.shape[:2], edge)
            layers = []
            for method, of_views in zip(methods, raw, strict=True):
                maps, covered = merge_maps(
                    [maps[i] for maps in of_views], views, model.preprocess, picture.shape, shape
                )
                layers.append(scale_maps(maps, method))
            maps = scale_maps(np.mean(layers, axis=0), "") if len(layers) > 1 else layers[0]
            yield Explanation(maps, chosen[i], probs[i], covered, " and ".join(dict.fromkeys(methods)))


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


def _upright(photo: np.ndarray | Path, preprocess: Preprocess) -> np.ndarray:
    """The photograph as prediction decodes it, before it is brought to size."""
    if isinstance(photo, np.ndarray):
        return photo
    try:
        return decode_photo(photo, at_least=preprocess.for_store.size)
    except PhotoFault as fault:
        raise DataError(f"{photo}: {fault.kind}: {fault.detail}", fault.remedy) from fault


def _mean_probs(seen: list[list[tuple[Tensor, Evidence]]], views: Sequence[View], classes: int) -> np.ndarray:
    weights = np.array([view.weight for view in views])
    known = [[logits.detach().double()[:, :classes] for logits, _ in part] for part in seen]
    probs = [[torch.softmax(logits, 1).cpu().numpy() for logits in part] for part in known]
    return np.einsum("mvnk,v->nk", np.array(probs), weights / weights.sum()) / len(seen)


# What each method looks at


def choose_method(network: Classifier, size: tuple[int, int]) -> str:
    """The name of the method for a network: by what its backbone gives for an input of (height, width).

    SettingsError for a backbone with neither feature maps nor readable attention.
    """
    device, tiles = next(network.parameters()).device, network.tiles
    with torch.no_grad():
        blank = torch.zeros(1, 3, size[0] // tiles[0], size[1] // tiles[1], device=device)
        features = network.backbone.forward_features(blank)
    if features.ndim == 4:
        return "grad_cam"
    if tiles != (1, 1):
        raise SettingsError(
            f"{type(network.backbone).__name__} sees tiles of the photograph, and its attention doesn't reach from one "
            "to the next, so no heat map can be drawn",
            "explain another member of the run",
        )
    if features.ndim == 3 and _pooled_tokens(network.backbone) is not None and _attentions(network.backbone):
        return "attention_rollout"
    raise SettingsError(
        f"{type(network.backbone).__name__} has neither feature maps (for Grad-CAM) nor attention between the "
        "tokens that are pooled (for attention rollout), so no heat map can be drawn",
        "explain another member of the run; convolutional networks, ViT and DeiT can be explained",
    )


def count_flops(network: Classifier, size: tuple[int, int]) -> int:
    """Floating-point operations of one photograph of (height, width), without computing anything."""
    empty = copy.deepcopy(network).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        empty(torch.zeros(1, 3, *size, device="meta"))
    return int(counter.get_total_flops())


def grad_cam(network: Classifier, images: Tensor) -> tuple[Tensor, Evidence]:
    """Logits (N, K) of normalised images (N, 3, H, W), and Grad-CAM of any class.

    A map is ReLU(sum_k a_k A_k) with a_k the sum over places of the class logit's gradient: the paper's mean
    times the number of places, so that for average pooling and a linear head the mean of the map before ReLU,
    plus the bias, is the logit, whatever the grid. Maps of several depths are enlarged to the finest and added;
    those of tiles are joined.
    """
    leaves: list[Tensor] = []
    rows, columns = network.tiles

    def leaf(features: Tensor) -> Tensor:
        if features.ndim != 4 or len(features) != len(images) * rows * columns:
            raise SettingsError(
                f"{type(network.backbone).__name__}: its features of shape {tuple(features.shape)} are no maps over "
                "the photograph",
                "explain another member of the run",
            )
        leaves.append(features.detach().requires_grad_())
        return leaves[-1]

    with torch.enable_grad(), _features_pass(network.backbone, leaf):
        logits = network(images)
    last_is_nhwc = not network.backbone_is_nchw

    def evidence(classes: Tensor) -> Tensor:
        found = []
        for column in classes.T:
            asked = logits.gather(1, column[:, None]).sum()
            gradients = torch.autograd.grad(asked, leaves, retain_graph=True)
            of_tiles = _weighted(leaves, gradients, last_is_nhwc).unflatten(0, (-1, rows, columns))
            found.append(of_tiles.permute(0, 1, 3, 2, 4).flatten(3, 4).flatten(1, 2))
        return torch.stack(found, 1).relu()

    return logits, evidence


def _weighted(leaves: Sequence[Tensor], gradients: Sequence[Tensor], last_is_nhwc: bool) -> Tensor:
    """Sum over channels and depths of activation times summed gradient, (N, h, w) on the finest grid."""
    parts = []
    for depth, (maps, slopes) in enumerate(zip(leaves, gradients, strict=True)):
        if depth == 0 and last_is_nhwc:
            maps, slopes = maps.permute(0, 3, 1, 2), slopes.permute(0, 3, 1, 2)
        parts.append(torch.einsum("nkhw,nk->nhw", maps.detach().float(), slopes.float().sum((2, 3))))
    grid = max((part.shape[1:] for part in parts), key=lambda shape: shape[0] * shape[1])
    grown = [functional.interpolate(part[:, None], grid, mode="bilinear")[:, 0] for part in parts]
    return torch.stack(grown).sum(0)


@contextmanager
def _features_pass(backbone: Any, leaf: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, features that the head asks of the backbone are computed without a graph and go through `leaf`.

    Set on the instance, so that a head finds them however it pools: nothing of the head is repeated here.
    """
    whole, inner = backbone.forward_features, getattr(backbone, "forward_intermediates", None)

    def forward_features(images: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():
            features = whole(images, *args, **kwargs)
        return leaf(features)

    def forward_intermediates(images: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad():
            last, maps = inner(images, *args, **kwargs)  # type: ignore[misc]
        return leaf(last), [leaf(part) for part in maps]

    backbone.forward_features = forward_features
    if inner is not None:
        backbone.forward_intermediates = forward_intermediates
    try:
        yield
    finally:
        del backbone.forward_features
        if inner is not None:
            del backbone.forward_intermediates


def attention_rollout(network: Classifier, images: Tensor) -> tuple[Tensor, Evidence]:
    """Logits (N, K) of normalised images (N, 3, H, W), and how much of each patch reaches the pooled tokens.

    In every block A = mean over heads, 0.5 A + 0.5 I (the residual), rows divided by their sum; the product over
    blocks, its row of the class token (the mean of the rows that are pooled), without the tokens that are no
    patch. The same for every class.
    """
    backbone = network.backbone
    grid, prefix = tuple(backbone.patch_embed.grid_size), int(backbone.num_prefix_tokens)
    rolled: list[Tensor] = []

    def read(_module: Any, _inputs: Any, attention: Tensor) -> None:
        tokens = prefix + grid[0] * grid[1]
        if attention.shape[0] != len(images) or attention.shape[-2:] != (tokens, tokens):
            raise SettingsError(
                f"{type(backbone).__name__}: its attention of shape {tuple(attention.shape)} isn't between its "
                f"{tokens} tokens",
                "explain another member of the run",
            )
        mixed = 0.5 * attention.float().mean(1) + 0.5 * torch.eye(tokens, device=attention.device)
        mixed = mixed / mixed.sum(-1, keepdim=True)
        rolled[:] = [mixed @ rolled[0]] if rolled else [mixed]

    with torch.no_grad(), _attention_read(backbone, read):
        logits = network(images)
    first, last = _pooled_tokens(backbone) or (0, 1)
    flow = rolled[0][:, first:last].mean(1)[:, prefix:]
    maps = flow.reshape(len(images), 1, *grid)
    return logits, lambda classes: maps.expand(-1, classes.shape[1], -1, -1)


def _attentions(backbone: Any) -> list[Any]:
    """The attention layers of a backbone of equal blocks, [] where one of them can't be read."""
    layers = [getattr(block, "attn", None) for block in getattr(backbone, "blocks", ())]
    readable = all(hasattr(layer, "fused_attn") and hasattr(layer, "attn_drop") for layer in layers)
    return layers if readable and hasattr(getattr(backbone, "patch_embed", None), "grid_size") else []


def _pooled_tokens(backbone: Any) -> tuple[int, int | None] | None:
    """First and last token (exclusive) whose mean is the embedding; None where it is no mean of tokens."""
    if getattr(backbone, "attn_pool", None) is not None or not hasattr(backbone, "num_prefix_tokens"):
        return None
    if hasattr(backbone, "dist_token"):  # DeiT distilled: the mean of both heads' tokens
        return 0, 2
    kind = getattr(backbone, "global_pool", None)
    if kind == "token":
        return 0, 1
    if kind == "avg":
        return (0 if getattr(backbone, "pool_include_prefix", False) else int(backbone.num_prefix_tokens)), None
    return None


@contextmanager
def _attention_read(backbone: Any, read: Callable[..., None]) -> Iterator[None]:
    """While open, fused attention is off and `read` gets every block's softmax (N, heads, T, T)."""
    layers = _attentions(backbone)
    fused = [layer.fused_attn for layer in layers]
    hooks = [layer.attn_drop.register_forward_hook(read) for layer in layers]
    for layer in layers:
        layer.fused_attn = False  # the fused kernel never makes the softmax
    try:
        yield
    finally:
        for layer, was, hook in zip(layers, fused, hooks, strict=True):
            layer.fused_attn = was
            hook.remove()


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


METHODS: dict[str, Callable[[Classifier, Tensor], tuple[Tensor, Evidence]]] = {
    "grad_cam": grad_cam,
    "attention_rollout": attention_rollout,
}
