"""Is a photograph good enough to be answered: sharp, lit, close? Measured on the pixels that reach the network.

What the network can't see doesn't count: a photograph that is blurred at 4,000 pixels and sharp at the network's 224
is fine. Integers and short sums only, so that `export/page/quality.js` measures the same on a phone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, NonNegativeInt

STEEP = 0.03  # share of the pixels, those of the steepest slope, that measure sharpness
FINE, WIDE = 32, 4  # cells of an edge, of the two scales that `zoom` compares
REFUSED = 0.005  # share of a run's own photographs that each limit refuses

Measure = Literal["sharpness", "brightness", "zoom"]
MEASURES: tuple[Measure, ...] = ("sharpness", "brightness", "zoom")
# each fault by its measure and the end of the measure that is at fault, in the order in which they are reported
FAULTS: dict[str, tuple[Measure, Literal["low", "high"]]] = {
    "dark": ("brightness", "low"),
    "bright": ("brightness", "high"),
    "blurred": ("sharpness", "low"),
    "far": ("zoom", "low"),
}
IN_WORDS = {"dark": "too dark", "bright": "too bright", "blurred": "blurred", "far": "taken from too far away"}


def measure_quality(rgb: np.ndarray) -> dict[Measure, float]:
    """The values of MEASURES of a network's input, uint8 (h, w, 3).

    sharpness: curvature against slope along the steepest edges, in logarithm, so that contrast cancels. brightness:
    mean luminance, 0 to 1. zoom: energy of wide structures against fine ones, in logarithm; low where many small
    leaves fill the picture in place of one. An edge of less than three pixels has a sharpness and a zoom of 0.
    """
    red, green, blue = (rgb[..., channel].astype(np.int64) for channel in range(3))
    grey = (299 * red + 587 * green + 114 * blue + 500) // 1000
    brightness = int(grey.sum()) / (255 * grey.size)
    if min(grey.shape) < 3:
        return {"sharpness": 0.0, "brightness": round(brightness, 9), "zoom": 0.0}
    # rounded, as the last bits of a logarithm differ between machines, and a limit is the value of a photograph
    return {"sharpness": round(_sharpness(grey), 9), "brightness": round(brightness, 9), "zoom": round(_zoom(grey), 9)}


def _sharpness(grey: np.ndarray) -> float:
    middle = grey[1:-1, 1:-1]
    left, right, above, below = grey[1:-1, :-2], grey[1:-1, 2:], grey[:-2, 1:-1], grey[2:, 1:-1]
    slope = ((right - left) ** 2 + (below - above) ** 2).ravel()
    bend = ((4 * middle - left - right - above - below) ** 2).ravel()
    count = max(1, int(STEEP * slope.size))
    steep = slope >= np.partition(slope, -count)[-count]
    n = int(steep.sum())
    return float(np.log((int(bend[steep].sum()) / n + 1) / (int(slope[steep].sum()) / n + 1)))


def _zoom(grey: np.ndarray) -> float:
    most = 1 << (min(grey.shape).bit_length() - 1)  # cells of an edge that hold at least one pixel each
    energies = []
    for cells in (min(WIDE, most), min(FINE, most)):
        own = _means(grey, cells)
        around = own.reshape(cells // 2, 2, cells // 2, 2).mean((1, 3)).repeat(2, 0).repeat(2, 1)
        energies.append(float(np.square(own - around).mean()) + 0.1)
    return float(np.log(energies[0] / energies[1]))


def _means(grey: np.ndarray, cells: int) -> np.ndarray:
    """Means of the cells of a grid, (cells, cells)."""
    rows, columns = (np.arange(cells + 1) * edge // cells for edge in grey.shape)
    sums = np.add.reduceat(np.add.reduceat(grey, rows[:-1], 0), columns[:-1], 1)
    found: np.ndarray = sums / np.outer(np.diff(rows), np.diff(columns))
    return found


class Limits(BaseModel):
    """The values of one measure that are let through; None where the photographs were too few for a limit."""

    low: FiniteFloat | None = None
    high: FiniteFloat | None = None


class Saved(BaseModel):
    """What `QualityLimits.to_json` gives."""

    measures: dict[Measure, Limits]
    refused: Annotated[float, Field(gt=0, lt=1)]
    photographs: NonNegativeInt


@dataclass(frozen=True)
class QualityLimits:
    """The gate of a run: how its own photographs are, but for the worst.

    refused: share of the run's photographs beyond each limit. photographs: how many it was fitted on.
    """

    measures: Mapping[Measure, Limits]
    refused: float
    photographs: int

    def faults(self, values: Mapping[Measure, float]) -> tuple[str, ...]:
        """What is wrong with a photograph, names of FAULTS; () where nothing is. values: of `measure_quality`."""
        found = []
        for name, (measure, end) in FAULTS.items():
            limit = getattr(self.measures.get(measure, Limits()), end)
            if limit is not None and (values[measure] < limit if end == "low" else values[measure] > limit):
                found.append(name)
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        measures = {name: limits.model_dump() for name, limits in self.measures.items()}
        return {"measures": measures, "refused": self.refused, "photographs": self.photographs}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> QualityLimits:
        """The inverse of `to_json`; pydantic's ValidationError for anything else."""
        saved = Saved.model_validate(values)
        return cls(saved.measures, saved.refused, saved.photographs)


def fit_quality(values: Sequence[Mapping[Measure, float]], refused: float = REFUSED) -> QualityLimits:
    """Limits that a new photograph like these crosses with at most the probability `refused` each.

    The finite-sample quantile of conformal prediction; no limit where the photographs are too few to promise that.
    """
    ends: dict[Measure, dict[str, float]] = {}
    for measure, end in FAULTS.values():
        sign = -1.0 if end == "low" else 1.0
        ordered = np.sort([sign * one[measure] for one in values])
        place = int(np.ceil((len(ordered) + 1) * (1 - refused) - 1e-9))
        if 0 < place <= len(ordered):
            ends.setdefault(measure, {})[end] = float(sign * ordered[place - 1])
    measures = {measure: Limits(**ends.get(measure, {})) for measure in MEASURES}
    return QualityLimits(measures, refused, len(values))
