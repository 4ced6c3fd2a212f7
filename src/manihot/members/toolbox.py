"""What trains and opens networks, handed down to the rooms below: the core's own, or that of the extra `train`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from manihot.errors import MissingExtraError
from manihot.infer.models import Opener
from manihot.networks.graph import build_backbone
from manihot.networks.runner import OnnxRunner, Runner
from manihot.networks.weights import EMBEDDED, is_embedded, split_backbone
from manihot.photos.preprocess import Preprocess
from manihot.settings import Model

if TYPE_CHECKING:
    from manihot.members.member import Member


def nothing_more(member: Member, fold: int) -> dict[str, Any]:
    """For methods whose result depends on settings and photographs alone."""
    return {}


@dataclass(frozen=True)
class Method:
    """A way to train a fold.

    fit: of a member, a fold, the rows to train on and those held out; leaves the fold's network and predictions.
    inputs: what else decides the result, JSON-like.
    """

    fit: Callable[[Member, int, np.ndarray, np.ndarray], None]
    inputs: Callable[[Member, int], dict[str, Any]] = nothing_more


class OpenBackbone(Protocol):
    """Opens the frozen, pretrained network of a recipe; written to `path` first, where it must stay."""

    def __call__(self, model: Model, preprocess: Preprocess, seed: int, path: Path) -> Runner: ...


def make_preprocess(model: Model, size: tuple[int, int], fit: str) -> Preprocess:
    """The input of an embedded backbone; MissingExtraError for another."""
    if not is_embedded(model.backbone):
        raise MissingExtraError(f"the backbone {model.backbone!r}")
    first = EMBEDDED[split_backbone(model.backbone)[0]]
    return Preprocess(size, fit, first.mean, first.std)


def open_backbone(model: Model, preprocess: Preprocess, seed: int, path: Path) -> Runner:
    """An embedded backbone in onnxruntime, its graph built first where it isn't there."""
    if not path.is_file():
        build_backbone(model, preprocess, path, seed)
    return OnnxRunner(path)


@dataclass(frozen=True)
class Toolbox:
    """What a member needs of the rooms above it.

    device: as the user named it. methods: by the name in the recipe. opener: of networks that are not ONNX.
    """

    methods: Mapping[str, Method] = field(default_factory=dict)
    device: str = "cpu"
    make_preprocess: Callable[[Model, tuple[int, int], str], Preprocess] = make_preprocess
    open_backbone: OpenBackbone = open_backbone
    opener: Opener | None = None
