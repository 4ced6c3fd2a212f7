"""A suite on one page and in one picture: what each change did here, beside what was reported of it.

Both are made from OUT/suite.json alone. The page opens offline and loads nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from manihot.records.files import atomic_path, write_atomic
from manihot.records.readers import read_json, reading
from manihot.report.pages import render
from manihot.report.words import count_of, signed

COLOURS = {"agrees": "#2f6b45", "contradicts": "#d55e00", "cannot tell": "#8a938d", "": "#0072b2"}
MARKS = {"better": ">", "worse": "<", "no change": "D", "no better": "h"}  # of what was reported
CLASSES = {"agrees": "good", "contradicts": "bad", "cannot tell": "unsure", "": "unsaid"}
LEGEND = {"agrees": "agrees", "contradicts": "contradicts", "cannot tell": "cannot tell", "": "nothing reported"}
ROW = 0.27  # inches
STYLE: Any = {"font.size": 9, "text.parse_math": False, "axes.spines.top": False, "axes.spines.right": False}


def make_suite_page(folder: Path) -> Path:
    """Write suite.html and suite.png into a suite's folder, from its suite.json; returns the page's path.

    The same suite.json gives the same bytes. Raises RunFolderError where it can't be read.
    """
    folder = Path(folder)
    source, what, remedy = folder / "suite.json", "the results of a suite", "run the same `manihot suite` again"
    found = read_json(source, what, remedy)
    with reading(source, what, remedy):
        draw_suite(found, folder / "suite.png")
        page = render("suite", **contents(found))
    write_atomic(folder / "suite.html", page)
    return folder / "suite.html"


def contents(found: dict[str, Any]) -> dict[str, Any]:
    """Everything the template shows, as plain values."""
    compared = [row for row in found["arms"] if row["difference"] is not None]
    reach = reach_of(compared)
    for row in found["arms"]:
        row["photographs"] = row["photographs"] and int(row["photographs"])
        row["kind"] = CLASSES[row["judgement"]]
        if row["difference"] is not None:
            ends = (max(row["low"], -reach), row["difference"], min(row["high"], reach))
            row["places"] = [0.5 + 0.48 * value / reach for value in ends]
        told = row["reported"]
        row["mark"] = None if told is None or abs(told) > reach else 0.5 + 0.48 * told / reach
    return {
        **found,
        "title": found["name"],
        "compared": compared,
        "tables": by_table(compared),
        "reach": reach,
        "counts": {kind: sum(row["judgement"] == kind and not row["chance"] for row in compared) for kind in COLOURS},
        "others": [row for row in found["arms"] if row["difference"] is None and row["arm"] != "baseline"],
        "baseline": next((row for row in found["arms"] if row["arm"] == "baseline"), None),
    }


def by_table(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows by the heading that they stand under, in the order of the suite."""
    out: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        out.setdefault(row["table"] or "Arms", []).append(row)
    return out


def reach_of(rows: list[dict[str, Any]]) -> float:
    """How far the axis goes on each side, as a share; what a few broken arms lost is cut off."""
    ends = sorted(max(abs(row["low"]), abs(row["high"])) for row in rows)
    if not ends:
        return 0.01
    usual = ends[int(0.9 * len(ends))] if len(ends) >= 10 else ends[-1]
    found: float = max(0.005, min(ends[-1], 1.3 * usual))
    return found


def draw_suite(found: dict[str, Any], out: Path) -> None:
    """The picture: a row an arm with its difference and interval, coloured by whether it agrees with the report."""
    rows = [row for row in found["arms"] if row["difference"] is not None]
    tables, reach = by_table(rows), 100 * reach_of(rows)
    lines = len(rows) + 1.4 * len(tables) + 1
    height = ROW * lines + 1.5
    with rc_context(STYLE):
        figure = Figure(figsize=(10.6, height), dpi=150)
        axes = figure.add_axes((0.385, 0.85 / height, 0.41, ROW * lines / height))
        at = 0.0
        for table, some in tables.items():
            at += 1.4
            axes.text(-0.92, -at, table, transform=axes.get_yaxis_transform(), weight="bold", va="center")
            for row in some:
                at += 1
                _draw_row(axes, row, -at, reach)
        axes.axvline(0, color="#1d2420", lw=0.8)
        axes.axvspan(-100 * found["margin"], 100 * found["margin"], color="#f2f1ea", zorder=0, lw=0)
        axes.set(xlim=(-reach * 1.04, reach * 1.04), ylim=(-at - 0.8, -0.4), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"difference in accuracy, points, with {found['level']:.0%} intervals")
        n = rows[0]["photographs"] if rows else 0
        figure.text(0.008, 1 - 0.28 / height, f"{found['name']}: {count_of(int(n))}", weight="bold", fontsize=11)
        _draw_legend(figure, height)
        with atomic_path(out) as temporary:
            FigureCanvasAgg(figure).print_png(str(temporary), metadata={"Software": None})


def _draw_row(axes: Any, row: dict[str, Any], at: float, reach: float) -> None:
    colour = COLOURS[row["judgement"]]
    low, middle, high = (100 * row[key] for key in ("low", "difference", "high"))
    axes.plot([max(low, -reach), min(high, reach)], [at, at], color=colour, lw=2.2, alpha=0.55, solid_capstyle="butt")
    if abs(middle) <= reach:
        axes.plot(middle, at, "|", color=colour, ms=9, mew=2)
    else:
        axes.plot(reach if middle > 0 else -reach, at, ">" if middle > 0 else "<", color=colour, ms=5)
    if row["reported"] is not None and row["verdict"] in MARKS:
        told = 100 * row["reported"]
        axes.plot(told, at, MARKS[row["verdict"]], mfc="none", mec="#1d2420", ms=5.5, mew=0.8)
    side = axes.get_yaxis_transform()
    versus = "" if row["against"] == "baseline" else f"  (against {row['against']})"
    axes.text(-0.90, at, row["arm"] + versus, transform=side, va="center")
    star = "*" if row["holm"] is not None and row["holm"] <= 0.05 and not row["chance"] else ""
    said = "" if row["verdict"] == "not reported" else f"{row['verdict']}: {row['judgement']}"
    axes.text(1.02, at, f"{signed(row['difference'], 1, 100)}{star}  {said}", transform=side, va="center", color=colour)


def _draw_legend(figure: Figure, height: float) -> None:
    shown = [Line2D([], [], color=COLOURS[kind], lw=2.2, alpha=0.7, label=name) for kind, name in LEGEND.items()]
    shown += [
        Line2D([], [], ls="", marker=mark, mfc="none", mec="#1d2420", ms=5.5, label=f"reported: {verdict}")
        for verdict, mark in MARKS.items()
    ]
    shown.append(Line2D([], [], ls="", label="* stands after Holm's correction"))
    figure.legend(handles=shown, loc="lower left", bbox_to_anchor=(0.005, 0), ncols=5, frameon=False, fontsize=7.5)
