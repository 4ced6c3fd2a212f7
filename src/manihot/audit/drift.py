"""Do the photographs of two sources differ (years, districts, phones), and in what?

Adversarial validation: a classifier that has never seen a photograph says from which source it comes. Its
out-of-fold AUC is .5 where nothing distinguishes the sources. The AUC within classes leaves out what only
the classes' shares reveal: a source with more of one disease is not another kind of photograph.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import ndtr
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from manihot.errors import DataError
from manihot.records.groups import group_numbers

FEWEST = 20  # photographs of a source below which nothing is said of it
FOLDS = 5
COMPONENTS = 64
EXAMPLES = 8
NAME_LENGTH = 28  # letters that fit over a mean picture
LEVEL = 0.95


@dataclass(frozen=True)
class SourceDrift:
    """How one pair of sources differs.

    auc, low, high: out-of-fold adversarial AUC with its 95 % interval; within_class: mean AUC among photographs
    of one class, NaN where no class has enough of both. told: float64 (n,), how much each of the photographs
    `rows` (int64 (n,), places in the table) looks like `second`; out of fold.
    features: measurement, AUC, low, high, median of each source; surest first.
    """

    first: str
    second: str
    auc: float
    low: float
    high: float
    within_class: float
    rows: np.ndarray
    told: np.ndarray
    is_second: np.ndarray
    features: pd.DataFrame

    @property
    def differ(self) -> bool:
        """Whether the sources can be told apart beyond chance."""
        return self.low > 0.5

    def examples(self, n: int = EXAMPLES) -> dict[str, np.ndarray]:
        """Rows that are most typical of each source, and rows of each that look most like the other one."""
        order = np.argsort(self.told, kind="stable")
        mine, other = order[~self.is_second[order]], order[self.is_second[order]]
        return {
            "typical_first": self.rows[mine[:n]],
            "typical_second": self.rows[other[::-1][:n]],
            "first_like_second": self.rows[mine[::-1][:n]],
            "second_like_first": self.rows[other[:n]],
        }


def find_drift(
    source: np.ndarray,
    *,
    embeddings: np.ndarray | None = None,
    measurements: pd.DataFrame | None = None,
    labels: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> list[SourceDrift]:
    """Compare each pair of sources; the most different pair first, [] where there is one source.

    source: object (N,). embeddings: float (N, D). measurements: N rows of numbers (blur, exposure, ...), which also
    name what distinguishes the sources; one of the two is needed. labels: int (N,), -1 unknown. groups: object
    (N,), '' alone; photographs of one group are never on both sides of a fold. Sources with fewer than 20
    photographs are left out. Raises DataError.
    """
    source = np.asarray(source).astype(str)
    parts = [np.asarray(embeddings, dtype=np.float64)] if embeddings is not None else []
    if measurements is not None:
        parts.append(measurements.to_numpy(dtype=np.float64))
    if not parts or any(len(part) != len(source) for part in parts):
        raise DataError(
            "drift between sources needs embeddings or measurements, one row per photograph",
            "give the ones of the same photographs",
        )
    both = np.nan_to_num(np.hstack([_reduced(part, seed) for part in parts]))
    labels = np.full(len(source), -1) if labels is None else np.asarray(labels)
    names, counts = np.unique(source, return_counts=True)
    found = []
    for first, second in combinations(names[counts >= FEWEST], 2):
        rows = np.flatnonzero((source == first) | (source == second))
        is_second = source[rows] == second
        told = _adversary(
            both[rows], is_second, group_numbers(None if groups is None else np.asarray(groups)[rows], len(rows)), seed
        )
        auc, low, high = auc_interval(is_second, told)
        features = _features(measurements, rows, is_second)
        within = _within_classes(labels[rows], is_second, told)
        found.append(SourceDrift(first, second, auc, low, high, within, rows, told, is_second, features))
    return sorted(found, key=lambda drift: -drift.auc)


def auc_interval(truth: np.ndarray, scores: np.ndarray, level: float = LEVEL) -> tuple[float, float, float]:
    """AUC of scores (N,) for a bool truth (N,), and its interval by Hanley and McNeil (1982)."""
    auc = float(roc_auc_score(truth, scores))
    n, m = int(truth.sum()), int((~truth).sum())
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (auc * (1 - auc) + (n - 1) * (q1 - auc**2) + (m - 1) * (q2 - auc**2)) / (n * m)
    half = float(stats.norm.ppf((1 + level) / 2) * np.sqrt(max(variance, 0)))
    return auc, max(0.0, auc - half), min(1.0, auc + half)


def compare_priors(source: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> pd.DataFrame:
    """Share of each class in each source with its 95 % interval (Wilson): source, class, count, share, low, high.

    source: object (N,), labels: int (N,), -1 left out. `DataFrame.attrs` holds p_value (chi-squared test of
    equal shares) and distance (largest total variation between two sources).
    """
    source, labels = np.asarray(source).astype(str), np.asarray(labels)
    known = labels >= 0
    rows, shares, counts = [], [], []
    for name in np.unique(source[known]):
        count = np.bincount(labels[known & (source == name)], minlength=len(classes))
        counts.append(count)
        shares.append(count / count.sum())
        for k, one in enumerate(classes):
            interval = stats.binomtest(int(count[k]), int(count.sum())).proportion_ci(method="wilson")
            rows.append((name, one, int(count[k]), shares[-1][k], interval.low, interval.high))
    table = pd.DataFrame(rows, columns=["source", "class", "count", "share", "low", "high"])
    table.attrs["p_value"], table.attrs["distance"] = 1.0, 0.0
    if len(counts) > 1:
        seen = np.array(counts)[:, np.sum(counts, axis=0) > 0]
        if seen.shape[1] > 1:
            table.attrs["p_value"] = float(stats.chi2_contingency(seen).pvalue)
        table.attrs["distance"] = max(float(np.abs(a - b).sum() / 2) for a, b in combinations(shares, 2))
    return table


def mean_images(thumbnails: np.ndarray, source: np.ndarray) -> dict[str, np.ndarray]:
    """Mean picture of each source: uint8 of one thumbnail's shape, thumbnails uint8 (N, ...)."""
    source = np.asarray(source).astype(str)
    means = {}
    for name in np.unique(source):
        total = np.zeros(thumbnails.shape[1:], dtype=np.float64)
        rows = np.flatnonzero(source == name)
        for row in rows:  # one at a time: the thumbnails may be a file larger than memory
            total += thumbnails[row]
        means[str(name)] = np.round(total / len(rows)).astype(np.uint8)
    return means


def draw_mean(picture: np.ndarray, name: str) -> bytes:
    """A mean picture (h, w) with the name of its source written over its foot, as PNG, twice as large."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second, needed with several sources only
    from matplotlib.figure import Figure

    height, width = picture.shape
    figure = Figure(figsize=(width / 50, height / 50), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="bilinear", aspect="auto")
    axes.set_axis_off()
    shown = name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 3] + "..."
    label = {"facecolor": "black", "alpha": 0.7, "linewidth": 0, "pad": 3}
    figure.text(0.5, 0.02, shown, ha="center", va="bottom", fontsize=9, color="white", bbox=label, parse_math=False)
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a script that the font lacks: boxes instead of letters
        FigureCanvasAgg(figure).print_png(out)
    return out.getvalue()


def _reduced(part: np.ndarray, seed: int) -> np.ndarray:
    part = np.where(np.isfinite(part), part, np.nan)
    part = np.where(np.isnan(part), np.nanmedian(part, axis=0, keepdims=True), part)
    scaled = StandardScaler().fit_transform(part)
    if scaled.shape[1] <= COMPONENTS:
        found: np.ndarray = scaled
        return found
    components = min(COMPONENTS, len(scaled) - 1)
    reduced = PCA(components, svd_solver="randomized", random_state=seed).fit_transform(scaled)
    found = StandardScaler().fit_transform(reduced)
    return found


def _adversary(x: np.ndarray, is_second: np.ndarray, units: np.ndarray, seed: int) -> np.ndarray:
    """Out-of-fold probability of the second source."""
    told = np.full(len(x), 0.5)
    for inside, outside in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(x, is_second, units):
        if len(np.unique(is_second[inside])) < 2:
            continue
        model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=500)
        with threadpool_limits(1, "blas"):  # small products: two threads wait for each other
            model.fit(x[inside], is_second[inside])
        told[outside] = model.predict_proba(x[outside])[:, 1]
    return told


def _within_classes(labels: np.ndarray, is_second: np.ndarray, told: np.ndarray) -> float:
    areas, weights = [], []
    for k in np.unique(labels[labels >= 0]):
        own = labels == k
        n, m = int(is_second[own].sum()), int((~is_second[own]).sum())
        if min(n, m) >= 5:
            areas.append(roc_auc_score(is_second[own], told[own]))
            weights.append(n * m / (n + m))
    return float(np.average(areas, weights=weights)) if areas else float("nan")


def _features(measurements: pd.DataFrame | None, rows: np.ndarray, is_second: np.ndarray) -> pd.DataFrame:
    columns = ["measurement", "auc", "low", "high", "p_value", "median_first", "median_second"]
    if measurements is None:
        return pd.DataFrame(columns=columns)
    table = []
    for name in measurements.columns:
        values = measurements[name].to_numpy(dtype=np.float64)[rows]
        fine = np.isfinite(values)
        truth, own = is_second[fine], values[fine]
        if min(truth.sum(), (~truth).sum()) < 2 or np.ptp(own) == 0:
            continue
        auc, low, high = auc_interval(truth, own)
        deviation = np.sqrt((len(own) + 1) / (12 * truth.sum() * (~truth).sum()))
        p = 2 * ndtr(-abs(auc - 0.5) / deviation)
        table.append((name, auc, low, high, float(p), float(np.median(own[~truth])), float(np.median(own[truth]))))
    out = pd.DataFrame(table, columns=columns)
    order = (out["auc"] - 0.5).abs().sort_values(ascending=False, kind="stable").index
    return out.loc[order].reset_index(drop=True)
