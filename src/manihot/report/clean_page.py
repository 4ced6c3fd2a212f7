"""The page of a cleaning: one HTML file with the counts before and after, and every photograph that was changed.

It shows what `manihot clean` left in its folder, decides nothing, opens offline and loads nothing, as the audit's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table as Grid

from manihot.audit.cleaning import CARRIED
from manihot.audit.decisions import SOFT
from manihot.progress import cell
from manihot.records.files import write_atomic
from manihot.records.manifest import Manifest
from manihot.records.run_places import MANIFEST, RunPlaces
from manihot.records.tables import read_written
from manihot.report.pages import render
from manihot.report.thumbnails import Thumbnails

SHOWN = 48  # pictures of one action
HEADS = {
    "before": "before",
    "after": "after",
    "dropped": "left out",
    "relabelled_away": "moved away",
    "relabelled_to": "moved here",
    "soft": "soft",
    "down_weighted": "weighted down",
}
ACTIONS = {
    "drop": ("Left out", "Not in the new manifest; the files are not deleted."),
    "relabel": ("Relabelled", "The old label is struck out; the new one follows the arrow."),
    "soft": ("Soft labels", "The label was replaced by a distribution over the classes."),
    "down_weight": ("Weighted down", "These photographs count less in training."),
}


def make_clean_page(folder: Path) -> Path:
    """Write FOLDER/clean.html from what `audit.cleaning.clean` left there, and return its path; DataError without it.

    The same files give the same bytes.
    """
    folder = Path(folder)
    write_atomic(folder / "clean.html", render("clean", **contents(folder)))
    return folder / "clean.html"


def contents(folder: Path) -> dict[str, Any]:
    """Everything the template shows, as plain values."""
    cleaned, counts = Manifest.load(RunPlaces(folder).manifest), _read(folder / "before_after.csv")
    decisions, dropped = _read(folder / "decisions.csv"), _read(folder / "dropped.csv")
    photographs = pd.concat([cleaned.table[["image_id", "path"]], dropped[["image_id", "path"]]], ignore_index=True)
    thumbs = Thumbnails(Manifest.from_table(photographs, cleaned.classes, cleaned.root), folder)
    parts: list[dict[str, Any]] = []
    for action, (title, says) in ACTIONS.items():
        rows = decisions[decisions["action"] == action]
        cards = [_card(row) for row in rows.head(SHOWN).to_dict("records")]
        if cards:
            parts.append({"action": action, "title": title, "says": says, "n": len(rows), "cards": cards})
    thumbs.draw((card["id"] for part in parts for card in part["cards"]), "Drawing cleaned photographs")
    files = (MANIFEST, "decisions.csv", "dropped.csv", "before_after.csv")
    return {
        "title": folder.absolute().name,
        "parts": parts,
        "thumbs": thumbs,
        "gone": thumbs.faults(),
        "counts": counts_table(counts),
        "changed": sum(part["n"] for part in parts),
        "judged": len(photographs),
        "stay": len(cleaned),
        "kept": int((decisions["action"] == "keep").sum()),
        "files": [name for name in files if (folder / name).is_file()],
    }


def _read(path: Path) -> pd.DataFrame:
    return read_written(path).reset_index(drop=True)


def _card(row: dict[Any, Any]) -> dict[str, Any]:
    new: list[tuple[str, float | None]] = []
    weight = ""
    if row["action"] == "relabel":
        new = [(row["new_label"], None)]
    elif row["action"] == "soft":
        shares = {str(name).removeprefix(SOFT): row[name] for name in row if str(name).startswith(SOFT)}
        found = [(float(cell), name) for name, cell in shares.items() if cell and float(cell) >= 0.005]
        new = [(name, share) for share, name in sorted(found, reverse=True)]
    elif row["action"] == "down_weight":
        weight = f"{float(row['weight']):g}"
    return {"id": row["image_id"], "given": row["given_label"], "new": new, "weight": weight, "reason": row["reason"]}


def counts_table(counts: pd.DataFrame) -> dict[str, Any]:
    """Counts per class (of `compare_manifests`) for people: heads and rows with their sum, without columns of zeros."""
    numbers = counts[[name for name in HEADS if name in counts]].astype(int)
    shown = [name for name in numbers if name in ("before", "after") or numbers[name].any()]
    rows = [(str(name), values) for name, values in zip(counts["class"], numbers[shown].to_numpy().tolist())]
    total = numbers[shown].sum().tolist()
    return {"heads": [HEADS[name] for name in shown], "rows": rows, "total": total if len(rows) > 1 else None}


def counts_grid(counts: pd.DataFrame) -> Grid:
    """`counts_table` for a terminal: heads may wrap, numbers never."""
    found = counts_table(counts)
    grid = Grid(box=None, padding=(0, 1, 0, 0))
    grid.add_column("class", overflow="fold")
    for head in found["heads"]:
        grid.add_column(head, justify="right", min_width=max(map(len, head.split())), max_width=9)
    for name, numbers in [*found["rows"], *([("all", found["total"])] if found["total"] else [])]:
        grid.add_row(cell(name), *map(str, numbers))
    return grid


def cleaned_before(manifest: Manifest | None, run: Path) -> dict[str, Any] | None:
    """What a run's manifest says of a cleaning before the run, for its report; None where there was none."""
    if manifest is None or not {"original_label", "decision"} <= set(manifest.table):
        return None
    table = manifest.table
    decided = table["decision"].value_counts()
    carried = run / CARRIED
    counts = _read(carried) if carried.is_file() else None
    return {
        "counts": None if counts is None else counts_table(counts),
        "dropped": None if counts is None else int(counts["dropped"].astype(int).sum()),
        "moved": int((table["label"] != table["original_label"]).sum()),
        "soft": int(decided.get("soft", 0)),
        "lighter": int(decided.get("down_weight", 0)),
        "n": len(table),
    }
