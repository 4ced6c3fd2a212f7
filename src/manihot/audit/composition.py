"""What a set of photographs is made of: counts a class and a source, and which measurements go with errors.

What is measured: measurements.py. Interval of the AUC: DeLong, DeLong and Clarke-Pearson (1988). Many tests at once:
Holm (1979).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu, norm, rankdata

from manihot.errors import DataError
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions

FEWEST = 5  # wrong and right predictions that a comparison needs

# ------------------------------------------------------------------------------------------- classes


def describe_classes(manifest: Manifest) -> pd.DataFrame:
    """Labelled photographs per class: `label, class, photographs, share, times_rarest`, then a column per source.

    times_rarest: photographs for each one of the rarest class that has any. Columns of sources are named
    `source: NAME`. Photographs of the test split and without a label are not counted.
    """
    table = manifest.table
    counted = table[(table["label"] >= 0) & (table["split"] != "test")]
    k = len(manifest.classes)
    count = np.bincount(counted["label"], minlength=k)
    rarest = count[count > 0].min() if count.any() else 1
    out = pd.DataFrame(
        {
            "label": np.arange(k),
            "class": list(manifest.classes),
            "photographs": count,
            "share": count / max(1, count.sum()),
            "times_rarest": count / rarest,
        }
    )
    for source, rows in counted.groupby("source", sort=True):
        out[f"source: {source}"] = np.bincount(rows["label"], minlength=k)
    return out


def imbalance_ratio(manifest: Manifest) -> float:
    """Photographs of the largest class for each one of the rarest that has any; 1 is balanced, NaN without labels."""
    largest = describe_classes(manifest)["times_rarest"].max()
    return float(largest) if largest > 0 else float("nan")


# ------------------------------------------------------------------------------------------- errors


def goes_with_errors(composition: pd.DataFrame, predictions: Predictions, confidence: float = 0.95) -> pd.DataFrame:
    """Which measurements differ between wrongly and rightly predicted photographs, strongest first.

    composition: `image_id` and numeric columns, one row per photograph. predictions: with labels; out-of-fold ones,
    or training photographs look better than they are. Returns one row a measurement: `auc` (chance that a wrongly
    predicted photograph has the higher value, .5 = no connection) with DeLong's interval `low`, `high`,
    `correlation` (point-biserial), `p` (Mann-Whitney), `p_holm`, `wrong`, `right`. Measurements that are equal
    everywhere are left out. A connection is not a cause: a class that is hard may also be photographed differently.
    Raises DataError when there are fewer than five wrong or right ones.
    """
    joined = pd.Index(predictions.image_id).get_indexer(pd.Index(composition["image_id"]))
    usable = (joined >= 0) & (predictions.labels[joined] >= 0)
    rows = joined[usable]
    wrong = predictions.logits[rows].argmax(axis=1) != predictions.labels[rows]
    if min(wrong.sum(), (~wrong).sum()) < FEWEST:
        raise DataError(
            f"{int(wrong.sum())} wrong and {int((~wrong).sum())} right predictions are too few to compare",
            f"give labelled predictions of these photographs with at least {FEWEST} of each",
        )
    found = []
    numeric = composition.loc[usable].select_dtypes("number")
    for name in numeric.columns:
        values = numeric[name].to_numpy(dtype=np.float64)
        known = np.isfinite(values)
        high, low = values[known & wrong], values[known & ~wrong]
        if min(len(high), len(low)) < FEWEST or np.ptp(values[known]) == 0:
            continue
        found.append({"measurement": name, **_compare(high, low, confidence)})
    table = pd.DataFrame(found, columns=["measurement", "auc", "low", "high", "correlation", "p", "wrong", "right"])
    table.insert(6, "p_holm", holm(table["p"].to_numpy()))
    order = np.argsort(-np.abs(table["auc"] - 0.5), kind="stable")
    return table.iloc[order].reset_index(drop=True)


def _compare(wrong: np.ndarray, right: np.ndarray, confidence: float) -> dict[str, float]:
    m, n = len(wrong), len(right)
    both = rankdata(np.concatenate([wrong, right]))
    above_right = (both[:m] - rankdata(wrong)) / n  # share of the right ones below each wrong one
    above_wrong = 1 - (both[m:] - rankdata(right)) / m
    auc = float(above_right.mean())
    error = np.sqrt(above_right.var(ddof=1) / m + above_wrong.var(ddof=1) / n)
    reach = norm.ppf((1 + confidence) / 2) * error
    is_wrong = np.repeat([1.0, 0.0], [m, n])
    return {
        "auc": auc,
        "low": float(max(0, auc - reach)),
        "high": float(min(1, auc + reach)),
        "correlation": float(np.corrcoef(is_wrong, np.concatenate([wrong, right]))[0, 1]),
        "p": float(mannwhitneyu(wrong, right).pvalue),
        "wrong": m,
        "right": n,
    }


def holm(p: np.ndarray) -> np.ndarray:
    """p-values (n,) corrected for being n at once, by Holm's step-down procedure."""
    order = np.argsort(p, kind="stable")
    corrected = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    out = np.empty(len(p))
    out[order] = np.minimum(1, corrected)
    return out
