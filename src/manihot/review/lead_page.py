"""The overview of a team's review: how far it is, how far people agree, what is still open."""

from __future__ import annotations

from typing import Any

import numpy as np

from manihot.report.pages import render
from manihot.review.agreement import Agreement
from manihot.review.answers import FIRST, SECOND, standing
from manihot.review.curve import draw_curve
from manihot.review.database import LEAD
from manihot.review.team import Team

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render_lead_page(team: Team) -> tuple[str, str]:
    """The HTML and its content security policy."""
    lines = team.database.answers(FIRST)
    stands = standing(lines)
    found = team.together()
    settled = {line.image_id for line in standing(team.database.answers(SECOND)).values()}
    chance, wrong = team.judged(stands.values())
    people = []
    for name in team.database.people():
        own = [line for (who, _), line in stands.items() if who == name]
        if name != LEAD or own:
            seconds = float(np.median([line.ms for line in own]) / 1000) if own else None
            undone = sum(line.reviewer == name and line.verdict == "undo" for line in lines)
            people.append({"name": name, "answers": len(own), "undone": undone, "seconds": seconds})
    text = render(
        "review_lead",
        title=team.run.absolute().name,
        people=people,
        progress=team.progress(LEAD, FIRST),
        curve=draw_curve(team.queue, chance, wrong),
        size=len(team.queue.table),
        per_photo=team.per_photo,
        decided=len(found.decided),
        open=sum(i not in settled for i in team.disagreements()),
        settled=len(settled),
        photographs=found.photographs,
        alpha=_figures(found.alpha),
        pairs=[(a, b, _figures(one)) for a, b, one in found.pairs],
        classes=[(name, _figures(one)) for name, one in found.classes],
    )
    return text, POLICY


def _figures(one: Agreement) -> dict[str, Any]:
    value = "not defined" if one.value is None else f"{one.value:.2f}"
    band = "" if one.low is None or one.high is None else f"{one.low:.2f} to {one.high:.2f}"
    return {"n": one.photographs, "same": one.same, "value": value, "band": band}
