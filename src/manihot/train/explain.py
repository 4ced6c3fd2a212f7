"""Where a fine-tuned network found its answer: Grad-CAM and attention rollout by torch.

Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) for networks with feature maps, attention rollout (Abnar and Zuidema
2020, arXiv 2005.00928) for transformers of tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from manihot.errors import SettingsError
from manihot.infer.explain import Evidence
from manihot.networks.card import ModelCard
from manihot.records.run_folder import TORCH_NETWORK
from manihot.train.networks.checkpoint import load_network
from manihot.train.networks.heads import Classifier, Snapshots
from manihot.train.runners import Normalise, choose_device

Seen = Callable[[Tensor], Tensor]  # classes int64 (N, C) -> maps float32 (N, C, h, w), not negative


class TorchExplainer:
    """A fine-tuned network and the method that its backbone allows; see `manihot.infer.explain.Explainer`.

    Raises SettingsError for a network with neither feature maps nor readable attention.
    """

    def __init__(self, network: Classifier, card: ModelCard, device: str = "cpu") -> None:
        self.device = choose_device(device)
        self.network = network.to(self.device)
        self.method = choose_method(network, card.preprocess.size)
        self.depths = len(network.taps) + 1
        self.flops = count_flops(network, card.preprocess.size)
        self.classes = len(card.classes)
        self.normalise = Normalise(card.preprocess).to(self.device)

    def __call__(self, photos: np.ndarray) -> tuple[np.ndarray, Evidence]:
        """uint8 (N, H, W, 3) to logits (N, K) and the maps of any classes."""
        images = self.normalise(torch.from_numpy(photos).to(self.device))
        logits, seen = METHODS[self.method](self.network, images)

        def evidence(classes: np.ndarray) -> np.ndarray:
            return seen(torch.from_numpy(classes).to(self.device)).cpu().numpy()

        return logits.detach()[:, : self.classes].float().cpu().numpy(), evidence


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


def grad_cam(network: Classifier, images: Tensor) -> tuple[Tensor, Seen]:
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
                f"{type(network.backbone).__name__}: its features of shape {tuple(features.shape)} are not maps over "
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


def attention_rollout(network: Classifier, images: Tensor) -> tuple[Tensor, Seen]:
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


def open_torch_explainer(path: Path, device: str) -> TorchExplainer:
    """The explainer of the fine-tuned network beside `path`; of several epochs' networks, that of the last."""
    network, card = load_network(path.with_name(TORCH_NETWORK))
    return TorchExplainer(network.last if isinstance(network, Snapshots) else network, card, device)


METHODS: dict[str, Callable[[Classifier, Tensor], tuple[Tensor, Seen]]] = {
    "grad_cam": grad_cam,
    "attention_rollout": attention_rollout,
}
