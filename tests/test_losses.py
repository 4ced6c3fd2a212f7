"""Each loss against its definition, an oracle or a figure; and one contract for all of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from manihot.errors import DataError, SettingsError
from manihot.optim.losses import LOSSES, make_loss

K = 5


def batch(
    n: int = 16, k: int = K, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, generator=generator, dtype=dtype) * 2, torch.randint(
        k, (n,), generator=generator
    )


def soft(n: int = 16, k: int = K, seed: int = 1) -> torch.Tensor:
    return torch.rand(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.25])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 3.0, 0.0]])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_cross_entropy_is_torchs(smoothing, weights, reduction):
    z, y = batch()
    ours = LOSSES["cross_entropy"](z, y, smoothing=smoothing, class_weights=weights, reduction=reduction)
    tensor = None if weights is None else torch.tensor(weights, dtype=z.dtype)
    torchs = F.cross_entropy(z, y, weight=tensor, label_smoothing=smoothing, reduction=reduction)
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)


def test_cross_entropy_takes_soft_labels_as_torch_does():
    z, _ = batch()
    torch.testing.assert_close(LOSSES["cross_entropy"](z, soft()), F.cross_entropy(z, soft()))


def test_a_one_hot_row_weighs_as_its_label():
    z, y = batch()
    weights = [1.0, 2.0, 0.5, 3.0, 4.0]
    one_hot = F.one_hot(y, K).double()
    torch.testing.assert_close(
        LOSSES["cross_entropy"](z, one_hot, class_weights=weights),
        LOSSES["cross_entropy"](z, y, class_weights=weights),
    )


@pytest.mark.parametrize("s", [0.06, 0.2])
def test_smoothing_over_the_others_is_torchs_with_sK_over_K_minus_1(s):
    z, y = batch()
    ours = LOSSES["label_smoothing"](z, y, smoothing=s, smoothing_over="K-1")
    assert abs(ours - F.cross_entropy(z, y, label_smoothing=s * K / (K - 1))) < 1e-7
    assert s != 0.2 or abs(ours - F.cross_entropy(z, y, label_smoothing=0.25)) < 1e-7


def test_sample_weights_leave_out_photographs():
    z, y = batch()
    counted = torch.zeros(16)
    counted[:4] = 1
    torch.testing.assert_close(
        LOSSES["cross_entropy"](z, y, sample_weights=counted), F.cross_entropy(z[:4], y[:4])
    )
    assert LOSSES["cross_entropy"](z, y, sample_weights=torch.zeros(16)) == 0


def test_a_soft_row_counts_by_its_sum():
    z, y = batch()
    torch.testing.assert_close(LOSSES["cross_entropy"](z, F.one_hot(y, K) * 0.5), F.cross_entropy(z, y) / 2)


def test_probabilities_are_refused():
    z, y = batch()
    with pytest.raises(DataError, match="probabilities"):
        LOSSES["cross_entropy"](z.softmax(1), y)


def test_mistakes_name_the_setting():
    z, y = batch()
    with pytest.raises(SettingsError, match="smothing"):
        LOSSES["cross_entropy"](z, y, smothing=0.1)
    with pytest.raises(SettingsError, match="smoothing = 1"):
        LOSSES["cross_entropy"](z, y, smoothing=1.0)
    with pytest.raises(SettingsError, match="type float"):
        LOSSES["cross_entropy"](z, y, smoothing="0.1")
    with pytest.raises(SettingsError, match="class_weights"):
        LOSSES["cross_entropy"](z, y, class_weights=[1.0, 2.0])
    with pytest.raises(SettingsError, match="did you mean 'cross_entropy'"):
        make_loss("cros_entropy", classes=K)
    with pytest.raises(DataError, match="labels run from -1"):
        LOSSES["cross_entropy"](z, y - 1 - y.min())
    with pytest.raises(DataError, match="target of shape"):
        LOSSES["cross_entropy"](z, y[:3])
