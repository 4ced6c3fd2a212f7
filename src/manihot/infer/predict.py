"""Predict new photographs with a run, a member or a network's file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import softmax

from manihot.errors import SettingsError, WeightsError
from manihot.infer.forward import PhotoFiles, UnknownOutput, forward_views, merge_views
from manihot.infer.models import Engine, TrainedModel, load_model, network_of, open_network, read_card
from manihot.infer.outputs import (
    answer_unread,
    beside,
    check_output,
    find_sample,
    first_views,
    paths_of,
    save_predictions,
)
from manihot.infer.pool import MeasuredFiles, check_groups, flag_poor, pool_groups
from manihot.infer.quality import QualityGate
from manihot.networks.runner import Outputs
from manihot.photos.sources import read_photos
from manihot.progress import say
from manihot.records.csv_files import save_csv
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.run_folder import WHOLE
from manihot.records.run_parts import SUBMISSION, TrustFolder
from manihot.records.run_places import RunPlaces, member_of, view_of
from manihot.settings.options import EVERYTHING_GUESSED, TableOptions
from manihot.trust.calibrate import Calibrator
from manihot.trust.conformal import ConformalSets
from manihot.trust.files import apply_trust
from manihot.trust.out_of_distribution import SHARED, OutOfDistribution, flag_unknown
from manihot.trust.words import NOT_OF_THIS_KIND, POOR


class FirstViews:
    """Keeps the embeddings (N, D) of the first view by each network of one member, by fold, while it predicts."""

    def __init__(self, member: str, n: int) -> None:
        self.member, self.n = member, n
        self.by_fold: dict[int, np.ndarray] = {}

    def of(self, model: TrainedModel) -> Callable[[slice, int, list[Outputs]], None] | None:
        """What `forward_views` is to call for this model; None for those of other members."""
        if model.card.member != self.member:
            return None

        def keep(place: slice, view: int, outputs: list[Outputs]) -> None:
            for fold, output in zip(model.folds, outputs, strict=True) if view == 0 else ():
                values = output["embeddings"]
                self.by_fold.setdefault(fold, np.empty((self.n, values.shape[1]), np.float32))[place] = values

        return keep


@dataclass(frozen=True)
class Gate:
    """A run's quality gate, and the photographs that it measured while they were predicted."""

    of: QualityGate
    files: list[MeasuredFiles] = field(default_factory=list)

    def faults(self, n: int) -> list[str]:
        """What is wrong with each of n photographs, '' where nothing is."""
        return self.files[0].faults() if self.files else [""] * n


def predict_photos(
    models: Sequence[TrainedModel],
    manifest: Manifest,
    engine: Engine | None = None,
    first: FirstViews | None = None,
    gate: Gate | None = None,
) -> Predictions:
    """Predict every photograph of `manifest` with all of `models`. `first` keeps embeddings, where it is given.

    gate: measures what the networks of its member see, where it is given.

    Probabilities are averaged over views and a member's networks; members become one answer as the run's blend says,
    a stack by its saved second level, and by their weights where there is no blend.
    """
    rows, engine = np.arange(len(manifest)), engine or Engine()
    members: dict[str, np.ndarray] = {}
    networks: dict[str, int] = {}
    unknown: list[tuple[str, float, np.ndarray]] = []  # of models with that output
    for model in models:
        photos = PhotoFiles(manifest.paths, model.preprocess)
        if gate is not None and not gate.files and model.card.member == gate.of.member:
            photos = MeasuredFiles(photos, model.preprocess, gate.of.limits)
            gate.files.append(photos)
        runners = model.open(engine.device, engine.opener)
        keep = None if first is None else first.of(model)
        told, name = UnknownOutput(len(rows), model.views), model.card.member

        def also(place: slice, view: int, outputs: list[Outputs], told: Any = told, keep: Any = keep) -> None:
            told(place, view, outputs)
            if keep is not None:
                keep(place, view, outputs)

        seen = forward_views(runners, photos, rows, model.preprocess, model.views, engine.batch, also=also)
        answers = {name: merge_views(seen, model.views)}
        if model.combination is not None and model.combination.by_view:
            answers = {view_of(name, number): seen[:, number] for number in range(seen.shape[1])}
        if told.probability is not None:
            unknown.append((name, model.weight * len(runners), told.probability))
        for one, logits in answers.items():
            members[one] = members.get(one, 0.0) + softmax(logits.astype(np.float64), axis=1) * len(runners)
        networks[name] = networks.get(name, 0) + len(runners)
    total = _as_one(models, {one: probs / networks[member_of(one)] for one, probs in members.items()})
    labels = manifest.labels_among(models[0].classes)
    shares = [weight / networks[name] for name, weight, _ in unknown]  # members count alike, whatever their networks
    mean = np.average([p for _, _, p in unknown], axis=0, weights=shares) if unknown else None
    numbers = models[0].card.numbers
    return Predictions.from_probs(manifest.image_id, total, models[0].classes, labels, unknown=mean, numbers=numbers)


def _as_one(models: Sequence[TrainedModel], members: dict[str, np.ndarray]) -> np.ndarray:
    """The members' probabilities (N, K) by name as one answer (N, K)."""
    combination = models[0].combination
    if combination is not None and (len(models) > 1 or combination.by_view):
        missing = [name for name in combination.members if name not in members]
        if missing:
            raise WeightsError(
                f"the blend needs its member {missing[0]!r}", "give all models of the run, or those of one member"
            )
        return combination(np.stack([members[name] for name in combination.members]))
    weights = {model.card.member: model.weight for model in models}
    total = sum(weights[name] * probs for name, probs in members.items())
    return np.asarray(total) / sum(weights.values())


def predict(
    model: Path,
    photos: Path,
    out: Path | None = None,
    *,
    tta: int | None = None,
    raw: bool = False,
    engine: Engine | None = None,
    workers: int = 2,
    columns: TableOptions = EVERYTHING_GUESSED,
    pool: bool = False,
) -> Predictions:
    """Predict the photographs of a folder, CSV or manifest with a run, a member or a network's file.

    tta: use the first so many of each model's views; all when left out. raw: the networks' own probabilities, also
    where `model` is a run folder with a calibrator; a submission names the likeliest class by these in any case.
    out: .parquet or .csv of probabilities (with `<out>.classes.csv`); a name that ends in submission.csv gets Kaggle's
    `image_id,label`. Unreadable photographs are named in `<out>.quarantine.csv` and left out, but for a submission,
    where they get the class most common in training. Where `model` is a run folder that holds its calibration,
    `<out>.answers.csv` says which classes a photograph could be, which photographs are not of the kind that the run
    knows, and which are too poor to be answered. pool: also one answer per plant, in `<out>.plants.csv`. Photographs in
    TFRecords lie in a temporary folder meanwhile ($TMPDIR). engine: what computes, onnxruntime
    on the CPU when left out. See `scan` for `columns`. Raises SettingsError for an `out` or a `tta` that can't be.
    """
    if out is not None:
        check_output(Path(out))
    models = load_model(Path(model))
    if tta is not None:
        models = first_views(models, tta)
    with TemporaryDirectory(prefix="manihot-", ignore_cleanup_errors=True) as extract:
        manifest, quarantine = read_photos(Path(photos), columns, workers=workers, extract=Path(extract), tables=False)
        plants = None
        if pool:
            plants = manifest.table["group"].to_numpy(dtype=object)
            check_groups(plants)
        return _predict_with(models, Path(model), manifest, quarantine, out, raw, engine or Engine(), plants)


def _predict_with(
    models: list[TrainedModel],
    model: Path,
    manifest: Manifest,
    quarantine: pd.DataFrame,
    out: Path | None,
    raw: bool,
    engine: Engine,
    plants: np.ndarray | None = None,
) -> Predictions:
    trust = RunPlaces(Path(model)).trust.path
    asked = out is not None and TrustFolder(trust).sets.is_file() and not Path(out).name.endswith(SUBMISSION)
    detector = OutOfDistribution.load(trust) if asked and TrustFolder(trust).unknown.is_file() else None
    first = FirstViews(detector.member, len(manifest)) if detector is not None and detector.detectors else None
    limits = QualityGate.load_if(trust) if asked else None
    gate = None if limits is None else Gate(limits)
    say_who_answers(models)
    predictions = predict_photos(models, manifest, engine, first, gate)
    if detector is not None and first is not None:
        detector = embed_as_fitted(detector, first, model, manifest, engine)
    if out is not None:
        also: dict[str, int] = {}
        if len(quarantine):
            also = answer_unread(quarantine, predictions, Path(out), models, model)
        submitted = Path(out).name.endswith(SUBMISSION)
        sample = find_sample(model, manifest) if submitted else None
        shown = predictions if raw or submitted else calibrated(predictions, trust)
        save_predictions(shown, Path(out), also, paths_of(manifest), sample)
        if asked:  # prediction sets were fitted on the networks' own probabilities
            faults = None if gate is None else gate.faults(len(manifest))
            answers = _save_answers(predictions, trust, beside(Path(out), "answers"), detector, first, faults)
            if plants is not None:
                _save_plants(predictions, trust, beside(Path(out), "plants"), answers, plants)
        elif plants is not None:
            raise SettingsError(
                f"--pool group: {model} has no calibration and prediction sets to answer with",
                "name a finished run folder or an exported one",
            )
        return shown
    return predictions if raw else calibrated(predictions, trust)


def calibrated(predictions: Predictions, trust: Path) -> Predictions:
    """The same with the probabilities of the calibrator in a run's folder `trust`, where there is one for them."""
    path = TrustFolder(trust).calibrator
    calibrator = Calibrator.load(path) if path.is_file() else None
    if calibrator is None or calibrator.kind == "none" or calibrator.classes != predictions.classes:
        return predictions
    say(f"Probabilities are calibrated by {calibrator.kind} (--raw leaves them as the networks gave them)")
    return Predictions.from_probs(
        predictions.image_id,
        calibrator(predictions.pred_probs),
        predictions.classes,
        predictions.labels,
        unknown=predictions.unknown,
        numbers=predictions.numbers,
    )


def say_who_answers(models: Sequence[TrainedModel]) -> None:
    """Whose networks answer, where any was trained on everything."""
    folds: dict[str, list[int]] = {}
    for model in models:
        folds.setdefault(model.card.member, []).extend(model.folds)
    if any(WHOLE in own for own in folds.values()):
        how = ["trained on everything" if WHOLE in own else f"the mean of {len(own)} folds" for own in folds.values()]
        say(f"Networks that answer: {', '.join(f'{name} ({words})' for name, words in zip(folds, how))}")


def embed_as_fitted(
    detector: OutOfDistribution, first: FirstViews, run: Path, manifest: Manifest, engine: Engine
) -> OutOfDistribution:
    """Embed the photographs with a fold's network too, where a network trained on all photographs predicts.

    The out-of-distribution detector was fitted on photographs that a fold's network had not seen. The network trained
    on all photographs has its own embedding space, in which every photograph of the run was a training photograph.
    Without a fold's network nothing is detected, and the result says why.
    """
    fold = min(detector.detectors)
    if fold == SHARED or WHOLE not in first.by_fold:
        return detector
    folder = RunPlaces(run).fold(detector.member, fold).path
    path = network_of(folder)
    if path is None:
        why = f"the network in {folder} is gone, and the network that answers knows them all"
        return replace(detector, detectors={}, why=why)
    card, runner = read_card(path), open_network(path, engine.device, engine.opener)
    photos, rows = PhotoFiles(manifest.paths, card.preprocess), np.arange(len(manifest))
    what, views = "Photographs of another kind", card.views[:1]
    seen = forward_views([runner], photos, rows, card.preprocess, views, engine.batch, "embeddings", what)
    first.by_fold[fold] = seen[:, 0]
    return detector


def _save_answers(
    predictions: Predictions,
    trust: Path,
    out: Path,
    detector: OutOfDistribution | None,
    first: FirstViews | None,
    faults: list[str] | None,
) -> pd.DataFrame:
    answers = apply_trust(predictions, trust)
    # each sign that a photograph is of another kind has its column here
    signs: dict[str, tuple[np.ndarray, float]] = {}
    if detector is not None and first is not None and detector.detectors and len(predictions):
        signs["strangeness"] = (detector.strangeness(first.by_fold), 1.0)
    elif detector is not None and detector.why:
        say(f"Out-of-distribution photographs are not detected: {detector.why}")
    limit = detector.output_limit if detector is not None else None
    if predictions.unknown is not None and limit is not None:
        signs["unknown_probability"] = (predictions.unknown, limit)
    if signs:
        answers = flag_unknown(answers, signs)
    if predictions.unknown is not None and limit is None:
        answers = answers.assign(unknown_probability=predictions.unknown)
    if faults is not None:
        answers = flag_poor(answers, faults)
    save_csv(answers, out)
    poor = int((answers["answer"] == POOR).sum())
    unsure = int((answers["answer"] == "ask an expert").sum())
    strange = int((answers["answer"] == NOT_OF_THIS_KIND).sum())
    sure, more = len(answers) - unsure - strange - poor, f", {strange} show something else" if strange else ""
    more += f", {poor} are too poor to be answered" if poor else ""
    say(f"{sure} photographs have a single answer, {unsure} should be shown to an expert{more}: {out}")
    return answers


def _save_plants(predictions: Predictions, trust: Path, out: Path, answers: pd.DataFrame, plants: np.ndarray) -> None:
    calibrator, sets = Calibrator.load(TrustFolder(trust).calibrator), ConformalSets.load(TrustFolder(trust).sets)
    probs = predictions.pred_probs
    table = pool_groups(answers, plants, calibrator(probs), probs, predictions.classes, sets)
    save_csv(table, out)
    say(f"{len(table)} plants: {out}")
