"""Learning-rate finder: the loss while the rate rises exponentially, a step each (arXiv 1506.01186, section 3.3).

The network is a fresh one and is thrown away; only the table and the picture are written. Rates of stages and
head keep their proportions; the rate of the table is `optimizer.lr`, that of the backbone's last stage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter1d

from manihot.audit.folds import assign_folds
from manihot.audit.sources import use_sources
from manihot.demo.make import FORMAT, make_demo
from manihot.errors import DataError, RunFolderError, SettingsError
from manihot.members.member import make_member
from manihot.members.training_labels import LabelRequest, make_training_labels
from manihot.photos.sources import read_photos
from manihot.progress import say, track
from manihot.records.csv_files import save_csv
from manihot.records.files import atomic_path
from manihot.records.run_folder import RunFolder
from manihot.settings import Recipe, load_recipe, suggest
from manihot.settings.options import EVERYTHING_GUESSED, TableOptions
from manihot.train.check import check_recipe
from manihot.train.gradients import Gradients, Training
from manihot.train.loop import grouped
from manihot.train.networks.backbones import set_training
from manihot.train.optim.optimizers import make_optimizer
from manihot.train.probe import cache_folder
from manihot.train.runners import choose_device
from manihot.train.toolbox import torch_toolbox
from manihot.train.training import make_training

DIVERGED = 4.0  # times the lowest running mean of the loss: no use to go on
MEMORY = 0.9  # of the running mean that is watched for this
DEMO = 200  # photographs that are drawn where none are named
BLUR = 0.03  # of all steps: spread of the Gaussian that smooths the finished curve, on both sides, so without lag


def lr_find(
    photos: Path | Sequence[Path] | None,
    recipe: str | Recipe,
    out: Path,
    *,
    overrides: Sequence[str] = (),
    member: str = "",
    lowest: float = 1e-7,
    highest: float = 10.0,
    steps: int = 100,
    device: str = "auto",
    workers: int = 2,
    columns: TableOptions = EVERYTHING_GUESSED,
) -> dict[str, Any]:
    """Sweep the rate of a recipe on the training part of its first fold; writes lr.csv and lr.png to `out`.

    photos, columns: see `manihot.scan`; a manifest.parquet is taken as it is; None draws demo photographs into
    the user's cache folder and says so. member: which one; the first
    when left out. lowest, highest: of the sweep, `steps` steps at most. Returns `suggestion` (the lower of the
    next two), `steepest`, `tenth_of_minimum`, and the paths `table` and `picture`. Raises ManihotError.
    """
    if not 0 < lowest < highest or steps < 10:
        raise SettingsError(
            f"a sweep from {lowest:g} to {highest:g} in {steps} steps", "use rates that rise from above 0, 10 steps"
        )
    whole = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    check_recipe(whole)
    members = whole.member_recipes()
    name = member or next(iter(members))
    if name not in members:
        raise SettingsError(f"the recipe has no member {name!r}", suggest(name, list(members)))
    own = members[name].stage_recipes()[0]
    if own.method != "finetune":
        raise SettingsError(
            f"the method {own.method!r} has no learning rate", "use a recipe with method: finetune, as standard"
        )
    if photos is None:
        photos, columns = _demo(recipe, columns, workers), EVERYTHING_GUESSED
    with RunFolder(Path(out)) as folder:
        if "stages" in folder.record:
            raise RunFolderError(f"{folder.path} contains a run", "choose another folder for the sweep with --out")
        manifest, _ = read_photos(photos, columns, out=folder.path, workers=workers, aliases=whole.aliases)
        manifest, _ = use_sources(manifest, whole.sources)
        fold, _ = assign_folds(manifest, whole.folds, whole.seed)
        tools = torch_toolbox(choose_device(device))
        one = make_member(folder, name, own, manifest.with_columns(fold=fold), tools, workers)
        which = next(iter(whole.folds.only), 0)
        rows, _ = one.rows(which)
        if not len(rows):
            raise DataError(f"fold {which} has no photographs to train on", "set folds.only to another one")
        training_labels = make_training_labels(LabelRequest(one, which, rows))
        table = find_lr(make_training(one, which, training_labels), own, one.seed(which), lowest, highest, steps)
        found = suggest_rates(table)
        save_csv(table, folder / "lr.csv")
        draw_curve(table, found, folder / "lr.png")
    say(f"Learning rate: {found['suggestion']:.1e} (--set optimizer.lr={found['suggestion']:.1e})")
    return {**found, "table": folder / "lr.csv", "picture": folder / "lr.png"}


def _demo(recipe: str | Recipe, columns: TableOptions, workers: int) -> Path:
    """Demo photographs, drawn once: what a rate is searched on where the user has named no photographs."""
    if columns.given():
        raise SettingsError(f"{columns.named()} without photographs", "name their folder or table after the recipe")
    folder = cache_folder() / f"demo-{DEMO}-{FORMAT}"
    words = recipe if isinstance(recipe, str) else "RECIPE"
    say(
        f"No photographs are named: {DEMO} drawn ones stand in ({folder}). The rate for yours may be another: "
        f"manihot lr-find {words} PHOTOS"
    )
    make_demo(folder, photos=DEMO, workers=workers)
    return folder


def find_lr(
    training: Training, recipe: Recipe, seed: int, lowest: float = 1e-7, highest: float = 10.0, steps: int = 100
) -> pd.DataFrame:
    """Train `training`'s network while the rate rises by the same factor per step, until the loss runs away.

    Returns the columns lr, loss (the mean over a step's photographs, before the step), smoothed.
    """
    model, state = training.model, training.state
    optimizer = make_optimizer(model, recipe.optimizer)
    shares = [group["lr"] / recipe.optimizer.lr for group in optimizer.param_groups]
    scaler = torch.amp.GradScaler(state.device.type, enabled=state.dtype == torch.float16)
    gradients = Gradients(training, recipe, optimizer, scaler, "Learning rates")
    torch.manual_seed(seed)
    set_training(model, recipe.model.freeze_norm)
    rates = np.geomspace(lowest, highest, steps)
    seen: list[float] = []
    for rate, (first, group) in zip(track(rates, "Learning rates", total=steps), _steps(training, recipe)):
        for one, share in zip(optimizer.param_groups, shares):
            one["lr"] = rate * share
        total = gradients.make(group, first, strict=False)
        seen.append(total / sum(len(batch["image"]) for batch in group))
        if _ran_away(seen):
            break
        if recipe.train.clip:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(gradients.trained, recipe.train.clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
    finite = [loss for loss in seen if math.isfinite(loss)]
    if len(finite) < 5:
        raise DataError(
            f"the loss ran away after {len(seen)} steps from a rate of {lowest:g}", "begin lower, or use precision fp32"
        )
    smoothed = gaussian_filter1d(np.array(finite), max(1.0, BLUR * steps), mode="nearest")
    return pd.DataFrame({"lr": rates[: len(finite)], "loss": finite, "smoothed": smoothed})


def _steps(training: Training, recipe: Recipe) -> Iterator[tuple[int, list[Any]]]:
    """Batches of each step and the first one's number, epoch after epoch without an end."""
    state, epochs = training.state, recipe.train.epochs
    for number in range(10**9):
        training.batches.epoch = state.epoch = number % epochs
        state.loss.start_epoch(state.epoch, epochs)
        for place, group in enumerate(grouped(training.loader, recipe.train.accumulate)):
            yield place * recipe.train.accumulate, group


def _ran_away(seen: Sequence[float]) -> bool:
    """Whether the last loss isn't finite, or the running mean is far above the lowest that it had."""
    if not math.isfinite(seen[-1]):
        return True
    mean, lowest = 0.0, math.inf
    for count, loss in enumerate(seen, 1):
        mean = MEMORY * mean + (1 - MEMORY) * loss
        unbiased = mean / (1 - MEMORY**count)
        lowest = min(lowest, unbiased)
    return unbiased > DIVERGED * lowest


def suggest_rates(table: pd.DataFrame) -> dict[str, float]:
    """`steepest`: where the smoothed loss falls fastest over log(lr), before its minimum; `tenth_of_minimum`:
    a tenth of the rate at the minimum; `suggestion`: the lower of the two."""
    smoothed, logs = table["smoothed"].to_numpy(), np.log10(table["lr"].to_numpy())
    lowest = max(1, int(smoothed.argmin()))
    steepest = int(np.gradient(smoothed, logs)[: lowest + 1].argmin())
    found = {"steepest": float(10 ** logs[steepest]), "tenth_of_minimum": float(10 ** logs[lowest] / 10)}
    return {"suggestion": min(found.values()), **found}


def draw_curve(table: pd.DataFrame, found: dict[str, float], path: Path) -> None:
    """The curve with both suggestions, as .png or .svg, atomically."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(table["lr"], table["loss"], color="#999999", linewidth=0.8, label="each step")
    axes.plot(table["lr"], table["smoothed"], color="#0072b2", linewidth=2, label="smoothed")
    for name, style in (("steepest", "--"), ("tenth_of_minimum", ":")):
        words = f"{name.replace('_', ' ')}: {found[name]:.1e}"
        axes.axvline(found[name], color="#d55e00", linestyle=style, label=words)
    axes.set(xscale="log", xlabel="learning rate (optimizer.lr)", ylabel="training loss")
    low, high = float(table["smoothed"].min()), float(table["smoothed"].iloc[0])
    room = max(high - low, 1e-6)
    axes.set_ylim(low - 0.3 * room, high + room)
    axes.legend(frameon=False)
    kind = path.suffix.lower().lstrip(".")
    canvases = {"png": FigureCanvasAgg, "svg": FigureCanvasSVG}
    if kind not in canvases:
        raise SettingsError(f"{path}: not a picture that can be drawn", "end the name in .png or .svg")
    canvases[kind](figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=120)
