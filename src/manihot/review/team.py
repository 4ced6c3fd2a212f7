"""A review by a team: who is handed which photographs, what is adjudicated, what comes out. No HTTP here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from manihot.errors import SettingsError
from manihot.records.manifest import Manifest
from manihot.review.answers import FIRST, SECOND, Answer, decisions, says_wrong, standing
from manihot.review.database import LEAD, Database
from manihot.review.forecast import forecast
from manihot.review.merge import Together, agree, answer_of
from manihot.review.page import COPIES, NEAR, listed, page_facts
from manihot.review.ranking import BATCH, Queue
from manihot.settings.options import ReviewTeam


def invite(database: Database, team: ReviewTeam) -> dict[str, str]:
    """New links' tokens by name: of those who have none, or of everybody named. Raises SettingsError."""
    if team.reviewers_per_photo < 1:
        raise SettingsError(f"--reviewers-per-photo {team.reviewers_per_photo}: somebody has to answer", "1 or more")
    for name in team.reviewers:
        if name.strip() != name or not 1 <= len(name) <= 80 or name == LEAD:
            raise SettingsError(f"--reviewers {name!r}: not a reviewer's name", f"1 to 80 characters, not {LEAD!r}")
    known = {*database.people(), *team.reviewers} - {LEAD}
    if len(known) < team.reviewers_per_photo:
        raise SettingsError(
            f"{len(known)} reviewers can't give {team.reviewers_per_photo} answers to each photograph",
            "name more: --reviewers ana ben",
        )
    return database.invite([LEAD, *team.reviewers], team.new_links)


@dataclass
class Team:
    """A review that several people answer. per_photo: how many people answer each photograph."""

    run: Path
    manifest: Manifest
    queue: Queue
    database: Database
    per_photo: int = 1
    show_suggestion: bool = False
    unsure: str = "keep"
    number: dict[str, int] = field(init=False)
    given: dict[str, str] = field(init=False)
    place: dict[str, int] = field(init=False)
    names: list[str] = field(init=False)
    labels: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        names = np.array([*self.manifest.classes, ""], dtype=object)
        self.names, self.labels = [path.name for path in self.manifest.paths], self.manifest.labels
        self.number = {image_id: row for row, image_id in enumerate(self.manifest.image_id)}
        self.given = dict(zip(self.manifest.image_id, names[self.manifest.labels]))
        self.place = {image_id: row for row, image_id in enumerate(self.queue.table["image_id"])}
        self._label = {name: k for k, name in enumerate(self.manifest.classes)}

    def facts(self, number: int) -> dict[str, Any]:
        """What the page of a round needs to know."""
        about = {"show_suggestion": self.show_suggestion and number == FIRST, "unsure": self.unsure, "round": number}
        return page_facts(self.run, self.manifest, about) | {"mode": "server", "left": self.queue.left}

    # ------------------------------------------------------------------------------------------ handing out

    def state(self, reviewer: str, number: int) -> dict[str, Any]:
        """Everything a page needs to go on: the photographs handed to this reviewer, and their answers."""
        lines = self.database.answers(number)
        said = self.disagreements() if number == SECOND else {}
        ids = self.database.handed_to(reviewer) if number == FIRST else []
        ids = [*ids, *(line.image_id for line in lines if line.reviewer == reviewer)]
        items = [self.item(i, said.get(i, ())) for i in dict.fromkeys(ids) if i in self.place]
        own = [line.model_dump(mode="json") for line in lines if line.reviewer == reviewer]
        return {"reviewer": reviewer, "items": items, "answers": own, "progress": self.progress(reviewer, number)}

    def next(self, reviewer: str, number: int) -> dict[str, Any]:
        """A batch for a reviewer: what they hold and haven't answered, and photographs that too few were handed."""
        if number == SECOND:
            settled = {line.image_id for line in standing(self.database.answers(SECOND)).values()}
            disagreed = self.disagreements()
            items = [self.item(i, said) for i, said in disagreed.items() if i not in settled]
            return {"items": items, "progress": self.progress(reviewer, number)}
        with self.database.handing_out() as hand:
            answered = _people(standing(hand.answers(FIRST)).values())
            held = hand.held()
            ids, new = [], []
            for image_id in self.queue.table["image_id"]:
                done, keep = answered.get(image_id, set()), held.get(image_id, set())
                if reviewer in keep - done:
                    ids.append(image_id)
                elif reviewer not in done and len(done | keep) < self.per_photo:
                    new.append(image_id)
                if len(ids) + len(new) == BATCH:
                    break
            hand.hand(reviewer, new)
        return {"items": [self.item(i) for i in [*ids, *new]], "progress": self.progress(reviewer, number)}

    def item(self, image_id: str, said: Sequence[str] = ()) -> dict[str, Any]:
        """A photograph as the page takes it."""
        row = self.queue.table.iloc[self.place[image_id]]
        return {
            **self._picture(image_id),
            "suggested": self._label.get(row["suggested_label"], -1),
            "chance": round(float(row["chance"]), 5),
            "near": [self._picture(i) for i in listed(row["neighbours"]) if i in self.number][:NEAR],
            "copies": [self._picture(i) for i in row["copies"] if i in self.number][:COPIES],
            "said": list(said),
        }

    def _picture(self, image_id: str) -> dict[str, Any]:
        row = self.number[image_id]
        return {
            "id": image_id,
            "name": self.names[row],
            "label": int(self.labels[row]),
            "src": f"photo/{row}/small",
            "href": f"photo/{row}/original",
            "fault": "",
        }

    # ------------------------------------------------------------------------------------------ what comes out

    def check(self, line: Answer, reviewer: str) -> str:
        """What is wrong with a line, in words; '' where it may be kept."""
        if line.reviewer != reviewer:
            return "an answer in somebody else's name"
        if line.review != self.facts(FIRST)["review"]:
            return "an answer to another review"
        if line.round == SECOND and reviewer != LEAD:
            return "only the lead adjudicates"
        if line.image_id not in self.place:
            return "a photograph that is not in this review"
        if line.verdict == "class" and line.label not in self._label:
            return "a class that is not in this review"
        return ""

    def progress(self, reviewer: str, number: int) -> dict[str, Any]:
        """The stop rule over everybody's answers, and how many photographs this reviewer has answered."""
        stands = standing(self.database.answers(FIRST)).values()
        if number == SECOND:
            open_, own = self.disagreements(), standing(self.database.answers(SECOND))
            done = sum(i in open_ for _, i in own)
            none = {"photographs": 0, "expected": 0.0, "low": 0, "high": 0, "left": 0.0}
            return {**none, "answered": done, "total": len(open_)}
        people = _people(stands)
        chance = dict(zip(self.queue.table["image_id"], self.queue.table["chance"]))
        ahead = np.array([chance[i] for i in chance if len(people.get(i, ())) < self.per_photo])
        at, said = self.judged(stands)
        near, rest = forecast(at, said, ahead[:BATCH]), forecast(at, said, ahead)
        mine = sum(reviewer in names for names in people.values())
        free = sum(reviewer not in people.get(i, ()) and len(people.get(i, ())) < self.per_photo for i in chance)
        return {**asdict(near), "left": rest.expected + self.queue.left, "answered": mine, "total": mine + free}

    def judged(self, stands: Iterable[Answer]) -> tuple[np.ndarray, np.ndarray]:
        """The chance of each photograph that somebody could tell, and whether most found its label wrong, (A,) each.

        In the order of the first answers.
        """
        wrong: dict[str, list[bool]] = {}
        for line in stands:
            if line.verdict != "unsure":
                given = self.given.get(line.image_id, "")
                wrong.setdefault(line.image_id, []).append(says_wrong(line.verdict, line.label, given))
        chance = dict(zip(self.queue.table["image_id"], self.queue.table["chance"]))
        known = [i for i in wrong if i in chance]
        said = np.array([np.mean(wrong[i]) > 0.5 for i in known], dtype=bool)
        return np.array([chance[i] for i in known], dtype=np.float64), said

    def together(self) -> Together:
        """How far people agree, what is decided, what is open; of photographs that enough people have answered."""
        return agree(self._table(), self.manifest)

    def disagreements(self) -> dict[str, tuple[str, ...]]:
        """Photographs on which people disagree, adjudicated or not, with what each said."""
        table = self._table()
        first = table[table["round"] == FIRST]
        found = {str(i): tuple(group["answer"]) for i, group in first.groupby("image_id", sort=False)}
        return {i: said for i, said in found.items() if len(set(said)) > 1}

    def _table(self) -> pd.DataFrame:
        """Standing answers to photographs that enough people have answered, as `agree` takes them."""
        parts = []
        for number in (FIRST, SECOND):
            stands = list(standing(self.database.answers(number)).values())
            people = _people(stands)
            enough = [line for line in stands if number == SECOND or len(people[line.image_id]) >= self.per_photo]
            parts.append(decisions(enough, self.given, str(self.run), self.unsure))
        table = pd.concat(parts, ignore_index=True)
        return table.assign(answer=[answer_of(row) for row in table.to_dict("records")])


def _people(stands: Iterable[Answer]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in stands:
        found.setdefault(line.image_id, set()).add(line.reviewer)
    return found
