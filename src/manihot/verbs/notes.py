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
    public: Annotated[float | None, Parameter(help="The public leaderboard's score of the run's submission.")] = None,
    private: Annotated[float | None, Parameter(help="The private one's.")] = None,
    text: Annotated[str | None, Parameter(help="A remark, in a few words.")] = None,
) -> NoteResult:
    """Note beside a run what a leaderboard said of it; `manihot compare` shows it.

    What is given replaces what was noted before; without any option the note is shown. A leaderboard is one more
    fold: a few hundred photographs move it as much as they move a fold's score.
    """
    from manihot.records.files import write_atomic
    from manihot.records.run_places import RunPlaces
    from manihot.records.summaries import Notes, read_notes

    places = RunPlaces(Path(run))
    if not places.has_parts():
        raise RunFolderError(f"{run}: not a run folder", "give the folder that `manihot run --out` wrote")
    for name, score in (("public", public), ("private", private)):
        if score is not None and not math.isfinite(score):
            raise SettingsError(f"--{name} {score} is no score", "give the number that the leaderboard shows")
    given = {"public": public, "private": private, "text": None if text is None else " ".join(text.split())}
    before = read_notes(places.notes)
    found = Notes(**{**before.model_dump(), **{key: value for key, value in given.items() if value is not None}})
    if found != before:
        write_atomic(places.notes, json.dumps(found.model_dump(), indent=2) + "\n")
    return NoteResult(path=places.notes, public=found.public, private=found.private, text=found.text)
