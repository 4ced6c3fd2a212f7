"""The command on suites of experiments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.text import Text  # names and settings are no markup

from manihot.cli.options import (
    Columns,
    Device,
    Sets,
    Update,
    Workers,
    one_or_many,
)
from manihot.errors import SettingsError
from manihot.progress import console, say
from manihot.settings.options import EVERYTHING_GUESSED

if TYPE_CHECKING:
    import pandas as pd

    from manihot.suites.format import Suite


def suite(
    name: Annotated[str, Parameter(help="lecture-ablations, technique-families, or a .yaml file.")],
    photos: Annotated[list[Path] | None, Parameter(help="Folder(s), a CSV or a manifest.parquet.")] = None,
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"], help="Where to write.")] = None,
    only: Annotated[
        list[str] | None,
        Parameter(negative="", consume_multiple=True, help="These arms, and those that they need."),
    ] = None,
    list_: Annotated[
        bool, Parameter(name="--list", negative="", help="Say what the suite's arms are, and train nothing.")
    ] = False,
    set_: Sets = None,
    second: Annotated[str, Parameter(help="A source that only the arms with a second source train on.")] = "",
    second_but: Annotated[
        list[str] | None,
        Parameter(negative="", consume_multiple=True, help="Classes of it that the arm with a part of it leaves out."),
    ] = None,
    columns: Columns = EVERYTHING_GUESSED,
    device: Device = "auto", workers: Workers = 2, update: Update = False,
) -> None:  # fmt: skip
    """Train a baseline and single changes of it alike, and say which reported verdicts your photographs confirm.

    Every arm has the same folds, seed and photographs. OUT is a run folder that also holds suite.html, suite.png,
    suite.csv and suite.json, written anew after every arm. Stop it at any moment; the same command continues, and
    --only adds arms. --set changes the baseline, and so every arm: --set train.epochs=10 --set "photo.size=[512, 512]"
    """
    from manihot.suites.format import load_suite

    if list_:
        print_arms(load_suite(name, set_ or [], second=second, second_but=second_but or []))
        return
    if not photos or out is None:
        remedy = f"manihot suite {name} PHOTOS --out DIR, or --list"
        raise SettingsError("a suite needs photographs and a folder to write into", remedy)
    from manihot.suites.run import run_suite, summary

    table = run_suite(
        name, one_or_many(photos), out, only=only or [], overrides=set_ or [], second=second,
        second_but=second_but or [], device=device, workers=workers, update=update, columns=columns,
    )  # fmt: skip
    print_results(table)
    for sentence in summary(table):
        say(sentence)
    say(f"Page: {out / 'suite.html'}  picture: {out / 'suite.png'}")


def print_arms(found: Suite) -> None:
    """A suite's arms and what was reported of each, as a table."""
    from rich.table import Table as Grid

    grid = Grid("arm", "reported", "in the report's words", box=None, pad_edge=False)
    grid.columns[0].no_wrap = grid.columns[1].no_wrap = True
    heading = ""
    for name, arm in found.arms.items():
        if arm.table != heading:
            heading = arm.table
            grid.add_row(Text(heading, style="bold"))
        told = arm.verdict + ("" if arm.reported is None else f" {100 * arm.reported:+.1f}")
        said = arm.said + (f" (against {arm.against})" if arm.against != "baseline" else "")
        said += f" (needs {arm.needs})" if arm.needs else " (needs a second source)" if arm.second else ""
        grid.add_row(*(Text(text) for text in (name, "" if name == "baseline" else told, said)))
    console.print(grid)


def print_results(table: pd.DataFrame) -> None:
    """What the arms did, for a terminal; a star where Holm's correction leaves the difference."""
    from rich.table import Table as Grid

    grid = Grid("arm", "reported", "points", "interval", "here", box=None, pad_edge=False)
    grid.columns[0].no_wrap = grid.columns[2].no_wrap = True
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        told = row["verdict"] + ("" if row["reported"] is None else f" {100 * row['reported']:+.1f}")
        if row["difference"] is not None:
            star = "*" if row["holm"] <= 0.05 and not row["chance"] else ""
            points = f"{100 * row['difference']:+.1f}{star}"
            cells = (told, points, f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}", row["judgement"] or "–")
        elif row["status"] == "done" or row["why"] == "not asked for":
            continue
        else:
            cells = (told, "", "", f"{row['status']}: {row['why']}")
        grid.add_row(*(Text(text) for text in (row["arm"], *cells)))
    console.print(grid)
