"""Saving a model with all that is needed to use it, in one safetensors file: no pickle, safe to share.

The file's metadata holds the classes, the Preprocess, the model's settings and the views it was judged with.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from manihot.ensemble.second_level import Combination
from manihot.errors import WeightsError
from manihot.photos.preprocess import Preprocess
from manihot.records.files import atomic_path, load_json
from manihot.settings import Model, View
from manihot.train.networks.backbones import make_model
from manihot.train.networks.heads import Classifier

FORMAT = 1
WHOLE = -2  # in place of a fold's number: trained on everything, nothing was held out
REFITTED = "refit"  # folder beside a member's folds: its network that was trained on everything


@dataclass
class TrainedModel:
    """Networks that see the same photographs the same way; their probabilities are averaged."""

    networks: list[Classifier]
    classes: tuple[str, ...]
    preprocess: Preprocess
    views: tuple[View, ...]
    about: dict[str, Any]
    weight: float = 1.0  # of its member in the mean over members, where no `combination` says how
    folds: list[int] = field(default_factory=list)  # of `networks`, in their order
    combination: Combination | None = None  # how the members of its run become one answer
    numbers: tuple[int, ...] | None = None  # of the classes in submissions; None: from 0


def save_model(
    path: Path, model: Classifier, settings: Model, classes: tuple[str, ...], preprocess: Preprocess,
    views: tuple[View, ...], about: dict[str, Any] | None = None, numbers: tuple[int, ...] | None = None,
) -> None:  # fmt: skip
    """Write one network and what belongs to it, atomically. numbers: of the classes, as in a manifest."""
    card = {
        "format": FORMAT,
        "model": settings.model_dump(mode="json"),
        "classes": list(classes),
        "preprocess": preprocess.to_json(),
        "views": [view.model_dump(mode="json") for view in views],
        "about": about or {},
    }
    if numbers is not None:
        card["numbers"] = list(numbers)
    state = {name: value.detach().to("cpu").contiguous() for name, value in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata={"manihot": json.dumps(card)})


def load_network(path: Path) -> TrainedModel:
    """Read one file of `save_model`; WeightsError when it is not one."""
    try:
        with safe_open(path, framework="pt") as file:
            card = json.loads((file.metadata() or {})["manihot"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a dict
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise WeightsError(
            f"{path}: not a manihot model ({error})", "name a run folder, or a .safetensors of a run"
        ) from error
    if card.get("format") != FORMAT:
        raise WeightsError(
            f"{path}: a model of format {card.get('format')}, this manihot reads {FORMAT}",
            "use the manihot that trained it",
        )
    try:
        settings = Model(**{**card["model"], "pretrained": False})
        preprocess = Preprocess.from_json(card["preprocess"])
        network = make_model(settings, len(card["classes"]), preprocess.size)
        network.load_state_dict(state, strict=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path}: its weights and its description don't fit ({error})", "train it anew") from error
    network.eval().requires_grad_(False)
    network = network.to(memory_format=torch.channels_last)
    views = tuple(View(**view) for view in card["views"])
    about = card["about"]
    numbers = tuple(map(int, card["numbers"])) if card.get("numbers") else None
    folds = [int(about.get("fold", 0))]
    return TrainedModel([network], tuple(card["classes"]), preprocess, views, about, folds=folds, numbers=numbers)


def load_model(path: Path) -> list[TrainedModel]:
    """The models of a run, a member or a file: one TrainedModel for each way of seeing a photograph.

    path: RUN (all members, all folds), RUN/members/NAME, or one .safetensors. Folds of a member are averaged, but for
    one that was refitted on everything, whose network stands for them; members of a run become one answer as its
    blend says (`combination`; members left out of it are not loaded).
    """
    path = Path(path)
    if path.is_dir():
        files = _networks(path)
        if not files:
            raise WeightsError(f"{path}: no trained model here", "name a finished run folder, or a .safetensors file")
    elif path.is_file():
        files = [path]
    else:
        raise WeightsError(f"{path}: no such model", "name a finished run folder, or a .safetensors file")
    models: list[TrainedModel] = []
    for file in files:
        one = load_network(file)
        for known in models:
            if _alike(known) == _alike(one):
                known.networks += one.networks
                known.folds += one.folds
                break
        else:
            models.append(one)
    models = _as_blended(path, models)
    if len({model.classes for model in models}) > 1:
        raise WeightsError(f"{path}: the members don't predict the same classes")
    return models


def _networks(path: Path) -> list[Path]:
    """The files of a run's or a member's networks that answer new photographs."""
    for member in ("members/*/", ""):
        refitted = sorted(path.glob(f"{member}{REFITTED}/best.safetensors"))
        folds = sorted(path.glob(f"{member}fold*/best.safetensors"))
        stood_for = {file.parents[1] for file in refitted}
        if found := sorted([*refitted, *(file for file in folds if file.parents[1] not in stood_for)]):
            return found
    return []


def _as_blended(run: Path, models: list[TrainedModel]) -> list[TrainedModel]:
    """The models of a run's blend, each with the saved combination; all with their weights in runs without one."""
    saved, about = run / "blend" / "combination.npz", run / "blend" / "blend.json"
    if not saved.is_file():
        weights = (load_json(about).get("weights") or {}) if about.is_file() else {}
        for model in models:
            model.weight = float(weights.get(model.about.get("member"), 1.0))
        return [model for model in models if model.weight > 0] or models
    combination = Combination.load(saved)
    blended = [model for model in models if model.about.get("member") in combination.members]
    missing = [name for name in combination.members if name not in {model.about["member"] for model in blended}]
    if missing or combination.classes != blended[0].classes:
        raise WeightsError(
            f"{saved}: the blend is of the members {', '.join(combination.members)}"
            + (f"; there is no trained network of {', '.join(missing)}" if missing else ", for other classes"),
            "run the same `manihot run` again, or name one RUN/members/NAME",
        )
    for model in blended:
        model.combination = combination
    return blended


def _alike(model: TrainedModel) -> tuple[object, ...]:
    return model.classes, model.preprocess, model.views, model.about.get("member")
