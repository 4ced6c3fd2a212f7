"""The method `finetune`: the network learns from photographs, in one stage or in several, one after another.

Several stages (progressive sizes, head first and then all, other data, another loss) each leave their network in
members/NAME/foldK/stageS/; the next begins with its weights. The last one's is the fold's.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from manihot import metrics
from manihot.infer.predict import UnknownOutput, forward_views, merge_views
from manihot.infer.runners import TorchRunner
from manihot.members.member import Member, make_member
from manihot.members.training_labels import LabelRequest, make_training_labels
from manihot.progress import say
from manihot.records.files import write_atomic
from manihot.records.predictions import Predictions
from manihot.settings import Recipe, View
from manihot.train.distributed import by_parts, from_first, is_first
from manihot.train.loop import fit
from manihot.train.margins import join_margins
from manihot.train.networks.checkpoint import WHOLE, TrainedModel, load_network, save_model
from manihot.train.steps import make_step
from manihot.train.training import make_training

NETWORK = "best.safetensors"
DONE = "done"  # a stage's mark that its network is the one to keep: `keep: best` writes networks on the way


def finetune(member: Member, fold: int, train: np.ndarray, held: np.ndarray) -> None:
    """Train the whole network on photographs, a stage after another."""
    stages, folder = stages_of(member), member.folder(fold)
    epochs = kept_epochs(member) if fold == WHOLE else [stage.recipe.train.epochs for stage in stages]
    places = [folder] if len(stages) == 1 else [folder / f"stage{number}" for number in range(1, len(stages) + 1)]
    before: TrainedModel | None = None
    for number, (stage, place) in enumerate(zip(stages, places), 1):
        what = member.what(fold) + (f", stage {number} of {len(stages)}" if len(stages) > 1 else "")
        if len(stages) > 1 and (place / DONE).is_file():
            say(f"{what}: done before")
        else:
            rows, _ = stage.rows(fold)
            train_stage(stage, fold, rows, held, place, before, what, epochs[number - 1])
            if len(stages) > 1:
                from_first(partial(write_atomic, place / DONE, ""))
        before = load_network(place / NETWORK)
    if len(stages) > 1 and is_first():
        write_atomic(folder / "history.jsonl", "".join(_joined_history(places)))
        join_margins(folder, places, [len(_history(place)) for place in places])
    assert before is not None
    precision = str(before.about["precision"])
    about = {"recipe": member.recipe.name, "member": member.name, "fold": fold, "precision": precision}
    if len(stages) > 1 and is_first():
        save_network(member, folder, before.networks[0], about)
    predict_fold(member, fold, held, TorchRunner(before.networks[0], member.preprocess, member.device, precision))


def stages_of(member: Member) -> list[Member]:
    """The member as each stage of its training sees it."""
    recipes = member.recipe.stage_recipes()
    if len(recipes) == 1:
        return [replace(member, recipe=recipes[0])]
    made = [make_member(member.run, member.name, one, member.manifest, str(member.device)) for one in recipes]
    return [replace(stage, stage=number) for number, stage in enumerate(made)]


def kept_epochs(member: Member) -> list[int]:
    """How many epochs of each stage are trained on everything: as many as the networks of the folds have learned.

    All of them, or where scores on held-out photographs chose the epoch, which is impossible without any, the mean
    over the folds, rounded.
    """
    recipes = member.recipe.stage_recipes()
    epochs = []
    for number, recipe in enumerate(recipes, 1):
        train = recipe.train
        paths = [member.folder(k) / (f"stage{number}" if len(recipes) > 1 else "") for k in member.folds]
        histories = [_history(path) for path in paths] if train.keep == "best" or train.patience else []
        kept = [_epochs_of(rows, recipe) for rows in histories]
        epochs.append(max(1, round(float(np.mean(kept)))) if kept else train.epochs)
    return epochs


def _history(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "history.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _epochs_of(rows: list[dict[str, Any]], recipe: Recipe) -> int:
    """Epochs that the kept network of a training has behind it."""
    key = f"val_{recipe.train.monitor}"
    if recipe.train.keep == "last" or not all(key in row for row in rows):
        return len(rows)
    watched = [row[key] if key == "val_loss" else -row[key] for row in rows]
    return int(np.argmin(watched)) + 1


def train_stage(
    stage: Member, fold: int, train: np.ndarray, held: np.ndarray, folder: Path, before: TrainedModel | None, what: str,
    epochs: int,
) -> None:  # fmt: skip
    """Train one stage and save its network into `folder`; a stopped one continues after its last epoch.

    epochs: after which it ends, the recipe's or fewer; rates and strengths are those of the recipe's number.
    """
    recipe, manifest, device = stage.recipe, stage.manifest, stage.device
    lesson = from_first(lambda: make_training_labels(LabelRequest(stage, fold, train, before)))
    of_classes = recipe.labels.name != "clusters"
    names = manifest.classes if of_classes else tuple(f"cluster {k}" for k in range(lesson.classes))
    network = None if before is None else before.networks[0]
    training = make_training(stage, fold, lesson, network, before is not None and before.classes == names)
    precision = training.precision

    def judge(network: torch.nn.Module) -> dict[str, float]:
        runner = TorchRunner(network, stage.preprocess, device, precision, training.channels_last)  # type: ignore[arg-type]
        looks = (View(),)
        logits = by_parts(
            held,
            lambda rows: merge_views(
                forward_views([runner], stage.photos, rows, stage.preprocess, looks, what="Held out"), looks
            ),
        )
        labels, probs = manifest.labels[held], softmax(logits.astype(np.float64), axis=1)
        return {
            "loss": float(metrics.log_loss(labels, probs)),
            "accuracy": float(metrics.accuracy(labels, probs)),
        }

    about = {"recipe": recipe.name, "member": stage.name, "fold": fold, "precision": precision}

    def save(network: torch.nn.Module) -> None:
        save_network(stage, folder, network, about, names)

    progress = fit(
        training.model, training.loader, training.batches, make_step(recipe.step), training.state, recipe,
        stage.seed(fold), folder, judge if len(held) and of_classes else None, save, what, epochs,
    )  # fmt: skip
    if training.state.margins is not None and is_first():
        training.state.margins.save(folder, progress.margins)


def save_network(
    member: Member, folder: Path, network: Any, about: dict[str, Any], classes: tuple[str, ...] | None = None
) -> None:
    """Write a network with all that is needed to use it."""
    recipe, path = member.recipe, folder / NETWORK
    manifest, numbers = member.manifest, None
    if classes is None or classes == manifest.classes:
        labelled = manifest.take((manifest.labels >= 0) & (manifest.table["split"].to_numpy() != "test"))
        about = {**about, "class_counts": labelled.class_counts().tolist()}
        numbers = manifest.numbers
    classes = classes or manifest.classes
    save_model(path, network, recipe.model, classes, member.preprocess, recipe.tta, about, numbers)


def predict_fold(member: Member, fold: int, held: np.ndarray, runner: TorchRunner) -> None:
    """Predict the photographs that the fold held out, and the test photographs."""
    views = member.recipe.tta
    for rows, name in ((held, "oof"), (member.test_rows, "test")):
        if not len(rows):
            continue
        what = f"{member.what(fold)}: {name}"

        def predict(rows: np.ndarray, what: str = what) -> np.ndarray:
            told = UnknownOutput(len(rows), views)
            seen = forward_views([runner], member.photos, rows, member.preprocess, views, what=what, also=told)
            logits = merge_views(seen, views)
            return logits if told.probability is None else np.column_stack([logits, told.probability])

        logits = by_parts(rows, predict)
        if is_first():
            as_predictions(member, rows, logits, fold).save(member.folder(fold) / f"{name}.parquet")


def as_predictions(
    member: Member, rows: np.ndarray, logits: np.ndarray, fold: int, embeddings: np.ndarray | None = None
) -> Predictions:
    """Logits (n, K) of rows of the manifest as a record; a column more is the probability of something else."""
    manifest = member.manifest
    logits, unknown = logits[:, : len(manifest.classes)], logits[:, len(manifest.classes) :]
    return Predictions(
        manifest.image_id[rows], logits.astype(np.float32), manifest.classes, manifest.labels[rows],
        np.full(len(rows), fold), embeddings, np.clip(unknown[:, 0], 0, 1).astype(np.float32) if unknown.size else None,
        manifest.numbers,
    )  # fmt: skip


def _joined_history(places: list[Path]) -> list[str]:
    """The stages' histories as one, epochs counted on."""
    lines, epochs = [], 0
    for number, place in enumerate(places, 1):
        rows = _history(place)
        lines += [json.dumps({**row, "stage": number, "epoch": epochs + row["epoch"]}) + "\n" for row in rows]
        epochs += len(rows)
    return lines
