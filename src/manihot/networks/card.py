"""What belongs to a network beside its weights, saved inside its file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from manihot.errors import WeightsError
from manihot.photos.preprocess import Preprocess
from manihot.settings import Model, View

FORMAT = 2
KEY = "manihot"  # of the card in a file's metadata
REMEDY = "name a run folder, RUN/members/NAME, or a network file inside it"


@dataclass(frozen=True)
class ModelCard:
    """How to feed a network and read its answers.

    classes: names in the order of the logits. numbers: of the classes in submissions; None counts from 0. views: what
    its predictions average. about: recipe, member, fold, precision, class_counts, and for a linear head the digest of
    the features that it was fitted on.
    """

    classes: tuple[str, ...]
    preprocess: Preprocess
    views: tuple[View, ...]
    model: Model
    about: dict[str, Any]
    numbers: tuple[int, ...] | None = None

    def to_text(self) -> str:
        """JSON for a file's metadata."""
        values = {
            "format": FORMAT,
            "classes": self.classes,
            "preprocess": self.preprocess.to_json(),
            "views": [view.model_dump(mode="json") for view in self.views],
            "model": self.model.model_dump(mode="json"),
            "about": self.about,
            "numbers": self.numbers,
        }
        return json.dumps(values)

    @classmethod
    def from_text(cls, text: str | None, path: Path) -> ModelCard:
        """The inverse of `to_text`; WeightsError that names `path` where it is something else or damaged."""
        try:
            values = json.loads(text or "")
            found = values.pop("format", None)
        except (ValueError, AttributeError, RecursionError) as error:
            raise WeightsError(f"{path}: no model of manihot (it has no model card)", REMEDY) from error
        if found != FORMAT:
            raise WeightsError(
                f"{path}: a model of format {found}, and this manihot reads format {FORMAT}",
                "train it again, or use the manihot that trained it",
            )
        try:
            card: ModelCard = TypeAdapter(cls).validate_python(values)
            card.preprocess.check()
        except (ValidationError, ValueError) as error:
            where, why = "preprocess", str(error)
            if isinstance(error, ValidationError):
                first = error.errors()[0]
                where, why = ".".join(map(str, first["loc"])), first["msg"]
            raise WeightsError(f"{path}: damaged model card, {where}: {why}", "train it again") from error
        if not card.classes or not card.views:
            raise WeightsError(f"{path}: damaged model card, without classes or views", "train it again")
        return card

    @property
    def member(self) -> str:
        """The member that the network is of; '' outside a run."""
        return str(self.about.get("member", ""))

    @property
    def fold(self) -> int:
        """The fold that it held out."""
        return int(self.about.get("fold", 0))
