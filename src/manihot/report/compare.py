"""The leaderboard: every run and member side by side, finished or not, so that a team sees every CV at once.

RUN/metrics.json, written when a run ends:

    {"members": {NAME: {"oof": evaluate(...), "folds": {"0": {"accuracy": 0.87, "n": 120}, ...},
                        "test": evaluate(...)},        # "test" only where test photographs have labels
                 ...},
     "ensemble": {"oof": evaluate(...), "test": evaluate(...)}}    # only with several members

with `manihot.metrics.evaluate`'s dict for each part. A run without it is unfinished: its scores so far come
from predictions/NAME.oof.parquet, and where a member has none yet, from members/NAME/foldK/history.jsonl.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from manihot.errors import DataError, RunFolderError
from manihot.metrics import accuracy, evaluate
from manihot.progress import cell
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.readers import read_lines
from manihot.records.run_parts import MemberFolder
from manihot.records.run_places import RunPlaces
from manihot.records.summaries import read_notes, read_run_record, read_scores
from manihot.report.words import duration

ENSEMBLE = "(ensemble)"
SPLITS = ("oof", "test")
SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "log_loss", "ece")
QUICK_REPEATS = 200  # resamples for a run that is still going on
COLUMNS = [
    "run",
    "member",
    "split",
    "status",
    "n",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    *SCORES[1:],
    "folds",
    "seconds",
    "recipe",
    "seed",
    "public",
    "private",
    "note",
]
HEADINGS = (
    "run",
    "member",
    "split",
    "n",
    "accuracy",
    "balanced",
    "macro-F1",
    "log loss",
    "ECE",
    "folds",
    "time",
    "recipe",
    "seed",
    "public",
    "private",
    "note",
)
NOTED = ("public", "private", "note")  # shown where a run has them
KEEP = ("run", "member", "split", "n", "accuracy")  # columns that the narrowest terminal shows
LEFT = ("run", "member", "split", "folds", "recipe", "note")


def leaderboard(runs: Sequence[Path]) -> pd.DataFrame:
    """One row for each run, member (and the ensemble of several) and split, with the columns of COLUMNS.

    public, private, note: what `manihot note` noted, in the row of the member that answers, or of the ensemble.

    Rows of out-of-fold predictions come first, then test; best accuracy first within each. status: 'done', or
    'unfinished' (running or stopped). folds: list of the accuracies of the folds that ended; seconds: of all
    stages of the run. Raises RunFolderError for a folder that is not a run.
    """
    paths = [Path(run) for run in runs]
    same_name = {p.name for p in paths if sum(p.name == q.name for q in paths) > 1}
    rows: list[dict[str, Any]] = []
    for path in paths:
        rows += _rows(path, str(path) if path.name in same_name else path.name)
    table = pd.DataFrame(rows, columns=COLUMNS)
    order = table.assign(test=table["split"] == "test").sort_values(
        ["test", "accuracy"], ascending=[True, False], na_position="last", kind="stable"
    )
    return table.loc[order.index].reset_index(drop=True)


def print_leaderboard(table: pd.DataFrame, console: Console | None = None) -> None:
    """The leaderboard for a terminal; shares in percent, the accuracy with its 95 % interval.

    A terminal that is too narrow gets fewer columns and a line that names the others; a file gets all.
    """
    console = console or Console()
    rows = [_cells(row) for row in table.to_dict("records")]
    headings = [name for name in HEADINGS if name not in NOTED or any(row[name] for row in rows)]
    width = {name: max(len(name), *(len(row[name]) for row in rows), 0) for name in headings} if rows else {}
    shown, hidden = list(width), []
    if console.is_terminal:
        for name in [name for name in reversed(shown) if name not in KEEP]:
            if sum(width[name] + 3 for name in shown) > console.width:
                shown.remove(name)
                hidden.append(name)
    else:
        console.width = max(console.width, sum(width[name] + 3 for name in shown) + 1)
    out = Table(header_style="bold", pad_edge=False)
    for name in shown:
        names = name in ("run", "member")  # may be long, so they may wrap
        out.add_column(name, justify="left" if name in LEFT else "right", no_wrap=not names, overflow="fold")
    for row, status in zip(rows, table["status"], strict=True):
        out.add_row(*(cell(row[name]) for name in shown), style="" if status == "done" else "dim")
    console.print(out)
    if hidden:
        console.print(f"not shown for lack of width: {', '.join(reversed(hidden))}", style="dim")


def _cells(row: dict[str, Any]) -> dict[str, str]:
    score = _percent(row["accuracy"])
    if not pd.isna(row["accuracy_low"]):
        score += f" ({_percent(row['accuracy_low'])}–{_percent(row['accuracy_high'])})"
    cells = [
        row["run"],
        row["member"],
        row["split"] if row["status"] == "done" else f"{row['split']}, {row['status']}",
        "–" if pd.isna(row["n"]) else f"{row['n']:.0f}",
        score,
        _percent(row["balanced_accuracy"]),
        _percent(row["macro_f1"]),
        _number(row["log_loss"]),
        _number(row["ece"]),
        " ".join(_percent(fold) for fold in row["folds"]),
        duration(row["seconds"]),
        row["recipe"],
        "" if pd.isna(row["seed"]) else f"{row['seed']:.0f}",
        *("" if pd.isna(row[name]) else f"{row[name]:.6g}" for name in ("public", "private")),
        row["note"],
    ]
    return dict(zip(HEADINGS, map(str, cells), strict=True))


def load_scores(run: Path) -> tuple[dict[str, Any], bool]:
    """The content of RUN/metrics.json and True, or `scores_so_far` and False.

    Raises RunFolderError for a folder that is not a run, and for a metrics.json that can't be read.
    """
    if RunPlaces(Path(run)).metrics.exists():
        return read_scores(RunPlaces(Path(run)).metrics), True
    return scores_so_far(Path(run)), False


def scores_so_far(run: Path) -> dict[str, Any]:
    """What predictions and histories say of a run without metrics.json, in its shape.

    A member without predictions has only "folds". Raises RunFolderError for a folder that is not a run.
    """
    places = RunPlaces(run)
    if not places.has_parts():
        raise RunFolderError(f"{run}: not a run folder", "give the folder that `manihot run --out` wrote")
    names = {member.name for member in places.members()} | set(places.predicted())
    return {"members": {name: _so_far(run, name) for name in sorted(names - {"ensemble"})}}


def load_groups(run: Path, image_id: np.ndarray) -> np.ndarray | None:
    """The manifest's group of each photograph, '' where it has none; None without a manifest or any group."""
    try:
        table = Manifest.load(RunPlaces(run).manifest).table
    except DataError:
        return None
    groups = table.set_index("image_id")["group"].reindex(image_id).fillna("").to_numpy()
    return groups if (groups != "").any() else None


def read_history(path: Path) -> list[dict[str, Any]]:
    """The epochs of a history.jsonl; a last line that was cut off by a kill is left out."""
    return [row for row in read_lines(path) if _is_epoch(row)]


def _is_epoch(row: dict[str, Any]) -> bool:
    """Whether a line of a history holds an epoch's number and finite or missing scores."""
    numbers = [value for key, value in row.items() if key != "epoch" and value is not None]
    whole = isinstance(row.get("epoch"), int) and not isinstance(row["epoch"], bool) and abs(row["epoch"]) < 1 << 31
    return whole and all(isinstance(value, (int, float)) and abs(value) <= 1e300 for value in numbers)


def _rows(run: Path, name: str) -> list[dict[str, Any]]:
    scores, done = load_scores(run)
    record = read_run_record(RunPlaces(run).record_file) if RunPlaces(run).record_file.exists() else {}
    recipe = record.get("recipe") or {}
    about = {
        "run": name,
        "status": "done" if done else "unfinished",
        "seconds": stage_seconds(record),
        "recipe": record.get("recipe_name") or recipe.get("name") or "",
        "seed": recipe.get("seed", np.nan),
    }
    parts = {**scores.get("members", {}), **({ENSEMBLE: scores["ensemble"]} if "ensemble" in scores else {})}
    rows = []
    for member, part in parts.items():
        by_fold = part.get("folds", {})
        folds = [by_fold[number]["accuracy"] for number in sorted(by_fold, key=int)]
        for split in SPLITS:
            found = part.get(split)
            if found is None and (split == "test" or "test" in part):
                continue
            rows.append(
                {**about, "member": member, "split": split, "folds": folds if split == "oof" else [], **_scores(found)}
            )
    rows = rows or [{**about, "member": "", "split": "oof", "folds": [], **_scores(None)}]
    answering = ENSEMBLE if ENSEMBLE in parts else scores.get("best") or rows[0]["member"]
    notes = read_notes(RunPlaces(run).notes)
    for row in rows:  # a leaderboard scores what the run answers, not each of its members
        mine = row["split"] == "oof" and row["member"] == answering
        row |= {"public": notes.public, "private": notes.private, "note": notes.text} if mine else {"note": ""}
    return rows


def stage_seconds(record: dict[str, Any]) -> float:
    """Seconds of all stages of run.json that ended; NaN when none did."""
    seconds = [s["seconds"] for s in record.get("stages", {}).values() if s.get("seconds") is not None]
    return float(sum(seconds)) if seconds else float("nan")


def _scores(found: dict[str, Any] | None) -> dict[str, Any]:
    metrics = (found or {}).get("metrics", {})

    def number(metric: str, part: str = "value") -> float:
        value = metrics.get(metric, {}).get(part)
        return float("nan") if value is None else float(value)

    return {
        "n": found["n"] if found else np.nan,
        "accuracy_low": number("accuracy", "low"),
        "accuracy_high": number("accuracy", "high"),
        **{name: number(name) for name in SCORES},
    }


def _so_far(run: Path, member: str) -> dict[str, Any]:
    try:
        made = Predictions.load(RunPlaces(run).oof(member))
    except DataError:  # not written yet
        return {"folds": _folds_of_histories(RunPlaces(run).member(member))}
    folds = {}
    for fold in np.unique(made.fold[(made.labels >= 0) & (made.fold >= 0)]):
        rows = (made.fold == fold) & (made.labels >= 0)
        right = float(accuracy(made.labels[rows], made.pred_probs[rows]))
        folds[str(fold)] = {"accuracy": right, "n": int(rows.sum())}
    groups = load_groups(run, made.image_id)
    found = evaluate(made.labels, made.pred_probs, made.classes, groups, repeats=QUICK_REPEATS)
    return {"oof": found, "folds": folds}


def _folds_of_histories(member: MemberFolder) -> dict[str, Any]:
    folds = {}
    for number, fold in member.folds().items():
        epochs = [row for row in read_history(fold.history) if row.get("val_accuracy") is not None]
        if epochs:
            folds[str(number)] = {"accuracy": float(epochs[-1]["val_accuracy"]), "n": None}
    return folds


def _percent(share: float | None) -> str:
    return "–" if share is None or pd.isna(share) else f"{100 * share:.1f}"


def _number(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.3f}"
