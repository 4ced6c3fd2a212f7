"""From the audit's findings to a new manifest: what `manihot clean` does.

Written into the output folder: manifest.parquet (what stays, as decided, in groups that hold the lookalikes which
pixels confirmed; the original is never touched), decisions.csv (one row per photograph, with its reason; correct it by
hand and give it back with --decisions), dropped.csv, before_after.csv (counts a class), and clean.json (what was
written here, so that nothing else is overwritten).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from manihot.audit.decision_files import read_decisions
from manihot.audit.decisions import (
    ACTIONS,
    COPY_RULES,
    DOWN_WEIGHT,
    LABEL_RULES,
    apply_decisions,
    compare_manifests,
    decide,
    merge_decisions,
)
from manihot.audit.label_errors import label_issues
from manihot.audit.lookalikes import with_lookalikes
from manihot.audit.tables import read_table
from manihot.errors import DataError, RunFolderError, SettingsError
from manihot.progress import say
from manihot.records.csv_files import csv_text, save_csv
from manihot.records.files import digest_file, save_json, write_atomic
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.readers import read_record
from manihot.records.run_places import ENSEMBLE, MANIFEST, RunPlaces

DEFAULT_RULES = ("flagged=drop", "conflicts=soft", "duplicates=drop")
RECORD = "clean.json"
COUNTS = "before_after.csv"
CARRIED = "cleaned.csv"  # the counts in the folder of a run on the new manifest
WRITTEN = (MANIFEST, "decisions.csv", "dropped.csv", COUNTS)


class Cleaned(BaseModel):
    """clean.json, as far as it is read again."""

    written: list[str] = []


def clean(
    run: Path,
    out: Path,
    rules: Sequence[str] = (),
    *,
    decisions: Path | None = None,
    predictions: Path | None = None,
    threshold: float | None = None,
    n: int | None = None,
    classes: Sequence[str] | None = None,
    weight: float | None = None,
    update: bool = False,
) -> pd.DataFrame:
    """Write a cleaned manifest into `out`; returns the counts per class before and after.

    run: an audited run folder, or a manifest. rules: RULE=ACTION each, see `decide`; the first rule that matches a
    photograph wins. decisions: a file instead of rules. predictions: of photographs that their model
    never saw (a second source, say), in place of the audit's. threshold (0.9), n, classes, weight (0.5): see `decide`.
    update: write over a decisions.csv that was edited. Raises DataError, SettingsError, or RunFolderError for an `out`
    that holds something else; nothing is written then.
    """
    run, out = Path(run), Path(out)
    path = RunPlaces(run).manifest if run.is_dir() else run
    manifest = Manifest.load(path)
    asked = _read_rules(rules or DEFAULT_RULES)
    given = {"--rule": rules, "--predictions": predictions, "--n": n, "--only": classes}
    _check_options(decisions, asked, given, threshold, weight)
    known = _check_out(out, path, decisions, update)
    if decisions is not None:
        chosen = read_decisions(decisions, manifest)
    else:
        settings = {
            "n": n,
            "classes": classes or None,
            "threshold": 0.9 if threshold is None else threshold,
            "weight": DOWN_WEIGHT if weight is None else weight,
        }
        chosen = _by_rules(path, manifest, asked, predictions, settings)
    cleaned, dropped = apply_decisions(manifest, chosen)
    counts = compare_manifests(manifest, cleaned)
    lookalikes = _read(RunPlaces(path.parent).audit.table("lookalikes"), "lookalikes")
    if lookalikes is not None:
        cleaned = with_lookalikes(cleaned, lookalikes)
    text = csv_text(chosen)
    written = list(dict.fromkeys([*known[-1:], hashlib.sha256(text.encode("utf-8")).hexdigest()]))
    rules_said = None if decisions is not None else [f"{rule}={action}" for rule, action in asked]
    about = {"manifest": str(path), "rules": rules_said, "decisions": None if decisions is None else str(decisions)}
    save_json(out / RECORD, {**about, "written": written})  # before the files: a crash leaves none that is unknown
    write_atomic(out / "decisions.csv", text)
    for name, table in (("dropped.csv", dropped), (COUNTS, counts)):
        save_csv(table, out / name)
    cleaned.save(RunPlaces(out).manifest)
    return counts


def carry_counts(manifest: Path, run: Path) -> None:
    """Keep the counts of a cleaned manifest in the folder of the run on it, RUN/cleaned.csv, for its report."""
    for name in (COUNTS, CARRIED):
        if (manifest.parent / name).is_file() and _is_cleaned(manifest):
            write_atomic(run / CARRIED, (manifest.parent / name).read_bytes())
            return
    (run / CARRIED).unlink(missing_ok=True)


def _is_cleaned(manifest: Path) -> bool:
    return {"original_label", "decision"} <= set(Manifest.load(manifest).table)


def _read_rules(rules: Sequence[str]) -> list[tuple[str, str]]:
    asked = []
    for text in rules:
        rule, sign, action = text.partition("=")
        if not sign:
            actions = ", ".join(ACTIONS)
            raise SettingsError(f"--rule {text}: expected RULE=ACTION", f"for example {rule}=drop; actions: {actions}")
        asked.append((rule, action))
    return asked


def _check_options(
    decisions: Path | None,
    asked: list[tuple[str, str]],
    given: Mapping[str, object],
    threshold: float | None,
    weight: float | None,
) -> None:
    """SettingsError for an option that nothing would follow."""
    idle = [
        name
        for name, value in {**given, "--threshold": threshold, "--weight": weight}.items()
        if value is not None and value != () and value != []
    ]
    if decisions is not None and idle:
        raise SettingsError(
            f"a decisions file is complete: {', '.join(idle)} would be ignored", "leave one of them out"
        )
    if threshold is not None and all(rule != "confident" for rule, _ in asked):
        raise SettingsError(
            "--threshold applies only to the rule 'confident', which isn't used", "add --rule confident=drop"
        )
    if weight is not None and all(action != "down_weight" for _, action in asked):
        raise SettingsError(
            "--weight applies only to the action down_weight, which isn't used", "add --rule flagged=down_weight"
        )


def _check_out(out: Path, manifest: Path, decisions: Path | None, update: bool) -> list[str]:
    """Digests of the decisions.csv that `clean` wrote into `out` before; an error where others' work would be lost."""
    elsewhere = "choose another folder with --out"
    if RunPlaces(out).manifest.resolve() == manifest.resolve():
        raise DataError(f"{out}: contains the manifest to be cleaned", elsewhere)
    if RunPlaces(out).record_file.exists():
        raise RunFolderError(f"{out}: contains a run, whose manifest would be overwritten", elsewhere)
    what, remedy = "the record of a cleaning", "choose another folder with --out"
    record = read_record(out / RECORD, Cleaned, what, remedy) if (out / RECORD).is_file() else None
    there = [name for name in WRITTEN if (out / name).exists()]
    if record is not None:
        there = [name for name in there if name == MANIFEST and not _is_cleaned(out / name)]
    if there:
        raise RunFolderError(f"{out}: contains {', '.join(there)}, which `manihot clean` did not write", elsewhere)
    known = [] if record is None else record.written
    edited = out / "decisions.csv"
    follows = decisions is not None and Path(decisions).resolve() == edited.resolve()
    if edited.is_file() and not follows and not update and digest_file(edited) not in known:
        raise RunFolderError(
            f"{edited}: was changed since it was written, and would be overwritten",
            f"follow it with --decisions {edited}, overwrite it with --update, or choose another folder with --out",
        )
    return known


def _by_rules(
    path: Path, manifest: Manifest, asked: list[tuple[str, str]], predictions: Path | None, settings: dict[str, Any]
) -> pd.DataFrame:
    for one in settings["classes"] or ():
        if one not in manifest.classes:
            raise SettingsError(f"there is no class {one!r}", f"one of: {', '.join(manifest.classes)}")
    folder = RunPlaces(path.parent)
    duplicates = _read(folder.audit.table("duplicates"), "duplicates")
    if duplicates is not None:  # the audit's table has the classes' numbers
        names = np.array([*manifest.classes, ""], dtype=object)  # the last serves -1
        duplicates = duplicates.assign(label=names[duplicates["label"].to_numpy(dtype=np.int64)])
    if predictions is None:
        issues, found = _read(folder.audit.table("label_issues"), "label_issues"), _run_predictions(folder)
    else:
        found = _of_photographs(Predictions.load(Path(predictions)), manifest, Path(predictions))
        issues = label_issues(found, manifest, duplicates=duplicates, out_of_fold=True)
    _check_audited(path, [rule for rule, _ in asked], issues, duplicates)
    tables = [
        decide(issues, duplicates, rule=rule, action=action, predictions=found, **settings) for rule, action in asked
    ]
    merged = merge_decisions(*tables)
    known = np.isin(merged["image_id"].to_numpy(dtype=object), manifest.image_id)
    return merged[known].reset_index(drop=True)


def _of_photographs(predictions: Predictions, manifest: Manifest, path: Path) -> Predictions:
    """Without the photographs that an earlier cleaning left out of the manifest; said where there are any."""
    known = np.isin(predictions.image_id, manifest.image_id)
    if known.all() or not known.any() or "decision" not in manifest.table:
        return predictions
    say(f"{path}: {int((~known).sum())} of {len(known)} predicted photographs are not in the cleaned manifest")
    return predictions.take(known)


def _check_audited(path: Path, rules: list[str], issues: pd.DataFrame | None, duplicates: pd.DataFrame | None) -> None:
    """DataError where a rule needs what no audit left beside the manifest."""
    first = f"run it first: manihot run {path} --out RUN, then manihot clean RUN"
    if RunPlaces(path.parent).record_file.is_file():
        first = f"let the audit or run in {path.parent} come to its end"
    labels, copies = ([rule for rule in rules if rule in named] for named in (LABEL_RULES, COPY_RULES))
    if issues is None and labels:
        raise DataError(
            f"{path}: was not audited: {labels[0]!r} needs the table of label issues",
            f"{first}; or give --predictions of a model that never saw these photographs",
        )
    if duplicates is None and copies:
        raise DataError(
            f"{path}: was not audited: {copies[0]!r} needs the table of duplicates",
            f"{first}; or name rules that need none, such as --rule flagged=drop",
        )


def _read(path: Path, name: str) -> pd.DataFrame | None:
    return read_table(path, name) if path.is_file() else None


def _run_predictions(folder: RunPlaces) -> Predictions | None:
    for name in (ENSEMBLE, "main"):
        path = folder.oof(name)
        if path.is_file():
            return Predictions.load(path)
    others = folder.predicted()
    return Predictions.load(folder.oof(others[0])) if others else None
