"""`manihot predict` with an exported folder: the same files as with a run."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from manihot.errors import DataError
from manihot.export.bundle import Answer, Bundle
from manihot.infer.models import load_model
from manihot.infer.outputs import answer_unread, beside, check_output, paths_of, save_predictions
from manihot.infer.pool import check_groups, pool_groups
from manihot.photos.faults import PhotoFault
from manihot.photos.sources import read_photos
from manihot.progress import say, track
from manihot.records.csv_files import save_csv
from manihot.records.files import write_atomic
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.run_parts import SUBMISSION
from manihot.settings.options import EVERYTHING_GUESSED, TableOptions
from manihot.trust.conformal import ConformalSets


def predict_exported(
    folder: Path,
    photos: Path,
    out: Path,
    *,
    raw: bool = False,
    pool: bool = False,
    batch: int = 32,
    workers: int = 2,
    device: str = "cpu",
    columns: TableOptions = EVERYTHING_GUESSED,
) -> Predictions:
    """Predict photographs with what `manihot export` wrote.

    Writes `out` and, beside it, `<out>.answers.csv`, the answers of `manihot serve` in `<out>.answers.jsonl`, the
    unreadable photographs in `<out>.quarantine.csv`, and with `pool` one answer a plant in `<out>.plants.csv`. raw:
    probabilities before calibration in `out`.
    """
    check_output(out)
    bundle = Bundle.load(folder, device=device)
    with TemporaryDirectory(prefix="manihot-", ignore_cleanup_errors=True) as extract:
        manifest, quarantine = read_photos(photos, columns, workers=workers, extract=Path(extract), tables=False)
        groups = manifest.table["group"].to_numpy(dtype=object)
        if pool:
            check_groups(groups)
        answers = _answers(bundle, manifest, batch)
        also: dict[str, int] = {}
        probs = _stack([one.raw if raw else one.probabilities for one in answers], len(bundle.classes))
        found = Predictions.from_probs(
            manifest.image_id, probs, bundle.classes, manifest.labels_among(bundle.classes), numbers=bundle.numbers
        )
        if len(quarantine):
            also = answer_unread(quarantine, found, out, load_model(bundle.runner.path), folder)
        save_predictions(found, out, also, paths_of(manifest))
    if out.name.endswith(SUBMISSION):
        return found
    table = _table(manifest.image_id, answers, bundle.classes)
    save_csv(table, beside(out, "answers"))
    write_atomic(beside(out, "answers", "jsonl"), _lines(manifest.image_id, answers, bundle.classes))
    if pool:
        sets = None if bundle.about.sets is None else ConformalSets.from_json(bundle.about.sets)
        calibrated, before = (
            _stack([one.probabilities for one in answers], len(bundle.classes)),
            _stack([one.raw for one in answers], len(bundle.classes)),
        )
        plants = pool_groups(table, groups, calibrated, before, bundle.classes, sets)
        save_csv(plants, beside(out, "plants"))
        say(f"{len(plants)} plants: {beside(out, 'plants')}")
    return found


def _answers(bundle: Bundle, manifest: Manifest, batch: int) -> list[Answer]:
    found: list[Answer] = []
    for at in track(range(0, len(manifest), batch), "Predicting"):
        pixels = []
        for path in manifest.paths[at : at + batch]:
            try:
                pixels.append(bundle.prepare(path))
            except PhotoFault as fault:
                raise DataError(f"{path}: {fault.kind}: {fault.detail}", fault.remedy) from fault
        found += bundle.answer(np.stack(pixels))
    return found


def _lines(image_id: np.ndarray, answers: list[Answer], classes: tuple[str, ...]) -> str:
    """A line of JSON per photograph."""
    rows = ({"image_id": str(i), "classes": classes, **one.to_json()} for i, one in zip(image_id, answers, strict=True))
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def _stack(rows: list[np.ndarray], classes: int) -> np.ndarray:
    return np.stack(rows) if rows else np.zeros((0, classes))


def _table(image_id: np.ndarray, answers: list[Answer], classes: tuple[str, ...]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": image_id,
            "answer": [one.answer for one in answers],
            "top": [classes[int(one.probabilities.argmax())] for one in answers],
            "probability": [float(one.probabilities.max()) for one in answers],
            "could_be": [", ".join(one.held or ()) for one in answers],
            "strangeness": [one.strangeness for one in answers],
            "quality": [", ".join(one.faults) for one in answers],
        }
    )
