"""From one predictions file to everything about its trust on disk: what `manihot calibrate` does.

Written into the output folder: calibrator.json, sets.json (conformal, fitted on the uncalibrated
probabilities, so that each can be used without the other), calibration.csv (log loss and ECE of every kind),
coverage.csv, abstention.csv, thresholds.csv, reliability.png, trust.json, and calibrated.oof.parquet. All
figures but those of thresholds.csv are of photographs that were held out from the fit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from manihot.errors import DataError, SettingsError
from manihot.metrics import accuracy, ece, log_loss
from manihot.records.csv_files import save_csv
from manihot.records.files import save_json
from manihot.records.folds import make_folds
from manihot.records.groups import load_groups
from manihot.records.predictions import Predictions
from manihot.records.run_parts import TrustFolder
from manihot.settings import suggest
from manihot.trust.calibrate import CALIBRATORS, Calibrator, cross_calibrate, draw_reliability, fit_calibrator
from manihot.trust.conformal import ConformalSets, fit_sets, measure_abstention, measure_coverage, uniforms_from_ids
from manihot.trust.decide import fit_class_thresholds


def calibrate_files(
    oof: Path,
    out: Path,
    kind: str = "auto",
    coverage: float = 0.9,
    per_class: bool = True,
    sets: str = "lac",
    precision: float = 0.9,
    manifest: Path | None = None,
    n_folds: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Calibrate out-of-fold predictions and fit conformal sets; writes into `out`, returns what trust.json
    says.

    kind: a name of CALIBRATORS, or 'auto': the one with the lowest held-out log loss. coverage, per_class, sets: of
    `fit_sets`. precision: what an answer of each class must reach for its threshold. manifest: parquet whose groups
    keep duplicates together.
    """
    if kind not in (*CALIBRATORS, "auto"):
        raise SettingsError(f"there is no calibration {kind!r}", suggest(kind, ["auto", *CALIBRATORS]))
    out = Path(out)
    whole = Predictions.load(Path(oof))
    own = whole.take(whole.labels >= 0)
    if len(own) < 2 * n_folds:
        raise DataError(f"{oof}: {len(own)} labelled photographs are too few to calibrate on", "give out-of-fold ones")
    groups = load_groups(manifest, own.image_id)
    folds = make_folds(own.labels, groups, n_folds, seed)
    probs, y = own.pred_probs, own.labels
    tried = {name: cross_calibrate(probs, y, folds, name) for name in CALIBRATORS}
    rows = [
        {"kind": name, "log_loss": log_loss(y, p), "ece": ece(y, p), "accuracy": accuracy(y, p)}
        for name, p in tried.items()
    ]
    kinds = pd.DataFrame(rows)
    chosen = _choose(kinds) if kind == "auto" else kind
    calibrator = fit_calibrator(probs, y, chosen, own.classes)
    calibrator.save(TrustFolder(out).calibrator)
    fitted = fit_sets(probs, y, coverage, per_class, sets, seed=seed, classes=own.classes)
    fitted.save(TrustFolder(out).sets)
    held_out = predict_sets_held_out(own, folds, coverage, per_class, sets, seed)
    tables = {
        "calibration": kinds,
        "coverage": measure_coverage(held_out, y, own.classes),
        "abstention": measure_abstention(tried[chosen], y),
        "thresholds": fit_class_thresholds(tried[chosen], y, precision, own.classes),
    }
    for name, table in tables.items():
        save_csv(table, out / f"{name}.csv")
    draw_reliability(y, {"as predicted": probs, chosen: tried[chosen]}, TrustFolder(out).reliability)
    calibrated = Predictions.from_probs(
        whole.image_id, _calibrated(whole, calibrator, tried[chosen]), whole.classes, whole.labels, whole.fold
    )
    calibrated.save(TrustFolder(out).calibrated)
    record = {
        "predictions": str(oof),
        "photographs": len(own),
        "chosen": calibrator.to_json()["kind"],
        "ece": {"before": ece(y, probs), "after": ece(y, tried[chosen])},
        "sets": {"kind": sets, "coverage": coverage, "per_class": per_class},
        **{name: _plain_rows(table) for name, table in tables.items()},
    }
    save_json(TrustFolder(out).summary, record)
    return record


def _choose(kinds: pd.DataFrame) -> str:
    """The kind with the lowest held-out log loss, which unlike ECE also rewards separating the classes."""
    return str(kinds.loc[kinds["log_loss"].idxmin(), "kind"])


def _calibrated(whole: Predictions, calibrator: Calibrator, held_out: np.ndarray) -> np.ndarray:
    """Held-out probabilities where a label is known, else those of the final calibration."""
    out = calibrator(whole.pred_probs)
    out[whole.labels >= 0] = held_out
    return out


def predict_sets_held_out(
    own: Predictions, folds: np.ndarray, coverage: float, per_class: bool, kind: str, seed: int = 0
) -> np.ndarray:
    """Conformal sets bool (N, K), each photograph's by thresholds fitted on the other folds; folds int
    (N,).
    """
    probs, out = own.pred_probs, np.zeros(own.logits.shape, dtype=bool)
    uniforms = uniforms_from_ids(own.image_id)
    for fold in np.unique(folds):
        away = folds == fold
        fitted = fit_sets(probs[~away], own.labels[~away], coverage, per_class, kind, seed=seed)
        out[away] = fitted.predict_sets(probs[away], uniforms[away])
    return out


def apply_trust(predictions: Predictions, folder: Path) -> pd.DataFrame:
    """What to report about new photographs with what `calibrate_files` saved in `folder`.

    Columns: image_id, answer (class of the set that holds one, else 'ask an expert'), top (most probable
    class), probability (calibrated), could_be (the set's classes).
    """
    calibrator, sets = Calibrator.load(TrustFolder(folder).calibrator), ConformalSets.load(TrustFolder(folder).sets)
    if sets.classes != predictions.classes:
        raise DataError(
            f"{folder}: fitted on classes {', '.join(sets.classes)}, not {', '.join(predictions.classes)}",
            "fit it again",
        )
    probs = calibrator(predictions.pred_probs)
    held = sets.predict_sets(predictions.pred_probs, uniforms_from_ids(predictions.image_id))
    names = np.asarray(predictions.classes, dtype=object)
    return pd.DataFrame(
        {
            "image_id": predictions.image_id,
            "answer": np.where(held.sum(axis=1) == 1, names[held.argmax(axis=1)], "ask an expert"),
            "top": names[probs.argmax(axis=1)],
            "probability": probs.max(axis=1),
            "could_be": [", ".join(names[row]) for row in held],
        }
    )


def _plain_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = table.to_dict("records")
    return [
        {str(k): None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()} for row in rows
    ]
