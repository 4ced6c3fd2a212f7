"""The map of the network's features as the audit's page shows it."""

from __future__ import annotations

from typing import Any

import pandas as pd

from manihot.report import figures


def draw_map(table: pd.DataFrame | None) -> dict[str, Any] | None:
    """The figure, its classes with their colours, and how many photographs it shows; None without a map.

    The largest classes have a colour each, all others share one.
    """
    if table is None or table.empty:
        return None
    counts = table["given_label"].value_counts()
    colours = dict(zip(counts.index, figures.CLASS_COLOURS))
    others = int(counts.iloc[len(colours) :].sum())
    legend = [{"name": name, "n": int(counts[name]), "colour": colour} for name, colour in colours.items()]
    if others:
        legend.append({"name": "other classes", "n": others, "colour": figures.OTHER_COLOUR})
    suspicious = table["is_label_issue"].to_numpy(dtype=bool)
    colour = [colours.get(name, figures.OTHER_COLOUR) for name in table["given_label"]]
    return {
        "figure": figures.embedding_map(table["x"].to_numpy(), table["y"].to_numpy(), colour, suspicious),
        "legend": legend,
        "n": len(table),
        "suspicious": int(suspicious.sum()),
    }
