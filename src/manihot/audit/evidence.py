"""Which evidence an audit has about the labels beside the predictions: what training and a frozen network left behind.

Margins: members/NAME/foldK/margins.parquet, of fine-tuned members. Embeddings: audit/embeddings.parquet, of a network
that never learned these labels, where the predictions themselves hold none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from manihot.audit.label_errors import SCORES
from manihot.errors import DataError
from manihot.records.files import atomic_path
from manihot.records.parquet_files import matrix_of, read_frame, read_parquet
from manihot.records.readers import reading
from manihot.records.run_places import RunPlaces

OF_FEATURES = ("knn_score", "anomaly_score")
OF_TRAINING = "trajectory_score"


def find_margins(run: Path, members: Sequence[str], fold: np.ndarray) -> list[Path]:
    """The files of margins that the members' trainings left, of the folds (N,) that predictions were made by."""
    folds = np.unique(fold[fold >= 0])
    paths = [RunPlaces(run).fold(name, int(k)).margins for name in members for k in folds]
    return [path for path in paths if path.is_file()]


def read_margins(path: Path) -> pd.DataFrame:
    """The margins of one training: image_id, epoch, margin."""
    columns = {"image_id": "text", "epoch": "whole", "margin": "number"}
    return read_frame(path, "margins of a training", columns, f"remove the folder {path.parent} to train it again")


def load_margins(paths: Sequence[Path], image_id: np.ndarray | None = None) -> pd.DataFrame | None:
    """Margins as `label_issues` takes them: image_id, epoch, margin; the mean over the folds. None without any.

    image_id: of these photographs only. Where one part alone is held out, none of it is ever learned.
    Of several members, whose logits have different scales, each photograph's mean margin over the epochs, brought to
    the mean spread of all; the number of the member then stands for the epoch.
    """
    members = []
    for folder in dict.fromkeys(path.parent.parent for path in paths):
        table = pd.concat([read_margins(path) for path in paths if path.parent.parent == folder], ignore_index=True)
        table = table if image_id is None else table[table["image_id"].isin(image_id)]
        if len(table):
            members.append(table.groupby(["image_id", "epoch"], as_index=False)["margin"].mean())
    if len(members) < 2:
        return members[0] if members else None
    areas = [table.groupby("image_id")["margin"].mean() for table in members]
    spreads = [max(float(area.std(ddof=0)), 1e-12) for area in areas]
    parts = [
        pd.DataFrame({"image_id": area.index, "epoch": number, "margin": area.to_numpy() / spread * np.mean(spreads)})
        for number, (area, spread) in enumerate(zip(areas, spreads))
    ]
    return pd.concat(parts, ignore_index=True)


def save_embeddings(path: Path, image_id: np.ndarray, embeddings: np.ndarray) -> None:
    """Write ids (N,) and embeddings (N, D) as `load_embeddings` reads them."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), embeddings.shape[1])
    table = pa.table({"image_id": pa.array(image_id.astype(str)), "embedding": column})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def load_embeddings(path: Path, image_id: np.ndarray) -> np.ndarray:
    """Embeddings float32 (N, D) of these photographs; DataError where one has none."""
    what, remedy = "embeddings of photographs", "remove the file and run again"
    table = read_parquet(path, what, {"image_id": "text"}, remedy)
    with reading(path, what, remedy, DataError):
        values, ids = matrix_of(table, "embedding"), pd.Index(table["image_id"].to_pandas())
        if not ids.is_unique or not np.isfinite(values).all():
            raise ValueError("photographs that appear twice, or values that are not finite")
    at = ids.get_indexer(pd.Index(image_id))
    if (at < 0).any():
        raise DataError(
            f"{path}: {int((at < 0).sum())} photographs have no embedding, first {image_id[at < 0][0]!r}",
            "remove the file and run again",
        )
    return np.asarray(values[at])


def describe_evidence(
    issues: pd.DataFrame,
    *,
    features: str = "",
    why_no_features: str = "",
    margins: bool = False,
    why_no_margins: str = "",
) -> dict[str, Any]:
    """What the labels were judged by: scores `used`, their `sources` in words, and `missing`: a score to why it lacks.

    features: where the embeddings come from. margins: whether those of the training were there. why_no_margins: said
    where a training could have left them and did not.
    """
    used = [name for name in SCORES if name in issues and issues[name].notna().any()]
    sources = ["out-of-fold predictions"]
    if OF_FEATURES[0] in used:
        sources.append(f"neighbours and nearness by {features}" if features else "neighbours and nearness")
    if OF_TRAINING in used:
        trained = "the network" if margins else "a linear head on features"
        why = f", as that of the network has none: {why_no_margins}" if why_no_margins and not margins else ""
        sources.append(f"margins of the given labels in the training of {trained}{why}")
    missing = {name: why_no_features for name in OF_FEATURES if name not in used}
    if OF_TRAINING not in used:
        missing[OF_TRAINING] = why_no_margins or "no training left its margins"
    return {"used": used, "sources": sources, "missing": missing}


def say_evidence(evidence: dict[str, Any]) -> str:
    """One sentence of `describe_evidence`."""
    words = f"Labels are judged by {', '.join(evidence['sources'])}"
    lacking: dict[str, list[str]] = {}
    for name, why in evidence["missing"].items():
        lacking.setdefault(why, []).append(name)
    without = "; ".join(f"{', '.join(names)} ({why})" for why, names in lacking.items())
    return words + (f"; without {without}" if without else "")
