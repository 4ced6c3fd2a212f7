"""What computes: onnxruntime, or torch where a recipe or a network needs it and the extra `train` is installed."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from manihot.errors import SettingsError
from manihot.extras import has_train, need_train
from manihot.infer.explain import Explainer
from manihot.infer.models import Engine
from manihot.infer.predict import predict as predict_with
from manihot.members.check import needs_train
from manihot.members.toolbox import Toolbox
from manihot.networks.runner import Runner, choose_device
from manihot.networks.weights import embedded_file, split_backbone
from manihot.progress import say
from manihot.quick.fold import FEATURES
from manihot.records.export_folder import ExportFolder
from manihot.records.predictions import Predictions
from manihot.settings import Recipe
from manihot.settings.options import EVERYTHING_GUESSED, TableOptions


def make_toolbox(recipe: Recipe, device: str = "auto") -> Toolbox:
    """What trains the recipe's members on `device`; MissingExtraError where that takes torch and it isn't there."""
    why = needs_train(recipe)
    if why:
        need_train(why)
    if why or (device not in ("auto", "cpu") and has_train()):
        from manihot.train.runners import choose_device as choose_torch_device
        from manihot.train.toolbox import torch_toolbox

        return torch_toolbox(choose_torch_device(device))
    return Toolbox(methods={"features": FEATURES}, device=choose_device(device), opener=open_torch)


def choose_recipe(device: str = "auto") -> str:
    """'standard' where there is a GPU and torch to train on it, else 'quick'; says which and why."""
    if not has_train():
        name, why = "quick", "the extra 'train' is not installed"
    else:
        from manihot.train.runners import choose_device as choose_torch_device

        found = choose_torch_device(device)
        name = "quick" if found.type == "cpu" else "standard"
        why = "no GPU here" if name == "quick" else f"training on {found}"
    say(f"Recipe: {name} ({why}; choose another with --recipe, see `manihot recipes`)")
    return name


def describe(tools: Toolbox) -> str:
    """What trains, for records and reports."""
    if "finetune" in tools.methods:
        from manihot.train.runners import choose_device as choose_torch_device
        from manihot.train.runners import describe_device

        return describe_device(choose_torch_device(tools.device))
    return f"{tools.device}, onnxruntime, {os.cpu_count()} cores, {platform.machine()}"


def make_engine(device: str = "auto", batch: int = 32) -> Engine:
    """What predicts: onnxruntime, and torch for the networks that have no ONNX."""
    return Engine(choose_device(device), batch, open_torch)


def open_torch(path: Path, device: str) -> Runner:
    """A network that only torch opens; MissingExtraError where it isn't installed."""
    need_train(f"{path}: this network was not written as ONNX, so it")
    from manihot.train.toolbox import open_torch as open_with_torch

    return open_with_torch(path, device)


def explain_torch(path: Path, device: str) -> Explainer:
    """A fine-tuned network that explains its answers; MissingExtraError where torch isn't installed."""
    need_train(f"{path}: explaining a fine-tuned network")
    from manihot.train.explain import open_torch_explainer

    return open_torch_explainer(path, device)


def count_stages(name: str) -> int:
    """Stages of a backbone of timm."""
    from manihot.train.networks.backbones import count_stages as count

    return count(name)


def check_weights(name: str, pretrained: bool | str) -> None:
    """WeightsError now for weights that can't be had, rather than after hours."""
    if pretrained == "embedded":
        for one in split_backbone(name):
            embedded_file(one)
    elif pretrained is not False:
        from manihot.train.networks.pretrained import check_weights as check

        check(name, pretrained)


def predict(
    model: Path,
    photos: Path,
    out: Path | None = None,
    *,
    tta: int | None = None,
    raw: bool = False,
    device: str = "auto",
    batch: int = 32,
    workers: int = 2,
    columns: TableOptions = EVERYTHING_GUESSED,
    pool: bool = False,
) -> Predictions:
    """`manihot.infer.predict.predict` on `device`, which opens networks that only torch can open too.

    An exported folder is read by `manihot.export.predict`; it has one view and so no use for `tta`.
    """
    if ExportFolder(Path(model)).is_one():
        if out is None:
            raise SettingsError(f"{model} is an exported folder", "say where to write its predictions: out=")
        from manihot.export.predict import predict_exported

        return predict_exported(
            Path(model),
            Path(photos),
            Path(out),
            raw=raw,
            pool=pool,
            batch=batch,
            workers=workers,
            device=choose_device(device),
            columns=columns,
        )
    engine = make_engine(device, batch)
    return predict_with(
        model, photos, out, tta=tta, raw=raw, engine=engine, workers=workers, columns=columns, pool=pool
    )
