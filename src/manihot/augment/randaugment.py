"""RandAugment (arXiv 1909.13719): a few operations drawn evenly from a fixed list, all at one magnitude.

The list and the ranges are those of the paper's table; sign and order are drawn. Operations are those of the
other modules, so geometry and colour drawn next to each other are fused as everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field

from manihot.augment import colour, filters, geometry, tone
from manihot.augment.canvas import Canvas, Op, Span, uniform
from manihot.augment.resample import Border

TRANSLATE = 150 / 331  # share of the edge at magnitude 10: the paper's 150 pixels of 331
SHEAR = math.degrees(math.atan(0.3))  # the paper's slope
Make = Callable[[float, dict[str, object]], Op | None]


def _of_ten(span: tuple[float, float]) -> tuple[float, float]:
    if span[0] < 0 or span[1] > 10:
        raise ValueError("a magnitude is 0 to 10")
    return span


class RandAugment(Op):
    """`n` operations of RandAugment's list at `magnitude`."""

    p: float = Field(1.0, ge=0, le=1, description="probability of the whole")
    n: int = Field(2, ge=1, le=20, description="number of operations, drawn with replacement")
    magnitude: Annotated[Span, AfterValidator(_of_ten)] = Field(
        (9.0, 9.0), description="0 is almost nothing, 10 the end of each operation's range; one number, or from..to"
    )
    spread: float = Field(0.0, ge=0, description="standard deviation of the magnitude from operation to operation")
    border: Border = Field("reflect", description="what lies beyond the edge: mirrored, repeated or one level")
    fill: int = Field(128, ge=0, le=255, description="level of a `constant` border")

    def run_always(self, canvas: Canvas, rng: np.random.Generator) -> None:
        names = list(LIST)
        for _ in range(self.n):
            make = LIST[names[int(rng.integers(len(names)))]]
            amount = float(np.clip(rng.normal(uniform(rng, self.magnitude), self.spread), 0, 10)) / 10
            signed = amount if rng.random() < 0.5 else -amount
            op = make(signed, {"border": self.border, "fill": self.fill})
            if op is not None:
                op.run_always(canvas, rng)


def _set(kind: type[Op], **settings: object) -> Op:
    return kind.model_validate(settings)


def _jitter(part: str) -> Make:
    nothing = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    return lambda signed, edge: _set(colour.ColorJitter, **{**nothing, part: (0.9 * signed,) * 2})


def _affine(part: str, reach: float) -> Make:
    return lambda signed, edge: geometry.Affine.model_validate({"shear_x": 0, **edge, part: (reach * signed,) * 2})


LIST: dict[str, Make] = {  # from the magnitude in -1..1
    "identity": lambda signed, edge: None,
    "auto_contrast": lambda signed, edge: _set(tone.AutoContrast),
    "equalize": lambda signed, edge: _set(tone.Equalize),
    "rotate": lambda signed, edge: _set(geometry.Rotate, limit=(30 * signed,) * 2, **edge),
    "solarize": lambda signed, edge: _set(tone.Solarize, threshold=(256 * (1 - abs(signed)),) * 2),
    "posterize": lambda signed, edge: _set(tone.Posterize, bits=8 - round(4 * abs(signed))),
    "saturation": _jitter("saturation"),
    "contrast": _jitter("contrast"),
    "brightness": _jitter("brightness"),
    "sharpness": lambda signed, edge: _set(filters.Sharpen, amount=(0.9 * signed,) * 2),
    "shear_x": _affine("shear_x", SHEAR),
    "shear_y": _affine("shear_y", SHEAR),
    "translate_x": _affine("translate_x", TRANSLATE),
    "translate_y": _affine("translate_y", TRANSLATE),
}
