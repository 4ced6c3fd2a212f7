"""Which members, with what weights: all subsets, greedy, simplex, Nelder-Mead, differential evolution,
Optuna.

What is kept of each photograph is its margins, p(true class) - p(other class), K - 1 numbers per member: a
weighted mean of members is right exactly when the weighted mean of their margins is nowhere negative.
Photographs on which no member's opinion can tip the scale (all members beat every other class, or all lose to
the same one) are counted once and left out of the search.

All subsets: the Gray code (Gray, US patent 2632058) goes through the subsets so that each differs from the
last by one member, added or taken away. Greedy: Caruana et al., Ensemble selection from libraries of models,
ICML 2004. Differential evolution in K-fold and all subsets: the first place of Cassava Leaf Disease
Classification.

Fitting weights to accuracy overfits; `manihot.ensemble.nested` says what a search is worth on fresh
photographs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from manihot.ensemble.members import check_members, row_blocks
from manihot.errors import DataError, MissingExtraError
from manihot.records.probabilities import TINY, log_probs

MAX_SUBSET_MEMBERS = 20  # 2^20 subsets; above that the counts alone take minutes
SUBSET_ROWS = 8192  # photographs a block: margins of five classes then fit a core's own cache
WEIGHT_ROWS = 1024
FIRST_PLACE_SEED = 8  # of the first place's differential evolution, as the lecture prints it
TIE = 1e-7  # a tie is lost to a class of lower index, as argmax would have it


def _other_margins(pred_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """p(true) - p(other), (M, K-1, N), other classes in ascending order."""
    m, n, k = pred_probs.shape
    true = np.take_along_axis(pred_probs, labels[None, :, None], axis=2)
    others = np.arange(k - 1)[None, :] + (np.arange(k - 1)[None, :] >= labels[:, None])
    margins = true - np.take_along_axis(pred_probs, np.broadcast_to(others, (m, n, k - 1)), axis=2)
    return np.ascontiguousarray(margins.transpose(0, 2, 1))


def _settled(margins: np.ndarray, slack: float) -> tuple[np.ndarray, np.ndarray]:
    """Which photographs every subset gets right, and which every subset gets wrong: two bool (N,)."""
    right = (margins > slack).all(axis=(0, 1))
    wrong = (margins < -slack).all(axis=0).any(axis=0)
    return np.asarray(right), np.asarray(wrong)


def score_subsets(pred_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Number of right answers of the mean of every subset of members, int64 (2^M - 1,), indexed by bit mask -
    1.

    pred_probs: (M, N, K), any finite scores. labels: int (N,). Subset s holds member m when bit m of s is
    set; a photograph counts when the argmax of the members' sum, in their own dtype and in ascending order,
    is its label. A tie goes to the lowest class, as in np.argmax.

    Margins are kept as 32-bit integers, so that adding and taking away members for 2^M steps brings no
    rounding drift; the few photographs whose smallest margin is within the rounding of zero are summed again,
    as above. Raises DataError for more than 20 members.
    """
    pred_probs, labels = check_members(pred_probs, labels)
    m, n = pred_probs.shape[:2]
    if m > MAX_SUBSET_MEMBERS:
        raise DataError(
            f"{m} members have 2^{m} subsets, too many to try each",
            f"choose {MAX_SUBSET_MEMBERS} members, or search greedily",
        )
    reach = float(sum(np.abs(member).max() for member in pred_probs)) or 1.0
    scale = 2.0**29 / reach  # no sum of margins, at most 2 * reach, leaves 32 bits
    rounding = np.finfo(pred_probs.dtype).eps * 2 * m * reach * scale
    near = int(np.ceil(m / 2 + rounding)) + 1
    counts = np.zeros(2**m - 1, dtype=np.int64)
    for rows in row_blocks(n):
        part, part_labels = pred_probs[:, rows], labels[rows]
        margins = np.rint(_other_margins(part, part_labels) * np.float64(scale)).astype(np.int32)
        right, wrong = _settled(margins, near)
        counts += int(right.sum())
        open_rows = np.flatnonzero(~(right | wrong))
        for some in row_blocks(len(open_rows), SUBSET_ROWS):
            block = open_rows[some]
            _count_block(np.ascontiguousarray(margins[:, :, block]), part[:, block], part_labels[block], near, counts)
    return counts


def _count_block(
    margins: np.ndarray, pred_probs: np.ndarray, labels: np.ndarray, near: int, counts: np.ndarray
) -> None:
    """Add one block's right answers to counts; margins int32 (M, K-1, n)."""
    m, others, n = margins.shape
    total = np.zeros((others, n), dtype=np.int32)
    low = np.empty(n, dtype=np.int32)
    flags = np.empty(n, dtype=bool)
    mask = 0
    for step in range(1, 2**m):
        bit = (step & -step).bit_length() - 1
        mask ^= 1 << bit
        change = np.add if mask >> bit & 1 else np.subtract
        change(total, margins[bit], out=total)
        np.minimum.reduce(total, axis=0, out=low)
        sure = np.count_nonzero(np.greater(low, near, out=flags))
        counts[mask - 1] += sure
        if np.count_nonzero(np.greater_equal(low, -near, out=flags)) > sure:
            doubtful = np.flatnonzero(np.abs(low) <= near)
            members = np.flatnonzero([mask >> index & 1 for index in range(m)])
            summed = pred_probs[np.ix_(members, doubtful)].sum(axis=0)
            counts[mask - 1] += np.count_nonzero(summed.argmax(axis=1) == labels[doubtful])


def subset_members(index: int) -> tuple[int, ...]:
    """The members of the subset at `index` of `score_subsets`."""
    return tuple(bit for bit in range((index + 1).bit_length()) if (index + 1) >> bit & 1)


def rank_subsets(counts: np.ndarray, top: int = 50) -> list[tuple[tuple[int, ...], int]]:
    """The `top` subsets with the most right answers; of equals, the one with more members first."""
    sizes = np.array([bin(i + 1).count("1") for i in range(len(counts))])
    order = np.lexsort((np.arange(len(counts)), -sizes, -counts))[:top]
    return [(subset_members(int(i)), int(counts[i])) for i in order]


@dataclass(frozen=True)
class OpenMargins:
    """What is left to decide for non-negative weights: margins float32 (M, K-1, n) of the unsettled
    photographs.
    """

    settled_right: int
    n: int
    margins: np.ndarray

    def count_right(self, weights: np.ndarray) -> np.ndarray:
        """Right answers of each weighting, int64 (P,); weights (P, M), non-negative, any sum."""
        weights = np.atleast_2d(weights)
        m, others, n = self.margins.shape
        sums = weights.sum(axis=1, keepdims=True)
        weights = np.where(sums > 0, weights / np.where(sums > 0, sums, 1.0), 1.0 / m).astype(np.float32)
        right = np.full(len(weights), self.settled_right, dtype=np.int64)
        for rows in row_blocks(n, WEIGHT_ROWS):
            block = self.margins[:, :, rows]
            mixed = (weights @ block.reshape(m, -1)).reshape(len(weights), others, -1)
            right += np.count_nonzero(mixed.min(axis=1) >= 0, axis=1)
        return right


def open_margins(pred_probs: np.ndarray, labels: np.ndarray) -> OpenMargins:
    """Settle what any non-negative weighting gets right or wrong; keep the margins (M, K-1, n) of the
    rest.
    """
    pred_probs, labels = check_members(pred_probs, labels)
    kept, settled_right = [], 0
    for rows in row_blocks(pred_probs.shape[1]):
        margins = _other_margins(pred_probs[:, rows], labels[rows]).astype(np.float32)
        lower = np.arange(margins.shape[1])[:, None] < labels[rows][None, :]
        margins -= (TIE * lower).astype(np.float32)
        right, wrong = _settled(margins, 0.0)
        settled_right += int(right.sum())
        kept.append(margins[:, :, ~(right | wrong)])
    return OpenMargins(settled_right, pred_probs.shape[1], np.concatenate(kept, axis=2))


def fit_uniform(pred_probs: np.ndarray, labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Equal weights (M,): plain averaging."""
    return np.full(len(pred_probs), 1.0 / len(pred_probs))


def fit_best_member(pred_probs: np.ndarray, labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """All weight (M,) to the member with the lowest log loss, the first of equal ones."""
    own = np.take_along_axis(pred_probs, labels[None, :, None], axis=2)[..., 0]
    found = np.zeros(len(pred_probs))
    found[int(np.argmax(np.log(np.maximum(own, TINY)).mean(axis=1)))] = 1.0
    return found


def fit_best_subset(pred_probs: np.ndarray, labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Equal weights (M,) on the members of the subset with the most right answers."""
    (members, _), *_ = rank_subsets(score_subsets(pred_probs, labels), top=1)
    weights = np.zeros(len(pred_probs))
    weights[list(members)] = 1.0 / len(members)
    return weights


def fit_greedy(
    pred_probs: np.ndarray, labels: np.ndarray, seed: int = 0, steps: int = 40, metric: str = "accuracy"
) -> np.ndarray:
    """Weights (M,) of greedy selection with replacement: the member that helps the mean most, `steps` times
    over.

    metric: 'accuracy' (ties by log loss) or 'log_loss'. The weights of the best step are taken (Caruana et
    al., 2004).
    """
    pred_probs, labels = check_members(pred_probs, labels)
    true = _true_probs(pred_probs, labels)
    open_part = open_margins(pred_probs, labels) if metric == "accuracy" else None
    m = len(pred_probs)
    chosen = np.zeros(m)
    total = np.zeros(true.shape[1])
    best: tuple[float, float] = (-np.inf, -np.inf)
    best_weights = np.full(m, 1.0 / m)
    for step in range(1, steps + 1):
        losses = -np.array([log_probs((total + row) / step).mean() for row in true])
        right = np.zeros(m) if open_part is None else open_part.count_right(chosen + np.eye(m))
        pick = int(np.lexsort((losses, -right))[0])
        chosen[pick] += 1
        total += true[pick]
        score = (float(right[pick]), -float(losses[pick]))
        if score > best:
            best, best_weights = score, chosen / step
    return best_weights


def _true_probs(pred_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """p(true class), float64 (M, N)."""
    return np.take_along_axis(pred_probs, labels[None, :, None], axis=2)[:, :, 0].astype(np.float64)


def _pooled_log_loss(weights: np.ndarray, true: np.ndarray) -> tuple[float, np.ndarray]:
    pooled = np.maximum(weights @ true, TINY)
    return -float(np.log(pooled).mean()), -(true @ (1.0 / pooled)) / true.shape[1]


def fit_simplex(pred_probs: np.ndarray, labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Weights (M,) on the simplex with the least log loss of the weighted mean; convex, so there is one
    answer.
    """
    pred_probs, labels = check_members(pred_probs, labels)
    true, m = _true_probs(pred_probs, labels), len(pred_probs)
    start = np.full(m, 1.0 / m)
    found = optimize.minimize(
        _pooled_log_loss,
        start,
        args=(true,),
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * m,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1.0, "jac": lambda w: np.ones(m)},
        options={"maxiter": 200, "ftol": 1e-10},
    )
    weights = np.clip(found.x, 0.0, None)
    if (
        not np.isfinite(weights).all()
        or weights.sum() <= 0
        or _pooled_log_loss(weights / weights.sum(), true)[0] > (_pooled_log_loss(start, true)[0])
    ):
        return start
    result: np.ndarray = weights / weights.sum()
    return result


def fit_nelder_mead(
    pred_probs: np.ndarray, labels: np.ndarray, seed: int = 0, metric: str = "log_loss", max_evaluations: int = 0
) -> np.ndarray:
    """Weights (M,) on the simplex by Nelder-Mead over |x| / sum |x|, for 'log_loss' or 'accuracy'."""
    pred_probs, labels = check_members(pred_probs, labels)
    m = len(pred_probs)
    true = _true_probs(pred_probs, labels)
    open_part = open_margins(pred_probs, labels) if metric == "accuracy" else None

    def cost(x: np.ndarray) -> float:
        weights = _to_simplex(x)
        if open_part is not None:
            return -float(open_part.count_right(weights)[0])
        return -float(log_probs(weights @ true).mean())

    start = np.full(m, 1.0 / m)
    corners = np.vstack([start, start + np.eye(m) * (0.5 if metric == "accuracy" else 0.1)])
    options = {"initial_simplex": corners, "xatol": 1e-4, "fatol": 1e-8, "maxfev": max_evaluations or 200 * m}
    found = optimize.minimize(cost, start, method="Nelder-Mead", options=options)
    return _to_simplex(found.x if found.fun < cost(start) else start)


def _to_simplex(x: np.ndarray) -> np.ndarray:
    weights = np.abs(x)
    total = weights.sum()
    return weights / total if total > 0 else np.full(len(x), 1.0 / len(x))


def fit_differential_evolution(
    pred_probs: np.ndarray, labels: np.ndarray, seed: int = 8, generations: int = 20, population: int = 15
) -> np.ndarray:
    """Weights (M,) with the most right answers by differential evolution over [0, 1]^M, scaled to sum to 1.

    generations, population: as `maxiter` and `popsize` of scipy, with the first place's 20 and 15. A whole
    generation is scored at once, so it is replaced at once (scipy's updating='deferred').
    """
    open_part = open_margins(pred_probs, labels)
    m = len(pred_probs)
    if m == 1:
        return np.ones(1)
    found = optimize.differential_evolution(
        lambda x: 1.0 - open_part.count_right(x.T) / open_part.n,
        [(0.0, 1.0)] * m,
        maxiter=generations,
        popsize=population,
        tol=1e-5,
        rng=np.random.default_rng(seed),
        polish=False,  # accuracy is a staircase: a gradient step sees nothing
        vectorized=True,
        updating="deferred",
    )
    return _to_simplex(found.x)


def fit_subset_evolution(pred_probs: np.ndarray, labels: np.ndarray, seed: int = FIRST_PLACE_SEED) -> np.ndarray:
    """Weights (M,) as the first place of Cassava 2020: the best subset, weighted by differential evolution.

    The mean of the weights of four folds, each fitted on the other three (`search_folds`); 0 outside the subset. As
    the lecture prints it, folds are blocks in the order of the photographs, scikit-learn's KFold(4) without shuffling,
    and the evolution starts from seed 8: `seed` changes nothing.
    """
    chosen = np.flatnonzero(fit_best_subset(pred_probs, labels))
    weights = np.zeros(len(pred_probs))
    folds = np.concatenate([np.full(len(part), number) for number, part in enumerate(np.array_split(labels, 4))])
    weights[chosen] = search_folds(pred_probs[chosen], labels, folds, seed=FIRST_PLACE_SEED).mean
    return weights


def fit_optuna(
    pred_probs: np.ndarray, labels: np.ndarray, seed: int = 0, trials: int = 150, metric: str = "accuracy"
) -> np.ndarray:
    """Weights (M,) by Optuna's tree-structured Parzen estimator; needs the `ensemble` extra
    (MissingExtraError).
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("the search 'optuna'", "ensemble") from error
    pred_probs, labels = check_members(pred_probs, labels)
    m = len(pred_probs)
    open_part, true = open_margins(pred_probs, labels), _true_probs(pred_probs, labels)

    def value(trial: optuna.Trial) -> float:
        weights = _to_simplex(np.array([trial.suggest_float(f"w{i}", 0.0, 1.0) for i in range(m)]))
        if metric == "accuracy":
            return float(open_part.count_right(weights)[0]) / open_part.n
        return -_pooled_log_loss(weights, true)[0]

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        study.enqueue_trial({f"w{i}": 1.0 for i in range(m)})
        study.optimize(value, n_trials=trials)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return _to_simplex(np.array([study.best_params[f"w{i}"] for i in range(m)]))


@dataclass(frozen=True)
class FoldWeights:
    """Weights per fold (F, M), each fold's accuracy on the photographs it held out (F,), and the mean weights
    (M,).
    """

    weights: np.ndarray
    accuracy: np.ndarray
    mean: np.ndarray


def search_folds(
    pred_probs: np.ndarray, labels: np.ndarray, folds: np.ndarray, search: str = "differential_evolution", seed: int = 8
) -> FoldWeights:
    """The first place's way: fit weights on all folds but one, score the one left out; folds int (N,)."""
    pred_probs, labels = check_members(pred_probs, labels)
    weights, accuracy = [], []
    for fold in np.unique(folds):
        held_out = folds == fold
        found = SEARCHES[search](pred_probs[:, ~held_out], labels[~held_out], seed)
        weights.append(found)
        right = open_margins(pred_probs[:, held_out], labels[held_out]).count_right(found)[0]
        accuracy.append(right / held_out.sum())
    table = np.array(weights)
    return FoldWeights(table, np.array(accuracy), table.mean(axis=0))


Search = Callable[..., np.ndarray]  # (pred_probs (M, N, K), labels (N,), seed) -> weights (M,) on the simplex
SEARCHES: dict[str, Search] = {
    "uniform": fit_uniform,
    "best_member": fit_best_member,
    "best_subset": fit_best_subset,
    "greedy": fit_greedy,
    "simplex": fit_simplex,
    "nelder_mead": fit_nelder_mead,
    "differential_evolution": fit_differential_evolution,
    "subset_evolution": fit_subset_evolution,
    "optuna": fit_optuna,
}
