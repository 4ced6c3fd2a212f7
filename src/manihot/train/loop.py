"""The training loop: epochs over batches, with a checkpoint after each from which a stopped run continues.

After `kill -9` the same command gives bit-identical weights on the same machine: all that is random is
seeded by (seed, epoch); last.ckpt holds the model, the optimiser, the schedule, the average, the loss state.

With `optimizer.sam` every step sees the same photographs twice: the same mixed batches, the same masks of
dropout and stochastic depth (the generators are set back), batch-norm statistics and the memory of losses moved
by the first pass alone, over all batches of an accumulated step.

A gradient that is not finite leaves the weights where they were; many steps in a row end the training.

Several processes (`distributed`) run this loop in step: each on its slices of the batches, with the same gradients,
weights and scores, so that they agree on all that is decided here. The first one writes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from manihot.errors import DataError, RunFolderError, SettingsError
from manihot.progress import say, track, warn
from manihot.records.files import atomic_path, write_atomic
from manihot.records.readers import MOST_TENSORS, check_file, reading
from manihot.records.run_parts import FoldFolder
from manihot.settings import Recipe
from manihot.train import distributed
from manihot.train.gradients import Gradients, Training
from manihot.train.networks.backbones import NORMS, set_training
from manihot.train.optim.averaging import AVERAGING, Averaging
from manihot.train.optim.optimizers import make_optimizer
from manihot.train.optim.sam import gradient_norm
from manihot.train.optim.schedules import NEEDS_SCORES, Schedule, make_schedule, watched_score
from manihot.train.steps import StepState

MANY_IN_A_ROW = 25  # steps without a finite gradient; a GradScaler's factor has left fp16's range long before

# a network to {"loss": ..., "accuracy": ...} on held-out photographs
Judge = Callable[[nn.Module], dict[str, float]]


@dataclass
class Progress:
    """How far a training has come; saved with every checkpoint."""

    epoch: int = 0  # epochs finished
    step: int = 0
    best: float = math.inf  # lowest monitored value so far (accuracy counts negative)
    best_epoch: int = -1
    history: list[dict[str, Any]] = field(default_factory=list)
    processes: int = 1  # that train together
    margins: dict[int, Tensor] = field(default_factory=dict)  # of each epoch, by place in the training labels


class SavedProgress(BaseModel):
    """`Progress` in a checkpoint."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")
    epoch: NonNegativeInt
    step: NonNegativeInt
    best: float
    best_epoch: Annotated[int, Field(ge=-1)]
    history: list[dict[str, Any]]
    processes: PositiveInt = 1
    margins: dict[int, Tensor] = {}


@dataclass
class Skipped:
    """Steps left out, as their gradients were not finite."""

    epoch: int = 0  # of this epoch; without a GradScaler's, which look for its factor
    in_a_row: int = 0

    def note(self, left_out: bool, counts: bool, what: str) -> None:
        """Count one step; DataError where it is one too many in a row. All processes see the same."""
        self.epoch += left_out and counts
        self.in_a_row = self.in_a_row + 1 if left_out else 0
        if self.in_a_row >= MANY_IN_A_ROW:
            raise DataError(
                f"{what}: the gradients of {self.in_a_row} steps in a row were not finite",
                "lower optimizer.lr or optimizer.sam, or set train.precision=fp32",
            )


def fit(
    training: Training,
    recipe: Recipe,
    seed: int,
    folder: Path,
    judge: Judge | None,
    save: Callable[..., None],
    what: str,
    epochs: int | None = None,
) -> Progress:
    """Train a network in place by the recipe; `save` is called with the network to keep and with snapshots.

    judge: scores a network after each epoch; None without held-out photographs. folder: gets last.ckpt and
    history.jsonl. epochs: after which it stops, on the way of the recipe's own number; all when left out. Raises
    DataError when the loss is no longer finite, or the gradients of many steps in a row are not.
    """
    train = recipe.train
    last = train.epochs if epochs is None else min(epochs, train.epochs)
    if judge is None and recipe.schedule.name in NEEDS_SCORES:
        raise SettingsError(f"schedule: {recipe.schedule.name} watches held-out photographs, and there are none")
    model, batches, state = training.model, training.batches, training.state
    parts = _parts(model, math.ceil(len(batches) / train.accumulate), state, recipe)
    optimizer, schedule, averaging = parts["optimizer"], parts["schedule"], parts["averaging"]
    set_training(model, recipe.model.freeze_norm)
    training = replace(training, step=distributed.share_step(training.step, model, state))
    parts_of_step = train.accumulate * distributed.world()
    if parts_of_step > 1 and any(isinstance(m, NORMS) and m.training for m in model.modules()):
        warn(
            f"batch norms see {train.batch} photographs at a time, not the {train.batch * parts_of_step} "
            "of a step, so it isn't one large batch; model.freeze_norm=true makes it exact"
        )
    progress, skipped = _resume(FoldFolder(folder).checkpoint, parts, state.device), Skipped()
    if progress.epoch:
        say(f"{what}: continues after epoch {progress.epoch} of {train.epochs}")
    while progress.epoch < last and not _is_stalled(progress, train.patience):
        epoch, clock = progress.epoch, time.perf_counter()
        torch.manual_seed(_seed_of(seed, epoch, distributed.rank()))
        batches.epoch = state.epoch = epoch
        state.loss.start_epoch(epoch, train.epochs)
        if state.divide is not None:
            state.clean = state.divide(model, epoch)
        set_training(model, recipe.model.freeze_norm)
        rate = optimizer.param_groups[-1]["lr"]
        label = f"{what}, epoch {epoch + 1}/{train.epochs}"
        loss = _train_epoch(training, recipe, parts, progress, skipped, label)
        averaging.after_epoch(model, epoch)
        if state.margins is not None:
            progress.margins[epoch] = state.margins.end_epoch()
        row = {"epoch": epoch, "lr": rate, "train_loss": loss, **state.shares()}
        if judge is not None:
            judged = averaging.model(model)
            distributed.take_buffers(judged)
            row |= {f"val_{name}": value for name, value in judge(judged).items()}
        row["seconds"] = round(time.perf_counter() - clock, 2)
        progress.history.append(row)
        progress.epoch += 1
        if judge is not None:
            scores = {"loss": row["val_loss"], "accuracy": row["val_accuracy"]}
            watched = scores["loss"] if train.monitor == "loss" else -scores["accuracy"]
            schedule.after_epoch(watched_score(recipe.schedule, train.monitor, scores))
            if watched < progress.best:
                progress.best, progress.best_epoch = watched, epoch
                if train.keep == "best" and not distributed.rank():
                    save(averaging.model(model))
        if epoch in snapshot_epochs(train.snapshots, last) and not distributed.rank():
            save(averaging.model(model), epoch)
        say(_describe(row, label))
        if not distributed.rank():
            _save_checkpoint(folder, parts, progress)
    if train.keep == "last" or judge is None:
        kept = averaging.finish(model, lambda: _inputs(training.loader, state))
        if not distributed.rank():
            save(kept)
    return progress


def snapshot_epochs(asked: Sequence[int], epochs: int) -> list[int]:
    """The epochs of `train.snapshots`, counted from 0, in a training of so many, in order."""
    return sorted({epoch + epochs * (epoch < 0) for epoch in asked})


def _parts(model: nn.Module, steps_per_epoch: int, state: StepState, recipe: Recipe) -> dict[str, Any]:
    """All that a checkpoint holds, by name."""
    optimizer = make_optimizer(model, recipe.optimizer)  # type: ignore[arg-type]
    epochs = recipe.train.epochs
    return {
        "model": model,
        "optimizer": optimizer,
        "schedule": make_schedule(optimizer, recipe.schedule, epochs, steps_per_epoch),
        "averaging": AVERAGING[recipe.averaging.name](model, epochs, **recipe.averaging.settings),
        "scaler": torch.amp.GradScaler(state.device.type, enabled=state.dtype == torch.float16),
        "loss": state.loss,
    }


def _train_epoch(
    training: Training, recipe: Recipe, parts: dict[str, Any], progress: Progress, skipped: Skipped, what: str
) -> float:
    """One pass; the mean training loss."""
    optimizer, scaler, loader = parts["optimizer"], parts["scaler"], training.loader
    schedule: Schedule = parts["schedule"]
    averaging: Averaging = parts["averaging"]
    accumulate, loss_sum, seen, skipped.epoch = recipe.train.accumulate, 0.0, 0, 0
    gradients = Gradients(training, recipe, optimizer, scaler, what)
    for number, group in enumerate(grouped(track(loader, what, total=len(loader)), accumulate)):
        loss_sum += gradients.make(group, number * accumulate)
        seen += sum(len(batch["image"]) for batch in group)
        stepped = _step(optimizer, scaler, gradients.trained, recipe.train.clip)
        skipped.note(not stepped, not scaler.is_enabled(), what)
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        averaging.after_step(training.model, progress.step)
        progress.step += 1
    if skipped.epoch:
        warn(f"{what}: {skipped.epoch} steps left out, their gradients were not finite; lower optimizer.lr or .sam")
    losses, counts = zip(*distributed.gather((loss_sum, seen)))
    return float(sum(losses) / max(1, sum(counts)))


def _step(optimizer: Any, scaler: Any, trained: Sequence[Tensor], clip: float) -> bool:
    """Clip and step; False, and the weights are as before, where the gradients are not finite."""
    if clip:
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(trained, clip)
    if scaler.is_enabled():  # it skips infinite gradients by itself, and lowers its factor then
        factor = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        return bool(scaler.get_scale() >= factor)
    if not clip:
        norm = gradient_norm(p.grad for p in trained if p.grad is not None)
    if not torch.isfinite(norm):
        return False
    scaler.step(optimizer)
    return True


def grouped(batches: Any, count: int) -> Iterator[list[Any]]:
    """Lists of `count` batches, the last one shorter."""
    group = []
    for batch in batches:
        group.append(batch)
        if len(group) == count:
            yield group
            group = []
    if group:
        yield group


def _inputs(loader: Any, state: StepState) -> Iterator[Tensor]:
    for batch in loader:
        yield state.normalise(batch["image"].to(state.device), batch["colour"].to(state.device))


def _seed_of(seed: int, epoch: int, process: int = 0) -> int:
    return (seed * 1_000_003 + process * distributed.SEED_OF_PROCESS + epoch) % (2**31)


def _is_stalled(progress: Progress, patience: int) -> bool:
    return bool(patience) and progress.best_epoch >= 0 and progress.epoch - 1 - progress.best_epoch >= patience


def _save_checkpoint(folder: Path, parts: dict[str, Any], progress: Progress) -> None:
    state = {name: part.state_dict() for name, part in parts.items()}
    state["progress"] = vars(progress)
    with atomic_path(FoldFolder(folder).checkpoint) as temporary:
        torch.save(state, temporary)
    write_atomic(FoldFolder(folder).history, "".join(json.dumps(row) + "\n" for row in progress.history))


def _resume(path: Path, parts: dict[str, Any], device: torch.device) -> Progress:
    if not path.exists():
        return Progress(processes=distributed.world())
    with reading(path, "a checkpoint of this training", f"remove the folder {path.parent} to train it again"):
        check_file(path, MOST_TENSORS)
        state = torch.load(path, map_location=device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        progress = Progress(**SavedProgress.model_validate(state["progress"]).model_dump())
    if progress.processes != distributed.world():
        raise RunFolderError(
            f"{path}: this training began with {progress.processes} processes, and now there are {distributed.world()}",
            f"start as many again, or remove {path.parent} to start over",
        )
    return progress


def _describe(row: dict[str, Any], what: str) -> str:
    judged = f", held out: loss {row['val_loss']:.3f}, right {row['val_accuracy']:.1%}" if "val_loss" in row else ""
    return f"{what}: loss {row['train_loss']:.3f}{judged} ({row['seconds']:.0f} s)"
