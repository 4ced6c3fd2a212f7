"""The audit's tables on disk: what columns each must have, and how it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from manihot.audit.measurements import MEASUREMENTS
from manihot.records.parquet_files import read_frame

# '?': may be absent or have empty cells
_COPIES = {
    "image_id": "text",
    "group": "text",
    "label": "whole",
    "source": "text",
    "split": "text",
    "label_conflict": "flag",
    "crosses_folds": "flag",
    "crosses_splits": "flag?",
}
SCHEMAS: dict[str, Mapping[str, str]] = {
    "label_issues": {
        "image_id": "text",
        "given_label": "text",
        "suggested_label": "text",
        "label_score": "number",
        "is_label_issue": "flag",
        "predicted_label": "text?",
        "predicted_probability": "number?",
        "self_confidence": "number?",
        "anomaly_score": "number?",
        "knn_score": "number?",
        "trajectory_score": "number?",
        "cleanlab_issue": "flag?",
        "one_class_score": "number?",
        "neighbours": "texts?",
    },
    "map": {"image_id": "text", "x": "number", "y": "number", "given_label": "text", "is_label_issue": "flag"},
    "duplicates": {**_COPIES, "kind": "text"},
    "lookalikes": {**_COPIES, "evidence": "text", "distance": "number", "correlation": "number?"},
    "bursts": {
        **_COPIES,
        "size": "whole",
        "nearest": "text",
        "seconds": "number?",
        "numbers": "number?",
        "likeness": "number",
    },
    "classes": {"class": "text", "photographs": "whole", "share": "number", "times_rarest": "number"},
    "composition": {"image_id": "text", **dict.fromkeys(MEASUREMENTS, "number?")},
    "goes_with_errors": {
        "measurement": "text",
        "auc": "number",
        "low": "number",
        "high": "number",
        "p_holm": "number",
        "wrong": "whole",
        "right": "whole",
    },
    "drift": {
        "first": "text",
        "second": "text",
        "auc": "number",
        "low": "number",
        "high": "number",
        "within_class": "number",
        "differ": "flag",
    },
    "drift_features": {
        "first": "text",
        "second": "text",
        "measurement": "text",
        "auc": "number",
        "low": "number",
        "high": "number",
        "median_first": "number",
        "median_second": "number",
    },
    "drift_examples": {"first": "text", "second": "text", "kind": "text", "image_id": "text"},
    "priors": {
        "source": "text",
        "class": "text",
        "count": "whole",
        "share": "number",
        "low": "number",
        "high": "number",
    },
    "what_if": {
        "arm": "text",
        "judged_on": "text",
        "photographs": "whole",
        "changed": "number",
        "accuracy": "number",
        "gain": "number",
        "low": "number",
        "high": "number",
        "verdict": "text",
    },
}


def read_table(path: Path, name: str, only: Sequence[str] | None = None) -> pd.DataFrame:
    """The table `name` (a row of SCHEMAS) from a parquet file; DataError that names the column that is wrong."""
    needed = {key: kind for key, kind in SCHEMAS[name].items() if only is None or key in only}
    return read_frame(path, f"the audit's table {name}", needed, "run the audit again", only=only)
