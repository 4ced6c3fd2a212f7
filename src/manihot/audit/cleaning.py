"""From the audit's findings to a new manifest: what `manihot clean` does.

Written into the output folder: manifest.parquet (what stays, as decided; the original is never touched), decisions.csv
(one row a photograph, with its reason; correct it by hand and give it back with --decisions), dropped.csv, and
before_after.csv (counts a class).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from manihot.audit.decision_files import read_decisions, save_decisions
from manihot.audit.decisions import ACTIONS, apply_decisions, compare_manifests, decide, merge_decisions
from manihot.audit.label_errors import label_issues
from manihot.errors import DataError, SettingsError
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.runs import atomic_path

DEFAULT_RULES = ("flagged=drop", "conflicts=soft", "duplicates=drop")


def clean(
    run: Path, out: Path, rules: Sequence[str] = (), *, decisions: Path | None = None, predictions: Path | None = None,
    threshold: float = 0.9, n: int | None = None, classes: Sequence[str] | None = None, weight: float = 0.5,
) -> pd.DataFrame:  # fmt: skip
    """Write a cleaned manifest into `out`; gives the table of counts a class before and after.

    run: a run folder that was audited, or a manifest. rules: RULE=ACTION each, see `decide`; the first one's word holds
    where two speak of a photograph. decisions: a file instead of rules. predictions: of photographs that their model
    never saw (a second source, say), in place of the audit's. threshold, n, classes, weight: see `decide`. Raises
    DataError or SettingsError; nothing is written then.
    """
    run, out = Path(run), Path(out)
    folder = run if run.is_dir() else run.parent
    path = folder / "manifest.parquet" if run.is_dir() else run
    manifest = Manifest.load(path)
    if (out / "manifest.parquet").resolve() == path.resolve():
        raise DataError(f"{out}: holds the manifest that is cleaned", "choose another folder with --out")
    if decisions is not None and rules:
        raise SettingsError("rules and a file of decisions can't be followed at once", "leave one of them out")
    if decisions is not None:
        chosen = read_decisions(decisions, manifest)
    else:
        chosen = _by_rules(folder, manifest, rules or DEFAULT_RULES, predictions, threshold, n, classes, weight)
    cleaned, dropped = apply_decisions(manifest, chosen)
    counts = compare_manifests(manifest, cleaned)
    save_decisions(chosen, out / "decisions.csv")
    for name, table in (("dropped", dropped), ("before_after", counts)):
        with atomic_path(out / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n")
    cleaned.save(out / "manifest.parquet")
    return counts


def _by_rules(
    folder: Path, manifest: Manifest, rules: Sequence[str], predictions: Path | None, threshold: float, n: int | None,
    classes: Sequence[str] | None, weight: float,
) -> pd.DataFrame:  # fmt: skip
    for one in classes or ():
        if one not in manifest.classes:
            raise SettingsError(f"there is no class {one!r}", f"one of: {', '.join(manifest.classes)}")
    found = None if predictions is None else Predictions.load(Path(predictions))
    duplicates = _read(folder / "audit/duplicates.parquet")
    if duplicates is not None:  # the audit's table has the classes' numbers
        names = np.array([*manifest.classes, ""], dtype=object)  # the last serves -1
        duplicates = duplicates.assign(label=names[duplicates["label"].to_numpy(dtype=np.int64)])
    if found is None:
        issues = _read(folder / "audit/label_issues.parquet")
        found = _run_predictions(folder)
    else:
        issues = label_issues(found, manifest, duplicates=duplicates, out_of_fold=True)
    tables = []
    for text in rules:
        rule, sign, action = text.partition("=")
        if not sign:
            actions = ", ".join(ACTIONS)
            raise SettingsError(f"--rule {text}: expected RULE=ACTION", f"for example {rule}=drop; actions: {actions}")
        tables.append(
            decide(
                issues, duplicates, rule=rule, action=action, threshold=threshold, n=n, classes=classes, weight=weight,
                predictions=found,
            )
        )  # fmt: skip
    merged = merge_decisions(*tables)
    known = np.isin(merged["image_id"].to_numpy(dtype=object), manifest.image_id)
    return merged[known].reset_index(drop=True)


def _read(path: Path) -> pd.DataFrame | None:
    return pd.read_parquet(path) if path.is_file() else None


def _run_predictions(folder: Path) -> Predictions | None:
    for name in ("ensemble", "main"):
        path = folder / f"predictions/{name}.oof.parquet"
        if path.is_file():
            return Predictions.load(path)
    others = sorted((folder / "predictions").glob("*.oof.parquet"))
    return Predictions.load(others[0]) if others else None
