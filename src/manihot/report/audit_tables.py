"""What a run folder holds of an audit: its tables by name; whatever is absent or broken is named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from manihot.errors import DataError, RunFolderError
from manihot.records.manifest import Manifest
from manihot.report.material import Material
from manihot.report.pictures import link_from


@dataclass(frozen=True)
class Table:
    """A table of the audit: the columns that the page needs, what it holds, and what its absence means."""

    columns: tuple[str, ...]
    holds: str
    absent: str = ""  # '' where its absence is no lack


TABLES = {
    "label_issues": Table(
        ("image_id", "given_label", "suggested_label", "label_score", "is_label_issue"),
        "every judged label, the worst first: given and suggested label, scores, neighbours",
        "so nothing is said of wrong labels",
    ),
    "duplicates": Table(
        ("image_id", "group", "kind", "label", "source", "split", "label_conflict", "crosses_folds", "crosses_splits"),
        "every photograph that has a duplicate, with its group, kind and distance",
        "so nothing is said of duplicates",
    ),
    "lookalikes": Table(
        ("image_id", "group", "evidence", "distance", "label", "label_conflict", "crosses_folds"),
        "photographs alike by the network's features, and whether the pictures confirm it",
    ),
    "classes": Table(
        ("class", "photographs", "share", "times_rarest"),
        "labelled photographs a class and a source",
        "so nothing is said of the imbalance",
    ),
    "composition": Table((), "every photograph's measurements: sharpness, brightness, zoom and the others"),
    "goes_with_errors": Table(
        ("measurement", "auc", "low", "high", "p_holm", "wrong", "right"),
        "which measurements go with the model's errors",
        "so nothing is said of what goes with errors (it needs five wrong and five right answers)",
    ),
    "drift": Table(
        ("first", "second", "auc", "low", "high", "within_class", "differ"),
        "each pair of sources: how well a classifier tells them apart",
        "so the sources were not compared",
    ),
    "drift_features": Table(
        ("first", "second", "measurement", "auc", "low", "high", "median_first", "median_second"),
        "which measurements tell two sources apart",
    ),
    "drift_examples": Table(
        ("first", "second", "kind", "image_id"), "photographs typical of a source, or like those of the other"
    ),
    "priors": Table(("source", "class", "count", "share", "low", "high"), "shares of the classes in each source"),
    "what_if": Table(
        ("arm", "judged_on", "photographs", "changed", "accuracy", "gain", "low", "high", "verdict"),
        "what each way of cleaning gained or lost",
    ),
}
OF_SOURCES = ("drift", "drift_features", "drift_examples", "priors")


def gather_audit(run: Path) -> tuple[Material, dict[str, pd.DataFrame]]:
    """What a run folder holds of an audit: manifest and tables by name; `missing` names what can't be read."""
    if not any((run / f"audit/{name}.parquet").is_file() for name in TABLES):
        raise RunFolderError(f"{run}: holds no audit", f"make one: manihot audit PHOTOS --out {run}")
    material = Material(run)
    alone = not (run / "manifest.parquet").is_file()
    if alone:
        material.missing.append("manifest.parquet: not there, so no photograph is shown")
    else:
        material.manifest = material.attempt(lambda: Manifest.load(run / "manifest.parquet"))
    manifest = material.manifest
    one_source = manifest is not None and manifest.table["source"].nunique() < 2
    tables = {}
    for name, table in TABLES.items():
        path = run / f"audit/{name}.parquet"
        if not path.is_file():
            if table.absent and not alone and not (one_source and name in OF_SOURCES):
                material.missing.append(f"audit/{name}.parquet: not there, {table.absent}")
            continue
        found = material.attempt(lambda p=path, c=table.columns: _read_table(p, c))  # type: ignore[misc]
        if found is not None and (len(found) or name == "duplicates"):  # to have found none is a finding
            tables[name] = found
    return material, tables


def _read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: not readable as parquet ({error})") from error
    lacking = [name for name in columns if name not in table]
    if lacking and len(table):
        raise DataError(f"{path}: has no column {', '.join(lacking)}")
    return table


def list_files(run: Path) -> list[dict[str, Any]]:
    """The tables in RUN/audit and what they hold."""
    names = sorted({path.stem for kind in ("parquet", "csv") for path in run.glob(f"audit/*.{kind}")})
    known = [name for name in TABLES if name in names]
    return [
        {
            "name": name, "holds": TABLES[name].holds if name in TABLES else "",
            "links": [
                (kind, link_from(run, run / f"audit/{name}.{kind}"))
                for kind in ("csv", "parquet") if (run / f"audit/{name}.{kind}").is_file()
            ],
        }
        for name in [*known, *(name for name in names if name not in TABLES)]
    ]  # fmt: skip
