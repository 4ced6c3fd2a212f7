"""What a user notes beside a run: how a leaderboard scored it, and a remark."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from manihot.errors import RunFolderError, SettingsError
from manihot.verbs.options import Run
from manihot.verbs.results import NoteResult


def note(
    run: Run,
    *,
    public: Annotated[float | None, Parameter(help="Public leaderboard score of the run's submission.")] = None,
    private: Annotated[float | None, Parameter(help="Private leaderboard score.")] = None,
    text: Annotated[str | None, Parameter(help="A short remark.")] = None,
) -> NoteResult:
    """Record a run's leaderboard score or a remark; `manihot compare` shows it.

    A new value replaces the old one; without any option, the note is shown. Treat a leaderboard as one more fold: on
    a few hundred photographs its score varies as much as a fold's.
    """
    from manihot.records.files import write_atomic
    from manihot.records.run_places import RunPlaces
    from manihot.records.summaries import Notes, read_notes

    places = RunPlaces(Path(run))
    if not places.has_parts():
        raise RunFolderError(f"{run}: not a run folder", "give the folder that `manihot run --out` wrote")
    for name, score in (("public", public), ("private", private)):
        if score is not None and not math.isfinite(score):
            raise SettingsError(f"--{name} {score} is not a score", "give the number that the leaderboard shows")
    given = {"public": public, "private": private, "text": None if text is None else " ".join(text.split())}
    before = read_notes(places.notes)
    found = Notes(**{**before.model_dump(), **{key: value for key, value in given.items() if value is not None}})
    if found != before:
        write_atomic(places.notes, json.dumps(found.model_dump(), indent=2) + "\n")
    return NoteResult(path=places.notes, public=found.public, private=found.private, text=found.text)
