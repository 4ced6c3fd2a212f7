"""Folds from labels and groups alone: duplicates and photographs of one plant stay together."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from manihot.errors import DataError
from manihot.records.groups import group_numbers


def make_folds(labels: np.ndarray, groups: np.ndarray | None = None, n_folds: int = 5, seed: int = 0) -> np.ndarray:
    """Fold of each photograph, int64 (N,): stratified by label, no group (N,) cut in two.

    Raises DataError where there are fewer groups than folds.
    """
    n = len(labels)
    units = group_numbers(groups, n)
    n_units = int(units.max()) + 1
    if n_units < n_folds:
        raise DataError(f"{n_units} groups of photographs can't make {n_folds} folds", "ask for fewer folds")
    if n_units < n:
        return split_groups(labels, units, n_folds, seed)
    rng = np.random.default_rng(seed)  # no two share a group: the same balance, without the slow search over groups
    order = rng.permutation(n)
    order = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(n, dtype=np.int64)
    folds[order] = np.arange(n) % n_folds
    return folds


def split_groups(labels: np.ndarray, groups: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """Fold of each photograph, int64 (N,), by scikit-learn's StratifiedGroupKFold; groups: numbers (N,)."""
    folds = np.empty(len(labels), dtype=np.int64)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with without_rare_class_warning():
        for fold, (_, held_out) in enumerate(splitter.split(labels, labels, groups)):
            folds[held_out] = fold
    return folds


@contextmanager
def without_rare_class_warning() -> Iterator[None]:
    """No warning for a class with fewer photographs than folds: it is reported elsewhere, with the class's name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class in y has only")
        yield
