"""What the audit's page shows of photographs that are alike by the network's features, and of bursts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from manihot.audit.bursts import describe_bursts
from manihot.audit.lookalikes import count_lookalikes, describe_lookalikes

GROUPS, MEMBERS = 12, 4  # groups shown, and pictures of one
OFFER = "Where folds tear them apart, scores are too good: --group auto keeps each in one fold."


def alike_groups(table: pd.DataFrame | None, name_of: Callable[[int], str]) -> dict[str, Any] | None:
    """Groups that were not known before: what pixels confirm first, then what lies in several folds.

    table: of `find_lookalikes`. name_of: the name of a label.
    """
    if table is None:
        return None
    counts = count_lookalikes(table)
    new = table.loc[table["evidence"] != "known", "group"]
    rows = table[table["group"].isin(new)].assign(confirmed=table["evidence"] == "pixels")
    flags = ["confirmed", "crosses_folds", "label_conflict"]
    order = rows.groupby("group", sort=False)[flags].any().sort_values(flags, ascending=False, kind="stable")
    groups = []
    for name, facts in order.head(GROUPS).iterrows():
        own = rows[rows["group"] == name].sort_values("distance", kind="stable")
        members = [
            {"id": row["image_id"], "label": name_of(row["label"]), "evidence": row["evidence"]}
            for row in own.head(MEMBERS).to_dict("records")
        ]
        groups.append({**{flag: bool(facts[flag]) for flag in flags}, "n": len(own), "members": members})
    said = describe_lookalikes(counts)
    return {**counts, "new": len(order), "shown": groups, "sentence": f"{said[0].upper()}{said[1:]}."}


def burst_groups(
    table: pd.DataFrame | None, sentence: str, photographs: int, name_of: Callable[[int], str]
) -> dict[str, Any] | None:
    """The bursts that folds tear first, then the largest.

    table: of `find_bursts`. sentence: what they do to the score, '' where that isn't known. photographs: in all.
    """
    if table is None or not len(table):
        return None
    flags = ["crosses_folds", "label_conflict"]
    order = table.groupby("group", sort=False)[[*flags, "size"]].max()
    order = order.sort_values([*flags, "size"], ascending=False, kind="stable")
    groups = []
    for name, facts in order.head(GROUPS).iterrows():
        own = table[table["group"] == name]
        members = [
            {"id": row["image_id"], "label": name_of(row["label"]), "apart": _apart(row)}
            for row in own.head(MEMBERS).to_dict("records")
        ]
        groups.append({**{flag: bool(facts[flag]) for flag in flags}, "n": len(own), "members": members})
    sentence = sentence or f"Bursts: {describe_bursts(table, photographs)}. {OFFER}"
    return {"n": len(order), "shown": groups, "sentence": sentence}


def _apart(row: dict[str, Any]) -> str:
    """How far a photograph is from the most alike of its burst."""
    if pd.notna(row["seconds"]):
        return f"{row['seconds']:.1f} s apart"
    return f"{row['numbers']:.0f} apart in number" if pd.notna(row["numbers"]) else ""
