"""The trained networks of a run, a member or a file: which they are, and how they are opened.

Three kinds of files hold a network: `network.onnx` (fine-tuned), `head.safetensors` (linear, over the backbone.onnx of
its member), and `best.safetensors` (fine-tuned, as torch keeps it), which only the extra `train` opens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from manihot.ensemble.second_level import Combination
from manihot.errors import MissingExtraError, WeightsError
from manihot.networks.card import KEY, REMEDY, ModelCard
from manihot.networks.runner import LinearHead, OnnxRunner, Outputs, Runner, read_metadata
from manihot.photos.preprocess import Preprocess
from manihot.records.run_folder import BACKBONE, HEAD, NETWORK, REFITTED, TORCH_NETWORK
from manihot.records.run_places import RunPlaces
from manihot.records.summaries import read_blended
from manihot.settings import View

Opener = Callable[[Path, str], Runner]  # of a network's file and a device


@dataclass(frozen=True)
class Engine:
    """What computes: a device, photographs per batch, and who opens networks that are not ONNX."""

    device: str = "cpu"
    batch: int = 32
    opener: Opener | None = None


class SharedBackbone:
    """A backbone for several heads: it runs once for a batch, whichever head asks."""

    def __init__(self, path: Path, device: str) -> None:
        self.runner = OnnxRunner(path, device=device)
        self.last: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, photos: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) to embeddings (N, D)."""
        if self.last is None or self.last[0] is not photos:
            self.last = (photos, self.runner(photos)["embeddings"])
        return self.last[1]


class HeadRunner:
    """A linear head on a shared backbone."""

    def __init__(self, backbone: SharedBackbone, head: LinearHead) -> None:
        self.backbone, self.head = backbone, head

    def __call__(self, photos: np.ndarray) -> Outputs:
        """uint8 (N, H, W, 3) to embeddings (N, D) and logits (N, K)."""
        embeddings = self.backbone(photos)
        return {"embeddings": embeddings, "logits": self.head.logits(embeddings)}


@dataclass
class TrainedModel:
    """Networks that see the same photographs the same way; their probabilities are averaged."""

    files: list[Path]
    card: ModelCard  # of the first
    folds: list[int] = field(default_factory=list)  # of `files`, in their order
    weight: float = 1.0  # of its member in the mean over members, where no `combination` says how
    combination: Combination | None = None  # how the members of its run become one answer

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the logits."""
        return self.card.classes

    @property
    def preprocess(self) -> Preprocess:
        """How a photograph becomes the input."""
        return self.card.preprocess

    @property
    def views(self) -> tuple[View, ...]:
        """What a prediction averages."""
        return self.card.views

    @property
    def about(self) -> dict[str, Any]:
        """Recipe, member, counts of the classes."""
        return self.card.about

    def with_views(self, count: int) -> TrainedModel:
        """The same with the first so many of its views; not weighed as a blend weighs single views."""
        combination = self.combination
        if combination is not None and combination.by_view and count < len(self.views):
            combination = None
        return replace(self, card=replace(self.card, views=self.views[:count]), combination=combination)

    def open(self, device: str = "cpu", opener: Opener | None = None) -> list[Runner]:
        """A runner per network. opener: of files that only the extra `train` opens."""
        backbones: dict[Path, SharedBackbone] = {}
        return [open_network(file, device, opener, backbones) for file in self.files]


def open_network(
    path: Path, device: str = "cpu", opener: Opener | None = None, backbones: dict[Path, SharedBackbone] | None = None
) -> Runner:
    """A network ready to be fed. backbones: those that are open, by their file; WeightsError, MissingExtraError."""
    if path.name.endswith(".onnx"):
        return OnnxRunner(path, device=device)
    head = LinearHead.load_if(path)
    if head is None:
        if opener is None:
            raise MissingExtraError(f"{path}: this network was not written as ONNX, so it")
        return opener(path, device)
    place = path.parents[1] / BACKBONE
    if not place.is_file():
        raise WeightsError(f"{place} is missing, and {path.name} needs it", REMEDY)
    backbones = {} if backbones is None else backbones
    if place not in backbones:
        backbones[place] = SharedBackbone(place, device)
    return HeadRunner(backbones[place], head)


def read_card(path: Path) -> ModelCard:
    """The card of a network's file, of any kind; WeightsError where there is none."""
    return ModelCard.from_text(read_metadata(path).get(KEY), path)


def network_of(folder: Path) -> Path | None:
    """The network in a fold's folder, as ONNX where there is one; None without any."""
    return next((folder / name for name in (NETWORK, HEAD, TORCH_NETWORK) if (folder / name).is_file()), None)


def networks_by_fold(member: Path) -> dict[int, Path]:
    """The networks of a member's folder by the fold that they held out."""
    found = {int(f.name[4:]): network_of(f) for f in sorted(member.glob("fold*")) if f.name[4:].isdigit()}
    return {fold: path for fold, path in sorted(found.items()) if path is not None}


def load_model(path: Path) -> list[TrainedModel]:
    """The models of a run, a member or a file: one TrainedModel for each way of seeing a photograph.

    path: RUN (all members, all folds), RUN/members/NAME, or a network's file. Folds of a member are averaged, but for
    one that was refitted on everything, whose network stands for them; members of a run become one answer as its
    blend says (`combination`; members left out of it are not loaded).
    """
    path = Path(path)
    if not path.exists():
        raise WeightsError(f"{path}: no such model", REMEDY)
    files = [path] if path.is_file() else _networks(path)
    if not files:
        raise WeightsError(f"{path}: no trained model here", "name a finished run folder, or a network file inside it")
    models: list[TrainedModel] = []
    for file in files:
        card = read_card(file)
        known = next((model for model in models if _alike(model.card) == _alike(card)), None)
        if known is None:
            models.append(TrainedModel([file], card, [card.fold]))
        else:
            known.files.append(file)
            known.folds.append(card.fold)
    models = _as_blended(path, models)
    if len({model.classes for model in models}) > 1:
        raise WeightsError(f"{path}: the members don't predict the same classes", "name one of them: RUN/members/NAME")
    return models


def one_view(models: Sequence[TrainedModel]) -> list[TrainedModel]:
    """The models as they see a photograph once, in their first view.

    Folds of a member that chose different views (`features.choose`) are one model then.
    """
    found: list[TrainedModel] = []
    for model in models:
        once = model.with_views(1)
        known = next((one for one in found if _alike(one.card) == _alike(once.card)), None)
        if known is None:
            found.append(replace(once, files=[*once.files], folds=[*once.folds]))
        else:
            known.files += once.files
            known.folds += once.folds
    return found


def _networks(path: Path) -> list[Path]:
    """The files of a run's or a member's networks that answer new photographs."""
    members = [member.path for member in RunPlaces(path).members()] or [path]
    found: list[Path] = []
    for member in members:
        whole = network_of(member / REFITTED)
        found += [whole] if whole is not None else networks_by_fold(member).values()
    return found


def _as_blended(run: Path, models: list[TrainedModel]) -> list[TrainedModel]:
    """The models of a run's blend, each with the saved combination; all with their weights in runs without one."""
    saved, about = RunPlaces(run).blend.combination, RunPlaces(run).blend.summary
    if not saved.is_file():
        weights = (read_blended(about).get("weights") or {}) if about.is_file() else {}
        for model in models:
            model.weight = float(weights.get(model.card.member, 1.0))
        return [model for model in models if model.weight > 0] or models
    combination = Combination.load(saved)
    blended = [model for model in models if model.card.member in combination.networks]
    missing = [name for name in combination.networks if name not in {model.card.member for model in blended}]
    if missing or combination.classes != blended[0].classes:
        raise WeightsError(
            f"{saved}: the blend is of the members {', '.join(combination.networks)}"
            + (f"; there is no trained network of {', '.join(missing)}" if missing else ", for other classes"),
            "run the same `manihot run` again, or name one RUN/members/NAME",
        )
    for model in blended:
        model.combination = combination
    return blended


def _alike(card: ModelCard) -> tuple[object, ...]:
    return card.classes, card.preprocess, card.views, card.member
