"""Is this a photograph of the kind that a run knows? The detectors of one member's networks, fitted and saved together.

Embeddings of the first view, of photographs that each network had not seen. Networks that were fine-tuned apart have
a space each, and so a detector each: the median of their opinions counts. Each refuses a known photograph at the rate
asked for; at least half of them together do so at no more than twice that (Markov's inequality), and in practice at
about the rate itself. Networks that share a frozen backbone share one space and one detector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field, FiniteFloat, NonNegativeInt, model_validator

from manihot.errors import DataError
from manihot.records.files import save_json
from manihot.records.predictions import Predictions
from manihot.records.readers import read_record
from manihot.records.run_parts import TrustFolder
from manihot.trust.unknown import UnknownDetector, fit_threshold, fit_unknown
from manihot.trust.words import NOT_OF_THIS_KIND

FALSE_REJECTION = 0.05  # share of photographs of the known kind that may be refused
SHARED = -1  # in place of a fold's number: one detector for all networks


class Saved(BaseModel):
    """unknown.json."""

    member: str
    detectors: dict[int, str]
    false_rejection: Annotated[float, Field(gt=0, lt=1)]
    photographs: NonNegativeInt
    why: str
    output_limit: FiniteFloat | None = None

    @model_validator(mode="after")
    def _fit(self) -> Saved:
        for fold, name in self.detectors.items():
            if fold < SHARED or name != _file(fold):  # another name could lead anywhere
                raise ValueError(f"the detector of fold {fold} is called {name!r}")
        return self


@dataclass(frozen=True)
class OutOfDistribution:
    """detectors: by the fold whose network makes the embeddings, or SHARED. `why` says what there is none for.

    output_limit: of the probability that models with an unknown output of their own give it, where there is one.
    """

    member: str
    detectors: dict[int, UnknownDetector]
    false_rejection: float
    photographs: int
    why: str = ""
    output_limit: float | None = None

    @property
    def files(self) -> list[str]:
        """Names of the detectors' files."""
        return [_file(fold) for fold in self.detectors]

    def strangeness(self, embeddings: Mapping[int, np.ndarray]) -> np.ndarray:
        """How far from all that is known, (N,): above 1 is refused. embeddings: (N, D) of the first view, by fold.

        Raises DataError where the embeddings of no network with a detector are there.
        """
        scores = []
        for fold, detector in self.detectors.items():
            if fold == SHARED and embeddings:
                scores.append(_relative(detector, next(iter(embeddings.values()))))
            elif fold in embeddings:
                scores.append(_relative(detector, embeddings[fold]))
        if not scores:
            raise DataError(
                f"the detectors of {self.member!r} were fitted on the embeddings of other networks",
                "run the same `manihot run` again",
            )
        return np.asarray(np.median(scores, axis=0))

    def save(self, folder: Path) -> None:
        """Write unknown.json and a .npz a detector into `folder`, atomically."""
        for fold, detector in self.detectors.items():
            detector.save(folder / _file(fold))
        about: dict[str, Any] = {
            "member": self.member,
            "false_rejection": self.false_rejection,
            "photographs": self.photographs,
            "why": self.why,
            "output_limit": self.output_limit,
            "detectors": {str(fold): _file(fold) for fold in self.detectors},
        }
        save_json(TrustFolder(folder).unknown, about)

    @classmethod
    def load(cls, folder: Path) -> OutOfDistribution:
        """Read what `save` wrote; anything else is a DataError."""
        path, what = TrustFolder(folder).unknown, "an out-of-distribution detector"
        about = read_record(path, Saved, what, "fit it again: the same manihot run", DataError)
        detectors = {fold: UnknownDetector.load(folder / name) for fold, name in about.detectors.items()}
        return cls(about.member, detectors, about.false_rejection, about.photographs, about.why, about.output_limit)


def _file(fold: int) -> str:
    return TrustFolder(Path()).detector(None if fold == SHARED else fold).name


def _relative(detector: UnknownDetector, embeddings: np.ndarray) -> np.ndarray:
    n = len(embeddings)
    nothing = Predictions(np.full(n, ""), np.zeros((n, 1)), ("",), np.full(n, -1), np.full(n, -1), embeddings)
    return detector.score(nothing) / max(detector.threshold, 1e-12)


def fit_out_of_distribution(
    member: str,
    reference: Predictions,
    shared: bool,
    false_rejection: float = FALSE_REJECTION,
    kind: str = "knn",
    seed: int = 0,
) -> OutOfDistribution:
    """Fit on held-out photographs of the known kind.

    reference: with embeddings (N, D) of the first view, each by the network of its fold; shared: whether these are
    all in one space. Half the photographs are what is known, the other half set the threshold. Where too few are
    there to promise the rate, `detectors` is empty and `why` says so.
    """
    folds = [SHARED] if shared else [int(fold) for fold in np.unique(reference.fold)]
    detectors = {}
    for fold in folds:
        own = reference if fold == SHARED else reference.take(reference.fold == fold)
        if len(own) < 2:
            continue
        found = fit_unknown(kind, own, false_rejection, k=min(10, max(1, (len(own) + 1) // 2)), seed=seed)
        if np.isfinite(found.threshold):
            detectors[fold] = found
    why = "" if detectors else f"{len(reference)} held-out photographs are too few to refuse {false_rejection:.0%} of"
    return OutOfDistribution(member, detectors, false_rejection, len(reference), why)


def limit_of_output(held_out: Predictions, false_rejection: float = FALSE_REJECTION) -> float | None:
    """The unknown output's probability that this share of held-out photographs exceeds; None without such an output.

    None too where the photographs are too few to promise the rate.
    """
    if held_out.unknown is None or not len(held_out):
        return None
    limit = fit_threshold(held_out.unknown, false_rejection)
    return limit if np.isfinite(limit) else None


def flag_unknown(answers: pd.DataFrame, signs: Mapping[str, tuple[np.ndarray, float]]) -> pd.DataFrame:
    """`apply_trust`'s table with a column for each sign, and `unknown` where any of them lies above its limit.

    signs: a column's name to its values (N,) and the limit. Where a photograph is unknown the answer says so.
    """
    unknown = np.zeros(len(answers), dtype=bool)
    columns: dict[str, Any] = {}
    for name, (values, limit) in signs.items():
        columns[name] = values
        unknown |= np.asarray(values) > limit
    answer = np.where(unknown, NOT_OF_THIS_KIND, answers["answer"].to_numpy(dtype=object))
    return answers.assign(answer=answer, unknown=unknown, **columns)
