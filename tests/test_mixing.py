"""Mixed labels are the true shares, alike seeds mix alike, and each mix against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from manihot.errors import DataError, SettingsError
from manihot.settings import Choice
from manihot.train.data.mix_regions import activation_share, fourier_mask, partners
from manihot.train.data.mixing import MIXES, NEEDS, Box, Mixer, Position, class_activation

N, SIZE = 6, (40, 56)
MIXING = [name for name in MIXES if name not in ("none", "cutout")]


def flat(dtype: torch.dtype = torch.float64, n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    """Photographs whose every pixel is their index, each its own class."""
    images = torch.arange(n, dtype=dtype).view(n, 1, 1, 1).expand(n, 3, *SIZE).contiguous()
    return images, torch.eye(n, dtype=torch.float64)


def extra(name: str, n: int = N) -> dict:
    """Activation maps that are uniform, so that SnapMix's shares are those of the pixels; a first batch."""
    given = {"cams": torch.full((n, 5, 7), 1 / 35, dtype=torch.float64), "position": Position(0, 100)}
    return {need: given[need] for need in NEEDS.get(name, ())}


@pytest.mark.parametrize("name", [name for name in MIXING if name != "snapmix"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_mean_pixel_is_the_mean_label(name, dtype):
    index = torch.arange(N, dtype=torch.float64)
    moved = 0
    for seed in range(40):
        images, targets = flat(dtype)
        mixed = MIXES[name](images, targets, np.random.default_rng(seed), **extra(name))
        torch.testing.assert_close(mixed.targets.sum(1), torch.ones(N, dtype=torch.float64))
        mean = mixed.images.double().mean((1, 2, 3))
        torch.testing.assert_close(mean, mixed.targets @ index, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-9)
        moved += bool((mixed.targets != targets).any())
        assert torch.equal(images, flat(dtype)[0])  # the given batch is as it was
        assert mixed.images.dtype == dtype and mixed.images.shape == images.shape
    assert moved > 30


@pytest.mark.parametrize("name", list(MIXES))
def test_uint8_stays_uint8_and_is_rounded(name):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (N, 3, *SIZE), generator=generator, dtype=torch.uint8)
    targets = torch.eye(N)
    for seed in range(5):
        mixed = MIXES[name](images, targets, np.random.default_rng(seed), **extra(name))
        real = MIXES[name](images.float(), targets, np.random.default_rng(seed), **extra(name))
        assert mixed.images.dtype == torch.uint8
        assert (mixed.images.float() - real.images).abs().max() <= 0.5 + 1e-3
        torch.testing.assert_close(mixed.targets, real.targets)


@pytest.mark.parametrize("name", list(MIXES))
def test_the_same_seed_mixes_alike_and_in_place_too(name):
    images, targets = flat()
    one = MIXES[name](images, targets, np.random.default_rng(3), **extra(name))
    two = MIXES[name](images.clone(), targets, np.random.default_rng(3), in_place=True, **extra(name))
    assert torch.equal(one.images, two.images) and torch.equal(one.targets, two.targets)
    other = MIXES[name](images, targets, np.random.default_rng(4), **extra(name))
    assert name == "none" or not torch.equal(one.images, other.images)


@pytest.mark.parametrize("name", list(MIXES))
def test_a_batch_of_one_and_wrong_batches(name):
    images, targets = flat(n=1)
    mixed = MIXES[name](images, targets, np.random.default_rng(0), **extra(name, 1))
    assert torch.equal(mixed.images, images)
    torch.testing.assert_close(mixed.targets, targets)
    images, targets = flat()
    for wrong in ((images.long(), targets), (images[0], targets), (images, torch.arange(N)), (images, targets[:2])):
        with pytest.raises(DataError):
            MIXES[name](*wrong, np.random.default_rng(0), **extra(name))


def test_nobody_is_their_own_partner():
    generator = np.random.default_rng(0)
    seen = np.zeros((5, 5), dtype=int)
    for _ in range(2000):
        other = partners(5, generator, torch.device("cpu")).numpy()
        assert sorted(other) == list(range(5))
        seen[np.arange(5), other] += 1
    assert (np.diag(seen) == 0).all()
    assert seen[~np.eye(5, dtype=bool)].min() > 400  # each of the four others 500 times, but for chance


def test_cutmix_shares_follow_the_beta_and_the_clipping():
    images, targets = flat()
    shares = []
    for seed in range(600):
        mixed = MIXES["cutmix"](images, targets, np.random.default_rng(seed), alpha=1.0)
        shares.append(1 - mixed.targets.diagonal().numpy()[0])
        assert len(mixed.images[0].unique()) <= 2
    # the box has a uniform share of the area; with its centre anywhere (1 - r/4)^2 of it stays, r its edge:
    # 1/2 - 2/4 E[r^3] + E[r^4]/16 = .5 - .2 + .0208
    assert np.mean(shares) == pytest.approx(0.3208, abs=0.03)


# ---------------------------------------------------------------- fmix


@pytest.mark.parametrize("share", [0.0, 0.013, 0.5, 0.75, 1.0])
def test_the_fourier_mask_has_its_share(share):
    for seed in range(5):
        mask = fourier_mask(SIZE, share, 3.0, np.random.default_rng(seed))
        assert mask.shape == SIZE and abs(mask.mean() - share) <= 1 / mask.size


def test_the_fourier_mask_is_made_of_blobs():
    def edges(decay: float) -> float:
        masks = [fourier_mask((64, 64), 0.5, decay, np.random.default_rng(seed)) for seed in range(10)]
        return float(np.mean([(m[1:] != m[:-1]).mean() + (m[:, 1:] != m[:, :-1]).mean() for m in masks]))

    assert edges(3.0) < 0.2 < 0.9 < edges(0.0)  # white noise changes at every other pixel, both ways


def test_fmix_shares_span_the_whole_range():
    images, targets = flat()
    shares = [
        1 - MIXES["fmix"](images, targets, np.random.default_rng(seed)).targets[0, 0].item() for seed in range(200)
    ]
    assert min(shares) < 0.05 and max(shares) > 0.95 and np.mean(shares) == pytest.approx(0.5, abs=0.07)


# ---------------------------------------------------------------- snapmix


def test_snapmix_weighs_by_activation_and_a_pair_of_one_label_by_one():
    images, _ = flat()
    labels = torch.tensor([0, 0, 1, 1, 2, 0])
    targets = F.one_hot(labels, 3).double()
    cams = torch.rand(N, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    same_pairs = other_pairs = 0
    for seed in range(60):
        mixed = MIXES["snapmix"](images, targets, np.random.default_rng(seed), cams=cams)
        other = partners(N, np.random.default_rng(seed), images.device)
        total = mixed.targets.sum(1)
        same = labels == labels[other]
        torch.testing.assert_close(total[same], torch.ones_like(total[same]))
        torch.testing.assert_close(mixed.targets[same], targets[same])
        assert (mixed.targets >= 0).all() and (total < 2).all()
        same_pairs += int(same.sum())
        other_pairs += int((total[~same] - 1).abs().gt(1e-3).sum())
    assert same_pairs > 30 and other_pairs > 100  # the rest need not sum to 1


def test_snapmix_shares_of_a_known_map():
    """All of a photograph's activation in its left half: a box there takes all of it, elsewhere nothing."""
    maps = torch.zeros(2, 4, 4)
    maps[:, :, :2] = 1
    left = activation_share(maps, Box(0, 8, 0, 4), (8, 8))
    assert left[0].item() == pytest.approx(0.9375)  # bilinear enlarging bleeds half a cell over the middle
    torch.testing.assert_close(left + activation_share(maps, Box(0, 8, 4, 8), (8, 8)), torch.ones(2))
    enlarged = F.interpolate(maps[:, None], size=(9, 13), mode="bilinear")[:, 0]
    torch.testing.assert_close(
        activation_share(maps, Box(2, 7, 3, 9), (9, 13)), enlarged[:, 2:7, 3:9].sum((1, 2)) / enlarged.sum((1, 2))
    )
    nothing = activation_share(torch.zeros(2, 4, 4), Box(0, 4, 0, 8), (8, 8))
    torch.testing.assert_close(nothing, torch.full((2,), 0.5))


def test_snapmix_with_uniform_maps_has_the_pixels_shares():
    """The part kept of x_a is its pixels; what comes from x_b is weighed in x_b's own box, of other size."""
    images, targets = flat()
    sizes_differ = 0
    for seed in range(40):
        mixed = MIXES["snapmix"](images, targets, np.random.default_rng(seed), **extra("snapmix"))
        other = partners(N, np.random.default_rng(seed), images.device)
        kept = (mixed.images[:, 0] == torch.arange(N).view(N, 1, 1)).double().mean((1, 2))
        torch.testing.assert_close(mixed.targets.diagonal(), kept, rtol=0, atol=1e-6)
        given = mixed.targets[torch.arange(N), other]
        sizes_differ += int((given + kept - 1).abs().max() > 0.02)
    assert sizes_differ > 20


def test_class_activation_is_the_labels_map():
    features = torch.randn(4, 6, 3, 5, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 2, 1, 2])
    maps = class_activation(features, weight, labels)
    assert maps.shape == (4, 3, 5) and (maps >= 0).all()
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(4))
    raw = torch.stack([(features[i] * weight[labels[i]].view(6, 1, 1)).sum(0) for i in range(4)])
    raw = raw - raw.amin((1, 2), keepdim=True)
    torch.testing.assert_close(maps, raw / raw.sum((1, 2), keepdim=True))
    torch.testing.assert_close(class_activation(features, weight, F.one_hot(labels, 3).float()), maps)
    flat_map = class_activation(torch.ones(1, 6, 3, 5), weight, labels[:1])
    torch.testing.assert_close(flat_map, torch.full((1, 3, 5), 1 / 15))
    assert class_activation(features.bfloat16(), weight.requires_grad_(), labels).requires_grad is False


# ---------------------------------------------------------------- resizemix, cutout


def test_resizemix_pastes_the_whole_photograph():
    ramp = torch.linspace(0, 1, SIZE[1]).expand(2, 3, *SIZE).contiguous()
    images = torch.stack([torch.full((3, *SIZE), 9.0), ramp[0]])
    mixed = MIXES["resizemix"](images, torch.eye(2), np.random.default_rng(1), low=0.5, high=0.5)
    pasted = mixed.images[0, 0][mixed.images[0, 0] != 9.0]
    assert pasted.numel() == 20 * 28 and mixed.targets[0, 1].item() == pytest.approx(0.25)
    row = pasted.view(20, 28)[0]
    assert row[0] < 0.03 and row[-1] > 0.97 and (row.diff() > 0).all()


@pytest.mark.parametrize(("fill", "value"), [(-7.0, -7.0), ("mean", 2.5)])
def test_cutout_blanks_a_box_and_keeps_the_labels(fill, value):
    images, targets = flat()
    images = images * 1.0
    shares = []
    for seed in range(100):
        mixed = MIXES["cutout"](images, targets, np.random.default_rng(seed), edge=0.5, fill=fill)
        assert torch.equal(mixed.targets, targets)
        blank = mixed.images[:, 0] == value
        assert torch.equal(mixed.images[:, 0][~blank], images[:, 0][~blank])
        for one in blank:
            rows, columns = one.any(1).nonzero(), one.any(0).nonzero()
            box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
            assert one.sum() == box <= 20 * 28
        shares.append(blank.double().mean().item())
    assert np.mean(shares) == pytest.approx(0.25 * (1 - 0.5 / 4) ** 2, abs=0.01)  # the rest falls outside


# ---------------------------------------------------------------- mixup without hesitation, Mixer


def mixes_at(position: int, seed: int = 0, **settings) -> bool:
    images, targets = flat()
    mixed = MIXES["mixup_without_hesitation"](
        images, targets, np.random.default_rng(seed), position=Position(position, 1000), **settings
    )
    return bool((mixed.targets != targets).any())


def test_mixup_without_hesitation_has_three_stages():
    assert all(mixes_at(at) for at in range(0, 600, 7))
    assert [mixes_at(at) for at in range(600, 620)] == [True, False] * 10
    late = [np.mean([mixes_at(at, seed) for seed in range(200)]) for at in (900, 950, 999)]
    assert late[0] == 1.0 and late[1] == pytest.approx(0.5, abs=0.1) and late[2] < 0.05
    assert [mixes_at(at, always_until=0.0, alternate_until=1.0) for at in range(4)] == [True, False] * 2
    assert not any(mixes_at(at, always_until=0.0, alternate_until=0.0) for at in (999,) for _ in range(3))
    assert mixes_at(0, inner={"name": "cutmix", "alpha": 5.0})


def count(mixer: Mixer, epoch: int, batches: int = 3000) -> dict:
    names = [choice.name if choice else None for choice in (mixer.choose(epoch, b) for b in range(batches))]
    return {name: names.count(name) / batches for name in set(names)}


def test_the_mixer_chooses_by_probability():
    choices = [Choice(name="cutmix", alpha=1.0, p=0.5), Choice(name="mixup", p=0.2)]
    found = count(Mixer(choices, 100, seed=1), 0)
    assert found["cutmix"] == pytest.approx(0.5, abs=0.04) and found["mixup"] == pytest.approx(0.2, abs=0.04)
    assert found[None] == pytest.approx(0.3, abs=0.04)
    six = [{"name": name} for name in MIXES if name not in ("none", "resizemix")]
    found = count(Mixer(six, 100, seed=1, cams=lambda images, targets: torch.ones(N, 2, 2)), 0)
    assert len(found) == 6 and all(share == pytest.approx(1 / 6, abs=0.03) for share in found.values())


def test_probabilities_ramp_over_the_epochs():
    mixer = Mixer([Choice(name="cutmix", p=[0.0, 0.8], from_epoch=2, until_epoch=7)], 1000, seed=0, epochs=10)
    assert mixer.choices[0].probability == pytest.approx((0, 0, 0, 0.2, 0.4, 0.6, 0.8, 0, 0, 0))
    assert count(mixer, 5)["cutmix"] == pytest.approx(0.6, abs=0.04)
    assert count(mixer, 8) == {None: 1.0}
    after = [
        Choice(name="mixup", p=0.9, until_epoch=5),
        Choice(name="fmix", p=0.9, from_epoch=5),  # never both, so .9 twice is no mistake
    ]
    mixer = Mixer(after, 1000, seed=0, epochs=10)
    assert set(count(mixer, 4)) == {"mixup", None} and set(count(mixer, 5)) == {"fmix", None}


def test_the_mixer_repeats_itself_by_seed_epoch_and_batch():
    choices = [Choice(name="cutmix", p=0.5), Choice(name="mixup", p=0.5)]
    images, targets = flat()
    one, two = Mixer(choices, 100, seed=7, epochs=10), Mixer(choices, 100, seed=7, epochs=10)
    for batch in range(20):
        one(images.clone(), targets, 0, batch)  # what came before changes nothing
    a = one(images.clone(), targets, 3, 5)
    b = two(images.clone(), targets, 3, 5)
    assert torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets)
    others = [(7, 3, 6), (7, 4, 5), (8, 3, 5)]
    for seed, epoch, batch in others:
        c = Mixer(choices, 100, seed=seed, epochs=10)(images.clone(), targets, epoch, batch)
        assert not torch.equal(a.images, c.images)


def test_the_mixer_knows_where_the_training_stands_and_asks_for_maps():
    images, targets = flat()
    mixer = Mixer([Choice(name="mixup_without_hesitation", p=1.0)], 100, seed=0, epochs=10)
    changed = [
        bool((mixer(images, targets, epoch, batch).targets != targets).any())
        for epoch in range(10)
        for batch in range(10)
    ]
    assert all(changed[:60]) and changed[60:90] == [True, False] * 15 and not all(changed[90:])
    asked = []

    def cams(seen: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        asked.append((seen.shape, labels.shape))
        return torch.ones(len(seen), 3, 4)

    mixer = Mixer([Choice(name="snapmix", p=1.0)], 100, seed=0, cams=cams)
    assert mixer.needs_cams and not Mixer([Choice(name="mixup")], 100, seed=0).needs_cams
    assert (mixer(images, targets, 0, 0).targets != targets).any()
    assert asked == [(images.shape, targets.shape)]
    with pytest.raises(SettingsError, match="activation maps"):
        Mixer([Choice(name="snapmix", p=1.0)], 100, seed=0)(images, targets, 0, 0)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"name": "cutmx"}, "did you mean 'cutmix'"),
        ({"name": "cutmix", "alfa": 1.0}, "did you mean 'alpha'"),
        ({"name": "cutmix", "alpha": -1.0}, "alpha = -1"),
        ({"name": "cutmix", "alpha": "strong"}, "strong"),
        ({"name": "cutmix", "p": 1.5}, "p = 1.5"),
        ({"name": "cutmix", "p": [0.1, 0.2, 0.3]}, "ramp"),
        ({"name": "cutmix", "from_epoch": -1}, "from_epoch"),
        ({"name": "fmix", "decay": -3.0}, "decay"),
        ({"name": "snapmix", "cams": 3}, "has no setting 'cams'"),
        ({"name": "resizemix", "low": 0.9}, "low = 0.9"),
        ({"name": "cutout", "edge": 0.0}, "edge"),
        ({"name": "cutout", "fill": "black"}, "fill"),
        ({"name": "mixup_without_hesitation", "always_until": 0.95}, "always_until"),
        ({"name": "mixup_without_hesitation", "inner": "snapmix"}, "inner"),
    ],
)
def test_mistakes_in_a_recipe_are_found_at_once(choice, message):
    with pytest.raises(SettingsError, match=message):
        Mixer([choice], 100, seed=0, epochs=5)


def test_probabilities_over_one_are_a_mistake():
    with pytest.raises(SettingsError, match=r"sum to 1\.2 in epoch 3"):
        Mixer([Choice(name="mixup", p=0.6), Choice(name="fmix", p=0.6, from_epoch=3)], 100, seed=0, epochs=5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(MIXES))
def test_a_gpu_mixes_as_the_cpu_does(name):
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    images, targets = flat(torch.float32)
    here = MIXES[name](images, targets, np.random.default_rng(5), **extra(name))
    moved = {key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in extra(name).items()}
    there = MIXES[name](images.cuda(), targets.cuda(), np.random.default_rng(5), **moved)
    assert there.images.is_cuda and there.targets.is_cuda
    torch.testing.assert_close(there.images.cpu(), here.images)
    torch.testing.assert_close(there.targets.cpu(), here.targets)
