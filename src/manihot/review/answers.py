"""Answers of reviewers: lines that are only ever appended, and the decisions that follow from them.

Every line says who answered what about which photograph, when, after how many milliseconds, and what was on the screen.
An undo is a line of its own, which takes back the reviewer's last answer to its photograph. The page (page/logic.js)
writes the same decisions.csv.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from manihot.audit.decisions import COLUMNS as DECIDED
from manihot.audit.decisions import DOWN_WEIGHT
from manihot.errors import SettingsError

UNSURE = ("keep", "drop", "down_weight")  # what may become of a photograph that nobody can tell
OWN = ("verdict", "reviewer", "answered_at", "seconds", "seen", "round", "run")
COLUMNS = (*DECIDED, *OWN)
FIRST, SECOND = 1, 2  # rounds: the review, and the adjudication of what people disagreed on

Seen = Literal["photo", "original", "neighbours", "suggestion", "answers"]
Name = Annotated[str, StringConstraints(min_length=1, max_length=80)]


class Answer(BaseModel):
    """One line. key: unique, drawn at random by the page. label: a class, where the verdict is 'class'."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
    image_id: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    verdict: Literal["class", "unsure", "drop", "undo"]
    label: Annotated[str, StringConstraints(max_length=4096)] = ""
    reviewer: Name
    at: AwareDatetime
    ms: Annotated[int, Field(ge=0, le=10**10)]
    seen: Annotated[tuple[Seen, ...], Field(max_length=8)] = ()
    round: Literal[1, 2] = 1
    review: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]

    @property
    def moment(self) -> str:
        """The time as the page writes it: UTC to the millisecond, with a Z."""
        return self.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def standing(answers: Iterable[Answer]) -> dict[tuple[str, str], Answer]:
    """The answers that stand, by (reviewer, image_id), of lines of one round in the order of their arrival."""
    stacks: dict[tuple[str, str], list[Answer]] = {}
    for line in answers:
        stack = stacks.setdefault((line.reviewer, line.image_id), [])
        if line.verdict != "undo":
            stack.append(line)
        elif stack:
            stack.pop()
    return {who: stack[-1] for who, stack in stacks.items() if stack}


def says_wrong(verdict: str, label: str, given: str) -> bool:
    """Whether an answer finds the given label wrong."""
    return verdict == "drop" or (verdict == "class" and label != given)


def decisions(answers: Iterable[Answer], given: Mapping[str, str], run: str, unsure: str = "keep") -> pd.DataFrame:
    """A row per standing answer, with the columns of decisions.csv and OWN.

    given: the label of each photograph; others are left out. unsure: one of UNSURE. Raises SettingsError.
    """
    check_unsure(unsure)
    rows = [_row(line, given[line.image_id], run, unsure) for line in answers if line.image_id in given]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def check_unsure(unsure: str) -> None:
    """SettingsError for an action that can't stand for "can't tell"."""
    if unsure not in UNSURE:
        raise SettingsError(f"--unsure {unsure} is no action for such photographs", f"one of {', '.join(UNSURE)}")


def _row(line: Answer, given: str, run: str, unsure: str) -> dict[str, Any]:
    action, new, why = "keep", "", "label confirmed"
    if line.verdict == "unsure":
        action, why = unsure, "cannot tell"
    elif line.verdict == "drop":
        action, why = "drop", "none of the classes"
    elif line.label != given:
        action, new, why = "relabel", line.label, f"{line.label} instead of {given}"
    return {
        "image_id": line.image_id,
        "action": action,
        "given_label": given,
        "new_label": new,
        "weight": DOWN_WEIGHT if action == "down_weight" else 1.0,
        "reason": f"reviewed by {line.reviewer}: {why}",
        "verdict": line.verdict,
        "reviewer": line.reviewer,
        "answered_at": line.moment,
        "seconds": f"{line.ms / 1000:.1f}",
        "seen": " ".join(line.seen),
        "round": line.round,
        "run": run,
    }
