"""Cross-validation: every member of a recipe on every fold, each fold a stage that is done once.

A fold leaves members/NAME/foldK/ with best.safetensors, oof.parquet (the photographs it held out) and, where
there are test photographs, test.parquet. Together they become predictions/NAME.oof.parquet and
NAME.test.parquet.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from torch.utils.data import DataLoader

from manihot import metrics
from manihot.data.augment import Augmenter
from manihot.data.dataset import EpochBatches, TrainingPhotos, make_loader
from manihot.data.mixing import Mixer, class_activation
from manihot.data.sampling import draw_epoch, expected_repeats
from manihot.infer.predict import Photos, forward_views, merge_views
from manihot.infer.runners import PRECISIONS, Normalise, OnnxRunner, Runner, TorchRunner, choose_device
from manihot.models.backbones import make_model, make_preprocess, set_training
from manihot.models.checkpoint import load_network, save_model
from manihot.models.heads import Classifier
from manihot.optim.losses import make_loss
from manihot.photos.preprocess import Preprocess
from manihot.photos.store import make_store
from manihot.progress import say
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.runs import RunFolder, digest_value, write_atomic
from manihot.settings import Photo, Recipe, View
from manihot.train.features import fit_head, make_features
from manihot.train.loop import fit
from manihot.train.probe import choose_precision
from manihot.train.steps import STEPS, StepState

DECIDES = (
    "method",
    "seed",
    "photo",
    "model",
    "sampling",
    "augment",
    "mixing",
    "loss",
    "optimizer",
    "schedule",
    "averaging",
    "train",
    "features",
    "tta",
)


@dataclass(frozen=True)
class Member:
    """One member of a run, ready to be trained on any fold."""

    name: str
    recipe: Recipe
    manifest: Manifest
    preprocess: Preprocess
    photos: Photos
    device: torch.device
    run: RunFolder

    def rows(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on and rows held out by `fold`; test and unlabelled photographs are in neither."""
        usable = (self.manifest.labels >= 0) & (self.manifest.table["split"].to_numpy() != "test")
        held = usable & (self.manifest.fold == fold)
        return np.flatnonzero(usable & ~held), np.flatnonzero(held)

    @property
    def test_rows(self) -> np.ndarray:
        """Rows that are only predicted."""
        return np.flatnonzero(self.manifest.table["split"].to_numpy() == "test")

    def folder(self, fold: int) -> Path:
        """Where the fold's files lie."""
        return self.run / f"members/{self.name}/fold{fold}"

    def seed(self, fold: int) -> int:
        """The seed of everything random in a fold."""
        return self.recipe.seed * 1000 + fold


def train_members(
    run: RunFolder, recipe: Recipe, manifest: Manifest, device: str = "auto", workers: int = 2
) -> list[str]:
    """Train every member on every fold and write its predictions; returns the members' names."""
    names = []
    for name, own in recipe.member_recipes().items():
        member = make_member(run, name, own, manifest, device, workers)
        folds = [
            int(k)
            for k in np.unique(manifest.fold[manifest.fold >= 0])
            if not recipe.folds.only or k in recipe.folds.only
        ]
        for fold in folds or [0]:
            train_fold(member, fold)
        collect(member, folds)
        names.append(name)
    return names


def make_member(
    run: RunFolder, name: str, own: Recipe, manifest: Manifest, device: str = "auto", workers: int = 2
) -> Member:
    """A member with its photographs in the store of `run`, ready to be trained."""
    size = input_size(own.photo, manifest)
    preprocess = make_preprocess(own.model, size, own.photo.fit)
    stored = (round(size[0] * own.photo.store_scale), round(size[1] * own.photo.store_scale))
    preprocess = Preprocess(size, preprocess.fit, preprocess.mean, preprocess.std, stored)
    store = run / f"store/{stored[0]}x{stored[1]}-{own.photo.fit}.npy"
    photos = make_store(store, manifest, preprocess.for_store, workers)
    return Member(name, own, manifest, preprocess, photos, choose_device(device), run)


def input_size(photo: Photo, manifest: Manifest) -> tuple[int, int]:
    """(height, width) of the model's input: as given, or `area` pixels in the usual proportion.

    Edges are multiples of 32. Photographs that lie both ways, or whose proportions are unknown, get a square.
    """
    if photo.size != "auto":
        return photo.size
    height, width = manifest.table["height"].to_numpy(), manifest.table["width"].to_numpy()
    known = (height > 0) & (width > 0)
    ratio = np.log2(width[known] / height[known]) if known.any() else np.zeros(1)
    middle = float(np.clip(np.median(ratio), -1, 1))
    if (np.sign(ratio) == -np.sign(middle)).mean() > 0.1:
        middle = 0.0
    edge = photo.area**0.5
    tall, wide = edge * 2 ** (-middle / 2), edge * 2 ** (middle / 2)
    return max(32, round(tall / 32) * 32), max(32, round(wide / 32) * 32)


def train_fold(member: Member, fold: int) -> None:
    """One fold, unless it is done: train, save the network, predict held-out and test photographs."""
    folder = f"members/{member.name}/fold{fold}"
    train, held = member.rows(fold)
    settings = member.recipe.resolved()
    inputs = {
        "settings": {key: settings[key] for key in DECIDES},
        "photographs": _digest_rows(member.manifest),
        "fold": fold,
        "size": member.preprocess.to_json(),
    }
    outputs = [f"{folder}/best.safetensors"]
    outputs += [f"{folder}/oof.parquet"] if len(held) else []
    outputs += [f"{folder}/test.parquet"] if len(member.test_rows) else []

    def work() -> None:
        _clear_unless_resumable(member.folder(fold), digest_value(inputs))
        METHODS[member.recipe.method](member, fold, train, held)

    member.run.stage(folder, inputs, outputs, work)


@dataclass(frozen=True)
class Training:
    """What `fit` needs for one fold: a fresh network, its batches, its loss and mixing, its precision by name."""

    model: Classifier
    loader: DataLoader
    batches: EpochBatches
    state: StepState
    precision: str


def make_training(member: Member, fold: int, train: np.ndarray) -> Training:
    """A fresh network, and all that its training on the rows `train` needs, as the recipe says."""
    recipe, manifest, device = member.recipe, member.manifest, member.device
    seed, classes = member.seed(fold), len(manifest.classes)
    model = make_model(recipe.model, classes, member.preprocess.size, seed).to(
        device, memory_format=_layout(recipe)
    )  # type: ignore[call-overload]
    precision = choose_precision(
        recipe.train.precision, model, recipe.model.backbone, member.preprocess.size, device
    )
    augmenter = Augmenter(recipe.augment, member.preprocess.size, seed, recipe.train.epochs)
    weights = manifest.table["weight"].to_numpy()[train]
    dataset = TrainingPhotos(member.photos, train, soft_targets(manifest)[train], weights, augmenter)
    loader, batches = make_loader(
        dataset, recipe.train.batch, seed, recipe.train.workers, device.type == "cuda",
        lambda epoch: draw_epoch(recipe.sampling, manifest.labels[train], seed, epoch),
    )  # fmt: skip
    targets = soft_targets(manifest)[train]
    counts = np.maximum(targets.sum(0), 1)  # a class without photographs here must not weigh without bound
    loss = make_loss(
        recipe.loss.name, recipe.loss.settings, classes=classes, photographs=len(train), class_counts=counts
    ).to(device)
    mixer = make_mixer(recipe, len(batches), seed, model)
    state = StepState(device, Normalise(member.preprocess).to(device), loss, PRECISIONS[precision], mixer)
    return Training(model, loader, batches, state, precision)


def finetune(member: Member, fold: int, train: np.ndarray, held: np.ndarray) -> None:
    """Train the whole network on photographs."""
    recipe, manifest, device = member.recipe, member.manifest, member.device
    training = make_training(member, fold, train)
    seed, precision = member.seed(fold), training.precision

    def judge(network: torch.nn.Module) -> dict[str, float]:
        runner = TorchRunner(network, member.preprocess, device, precision)  # type: ignore[arg-type]
        looks = (View(),)
        logits = merge_views(
            forward_views([runner], member.photos, held, member.preprocess, looks, what="Held out"), looks
        )
        labels, probs = manifest.labels[held], softmax(logits.astype(np.float64), axis=1)
        return {
            "loss": float(metrics.log_loss(labels, probs)),
            "accuracy": float(metrics.accuracy(labels, probs)),
        }

    folder = member.folder(fold)
    about = {"recipe": recipe.name, "member": member.name, "fold": fold, "precision": precision}

    def save(network: torch.nn.Module) -> None:
        _save(member, folder, network, about)

    what = f"{member.name} fold {fold}"
    fit(
        training.model, training.loader, training.batches, STEPS["supervised"], training.state, recipe, seed, folder,
        judge if len(held) else None, save, what,
    )  # fmt: skip
    best = load_network(folder / "best.safetensors").networks[0]
    _predict_fold(member, fold, held, TorchRunner(best, member.preprocess, device, precision))


def make_mixer(recipe: Recipe, batches: int, seed: int, model: Classifier) -> Mixer | None:
    """The recipe's mixing, with the network's own activation maps for SnapMix."""
    if not recipe.mixing:
        return None

    @torch.no_grad()
    def cams(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        model.eval()  # the look at the unmixed photographs leaves batch-norm statistics as they are
        maps = model.backbone.forward_features(images)
        set_training(model, recipe.model.freeze_norm)
        return class_activation(maps, model.head.weight, targets.argmax(1))

    epochs = recipe.train.epochs
    return Mixer(recipe.mixing, batches * epochs, seed, epochs=epochs, cams=cams)


def features(member: Member, fold: int, train: np.ndarray, held: np.ndarray) -> None:
    """Fit a linear head on features that the frozen backbone computed once for all folds."""
    recipe, manifest = member.recipe, member.manifest
    # One backbone for all folds, a random one too: the features were computed by it.
    model = make_model(recipe.model, len(manifest.classes), member.preprocess.size, member.seed(0))
    computed = _features_of(member, model)
    soft = soft_targets(manifest)[train]
    group = manifest.table["group"].to_numpy()
    alone = np.where(group == "", [f"\0{i}" for i in range(len(group))], group).astype(str)
    groups = np.unique(alone[train], return_inverse=True)[1]
    weights = manifest.table["weight"].to_numpy()[train]
    weights = weights * expected_repeats(recipe.sampling, manifest.labels[train], member.seed(fold))
    say(f"{member.name} fold {fold}: fitting the head on {len(train)} photographs")
    strengths, seed = recipe.features.c, member.seed(fold)
    weight, bias = fit_head(
        computed[train], soft.argmax(1), len(manifest.classes), weights, groups, strengths, seed
    )
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(weight))
        model.head.bias.copy_(torch.from_numpy(bias))
    about = {"recipe": recipe.name, "member": member.name, "fold": fold, "precision": "fp32"}
    _save(member, member.folder(fold), model, about)
    for rows, name in ((held, "oof"), (member.test_rows, "test")):
        if len(rows):
            logits = merge_views(computed[rows] @ weight.T + bias, recipe.tta)
            _as_predictions(member, rows, logits, fold, computed[rows].mean(1)).save(
                member.folder(fold) / f"{name}.parquet"
            )


def _save(member: Member, folder: Path, network: torch.nn.Module, about: dict[str, Any]) -> None:
    recipe, classes = member.recipe, member.manifest.classes
    path = folder / "best.safetensors"
    save_model(path, network, recipe.model, classes, member.preprocess, recipe.tta, about)  # type: ignore[arg-type]


def _features_of(member: Member, model: Classifier) -> np.ndarray:
    """Features (N, V, D) of all photographs, from the run folder where they were computed before."""
    recipe = member.recipe
    backbone = recipe.model.model_dump(
        mode="json", include={"backbone", "pretrained", "pooling", "taps", "power"}
    )
    views = [view.model_dump(mode="json", exclude={"weight"}) for view in recipe.tta]
    size = member.preprocess.to_json()
    drawn = None if recipe.model.pretrained else member.seed(0)
    name = digest_value([backbone, drawn, views, size, _digest_photographs(member.manifest)])[:16]
    folder = member.run / f"features/{name}"
    runtime = recipe.features.runtime
    if runtime == "auto":
        runtime = "onnx" if member.device.type == "cpu" else "torch"
    runner: Runner = _Later(
        lambda: (
            OnnxRunner(model, member.preprocess, folder / "backbone.onnx")
            if runtime == "onnx"
            else TorchRunner(model, member.preprocess, member.device)
        )
    )
    return make_features(folder, runner, member.photos, member.preprocess, recipe.tta, recipe.features.batch)


class _Later:
    """A runner that is made when it is first used: not at all where every feature is already there."""

    def __init__(self, make: Any) -> None:
        self.make, self.runner = make, None

    def __call__(self, photos: np.ndarray) -> dict[str, np.ndarray]:
        if self.runner is None:
            self.runner = self.make()
        return self.runner(photos)  # type: ignore[misc]


def _predict_fold(member: Member, fold: int, held: np.ndarray, runner: TorchRunner) -> None:
    views = member.recipe.tta
    for rows, name in ((held, "oof"), (member.test_rows, "test")):
        if not len(rows):
            continue
        what = f"{member.name} fold {fold}: {name}"
        logits = merge_views(
            forward_views([runner], member.photos, rows, member.preprocess, views, what=what), views
        )
        _as_predictions(member, rows, logits, fold).save(member.folder(fold) / f"{name}.parquet")


def _as_predictions(
    member: Member, rows: np.ndarray, logits: np.ndarray, fold: int, embeddings: np.ndarray | None = None
) -> Predictions:
    manifest = member.manifest
    return Predictions(
        manifest.image_id[rows], logits.astype(np.float32), manifest.classes, manifest.labels[rows],
        np.full(len(rows), fold), embeddings,
    )  # fmt: skip


def collect(member: Member, folds: list[int]) -> None:
    """Join the folds' predictions: held-out ones in the manifest's order, test photographs averaged."""
    parts = [
        Predictions.load(member.folder(k) / "oof.parquet")
        for k in folds
        if (member.folder(k) / "oof.parquet").exists()
    ]
    if parts:
        order = np.isin(member.manifest.image_id, np.concatenate([part.image_id for part in parts]))
        embeddings = [p.embeddings for p in parts if p.embeddings is not None]
        joined = Predictions(
            np.concatenate([p.image_id for p in parts]), np.concatenate([p.logits for p in parts]),
            parts[0].classes, np.concatenate([p.labels for p in parts]),
            np.concatenate([p.fold for p in parts]),
            np.concatenate(embeddings) if len(embeddings) == len(parts) else None,
        )  # fmt: skip
        joined.align(member.manifest.image_id[order]).save(
            member.run / f"predictions/{member.name}.oof.parquet"
        )
    if len(member.test_rows):
        tests = [Predictions.load(member.folder(k) / "test.parquet") for k in folds or [0]]
        mean = np.mean([p.pred_probs for p in tests], axis=0)
        test = Predictions.from_probs(tests[0].image_id, mean, tests[0].classes, tests[0].labels)
        test.save(member.run / f"predictions/{member.name}.test.parquet")


def soft_targets(manifest: Manifest) -> np.ndarray:
    """Soft labels (N, K) float32: the hard label as one-hot without a soft one, zeros without either."""
    hard = np.zeros((len(manifest), len(manifest.classes)), dtype=np.float32)
    known = manifest.labels >= 0
    hard[known, manifest.labels[known]] = 1
    if manifest.soft_labels is None:
        return hard
    given = np.isfinite(manifest.soft_labels).all(axis=1)
    return np.where(given[:, None], manifest.soft_labels, hard)


def _clear_unless_resumable(folder: Path, digest: str) -> None:
    """Remove what another recipe's or other photographs' unfinished training left in the fold's folder."""
    mark = folder / "inputs.txt"
    if folder.exists() and (not mark.exists() or mark.read_text(encoding="utf-8") != digest):
        shutil.rmtree(folder)
    write_atomic(mark, digest)


def _digest_photographs(manifest: Manifest) -> str:
    return digest_value(manifest.table[["image_id", "sha256"]].to_numpy().tolist())


def _digest_rows(manifest: Manifest) -> str:
    columns = ["image_id", "sha256", "label", "split", "fold", "group", "weight"]
    soft = None if manifest.soft_labels is None else manifest.soft_labels.tolist()
    return digest_value([manifest.table[columns].to_numpy().tolist(), list(manifest.classes), soft])


def _layout(recipe: Recipe) -> torch.memory_format:
    return torch.channels_last if recipe.train.channels_last else torch.contiguous_format


METHODS = {"finetune": finetune, "features": features}
