"""What a run folder holds of an audit: its tables by name; whatever is absent or broken is named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from manihot.audit.tables import read_table
from manihot.errors import RunFolderError
from manihot.records.manifest import Manifest
from manihot.records.run_places import RunPlaces
from manihot.report.material import Material
from manihot.report.thumbnails import link


@dataclass(frozen=True)
class Table:
    """A table of the audit: what it holds, and what its absence means."""

    holds: str
    absent: str = ""  # '' where its absence is no lack


TABLES = {
    "label_issues": Table(
        "every checked label, worst first: given and suggested label, scores, nearest photographs",
        "so labels were not checked",
    ),
    "map": Table("places of photographs on the map of the network's features"),
    "duplicates": Table(
        "every photograph that has a duplicate, with its group, kind and distance", "so duplicates are not listed"
    ),
    "lookalikes": Table("photographs that are similar by the network's features, and whether the pixels confirm it"),
    "bursts": Table("shots of one scene: their bursts, seconds and numbers apart, and how alike they are"),
    "classes": Table("labelled photographs per class and source", "so the imbalance is not shown"),
    "composition": Table("every photograph's measurements: sharpness, brightness, zoom and the others"),
    "goes_with_errors": Table(
        "which measurements correlate with the model's errors",
        "so nothing is correlated with errors (this needs five wrong and five correct predictions)",
    ),
    "drift": Table(
        "each pair of sources: how well a classifier distinguishes them", "so the sources were not compared"
    ),
    "drift_features": Table("which measurements distinguish two sources"),
    "drift_examples": Table("photographs typical of a source, or similar to the other source"),
    "priors": Table("class shares in each source"),
    "what_if": Table("what each method of cleaning gained or lost"),
}
OF_SOURCES = ("drift", "drift_features", "drift_examples", "priors")


def gather_audit(run: Path) -> tuple[Material, dict[str, pd.DataFrame]]:
    """What a run folder holds of an audit: manifest and tables by name; `missing` names what can't be read."""
    if not any(RunPlaces(run).audit.table(name).is_file() for name in TABLES):
        raise RunFolderError(f"{run}: contains no audit", f"make one: manihot audit PHOTOS --out {run}")
    material = Material(run)
    alone = not RunPlaces(run).manifest.is_file()
    if alone:
        material.missing.append("manifest.parquet: not found, so no photograph is shown")
    else:
        material.manifest = material.attempt(lambda: Manifest.load(RunPlaces(run).manifest))
    manifest = material.manifest
    one_source = manifest is not None and manifest.table["source"].nunique() < 2
    tables = {}
    for name, table in TABLES.items():
        path = RunPlaces(run).audit.table(name)
        if not path.is_file():
            if table.absent and not alone and not (one_source and name in OF_SOURCES):
                material.missing.append(f"{RunPlaces(run).relative(path)}: not found, {table.absent}")
            continue
        found = material.attempt(lambda p=path, n=name: read_table(p, n))  # type: ignore[misc]
        if found is not None and (len(found) or name == "duplicates"):  # to have found none is a finding
            tables[name] = found
    return material, tables


def list_files(run: Path) -> list[dict[str, Any]]:
    """The tables in RUN/audit and what they hold."""
    audit = RunPlaces(run).audit
    names = sorted({path.stem for path in audit.path.glob("*") if path.suffix in (".parquet", ".csv")})
    known = [name for name in TABLES if name in names]
    return [
        {
            "name": name,
            "holds": TABLES[name].holds if name in TABLES else "",
            "links": [
                (kind, link(run, path))
                for kind, path in (("csv", audit.csv(name)), ("parquet", audit.table(name)))
                if path.is_file()
            ],
        }
        for name in [*known, *(name for name in names if name not in TABLES)]
    ]
