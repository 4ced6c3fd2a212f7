"""A page with the robust losses against the probability of the given label: their values, and how hard they pull.

It answers the question that the lecture leaves open, why symmetric cross-entropy should help against wrong labels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from manihot.errors import SettingsError
from manihot.records.files import write_atomic
from manihot.report.figures import loss_curves
from manihot.report.pages import render
from manihot.train.optim.losses import LOSSES

SHOWN: dict[str, dict[str, Any]] = {
    "cross_entropy": {},
    "symmetric_ce": {},
    "gce": {},
    "bi_tempered": {"t1": 0.8, "t2": 1.4},
    "taylor_series_ce": {},
    "focal": {},
    "forward_correction": {"rate": 0.2},
}
AT = (0.01, 0.1, 0.3, 0.5, 0.9)  # probabilities of the table


def loss_values(name: str, settings: dict[str, Any], p: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Value and pull (n,) of a loss where the given label has probability p (n,), the others sharing the rest alike.

    Pull: the size of the gradient to the given label's logit.
    """
    probs = np.repeat(((1 - p) / (classes - 1))[:, None], classes, axis=1)
    probs[:, 0] = p
    logits = torch.from_numpy(np.log(probs)).requires_grad_()
    values = [LOSSES[name](row[None], torch.zeros(1, dtype=torch.long), **settings) for row in logits]
    (gradient,) = torch.autograd.grad(torch.stack(values).sum(), logits)
    return np.array([float(value.detach()) for value in values]), np.abs(gradient.numpy()[:, 0])


def show_losses(out: Path, classes: int = 5) -> Path:
    """Write the page for so many classes; SettingsError for fewer than two, or another suffix than .html."""
    if classes < 2 or out.suffix.lower() != ".html":
        raise SettingsError(f"--out {out}, --classes {classes}: a .html file, and at least 2 classes are wanted")
    p = np.linspace(0.005, 0.995, 100)
    drawn = {name: loss_values(name, settings, p, classes) for name, settings in SHOWN.items()}
    rows = []
    for name, settings in SHOWN.items():
        _, pull = loss_values(name, settings, np.array(AT), classes)
        said = ", ".join(f"{key} {value:g}" for key, value in settings.items())
        rows.append({"name": name, "settings": said, "pulls": pull.tolist()})
    values = {
        "title": "How hard a label pulls",
        "classes": classes,
        "at": AT,
        "rows": rows,
        "value": loss_curves(p, {name: value for name, (value, _) in drawn.items()}, "loss"),
        "pull": loss_curves(p, {name: pull for name, (_, pull) in drawn.items()}, "pull of the label"),
    }
    write_atomic(out, render("losses", **values))
    return out
