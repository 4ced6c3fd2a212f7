"""What is exported: one model of a finished run, and what its run knows of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import manihot
from manihot.errors import DataError, RunFolderError, SettingsError
from manihot.infer.models import TrainedModel, load_model, one_view
from manihot.infer.quality import QualityGate
from manihot.networks.card import KEY
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.run_folder import RunFolder
from manihot.settings import View
from manihot.trust.calibrate import Calibrator
from manihot.trust.conformal import ConformalSets


@dataclass(frozen=True)
class Source:
    """A finished model and what its run knows of it.

    run: the run folder. place: what the user named. calibrator: of kind 'none' where the run has none for this model.
    sets, quality: None where the run has none for it.
    """

    run: RunFolder
    place: Path
    model: TrainedModel
    manifest: Manifest
    calibrator: Calibrator
    sets: ConformalSets | None
    quality: QualityGate | None = None

    @property
    def member(self) -> Path:
        """The folder of the member that is exported."""
        return self.model.files[0].parents[1]

    def predictions(self, rows: np.ndarray, probs: np.ndarray) -> Predictions:
        """Probabilities (n, K) of some rows, as a record."""
        own = self.manifest
        return Predictions.from_probs(own.image_id[rows], probs, self.model.classes, own.labels[rows], own.fold[rows])

    @property
    def usable(self) -> np.ndarray:
        """Rows of photographs that are not of the test split."""
        return np.flatnonzero(self.manifest.table["split"].to_numpy() != "test")


def open_source(place: Path) -> Source:
    """What is exported: a run of one member, or RUN/members/NAME; SettingsError, WeightsError for anything else."""
    place = Path(place)
    run = RunFolder(place if RunFolder(place).member_root.is_dir() else place.absolute().parents[1])
    if not run.exists:
        raise RunFolderError(f"{place}: no run folder", "name a finished run, or RUN/members/NAME")
    models = load_model(place)
    if len(models) > 1:
        models = one_view(models)
    if len(models) > 1:
        names = ", ".join(dict.fromkeys(model.card.member for model in models))
        raise SettingsError(
            f"{place}: its answer is a blend of {names}, and one model can be exported",
            f"name one: {run.member(models[0].card.member).path}",
        )
    model = models[0]
    if model.views[0] != View(weight=model.views[0].weight):
        raise SettingsError(
            f"{place}: the first view of this model is {model.views[0].name}, and an exported model sees whole "
            "photographs as they are",
            "train with `{name: full}` as the first entry of `tta`",
        )
    calibrator, sets, quality = Calibrator("none", {}), None, None
    if run.path == place and run.trust.calibrator.is_file():
        calibrator = Calibrator.load(run.trust.calibrator)
        sets = ConformalSets.load(run.trust.sets) if run.trust.sets.is_file() else None
        quality = QualityGate.load_if(run.trust.path)
        if calibrator.classes != model.classes:
            raise DataError(f"{run.trust.calibrator}: fitted for other classes than the model's", "run it again")
    return Source(run, place, model, Manifest.load(run.folds), calibrator, sets, quality)


def metadata(source: Source, **more: Any) -> dict[str, str]:
    """What an exported file says of itself: a model card, so that `manihot predict FILE` reads it as well."""
    model = source.model
    about = {**model.card.about, "folds": model.folds, "exported": manihot.__version__, **more}
    about.pop("fold", None)
    return {KEY: replace(model.card, views=model.views[:1], about=about).to_text()}
