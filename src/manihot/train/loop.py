"""The training loop: epochs over batches, with a checkpoint after each from which a stopped run continues.

After `kill -9` the same command gives bit-identical weights on the same machine: all that is random is
seeded by (seed, epoch); last.ckpt holds the model, the optimiser, the schedule, the average, the loss state.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manihot.data.dataset import EpochBatches
from manihot.errors import DataError, RunFolderError
from manihot.models.backbones import set_training
from manihot.optim.averaging import AVERAGING, Averaging
from manihot.optim.optimizers import make_optimizer
from manihot.optim.schedules import make_schedule
from manihot.progress import say, track
from manihot.records.runs import atomic_path, write_atomic
from manihot.settings import Recipe
from manihot.train.steps import Step, StepState

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


def fit(
    model: nn.Module, loader: Any, batches: EpochBatches, step: Step, state: StepState, recipe: Recipe,
    seed: int, folder: Path, judge: Judge | None, save: Callable[[nn.Module], None], what: str,
) -> Progress:  # fmt: skip
    """Train `model` in place by the recipe; `save` is called with the network to keep.

    judge: scores a network after each epoch; None without held-out photographs. folder: gets last.ckpt and
    history.jsonl. Raises DataError when the loss is no longer finite.
    """
    train = recipe.train
    optimizer = make_optimizer(model, recipe.optimizer)  # type: ignore[arg-type]
    schedule = make_schedule(
        optimizer, recipe.schedule, train.epochs, math.ceil(len(batches) / train.accumulate)
    )
    averaging = AVERAGING[recipe.averaging.name](model, train.epochs, **recipe.averaging.settings)
    scaler = torch.amp.GradScaler(state.device.type, enabled=state.dtype == torch.float16)
    parts = {
        "model": model,
        "optimizer": optimizer,
        "schedule": schedule,
        "averaging": averaging,
        "scaler": scaler,
        "loss": state.loss,
    }
    progress = _resume(folder / "last.ckpt", parts, state.device)
    if progress.epoch:
        say(f"{what}: continues after epoch {progress.epoch} of {train.epochs}")
    while progress.epoch < train.epochs and not _is_stalled(progress, train.patience):
        epoch, clock = progress.epoch, time.perf_counter()
        torch.manual_seed(_seed_of(seed, epoch))
        batches.epoch = state.epoch = epoch
        state.loss.start_epoch(epoch, train.epochs)
        set_training(model, recipe.model.freeze_norm)  # type: ignore[arg-type]
        rate = optimizer.param_groups[-1]["lr"]
        label = f"{what}, epoch {epoch + 1}/{train.epochs}"
        loss = _train_epoch(
            model, loader, step, state, optimizer, schedule, scaler, averaging, recipe, progress, label
        )
        averaging.after_epoch(model, epoch)
        row = {"epoch": epoch, "lr": rate, "train_loss": loss}
        if judge is not None:
            row |= {f"val_{name}": value for name, value in judge(averaging.model(model)).items()}
        row["seconds"] = round(time.perf_counter() - clock, 2)
        progress.history.append(row)
        progress.epoch += 1
        if judge is not None:
            watched = row["val_loss"] if train.monitor == "loss" else -row["val_accuracy"]
            if watched < progress.best:
                progress.best, progress.best_epoch = watched, epoch
                if train.keep == "best":
                    save(averaging.model(model))
        say(_describe(row, label))
        _save_checkpoint(folder, parts, progress)
    if train.keep == "last" or judge is None:
        save(averaging.finish(model, lambda: _inputs(loader, state)))
    return progress


def _train_epoch(
    model: nn.Module, loader: Any, step: Step, state: StepState, optimizer: Any, schedule: Any, scaler: Any,
    averaging: Averaging, recipe: Recipe, progress: Progress, what: str,
) -> float:  # fmt: skip
    """One pass; the mean training loss."""
    accumulate, total, seen = recipe.train.accumulate, 0.0, 0
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    for first, group in enumerate(_grouped(track(loader, what, total=len(loader)), accumulate)):
        sizes = [len(batch["image"]) for batch in group]
        for offset, batch in enumerate(group):
            state.batch_number = first * accumulate + offset
            loss = step(model, batch, state)["loss"]
            value = float(loss.detach())
            if not math.isfinite(value):
                raise DataError(
                    f"{what}: the loss is {value}",
                    "lower optimizer.lr, set train.precision=fp32, or raise train.clip above 0",
                )
            share = sizes[offset] / sum(sizes)  # weighted by photographs, not by batches
            scaler.scale(loss * share).backward()
            total += value * sizes[offset]
            seen += sizes[offset]
        if recipe.train.clip:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(trained, recipe.train.clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        averaging.after_step(model, progress.step)
        progress.step += 1
    return total / max(1, seen)


def _grouped(batches: Any, count: int) -> Iterator[list[Any]]:
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


def _seed_of(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) % (2**31)


def _is_stalled(progress: Progress, patience: int) -> bool:
    return (
        bool(patience) and progress.best_epoch >= 0 and progress.epoch - 1 - progress.best_epoch >= patience
    )


def _save_checkpoint(folder: Path, parts: dict[str, Any], progress: Progress) -> None:
    state = {name: part.state_dict() for name, part in parts.items()}
    # the schedule's functions are rebuilt from the recipe
    state["schedule"] = {k: v for k, v in state["schedule"].items() if k != "lr_lambdas"}
    state["progress"] = vars(progress)
    with atomic_path(folder / "last.ckpt") as temporary:
        torch.save(state, temporary)
    write_atomic(folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in progress.history))


def _resume(path: Path, parts: dict[str, Any], device: torch.device) -> Progress:
    if not path.exists():
        return Progress()
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        for name, part in parts.items():
            saved = state[name]
            part.load_state_dict({**part.state_dict(), **saved} if name == "schedule" else saved)
    except (RuntimeError, KeyError, ValueError) as error:
        raise RunFolderError(
            f"{path}: the checkpoint doesn't fit this training ({error})",
            f"remove {path.parent} and run again",
        ) from error
    return Progress(**state["progress"])


def _describe(row: dict[str, Any], what: str) -> str:
    judged = (
        f", held out: loss {row['val_loss']:.3f}, right {row['val_accuracy']:.1%}"
        if "val_loss" in row
        else ""
    )
    return f"{what}: loss {row['train_loss']:.3f}{judged} ({row['seconds']:.0f} s)"
