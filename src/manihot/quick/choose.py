"""What a head uses, chosen inside its training photographs by held-out log loss: views, networks, depth, pooling.

Everything is computed already; an option costs a fit on principal components of the features. A first, coarse strength
of the regularisation; then views and networks together, depth, pooling, each only where it beats everything together by
more than the standard error of the difference (the rule of one standard error, Breiman et al. 1984); then the strength.
An option's log loss is that of its best temperature (Guo et al. 2017, arXiv 1706.04599), which the head gets too: a
head that is held back more is less sure, not worse.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from manihot.networks.graph import POOLING, channels_of
from manihot.networks.weights import split_backbone
from manihot.settings import Features, Model, View

QUARTERS = 4
ENOUGH = 400  # held-out photographs after which no further quarter is used
MOST = 3000  # photographs that a choice is made on: more of them choose the same
COMPONENTS = 96  # of each block; on BRACOL 512 in all were as good as all 5,680 features (docs/benchmarks.md)
TEMPERATURES = tuple(float(one) for one in np.geomspace(0.1, 2.0, 17))
TURNING = ("one_of",)  # views that turn and flip by chance


@dataclass(frozen=True)
class Block:
    """Columns of the features that go together: of one network and depth (0: the last maps), pooled one way."""

    network: int
    depth: int
    kind: str
    columns: slice


@dataclass(frozen=True)
class Chosen:
    """What a head uses.

    views: places among the recipe's. columns: bool (D,). strength: inverse, of a fit on these views. temperature: what
    its logits are divided by. evidence: a row for each option.
    """

    views: list[int]
    columns: np.ndarray
    strength: float
    temperature: float = 1.0
    evidence: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Examples:
    """Features (N, V, D) with labels (N,) in 0..K-1, weights (N,), and groups (N,) that must not be separated."""

    features: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    groups: np.ndarray

    def take(self, rows: np.ndarray) -> Examples:
        """Some of them."""
        return Examples(self.features[rows], self.labels[rows], self.weights[rows], self.groups[rows])


def blocks_of(model: Model, width: int) -> list[Block]:
    """The features' blocks in order; one block of all for a backbone whose maps are not known here."""
    channels = channels_of(model)
    if channels is None:
        return [Block(0, 0, model.pooling, slice(0, width))]
    found, at = [], 0
    for network, maps in enumerate(channels):
        for depth, count in enumerate(maps):
            for kind in POOLING[model.pooling]:
                found.append(Block(network, depth, kind, slice(at, at + count)))
                at += count
    return found


def view_options(views: Sequence[View]) -> dict[str, list[int]]:
    """Sets of views by name: all of them, those that don't lie on their side, those that are upright."""
    lying = [view.transpose or view.name in TURNING for view in views]
    upright = [not side and "v" not in view.flip for side, view in zip(lying, views, strict=True)]
    options = {
        "all": list(range(len(views))),
        "without turns": [k for k, side in enumerate(lying) if not side],
        "upright": [k for k, up in enumerate(upright) if up],
    }
    return {
        name: places
        for number, (name, places) in enumerate(options.items())
        if places and places not in list(options.values())[:number]
    }


def choose(examples: Examples, settings: Features, model: Model, views: Sequence[View], seed: int) -> Chosen:
    """What a head that learns `examples` uses, found inside them alone."""
    width = examples.features.shape[2]
    everything = Chosen(list(range(len(views))), np.ones(width, dtype=bool), min(settings.c))
    blocks = blocks_of(model, width)
    trials = [] if len(settings.c) == 1 and not settings.choose else list(_quarters(examples, seed))
    if not trials:
        return everything if len(settings.c) > 1 else Chosen(everything.views, everything.columns, settings.c[0])
    parts = [Part(examples, inside, outside, blocks) for inside, outside in trials]
    search = Search(parts, len(views))
    names = split_backbone(model.backbone)
    looks = view_options(views) if "views" in settings.choose else {"all": everything.views}
    networks = {"all": set(range(len(names)))}
    if "networks" in settings.choose and len({one.network for one in blocks}) > 1:
        networks |= {name: {number} for number, name in enumerate(names)}
    pairs = {f"{look}, {who}": (looks[look], networks[who]) for look, who in product(looks, networks)}
    used = list(range(len(blocks)))
    search.choose_strength(settings.c[1::2] or settings.c, everything.views, used)
    own, allowed = search.best(
        "views and networks",
        {name: (places, [k for k in used if blocks[k].network in some]) for name, (places, some) in pairs.items()},
    )
    lasts = {"all": allowed, "the last alone": [k for k in allowed if blocks[k].depth == 0]}
    if "depth" in settings.choose and len(lasts["the last alone"]) < len(allowed):
        _, allowed = search.best("depth", {name: (own, some) for name, some in lasts.items()})
    kinds = {"all": allowed} | {
        kind: [k for k in allowed if blocks[k].kind == kind] for kind in POOLING.get(model.pooling, ())
    }
    if "pooling" in settings.choose and len(kinds) > 2:
        _, allowed = search.best("pooling", {name: (own, some) for name, some in kinds.items()})
    search.choose_strength(settings.c, own, allowed, "strength")
    columns = np.zeros(width, dtype=bool)
    for k in allowed:
        columns[blocks[k].columns] = True
    return Chosen(own, columns, search.scaled(own), search.temperature, search.evidence)


class Part:
    """A split of the examples, with the principal components of each block that the inner part has."""

    def __init__(self, examples: Examples, inside: np.ndarray, outside: np.ndarray, blocks: Sequence[Block]) -> None:
        self.inside, self.outside = examples.take(inside), examples.take(outside)
        rows = self.inside.features.reshape(-1, examples.features.shape[2])
        centre, scale = rows.mean(0), rows.std(0) + 1e-6
        self.learned, self.held = [], []
        for block in blocks:
            own = slice(None), slice(None), block.columns
            there, here = (
                (some.features[own] - centre[block.columns]) / scale[block.columns]
                for some in (self.inside, self.outside)
            )
            basis = principal_axes(there.mean(1), COMPONENTS)
            self.learned.append(there @ basis)
            self.held.append(here @ basis)

    def logits(self, views: Sequence[int], blocks: Sequence[int], strength: float) -> tuple[np.ndarray, np.ndarray]:
        """Logits (n, V, K) of the held-out photographs by a head on some views and blocks, and their own class (n,)."""
        learned, held = (
            np.concatenate([one[k][:, views] for k in blocks], axis=2) for one in (self.learned, self.held)
        )
        labels, weights = (np.repeat(one, len(views)) for one in (self.inside.labels, self.inside.weights))
        head = fit_logistic(learned.reshape(len(labels), -1), labels, weights, strength)
        logits = held @ head.coef_.T + head.intercept_
        if len(head.classes_) == 2:
            logits = np.concatenate([-logits, logits], axis=2) / 2
        return logits.astype(np.float64), np.searchsorted(head.classes_, self.outside.labels)


class Search:
    """Compares options on all parts, and notes what each was worth."""

    def __init__(self, parts: Sequence[Part], views: int) -> None:
        self.parts, self.views = parts, views
        weights = np.concatenate([part.outside.weights for part in parts])
        self.weights = weights / weights.mean()
        self.strength, self.temperature = 1.0, 1.0
        self.evidence: list[dict[str, Any]] = []
        self.known: dict[tuple[Any, ...], tuple[np.ndarray, float]] = {}

    def scaled(self, views: Sequence[int]) -> float:
        """The strength for a fit on some views: a photograph counts as much as with all of them."""
        return self.strength * self.views / len(views)

    def best(self, what: str, options: dict[str, tuple[list[int], list[int]]]) -> tuple[list[int], list[int]]:
        """The views and blocks of the first option, or of one that beats it by more than a standard error."""
        names = list(options)
        if len(names) == 1:
            return options[names[0]]
        losses = {name: self._losses(*option)[0] for name, option in options.items()}
        winner = min(names, key=lambda name: float(losses[name].mean()))
        gain = losses[names[0]] - losses[winner]
        if gain.mean() <= gain.std() / len(gain) ** 0.5:
            winner = names[0]
        self._note(what, {name: float(one.mean()) for name, one in losses.items()}, winner)
        return options[winner]

    def choose_strength(self, strengths: Sequence[float], views: list[int], blocks: list[int], what: str = "") -> None:
        """Keep the strength with the lowest log loss, and its temperature."""
        found = {}
        for self.strength in strengths:
            losses, temperature = self._losses(views, blocks)
            found[self.strength] = (float(losses.mean()), temperature)
        self.strength = min(found, key=lambda one: found[one])
        self.temperature = found[self.strength][1]
        if what:
            self._note(what, {f"{one:g}": loss for one, (loss, _) in found.items()}, f"{self.strength:g}")

    def _losses(self, views: list[int], blocks: list[int]) -> tuple[np.ndarray, float]:
        """Weighted log loss of each held-out photograph at the best temperature, and that."""
        key = (*views, "", *blocks, self.strength)
        if key not in self.known:
            parts = [part.logits(views, blocks, self.scaled(views)) for part in self.parts]
            tried = [
                np.concatenate([_log_loss(logits / temperature, own) for logits, own in parts]) * self.weights
                for temperature in TEMPERATURES
            ]
            place = int(np.argmin([losses.mean() for losses in tried]))
            self.known[key] = tried[place], TEMPERATURES[place]
        return self.known[key]

    def _note(self, what: str, losses: dict[str, float], winner: str) -> None:
        self.evidence += [
            {"what": what, "option": name, "log_loss": round(loss, 4), "chosen": name == winner}
            for name, loss in losses.items()
        ]


def _log_loss(logits: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Log loss (n,) of the mean probability over views; logits (n, V, K), own: the right class (n,)."""
    probs = softmax(logits, axis=2).mean(1)
    found: np.ndarray = -np.log(np.maximum(probs[np.arange(len(probs)), own], 1e-12))
    return found


def _quarters(examples: Examples, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to learn and rows held out, whole groups, until enough were held out; none where there are too few."""
    rows = np.arange(len(examples.labels))
    if len(rows) > MOST:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MOST, replace=False))
    labels, groups = examples.labels[rows], examples.groups[rows]
    counts = np.bincount(labels)
    if counts[counts > 0].min() < 2 or counts.max() < QUARTERS or len(np.unique(groups)) < QUARTERS:
        return
    splitter = StratifiedGroupKFold(QUARTERS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # a class of two or three photographs is in few of the quarters
        warnings.filterwarnings("ignore", message="The least populated class in y has only")
        splits = list(splitter.split(np.zeros(len(labels)), labels, groups))
    seen = 0
    for inside, outside in splits:
        outside = outside[np.isin(labels[outside], labels[inside])]
        if len(np.unique(labels[inside])) < 2 or not len(outside):
            continue
        yield rows[inside], rows[outside]
        seen += len(outside)
        if seen >= ENOUGH:
            return


def principal_axes(rows: np.ndarray, count: int) -> np.ndarray:
    """The first axes (D, count) at most of rows (n, D), by the smaller of the two products of the matrix."""
    if rows.shape[1] <= count:
        return np.eye(rows.shape[1], dtype=np.float32)
    rows = rows - rows.mean(0)
    if rows.shape[1] <= len(rows):
        _, axes = np.linalg.eigh(rows.T @ rows)
        return np.ascontiguousarray(axes[:, ::-1][:, :count].astype(np.float32))
    sizes, places = np.linalg.eigh(rows @ rows.T)
    keep = np.flatnonzero(sizes > 1e-6 * sizes[-1])[::-1][:count]
    found: np.ndarray = (rows.T @ places[:, keep] / np.sqrt(sizes[keep])).astype(np.float32)
    return found


def fit_logistic(rows: np.ndarray, labels: np.ndarray, weights: np.ndarray, strength: float) -> LogisticRegression:
    """A multinomial logistic regression on standardised rows (n, D)."""
    with warnings.catch_warnings():  # the weakest strengths of a grid may need more steps; they are judged as they are
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=300, tol=1e-3).fit(rows, labels, sample_weight=weights)
