"""A leaderboard's score noted beside a run, and where it shows."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import manihot
from manihot.errors import ManihotError, RunFolderError, SettingsError
from manihot.metrics import evaluate
from manihot.report.compare import print_leaderboard

PROBS = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]


def made_run(path: Path, members: tuple[str, ...] = ("a", "b")) -> Path:
    import numpy as np

    scored = {"oof": evaluate(np.array([0, 1, 1]), np.array(PROBS), ("x", "y"), repeats=5)}
    path.mkdir()
    found = {"best": members[0], "members": dict.fromkeys(members, scored)}
    found |= {"ensemble": scored} if len(members) > 1 else {}
    (path / "metrics.json").write_text(json.dumps(found))
    return path


def shown(*runs: Path) -> str:
    out = io.StringIO()
    print_leaderboard(manihot.compare(list(runs)).table, Console(file=out, width=300))
    return out.getvalue()


def test_a_noted_score_stands_in_the_row_that_answers(tmp_path: Path):
    run = made_run(tmp_path / "run")
    assert "public" not in shown(run)  # no empty columns where nothing was noted
    found = manihot.note(run, public=0.905, text="two  views\nonly")
    assert (found.public, found.private, found.text) == (0.905, None, "two views only")
    assert manihot.note(run, private=0.8975).public == 0.905  # what is not given stays
    table = manihot.compare(run).table.set_index("member")
    assert table.loc["(ensemble)", ["public", "private", "note"]].tolist() == [0.905, 0.8975, "two views only"]
    assert table.loc[["a", "b"], "public"].isna().all() and (table.loc[["a", "b"], "note"] == "").all()
    line = next(line for line in shown(run).splitlines() if "(ensemble)" in line)
    assert " 0.905 " in line and " 0.8975 " in line and "two views only" in line
    alone = made_run(tmp_path / "alone", ("a",))
    manihot.note(alone, public=12)
    assert manihot.compare(alone).table["public"].tolist() == [12.0]


def test_a_note_that_makes_no_sense_is_refused(tmp_path: Path):
    with pytest.raises(RunFolderError, match="not a run folder"):
        manihot.note(tmp_path / "nothing", public=0.9)
    run = made_run(tmp_path / "run")
    with pytest.raises(SettingsError, match="--private nan is not a score"):
        manihot.note(run, private=float("nan"))
    assert manihot.note(run).text == "" and not (run / "notes.json").exists()
    (run / "notes.json").write_text('{"public": "high"}')
    with pytest.raises(ManihotError, match=r"notes\.json"):
        manihot.compare(run)
