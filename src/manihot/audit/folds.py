"""Folds: which photographs are held out, together with everything that must not be separated from them.

Stratified by class; where groups exist (plants, duplicate groups) StratifiedGroupKFold, so that no group
straddles two folds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold, StratifiedKFold, StratifiedShuffleSplit

from manihot.audit.sources import TRAIN_ONLY
from manihot.errors import DataError
from manihot.records.columns import ALWAYS_TRAIN
from manihot.records.folds import split_groups, without_rare_class_warning
from manihot.records.manifest import Manifest
from manihot.settings import Folds


def assign_folds(manifest: Manifest, settings: Folds, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """The fold that holds each photograph out, int64 (N,), ALWAYS_TRAIN (-1) where none does, and warnings.

    Only labelled photographs of the splits 'train' and 'val' are held out; test photographs, unlabelled ones and
    those of sources that are only trained on never.
    'auto': the fold column where the manifest has one, the user's own val split where there is
    one, stratified otherwise. Raises DataError when the photographs don't allow it.
    """
    seed = settings.seed if settings.seed is not None else seed
    table = manifest.table
    usable = (table["split"] != "test").to_numpy() & (manifest.labels >= 0)
    if TRAIN_ONLY in table:
        usable &= ~table[TRAIN_ONLY].to_numpy(dtype=bool)
    if not usable.any():
        raise DataError(
            "no labelled photographs to train on", "give a label column, class folders, or check the quarantine"
        )
    rows = np.flatnonzero(usable)
    labels = manifest.labels[rows]
    if len(np.unique(labels)) < 2:
        raise DataError(
            f"all labelled photographs are of one class, {manifest.classes[int(labels[0])]!r}",
            "a classifier needs at least two classes",
        )
    kind = settings.kind
    if kind == "auto":
        own = (manifest.fold >= 0) | (table["split"] == "val").to_numpy()
        kind = "column" if (own & usable).any() else "stratified"
    fold = np.full(len(manifest), ALWAYS_TRAIN, dtype=np.int64)
    if kind == "none":
        return fold, []
    if kind == "column":
        fold = _from_columns(manifest, usable)
        return fold, _warn_torn(fold[rows], table["group"].to_numpy()[rows])
    groups = _whole_groups(table["group"].to_numpy()[rows])
    grouped = len(np.unique(groups)) < len(groups)
    said = _check_counts(manifest, labels, groups, settings.n if kind == "stratified" else 2)
    with without_rare_class_warning():
        if kind == "holdout":
            fold[rows[_holdout(labels, groups, grouped, settings.share, seed)]] = 0
        else:
            fold[rows] = _stratified(labels, groups, grouped, settings.n, seed)
    empty = settings.n - len(np.unique(fold[rows])) if kind == "stratified" else 0
    if empty:
        said.append(f"{empty} of {settings.n} folds hold no photograph: some groups are too large to share out")
    return fold, said


def _stratified(labels: np.ndarray, groups: np.ndarray, grouped: bool, n: int, seed: int) -> np.ndarray:
    if grouped:
        return split_groups(labels, groups, n, seed)
    fold = np.empty(len(labels), dtype=np.int64)
    for k, (_, held) in enumerate(StratifiedKFold(n, shuffle=True, random_state=seed).split(labels, labels)):
        fold[held] = k
    return fold


def _from_columns(manifest: Manifest, usable: np.ndarray) -> np.ndarray:
    fold = np.where(usable, manifest.fold, ALWAYS_TRAIN)
    if not (fold >= 0).any():
        fold = np.where(usable & (manifest.table["split"].to_numpy() == "val"), 0, ALWAYS_TRAIN)
    if not (fold >= 0).any():
        raise DataError(
            "folds.kind is 'column', but no photograph has a fold or is in a val split",
            "use --fold or --split, or folds.kind=stratified",
        )
    numbers = np.unique(fold[fold >= 0])
    if len(numbers) == 1 and not (usable & (fold < 0)).any():
        raise DataError(
            f"all photographs are in fold {numbers[0]}: none is left to train on", "give at least two folds"
        )
    return fold


def _warn_torn(fold: np.ndarray, group: np.ndarray) -> list[str]:
    named = group != ""
    torn = int((pd.Series(fold[named]).groupby(group[named]).nunique() > 1).sum())
    if not torn:
        return []
    return [f"{torn} groups are in more than one of the given folds: scores may be too good"]


def _whole_groups(group: np.ndarray) -> np.ndarray:
    """Group numbers; a photograph without a group is its own."""
    alone = np.array([f"\0{i}" for i in range(len(group))], dtype=object)
    return np.unique(np.where(group == "", alone, group).astype(str), return_inverse=True)[1]


def _check_counts(manifest: Manifest, labels: np.ndarray, groups: np.ndarray, folds: int) -> list[str]:
    if len(np.unique(groups)) < folds:
        raise DataError(
            f"{len(labels)} photographs in {len(np.unique(groups))} groups can't make {folds} folds",
            "lower folds.n, or use folds.kind=none",
        )
    present, counts = np.unique(labels, return_counts=True)
    if counts.max() < folds:
        raise DataError(
            f"no class has as many photographs as there are folds ({folds}); the largest has {counts.max()}",
            (f"set folds.n={counts.max()} or lower, " if counts.max() > 1 else "")
            + "use folds.kind=none, or collect more photographs",
        )
    said = []
    for k, count in zip(present, counts):
        if count < folds:
            said.append(
                f"class {manifest.classes[int(k)]!r} has {count} photographs, fewer than {folds} folds: "
                "some folds hold none of it, and its scores mean little"
            )
    return said


def _holdout(labels: np.ndarray, groups: np.ndarray, grouped: bool, share: float, seed: int) -> np.ndarray:
    folds = max(2, round(1 / share))
    splitter: Any
    if not grouped:
        splitter = StratifiedShuffleSplit(1, test_size=share, random_state=seed)
    elif abs(1 / folds - share) < 0.02 and len(np.unique(groups)) >= folds:
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    else:
        splitter = GroupShuffleSplit(1, test_size=share, random_state=seed)
    try:
        found: np.ndarray = next(iter(splitter.split(labels, labels, groups if grouped else None)))[1]
        return found
    except ValueError as error:
        raise DataError(
            f"can't hold out {share:.0%} of {len(labels)} photographs class by class: {error}",
            "raise folds.share or collect more photographs",
        ) from error
