"""The quality gate of a run: how its own photographs are, and what is wrong with new ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from manihot.errors import DataError
from manihot.infer.forward import Photos, each_batch
from manihot.photos.preprocess import Preprocess
from manihot.photos.quality import Measure, QualityLimits, Saved, fit_quality, measure_quality
from manihot.records.files import save_json
from manihot.records.readers import read_record
from manihot.records.run_parts import TrustFolder
from manihot.settings import View

MEASURED = 4000  # photographs of a run, at most


class SavedGate(BaseModel):
    """quality.json."""

    member: str
    limits: Saved


@dataclass(frozen=True)
class QualityGate:
    """Limits on what the networks of one member are fed."""

    member: str
    limits: QualityLimits

    def save(self, folder: Path) -> None:
        """Write quality.json into a run's folder of trust, atomically."""
        values: dict[str, Any] = {"member": self.member, "limits": self.limits.to_json()}
        save_json(TrustFolder(folder).quality, values)

    @classmethod
    def load_if(cls, folder: Path) -> QualityGate | None:
        """Of a run's folder of trust; None where there is none, DataError where it is damaged."""
        path = TrustFolder(folder).quality
        if not path.is_file():
            return None
        again = "run the same `manihot run` again"
        saved = read_record(path, SavedGate, "the limits of a quality gate", again, DataError)
        limits = saved.limits
        return cls(saved.member, QualityLimits(limits.measures, limits.refused, limits.photographs))


def measure_photos(
    photos: Photos, rows: np.ndarray, preprocess: Preprocess, what: str = "Quality of photographs"
) -> list[dict[Measure, float]]:
    """The measures of the whole photographs, as the network sees them."""
    found: list[dict[Measure, float]] = []
    for _, _, images in each_batch(photos, rows, preprocess, (View(),), 32, what):
        found += [measure_quality(image) for image in images]
    return found


def fit_gate(member: str, photos: Photos, rows: np.ndarray, preprocess: Preprocess) -> QualityGate:
    """The gate of a run's photographs, of at most MEASURED of them, evenly spaced."""
    if len(rows) > MEASURED:
        rows = rows[np.linspace(0, len(rows) - 1, MEASURED).round().astype(int)]
    return QualityGate(member, fit_quality(measure_photos(photos, rows, preprocess)))
