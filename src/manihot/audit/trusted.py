"""What `--what-if` needs: features to learn from under other labels, and which labels are known to be right.

Both are checked before anything is trained.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from manihot.audit.evidence import load_embeddings
from manihot.errors import DataError, SettingsError
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.run_places import RunPlaces
from manihot.settings import Recipe

WORDS = {"true": True, "yes": True, "1": True, "1.0": True, "false": False, "no": False, "0": False, "0.0": False}


def read_trusted(manifest: Manifest, column: str) -> np.ndarray:
    """Which photographs the manifest's column says to be labelled right, bool (N,); DataError for any other word."""
    if column not in manifest.table:
        raise DataError(f"the manifest has no column {column!r}", f"columns: {', '.join(manifest.table.columns)}")
    cells = manifest.table[column]
    said = cells.map(lambda cell: None if pd.isna(cell) else WORDS.get(str(cell).strip().lower()))
    unclear = said.isna().to_numpy()
    if unclear.any():
        row = int(np.flatnonzero(unclear)[0])
        cell = "nothing" if pd.isna(cells.iloc[row]) else repr(cells.iloc[row])
        raise DataError(
            f"column {column!r} says {cell} of photograph {manifest.image_id[row]!r} (unclear are {int(unclear.sum())} "
            "in all), not whether its label is right",
            "true or false, yes or no, 1 or 0 for every photograph",
        )
    found: np.ndarray = said.to_numpy(dtype=bool)
    return found


def check_features(run: Path, recipe: Recipe) -> None:
    """SettingsError where a run by this recipe will leave nothing that other labels could be learned on."""
    if recipe.folds.kind == "none":
        raise SettingsError(
            "--what-if judges on held-out photographs, and folds.kind=none holds none out", "leave folds.kind as it is"
        )
    if any(member.method == "features" for member in recipe.member_recipes().values()):
        return
    if not (recipe.audit.labels and recipe.audit.embeddings) and not RunPlaces(run).audit.embeddings.is_file():
        raise SettingsError(
            f"--what-if needs features of the photographs, and a run by {recipe.name!r} keeps none",
            "leave audit.labels and audit.embeddings on, or use --recipe quick",
        )


def load_features(run: Path, name: str) -> tuple[Predictions, np.ndarray, Path]:
    """Out-of-fold predictions `name` of a run, features (N, D) of their photographs, and the file that holds these.

    The predictions' own, those that the audit made, or another member's. Raises SettingsError where there are none.
    """
    path = RunPlaces(run).oof(name)
    predictions = Predictions.load(path)
    if predictions.embeddings is not None:
        return predictions, predictions.embeddings, path
    kept = RunPlaces(run).audit.embeddings
    if kept.is_file():
        return predictions, load_embeddings(kept, predictions.image_id), kept
    for other in map(RunPlaces(run).oof, RunPlaces(run).predicted()):
        found = Predictions.load(other)
        if found.embeddings is not None:
            aligned = found.align(predictions.image_id).embeddings
            assert aligned is not None
            return predictions, aligned, other
    raise SettingsError(
        f"{path}: contains no features to learn from under other labels",
        "run with --recipe quick, whose predictions do",
    )
