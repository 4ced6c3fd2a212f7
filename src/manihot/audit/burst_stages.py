"""Bursts in a run folder: found, offered or kept together, and what they do to the score. RUN/audit/bursts.*."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from manihot.audit.bursts import WITHIN, describe_bursts, find_bursts
from manihot.audit.duplicates import with_folds, with_groups
from manihot.audit.hashes import Thumbnails, make_thumbnails
from manihot.audit.stages import save_table
from manihot.audit.tables import read_table
from manihot.audit.trusted import load_features
from manihot.audit.what_if import paired_interval
from manihot.errors import SettingsError
from manihot.photos.times import read_times
from manihot.progress import say, warn
from manihot.records.files import digest_file, digest_value, save_json
from manihot.records.groups import check_groups, group_numbers
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.run_folder import Files, RunFolder
from manihot.records.summaries import read_burst_effect

REPEATS, FOLDS = 3, 5
STRENGTH = 0.01  # of the regression on standardised features; both ways of folding use the same
LEAST = 30  # judged photographs that have a mate, below which no score is compared
OFFERED = 0.1  # share of the photographs within seconds of another, from which a scan speaks of it
OPTION = "--group auto"


def group_bursts(folder: RunFolder, manifest: Manifest, keep: bool) -> Manifest:
    """Find bursts, RUN/audit/bursts.parquet and .csv, and say so; with `keep` no fold will split them.

    Needs the thumbnails that `group_duplicates` left.
    """
    columns = ["image_id", "path", "sha256", "label", "split"]
    about = digest_value(manifest.table[columns].to_numpy().tolist())

    def work() -> Files:
        found = find_bursts(manifest, Thumbnails.load(folder.audit.thumbnails), read_times(manifest.paths))
        save_table(found, folder.path, "bursts")
        return [folder.audit.table("bursts"), folder.audit.csv("bursts")]

    folder.stage("bursts", about, work)
    return _keep(manifest, read_table(folder.audit.table("bursts"), "bursts"), keep)


def _keep(manifest: Manifest, found: pd.DataFrame, keep: bool) -> Manifest:
    if not len(found):
        if keep:
            say(f"Bursts: none found; {OPTION} changes nothing")
        return manifest
    words = f"Bursts: {describe_bursts(found, len(manifest))} (audit/bursts.csv)"
    if not keep:
        torn = int(found.drop_duplicates("group")["label_conflict"].sum())
        conflict = f"; {torn} of them hold more than one label" if torn else ""
        say(f"{words}{conflict}. Folds that split them inflate the scores: {OPTION} keeps each in one fold")
        return manifest
    say(f"{words}; each stays in one fold")
    grouped = with_groups(manifest, found)
    if (warning := check_groups(grouped, OPTION)) is not None:
        warn(warning)
    return grouped


def scan_bursts(manifest: Manifest, workers: int = 2) -> Manifest:
    """The manifest with each burst as a group, for a scan without a run."""
    found = find_bursts(manifest, make_thumbnails(manifest, workers), read_times(manifest.paths))
    return _keep(manifest, found, True)


def offer_bursts(manifest: Manifest) -> None:
    """Say that photographs were taken within seconds of each other, where many were and nothing groups them."""
    if (manifest.table["group"] != "").any():
        return
    taken = read_times(manifest.paths)
    table = pd.DataFrame({"seconds": taken.seconds, "camera": taken.camera}).dropna(subset="seconds")
    table = table.sort_values(["camera", "seconds"], ignore_index=True)
    after = table.groupby("camera")["seconds"].diff() <= WITHIN[0]
    close = int((after | after.shift(-1, fill_value=False)).sum())
    if close >= OFFERED * len(manifest):
        say(
            f"{close} of {len(manifest)} photographs were taken within {WITHIN[0]:.0f} seconds of another: "
            f"{OPTION} finds shots of one scene and keeps them in one fold"
        )


def audit_bursts(folder: RunFolder, manifest: Manifest, name: str, seed: int = 0) -> None:
    """What bursts do to the out-of-fold score of the predictions `name`: RUN/audit/bursts.json, and in words.

    manifest: with the run's folds.
    """
    table, oof = folder.audit.table("bursts"), folder.oof(name)
    if not table.is_file() or not oof.is_file():
        return
    found = read_table(table, "bursts")
    if not len(found):
        folder.audit.bursts.unlink(missing_ok=True)
        return

    def work() -> Files:
        about = burst_effect(Predictions.load(oof), with_folds(found, manifest), manifest)
        if about["judged_with_mates"] >= LEAST:
            about |= _refit(folder, manifest, found, name, seed)
        about["sentence"] = _sentence(about)
        save_json(folder.audit.bursts, about)
        return [folder.audit.bursts]

    inputs = [digest_file(path) for path in (table, oof, folder.folds)]
    folder.stage("burst effect", [*inputs, seed], work)
    say(read_burst_effect(folder.audit.bursts)["sentence"])


def burst_effect(predictions: Predictions, bursts: pd.DataFrame, manifest: Manifest) -> dict[str, Any]:
    """How many judged photographs had a shot of their scene in training, and how often these and the others are right.

    bursts: of `find_bursts`, with the run's folds. manifest: with the run's folds.
    """
    known = predictions.labels >= 0
    right = predictions.logits.argmax(axis=1) == predictions.labels
    table = manifest.table.set_index("image_id")
    trained = (table["split"] != "test") & (table["label"] >= 0)
    own = bursts[bursts["image_id"].map(trained).astype(bool)]
    kinds = own.groupby("group")["fold"].transform("nunique")
    torn = pd.Index(own["image_id"][(kinds > 1).to_numpy()])
    with_mate = pd.Index(predictions.image_id).isin(torn) & known
    judged = pd.Index(predictions.image_id).isin(pd.Index(own["image_id"])) & known
    rest = known & ~with_mate
    return {
        "photographs": len(bursts),
        "bursts": int(bursts["group"].nunique()),
        "of": len(manifest),
        "judged": int(known.sum()),
        "judged_with_mates": int(judged.sum()),
        "mate_in_training": int(with_mate.sum()),
        "accuracy_with_mate": float(right[with_mate].mean()) if with_mate.any() else None,
        "accuracy_without": float(right[rest].mean()) if rest.any() else None,
    }


def _refit(folder: RunFolder, manifest: Manifest, bursts: pd.DataFrame, name: str, seed: int) -> dict[str, Any]:
    """Accuracy of a linear head on the run's features, with bursts split by chance and kept together; {} without."""
    try:
        predictions, features, _ = load_features(folder.path, name)
    except SettingsError:
        return {}
    known = predictions.labels >= 0
    rows = pd.Index(manifest.image_id).get_indexer(pd.Index(predictions.image_id[known]))
    labels, features = predictions.labels[known], features[known]
    counts = np.bincount(labels)
    if (counts[counts > 0] < FOLDS).any():
        return {}
    scanned = Manifest.load(folder.manifest).table.set_index("image_id")["group"]
    plain = manifest.with_columns(group=manifest.table["image_id"].map(scanned).fillna("").to_numpy(object))
    duplicates = folder.audit.table("duplicates")
    if duplicates.is_file():
        plain = with_groups(plain, read_table(duplicates, "duplicates"))
    groups = [one.table["group"].to_numpy()[rows] for one in (plain, with_groups(plain, bursts))]
    units = [group_numbers(group, len(rows)) for group in groups]
    apart, together = (compare_folds(features, labels, unit, seed) for unit in units)
    gap, low, high = paired_interval(together - apart, units[1], 0.95)
    return {"apart": float(apart.mean()), "together": float(together.mean()), "gap": gap, "low": low, "high": high}


def compare_folds(features: np.ndarray, labels: np.ndarray, units: np.ndarray, seed: int) -> np.ndarray:
    """How often each photograph is answered right, float (N,), by a linear head that learned from other folds.

    features: (N, D); units: group numbers (N,), never split; over REPEATS drawings of the folds.
    """
    right = np.zeros(len(labels))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class in y has only")
        for repeat in range(REPEATS):
            splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed + repeat)
            for inside, outside in splitter.split(features, labels, units):
                if len(np.unique(labels[inside])) < 2:
                    continue
                head = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=300, tol=1e-3))
                with threadpool_limits(1, "blas"):  # small products: two threads wait for each other
                    said = head.fit(features[inside], labels[inside]).predict(features[outside])
                right[outside] += said == labels[outside]
    return right / REPEATS


def _sentence(about: dict[str, Any]) -> str:
    said = f"Bursts: {about['photographs']} of {about['of']} photographs in {about['bursts']} bursts. "
    if about["mate_in_training"]:
        said += (
            f"{about['mate_in_training']} of {about['judged']} judged photographs had a shot of their scene in "
            f"training: {about['accuracy_with_mate']:.1%} of them are right"
        )
        said += f", {about['accuracy_without']:.1%} of the others. " if about["accuracy_without"] is not None else ". "
    else:
        said += "Each stays in one fold. "
    if "gap" in about:
        said += (
            f"A linear head on the run's features is right for {about['apart']:.1%} where folds split bursts, and for "
            f"{about['together']:.1%} where each stays in one fold ({100 * about['gap']:+.1f} points, 95 % interval "
            f"{100 * about['low']:+.1f} to {100 * about['high']:+.1f}). "
        )
        if about["high"] < 0:
            said += "Expect the lower on new scenes" + (f"; use {OPTION}." if about["mate_in_training"] else ".")
    return said.strip()
