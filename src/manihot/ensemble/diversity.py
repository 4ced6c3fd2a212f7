"""Which members are worth their place: how alike they are, what each adds, and what a cheaper blend costs.

Disagreement and correlation of errors: Kuncheva and Whitaker, Machine Learning 2003.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from manihot.ensemble.members import check_members, load_members
from manihot.ensemble.nested import paired_interval
from manihot.ensemble.search import score_subsets, subset_members
from manihot.errors import DataError
from manihot.records.csv_files import save_csv
from manihot.records.files import atomic_path
from manihot.records.groups import group_numbers
from manihot.records.tables import list_names, read_table, shown


def measure_disagreement(pred_probs: np.ndarray) -> np.ndarray:
    """Share of photographs on which two members answer differently, (M, M)."""
    pred_probs, _ = check_members(pred_probs)
    answers = pred_probs.argmax(axis=2)
    return np.array([[float((a != b).mean()) for b in answers] for a in answers])


def measure_error_correlation(pred_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Pearson correlation of being wrong, (M, M); NaN for a member that is always right or always wrong."""
    pred_probs, labels = check_members(pred_probs, labels)
    wrong = (pred_probs.argmax(axis=2) != labels).astype(np.float64)
    away = wrong - wrong.mean(axis=1, keepdims=True)
    spread = np.sqrt((away**2).sum(axis=1))
    scale = np.outer(spread, spread)
    found: np.ndarray = np.divide(away @ away.T, scale, out=np.full(scale.shape, np.nan), where=scale > 0)
    return found


def measure_leave_one_out(
    pred_probs: np.ndarray, labels: np.ndarray, names: Sequence[str], groups: np.ndarray | None = None, seed: int = 0
) -> pd.DataFrame:
    """What the plain average loses without each member.

    Columns: member, alone (its own accuracy), without (accuracy of the others' average), value = accuracy of
    all minus that, with a 95 % paired bootstrap interval over groups: low, high. Needs two members or more
    (DataError).
    """
    pred_probs, labels = check_members(pred_probs, labels)
    m = len(pred_probs)
    if m < 2 or len(names) != m:
        raise DataError(f"{m} members and {len(names)} names", "two members or more, one name each")
    units = group_numbers(groups, len(labels))
    total = pred_probs.sum(axis=0, dtype=np.float64)
    all_right = total.argmax(axis=1) == labels
    rows = []
    for name, probs in zip(names, pred_probs):
        without = (total - probs).argmax(axis=1) == labels
        low, high = paired_interval(all_right.astype(float) - without, units, (0.025, 0.975), seed)
        rows.append(
            {
                "member": name,
                "alone": float((probs.argmax(axis=1) == labels).mean()),
                "without": float(without.mean()),
                "value": float(all_right.mean() - without.mean()),
                "low": low,
                "high": high,
            }
        )
    return pd.DataFrame(rows)


def find_pareto_front(
    pred_probs: np.ndarray, labels: np.ndarray, names: Sequence[str], latency: Sequence[float], download: Sequence[int]
) -> pd.DataFrame:
    """Blends that no other one beats in accuracy, latency and download size together, the cheapest first.

    latency: seconds per photograph of each member. download: bytes of each member. Both add up over a blend's
    members. Columns: members, accuracy, latency, download. Up to 20 members (DataError).
    """
    counts = score_subsets(pred_probs, labels)
    m, n = np.shape(pred_probs)[:2]
    cost = np.column_stack([np.asarray(latency, dtype=np.float64), np.asarray(download, dtype=np.float64)])
    if cost.shape != (m, 2) or len(names) != m:
        raise DataError(f"latency, download and names don't fit {m} members", "one value per member each")
    masks = np.arange(1, 2**m)
    sums = np.zeros((len(masks), 2))
    for member in range(m):
        sums[(masks >> member & 1).astype(bool)] += cost[member]
    order = np.lexsort((sums[:, 1], sums[:, 0], -counts))  # best first: a blend can only be beaten by an earlier one
    front: list[int] = []
    for index in order:
        kept = sums[front]
        if not len(front) or not (kept <= sums[index]).all(axis=1).any():
            front.append(int(index))
    front.sort(key=lambda index: (sums[index, 0], sums[index, 1]))
    return pd.DataFrame(
        {
            "members": [" + ".join(names[i] for i in subset_members(index)) for index in front],
            "accuracy": counts[front] / n,
            "latency": sums[front, 0],
            "download": sums[front, 1].astype(np.int64),
        }
    )


def cheaper_blends(oof: Sequence[Path], costs: Path, out: Path) -> pd.DataFrame:
    """`find_pareto_front` of prediction files, into OUT/pareto.csv.

    costs: CSV with the columns member (as the prediction files are named, up to the first dot), latency (seconds a
    photograph) and download (bytes). Raises DataError for what is missing in it.
    """
    members = load_members(oof).labelled()
    own = _read_costs(costs, members.names)
    front = find_pareto_front(
        members.pred_probs, members.labels, members.names, own["latency"].tolist(), own["download"].tolist()
    )
    save_csv(front, Path(out) / "pareto.csv")
    return front


def _read_costs(path: Path, names: Sequence[str]) -> pd.DataFrame:
    """latency and download of each member, in this order; DataError names file, line and column."""
    remedy = "a CSV with the columns member,latency,download: seconds per photograph and bytes of each member"
    table = read_table(path)
    for name in ("member", "latency", "download"):
        if name not in table:
            raise DataError(f"{path}: no column {name}, only {list_names(list(table.columns))}", remedy)
    for name in names:
        if (found := int((table["member"] == name).sum())) != 1:
            raise DataError(f"{path}: {found} rows of the member {name!r}, expected one", remedy)
    own = table[table["member"].isin(list(names))]
    values = own[["latency", "download"]].apply(pd.to_numeric, errors="coerce")
    for name in values:
        if (wrong := ~(np.isfinite(values[name]) & (values[name] >= 0))).any():
            line = own.index[wrong.to_numpy()][0]
            raise DataError(
                f"{path}: line {line}, column {name}: {shown(own.loc[line, name])!r} is not a number from 0", remedy
            )
    return values.set_index(own["member"]).loc[list(names)]


def draw_diversity(pred_probs: np.ndarray, labels: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Write a picture (PNG): disagreement in percent and correlation of errors between members, side by
    side.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = max(3.5, 0.55 * len(names) + 2)
    figure = Figure(figsize=(2.2 * size, size))
    FigureCanvasAgg(figure)
    panels = {
        "different answers, %": (100 * measure_disagreement(pred_probs), "viridis", ".1f"),
        "correlation of errors": (measure_error_correlation(pred_probs, labels), "viridis_r", ".2f"),
    }
    for axes, (title, (matrix, colours, form)) in zip(figure.subplots(1, 2, sharey=True), panels.items()):
        np.fill_diagonal(matrix, np.nan)  # a member against itself says nothing and would take up the scale
        axes.imshow(matrix, cmap=colours)
        known = matrix[np.isfinite(matrix)]
        middle = known.mean() if len(known) else 0.0
        for (row, column), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                dark = (value < middle) == (colours == "viridis")
                colour = "w" if dark else "k"
                axes.text(column, row, format(value, form), ha="center", va="center", size=8, color=colour)
        axes.set_title(title)
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png", bbox_inches="tight")
