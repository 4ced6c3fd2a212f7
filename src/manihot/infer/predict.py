"""The one forward loop: validation, out-of-fold, test, new photographs, embeddings and test-time views."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax

from manihot.augment.views import make_view
from manihot.errors import DataError, WeightsError
from manihot.infer.outputs import (
    SUBMISSION,
    answer_unread,
    beside,
    check_output,
    find_sample,
    first_views,
    paths_of,
    save_predictions,
)
from manihot.infer.runners import Outputs, Runner, TorchRunner, choose_device, make_runners
from manihot.photos.decode import PhotoFault
from manihot.photos.preprocess import Preprocess, Unresized
from manihot.photos.sources import read_photos
from manihot.photos.store import load_photo, load_unresized
from manihot.progress import say, track
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.probabilities import TINY
from manihot.settings import View
from manihot.settings.options import EVERYTHING_GUESSED, TableOptions
from manihot.train.networks.checkpoint import WHOLE, TrainedModel, load_model, load_network
from manihot.trust.out_of_distribution import NOT_OF_THIS_KIND, SHARED, Strangers, flag_unknown

Loaded = TypeVar("Loaded")

AHEAD = 2  # batches prepared while the device works


class Photos(Protocol):
    """A sequence of uint8 photographs (H, W, 3): the training store, or files decoded when asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> np.ndarray: ...


class PhotoFiles:
    """Files as the training store would hold them: decoded, upright, sRGB, at the stored size."""

    def __init__(self, paths: Sequence[Path], preprocess: Preprocess) -> None:
        self.paths = paths
        self.first_step = preprocess.for_store

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return _load(load_photo, self.paths[index], self.first_step)


class UnresizedFiles:
    """The same files for an augmenter, which cuts before it resizes."""

    def __init__(self, files: PhotoFiles) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Unresized:
        return _load(load_unresized, self.files.paths[index], self.files.first_step)


def _load(load: Callable[[Path, Preprocess], Loaded], path: Path, first_step: Preprocess) -> Loaded:
    try:
        return load(path, first_step)
    except PhotoFault as fault:
        raise DataError(f"{path}: {fault.kind}: {fault.detail}", fault.remedy) from fault


def each_batch(
    photos: Photos, rows: np.ndarray, preprocess: Preprocess, views: Sequence[View], batch: int, what: str
) -> Iterator[tuple[slice, int, np.ndarray]]:
    """Yield (place among `rows`, view number, uint8 (n, h, w, 3)), prepared by threads a little ahead."""
    jobs = [(slice(at, at + batch), v) for at in range(0, len(rows), batch) for v in range(len(views))]

    def prepare(job: tuple[slice, int]) -> np.ndarray:
        place, v = job
        return np.stack([make_view(photos[int(row)], views[v], preprocess) for row in rows[place]])

    with ThreadPoolExecutor(AHEAD) as threads:
        waiting: deque[tuple[tuple[slice, int], Future[np.ndarray]]] = deque()
        source = iter(jobs)
        for job in track(jobs, what):
            while len(waiting) <= AHEAD and (following := next(source, None)) is not None:
                waiting.append((following, threads.submit(prepare, following)))
            job, future = waiting.popleft()
            yield job[0], job[1], future.result()


def forward_views(
    runners: Sequence[Runner], photos: Photos, rows: np.ndarray, preprocess: Preprocess,
    views: Sequence[View], batch: int = 32, want: str = "logits", what: str = "Predicting",
    also: Callable[[slice, int, list[Outputs]], None] | None = None,
) -> np.ndarray:  # fmt: skip
    """`want` ('logits' or 'embeddings') of each view, mean over the runners: float32 (N, V, D).

    Logits are averaged over runners as probabilities (their logarithm is returned), embeddings as they are. also: is
    given the place among `rows`, the view's number and every runner's outputs of each batch.
    """
    out: np.ndarray | None = None
    for place, v, images in each_batch(photos, rows, preprocess, views, batch, what):
        outputs = [runner(images) for runner in runners]
        if also is not None:
            also(place, v, outputs)
        results = [output[want] for output in outputs]
        mean = results[0] if len(results) == 1 else _mean(results, want)
        if out is None:
            out = np.empty((len(rows), len(views), mean.shape[1]), dtype=np.float32)
        out[place, v] = mean
    return np.empty((0, len(views), 0), dtype=np.float32) if out is None else out


def _mean(results: list[np.ndarray], want: str) -> np.ndarray:
    if want == "embeddings":
        return np.mean(results, axis=0)
    return np.log(np.maximum(np.mean([softmax(r.astype(np.float64), axis=1) for r in results], axis=0), TINY))


def merge_views(logits: np.ndarray, views: Sequence[View]) -> np.ndarray:
    """Logits of views (N, V, K) to those of their weighted mean probability, float32 (N, K)."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    weights = np.array([view.weight for view in views], dtype=np.float64)
    probs = softmax(logits.astype(np.float64), axis=2)
    mean = np.einsum("nvk,v->nk", probs, weights / weights.sum())
    return np.log(np.maximum(mean, TINY)).astype(np.float32)


class UnknownOutput:
    """Keeps the probability of the output `unknown`, (N,), mean over networks and views, while they predict."""

    def __init__(self, n: int, views: Sequence[View]) -> None:
        self.n = n
        self.weights = [view.weight / sum(view.weight for view in views) for view in views]
        self.probability: np.ndarray | None = None  # stays so where no network has that output

    def __call__(self, place: slice, view: int, outputs: list[Outputs]) -> None:
        """As `also` of `forward_views`."""
        told = [output["unknown"] for output in outputs if "unknown" in output]
        if told:
            if self.probability is None:
                self.probability = np.zeros(self.n)
            self.probability[place] += self.weights[view] * np.mean(told, axis=0)


class FirstViews:
    """Keeps the embeddings (N, D) of the first view by each network of one member, by fold, while it predicts."""

    def __init__(self, member: str, n: int) -> None:
        self.member, self.n = member, n
        self.by_fold: dict[int, np.ndarray] = {}

    def of(self, model: TrainedModel) -> Callable[[slice, int, list[Outputs]], None] | None:
        """What `forward_views` is to call for this model; None for those of other members."""
        if model.about.get("member") != self.member:
            return None

        def keep(place: slice, view: int, outputs: list[Outputs]) -> None:
            for fold, output in zip(model.folds, outputs) if view == 0 else ():
                values = output["embeddings"]
                self.by_fold.setdefault(fold, np.empty((self.n, values.shape[1]), np.float32))[place] = values

        return keep


def predict_photos(
    models: Sequence[TrainedModel], manifest: Manifest, device: torch.device | None = None, batch: int = 32,
    first: FirstViews | None = None,
) -> Predictions:  # fmt: skip
    """Predict every photograph of `manifest` with all of `models`. `first` keeps embeddings, where it is given.

    Probabilities are averaged over views and a member's networks; members become one answer as the run's blend says,
    a stack by its saved second level, and by their weights where there is no blend.
    """
    device = device or choose_device()
    rows = np.arange(len(manifest))
    members: dict[str, np.ndarray] = {}
    networks: dict[str, int] = {}
    unknown: list[tuple[str, float, np.ndarray]] = []  # of models with that output
    for model in models:
        photos = PhotoFiles(manifest.paths, model.preprocess)
        precision = str(model.about.get("precision", "fp32"))
        runners = make_runners(model.networks, model.preprocess, device, precision)
        keep = None if first is None else first.of(model)
        told, name = UnknownOutput(len(rows), model.views), str(model.about.get("member", ""))

        def also(place: slice, view: int, outputs: list[Outputs], told: Any = told, keep: Any = keep) -> None:
            told(place, view, outputs)
            if keep is not None:
                keep(place, view, outputs)

        logits = forward_views(runners, photos, rows, model.preprocess, model.views, batch, also=also)
        logits = merge_views(logits, model.views)
        if told.probability is not None:
            unknown.append((name, model.weight * len(runners), told.probability))
        probs = softmax(logits.astype(np.float64), axis=1) * len(runners)
        members[name] = members.get(name, 0.0) + probs
        networks[name] = networks.get(name, 0) + len(runners)
    total = _as_one(models, {name: probs / networks[name] for name, probs in members.items()})
    labels = manifest.labels if manifest.classes == models[0].classes else _match(manifest, models[0].classes)
    shares = [weight / networks[name] for name, weight, _ in unknown]  # members count alike, whatever their networks
    mean = np.average([p for _, _, p in unknown], axis=0, weights=shares) if unknown else None
    numbers = models[0].numbers
    return Predictions.from_probs(
        manifest.image_id, total, models[0].classes, labels, unknown=mean, numbers=numbers
    )


def _as_one(models: Sequence[TrainedModel], members: dict[str, np.ndarray]) -> np.ndarray:
    """The members' probabilities (N, K) by name as one answer (N, K)."""
    combination = models[0].combination
    if combination is not None and len(models) > 1:
        missing = [name for name in combination.members if name not in members]
        if missing:
            raise WeightsError(
                f"the blend needs its member {missing[0]!r}", "give all models of the run, or those of one member"
            )
        return combination(np.stack([members[name] for name in combination.members]))
    weights = {str(model.about.get("member", "")): model.weight for model in models}
    total = sum(weights[name] * probs for name, probs in members.items())
    return np.asarray(total) / sum(weights.values())


def _match(manifest: Manifest, classes: tuple[str, ...]) -> np.ndarray:
    index = {name: k for k, name in enumerate(classes)}
    table = np.array([index.get(name, -1) for name in manifest.classes] + [-1])  # the last serves label -1
    return table[manifest.labels]


def predict(
    model: Path, photos: Path, out: Path | None = None, *, tta: int | None = None, device: str = "auto",
    batch: int = 32, workers: int = 2, columns: TableOptions = EVERYTHING_GUESSED,
) -> Predictions:  # fmt: skip
    """Predict the photographs of a folder, CSV or manifest with a run, a member or a model file.

    tta: use the first so many of each model's views; all when left out.
    out: .parquet or .csv of probabilities (with `<out>.classes.csv`); a name that ends in submission.csv gets Kaggle's
    `image_id,label`. Unreadable photographs are named in `<out>.quarantine.csv` and left out, but for a submission,
    where they get the class most common in training. Where `model` is a run folder that holds its calibration,
    `<out>.answers.csv` says which classes a photograph could be, and which photographs are not of the kind that the run
    knows. Photographs in TFRecords lie in a temporary folder meanwhile ($TMPDIR). See `scan` for `columns`. Raises
    SettingsError for an `out` or a `tta` that can't be.
    """
    if out is not None:
        check_output(Path(out))
    models = load_model(Path(model))
    if tta is not None:
        first_views(models, tta)
    with TemporaryDirectory(prefix="manihot-", ignore_cleanup_errors=True) as extract:
        manifest, quarantine = read_photos(
            Path(photos), columns, workers=workers, extract=Path(extract), tables=False
        )
        return _predict_with(models, Path(model), manifest, quarantine, out, choose_device(device), batch)


def _predict_with(
    models: list[TrainedModel], model: Path, manifest: Manifest, quarantine: pd.DataFrame, out: Path | None,
    device: torch.device, batch: int,
) -> Predictions:  # fmt: skip
    trust = Path(model) / "trust"
    asked = out is not None and (trust / "sets.json").is_file() and not Path(out).name.endswith(SUBMISSION)
    strangers = Strangers.load(trust) if asked and (trust / "unknown.json").is_file() else None
    first = FirstViews(strangers.member, len(manifest)) if strangers is not None and strangers.detectors else None
    say_who_answers(models)
    predictions = predict_photos(models, manifest, device, batch, first)
    if strangers is not None and first is not None:
        strangers = look_as_fitted(strangers, first, model, manifest, device, batch)
    if out is not None:
        also: dict[str, int] = {}
        if len(quarantine):
            also = answer_unread(quarantine, predictions, Path(out), models, model)
        sample = find_sample(model, manifest) if Path(out).name.endswith(SUBMISSION) else None
        save_predictions(predictions, Path(out), also, paths_of(manifest), sample)
        if asked:
            _save_answers(predictions, trust, beside(Path(out), "answers"), strangers, first)
    return predictions


def say_who_answers(models: Sequence[TrainedModel]) -> None:
    """Whose networks answer, where any was trained on everything."""
    folds: dict[str, list[int]] = {}
    for model in models:
        folds.setdefault(str(model.about.get("member", "")), []).extend(model.folds)
    if any(WHOLE in own for own in folds.values()):
        how = ["trained on everything" if WHOLE in own else f"the mean of {len(own)} folds" for own in folds.values()]
        say(f"Networks that answer: {', '.join(f'{name} ({words})' for name, words in zip(folds, how))}")


def look_as_fitted(
    strangers: Strangers, first: FirstViews, run: Path, manifest: Manifest, device: torch.device, batch: int = 32
) -> Strangers:
    """Where a network trained on everything answers, look once more with a fold's, whose embeddings strangers show in.

    What tells strangers was fitted on photographs that a fold's network had not seen; that other network has a space
    of its own, in which every photograph of the run is one that it was taught. Without a fold's network nothing tells
    strangers, and the result says why.
    """
    fold = min(strangers.detectors)
    if fold == SHARED or WHOLE not in first.by_fold:
        return strangers
    path = run / f"members/{strangers.member}/fold{fold}/best.safetensors"
    if not path.is_file():
        return replace(strangers, detectors={}, why=f"{path} is gone, and the network that answers knows them all")
    model = load_network(path)
    precision = str(model.about.get("precision", "fp32"))
    runner = TorchRunner(model.networks[0], model.preprocess, device, precision)
    photos, rows = PhotoFiles(manifest.paths, model.preprocess), np.arange(len(manifest))
    what, views = "Photographs of another kind", model.views[:1]
    seen = forward_views([runner], photos, rows, model.preprocess, views, batch, "embeddings", what)
    first.by_fold[fold] = seen[:, 0]
    return strangers


def _save_answers(
    predictions: Predictions, trust: Path, out: Path, strangers: Strangers | None, first: FirstViews | None
) -> None:
    from manihot.records.files import atomic_path
    from manihot.trust.files import apply_trust

    answers = apply_trust(predictions, trust)
    # each sign that a photograph is of another kind has its column here
    signs: dict[str, tuple[np.ndarray, float]] = {}
    if strangers is not None and first is not None and strangers.detectors and len(predictions):
        signs["strangeness"] = (strangers.strangeness(first.by_fold), 1.0)
    elif strangers is not None and strangers.why:
        say(f"Photographs of another kind are not told apart: {strangers.why}")
    limit = strangers.output_limit if strangers is not None else None
    if predictions.unknown is not None and limit is not None:
        signs["unknown_probability"] = (predictions.unknown, limit)
    if signs:
        answers = flag_unknown(answers, signs)
    if predictions.unknown is not None and limit is None:
        answers = answers.assign(unknown_probability=predictions.unknown)
    with atomic_path(out) as temporary:
        answers.to_csv(temporary, index=False)
    unsure = int((answers["answer"] == "ask an expert").sum())
    strange = int((answers["answer"] == NOT_OF_THIS_KIND).sum())
    sure, more = len(answers) - unsure - strange, f", {strange} show something else" if strange else ""
    say(f"{sure} photographs have one answer, {unsure} should be shown to an expert{more}: {out}")
