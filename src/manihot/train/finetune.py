"""The method `finetune`: the network learns from photographs, in one stage or in several, one after another.

Several stages (progressive sizes, head first and then all, other data, another loss) each leave their network in
members/NAME/foldK/stageS/; the next begins with its weights. The last one's is the fold's.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from scipy.special import softmax

from manihot import metrics
from manihot.infer.forward import forward_views, merge_views
from manihot.members.member import Member, make_member
from manihot.members.outputs import make_card, predict_fold
from manihot.members.toolbox import Method
from manihot.members.training_labels import LabelRequest, StageBefore, make_training_labels
from manihot.networks.card import ModelCard
from manihot.progress import say
from manihot.records.files import write_atomic
from manihot.records.readers import MOST_JSON, check_file, parse_json, reading
from manihot.records.run_folder import NETWORK, TORCH_NETWORK, WHOLE
from manihot.records.run_parts import FoldFolder
from manihot.settings import Recipe, View
from manihot.train.distributed import by_parts, from_first, gather, rank
from manihot.train.export import export_network
from manihot.train.loop import fit, snapshot_epochs
from manihot.train.margins import join_margins
from manihot.train.networks.checkpoint import load_network, save_network
from manihot.train.networks.heads import Classifier, Snapshots
from manihot.train.runners import TorchRunner, choose_device
from manihot.train.training import at_size, make_training

Trained = tuple[Classifier | Snapshots, ModelCard]
EPOCHS = TypeAdapter(list[dict[str, int | float | None]])

DONE = "done"  # a stage's mark that its network is the one to keep: `keep: best` writes networks on the way


def finetune(member: Member, fold: int, train: np.ndarray, held: np.ndarray) -> None:
    """Train the whole network on photographs, a stage after another; all but the first process end with the last."""
    gather(None)  # the first process has cleared the folder
    stages, folder = stages_of(member), member.folder(fold)
    epochs = kept_epochs(member) if fold == WHOLE else [stage.recipe.train.epochs for stage in stages]
    places = [folder] if len(stages) == 1 else [folder / f"stage{number}" for number in range(1, len(stages) + 1)]
    before: Trained | None = None
    for number, (stage, place) in enumerate(zip(stages, places), 1):
        what = member.what(fold) + (f", stage {number} of {len(stages)}" if len(stages) > 1 else "")
        if len(stages) > 1 and (place / DONE).is_file():
            say(f"{what}: done before")
        else:
            rows, _ = stage.rows(fold)
            train_stage(stage, fold, rows, held, place, before, what, epochs[number - 1])
            if len(stages) > 1 and not rank():
                write_atomic(place / DONE, "")
            gather(None)  # the first process has saved the network that all go on from
        before = _load(place / TORCH_NETWORK)
    if rank():
        return
    if len(stages) > 1:
        write_atomic(FoldFolder(folder).history, "".join(_joined_history(places)))
        join_margins(folder, places, [len(_history(place)) for place in places])
    assert before is not None
    card = before[1]
    network = _answering(member, before[0], FoldFolder(places[-1]), epochs[-1])
    device, precision = choose_device(member.tools.device), str(card.about["precision"])
    card = replace(make_card(member, fold, precision=precision), preprocess=member.answering)
    rows = held if len(held) else train
    why = export_network(folder / NETWORK, network, card, member.photos, rows)
    save_network(folder / TORCH_NETWORK, network, replace(card, about={**card.about, "not_onnx": why}))
    predict_fold(member, fold, held, TorchRunner(network, member.answering, device, precision))


def _answering(member: Member, kept: Classifier | Snapshots, place: FoldFolder, epochs: int) -> Classifier | Snapshots:
    """The network that answers: the kept one or two, or several epochs' together, at the size at which they predict.

    place: of the last stage, which lasted so many epochs.
    """
    asked = snapshot_epochs(member.recipe.stage_recipes()[-1].train.snapshots, epochs)
    together = [*kept.networks] if isinstance(kept, Snapshots) else [kept]
    networks: list[Any] = [_load(place.snapshot(epoch))[0] for epoch in asked] or together
    if member.answering != member.preprocess:
        networks = [at_size(network, member.recipe.model, member.answering.size) for network in networks]
    return Snapshots(networks) if asked or len(networks) > 1 else networks[0]


def _load(path: Path) -> Trained:
    """A network, or two that learned together, as `train_stage` saves it, and its card."""
    return load_network(path)


def stages_of(member: Member) -> list[Member]:
    """The member as each stage of its training sees it."""
    recipes = member.recipe.stage_recipes()
    if len(recipes) == 1:
        return [replace(member, recipe=recipes[0])]
    made = [make_member(member.run, member.name, one, member.manifest, member.tools) for one in recipes]
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
    path = FoldFolder(folder).history
    with reading(path, "the epochs of a training", "remove the folder of the fold to train it again"):
        check_file(path, MOST_JSON)
        rows = EPOCHS.validate_python([parse_json(line) for line in path.read_bytes().splitlines()])
        if not rows or any(not isinstance(row.get("epoch"), int) for row in rows):
            raise ValueError("an epoch has no number" if rows else "there is none")
        return rows


def _epochs_of(rows: list[dict[str, Any]], recipe: Recipe) -> int:
    """Epochs that the kept network of a training has behind it."""
    key = f"val_{recipe.train.monitor}"
    if recipe.train.keep == "last" or not all(key in row for row in rows):
        return len(rows)
    watched = [row[key] if key == "val_loss" else -row[key] for row in rows]
    return int(np.argmin(watched)) + 1


def train_stage(
    stage: Member,
    fold: int,
    train: np.ndarray,
    held: np.ndarray,
    folder: Path,
    before: Trained | None,
    what: str,
    epochs: int,
) -> None:
    """Train one stage and save its network into `folder`; a stopped one continues after its last epoch.

    epochs: after which it ends, the recipe's or fewer; rates and strengths are those of the recipe's number.
    """
    recipe, manifest, device = stage.recipe, stage.manifest, choose_device(stage.tools.device)
    ready = None
    if before is not None:
        ready = StageBefore(TorchRunner(before[0], before[1].preprocess, device), before[1].preprocess)
    training_labels = from_first(lambda: make_training_labels(LabelRequest(stage, fold, train, ready)))
    of_classes = recipe.labels.name != "clusters"
    names = manifest.classes if of_classes else tuple(f"cluster {k}" for k in range(training_labels.classes))
    network = None if before is None else before[0]
    assert not isinstance(network, Snapshots)  # check_recipe: two networks learn in one stage
    training = make_training(stage, fold, training_labels, network, before is not None and before[1].classes == names)
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
        return {"loss": float(metrics.log_loss(labels, probs)), "accuracy": float(metrics.accuracy(labels, probs))}

    def save(network: torch.nn.Module, epoch: int | None = None) -> None:
        card = make_card(stage, fold, names, precision=precision)
        path = folder / TORCH_NETWORK if epoch is None else FoldFolder(folder).snapshot(epoch)
        save_network(path, network, card)  # type: ignore[arg-type]

    progress = fit(
        training, recipe, stage.seed(fold), folder, judge if len(held) and of_classes else None, save, what, epochs
    )
    if training.state.margins is not None and not rank():
        training.state.margins.save(folder, progress.margins)


def _joined_history(places: list[Path]) -> list[str]:
    """The stages' histories as one, epochs counted on."""
    lines, epochs = [], 0
    for number, place in enumerate(places, 1):
        rows = _history(place)
        lines += [json.dumps({**row, "stage": number, "epoch": epochs + row["epoch"]}) + "\n" for row in rows]
        epochs += len(rows)
    return lines


def _more_inputs(member: Member, fold: int) -> dict[str, Any]:
    """How long a training on everything lasts depends on the folds."""
    return {"epochs": kept_epochs(member)} if fold == WHOLE else {}


FINETUNE = Method(finetune, _more_inputs)
