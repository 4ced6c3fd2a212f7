"""A fine-tuned network as torch keeps it, with its model card, in one safetensors file: no pickle, safe to share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from manihot.errors import WeightsError
from manihot.networks.card import KEY, REMEDY, ModelCard
from manihot.records.files import atomic_path
from manihot.train.networks.backbones import make_model
from manihot.train.networks.heads import Classifier, Snapshots

SNAPSHOTS = "snapshots"  # in a card: how many epochs' networks the file holds


def save_network(path: Path, model: Classifier | Snapshots, card: ModelCard) -> None:
    """Write a network and its card, atomically."""
    if isinstance(model, Snapshots):
        card = replace(card, about={**card.about, SNAPSHOTS: len(model.networks)})
    state = {name: value.detach().to("cpu").contiguous() for name, value in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata={KEY: card.to_text()})


def load_network(path: Path) -> tuple[Classifier | Snapshots, ModelCard]:
    """Read a file of `save_network`; WeightsError when it is not one."""
    try:
        with safe_open(path, framework="pt") as file:
            card = ModelCard.from_text((file.metadata() or {}).get(KEY), path)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a dict
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: not a network of manihot ({error})", REMEDY) from error
    try:
        settings = card.model.model_copy(update={"pretrained": False})
        count = int(card.about.get(SNAPSHOTS, 0))
        made = [make_model(settings, len(card.classes), card.preprocess.size) for _ in range(count or 1)]
        network = Snapshots(made) if count else made[0]
        network.load_state_dict(state, strict=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path}: its weights and its description don't fit ({error})", "train it again") from error
    network.eval().requires_grad_(False)
    return network.to(memory_format=torch.channels_last), card
