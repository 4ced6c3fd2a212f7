"""The report: one HTML file on what was in the data, how far the classifier can be trusted, where it errs.

It opens offline, on a phone and on paper, and loads nothing. Whatever a run folder lacks is named in it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from manihot.metrics import ece, reliability
from manihot.records.files import write_atomic
from manihot.records.predictions import Predictions
from manihot.records.run_places import RunPlaces
from manihot.records.summaries import read_blended, read_burst_effect
from manihot.report import figures
from manihot.report.audit_page import make_audit_page
from manihot.report.choices import choices
from manihot.report.clean_page import cleaned_before
from manihot.report.compare import SCORES, stage_seconds
from manihot.report.explain import explain_mistakes
from manihot.report.material import Material, gather
from manihot.report.pages import render
from manihot.report.parts import accuracy_by_source
from manihot.report.thumbnails import Thumbnails, link, read_thumbnails
from manihot.report.words import blend_words, headline, judgement
from manihot.report.zoom import zoom_section

if TYPE_CHECKING:
    from manihot.infer.explain import OpenExplainer

SAMPLES = 48  # thumbnails of samples in all, and at most
SAMPLES_A_CLASS = 6
MISTAKES = 24
DOUBTFUL = 12
ANSWERED = (0.5, 0.8, 0.9, 1.0)  # shares of the photographs that the model is left to answer
CURVES = 6  # members whose learning curves are drawn
CONFUSIONS = 8
GRID_CLASSES = 12  # more are drawn as a picture
QUARANTINE_ROWS = 60
SIZES = 300
SCORE_NAMES = {
    "accuracy": ("Accuracy", "share of photographs classified correctly"),
    "balanced_accuracy": ("Balanced accuracy", "mean recall over the classes, so rare classes count equally"),
    "macro_f1": ("Macro-F1", "mean over the classes of F1, which balances recall and precision"),
    "roc_auc": ("ROC-AUC", "chance that a photograph of a class ranks above one of another; 0.5 is guessing"),
    "log_loss": ("Log loss", "penalty for wrong probabilities, in nats; lower is better"),
    "ece": ("Calibration error", "mean gap between confidence and accuracy; lower is better"),
}


def make_report(run: Path, other: OpenExplainer | None = None, audited: bool = False) -> Path:
    """Write RUN/report.html and return its path. other: explains networks that need torch.

    Reads what the run folder holds (see DESIGN) and names what it lacks; only a folder without any trace of a
    run is a RunFolderError. The same run folder gives the same bytes. audited: RUN/audit.html will be written next.
    """
    material = gather(Path(run))
    values = contents(material, other)
    page = material.places.report
    write_atomic(page, render("report", **values, audit=audited or material.places.audit_page.is_file()))
    return page


def make_pages(run: Path, other: OpenExplainer | None = None) -> list[Path]:
    """`make_report` and, where there is an audit, `make_audit_page`, each with a link to the other."""
    audited = RunPlaces(Path(run)).audit.summary.is_file()
    return [make_report(run, other, audited), *([make_audit_page(run)] if audited else [])]


def contents(material: Material, other: OpenExplainer | None = None) -> dict[str, Any]:
    """Everything the template shows, as plain values; keeps the thumbnails for a later report."""
    saved = material.places.thumbnails("report")
    kept = material.attempt(lambda: read_thumbnails(saved)) or {}
    thumbs = Thumbnails(material.manifest, material.run, kept)
    samples, mistakes, doubtful = _samples(material), _mistakes(material), _doubtful(material)
    zoom = zoom_section(material)
    ends = [i for row in (zoom or {"classes": []})["classes"] for i in (*row["farthest"], *row["nearest"])]
    wanted = [*ends, *(i for row in samples for i in row["ids"]), *(row["id"] for row in [*mistakes, *doubtful])]
    thumbs.draw(wanted, "Drawing photographs for the report")
    heat = explain_mistakes(material, mistakes, other, kept)
    thumbs.save(saved, heat["saved"])
    found = material.scores.get(material.split)
    return {
        "title": material.run.absolute().name,
        "material": material,
        "found": found if found and found["n"] else None,
        "headline": headline(found, material.split, material.predictions.get(material.split), material.done),
        "judgement": judgement(found, material.manifest, material.record.get("recipe") or {}) + _burst_effect(material),
        "test": material.scores.get("test") if material.split == "oof" else None,
        "score_names": SCORE_NAMES,
        "members": _members(material),
        "blend": _blend(material),
        "choices": choices(material),
        "data": _data(material),
        "samples": samples,
        "sources": accuracy_by_source(material),
        "zoom": zoom,
        "thumbs": thumbs,
        "gone": thumbs.faults(),
        "curves": _curves(material),
        "confusion": _confusion(found),
        "trust": _trust(material, found),
        "mistakes": mistakes,
        "heat": heat,
        "doubtful": doubtful,
        "about": _about(material),
        "cleaned": material.attempt(lambda: cleaned_before(material.manifest, material.run)),
    }


def _burst_effect(material: Material) -> list[str]:
    """What bursts do to the score, where they are known to."""
    path = material.places.audit.bursts
    about = material.attempt(lambda: read_burst_effect(path)) if path.is_file() else None
    return [about["sentence"]] if about else []


def _members(material: Material) -> list[dict[str, Any]]:
    rows = []
    for name, part in material.members.items():
        folds = part.get("folds", {})
        in_order = [folds[number]["accuracy"] for number in sorted(folds, key=int)]
        rows.append({"name": name, "folds": in_order, "scores": part.get("oof") or part.get("test") or {}})
    if material.name == "ensemble":
        rows.append({"name": "ensemble", "folds": [], "scores": material.scores.get(material.split, {})})
    return rows


def _blend(material: Material) -> dict[str, Any] | None:
    """How the members became one answer, from RUN/blend."""
    blend = material.places.blend
    path = blend.summary
    about = material.attempt(lambda: read_blended(path)) if path.is_file() else None
    if not about or not about.get("members"):
        return None
    groups = about.get("groups") or {}
    inside = {name: f"{name} ({', '.join(group['members'])})" for name, group in groups.items()}
    weights = [(inside.get(name, name), weight) for name, weight in (about.get("weights") or {}).items()]
    return {
        "words": blend_words(about, list(material.members)),
        "weights": weights if len(about["members"]) > 1 else [],
        "nested": about.get("nested") or [],
        "picture": link(material.run, blend.diversity) if blend.diversity.is_file() else "",
    }


def _data(material: Material) -> dict[str, Any] | None:
    if material.manifest is None:
        return None
    table, classes = material.manifest.table, material.manifest.classes
    labelled = table[table["label"] >= 0]
    counts = material.manifest.class_counts()
    by_source = pd.crosstab(labelled["source"], labelled["label"])
    by_source = by_source.reindex(table["source"].unique(), columns=range(len(classes)), fill_value=0)
    known = table[(table["height"] > 0) & (table["width"] > 0)]
    sizes = known.groupby(["height", "width"]).size().sort_values(ascending=False)
    left_out = pd.DataFrame({"fault": []}) if material.quarantine is None else material.quarantine
    return {
        "n": len(table),
        "unlabelled": int((table["label"] < 0).sum()),
        "classes": [{"name": name, "n": int(n), "share": n / max(1, counts.sum())} for name, n in zip(classes, counts)],
        "largest": max(1, int(counts.max())) if len(counts) else 1,
        "sources": [
            {"name": name, "n": int(n), "classes": by_source.loc[name].tolist()}
            for name, n in table["source"].value_counts().items()
        ],
        "splits": [(name, int(n)) for name, n in table["split"].value_counts().items()],
        "folds": int(table.loc[table["fold"] >= 0, "fold"].nunique()),
        "groups": int(table.loc[table["group"] != "", "group"].nunique()),
        "bytes": int(table["bytes"].sum()),
        "size_kinds": len(sizes),
        "commonest": [(h, w, int(n)) for (h, w), n in sizes.head(3).items()],
        "size_figure": figures.size_scatter(np.array(sizes.index[:SIZES].tolist()), sizes.to_numpy()[:SIZES])
        if len(sizes) > 1
        else None,
        "faults": list(left_out["fault"].value_counts().items()),
        "quarantine": left_out.head(QUARANTINE_ROWS).to_dict("records"),
        "quarantined": len(left_out),
    }


def _samples(material: Material) -> list[dict[str, Any]]:
    """Photographs of each class, drawn with a fixed seed; of the largest classes where these are many."""
    if material.manifest is None:
        return []
    manifest, rng = material.manifest, np.random.default_rng(0)
    shown = np.sort(np.argsort(-manifest.class_counts(), kind="stable")[:SAMPLES])
    each = max(1, min(SAMPLES_A_CLASS, SAMPLES // max(1, len(shown))))
    rows = []
    for k in shown:
        ids = manifest.image_id[manifest.labels == k]
        picked = rng.permutation(len(ids))[:each]
        if len(ids):
            rows.append({"name": manifest.classes[k], "n": len(ids), "ids": ids[picked].tolist()})
    return rows


def _cards(made: Predictions, rows: Iterable[int]) -> list[dict[str, Any]]:
    probs = made.pred_probs
    cards = []
    for row in rows:
        first, second = np.argsort(-probs[row], kind="stable")[[0, min(1, probs.shape[1] - 1)]]
        label = int(made.labels[row])
        cards.append(
            {
                "id": made.image_id[row],
                "given": made.classes[label] if label >= 0 else None,
                "predicted": made.classes[first],
                "probability": float(probs[row, first]),
                "second": made.classes[second],
                "second_probability": float(probs[row, second]),
                "given_probability": float(probs[row, label]) if label >= 0 else None,
            }
        )
    return cards


def _mistakes(material: Material) -> list[dict[str, Any]]:
    made = material.predictions.get(material.split)
    if made is None:
        return []
    probs = made.pred_probs
    wrong = np.flatnonzero((made.labels >= 0) & (probs.argmax(1) != made.labels))
    surest = wrong[np.argsort(-probs[wrong].max(1), kind="stable")]
    return _cards(made, surest[:MISTAKES])


def _doubtful(material: Material) -> list[dict[str, Any]]:
    made = material.predictions.get(material.split)
    if made is None or len(made.classes) < 2:
        return []
    top = np.sort(made.pred_probs, axis=1)
    return _cards(made, np.argsort(top[:, -1] - top[:, -2], kind="stable")[:DOUBTFUL])


def _curves(material: Material) -> list[dict[str, Any]]:
    shown = list(material.histories.items())[:CURVES]
    draw = figures.learning_curves
    return [
        {"member": name, "figures": [found for what in figures.CURVES if (found := draw(folds, what, name))]}
        for name, folds in shown
    ]


def _confusion(found: dict[str, Any] | None) -> dict[str, Any] | None:
    if not found or not found["n"]:
        return None
    counts = np.array(found["confusion"])
    support = counts.sum(1)
    shares = np.divide(counts, support[:, None], out=np.zeros(counts.shape), where=support[:, None] > 0)
    off = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    order = np.argsort(-off, axis=None, kind="stable")[:CONFUSIONS]
    names = found["classes"]
    pairs = [(cell // len(counts), cell % len(counts)) for cell in order if off.flat[cell]]
    return {
        "classes": found["classes"],
        "counts": counts.tolist(),
        "shares": shares.tolist(),
        "support": support.tolist(),
        "picture": figures.heatmap(shares) if len(counts) > GRID_CLASSES else None,
        "pairs": [
            {"given": names[i], "taken": names[j], "n": int(counts[i, j]), "of": int(support[i])} for i, j in pairs
        ],
    }


def _trust(material: Material, found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Calibration, and what the model reaches when it may leave the least sure photographs to a person."""
    if not found or not found["n"]:
        return None
    curves = {f"as predicted (ECE {found['metrics']['ece']['value']:.3f})": found["reliability"]}
    made = _calibrated(material)
    if made is not None:
        curves[f"calibrated (ECE {ece(made.labels, made.pred_probs):.3f})"] = reliability(made.labels, made.pred_probs)
    trust: dict[str, Any] = {"diagram": figures.reliability_diagram(curves), "skip": None, "answered": []}
    made = material.predictions.get(material.split)
    if made is not None and (made.labels >= 0).sum() >= 20:
        probs = made.pred_probs[made.labels >= 0]
        right = probs.argmax(1) == made.labels[made.labels >= 0]
        surest = np.argsort(-probs.max(1), kind="stable")
        share = np.cumsum(right[surest]) / np.arange(1, len(right) + 1)
        kept = np.arange(1, len(right) + 1) / len(right)
        rows = np.unique(np.linspace(max(9, len(right) // 20), len(right) - 1, 120).astype(int))
        trust["skip"] = figures.skip_curve(kept[rows], share[rows])
        trust["answered"] = [(k, float(share[round(k * len(right)) - 1])) for k in ANSWERED]
    return trust


def _calibrated(material: Material) -> Predictions | None:
    """The labelled held-out predictions after calibration, each by a calibration fitted on other folds."""
    file = material.places.trust.calibrated
    made = material.attempt(lambda: Predictions.load(file)) if material.split == "oof" and file.is_file() else None
    return made.take(made.labels >= 0) if made is not None and (made.labels >= 0).any() else None


def _about(material: Material) -> dict[str, Any]:
    record = material.record
    recipe = record.get("recipe") or {}
    stages = [
        {"name": name, "seconds": entry.get("seconds"), "status": entry.get("status", "")}
        for name, entry in record.get("stages", {}).items()
    ]
    command = record.get("command")
    if isinstance(command, list):
        command = shlex.join(map(str, command))
    if not command and material.manifest is not None and record.get("recipe_name"):
        photos = record.get("photos") or [material.manifest.root]
        parts = ["manihot", "run", *photos, "--recipe", record["recipe_name"], "--out", material.run]
        command = shlex.join(map(str, parts))
    versions = record.get("versions") or {}
    device = record.get("device") or record.get("system") or ""
    if isinstance(device, dict):
        device = ", ".join(f"{key} {value}" for key, value in _flat(device))
    return {
        "recipe_name": record.get("recipe_name") or recipe.get("name") or "",
        "method": recipe.get("method", ""),
        "settings": list(_flat(recipe)),
        "versions": sorted(versions.items()) if isinstance(versions, dict) else [],
        "device": device,
        "stages": stages,
        "seconds": stage_seconds(record),
        "longest": max([s["seconds"] or 0 for s in stages], default=0) or 1,
        "command": command or "",
    }


def _flat(value: Any, key: str = "") -> Iterable[tuple[str, str]]:
    """Dotted keys and readable values of nested settings."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{key}.{index}")
    elif key:
        empty = value is None or value == {} or value == [] or value == ""
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        yield key, "–" if empty else text


assert set(SCORE_NAMES) == set(SCORES)
