"""The toolbox of the extra `train`: fine-tuning, any backbone of timm, networks that only torch opens."""

from __future__ import annotations

from pathlib import Path

import torch

from manihot.members.toolbox import Toolbox
from manihot.members.toolbox import open_backbone as open_embedded
from manihot.networks.runner import OnnxRunner, Runner
from manihot.networks.weights import is_embedded, split_backbone
from manihot.photos.preprocess import Preprocess
from manihot.quick.fold import FEATURES
from manihot.records.run_folder import TORCH_NETWORK
from manihot.settings import Model
from manihot.train.export import export_backbone
from manihot.train.finetune import FINETUNE
from manihot.train.networks.backbones import make_model, make_preprocess
from manihot.train.networks.checkpoint import load_network
from manihot.train.runners import TorchRunner, choose_device


def open_torch(path: Path, device: str) -> Runner:
    """The network beside `path` as torch keeps it, in fp32."""
    network, card = load_network(path.with_name(TORCH_NETWORK))
    return TorchRunner(network, card.preprocess, choose_device(device))


def torch_toolbox(device: torch.device) -> Toolbox:
    """What a run with torch uses on `device`."""

    def open_backbone(model: Model, preprocess: Preprocess, seed: int, path: Path) -> Runner:
        embedded = is_embedded(model.backbone) and model.pretrained in ("embedded", False)
        if embedded and (device.type == "cpu" or len(split_backbone(model.backbone)) > 1):
            return open_embedded(model, preprocess, seed, path)
        network = make_model(model, 2, preprocess.size, seed)  # the head is not used
        if not path.is_file():
            export_backbone(path, network, preprocess)
        return OnnxRunner(path) if device.type == "cpu" else TorchRunner(network, preprocess, device)

    return Toolbox(
        methods={"features": FEATURES, "finetune": FINETUNE},
        device=str(device),
        make_preprocess=make_preprocess,
        open_backbone=open_backbone,
        opener=open_torch,
    )
