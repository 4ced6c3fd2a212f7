"""Dividing photographs for fitting and judging, so that duplicates and photographs of one plant never
part.
"""

from __future__ import annotations

import warnings

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
    if n_units == n:  # nobody shares a group: the same balance, without the slow search over groups
        return _stratified(labels, n_folds, seed)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    folds = np.empty(n, dtype=np.int64)
    with warnings.catch_warnings():  # a class with fewer photographs than folds is no reason to stop
        warnings.simplefilter("ignore", UserWarning)
        for fold, (_, held_out) in enumerate(splitter.split(np.zeros(n), labels, units)):
            folds[held_out] = fold
    return folds


def _stratified(labels: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(len(labels), dtype=np.int64)
    folds[order] = np.arange(len(labels)) % n_folds
    return folds
