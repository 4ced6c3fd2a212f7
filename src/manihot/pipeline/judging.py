"""What a run says of its own predictions: calibration, other kinds of photographs, wrong labels, scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from manihot.audit.stages import audit_labels, audit_lookalikes
from manihot.ensemble.second_level import Combination
from manihot.infer.models import Engine, networks_by_fold, read_card
from manihot.infer.quality import fit_gate
from manihot.infer.reference import find_fitted, reference_photos, with_reference
from manihot.progress import say
from manihot.quick.audit_embeddings import embed_for_audit
from manihot.records.columns import ALWAYS_TRAIN
from manihot.records.files import digest_file, save_json
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.run_folder import Files, RunFolder
from manihot.settings import Recipe
from manihot.trust.out_of_distribution import (
    FALSE_REJECTION,
    OutOfDistribution,
    fit_out_of_distribution,
    limit_of_output,
)

ENOUGH_FOR_TRUST = 40  # held-out photographs, below which calibration would be noise


def trust_stage(folder: RunFolder, name: str, seed: int, coverage: float = 0.9) -> None:
    """Calibration and sets of answers for the run's predictions, into RUN/trust, where there are enough of them."""
    oof = folder.oof(name)
    if not oof.exists():
        return
    known = int((Predictions.load(oof).labels >= 0).sum())
    if known < ENOUGH_FOR_TRUST:
        say(f"No calibration: {known} photographs were held out, {ENOUGH_FOR_TRUST} are needed")
        return

    def work() -> Files:
        from manihot.trust.files import calibrate_files

        calibrate_files(oof, folder.trust.path, coverage=coverage, manifest=folder.folds, seed=seed)
        return [folder.trust.summary, folder.trust.calibrator, folder.trust.sets]

    inputs = [digest_file(oof), digest_file(folder.folds), seed, coverage]
    folder.stage("trust", inputs, work)


def unknown_stage(
    folder: RunFolder, name: str, seed: int, engine: Engine, false_rejection: float = FALSE_REJECTION
) -> None:
    """The out-of-distribution detector, into RUN/trust: fitted on held-out photographs of one of its members."""
    member = members_of(folder, name)[0]
    oof, best = (folder.oof(which) for which in (member, name))
    if not oof.exists() or not folder.trust.sets.is_file():
        return

    def work() -> Files:
        fitted, why = with_reference(find_fitted(folder.member(member).path), engine, seed)
        if why:
            found = OutOfDistribution(member, {}, false_rejection, 0, why)
        else:
            found = fit_out_of_distribution(member, fitted.oof, fitted.shared, false_rejection, seed=seed)
        found = replace(found, output_limit=limit_of_output(Predictions.load(best), false_rejection))
        found.save(folder.trust.path)
        if found.why:
            say(f"Out-of-distribution photographs are not detected: {found.why}")
        return [folder.trust.unknown, *(folder.trust.path / name for name in found.files)]

    networks = networks_by_fold(folder.member(member).path)
    digests = [digest_file(path) for path in (oof, best, *networks.values())]
    inputs = [member, digests, false_rejection, seed]
    folder.stage("unknown", inputs, work)


def quality_stage(folder: RunFolder, name: str) -> None:
    """The limits of the quality gate, into RUN/trust: how the photographs are that one of its members learned from."""
    member = members_of(folder, name)[0] if folder.oof(name).exists() else ""
    if not member or not folder.trust.sets.is_file():
        return

    def work() -> Files:
        fitted = find_fitted(folder.member(member).path)
        network = next(iter(fitted.networks.values()))
        photos, rows = reference_photos(fitted, network, fitted.oof.image_id)
        fit_gate(member, photos, rows, read_card(network).preprocess).save(folder.trust.path)
        return [folder.trust.quality]

    folder.stage("quality", [member, digest_file(folder.oof(member)), digest_file(folder.folds)], work)


def audit_stage(folder: RunFolder, manifest: Manifest, name: str, recipe: Recipe, smoke: bool = False) -> None:
    """The audit of labels by all available evidence, and of photographs that look alike by their features.

    Where the predictions contain no features, a frozen network computes them.
    """
    oof, embeddings, why = folder.oof(name), None, "the predictions hold no features"
    if not oof.exists() or not folder.audit.table("duplicates").exists():
        return
    if not recipe.audit.labels:
        audit_lookalikes(folder, manifest, name)
        return
    if smoke or not recipe.audit.embeddings:
        why = "a smoke run doesn't compute features" if smoke else "audit.embeddings is false"
    else:
        embeddings = embed_for_audit(folder, manifest, oof)
    audit_lookalikes(folder, manifest, name, embeddings)
    audit_labels(folder, manifest, name, members_of(folder, name), embeddings, why)


def members_of(folder: RunFolder, name: str) -> list[str]:
    """The members behind a run's predictions `name`: of `ensemble`, those that were blended."""
    return list(Combination.load(folder.blend.combination).networks) if name == "ensemble" else [name]


def score(folder: RunFolder, manifest: Manifest, names: Sequence[str], best: str, seed: int) -> dict[str, Any]:
    """Scores of every member, and of their blend where that is the `best`, into metrics.json; `best` by name."""
    groups = dict(zip(manifest.image_id, manifest.table["group"]))
    found: dict[str, Any] = {"best": best, "members": {}}
    for name in [*names, "ensemble"] if best == "ensemble" else names:
        entry: dict[str, Any] = {}
        for kind in ("oof", "test"):
            path = folder.predictions(name, kind)
            if path.exists():
                entry |= _evaluate(Predictions.load(path), groups, kind, seed)
        if name == "ensemble":
            found["ensemble"] = {key: value for key, value in entry.items() if key != "folds"}
        else:
            found["members"][name] = entry
    save_json(folder.metrics, found)
    return found


def _evaluate(predictions: Predictions, groups: dict[str, str], kind: str, seed: int) -> dict[str, Any]:
    from manihot import metrics

    known = predictions.take(predictions.labels >= 0)
    if not len(known):
        return {}
    group = np.array([groups.get(i, "") for i in known.image_id], dtype=object)
    out: dict[str, Any] = {
        kind: metrics.evaluate(
            known.labels, known.pred_probs, known.classes, groups=group if (group != "").any() else None, seed=seed
        )
    }
    folds = np.unique(known.fold)
    if kind == "oof" and (folds != ALWAYS_TRAIN).all():
        out["folds"] = {
            str(k): {
                "accuracy": float(metrics.accuracy(known.labels[known.fold == k], known.pred_probs[known.fold == k])),
                "n": int((known.fold == k).sum()),
            }
            for k in folds
        }
    return out
