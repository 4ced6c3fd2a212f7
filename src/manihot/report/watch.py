"""`manihot watch`: have new photographs drifted from the training data, in input, predictions or confidence?

The questions and their tests are those of `manihot.trust.drift`; this page asks them of photographs, and shows
the ones that lie furthest away.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from manihot.errors import DataError
from manihot.infer.models import Engine
from manihot.infer.reference import (
    Fitted,
    describe_sizes,
    find_fitted,
    held_out_by,
    judge_new,
    nearest_known,
    with_reference,
)
from manihot.photos.sources import read_photos
from manihot.progress import say
from manihot.records.files import save_json, write_atomic
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.report import figures
from manihot.report.pages import render
from manihot.report.thumbnails import Thumbnails
from manihot.report.words import count_of
from manihot.settings.options import EVERYTHING_GUESSED, TableOptions
from manihot.trust.drift import DriftReport, watch_predictions
from manihot.trust.unknown import fit_unknown

MOST = 1000  # new photographs that are predicted
FURTHEST = 12  # pictures on the page
FEWEST_KNOWN = 100  # reference photographs below which nothing is said about unknown ones
QUESTIONS = {
    "input": (
        "Do the photographs look different?",
        "A classifier distinguished new from reference photographs by their embeddings with AUC {:.2f}; 0.5 means no "
        "difference.",
    ),
    "prediction mix": (
        "Have the class shares changed?",
        "{:.0%} of the predictions would have to change to restore the earlier shares.",
    ),
    "confidence": (
        "Has the confidence changed?",
        "The largest gap between the two cumulative confidence curves is {:.0%} of the photographs.",
    ),
    "unknown": (
        "Are there out-of-distribution photographs?",
        "{:.1%} of the photographs are out of distribution, beyond the share expected by chance.",
    ),
}
ADVICE = {
    "input": "See the most unusual photographs below. Is it another phone, season, distance or plant? Label a "
    "hundred of them to measure the accuracy, and train on them if it is too low.",
    "prediction mix": "Either the disease has spread or the model makes other errors here. Have an expert check fifty "
    "new photographs of the class that grew most.",
    "confidence": "Its probabilities no longer mean the same: recalibrate on labelled new photographs before you rely "
    "on a threshold.",
    "unknown": "Photographs that show something the model does not know should be removed or answered with “don't "
    "know”.",
}


def watch(
    model: Path,
    photos: Path | Sequence[Path],
    out: Path,
    *,
    engine: Engine | None = None,
    seed: int = 0,
    most: int = MOST,
    workers: int = 2,
    columns: TableOptions = EVERYTHING_GUESSED,
) -> DriftReport:
    """Compare new photographs with what a model was fitted on; writes OUT/WATCH.html, watch.json and new.parquet.

    model: a run folder, RUN/members/NAME or a network's file. photos, columns: see `manihot.scan`; a
    manifest.parquet is taken as it is. most: new photographs used, drawn with `seed` where there are more; once
    each, in the model's first view, as the reference is.
    `exit_code` of the result is 0 where nothing moved, 10 where something has, 11 where too few photographs are
    new to tell. Raises DataError where the model's run folder is not around it.
    """
    fitted, engine = find_fitted(Path(model)), engine or Engine()
    new, left_out = read_photos(photos, columns, workers=workers, extract=Path(out), tables=False)
    if not len(new):
        raise DataError(f"{photos}: no new photograph can be read", "name a folder with photographs")
    found = len(new)
    if found > most:
        say(f"{most} of {count_of(found)} are used")
        new = new.take(np.sort(np.random.default_rng(seed).permutation(found)[:most]))
    fitted, why = with_reference(fitted, engine, seed)
    made = judge_new(fitted, new, engine, seed)
    if fitted.oof.embeddings is None:
        made = _without_embeddings(made)
    detector = None
    if fitted.oof.embeddings is not None and len(fitted.oof) >= FEWEST_KNOWN:
        detector = fit_unknown("knn", fitted.oof, seed=seed)
    report = watch_predictions(fitted.oof, made, detector, seed)
    far = _furthest(fitted, made)
    known = int((held_out_by(fitted, new) >= 0).sum())
    record = {
        **report.to_json(),
        "model": str(model),
        "member": fitted.member,
        "reference_photographs": len(fitted.oof),
        "found": found,
        "unreadable": len(left_out),
        "already_known": known,
        "views": "all" if fitted.every_view else "first",
        "not_compared": {"input": why} if fitted.oof.embeddings is None else {},
        "labelled": _labelled(made),
        "photographs_then": describe_sizes(fitted.manifest, fitted.oof.image_id),
        "photographs_now": describe_sizes(new, new.image_id),
        "sources": _by_source(new, made, far),
        "furthest": far.head(FURTHEST).to_dict("records"),
    }
    out = Path(out)
    made.save(out / "new.parquet")
    save_json(out / "watch.json", record)
    write_atomic(out / "WATCH.html", render("watch", **_contents(record, report, fitted, made, new, out, left_out)))
    return report


def _without_embeddings(made: Predictions) -> Predictions:
    return Predictions(made.image_id, made.logits, made.classes, made.labels, made.fold)


def _furthest(fitted: Fitted, made: Predictions) -> pd.DataFrame:
    """Every new photograph, the furthest first; without embeddings the least sure first."""
    probs = made.pred_probs
    table = pd.DataFrame({"image_id": made.image_id, "row": np.arange(len(made))})
    table["answer"] = np.asarray(made.classes, dtype=object)[probs.argmax(axis=1)]
    table["probability"] = probs.max(axis=1).astype(float)
    if fitted.oof.embeddings is None or made.embeddings is None:
        return table.sort_values("probability", kind="stable").reset_index(drop=True)
    table = pd.concat([table, nearest_known(fitted, made)], axis=1)
    # distances of two networks can't be compared, their ranks can
    return table.sort_values(["stranger", "distance"], ascending=False, kind="stable").reset_index(drop=True)


def _labelled(made: Predictions) -> dict[str, Any] | None:
    """How often the answers are right where the new photographs have labels of known classes."""
    from manihot.trust.conformal import binomial_interval

    known = made.labels >= 0
    if not known.any():
        return None
    right = int((made.pred_probs[known].argmax(axis=1) == made.labels[known]).sum())
    low, high = binomial_interval(np.array(right), np.array(int(known.sum())))
    return {"n": int(known.sum()), "accuracy": right / int(known.sum()), "low": float(low), "high": float(high)}


def _by_source(new: Manifest, made: Predictions, far: pd.DataFrame) -> list[dict[str, Any]]:
    """For each source of new photographs how many, how sure, and how far they lie (median of `stranger`)."""
    rows = []
    top = pd.Series(made.pred_probs.max(axis=1), index=made.image_id)
    away = far.set_index("image_id")["stranger"] if "stranger" in far else None
    for name, part in new.table.groupby("source", sort=True):
        ids = part["image_id"]
        rows.append(
            {
                "source": str(name),
                "n": len(ids),
                "confidence": float(top.loc[ids].mean()),
                "stranger": None if away is None else float(away.loc[ids].median()),
            }
        )
    return rows


def _contents(
    record: dict[str, Any],
    report: DriftReport,
    fitted: Fitted,
    made: Predictions,
    new: Manifest,
    out: Path,
    left_out: pd.DataFrame,
) -> dict[str, Any]:
    """Everything the template shows, as plain values."""
    thumbs, then = Thumbnails(new, out), Thumbnails(fitted.manifest, out)
    thumbs.draw((row["image_id"] for row in record["furthest"]), "Drawing photographs")
    then.draw((row["nearest"] for row in record["furthest"] if "nearest" in row), "Drawing their nearest")
    questions = []
    for row in report.to_json()["table"]:
        title, says = QUESTIONS[row["what"]]
        advice = ADVICE[row["what"]] if row["moved"] else ""
        questions.append({**row, "title": title, "says": says.format(row["effect"]), "advice": advice})
    return {
        "title": f"Watch: {fitted.run.name}",
        "record": record,
        "questions": questions,
        "verdict": report.verdict,
        "sentence": report.sentence(),
        "shares": record["shares"],
        "figure": figures.confidence_histograms(fitted.oof.pred_probs.max(axis=1), made.pred_probs.max(axis=1)),
        "thumbs": thumbs,
        "then": then,
        "gone": [*thumbs.faults(), *then.faults()],
        "left_out": [f"{row.file}: {row.detail} ({row.remedy})" for row in left_out.head(60).itertuples()],
        "networks": len(fitted.networks),
        "one_look": "" if fitted.every_view else " (from one view)",
        "elsewhere": any(row["moved"] and row["what"] in ("input", "unknown") for row in questions),
    }
