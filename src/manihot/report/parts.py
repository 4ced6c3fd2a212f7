"""Accuracy on parts of the photographs, with intervals: of each source, or of any rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from manihot.metrics import bootstrap_intervals
from manihot.records.predictions import Predictions
from manihot.report.compare import load_groups
from manihot.report.material import Material

FEWEST = 10  # labelled photographs of a part, below which its accuracy says nothing
MOST = 30  # sources that are listed, the largest ones


def accuracy_on(made: Predictions, rows: np.ndarray, groups: np.ndarray | None) -> dict[str, Any]:
    """n, value, low and high of the accuracy on labelled rows; groups: of each prediction, resampled whole."""
    own = None if groups is None else groups[rows]
    value, low, high = bootstrap_intervals(made.labels[rows], made.pred_probs[rows], ["accuracy"], own)["accuracy"]
    return {"n": len(rows), "value": float(value), "low": float(low), "high": float(high)}


def accuracy_by_source(material: Material) -> list[dict[str, Any]]:
    """Rows name, n, value, low, high, the largest sources first; [] unless two have FEWEST labelled photographs."""
    made, manifest = material.predictions.get(material.split), material.manifest
    if made is None or manifest is None:
        return []
    source_of = dict(zip(manifest.image_id, manifest.table["source"]))
    source = np.array([source_of.get(one, "") for one in made.image_id], dtype=object)
    labelled = made.labels >= 0
    parts = [(name, np.flatnonzero(labelled & (source == name))) for name in dict.fromkeys(source) if name]
    parts = sorted((part for part in parts if len(part[1]) >= FEWEST), key=lambda part: -len(part[1]))[:MOST]
    if len(parts) < 2:
        return []
    groups = load_groups(material.run, made.image_id)
    return [{"name": name, **accuracy_on(made, rows, groups)} for name, rows in parts]
