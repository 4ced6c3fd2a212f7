"""Each loss against its definition, an oracle or a figure; and one contract for all of them."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
import torch.nn.functional as F

from manihot.errors import DataError, SettingsError
from manihot.train.optim.losses import LOSSES, effective_number_weights, make_loss
from manihot.train.optim.losses.bi_tempered import tempered_log_softmax

K = 5


def batch(
    n: int = 16, k: int = K, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, generator=generator, dtype=dtype) * 2, torch.randint(k, (n,), generator=generator)


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
        LOSSES["cross_entropy"](z, one_hot, class_weights=weights), LOSSES["cross_entropy"](z, y, class_weights=weights)
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
    torch.testing.assert_close(LOSSES["cross_entropy"](z, y, sample_weights=counted), F.cross_entropy(z[:4], y[:4]))
    assert LOSSES["cross_entropy"](z, y, sample_weights=torch.zeros(16)) == 0


def test_a_soft_row_counts_by_its_sum():
    z, y = batch()
    torch.testing.assert_close(LOSSES["cross_entropy"](z, F.one_hot(y, K) * 0.5), F.cross_entropy(z, y) / 2)


def test_over_is_smoothing_over_of_label_smoothing():
    z, y = batch()
    for over in ("K", "K-1"):
        ours = LOSSES["label_smoothing"](z, y, smoothing=0.2, over=over)
        assert ours == LOSSES["label_smoothing"](z, y, smoothing=0.2, smoothing_over=over)
    assert abs(ours - F.cross_entropy(z, y, label_smoothing=0.25)) < 1e-7
    with pytest.raises(SettingsError, match="smoothing_over = 'N'"):
        LOSSES["label_smoothing"](z, y, over="N")
    with pytest.raises(SettingsError, match="over = 'K'"):
        LOSSES["label_smoothing"](z, y, over="K", smoothing_over="K")
    with pytest.raises(SettingsError, match="no setting 'over'"):
        LOSSES["focal"](z, y, over="K")


def test_probabilities_are_refused():
    z, y = batch()
    with pytest.raises(DataError, match="probabilities"):
        LOSSES["cross_entropy"](z.softmax(1), y)
    with pytest.raises(DataError, match="probabilities"):
        make_loss("cross_entropy", classes=K)(z.softmax(1)[:8], y[:8])


def test_why_probabilities_are_refused():
    """A softmax of a softmax leaves the loss of 5 classes between log(1 + 4/e) and log(4 + e), right or wrong."""
    right = F.one_hot(torch.arange(K), K).double()
    assert F.cross_entropy(right, torch.arange(K)).item() == pytest.approx(0.905, abs=5e-4)
    assert F.cross_entropy(right, (torch.arange(K) + 1) % K).item() == pytest.approx(1.905, abs=5e-4)


def test_logits_that_look_like_probabilities_by_chance_stop_no_training():
    """One row of two classes does so in one of 270 draws: 11 of 3000 batches of one."""
    loss = make_loss("cross_entropy", classes=2)
    generator = torch.Generator().manual_seed(0)
    alike = 0
    for _ in range(3000):
        z = torch.randn(1, 2, generator=generator)
        alike += bool((z >= 0).all() and (z.sum() - 1).abs() < 1e-2)
        assert loss(z, torch.tensor([0])).isfinite()
        assert LOSSES["cross_entropy"](z, torch.tensor([0])).isfinite()
    assert alike > 0
    z = torch.tensor([[0.25, 0.75]]).repeat(16, 1)  # nor do those of a training that is under way
    assert loss(z, torch.zeros(16, dtype=torch.long)).isfinite()


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


# ---------------------------------------------------------------- one contract for every row

EXTRAS = {
    "features": lambda n, k, g: torch.randn(n, 7, generator=g, dtype=torch.float64),
    "weight": lambda n, k, g: torch.randn(k, 7, generator=g, dtype=torch.float64),
    "index": lambda n, k, g: torch.arange(n),
    "teacher": lambda n, k, g: torch.randn(n, k, generator=g, dtype=torch.float64),
    "view_logits": lambda n, k, g: torch.randn(1, n, k, generator=g, dtype=torch.float64),
}
SETTINGS = {
    "combo": {"terms": [{"name": "bi_tempered", "t1": 0.32, "t2": 1.0}, {"name": "elr", "weight": 0.3}]},
    "class_balanced": {"counts": [100, 20, 5, 60, 1], "beta": 0.99, "inner": {"name": "focal", "gamma": 1.5}},
    "gjs": {"views": 2},
}
NAMES = sorted(LOSSES)


def made(name: str, n: int = 16, k: int = K, **more):
    """A loss of K classes in evaluation mode after one batch of training, and the extra tensors it wants."""
    generator = torch.Generator().manual_seed(3)
    loss = make_loss(name, {**SETTINGS.get(name, {}), **more}, classes=k, photographs=n)
    extra = {need: EXTRAS[need](n, k, generator) for need in loss.needs}
    z, y = batch(n, k, seed=9)
    loss(z, y, **extra)
    return loss.eval(), extra


@pytest.mark.parametrize("name", NAMES)
def test_int_and_one_hot_labels_agree_and_the_mean_is_the_samples(name):
    (z, y), (loss, extra) = batch(), made(name)
    whole = loss(z, y, **extra)
    assert whole.shape == () and whole.dtype == torch.float64
    torch.testing.assert_close(loss(z, F.one_hot(y, K).double(), **extra), whole)
    loss, extra = made(name, reduction="none")
    each = loss(z, y, **extra)
    assert each.shape == (16,)
    if name != "class_balanced":  # whose mean divides by the weights
        torch.testing.assert_close(each.mean(), whole)


@pytest.mark.parametrize("name", NAMES)
def test_the_row_itself_gives_the_loss(name):
    (z, y), (_, extra) = batch(), made(name)
    assert LOSSES[name](z, y, **SETTINGS.get(name, {}), **extra).isfinite()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", ["int", "soft"])
def test_gradients_are_right_in_float64(name, target):
    (z, y), (loss, extra) = batch(6, seed=4), made(name, 6, smoothing=0.1)
    label = soft(6) if target == "soft" else y
    assert torch.autograd.gradcheck(lambda logits: loss(logits, label, **extra), z.requires_grad_())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target", ["int", "soft"])
def test_extreme_logits_stay_finite(name, dtype, target):
    loss, extra = made(name, 6)
    extra = {key: value if key == "index" else value.to(dtype) for key, value in extra.items()}
    rows = [[1e4, -1e4, 0, 1, -1]] * 4 + [[0, 0, 0, 0, 0], [1e4, 1e4, -1e4, -1e4, 0]]
    z = torch.tensor(rows, dtype=torch.float64).to(dtype).requires_grad_()
    value = loss(z, soft(6) if target == "soft" else torch.tensor([0, 1, 2, 3, 4, 0]), **extra)
    value.backward()
    assert value.isfinite() and value.dtype == torch.float32
    assert z.grad.isfinite().all() and z.grad.dtype == dtype
    assert z.grad[4].abs().max() < 1e3  # logits that are all 0 have no direction, and no slope without bound


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_loses_only_the_rounding_of_the_logits(name):
    (z, y), (loss, extra) = batch(), made(name)
    rounded = z.to(torch.bfloat16)
    torch.testing.assert_close(
        loss(rounded, y, **extra).double(), loss(rounded.double(), y, **extra), rtol=1e-4, atol=1e-5
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(rounded, y, **extra), loss(rounded, y, **extra), rtol=0, atol=0)
        assert loss(rounded, y, **extra).dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_a_right_answer_costs_less_than_a_wrong_one(name):
    loss, extra = made(name, 8)
    y = torch.arange(8) % K
    z = F.one_hot(y, K).double() * 3
    assert loss(z, y, **extra) < loss(z, (y + 1) % K, **extra)


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_carry_what_a_loss_remembers(name, tmp_path):
    (z, y), (loss, extra) = batch(), made(name)
    torch.save(loss.state_dict(), tmp_path / "loss.ckpt")
    again = make_loss(name, SETTINGS.get(name, {}), classes=K, photographs=16).eval()
    again.load_state_dict(torch.load(tmp_path / "loss.ckpt"))
    torch.testing.assert_close(again(z, y, **extra), loss(z, y, **extra), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_missing_and_unknown_inputs_are_named(name):
    (z, y), (loss, extra) = batch(), made(name)
    for need in loss.needs:
        with pytest.raises(DataError, match=need):
            loss(z, y, **{key: value for key, value in extra.items() if key != need})
    with pytest.raises(SettingsError, match="has no setting 'warmth'"):
        make_loss(name, {**SETTINGS.get(name, {}), "warmth": 1.0}, classes=K, photographs=16)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("focal", {"gamma": -1.0}),
        ("focal", {"alpha": [1.0, 2.0]}),
        ("focal", {"alpha": ["much"] * 5}),
        ("focal_cosine", {"focal_on": "cosine"}),
        ("taylor_ce", {"n": 3}),
        ("taylor_series_ce", {"t": 0}),
        ("bi_tempered", {"t1": 1.2}),
        ("gce", {"q": 1.5}),
        ("rce", {"log_zero": 1.0}),
        ("gjs", {"pi": 1.0}),
        ("isda", {"lam": -0.5}),
        ("triplet", {"margin": "hard"}),
        ("distillation", {"teacher_gives": "votes"}),
        ("elr", {"beta": 1.0}),
        ("sop", {"lr_u": -1.0}),
        ("class_balanced", {"counts": [1.0, 2.0]}),
        ("class_balanced", {"counts": [0, 0, 0, 0, 0]}),
        ("combo", {"terms": []}),
        ("combo", {"terms": [{"weight": 1.0}]}),
        ("combo", {"terms": [{"name": "focall"}]}),
        ("combo", {}),
        ("cross_entropy", {"class_weights": ["a"] * 5}),
        ("focal", {"gamma": True}),
    ],
)
def test_wrong_settings_are_found_before_the_training(name, wrong):
    with pytest.raises(SettingsError):
        make_loss(name, wrong, classes=K, photographs=8)


# ---------------------------------------------------------------- each definition


def probs(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return z.softmax(1)[torch.arange(len(y)), y]


def test_focal_is_the_mean_over_photographs_and_not_over_classes():
    z, y = batch()
    p = probs(z, y)
    right = ((1 - p) ** 2 * -p.log()).mean()
    torch.testing.assert_close(LOSSES["focal"](z, y, gamma=2.0), right)
    torch.testing.assert_close(LOSSES["focal"](z, y, gamma=0.0), F.cross_entropy(z, y))
    alpha = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=z.dtype)
    weighted = (alpha[y] * (1 - p) ** 2 * -p.log()).mean()
    torch.testing.assert_close(LOSSES["focal"](z, y, gamma=2.0, alpha=alpha.tolist()), weighted)


def test_focal_is_not_divided_by_the_classes_as_kornias():
    """kornia 0.9 takes the mean over classes as well, of rows that are 0 but for the label: 5 times too small."""
    z, y = batch()
    p, label = z.softmax(1), F.one_hot(y, K)
    kornias = (-((1 - p) ** 2) * p.log() * label).mean()
    assert (LOSSES["focal"](z, y, gamma=2.0) / kornias).item() == pytest.approx(5.000, abs=1e-9)


def test_focal_keeps_its_gradient_where_p_rounds_to_one():
    z = torch.tensor([[40.0, 0.0, 0.0]], requires_grad=True)  # 1 - p = 8.5e-18, far below float32's 6e-8
    LOSSES["focal"](z, torch.tensor([1]), gamma=0.5).backward()
    assert z.grad.isfinite().all()
    value = LOSSES["taylor_series_ce"](z, torch.tensor([0]), t=1)
    assert value.item() == pytest.approx(2 * math.exp(-40), rel=1e-5)


def test_the_two_cosine_losses():
    z, y = batch()
    unit = F.normalize(z)
    ce = F.cross_entropy(unit, y, reduction="none")
    cosine = 1 - F.cosine_similarity(z, F.one_hot(y, K).double())
    paper = (cosine + 0.1 * 0.4 * (1 - (-ce).exp()) ** 1.9 * ce).mean()
    torch.testing.assert_close(LOSSES["focal_cosine"](z, y, alpha=0.4, gamma=1.9), paper)
    other = (cosine + 0.1 * 0.4 * (1 - probs(z, y)) ** 1.9 * ce).mean()
    torch.testing.assert_close(LOSSES["focal_cosine"](z, y, alpha=0.4, gamma=1.9, focal_on="logits"), other)
    slide = (-(probs(z, y).cos() ** 1.5) * probs(z, y).log()).mean()
    torch.testing.assert_close(LOSSES["cosine_focal"](z, y, gamma=1.5), slide)


def test_symmetric_ce():
    z, y = batch()
    wrong = (1 - probs(z, y)).mean()
    assert abs(LOSSES["rce"](z, y) - 9.2103 * wrong) < 1e-4
    both = 0.1 * F.cross_entropy(z, y) + 9.2103 * wrong
    assert abs(LOSSES["symmetric_ce"](z, y, alpha=0.1, beta=1.0) - both) < 1e-4
    assert abs(LOSSES["symmetric_ce"](z, y, alpha=0.0, beta=1.0, log_zero=-4.0) - 4 * wrong) < 1e-12


def test_the_two_taylor_losses():
    z, y = batch()
    f = 1 + z + z**2 / 2
    lecture = -(f / f.sum(1, keepdim=True))[torch.arange(16), y].log().mean()
    wrong = 1 - probs(z, y)
    feng = (wrong + wrong**2 / 2).mean()
    torch.testing.assert_close(LOSSES["taylor_ce"](z, y), lecture)
    torch.testing.assert_close(LOSSES["taylor_series_ce"](z, y), feng)
    assert abs(lecture - feng) > 0.1
    level = torch.zeros(1, K, dtype=torch.float64)  # without any knowledge: log 5, and .8 + .8^2/2
    assert LOSSES["taylor_ce"](level, y[:1]).item() == pytest.approx(1.6094, abs=1e-4)
    assert LOSSES["taylor_series_ce"](level, y[:1]).item() == pytest.approx(1.12, abs=1e-12)


@pytest.mark.parametrize("n", [2, 4, 6, 12, 20])
def test_taylor_softmax_of_high_order_nears_the_softmax(n):
    z, y = batch()
    f = sum(z**j / math.factorial(j) for j in range(n + 1))
    direct = -(f / f.sum(1, keepdim=True))[torch.arange(16), y].log().mean()
    torch.testing.assert_close(LOSSES["taylor_ce"](z, y, n=n), direct, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(LOSSES["taylor_ce"](z.float(), y, n=n).double(), direct, rtol=1e-4, atol=1e-5)
    assert n < 20 or abs(direct - F.cross_entropy(z, y)) < 1e-3


def test_taylor_series_of_many_terms_is_cross_entropy():
    z, y = batch()
    assert abs(LOSSES["taylor_series_ce"](z / 4, y, t=200) - F.cross_entropy(z / 4, y)) < 1e-6


def test_gce_lies_between_cross_entropy_and_the_mean_absolute_error():
    z, y = batch()
    torch.testing.assert_close(LOSSES["gce"](z, y, q=0.7), ((1 - probs(z, y) ** 0.7) / 0.7).mean())
    torch.testing.assert_close(LOSSES["gce"](z, y, q=1.0), (1 - probs(z, y)).mean())
    assert abs(LOSSES["gce"](z, y, q=1e-9) - F.cross_entropy(z, y)) < 1e-6
    torch.testing.assert_close(LOSSES["gce"](z, y, q=0.0), F.cross_entropy(z, y))


def test_active_passive_loss():
    z, y = batch()
    log_p = z.log_softmax(1)
    right = (log_p[torch.arange(16), y] / log_p.sum(1)).mean()
    torch.testing.assert_close(LOSSES["nce"](z, y), right)
    both = 0.17 * right + 0.34 * LOSSES["rce"](z, y)
    torch.testing.assert_close(LOSSES["nce_rce"](z, y, alpha=0.17, beta=0.34), both)
    # symmetric losses: summed over all labels they are a constant
    every = sum(LOSSES["nce"](z, torch.full((16,), k)) for k in range(K))
    assert every.item() == pytest.approx(1.0)


def test_gjs_between_its_limits():
    z, y = batch()
    assert abs(LOSSES["gjs"](z, y, pi=1e-7) - F.cross_entropy(z, y)) < 1e-4
    error = (z.softmax(1) - F.one_hot(y, K)).abs().sum(1).mean()
    off = [abs(LOSSES["gjs"](z, y, pi=1 - rest) - error / 2).item() for rest in (1e-3, 1e-6, 1e-14)]
    assert off[0] > off[1] > off[2] and off[2] < 0.03  # the limit is logarithmic
    p, e = z.softmax(1), F.one_hot(y, K).double()
    middle = (p + e) / 2
    js = 0.5 * (torch.xlogy(p, p / middle) + torch.xlogy(e, e / middle)).sum(1)
    torch.testing.assert_close(LOSSES["gjs"](z, y, pi=0.5), (js / (0.5 * math.log(2))).mean())
    # a second view that says the same changes nothing, another one costs
    same = LOSSES["gjs"](z, y, pi=0.5, views=2, view_logits=z.unsqueeze(0))
    torch.testing.assert_close(same, LOSSES["gjs"](z, y, pi=0.5))
    flipped = LOSSES["gjs"](z, z.softmax(1), pi=0.5, views=2, view_logits=z.flip(1).unsqueeze(0))
    assert flipped > LOSSES["gjs"](z, z.softmax(1), pi=0.5) + 0.1


# ---------------------------------------------------------------- bi-tempered

TEMPERED = [(0.8, 1.4, 0.06), (0.32, 1.0, 0.0), (0.6, 1.4, 0.0), (0.5, 1.5, 0.0), (0.2, 4.0, 0.0)]


@pytest.mark.parametrize(("t1", "t2", "s"), TEMPERED)
def test_bi_tempered_agrees_with_pytorch_optimizer(t1, t2, s):
    oracle = pytest.importorskip(
        "pytorch_optimizer", reason="the oracle is not installed: pip install --no-deps pytorch_optimizer"
    )
    z, y = batch(32)
    theirs_at_five = oracle.BiTemperedLogisticLoss(t1=t1, t2=t2, label_smooth=s)
    if t2 <= 2:  # their five iterations are converged there
        assert abs(LOSSES["bi_tempered"](z, y, t1=t1, t2=t2, smoothing=s) - theirs_at_five(z, y)) < 1e-5
    converged = importlib.import_module("pytorch_optimizer.loss.bi_tempered").bi_tempered_logistic_loss
    theirs = converged(z, y, t1=t1, t2=t2, label_smooth=s, num_iters=60)
    assert abs(LOSSES["bi_tempered"](z, y, t1=t1, t2=t2, smoothing=s) - theirs) < 1e-5
    ours_z, their_z = z.clone().requires_grad_(), z.clone().requires_grad_()
    LOSSES["bi_tempered"](ours_z, y, t1=t1, t2=t2, smoothing=s).backward()
    converged(their_z, y, t1=t1, t2=t2, label_smooth=s, num_iters=60).backward()
    torch.testing.assert_close(ours_z.grad, their_z.grad, rtol=0, atol=1e-5)


def test_five_fixed_point_steps_are_too_few_at_t2_of_4():
    """The popular code's iteration leaves sum p = 1.012 and more where logits lie far apart; ours goes on to 1.000."""
    z = 25 * batch(64)[0]
    for steps, low, high in ((5, 1.012, 1.02), (20, 1.0, 1.0001)):
        below = z - z.amax(1, keepdim=True)
        scaled = below
        for _ in range(steps):
            total = tempered_exp(scaled, 4.0).sum(1, keepdim=True)
            scaled = below * total ** (1 - 4.0)
        total = tempered_exp(scaled, 4.0).sum(1, keepdim=True)
        lam = -((1 / total) ** (1 - 4.0) - 1) / (1 - 4.0)
        found = tempered_exp(below - lam, 4.0).sum(1)
        assert low <= found.max() < high, steps
    assert (tempered_log_softmax(z, 4.0).exp().sum(1) - 1).abs().max() < 1e-12


def tempered_exp(x: torch.Tensor, t: float) -> torch.Tensor:
    return (1 + (1 - t) * x).clamp_min(0) ** (1 / (1 - t))


def test_bi_tempered_of_one_and_one_is_cross_entropy():
    z, y = batch()
    torch.testing.assert_close(LOSSES["bi_tempered"](z, y, t1=1.0, t2=1.0), F.cross_entropy(z, y))


@pytest.mark.parametrize("t", [0.0, 0.3, 0.9, 0.9999, 1.0001, 1.05, 1.4, 2.0, 4.0])
@pytest.mark.parametrize("k", [2, 5, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_tempered_softmax_sums_to_one(t, k, dtype):
    z = torch.cat([batch(8, k)[0], 1000 * batch(8, k)[0]]).to(dtype)
    total = tempered_log_softmax(z, t).exp().sum(1)
    assert (total - 1).abs().max() < (1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("t", [0.9999, 1.0001])
def test_the_tempered_softmax_is_continuous_at_one(t):
    z, _ = batch()
    assert (tempered_log_softmax(z, t).exp() - z.softmax(1)).abs().max() < 1e-3


@pytest.mark.parametrize(("t1", "t2"), [(0.2, 0.5), (0.5, 0.5), (0.8, 0.0), (0.2, 4.0), (0.0, 1.05), (1.0, 2.0)])
def test_the_gradient_of_bi_tempered_does_not_run_through_the_iterations(t1, t2):
    z, _ = batch(6, seed=5)
    assert torch.autograd.gradcheck(
        lambda logits: LOSSES["bi_tempered"](logits, soft(6), t1=t1, t2=t2), z.requires_grad_()
    )


@pytest.mark.parametrize(("t1", "t2"), [(0.2, 0.5), (0.8, 0.3), (1.0, 0.5), (0.8, 1.05), (0.2, 4.0)])
def test_bi_tempered_is_finite_in_and_outside_of_its_support(t1, t2):
    z = torch.tensor([[1e4, -1e4, 0, 1, -1], [3.0, 0, -4, 0, 0]], requires_grad=True)
    value = LOSSES["bi_tempered"](z, torch.tensor([1, 2]), t1=t1, t2=t2)
    value.backward()
    assert value.isfinite() and z.grad.isfinite().all()


# ---------------------------------------------------------------- composed


def test_combo_is_the_weighted_sum():
    z, y = batch()
    terms = [
        {"name": "bi_tempered", "t1": 0.32, "t2": 1.0},
        {"name": "taylor_ce", "smoothing": 0.06, "smoothing_over": "K-1"},
        {"name": "nce_rce", "alpha": 0.17, "beta": 0.34, "weight": 0.5},
    ]
    by_hand = (
        LOSSES["bi_tempered"](z, y, t1=0.32, t2=1.0)
        + LOSSES["taylor_ce"](z, y, smoothing=0.06, smoothing_over="K-1")
        + 0.5 * LOSSES["nce_rce"](z, y, alpha=0.17, beta=0.34)
    )
    torch.testing.assert_close(LOSSES["combo"](z, y, terms=terms), by_hand)
    weights = [1.0, 2.0, 3.0, 4.0, 5.0]
    one = [{"name": "focal", "weight": 2.0}]
    torch.testing.assert_close(
        LOSSES["combo"](z, y, terms=one, class_weights=weights, smoothing=0.1),
        2 * LOSSES["focal"](z, y, class_weights=weights, smoothing=0.1),
    )


def test_class_balanced_takes_the_trainings_counts_inside_a_combo():
    z, y = batch()
    counts = [1000, 100, 10, 1, 50]
    terms = [{"name": "class_balanced", "beta": 0.99}]
    loss = make_loss("combo", {"terms": terms}, classes=K, class_counts=counts)
    torch.testing.assert_close(loss(z, y), LOSSES["class_balanced"](z, y, counts=counts, beta=0.99))
    with pytest.raises(SettingsError, match="counts"):
        make_loss("combo", {"terms": terms}, classes=K)


def test_class_balanced_weights_sum_to_the_number_of_classes():
    counts = [1000, 100, 10, 1, 50]
    weights = effective_number_weights(counts, 0.99)
    assert sum(weights) == pytest.approx(5)
    raw = [(1 - 0.99) / (1 - 0.99**n) for n in counts]
    assert weights == pytest.approx([5 * w / sum(raw) for w in raw])
    assert effective_number_weights(counts, 0.0) == [1.0] * 5
    assert effective_number_weights(torch.tensor(counts, dtype=torch.float32).numpy(), 0.99) == pytest.approx(weights)
    nearly = effective_number_weights(counts, 1 - 1e-12)
    assert nearly[0] / nearly[3] == pytest.approx(1 / 1000, rel=1e-3)
    assert effective_number_weights([4, 0, 4], 0.9) == pytest.approx([1.5, 0, 1.5])
    z, y = batch()
    torch.testing.assert_close(
        LOSSES["class_balanced"](z, y, counts=counts, beta=0.99, inner={"name": "focal", "gamma": 1.0}),
        LOSSES["focal"](z, y, gamma=1.0, class_weights=weights),
    )


# ---------------------------------------------------------------- with features, teachers and memory


def test_isda_is_the_expected_loss_of_moved_features():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (200,), generator=generator)
    loss = make_loss("isda", {"lam": 0.5}, classes=3)
    for part in (slice(0, 70), slice(70, 200)):  # the running covariance is that of the whole
        loss(features[part] @ weight.T, y[part], features=features[part], weight=weight)
    for k in range(3):
        rows = features[y == k]
        torch.testing.assert_close(loss.term.covariance[k], torch.cov(rows.T, correction=0))
        torch.testing.assert_close(loss.term.mean[k], rows.mean(0))
    loss.eval()
    z = features @ weight.T
    value = loss(z, y, features=features, weight=weight)
    each = []
    for i in range(200):
        apart = weight - weight[y[i]]
        moved = z[i] + 0.25 * torch.einsum("ja,ab,jb->j", apart, loss.term.covariance[y[i]], apart)
        each.append(-moved.log_softmax(0)[y[i]])
    torch.testing.assert_close(value, torch.stack(each).mean())
    # it bounds the mean loss over features drawn with covariance lam Sigma from above
    chol = torch.linalg.cholesky(0.5 * loss.term.covariance)
    noise = torch.randn(300, 200, 4, generator=generator, dtype=torch.float64)
    drawn = features + torch.einsum("iab,sib->sia", chol[y], noise)
    sampled = torch.stack([F.cross_entropy(one @ weight.T, y) for one in drawn]).mean()
    assert F.cross_entropy(z, y) < sampled < value + 0.01
    loss.start_epoch(0, 10)
    torch.testing.assert_close(loss(z, y, features=features, weight=weight), F.cross_entropy(z, y))


def test_triplet_takes_the_hardest_pair():
    z, _ = batch(5)
    features = torch.tensor([[0.0, 0], [1, 0], [0, 3], [2, 0], [9, 9]], dtype=torch.float64)
    y = torch.tensor([0, 0, 0, 1, 2])
    # class 0: farthest own 3, sqrt 10, sqrt 10; nearest other 2, 1, sqrt 13; photographs 3 and 4 stand alone
    gaps = torch.tensor([3 - 2, 10**0.5 - 1, 10**0.5 - 13**0.5], dtype=torch.float64)
    ce = F.cross_entropy(z, y)
    torch.testing.assert_close(LOSSES["triplet"](z, y, features=features), ce + F.softplus(gaps).mean())
    hinge = LOSSES["triplet"](z, y, features=features, margin=0.2, weight=0.5)
    torch.testing.assert_close(hinge, ce + 0.5 * (gaps + 0.2).relu().mean())
    alone = LOSSES["triplet"](z, torch.zeros(5, dtype=torch.long), features=features)
    torch.testing.assert_close(alone, F.cross_entropy(z, torch.zeros(5, dtype=torch.long)))


def test_distillation_is_batchmean_and_not_mean():
    z, y = batch()
    teacher, _ = batch(seed=8)
    ours = LOSSES["distillation"](z, y, teacher=teacher, lam=1.0, temperature=3.0)
    soft_z, soft_t = (z / 3).log_softmax(1), (teacher / 3).softmax(1)
    torch.testing.assert_close(ours, 9 * F.kl_div(soft_z, soft_t, reduction="batchmean"))
    elementwise = 9 * (soft_t * (soft_t.log() - soft_z)).mean()
    assert (ours / elementwise).item() == pytest.approx(5.000, abs=5e-4)
    given = LOSSES["distillation"](
        z, y, teacher=teacher.softmax(1), lam=1.0, temperature=3.0, teacher_gives="probabilities"
    )
    torch.testing.assert_close(given, ours)
    torch.testing.assert_close(LOSSES["distillation"](z, y, teacher=teacher, lam=0.0), F.cross_entropy(z, y))


def test_elr_remembers_each_photograph():
    z, y = batch(4)
    loss = make_loss("elr", {"lam": 3.0, "beta": 0.7}, classes=K, photographs=10)
    index = torch.tensor([7, 2, 9, 0])
    value = loss(z, y, index=index)
    t = 0.3 * z.softmax(1)
    torch.testing.assert_close(loss.term.belief[index].double(), t, rtol=1e-6, atol=1e-7)
    assert loss.term.belief[[1, 3, 4, 5, 6, 8]].abs().sum() == 0
    right = F.cross_entropy(z, y) + 3 * (1 - (t * z.softmax(1)).sum(1)).log().mean()
    torch.testing.assert_close(value, right)
    loss(z, y, index=index)
    torch.testing.assert_close(loss.term.belief[index].double(), 1.7 * t, rtol=1e-6, atol=1e-7)
    remembered = loss.term.belief.clone()
    loss.eval()(z, y, index=index)
    assert torch.equal(loss.term.belief, remembered)
    with pytest.raises(SettingsError, match="how many"):
        make_loss("elr", classes=K)


def test_sop_finds_the_wrong_label():
    """Predictions that stay right against one wrong label: u grows there and takes the error up."""
    y = torch.arange(20) % K
    z = F.one_hot(y, K).float() * 6
    wrong = y.clone()
    wrong[3] = (y[3] + 2) % K
    loss = make_loss("sop", {}, classes=K, photographs=20)
    first = loss(z, wrong, index=torch.arange(20))
    for _ in range(300):
        last = loss(z, wrong, index=torch.arange(20))
    taken = loss.term.u.square()[torch.arange(20), wrong]
    assert taken[3] > 0.5 and taken[torch.arange(20) != 3].max() < 0.1
    assert loss.term.v.square()[3, y[3]] > 0.5  # what the network says instead of the label is taken off
    assert last < first / 3
    assert loss.term.u.abs().max() <= 1 and loss.term.v.abs().max() <= 1


def test_sop_begins_as_cross_entropy():
    z, y = batch()
    z = z / 4
    torch.testing.assert_close(LOSSES["sop"](z, y, index=torch.arange(16)), F.cross_entropy(z, y))


def test_mixed_labels_are_the_mixed_losses():
    """For losses of one label, soft labels give l L(a) + (1-l) L(b)."""
    z, y = batch()
    other = y.flip(0)
    mixed = 0.3 * F.one_hot(y, K).double() + 0.7 * F.one_hot(other, K).double()
    for name in ("focal", "taylor_ce", "gce", "nce_rce", "symmetric_ce", "focal_cosine"):
        pair = 0.3 * LOSSES[name](z, y) + 0.7 * LOSSES[name](z, other)
        torch.testing.assert_close(LOSSES[name](z, mixed), pair)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_gives_what_the_cpu_gives(name):
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    (z, y), (loss, extra) = batch(), made(name, smoothing=0.1)
    on_cpu = loss(z, y, **extra)
    there = loss.cuda()(z.cuda(), y.cuda(), **{key: value.cuda() for key, value in extra.items()})
    torch.testing.assert_close(there.cpu(), on_cpu, rtol=1e-5, atol=1e-6)
