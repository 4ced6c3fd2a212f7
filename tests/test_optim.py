"""Optimisers, schedules and averages: groups and rates as the recipe says, means computed by hand."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import timm
import timm.optim
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from manihot.errors import SettingsError
from manihot.settings import Choice, Model, Optimizer
from manihot.train.networks.backbones import make_model, set_training, stages_of
from manihot.train.networks.heads import Classifier
from manihot.train.optim.averaging import AVERAGING, check_averaging, measure_norms
from manihot.train.optim.optimizers import OPTIMIZERS, make_optimizer, parameter_groups
from manihot.train.optim.schedules import SCHEDULES, check_schedule, make_schedule, step_factor

SMALL = (64, 64)


@pytest.fixture(scope="module")
def network():
    return make_model(Model(backbone="test_efficientnet", pretrained=False), 3, SMALL)


def batch(seed: int = 0) -> torch.Tensor:
    return torch.rand(4, 3, *SMALL, generator=torch.Generator().manual_seed(seed))


# Optimisers


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_a_loss_and_resumes_to_the_bit(name):
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = make_model(Model(backbone="test_efficientnet", pretrained=False, dropout=0.0), 3, SMALL)
        return model, make_optimizer(model, Optimizer(name=name, lr=3e-3))

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
        losses = []
        set_training(model)
        for _ in range(steps):
            loss = nn.functional.cross_entropy(model(batch()), torch.tensor([0, 1, 2, 0]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    model, optimizer = fresh()
    losses = train(model, optimizer, 4)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    state = deepcopy(optimizer.state_dict())
    rest = train(model, optimizer, 3)
    assert rest[-1] < losses[0]
    again, second = fresh()
    again.load_state_dict(weights)
    second.load_state_dict(state)
    assert train(again, second, 3) == rest


def test_an_unknown_optimizer_is_refused(network):
    with pytest.raises(SettingsError, match="there is no optimiser 'adamx'"):
        make_optimizer(network, Optimizer(name="adamx"))


@pytest.mark.parametrize(
    ("name", "words", "remedy"),
    [
        ("sam", "goes with any", "optimizer.sam: 0.05"),
        ("SAM", "goes with any", "optimizer.sam: 0.05"),
        ("lookahead", "goes with any", "optimizer.lookahead: 6"),
        ("AdamP", "there is no optimiser 'AdamP'", "did you mean 'adamp'"),
        ("timm:adan", "there is no optimiser 'timm:adan'", "one of"),
    ],
)
def test_a_wrong_optimizer_is_explained(network, name, words, remedy):
    with pytest.raises(SettingsError, match=words) as caught:
        make_optimizer(network, Optimizer(name=name))
    assert remedy in caught.value.remedy


def test_optimizers_of_another_package(network, monkeypatch):
    oracle = pytest.importorskip("pytorch_optimizer", reason="not installed (extra `optim`)")
    made = make_optimizer(network, Optimizer(name="pytorch_optimizer:adan", lr=0.02))
    assert type(made) is oracle.load_optimizer("adan")
    assert {group["lr"] for group in made.param_groups} == {0.02}
    for name, words in (
        ("adn", "has no 'adn'"),
        ("adahessian", "can't be used here"),
        ("schedulefreeadamw", "other weights"),
    ):
        with pytest.raises(SettingsError, match=words) as caught:
            make_optimizer(network, Optimizer(name=f"pytorch_optimizer:{name}"))
        assert caught.value.remedy
    monkeypatch.setattr("manihot.train.optim.optimizers.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="not installed") as caught:
        make_optimizer(network, Optimizer(name="pytorch_optimizer:adan"))
    assert "manihot[optim]" in caught.value.remedy


def test_norms_and_biases_never_decay(network):
    groups = parameter_groups(network, Optimizer(weight_decay=0.1))
    for group in groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.1}
        assert group["weight_decay"] in (0.0, 0.1)
    together = [id(p) for group in groups for p in group["params"]]
    assert sorted(together) == sorted(id(p) for p in network.parameters())  # each once


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("test_vit", {"cls_token", "pos_embed"}),
        ("beit_base_patch16_224", {"cls_token", "relative_position_bias_table", "gamma_1", "gamma_2"}),
        ("swin_tiny_patch4_window7_224", {"relative_position_bias_table"}),
        ("fastvit_t8", {"gamma"}),
        ("eca_nfnet_l0", {"gain"}),
        ("botnet26t_256", {"height_rel", "width_rel"}),
    ],
)
def test_embeddings_tokens_tables_and_gammas_never_decay(backbone, expected):
    """Several have two and more dimensions, and timm's own list lacks some of them."""
    with torch.device("meta"):
        network = Classifier.__new__(Classifier)
        nn.Module.__init__(network)
        network.backbone = timm.create_model(backbone, num_classes=0)
        network.head = nn.Linear(8, 3)
    decayed = {
        id(p)
        for group in parameter_groups(network, Optimizer(weight_decay=0.1))
        for p in group["params"]
        if group["weight_decay"]
    }
    free = {name for name, p in network.named_parameters() if id(p) not in decayed}
    assert expected <= {name.rpartition(".")[2] for name in free}
    for name, parameter in network.named_parameters():
        layer = network.get_submodule(name.rpartition(".")[0])
        matrix = name.endswith(".weight") and isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd))
        assert (name in free) != matrix, name
        assert parameter.ndim > 1 or name in free


def test_rates_fall_from_stage_to_stage_and_the_head_has_its_own(network):
    stages = stages_of(network)
    top = max(stages.values())
    rate = {
        id(p): group["lr"]
        for group in parameter_groups(network, Optimizer(lr=1.0, layer_decay=0.5, head_lr=7.0))
        for p in group["params"]
    }
    for name, parameter in network.named_parameters():
        expected = 7.0 if stages[name] == top else 0.5 ** (top - 1 - stages[name])
        assert rate[id(parameter)] == pytest.approx(expected), name
    plain = parameter_groups(network, Optimizer(lr=0.3))
    assert {group["lr"] for group in plain} == {0.3}


def test_frozen_stages_are_not_given_to_the_optimizer():
    model = make_model(Model(backbone="test_efficientnet", pretrained=False, freeze_stages=2), 3, SMALL)
    given = {id(p) for group in parameter_groups(model, Optimizer()) for p in group["params"]}
    assert given == {id(p) for p in model.parameters() if p.requires_grad}


def walk(make, steps: int = 20) -> torch.Tensor:
    """The weights after some steps on a bowl whose gradient is known."""
    weights = nn.Parameter(torch.linspace(-1, 1, 24).view(4, 6))
    bias = nn.Parameter(torch.linspace(0.5, 1, 4))
    optimizer = make(
        [{"params": [bias], "weight_decay": 0.0, "lr": 0.01}, {"params": [weights], "weight_decay": 0.1, "lr": 0.02}]
    )
    target = torch.linspace(2, -1, 24).view(4, 6)
    for step in range(steps):
        optimizer.zero_grad()
        scale = 1 + step % 3
        (((weights - target) ** 2 * scale).sum() + (weights.sum(1) * bias).sum() + bias.square().sum()).backward()
        optimizer.step()
    return torch.cat([weights.detach().flatten(), bias.detach()])


def test_adamp_is_timms_called_directly():
    ours = walk(lambda groups: OPTIMIZERS["adamp"](groups, 1e-3))
    torch.testing.assert_close(ours, walk(lambda groups: timm.optim.AdamP(groups, lr=1e-3)), rtol=0, atol=0)
    nesterov = walk(lambda groups: timm.optim.AdamP(groups, lr=1e-3, nesterov=True))
    assert float((ours - nesterov).abs().max()) > 1e-3  # what create_optimizer_v2 would give
    assert torch.equal(walk(lambda groups: OPTIMIZERS["adamp_nesterov"](groups, 1e-3)), nesterov)


@pytest.mark.parametrize(
    ("name", "other", "settings"), [("sgdp", "SGDP", {"momentum": 0.9, "nesterov": True}), ("adamp", "AdamP", {})]
)
def test_projections_are_another_implementations(name, other, settings):
    oracle = pytest.importorskip("pytorch_optimizer", reason="not installed (extra `oracles`)")
    for way in (walk, turn):  # without a projection, and with one in every step
        ours = way(lambda groups: OPTIMIZERS[name](groups, 1e-3))
        theirs = way(lambda groups: getattr(oracle, other)(groups, lr=1e-3, **settings))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def turn(make, steps: int = 30) -> torch.Tensor:
    """The weights after some steps on what their rows' directions alone decide, as under a norm: there AdamP projects.

    `walk` never projects: its gradient has a large part along the weights.
    """
    weights = nn.Parameter(torch.linspace(-1, 1, 24).view(4, 6).double().sin() + 0.3)
    plain = nn.Parameter(torch.linspace(0.5, 2, 8).view(2, 4).double())  # not of that kind: never projected
    optimizer = make([{"params": [weights, plain], "weight_decay": 0.1, "lr": 0.05}])
    target = torch.linspace(2, -1, 24).view(4, 6).double()
    for _ in range(steps):
        optimizer.zero_grad()
        (-(nn.functional.normalize(weights) * target).sum() + plain.square().sum() / 2).backward()
        optimizer.step()
    return torch.cat([weights.detach().flatten(), plain.detach().flatten()])


class ByThePaper(torch.optim.Optimizer):
    """AdamP and SGDP as arXiv 2006.08217 and its authors' defaults (delta .1, wd_ratio .1) define them.

    timm's agree to 4e-8 after 30 projected steps, SGDP's too.
    """

    def __init__(self, groups, adam: bool, nesterov: bool, project: bool = True) -> None:
        super().__init__(groups, {})
        self.adam, self.nesterov, self.project, self.projections, self.steps = adam, nesterov, project, 0, 0

    def step(self) -> None:
        self.steps += 1
        for group in self.param_groups:
            for p in group["params"]:
                with torch.no_grad():
                    self.move(p, p.grad, group["lr"], group["weight_decay"])

    def move(self, p, g, lr: float, decay: float) -> None:
        state, t = self.state[p], self.steps
        first, second = state.get("first", torch.zeros_like(p)), state.get("second", torch.zeros_like(p))
        if self.adam:
            state["first"], state["second"] = first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
            ahead = 0.9 * first + 0.1 * g if self.nesterov else first
            way = ahead / (second.sqrt() / (1 - 0.999**t) ** 0.5 + 1e-8) / (1 - 0.9**t)
        else:
            state["first"] = first = 0.9 * first + g
            way = g + 0.9 * first if self.nesterov else first
        share = 1.0
        for rows in (p.flatten(1), p.view(1, -1)) if self.project else ():
            cosine = nn.functional.cosine_similarity(g.view_as(rows), rows, dim=1, eps=1e-8).abs().max()
            if cosine < 0.1 / rows.shape[1] ** 0.5:
                unit = rows / rows.norm(dim=1, keepdim=True)
                way = (way.view_as(rows) - unit * (unit * way.view_as(rows)).sum(1, keepdim=True)).view_as(p)
                share, self.projections = 0.1, self.projections + 1
                break
        p.mul_(1 - lr * decay * share / (1 if self.adam else 0.1)).sub_(lr * way)


@pytest.mark.parametrize(
    ("name", "adam", "nesterov"), [("adamp", True, False), ("adamp_nesterov", True, True), ("sgdp", False, True)]
)
def test_projections_are_the_papers(name: str, adam: bool, nesterov: bool):
    made = []

    def reference(groups, **changes):
        made.append(ByThePaper(groups, adam, nesterov, **changes))
        return made[-1]

    ours, papers = turn(lambda groups: OPTIMIZERS[name](groups, 1e-3)), turn(reference)
    assert made[0].projections == 30  # one matrix of two, in every step
    torch.testing.assert_close(ours, papers, rtol=0, atol=1e-7)
    without = turn(lambda groups: reference(groups, project=False))
    assert float((ours - without).abs().max()) > 0.1
    otherwise = turn(lambda groups: ByThePaper(groups, adam, not nesterov))
    assert float((ours - otherwise).abs().max()) > 1e-2  # Nesterov momentum is another optimiser


def test_sgd_is_nesterovs():
    ours = walk(lambda groups: OPTIMIZERS["sgd"](groups, 1e-3))
    torch.testing.assert_close(
        ours, walk(lambda groups: torch.optim.SGD(groups, lr=1e-3, momentum=0.9, nesterov=True)), rtol=0, atol=0
    )


# Schedules


def factors(choice: Choice, epochs: int = 10, steps: int = 7) -> list[float]:
    return [step_factor(step, choice, epochs, steps) for step in range(epochs * steps + 1)]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.33, 1.0])
@pytest.mark.parametrize("epochs", [1, 10])
@pytest.mark.parametrize("steps", [1, 7])
def test_every_schedule_stays_between_nothing_and_the_whole_rate(name, warmup, epochs, steps):
    found = factors(Choice(name=name, warmup=warmup), epochs, steps)
    assert all(math.isfinite(f) and 0 <= f <= 1 for f in found)
    assert found[0] > 0
    warm = [f for step, f in enumerate(found) if step / steps < warmup * epochs]
    assert warm == sorted(warm)
    assert len(set(warm)) == len(warm)
    assert len(warm) == math.ceil(warmup * epochs * steps - 1e-9)


def test_cosine_begins_at_one_and_ends_at_its_floor():
    found = factors(Choice(name="cosine", floor=0.2))
    assert found[0] == 1
    assert found[35] == pytest.approx(0.6)
    assert found[-1] == pytest.approx(0.2)
    assert found == sorted(found, reverse=True)
    assert factors(Choice(name="cosine"))[-1] == pytest.approx(0, abs=1e-12)
    warm = factors(Choice(name="cosine", warmup=0.2))
    assert max(warm) == warm[14] == 1
    assert warm[-1] == pytest.approx(0, abs=1e-12)


def test_cosine_restarts_every_period():
    found = factors(Choice(name="cosine_restarts", period=5.0, floor=0.1))
    assert found[0] == found[35] == 1
    assert min(found) == pytest.approx(found[34])
    assert 0.1 < found[34] < 0.11


def test_inverse_epoch_falls_from_epoch_to_epoch():
    found = factors(Choice(name="inverse_epoch"), 4, 3)
    assert found[:12] == [1] * 3 + [1 / 2] * 3 + [1 / 3] * 3 + [1 / 4] * 3


def test_cosine_restarts_can_rise_as_the_first_places_did():
    """1e-4/7 with eta_min 1e-4 and T0 = 10: 1.4e-5 at first, 9.8e-5 in the last epoch, then anew."""
    found = factors(Choice(name="cosine_restarts", period=10.0, floor=7.0), 20, 3)
    rates = [1e-4 / 7 * factor for factor in found[::3]]
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1e-4 / 7)
    torchs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=10, eta_min=1e-4)
    for rate in rates:
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step()
    assert rates[9] == pytest.approx(9.79e-5, rel=1e-3)
    assert rates[10] == rates[0] == pytest.approx(1.43e-5, rel=1e-3)


def test_step_and_multistep_are_torchs():
    weight = nn.Parameter(torch.zeros(1))
    for choice, make in (
        (Choice(name="step", every=3, drop=0.5), lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5)),
        (Choice(name="multistep", at=[0.3, 0.7]), lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [3, 7], 0.1)),
    ):
        optimizer = torch.optim.SGD([weight], lr=1.0)
        torchs = make(optimizer)
        for found in factors(choice)[:-1:7]:
            assert found == pytest.approx(optimizer.param_groups[0]["lr"])
            optimizer.step()
            torchs.step()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_one_cycle_is_torchs_with_momentum(kind):
    """torch's cycle is over at its last step; ours of N steps is at its end after them: torch's of N + 1."""
    steps, peak = 70, 0.3
    settings = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    ours = kind([nn.Parameter(torch.zeros(1))], lr=0.5, **settings)
    theirs = kind([nn.Parameter(torch.zeros(1))], lr=0.5, **settings)
    schedule = make_schedule(ours, Choice(name="one_cycle", peak=peak), 10, 7)
    torchs = torch.optim.lr_scheduler.OneCycleLR(
        theirs, 0.5, total_steps=steps + 1, pct_start=(peak * steps + 1) / (steps + 1)
    )
    lows = []
    for _ in range(steps):
        one, two = ours.param_groups[0], theirs.param_groups[0]
        assert one["lr"] == pytest.approx(two["lr"], rel=1e-6)
        momenta = [g["momentum"] if "momentum" in g else g["betas"][0] for g in (one, two)]
        assert momenta[0] == pytest.approx(momenta[1], rel=1e-6)
        lows.append(momenta[0])
        ours.step()
        theirs.step()
        schedule.step()
        torchs.step()
    assert lows[0] == pytest.approx(0.95)
    assert min(lows) == lows[21] == pytest.approx(0.85)
    assert ours.param_groups[0]["lr"] == pytest.approx(0.5 * 4e-6)
    if "betas" in ours.param_groups[0]:
        assert ours.param_groups[0]["betas"][1] == 0.999  # its second beta is left alone


@pytest.mark.parametrize("sign", [1, -1])
def test_plateau_is_torchs_also_where_accuracy_is_watched(sign):
    scores = np.round(np.random.default_rng(3).random(60), 2)  # with ties
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="min" if sign > 0 else "max", factor=0.5, patience=3, threshold=0.05, min_lr=0.01, eps=0
    )
    ours = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    choice = Choice(name="plateau", drop=0.5, patience=3, threshold=0.05, floor=0.01)
    schedule = make_schedule(ours, choice, 60, 2)
    seen = set()
    for score in scores:
        torchs.step(float(score))
        for _ in range(2):
            ours.step()
            schedule.step()
        schedule.after_epoch(sign * float(score))
        assert ours.param_groups[0]["lr"] == pytest.approx(optimizer.param_groups[0]["lr"])
        seen.add(ours.param_groups[0]["lr"])
    assert len(seen) > 4
    again = make_schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), choice, 60, 2)
    again.load_state_dict(schedule.state_dict())
    assert again.optimizer.param_groups[0]["lr"] == ours.param_groups[0]["lr"]


def test_warm_up_rises_to_where_the_schedule_begins():
    found = factors(Choice(name="one_cycle", warmup=0.2, start=0.1))
    assert found[:14] == pytest.approx([0.1 * (step + 1) / 15 for step in range(14)])
    assert found[14] == pytest.approx(0.1)
    assert found[13] < found[14] < found[15]


def test_the_schedule_scales_each_groups_rate():
    one, two = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [one], "lr": 1.0}, {"params": [two], "lr": 4.0}])
    choice = Choice(name="cosine", warmup=0.1)
    schedule = make_schedule(optimizer, choice, 10, 7)
    for factor in factors(choice)[:-1]:
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([factor, 4 * factor])
        optimizer.step()
        schedule.step()
    assert choice.settings == {"warmup": 0.1}  # read, never used up


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice(name="cosin"), "unknown schedule 'cosin'"),
        (Choice(name="cosine", flor=0.1), "no setting 'flor'"),
        (Choice(name="constant", floor=0.1), "no setting 'floor'"),
        (Choice(name="cosine", warmup=1.5), "warmup = 1.5"),
        (Choice(name="cosine", warmup="long"), "warmup = 'long'"),
        (Choice(name="cosine", warmup=True), "warmup = True"),
        (Choice(name="cosine", warmup=math.nan), "warmup = nan"),
        (Choice(name="cosine", floor=-0.1), "floor = -0.1"),
        (Choice(name="cosine_restarts", period=0), "period = 0"),
        (Choice(name="plateau", patience=1.5), "patience = 1.5"),
        (Choice(name="plateau", watch="los"), "watch = 'los'"),
        (Choice(name="plateau", scores=[1]), "no setting 'scores'"),
        (Choice(name="multistep", at=[0.5, 2]), r"at = \[0.5, 2\]"),
        (Choice(name="multistep", at=0.5), "at = 0.5"),
        (Choice(name="multistep", at=[]), r"at = \[\]"),
        (Choice(name="one_cycle", momentum_low=1), "momentum_low = 1"),
    ],
)
def test_a_wrong_schedule_is_explained(choice, words):
    with pytest.raises(SettingsError, match=rf"mine\.yaml:3: schedule.*{words}") as caught:
        check_schedule(choice, "mine.yaml:3: schedule")
    assert caught.value.remedy


# Averages


class Counter(nn.Module):
    """Its one weight is the global step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


def run_counter(average, model: Counter, epochs: int = 5, steps: int = 100) -> None:
    step = 0
    for epoch in range(epochs):
        for _ in range(steps):
            model.weight.data.fill_(step)
            average.after_step(model, step)
            step += 1
        average.after_epoch(model, epoch)


def test_swa_averages_the_ends_of_epochs():
    model = Counter()
    average = AVERAGING["swa"](model, 5, start=0.0)
    run_counter(average, model)
    kept = average.finish(model, list)
    assert float(kept.weight.detach()) == 299  # of 99, 199, 299, 399, 499; every step would give 249.5
    assert int(average.average.n_averaged) == 5
    assert float(model.weight.detach()) == 499
    assert average.model(model) is model


def test_swa_begins_at_its_share_of_the_epochs():
    model = Counter()
    average = AVERAGING["swa"](model, 5, start=0.5)  # epochs 2, 3, 4
    run_counter(average, model)
    assert float(average.finish(model, list).weight.detach()) == 399
    untouched = AVERAGING["swa"](model, 5)
    assert untouched.finish(model, list) is model


def test_swa_resumes_from_its_state():
    model = Counter()
    whole, first = (AVERAGING["swa"](model, 4, start=0.0) for _ in range(2))
    for epoch in range(4):
        model.weight.data.fill_(epoch**2)
        whole.after_epoch(model, epoch)
        if epoch == 2:
            second = AVERAGING["swa"](model, 4, start=0.0)
            second.load_state_dict(first.state_dict())
            first = second
        first.after_epoch(model, epoch)
    assert float(first.finish(model, list).weight.detach()) == float(whole.finish(model, list).weight.detach()) == 3.5


def test_measured_norms_are_torchs_where_all_are_trained():
    def fresh() -> nn.Module:
        return make_model(Model(backbone="test_efficientnet", pretrained=False, dropout=0.0), 3, SMALL)

    ours, theirs = fresh(), fresh()
    batches = [batch(1), batch(2), batch(3)]
    set_training(ours)
    names = [n for n, m in ours.named_modules() if isinstance(m, nn.BatchNorm2d)]
    measure_norms(ours, names, batches)
    update_bn(batches, theirs)
    for name, value in theirs.named_buffers():
        torch.testing.assert_close(dict(ours.named_buffers())[name], value)
    assert not any(m.training for m in ours.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize(("stages", "freeze_norm"), [(0, False), (2, False), (0, True)])
def test_swa_measures_the_statistics_that_training_measures(stages, freeze_norm):
    model = make_model(Model(backbone="test_efficientnet", pretrained=False, freeze_stages=stages), 3, SMALL)
    average = AVERAGING["swa"](model, 2, start=0.0)
    set_training(model, freeze_norm)
    kept = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and not m.training}
    assert bool(kept) == bool(stages or freeze_norm)
    average.after_step(model, 0)
    average.after_epoch(model, 0)
    model.eval()  # as judging leaves it
    resumed = AVERAGING["swa"](model, 2, start=0.0)
    resumed.load_state_dict(average.state_dict())
    before = {n: b.clone() for n, b in resumed.average.module.named_buffers() if n.endswith("running_mean")}
    final = resumed.finish(model, lambda: [batch(1) + 1, batch(2) + 1])
    for name, value in final.named_buffers():
        if name.endswith("running_mean"):
            assert torch.equal(value, before[name]) == (name.removesuffix(".running_mean") in kept), name


def test_ema_with_warmup_has_moved_where_the_plain_one_has_not():
    model = Counter()
    warm, plain = (AVERAGING["ema"](model, 6, decay=0.9999, warmup=w) for w in (True, False))
    model.weight.data.fill_(1.0)
    for step in range(2, 602):  # timm copies the weights in the first two steps
        warm.after_step(model, step)
        plain.after_step(model, step)
    assert float(plain.model(model).weight.detach()) == pytest.approx(1 - 0.9999**600, abs=1e-4)  # 6 %
    assert float(warm.model(model).weight.detach()) > 0.99
    assert warm.finish(model, list) is warm.model(model)


def test_ema_is_the_running_mean_of_its_definition():
    model = Counter()
    average = AVERAGING["ema"](model, 1, decay=0.9, warmup=False)
    expected = 0.0
    for step in range(2, 12):
        model.weight.data.fill_(step)
        average.after_step(model, step)
        expected = 0.9 * expected + 0.1 * step
    assert float(average.model(model).weight.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(model.weight.detach()) == 11


def test_ema_carries_the_statistics_of_batch_norms():
    model = make_model(Model(backbone="test_efficientnet", pretrained=False), 3, SMALL)
    average = AVERAGING["ema"](model, 1, decay=0.5, warmup=False)
    set_training(model)
    for step in range(8):
        model(batch(step) + 1)
        average.after_step(model, step)
    moved = [b.abs().sum() > 0 for n, b in average.model(model).named_buffers() if n.endswith("running_mean")]
    assert all(moved)


@pytest.mark.parametrize("name", AVERAGING)
def test_every_average_gives_a_network_and_a_state(name):
    model = make_model(Model(backbone="test_efficientnet", pretrained=False), 3, SMALL)
    average = AVERAGING[name](model, 2)
    set_training(model)
    for epoch in range(2):
        for step in range(2):
            model(batch(step))
            average.after_step(model, 2 * epoch + step)
        average.after_epoch(model, epoch)
    other = AVERAGING[name](model, 2)
    other.load_state_dict(average.state_dict())
    one, two = (a.finish(model, lambda: [batch(1)]) for a in (average, other))
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())
    assert set(one.state_dict()) == set(model.state_dict())
    one.eval()
    assert torch.isfinite(one(batch())).all()


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice(name="sma"), "unknown averaging 'sma'"),
        (Choice(name="ema", deacy=0.9), "no setting 'deacy'"),
        (Choice(name="none", start=0.5), "no setting 'start'"),
        (Choice(name="ema", decay=1.0), "decay = 1.0"),
        (Choice(name="ema", decay="slow"), "decay = 'slow'"),
        (Choice(name="ema", warmup=3), "warmup = 3"),
        (Choice(name="swa", start=1), "start = 1"),
    ],
)
def test_a_wrong_average_is_explained(choice, words):
    with pytest.raises(SettingsError, match=rf"averaging.*{words}") as caught:
        check_averaging(choice, "averaging")
    assert caught.value.remedy
