"""Which networks of a fine-tuned run could be exported: each with its size, its time and an honest score."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from manihot.errors import SettingsError
from manihot.export.certificate import Judged, evenly, score
from manihot.export.source import Source
from manihot.infer.forward import PhotoFiles
from manihot.infer.models import network_of, networks_by_fold, read_card
from manihot.networks.runner import OnnxRunner
from manihot.records.files import atomic_path
from manihot.records.run_folder import BACKBONE, HEAD, REFITTED, WHOLE
from manihot.settings.options import NetworkChoice

TIMED = 8  # photographs
AVERAGE, ONE_FOLD = "folds", "fold"
HOW = {
    AVERAGE: "the mean of all folds' networks; scored by each on the photographs that it had not seen, which is less "
    "than the mean is worth",
    REFITTED: "trained on everything; scored by the folds' networks, which saw less",
    ONE_FOLD: "scored on the photographs that it held out",
}


@dataclass(frozen=True)
class Choice:
    """Networks that could be exported. milliseconds: of CPU for a photograph in onnxruntime on one thread."""

    name: str
    files: tuple[Path, ...]
    folds: tuple[int, ...]
    megabytes: float
    milliseconds: float
    photographs: int
    accuracy: float
    low: float
    high: float
    how: str


def list_choices(source: Source, judged: Judged) -> list[Choice]:
    """What can be chosen among, the first the most trusted; one entry where heads share a frozen backbone.

    judged: what the folds' networks say of held-out photographs.
    """
    folds, whole = networks_by_fold(source.member), network_of(source.member / REFITTED)
    sets: dict[str, tuple[tuple[Path, ...], tuple[int, ...]]] = {}
    if any(path.name == HEAD for path in source.model.files):
        backbone = source.member / BACKBONE
        return _measured(source, judged, {AVERAGE: ((backbone,), tuple(source.model.folds))})
    if whole is not None:
        sets[REFITTED] = ((whole,), (WHOLE,))
    sets[AVERAGE] = (tuple(folds.values()), tuple(folds))
    sets |= {f"{ONE_FOLD}{number}": ((path,), (number,)) for number, path in folds.items()}
    return _measured(source, judged, sets)


def _measured(
    source: Source, judged: Judged, sets: Mapping[str, tuple[tuple[Path, ...], tuple[int, ...]]]
) -> list[Choice]:
    """The sets of networks, by name with their files and folds, that are ONNX and were scored."""
    photos = PhotoFiles(source.manifest.paths, source.model.preprocess)
    batch = [source.model.preprocess(photos[int(row)]) for row in evenly(source.usable, TIMED)]
    each = {path: _time(path, batch) for files, _ in sets.values() for path in files if path.suffix == ".onnx"}
    labels, fold = source.manifest.labels[judged.rows], source.manifest.fold[judged.rows]
    out = []
    for name, (files, numbers) in sets.items():
        own = np.isin(fold, numbers) if len(numbers) == 1 and numbers[0] != WHOLE else np.ones(len(fold), dtype=bool)
        if not own.any() or any(path not in each for path in files):
            continue
        found = score(judged.probs[own], labels[own])
        size = sum(path.stat().st_size for path in files) / 1e6
        spent = sum(each[path] for path in files)
        interval = (found["photographs"], found["accuracy"], found["low"], found["high"])
        how = HOW[name if name in HOW else ONE_FOLD]
        out.append(Choice(name, files, numbers, size, spent, *interval, how))
    return out


def _time(path: Path, batch: Sequence[np.ndarray]) -> float:
    runner, times = OnnxRunner(path, threads=1), []
    for photo in [batch[0], *batch]:
        start = time.process_time()
        runner(photo[None])
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times[1:])


def choose(choices: Sequence[Choice], wanted: NetworkChoice) -> Choice:
    """The one of that name, or the best that is small and fast enough: a mean or a refit before a single fold.

    Among single folds that with the highest lower end of its interval. Raises SettingsError where none fits.
    """
    found = [one for one in choices if wanted.network in (None, one.name)]
    if not found:
        names = ", ".join(one.name for one in choices)
        raise SettingsError(f"--network {wanted.network}: there is no such choice", f"one of {names}")
    max_mb, max_ms = wanted.max_mb, wanted.max_ms
    fits = [
        one
        for one in found
        if (max_mb is None or one.megabytes <= max_mb) and (max_ms is None or one.milliseconds <= max_ms)
    ]
    if not fits:
        known = "; ".join(f"{one.name}: {one.megabytes:.1f} MB, {one.milliseconds:.0f} ms" for one in found)
        raise SettingsError(f"no network is small and fast enough: {known}", "raise --max-mb and --max-ms")
    several = [one for one in fits if one.name in (AVERAGE, REFITTED)]
    return several[0] if several else max(fits, key=lambda one: one.low)


def with_choice(source: Source, choice: Choice) -> Source:
    """The same with these networks alone; as it is where heads share a backbone."""
    if choice.files[0].name == BACKBONE:
        return source
    card = read_card(choice.files[0])
    model = replace(source.model, files=list(choice.files), folds=list(choice.folds), card=card)
    return replace(source, model=model)


def as_table(choices: Sequence[Choice], chosen: Choice) -> pd.DataFrame:
    """For choices.csv. chosen: marked in the column of that name."""
    names = ("name", "megabytes", "milliseconds", "photographs", "accuracy", "low", "high", "how")
    rows = [{name: getattr(one, name) for name in names} | {"chosen": one is chosen} for one in choices]
    return pd.DataFrame(rows, columns=[*names, "chosen"])


def draw_choices(choices: Sequence[Choice], chosen: Choice, path: Path) -> None:
    """A picture of accuracy, with its interval, against milliseconds; the area of a disc is its megabytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for one in choices:
        colour = "#0b4a1c" if one is chosen else "#9a9a9a"
        axes.plot([one.milliseconds] * 2, [100 * one.low, 100 * one.high], color=colour, lw=1.5)
        axes.scatter([one.milliseconds], [100 * one.accuracy], s=6 * one.megabytes + 20, color=colour)
        axes.annotate(one.name, (one.milliseconds, 100 * one.accuracy), xytext=(8, 4), textcoords="offset points")
    axes.set_xlabel("milliseconds of CPU for a photograph, one thread")
    axes.set_ylabel("right, %, held out, 95 % interval")
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).figure.savefig(temporary, dpi=120, format="png")
