"""Folds: which photographs are held out, together with everything that must not be torn apart from them.

Stratified by class; where groups exist (plants, duplicate groups) StratifiedGroupKFold, so that no group
straddles two folds.
"""

from __future__ import annotations

import numpy as np
from sklearn.model_selection import (
    GroupShuffleSplit,
    StratifiedGroupKFold,
    StratifiedKFold,
    StratifiedShuffleSplit,
)

from manihot.errors import DataError
from manihot.records.manifest import ALWAYS_TRAIN, Manifest
from manihot.settings import Folds


def make_folds(manifest: Manifest, settings: Folds, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """The fold that holds each photograph out, int64 (N,), ALWAYS_TRAIN (-1) where none does, and warnings.

    Only labelled photographs of the splits 'train' and 'val' are held out; test photographs and unlabelled
    ones never. 'auto': the fold column where the manifest has one, the user's own val split where there is
    one, stratified otherwise. Raises DataError when the photographs don't allow it.
    """
    seed = settings.seed if settings.seed is not None else seed
    table = manifest.table
    usable = (table["split"] != "test").to_numpy() & (manifest.labels >= 0)
    if not usable.any():
        raise DataError(
            "no labelled photographs to train on",
            "give a label column, class folders, or check the quarantine",
        )
    kind = settings.kind
    if kind == "auto":
        kind = "column" if (manifest.fold >= 0).any() or (table["split"] == "val").any() else "stratified"
    fold = np.full(len(manifest), ALWAYS_TRAIN, dtype=np.int64)
    if kind == "none":
        return fold, []
    if kind == "column":
        return _from_columns(manifest, usable), _warn_unseen(manifest, usable)
    own_val = table["split"].to_numpy() == "val"
    rows = np.flatnonzero(usable & ~own_val)
    labels = manifest.labels[rows]
    groups = _whole_groups(table["group"].to_numpy()[rows])
    grouped = len(np.unique(groups)) < len(groups)
    warnings = _check_counts(manifest, labels, groups, settings.n if kind == "stratified" else 2)
    if kind == "holdout":
        fold[rows[_holdout(labels, groups, grouped, settings.share, seed)]] = 0
    else:
        splitter = StratifiedGroupKFold if grouped else StratifiedKFold
        parts = splitter(settings.n, shuffle=True, random_state=seed).split(
            np.zeros(len(rows)), labels, groups
        )
        for k, (_, held) in enumerate(parts):
            fold[rows[held]] = k
    return fold, warnings


def _from_columns(manifest: Manifest, usable: np.ndarray) -> np.ndarray:
    fold = np.where(usable, manifest.fold, ALWAYS_TRAIN)
    if not (fold >= 0).any():
        fold = np.where(usable & (manifest.table["split"].to_numpy() == "val"), 0, ALWAYS_TRAIN)
    if not (fold >= 0).any():
        raise DataError(
            "folds.kind is 'column', but no photograph has a fold or stands in a val split",
            "use --fold or --split, or folds.kind=stratified",
        )
    numbers = np.unique(fold[fold >= 0])
    if len(numbers) == 1 and not (usable & (fold < 0)).any():
        raise DataError(
            f"all photographs are in fold {numbers[0]}: none is left to train on", "give at least two folds"
        )
    return fold


def _warn_unseen(manifest: Manifest, usable: np.ndarray) -> list[str]:
    group = manifest.table["group"].to_numpy()
    fold = np.where(usable, _from_columns(manifest, usable), -2)
    named = (group != "") & usable
    torn = (
        sum(len(set(fold[named & (group == g)])) > 1 for g in np.unique(group[named])) if named.any() else 0
    )
    return (
        [f"{torn} groups stand in more than one of the given folds: scores may be too good"] if torn else []
    )


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
    present = np.unique(labels)
    if len(present) < 2:
        raise DataError(
            f"all labelled photographs are of one class, {manifest.classes[int(present[0])]!r}",
            "a classifier needs at least two classes",
        )
    warnings = []
    for k in present:
        count = int((labels == k).sum())
        if count < folds:
            warnings.append(
                f"class {manifest.classes[int(k)]!r} has {count} photographs, fewer than {folds} folds: "
                "some folds hold none of it, and its scores mean little"
            )
    return warnings


def _holdout(labels: np.ndarray, groups: np.ndarray, grouped: bool, share: float, seed: int) -> np.ndarray:
    if grouped:
        folds = max(2, round(1 / share))
        if abs(1 / folds - share) < 0.02:
            splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
            return next(iter(splitter.split(np.zeros(len(labels)), labels, groups)))[1]
        return next(
            iter(GroupShuffleSplit(1, test_size=share, random_state=seed).split(labels, labels, groups))
        )[1]
    try:
        return next(
            iter(StratifiedShuffleSplit(1, test_size=share, random_state=seed).split(labels, labels))
        )[1]
    except ValueError as error:
        raise DataError(
            f"can't hold out {share:.0%} of {len(labels)} photographs class by class: {error}",
            "raise folds.share or collect more photographs",
        ) from error
