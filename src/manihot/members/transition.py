"""`transition: estimate` among a loss's settings, of its own or of a loss within it: asked for, and filled in."""

from __future__ import annotations

from typing import Any

import numpy as np

KEY, ESTIMATE = "transition", "estimate"


def asks_for_transition(settings: Any) -> bool:
    """Whether some loss wants its transition matrix estimated."""
    return bool(with_transition(settings, None) != settings)


def with_transition(settings: Any, matrix: np.ndarray | None) -> Any:
    """The settings with the matrix (K, K), a row a true class, where it is to be estimated; empty without one."""
    if isinstance(settings, (list, tuple)):
        return type(settings)(with_transition(one, matrix) for one in settings)
    if not isinstance(settings, dict):
        return settings
    found = [] if matrix is None else matrix.tolist()
    return {
        key: found if (key, value) == (KEY, ESTIMATE) else with_transition(value, matrix)
        for key, value in settings.items()
    }
