"""A recipe's model: backbone with weights, head, what is trained, and in which groups."""

from __future__ import annotations

from functools import cache
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import nn

from manihot.errors import SettingsError
from manihot.networks.weights import split_backbone
from manihot.photos.preprocess import Preprocess
from manihot.settings import Model, suggest
from manihot.train.networks.heads import POOLING, TILE_ATTENTION, Classifier, Snapshots
from manihot.train.networks.pretrained import make_backbone, name_weights

NORMS = (nn.modules.batchnorm._BatchNorm,)


def make_model(settings: Model, classes: int, size: tuple[int, int], seed: int = 0) -> Classifier:
    """The classifier of a recipe, with a head initialised from `seed`, for `classes` and, where it says so, unknown.

    Raises WeightsError when the weights can't be had, SettingsError for what the backbone can't do.
    """
    if settings.pooling not in POOLING:
        raise SettingsError(f"model.pooling: unknown {settings.pooling!r}", suggest(settings.pooling, list(POOLING)))
    tile = _tile_size(settings, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = make_backbone(settings.backbone, settings.pretrained, tile, settings.drop_path)
        _check_taps(settings, backbone)
        try:
            model = Classifier(
                backbone,
                classes,
                settings.pooling,
                settings.dropout,
                settings.taps,
                settings.power,
                size,
                settings.tiles,
                settings.tile_attention,
                settings.dropout_samples,
                settings.unknown,
            )
        except (AssertionError, RuntimeError, ValueError) as error:
            raise SettingsError(
                f"model.backbone: {settings.backbone} can't take {tile[0]}x{tile[1]} pixels ({error})",
                "set photo.size to one that it takes, for example photo.size=[224,224]",
            ) from error
    freeze(model, settings.freeze_stages)
    if settings.freeze_norm_affine:
        freeze_affine(model)
    return model


def _tile_size(settings: Model, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) that the backbone sees; SettingsError where the photograph can't be cut into such tiles."""
    if settings.tile_attention not in TILE_ATTENTION:
        raise SettingsError(
            f"model.tile_attention: unknown {settings.tile_attention!r}",
            suggest(settings.tile_attention, list(TILE_ATTENTION)),
        )
    rows, columns = settings.tiles
    if size[0] % rows or size[1] % columns:
        raise SettingsError(
            f"model.tiles: {size[0]}x{size[1]} pixels don't divide into {rows} x {columns} tiles",
            f"set photo.size, for example photo.size=[{rows * 224},{columns * 224}]",
        )
    return size[0] // rows, size[1] // columns


def _check_taps(settings: Model, backbone: Any) -> None:
    """SettingsError where the backbone has no such taps."""
    name = settings.backbone
    stages = len(getattr(backbone, "feature_info", ()))
    if settings.taps and not hasattr(backbone, "forward_intermediates"):
        raise SettingsError(f"model.taps: {name} doesn't give its inner stages", "use model.taps=[]")
    if settings.taps and max(settings.taps) > stages:
        raise SettingsError(f"model.taps: {max(settings.taps)}, but {name} has {stages} stages", "use lower ones")


def make_preprocess(settings: Model, size: tuple[int, int], fit: str) -> Preprocess:
    """The input of a backbone: its own mean and std (they differ: .5 for ViT and Lite, 0 for TResNet)."""
    config = timm.get_pretrained_cfg(name_weights(split_backbone(settings.backbone)[0], settings.pretrained))
    mean, std = (config.mean, config.std) if config is not None else ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Preprocess(size, fit, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


@cache
def gives_maps(name: str) -> bool:
    """Whether a timm backbone's features are maps (N, C, H, W), found without weights and without computing.

    True also where the definition doesn't show it; the first feature maps then do.
    """
    base = name.partition(".")[0]
    if not timm.is_model(base):
        return True  # `make_model` names the mistake
    with torch.device("meta"):
        backbone: Any = timm.create_model(base, num_classes=0).eval()
        size = backbone.pretrained_cfg["input_size"]
        try:
            maps = backbone.forward_features(torch.zeros(1, *size))
        except (RuntimeError, NotImplementedError):  # an operation that needs numbers
            return True
    return are_maps(backbone, maps)


def are_maps(backbone: Any, features: torch.Tensor) -> bool:
    """Whether a backbone's features are maps (N, C, H, W), and not tokens or (N, H, W, C)."""
    return features.ndim == 4 and getattr(backbone, "output_fmt", "NCHW") == "NCHW"


def stages_of(model: Classifier | Snapshots) -> dict[str, int]:
    """Parameter name -> stage, 0 the stem, counted up to the head; of several networks each one's own."""
    if isinstance(model, Snapshots):
        return {
            f"networks.{number}.{name}": stage
            for number, network in enumerate(model.networks)
            for name, stage in stages_of(network).items()  # type: ignore[arg-type]
        }
    groups = group_parameters(model.backbone, model.backbone.group_matcher(coarse=True))
    stages = {f"backbone.{name}": stage for stage, (_, names) in enumerate(sorted(groups.items())) for name in names}
    top = max(stages.values(), default=0) + 1
    return {name: stages.get(name, top) for name, _ in model.named_parameters()}


def freeze(model: Classifier, stages: int) -> None:
    """Stop training of the first `stages` stages (0 is the stem); SettingsError where there are fewer."""
    if not stages:
        return
    known = stages_of(model)
    top = max(known.values())
    if stages > top:
        raise SettingsError(
            f"model.freeze_stages: {stages}, but the backbone has {top} stages",
            f"{top} freezes all of it and trains the head alone",
        )
    for name, stage in known.items():
        model.get_parameter(name).requires_grad_(stage >= stages)


def freeze_affine(model: Classifier) -> None:
    """Stop training of gamma and beta of batch norms; those of trained stages still measure their statistics."""
    for module in model.modules():
        if isinstance(module, NORMS) and _is_trained(module):
            module.requires_grad_(False)
            module.measures = True  # type: ignore[assignment]  # or it would pass for a frozen stage's


def _is_trained(norm: nn.Module) -> bool:
    return any(p.requires_grad for p in norm.parameters(recurse=False)) or getattr(norm, "measures", False)


def set_training(model: Classifier | Snapshots, freeze_norm: bool = False) -> None:
    """Training mode; batch norms of frozen stages, or all with `freeze_norm`, keep their statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, NORMS) and (freeze_norm or not _is_trained(module)):
            module.eval()


@cache
def count_stages(name: str) -> int:
    """Stages of a timm backbone, found without weights."""
    with torch.device("meta"):
        network: Any = timm.create_model(name, num_classes=0)
    return len(group_parameters(network, network.group_matcher(coarse=True)))
