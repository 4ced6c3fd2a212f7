"""What a run folder holds for the report: whatever is absent or broken is named and does not stop it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from manihot.errors import ManihotError
from manihot.records.columns import ALWAYS_TRAIN
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.quarantine import load_quarantine
from manihot.records.run_places import RunPlaces
from manihot.records.summaries import read_run_record
from manihot.report.compare import load_scores, read_history, scores_so_far

T = TypeVar("T")


@dataclass
class Material:
    """What a run folder holds for the report; `missing` says what it lacks, and why."""

    run: Path
    record: dict[str, Any] = field(default_factory=dict)
    manifest: Manifest | None = None
    quarantine: pd.DataFrame | None = None
    members: dict[str, Any] = field(default_factory=dict)
    name: str = ""  # the member that the headline speaks of; "ensemble" for all
    scores: dict[str, Any] = field(default_factory=dict)  # split -> evaluate(...)
    predictions: dict[str, Predictions] = field(default_factory=dict)  # split -> of `name`
    # member -> fold -> epochs
    histories: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    done: bool = False
    missing: list[str] = field(default_factory=list)

    def attempt(self, read: Callable[[], T]) -> T | None:
        """The result, or None and a line in `missing`."""
        try:
            return read()
        except (ManihotError, OSError) as error:
            what = getattr(error, "what", str(error))
            self.missing.append(what.replace(str(self.run), "").lstrip("/\\"))
            return None

    @property
    def places(self) -> RunPlaces:
        """Where things lie in the run folder."""
        return RunPlaces(self.run)

    @property
    def split(self) -> str:
        """The predictions that the pages speak of: out-of-fold, or test where there are no others."""
        known = [split for split in ("oof", "test") if self.scores.get(split, {}).get("n")]
        return known[0] if known else "oof"


def gather(run: Path) -> Material:
    """Read a run folder, tolerating whatever is absent or broken."""
    material = Material(run)
    scores, material.done = _scores(material)
    material.members = scores.get("members", {})
    if RunPlaces(run).record_file.is_file():
        material.record = material.attempt(lambda: read_run_record(RunPlaces(run).record_file)) or {}
    else:
        material.missing.append("run.json: not found, so settings, versions and times are unknown")
    material.manifest = material.attempt(lambda: Manifest.load(RunPlaces(run).manifest))
    if material.manifest is not None and RunPlaces(run).folds.is_file():
        with_folds = material.attempt(lambda m=material.manifest: _with_folds(m, run))  # type: ignore[misc]
        material.manifest = with_folds or material.manifest
    material.quarantine = material.attempt(lambda: load_quarantine(RunPlaces(run).quarantine))
    material.name, material.scores = _headline_member(scores)
    for split in ("oof", "test"):
        names = [material.name] if material.name != "ensemble" else ["ensemble", *material.members]
        files = [RunPlaces(run).predictions(name, split) for name in names]
        present = [path for path in files if path.is_file()]
        if present or split == "oof":
            found = material.attempt(lambda p=present or files[:1]: _load_predictions(p))  # type: ignore[misc]
            if found is not None:
                material.predictions[split] = found
    for member in RunPlaces(run).members():
        folds = {fold.path.name: read_history(fold.history) for fold in member.folds().values()}
        folds = {fold: rows for fold, rows in folds.items() if rows}
        if folds:
            material.histories[member.name] = folds
    return material


def _scores(material: Material) -> tuple[dict[str, Any], bool]:
    """`compare.load_scores`; a metrics.json that can't be read is noted as missing."""
    if not RunPlaces(material.run).metrics.is_file():
        material.missing.append("metrics.json: not found; the run has not ended, so the figures cover what is finished")
        return scores_so_far(material.run), False
    return material.attempt(lambda: load_scores(material.run)) or (scores_so_far(material.run), False)


def _with_folds(manifest: Manifest, run: Path) -> Manifest:
    """The manifest with the folds that training used."""
    path = RunPlaces(run).folds
    folds = Manifest.load(path)
    fold = pd.Series(folds.fold, index=folds.image_id).reindex(manifest.image_id)
    return manifest.with_columns(fold=fold.fillna(ALWAYS_TRAIN).to_numpy(dtype="int64"))


def _headline_member(scores: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if "ensemble" in scores:
        return "ensemble", {s: scores["ensemble"][s] for s in ("oof", "test") if scores["ensemble"].get(s)}
    if scores.get("best") in scores.get("members", {}):
        part = scores["members"][scores["best"]]
        return scores["best"], {s: part[s] for s in ("oof", "test") if part.get(s)}
    best, name = -1.0, ""
    for member, part in scores.get("members", {}).items():
        metrics = (part.get("oof") or part.get("test") or {}).get("metrics", {})
        value = (metrics.get("accuracy") or {}).get("value")
        if not name or (value is not None and value > best):
            best, name = -1.0 if value is None else value, member
    part = scores.get("members", {}).get(name, {})
    return name, {s: part[s] for s in ("oof", "test") if part.get(s)}


def _load_predictions(paths: list[Path]) -> Predictions:
    """The ensemble's own predictions, a member's, or the mean of the members' probabilities."""
    first = Predictions.load(paths[0])
    if len(paths) == 1 or paths[0].name.startswith("ensemble."):
        return first
    others = [Predictions.load(path).align(first.image_id) for path in paths[1:]]
    mean = np.mean([made.pred_probs for made in [first, *others]], axis=0)
    return Predictions.from_probs(first.image_id, mean, first.classes, first.labels, first.fold)
