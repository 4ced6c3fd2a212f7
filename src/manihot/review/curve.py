"""What reviewing is worth: wrong labels found, and how many labels are then right, against photographs looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from manihot.report.figures import review_curve
from manihot.review.forecast import forecast
from manihot.review.ranking import BATCH, Queue

Values = Sequence[float] | np.ndarray


def expected_found(queue: Queue, chance: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Photographs looked at, in the queue's order, and the wrong labels expected among them, (P,) each.

    chance, wrong: of the answers so far (A,), as for `forecast`.
    """
    ahead = queue.table["chance"].to_numpy(dtype=np.float64)
    looked = np.unique(np.r_[0 : len(ahead) : BATCH, len(ahead)])
    return looked, np.array([forecast(chance, wrong, ahead[:k]).expected for k in looked])


def draw_curve(queue: Queue, chance: Values = (), wrong: Values = ()) -> Markup:
    """The figure. chance, wrong: of the answers so far, in their order, which also show what was found."""
    odds, said = np.array(chance, np.float64), np.array(wrong, bool)
    looked, expected = expected_found(queue, odds, said)
    return review_curve(looked, expected, np.cumsum(said), expected[-1] + queue.left, len(queue.table) + queue.rest)
