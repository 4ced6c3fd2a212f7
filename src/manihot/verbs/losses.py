"""The verb that draws losses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from manihot.extras import need_train
from manihot.verbs.options import Out
from manihot.verbs.results import PageResult


def show_losses(
    *, out: Out = Path("losses.html"), classes: Annotated[int, Parameter(help="Number of classes.")] = 5
) -> PageResult:
    """Plot the noise-robust losses: value and gradient against the probability of the given label.

    The page explains why symmetric cross-entropy should help, and what it costs.
    """
    need_train("`manihot show-losses`")
    from manihot.train.show_losses import show_losses as draw

    return PageResult(page=draw(Path(out), classes))
