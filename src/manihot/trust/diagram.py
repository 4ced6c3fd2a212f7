"""The reliability diagram: how often a model is right where it states a probability."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.figure import Figure


def reliability_figure(curves: dict[str, dict[str, list[Any]]]) -> Figure:
    """Accuracy against confidence, a line an entry of `curves`, over how many photographs each bin of the first holds.

    curves: name -> bins of `metrics.reliability`. Colours are those of matplotlib's settings.
    """
    figure = Figure(figsize=(4.5, 3.9))
    top, below = figure.add_axes((0.16, 0.37, 0.82, 0.5)), figure.add_axes((0.16, 0.13, 0.82, 0.2))
    top.plot([0, 1], [0, 1], ":", color=rcParams["xtick.color"], lw=1.2)
    for k, (name, bins) in enumerate(curves.items()):
        count = np.asarray(bins["count"], dtype=float)
        full = count > 0
        confidence, right = (np.asarray(bins[key], dtype=float)[full] for key in ("confidence", "accuracy"))
        sizes = 10 + 150 * np.sqrt(count[full] / max(1, count.max()))  # a bin of few photographs says little
        (line,) = top.plot(confidence, right, "--" if k else "-", lw=1.5, label=name)
        top.scatter(confidence, right, s=sizes, color=line.get_color(), alpha=0.8, zorder=3, linewidths=0)
        if not k:
            width = np.diff(bins["edges"])
            below.bar(bins["edges"][:-1], count, width=width, align="edge", color=line.get_color(), alpha=0.55)
    top.legend(loc="lower left", bbox_to_anchor=(0, 1.01), borderaxespad=0)
    top.tick_params(labelbottom=False)
    top.set(ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.05))
    below.set(xlabel="confidence", ylabel="photos", xlim=(0, 1.02))
    return figure
