"""What the heads of a run chose to use, and what each option was worth: the evidence in the model cards."""

from __future__ import annotations

from typing import Any

import numpy as np

from manihot.infer.models import networks_by_fold, read_card
from manihot.report.material import Material


def choices(material: Material) -> list[dict[str, Any]]:
    """A row for each member, kind of choice and option: mean log loss over folds, and the folds that chose it.

    Only members whose heads chose something; a card that can't be read is named in `missing`.
    """
    rows: list[dict[str, Any]] = []
    for member in material.places.members():
        found = networks_by_fold(member.path)
        cards = {fold: material.attempt(lambda p=path: read_card(p)) for fold, path in found.items()}  # type: ignore[misc]
        told = {fold: card.about["choice"] for fold, card in cards.items() if card and card.about.get("choice")}
        options: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = {}
        for fold, evidence in told.items():
            for row in evidence:
                options.setdefault((row["what"], row["option"]), []).append((fold, row))
        for (what, option), seen in options.items():
            rows.append(
                {
                    "member": member.name,
                    "what": what,
                    "option": option,
                    "log_loss": float(np.mean([row["log_loss"] for _, row in seen])),
                    "folds": [fold for fold, row in seen if row["chosen"]],
                    "of": len(told),
                }
            )
    return rows
