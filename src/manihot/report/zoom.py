"""How near the photographs were taken, and whether the model is right as often from far as from near.

The measurement is the audit's (`audit.measurements.measure_zoom`): how large the structures of a photograph are. The
lecture shows close-ups beside photographs of whole plants and asks no more of it; here the accuracy stands beside.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from manihot.audit.tables import read_table
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.report.compare import load_groups
from manihot.report.material import Material
from manihot.report.parts import FEWEST, accuracy_on

ENDS = 4  # photographs of a class at either end
CLASSES = 12  # that are shown, the largest ones
PARTS = 5  # of the photographs by zoom, of equal numbers
PART_NAMES = ("farthest fifth", "second fifth", "middle fifth", "fourth fifth", "nearest fifth")


def zoom_section(material: Material) -> dict[str, Any] | None:
    """Photographs at both ends of each class, and the accuracy by zoom; None where nothing was measured."""
    path, manifest = material.places.audit.table("composition"), material.manifest
    if manifest is None or not path.is_file():
        return None
    table = material.attempt(lambda: read_table(path, "composition"))
    if table is None:
        return None
    zoom = pd.Series(table["zoom"].to_numpy(dtype=np.float64), index=table["image_id"])
    zoom = zoom[~zoom.index.duplicated()]
    made = material.predictions.get(material.split)
    ends = zoom_ends(manifest, zoom)
    if not ends:
        return None
    groups = None if made is None else load_groups(material.run, made.image_id)
    parts = [] if made is None else accuracy_by_zoom(made, zoom, groups)
    return {"classes": ends, "parts": parts, "apart": _apart(parts)}


def zoom_ends(manifest: Manifest, zoom: pd.Series) -> list[dict[str, Any]]:
    """Of each class with two measured photographs: name, n, median, ids of the `farthest` and the `nearest`.

    zoom: by image_id. Classes in their order; the largest where there are many.
    """
    values = zoom.reindex(manifest.image_id).to_numpy()
    known = np.isfinite(values) & (manifest.labels >= 0)
    largest = np.sort(np.argsort(-manifest.class_counts(), kind="stable")[:CLASSES])
    found = []
    for k in largest:
        rows = np.flatnonzero(known & (manifest.labels == k))
        if len(rows) < 2:
            continue
        rows = rows[np.argsort(values[rows], kind="stable")]
        each = min(ENDS, len(rows) // 2)
        found.append(
            {
                "name": manifest.classes[k],
                "n": len(rows),
                "median": float(np.median(values[rows])),
                "farthest": manifest.image_id[rows[:each]].tolist(),
                "nearest": manifest.image_id[rows[::-1][:each]].tolist(),
            }
        )
    return found


def accuracy_by_zoom(made: Predictions, zoom: pd.Series, groups: np.ndarray | None = None) -> list[dict[str, Any]]:
    """Accuracy in fifths of the labelled photographs by zoom, with bootstrap intervals; [] where there are too few.

    groups: of each prediction, drawn whole. Rows: name, n, zoom from `least` to `most`, value, low, high.
    """
    values = zoom.reindex(made.image_id).to_numpy()
    rows = np.flatnonzero(np.isfinite(values) & (made.labels >= 0))
    if len(rows) < PARTS * FEWEST:
        return []
    found = []
    for name, part in zip(PART_NAMES, np.array_split(rows[np.argsort(values[rows], kind="stable")], PARTS)):
        ends = {"least": float(values[part[0]]), "most": float(values[part[-1]])}
        found.append({"name": name, **ends, **accuracy_on(made, part, groups)})
    return found


def _apart(parts: list[dict[str, Any]]) -> str:
    """What the fifths say, in a sentence."""
    if not parts:
        return ""
    worst, best = (choose(parts, key=lambda part: part["value"]) for choose in (min, max))
    if worst["high"] < best["low"]:
        return (
            f"The model is right less often on the {worst['name']} than on the {best['name']}; "
            "it may lack such photographs, or that fifth may hold more of the hard classes."
        )
    return "The intervals of the best and of the worst fifth overlap: no clear difference."
