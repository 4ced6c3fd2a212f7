"""Pictures inside the report: thumbnails as data URIs and figures as inline SVG, so that it stays one file.

Figures are drawn without pyplot's global state. Their colours are placeholders that become CSS variables, so
that one drawing serves light, dark and print; their text stays text.
"""

from __future__ import annotations

import base64
import io
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from manihot.photos.decode import decode_photo
from manihot.photos.faults import PhotoFault
from manihot.photos.preprocess import resize
from manihot.records.manifest import Manifest

EDGE = 160  # pixels: a thumbnail has the area of a square with this edge
QUALITY = 70  # of the thumbnails' JPEG
LONGEST = 3  # of the edges' proportion, beyond which a thumbnail is cut
HEAT = (0, 114, 178)  # the blue of Okabe and Ito's palette, made for colour-blind readers too

# placeholder -> CSS variable of the template
PAINT = {
    "#010203": "var(--ink)",
    "#020304": "var(--muted)",
    "#030405": "var(--line)",
    "#040506": "var(--blue)",
    "#050607": "var(--orange)",
}
INK, MUTED, LINE, BLUE, ORANGE = PAINT
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
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Thumbnail:
    """uri: a data URI, '' where it can't be shown; href: the original; aspect: width over height."""

    name: str
    uri: str
    href: str
    fault: str = ""
    aspect: float = 1.0


class Thumbnails:
    """Thumbnails by image id, decoded once each; a photograph that can't be shown gets an empty picture."""

    def __init__(self, manifest: Manifest | None, run: Path) -> None:
        self._paths = {} if manifest is None else dict(zip(manifest.image_id, manifest.paths, strict=True))
        self._run = run
        self._made: dict[str, Thumbnail] = {}

    def __call__(self, image_id: str) -> Thumbnail:
        if image_id not in self._made:
            self._made[image_id] = self._make(image_id)
        return self._made[image_id]

    def _make(self, image_id: str) -> Thumbnail:
        path = self._paths.get(image_id)
        if path is None:
            return Thumbnail(str(image_id), "", "", "not in the manifest")
        try:
            small = make_thumbnail(decode_photo(path, at_least=(EDGE, EDGE)))
        except PhotoFault as fault:
            return Thumbnail(path.name, "", "", str(fault).splitlines()[0])
        return Thumbnail(path.name, jpeg_uri(small), link_from(self._run, path), aspect=small.shape[1] / small.shape[0])


def make_thumbnail(rgb: np.ndarray) -> np.ndarray:
    """uint8 RGB (H, W, 3) shrunk to the area of EDGE x EDGE; of a very long one the middle."""
    h, w = rgb.shape[:2]
    ch, cw = min(h, w * LONGEST), min(w, h * LONGEST)
    top, left = (h - ch) // 2, (w - cw) // 2
    scale = min(1.0, EDGE / (ch * cw) ** 0.5)
    size = (max(1, round(ch * scale)), max(1, round(cw * scale)))
    return resize(rgb[top : top + ch, left : left + cw], size)


def jpeg_uri(rgb: np.ndarray) -> str:
    """uint8 RGB (H, W, 3) as a JPEG in a data URI."""
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=QUALITY, optimize=True)
    return data_uri(out.getvalue(), "image/jpeg")


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as a data URI of a MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def link_from(folder: Path, path: Path) -> str:
    """Relative link from a page in `folder` to a file; absolute to another drive of Windows."""
    path = path.absolute()
    try:
        relative = os.path.relpath(path, folder.absolute())
    except ValueError:
        return path.as_uri()
    link = quote(Path(relative).as_posix())
    return link if link.startswith(".") else f"./{link}"


def heatmap(shares: np.ndarray) -> str:
    """Row-normalised confusion (K, K) as a PNG of one pixel a cell in a data URI, for many classes."""
    cells = np.zeros((*shares.shape, 4), dtype=np.uint8)
    cells[..., :3] = HEAT
    cells[..., 3] = np.round(255 * np.nan_to_num(shares) ** 0.5)  # the root shows rare confusions too
    out = io.BytesIO()
    Image.fromarray(cells).save(out, "PNG", optimize=True)
    return data_uri(out.getvalue(), "image/png")


def learning_curves(histories: dict[str, list[dict[str, Any]]], what: str, member: str) -> Markup:
    """One thin line a fold and their mean by epoch; what: 'loss' (training and held out) or 'accuracy'."""
    lines = [("val_accuracy", BLUE, "held-out accuracy", "-")]
    if what == "loss":
        lines = [("train_loss", ORANGE, "training loss", "--"), ("val_loss", BLUE, "held-out loss", "-")]
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
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        return _svg(figure, f"{what} by epoch, {member}")


def reliability_diagram(bins: dict[str, list[Any]]) -> Markup:
    """Accuracy against confidence over the bins of `metrics.reliability`, with how many rows each holds."""
    count = np.asarray(bins["count"], dtype=float)
    full = count > 0
    confidence, right = (np.asarray(bins[key], dtype=float)[full] for key in ("confidence", "accuracy"))
    with rc_context(STYLE):
        figure, top = _figure(4.5, 3.9)
        top.set_position((0.16, 0.38, 0.82, 0.6))
        below = figure.add_axes((0.16, 0.13, 0.82, 0.2), sharex=top)
        top.tick_params(labelbottom=False)
        top.plot([0, 1], [0, 1], ":", color=MUTED, lw=1.2)
        top.annotate("dotted: as sure as right", (1.0, 0.05), color=MUTED, fontsize=9, ha="right")
        heavy = np.sqrt(count[full] / max(1, count.max()))  # a bin of few photographs says little
        top.vlines(confidence, confidence, right, color=ORANGE, lw=0.5 + 3 * heavy)
        top.scatter(confidence, right, s=10 + 150 * heavy, color=BLUE, zorder=3, linewidths=0)
        top.set(ylabel="share that is right", xlim=(0, 1.02), ylim=(0, 1.05))
        below.bar(bins["edges"][:-1], count, width=1 / len(count), align="edge", color=BLUE, alpha=0.55)
        below.set(xlabel="probability of the model's answer", ylabel="photos")
        return _svg(figure, "reliability diagram")


def confidence_histograms(old: np.ndarray, new: np.ndarray) -> Markup:
    """How sure a model is, as shares of photographs: top probabilities (N,) it was fitted on, and new ones."""
    edges = np.linspace(0, 1, 21)
    with rc_context(STYLE):
        figure, axes = _figure(4.5, 2.9)
        for values, colour, label, dash in ((old, BLUE, "fitted on", "-"), (new, ORANGE, "new", "--")):
            shares = 100 * np.histogram(values, edges)[0] / max(1, len(values))
            axes.stairs(shares, edges, color=colour, lw=2, ls=dash, label=label)
        axes.set(xlabel="probability of the model's answer", ylabel="% of photographs", xlim=(0, 1.02))
        axes.legend(loc="upper left")
        return _svg(figure, "how sure it was and is")


def skip_curve(kept: np.ndarray, right: np.ndarray) -> Markup:
    """Share right among the surest photographs against the share that is answered at all."""
    with rc_context(STYLE):
        figure, axes = _figure(4.5, 3.9)
        axes.plot(100 * kept, 100 * right, color=BLUE, lw=2)
        axes.set(xlabel="% of photographs answered, the surest first", ylabel="% right among them")
        axes.set_xlim(0, 101)
        low = min(100 * right.min(), 99.0)
        axes.set_ylim(max(0, low - 2), 100.4)
        return _svg(figure, "share right among the surest photographs")


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
