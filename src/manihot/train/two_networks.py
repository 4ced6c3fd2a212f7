"""Two networks that learn side by side and tell each other which labels to trust: co-teaching and DivideMix.

Co-teaching: Han et al. 2018 (arXiv 1804.06872). DivideMix: Li, Socher and Hoi 2020 (arXiv 2002.07394). The pair is
one module (`Snapshots`), so that averages, checkpoints, SAM and export take both; it answers by their mean probability.
Unlike DivideMix's authors' code both networks learn from one batch in one step, and the photographs that count as
labelled and unlabelled stand in it as they fall, not as many of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.nn.functional import cross_entropy

from manihot.infer.forward import forward_views
from manihot.members.member import Member
from manihot.members.training_labels import TrainingLabels
from manihot.settings import View
from manihot.train.networks.heads import Snapshots
from manihot.train.runners import TorchRunner, choose_device

SEED_OF_SECOND = 7_368_787  # apart from the seeds of folds


def kept_share(epoch: int, wrong: float, ramp: int) -> float:
    """R(t) = 1 - wrong min(t / ramp, 1), with t the epochs finished."""
    return 1 - wrong * min(epoch / ramp, 1)


def smallest(losses: Tensor, share: float) -> Tensor:
    """Places of the `share` of losses (N,) that are smallest, at least one."""
    return losses.argsort(stable=True)[: max(1, round(share * len(losses)))]


def clean_probability(losses: np.ndarray, seed: int) -> np.ndarray:
    """Probability that each loss (N,) belongs to the lower of two Gaussians, fitted to losses scaled to 0..1.

    1 where all losses are the same: nothing speaks against a label. The Gaussians are fitted as the authors fit them.
    """
    spread = float(np.ptp(losses))
    if len(losses) < 2 or spread == 0:
        return np.ones(len(losses), np.float32)
    scaled = ((losses - losses.min()) / spread).reshape(-1, 1).astype(np.float64)
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed).fit(scaled)
    found: np.ndarray = mixture.predict_proba(scaled)[:, mixture.means_[:, 0].argmin()]
    return found.astype(np.float32)


def sharpen(probs: Tensor, temperature: float) -> Tensor:
    """p^(1/T), scaled to sum 1; (N, K)."""
    powers = probs.clamp_min(1e-12).log().div(temperature)
    return powers.softmax(1)


def refine(target: Tensor, probs: Tensor, clean: Tensor, temperature: float) -> Tensor:
    """Labels (N, K) of photographs that count as labelled: w y + (1 - w) p, sharpened; clean: w (N,)."""
    return sharpen(clean[:, None] * target + (1 - clean[:, None]) * probs, temperature)


def mix_all(images: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """MixUp of all with all, every one keeping the larger part: l = max(l, 1 - l), l ~ Beta(alpha, alpha)."""
    share = float(torch.distributions.Beta(torch.tensor(alpha), torch.tensor(alpha)).sample())
    share = max(share, 1 - share)
    other = torch.randperm(len(images)).to(images.device)
    return images[other].lerp(images, share), targets[other].lerp(targets, share)


def mixed_loss(logits: Tensor, targets: Tensor, labelled: Tensor, weights: Tensor, weight: float) -> Tensor:
    """L_x + weight L_u + penalty, of mixed photographs; labelled: bool (N,), weights: (N,) of photographs.

    L_x: mean cross-entropy of the labelled; L_u: mean squared error of the others' probabilities; the penalty is the
    divergence of an even distribution from the mean prediction, which keeps all from becoming one class.
    """
    probs, none = logits.softmax(1), logits.new_zeros(())
    loss_x, loss_u = none, none
    if bool(labelled.any()):
        each = cross_entropy(logits[labelled], targets[labelled], reduction="none")
        loss_x = (each * weights[labelled]).sum() / weights[labelled].sum().clamp_min(1e-12)
    if not bool(labelled.all()):
        loss_u = (probs[~labelled] - targets[~labelled]).square().mean()
    even = 1 / logits.shape[1]
    penalty = (even * (even / probs.mean(0).clamp_min(1e-12)).log()).sum()
    return loss_x + weight * loss_u + penalty


class Divider:
    """Which labels each of two networks takes for right, found when an epoch begins from the losses of plain views.

    Nothing is remembered from epoch to epoch, so a stopped training finds the same again.
    """

    def __init__(
        self, member: Member, fold: int, labels: TrainingLabels, warmup: int, precision: str, channels_last: bool
    ) -> None:
        self.member, self.labels, self.seed = member, labels, member.seed(fold)
        self.warmup, self.precision, self.channels_last = warmup, precision, channels_last

    def __call__(self, model: Snapshots, epoch: int) -> Tensor | None:
        """The probability (2, N) that a label is right, by each network's losses; None in the warm-up."""
        if epoch < self.warmup:
            return None
        found = [clean_probability(self.losses(network), self.seed) for network in model.networks]
        return torch.from_numpy(np.stack(found)).to(choose_device(self.member.tools.device))

    def losses(self, network: torch.nn.Module) -> np.ndarray:
        """Cross-entropy (N,) of each training photograph, not augmented."""
        device, preprocess = choose_device(self.member.tools.device), self.member.preprocess
        runner = TorchRunner(network, preprocess, device, self.precision, self.channels_last)  # type: ignore[arg-type]
        looks: Sequence[View] = (View(),)
        rows = self.labels.rows
        logits = forward_views([runner], self.member.photos, rows, preprocess, looks, what="Dividing")[:, 0]
        targets = torch.from_numpy(self.labels.targets.astype(np.float32))
        return cross_entropy(torch.from_numpy(logits), targets, reduction="none").numpy()
