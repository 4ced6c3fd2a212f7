"""Figures inside a page as inline SVG, so that it stays one file.

They are drawn without pyplot's global state. Their colours are placeholders that become CSS variables, so that one
drawing serves light, dark and print; their text stays text.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from cycler import cycler
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from manihot.report.thumbnails import data_uri, encode
from manihot.trust.diagram import reliability_figure

HEAT = (0, 114, 178)  # the blue of Okabe and Ito's palette, made for colour-blind readers too

# Okabe and Ito's, for classes; read on light and dark paper alike
CLASS_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a800")
OTHER_COLOUR = "#999999"

# placeholder -> CSS variable of the template
PAINT = {
    "#010203": "var(--ink)",
    "#020304": "var(--muted)",
    "#030405": "var(--line)",
    "#040506": "var(--blue)",
    "#050607": "var(--orange)",
}
INK, MUTED, LINE, BLUE, ORANGE = PAINT
# what -> lines: key of an epoch's scores, colour, label, dash
CURVES = {
    "loss": (("train_loss", ORANGE, "training loss", "--"), ("val_loss", BLUE, "held-out loss", "-")),
    "accuracy": (
        ("train_accuracy", ORANGE, "training accuracy", "--"),
        ("val_accuracy", BLUE, "held-out accuracy", "-"),
    ),
    "learning rate": (("lr", BLUE, "learning rate of the head", "-"),),
}
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class called $x$ is a name, not a formula
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "axes.prop_cycle": cycler(color=[BLUE, ORANGE]),
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def heatmap(shares: np.ndarray) -> str:
    """Row-normalised confusion (K, K) as a PNG of one pixel a cell in a data URI, for many classes."""
    cells = np.zeros((*shares.shape, 4), dtype=np.uint8)
    cells[..., :3] = HEAT
    cells[..., 3] = np.round(255 * np.nan_to_num(shares) ** 0.5)  # the root shows rare confusions too
    return data_uri(encode(cells, "PNG"), "image/png")


def learning_curves(histories: dict[str, list[dict[str, Any]]], what: str, member: str) -> Markup:
    """One thin line per fold and their mean by epoch; what: a row of CURVES. Without such values, no figure: ''."""
    lines = CURVES[what]
    if not any(_curve(rows, key) for key, *_ in lines for rows in histories.values()):
        return Markup()
    with rc_context(STYLE):
        figure, axes = _figure(4.5, 2.9)
        for key, colour, label, dash in lines:
            curves = [curve for rows in histories.values() if (curve := _curve(rows, key))]
            for epochs, values in curves:
                (line,) = axes.plot(epochs, values, dash, color=colour, lw=0.8, alpha=0.45)
                if len(curves) == 1:
                    line.set(lw=1.8, alpha=1, label=label)
                if len(epochs) == 1:
                    line.set_marker("o")
            mean = _mean_curve(curves) if len(curves) > 1 else None
            if mean:
                axes.plot(*mean, dash, color=colour, lw=2.2, label=f"{label}, mean of {len(curves)} folds")
        axes.set_xlabel("epoch")
        if what == "learning rate":
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        return _svg(figure, f"{what} by epoch, {member}")


def reliability_diagram(curves: dict[str, dict[str, list[Any]]]) -> Markup:
    """Accuracy against confidence; curves: name -> bins of `metrics.reliability`."""
    with rc_context(STYLE):
        return _svg(reliability_figure(curves), "reliability diagram")


def confidence_histograms(old: np.ndarray, new: np.ndarray) -> Markup:
    """Confidence as shares of photographs: top probabilities (N,) of reference photographs, and of new ones."""
    edges = np.linspace(0, 1, 21)
    with rc_context(STYLE):
        figure, axes = _figure(4.5, 2.9)
        for values, colour, label, dash in ((old, BLUE, "reference", "-"), (new, ORANGE, "new", "--")):
            shares = 100 * np.histogram(values, edges)[0] / max(1, len(values))
            axes.stairs(shares, edges, color=colour, lw=2, ls=dash, label=label)
        axes.set(xlabel="confidence", ylabel="% of photographs", xlim=(0, 1.02))
        axes.legend(loc="upper left")
        return _svg(figure, "confidence then and now")


def skip_curve(kept: np.ndarray, right: np.ndarray) -> Markup:
    """Accuracy on the most confident photographs against the share that is answered at all."""
    with rc_context(STYLE):
        figure, axes = _figure(4.5, 3.9)
        axes.plot(100 * kept, 100 * right, color=BLUE, lw=2)
        axes.set(xlabel="% of photographs answered, most confident first", ylabel="accuracy on them, %")
        axes.set_xlim(0, 101)
        low = min(100 * right.min(), 99.0)
        axes.set_ylim(max(0, low - 2), 100.4)
        return _svg(figure, "accuracy on the most confident photographs")


def review_curve(looked: np.ndarray, expected: np.ndarray, found: np.ndarray, wrong: float, count: int) -> Markup:
    """Wrong labels found against photographs looked at, and on the right how many of all labels are then right.

    looked, expected: (P,), expected in the order of the review. found: (A,), after each answer so far. wrong: labels
    expected to be wrong among all `count`.
    """

    def share(found: Any) -> Any:
        return 100 * (1 - (wrong - np.asarray(found, np.float64)) / count)

    def back(share: Any) -> Any:
        return wrong - count * (1 - np.asarray(share, np.float64) / 100)

    with rc_context(STYLE):
        figure, axes = _figure(5.6, 3.6)
        axes.set_position((0.12, 0.14, 0.72, 0.83))
        axes.plot(looked, expected, color=BLUE, lw=2, label="expected, in this order")
        axes.plot(looked, wrong * looked / count, color=MUTED, lw=1.5, ls=":", label="expected, in random order")
        if len(found):
            so_far = np.r_[0, found]
            axes.step(np.arange(len(so_far)), so_far, color=ORANGE, lw=2, where="post", label="found so far")
        top = 1.05 * max(wrong, float(found.max(initial=0)), 1.0)
        axes.set(xlabel="photographs looked at", ylabel="wrong labels found", xlim=(0, looked[-1]), ylim=(0, top))
        axes.secondary_yaxis("right", functions=(share, back)).set_ylabel("% of all labels right")
        axes.legend(loc="lower right")
        return _svg(figure, "what reviewing finds")


def embedding_map(x: np.ndarray, y: np.ndarray, colour: Sequence[str], suspicious: np.ndarray) -> Markup:
    """Photographs at x, y (N,) from 0 to 1 as dots of their classes' colours; those marked, bool (N,), with a ring."""
    with rc_context(STYLE):
        figure = Figure(figsize=(6.6, 5.4))
        axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
        axes.scatter(x, y, s=9, c=list(colour), alpha=0.75, linewidths=0, clip_on=False)
        axes.scatter(
            x[suspicious], y[suspicious], s=52, facecolors="none", edgecolors=INK, linewidths=1.1, clip_on=False
        )
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=[], yticks=[])
        axes.grid(False)
        for side in axes.spines.values():
            side.set_visible(False)
        return _svg(figure, "map of the photographs")


def loss_curves(p: np.ndarray, curves: dict[str, np.ndarray], what: str) -> Markup:
    """Values (n,) of losses, by name, against the probability p (n,) of the given label."""
    with rc_context(STYLE):
        figure, axes = _figure(4.5, 3.9)
        for (name, values), colour in zip(curves.items(), CLASS_COLOURS, strict=True):
            axes.plot(p, values, color=colour, lw=1.8, label=name, clip_on=False)
        axes.set(xlabel="probability of the given label", ylabel=what, xlim=(0, 1.03), ylim=(0, None))
        axes.legend()
        return _svg(figure, what)


def size_scatter(sizes: np.ndarray, count: np.ndarray) -> Markup:
    """Width against height in pixels: unique sizes (S, 2) as (height, width) and how often each occurs."""
    with rc_context(STYLE):
        figure, axes = _figure(4.5, 2.9)
        area = 16 + 260 * np.sqrt(count / count.max())
        axes.scatter(sizes[:, 1], sizes[:, 0], s=area, color=BLUE, alpha=0.6, linewidths=0)
        axes.set(xlabel="width, pixels", ylabel="height, pixels")
        axes.set_xlim(0, sizes[:, 1].max() * 1.15)
        axes.set_ylim(0, sizes[:, 0].max() * 1.2)
        return _svg(figure, "sizes of the photographs")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    bottom = 0.5 / height  # half an inch for the ticks and their title
    return figure, figure.add_axes((0.16, bottom, 0.82, 0.97 - bottom))


def _curve(rows: Sequence[dict[str, Any]], key: str) -> tuple[list[float], list[float]] | None:
    points = [(row["epoch"], row[key]) for row in rows if isinstance(row.get(key), (int, float))]
    points = [point for point in points if np.isfinite(point[1])]
    return ([x for x, _ in points], [y for _, y in points]) if points else None


def _mean_curve(curves: Sequence[tuple[list[float], list[float]]]) -> tuple[list[float], list[float]] | None:
    """Mean over the epochs that all folds have reached."""
    known = [dict(zip(*curve, strict=True)) for curve in curves]
    shared = sorted(set.intersection(*(set(k) for k in known)))
    return (shared, [float(np.mean([k[epoch] for k in known])) for epoch in shared]) if shared else None


def _svg(figure: Figure, title: str) -> Markup:
    """The figure as an <svg> for a page: no doctype, metadata or namespaces, colours as CSS variables."""
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    out = io.StringIO()
    with rc_context({"svg.hashsalt": title}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a font without some letter: the page's fonts have it
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})  # the same bytes at any time
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    head, rest = svg.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    assert view is not None
    for placeholder, paint in PAINT.items():
        rest = rest.replace(placeholder, paint)
    # ids of two figures in one page must differ
    prefix = re.sub(r"\W+", "-", title)
    rest = re.sub(r'\bid="', f'id="{prefix}-', rest)
    rest = re.sub(r"url\(#", f"url(#{prefix}-", rest)
    rest = re.sub(r'xlink:href="#', f'href="#{prefix}-', rest)
    return Markup(f'<svg class="figure" role="img" aria-label="{escape(title)}" {view[0]}>{rest}')
