"""Loss correction by a transition matrix, and the page that draws losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import manihot
from manihot.errors import SettingsError
from manihot.train.optim.losses import LOSSES
from manihot.train.show_losses import loss_values

T = [[0.8, 0.1, 0.1], [0.0, 0.7, 0.3], [0.05, 0.05, 0.9]]


def batch(n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, generator=generator, dtype=torch.float64), torch.arange(n) % 3


def test_forward_correction_is_the_cross_entropy_of_what_the_channel_makes_of_the_prediction():
    z, y = batch()
    p = z.softmax(1).numpy()
    expected = np.mean([-np.log(sum(p[n, i] * T[i][int(y[n])] for i in range(3))) for n in range(len(y))])
    assert LOSSES["forward_correction"](z, y, transition=T).item() == pytest.approx(expected, abs=1e-12)
    for name in ("forward_correction", "backward_correction"):
        torch.testing.assert_close(LOSSES[name](z, y, rate=0.0), F.cross_entropy(z, y))


def test_backward_correction_is_unbiased():
    """Over the labels that T makes of the true class the loss is in the mean that of the true class."""
    z, y = batch()
    clean = F.cross_entropy(z, y, reduction="none")
    noisy = torch.stack(
        [LOSSES["backward_correction"](z, torch.full_like(y, j), transition=T, reduction="none") for j in range(3)], 1
    )
    torch.testing.assert_close((torch.tensor(T, dtype=torch.float64)[y] * noisy).sum(1), clean)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"transition": [[1.0, 0.0], [0.0, 1.0]]}, "3 rows of 3"),
        ({"transition": [[0.5, 0.5, 0.5], [0, 1, 0], [0, 0, 1]]}, "sum to 1"),
        ({"rate": 0.7}, "pure chance"),
    ],
)
def test_matrices_that_make_no_sense_are_refused(settings: dict, words: str):
    z, y = batch()
    for name in ("forward_correction", "backward_correction"):
        with pytest.raises(SettingsError) as caught:
            LOSSES[name](z, y, **settings)
        assert words in str(caught.value)
    same = [[0.4, 0.3, 0.3]] * 3
    with pytest.raises(SettingsError, match="backward_correction: transition"):
        LOSSES["backward_correction"](z, y, transition=same)


def test_pulls_of_the_curves_are_those_of_the_papers():
    p = np.array([0.01, 0.5, 0.9])
    _, plain = loss_values("cross_entropy", {}, p, 5)
    np.testing.assert_allclose(plain, 1 - p)
    value, pull = loss_values("symmetric_ce", {}, p, 5)
    a = -np.log(1e-4)
    np.testing.assert_allclose(value, -0.1 * np.log(p) + a * (1 - p))
    np.testing.assert_allclose(pull, 0.1 * (1 - p) + a * p * (1 - p))


def test_the_page_of_losses(tmp_path: Path):
    page = manihot.show_losses(out=tmp_path / "losses.html").page.read_text(encoding="utf-8")
    assert "Why should symmetric cross-entropy help?" in page and page.count("<svg") == 2
    assert ">0.990<" in page and "://" not in page
    with pytest.raises(SettingsError, match="at least 2 classes"):
        manihot.show_losses(out=tmp_path / "losses.html", classes=1)
