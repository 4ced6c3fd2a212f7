"""Stacks: a small second model that learns from the members' out-of-fold probabilities.

Wolpert, Stacked generalization, Neural Networks 1992. Out-of-fold all the way: the second level has folds of
its own (the first level's, or made from the same duplicate groups), every photograph is judged by a stacker
that has not seen it, and test predictions are the mean over the second level's folds. Logistic regression and
boosting (14th and 34th place), 1D- and 2D-CNN over the (member x class) matrix (37th place), a multi-layer
perceptron, and the mean of several stacks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NoReturn

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from manihot.ensemble.members import check_members
from manihot.ensemble.search import SEARCHES
from manihot.ensemble.second_level import Part, member_features, weighted_mean
from manihot.errors import DataError, MissingExtraError, SettingsError
from manihot.progress import track
from manihot.records.folds import make_folds
from manihot.records.groups import group_numbers
from manihot.settings import suggest

Predictor = Callable[[np.ndarray], np.ndarray]  # (M, N, K) -> float64 (N, K)
# Members that were fitted themselves (groups): which photographs are away, bool (N,), to (M, N, K) that their labels
# had no part in
Without = Callable[[np.ndarray], np.ndarray]


def fit_logistic(pred_probs: np.ndarray, labels: np.ndarray, seed: int = 0, c: float = 0.1) -> Part:
    """Multinomial logistic regression on standardised log-probabilities; c is the inverse of the L2
    strength.
    """
    model = LogisticRegression(C=c, max_iter=500)
    arrays = _fit_flat(model, pred_probs, labels)
    weight, bias = _both_classes(model.coef_, model.intercept_)
    return Part("linear", {**arrays, "weight": weight, "bias": bias})


def _both_classes(weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (K', F) and offsets for a softmax; scikit-learn gives one row for two classes."""
    if len(weight) > 1:
        return weight, bias
    return np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2


def fit_mlp(pred_probs: np.ndarray, labels: np.ndarray, seed: int = 0, hidden: int = 32, epochs: int = 30) -> Part:
    """A perceptron with one hidden layer on standardised log-probabilities."""
    model = MLPClassifier(
        (hidden,),
        alpha=0.1,
        batch_size=min(256, len(labels)),
        learning_rate_init=3e-3,
        max_iter=epochs,
        random_state=seed,
    )
    arrays = _fit_flat(model, pred_probs, labels)
    weight, bias = _both_classes(model.coefs_[1].T, model.intercepts_[1])
    return Part(
        "perceptron",
        {**arrays, "weight0": model.coefs_[0], "bias0": model.intercepts_[0], "weight1": weight.T, "bias1": bias},
    )


def fit_lightgbm(pred_probs: np.ndarray, labels: np.ndarray, seed: int = 0, trees: int = 120) -> Part:
    """Gradient boosting with LightGBM, shallow and slow; needs the `ensemble` extra (MissingExtraError)."""
    try:
        from lightgbm import LGBMClassifier
    except ImportError as error:
        raise MissingExtraError("the stacker 'lightgbm'", "ensemble") from error
    model = LGBMClassifier(
        n_estimators=trees,
        learning_rate=0.05,
        num_leaves=7,
        min_child_samples=40,
        subsample=0.7,
        subsample_freq=1,
        colsample_bytree=0.5,
        reg_lambda=5.0,
        random_state=seed,
        n_jobs=1,
        deterministic=True,
        force_col_wise=True,
        verbose=-1,
    )
    arrays = _fit_flat(model, pred_probs, labels)
    return Part("trees", {**arrays, **_tree_arrays(model.booster_.dump_model()["tree_info"])})


def _tree_arrays(trees: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """LightGBM's trees as `second_level.predict_trees` takes them, parents before children.

    A tree without a split becomes one whose both sides are its only leaf.
    """
    feature = np.zeros((len(trees), max(1, *(tree["num_leaves"] - 1 for tree in trees))), dtype=np.int64)
    left, right, threshold = np.full_like(feature, -1), np.full_like(feature, -1), np.zeros(feature.shape)
    leaf = np.zeros((len(trees), feature.shape[1] + 1))
    for t, tree in enumerate(trees):
        waiting: list[tuple[dict[str, Any], np.ndarray | None, int]] = [(tree["tree_structure"], None, 0)]
        splits = leaves = 0
        while waiting:
            node, side, parent = waiting.pop()
            if "split_feature" in node:
                number, splits = splits, splits + 1
                feature[t, number], threshold[t, number] = node["split_feature"], node["threshold"]
                waiting += [(node["left_child"], left, number), (node["right_child"], right, number)]
            else:
                leaf[t, leaves] = node["leaf_value"]
                number, leaves = ~leaves, leaves + 1
            if side is not None:
                side[t, parent] = number
    return {"feature": feature, "threshold": threshold, "left": left, "right": right, "leaf": leaf}


def _fit_flat(model: Any, pred_probs: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Fit a scikit-learn classifier on (N, M * K); returns the standardisation and the classes that were there."""
    scaler = StandardScaler()
    features = scaler.fit_transform(member_features(pred_probs).reshape(len(labels), -1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of steps is part of the regularisation
        warnings.filterwarnings("ignore", message=".*feature names.*")
        model.fit(features, labels)
    return {"centre": scaler.mean_, "spread": scaler.scale_, "present": np.asarray(model.classes_, dtype=np.int64)}


@dataclass(frozen=True)
class Stack:
    """oof: float64 (N, K), each row by stackers that did not see it. test: (N', K) or None. folds: int
    (N,). fitted: for each stacker what it learned, one part per fold.
    """

    method: str
    oof: np.ndarray
    test: np.ndarray | None
    folds: np.ndarray
    fitted: tuple[tuple[Part, ...], ...]


def fit_stack(
    pred_probs: np.ndarray,
    labels: np.ndarray,
    method: str = "logistic",
    test: np.ndarray | None = None,
    folds: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    n_folds: int = 5,
    seed: int = 0,
    without: Without | None = None,
) -> Stack:
    """Fit one stacker per second-level fold; predict what it held out, and test photographs by the mean over
    folds.

    pred_probs: out-of-fold (M, N, K). test: (M, N', K). folds: int (N,), the first level's where known;
    otherwise made here from groups (N,), so that no duplicates stand on both sides. without: where the members were
    fitted on labels too, what they say when a fold's labels are kept from them. Raises DataError where folds cut a
    group or arrays don't fit, SettingsError for an unknown method.
    """
    pred_probs, labels = check_members(pred_probs, labels)
    fit = _fitter(method)
    if test is not None and (test.ndim != 3 or test.shape[::2] != pred_probs.shape[::2]):
        raise DataError(
            f"test members of shape {test.shape} for members {pred_probs.shape}", "the same members and classes"
        )
    folds = make_folds(labels, groups, n_folds, seed) if folds is None else np.asarray(folds)
    check_folds(folds, groups, len(labels))
    oof = np.empty(pred_probs.shape[1:])
    out = None if test is None else np.zeros(test.shape[1:])
    held_outs = np.unique(folds)
    fitted = []
    for fold in track(held_outs, f"Stacking with {method}", len(held_outs)):
        away = folds == fold
        if len(np.unique(labels[~away])) < 2:
            raise DataError(
                f"the {int((~away).sum())} photographs that second-level fold {fold} learns from are of one class",
                "a stack needs more photographs; blend them instead",
            )
        seen = pred_probs if without is None else without(away)
        predict = fit(seen[:, ~away], labels[~away], seed)
        fitted.append(predict)
        oof[away] = predict(seen[:, away])
        if test is not None and out is not None:
            out += predict(test) / len(held_outs)
    return Stack(method, oof, out, folds, (tuple(fitted),))


def _fitter(method: str) -> Stacker:
    """A stacker by its name, or a search whose weights serve as one (37th place)."""
    if method in STACKERS:
        return STACKERS[method]
    if method in SEARCHES:
        return lambda pred_probs, labels, seed: weighted_mean(SEARCHES[method](pred_probs, labels, seed))
    raise SettingsError(f"there is no stacker {method!r}", suggest(method, list(STACKERS)))


def mean_of_stacks(stacks: Sequence[Stack]) -> Stack:
    """The arithmetic mean of several stacks that share their folds (DataError otherwise)."""
    if any(not np.array_equal(stack.folds, stacks[0].folds) for stack in stacks):
        raise DataError("stacks of different folds can't be averaged", "fit them with the same folds")
    tests = [stack.test for stack in stacks if stack.test is not None]
    return Stack(
        "+".join(stack.method for stack in stacks),
        np.mean([stack.oof for stack in stacks], axis=0),
        np.mean(tests, axis=0) if len(tests) == len(stacks) else None,
        stacks[0].folds,
        tuple(folds for stack in stacks for folds in stack.fitted),
    )


def check_folds(folds: np.ndarray, groups: np.ndarray | None, n: int) -> None:
    """Folds (N,) of two or more parts that cut no group (DataError)."""
    if folds.shape != (n,) or len(np.unique(folds)) < 2:
        raise DataError(
            f"folds of shape {folds.shape} don't divide {n} photographs", "two folds or more, one per photograph"
        )
    units = group_numbers(groups, n)
    first = np.full(int(units.max()) + 1, -1, dtype=np.int64)
    first[units] = folds
    cut = np.unique(units[folds != first[units]])
    if len(cut):
        raise DataError(
            f"{len(cut)} groups of duplicates are in more than one fold",
            "make the folds from the groups, or leave the folds out",
        )


def _of_train(name: str) -> Stacker:
    """In the place of a stacker that torch fits, until `manihot.train.stackers` is imported: an error."""

    def fit(pred_probs: np.ndarray, labels: np.ndarray, seed: int = 0) -> NoReturn:
        if find_spec("torch") is None:
            raise MissingExtraError(f"the stacker {name!r}")
        raise SettingsError(f"the stacker {name!r} was not loaded", "import manihot.train.stackers before")

    return fit


Stacker = Callable[..., Part]  # (pred_probs (M, N, K), labels (N,), seed) -> Part
FITTED_BY_TORCH = ("cnn1d", "cnn2d")  # manihot.train.stackers
STACKERS: dict[str, Stacker] = {
    "logistic": fit_logistic,
    "lightgbm": fit_lightgbm,
    "mlp": fit_mlp,
    **{name: _of_train(name) for name in FITTED_BY_TORCH},
}
