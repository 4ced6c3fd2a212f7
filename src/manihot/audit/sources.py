"""What each source of photographs is used for: judged, trained on only, or without its labels.

A second source (another year, another district, photographs from the web) may help training, but must not
decide how good the classifier is on the first.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from manihot.errors import SettingsError
from manihot.records.columns import UNLABELLED
from manihot.records.manifest import Manifest
from manihot.records.tables import list_names
from manihot.settings import Source, suggest

TRAIN_ONLY = "train_only"  # column: never held out, so never part of a score


def use_sources(manifest: Manifest, sources: Mapping[str, Source]) -> tuple[Manifest, list[str]]:
    """The manifest as `sources` (name -> how it is used) wants it, and what was done, in words.

    Photographs that a source's settings leave out are not in the result; unlabelled ones have label -1; those that
    are only trained on have True in the column `train_only`. A source that isn't named is used whole. Raises
    SettingsError for a source or class that doesn't exist. What the manifest itself marks as only trained on, such
    as translated pictures, stays so unless its source is named.
    """
    if not sources:
        return manifest, []
    names = manifest.table["source"].astype(str).to_numpy()
    _check_shared(manifest, names, sources)
    labels = manifest.labels.copy()
    keep = np.ones(len(manifest), dtype=bool)
    known = manifest.table.get(TRAIN_ONLY)
    train_only = np.zeros(len(manifest), dtype=bool) if known is None else known.to_numpy(dtype=bool).copy()
    said = []
    for name, settings in sources.items():
        own = names == name
        if not own.any():
            raise SettingsError(f"sources: no photograph has source {name!r}", suggest(name, sorted(set(names))))
        chosen = own & _in_classes(manifest, name, settings) & _of_size(manifest, own, name, settings)
        if settings.use == "ignore":
            chosen[:] = False
        keep &= ~own | chosen
        if settings.use == "train":
            train_only |= chosen & (manifest.table["split"] != "test").to_numpy()
        if settings.use == "all":
            train_only &= ~own
        if settings.use == "unlabelled":
            labels[chosen] = UNLABELLED
        said.append(f"source {name!r}: {_use(settings.use)}, {int(chosen.sum())} of {int(own.sum())} photographs")
    return manifest.with_columns(label=labels, **{TRAIN_ONLY: train_only}).take(keep), said


def _check_shared(manifest: Manifest, names: np.ndarray, sources: Mapping[str, Source]) -> None:
    """SettingsError where a source shares no class with those that are judged, whose number it would add to."""
    helps = [name for name, settings in sources.items() if settings.use in ("train", "unlabelled")]
    judged = ~np.isin(names, [name for name, settings in sources.items() if settings.use != "all"])
    first = _classes_of(manifest, judged)
    for name in helps:
        own = _classes_of(manifest, names == name)
        if own and first and not set(own) & set(first):
            raise SettingsError(
                f"sources.{name}: its classes ({list_names(own, 20)}) are none of those it is to help with "
                f"({list_names(first, 20)})",
                "say which class each of its names is: --alias FILE with lines such as "
                f"`{own[0]}: {first[0]}`, or `aliases` in the recipe (and scan a manifest again with it)",
            )


def _classes_of(manifest: Manifest, rows: np.ndarray) -> list[str]:
    labels = manifest.labels[rows]
    return [manifest.classes[k] for k in np.unique(labels[labels >= 0])]


def _in_classes(manifest: Manifest, name: str, settings: Source) -> np.ndarray:
    for one in (*settings.classes, *settings.but):
        if one not in manifest.classes:
            raise SettingsError(f"sources.{name}: there is no class {one!r}", suggest(one, list(manifest.classes)))
    wanted = settings.classes or manifest.classes
    numbers = [k for k, one in enumerate(manifest.classes) if one in wanted and one not in settings.but]
    whole = not settings.classes and not settings.but
    return np.isin(manifest.labels, numbers) | whole


def _of_size(manifest: Manifest, own: np.ndarray, name: str, settings: Source) -> np.ndarray:
    """Which photographs are as large as a source's settings want, (N,); SettingsError where a size is unknown."""
    if not settings.min_edge and not settings.max_edge:
        return np.ones(len(manifest), dtype=bool)
    edges = manifest.table[["height", "width"]].to_numpy()
    if (edges[own] <= 0).any():
        raise SettingsError(
            f"sources.{name}: the sizes of {int((edges[own] <= 0).any(axis=1).sum())} photographs are not known",
            "scan the photographs again, or leave min_edge and max_edge out",
        )
    found: np.ndarray = edges.min(axis=1) >= settings.min_edge
    return found & (edges.max(axis=1) <= settings.max_edge) if settings.max_edge else found


def _use(use: str) -> str:
    return {"all": "used whole", "train": "trained on only", "unlabelled": "without its labels", "ignore": "left out"}[
        use
    ]


def narrow(manifest: Manifest, sources: Mapping[str, Source]) -> tuple[np.ndarray, np.ndarray]:
    """Which photographs one member learns with labels, and which without: two masks (N,), neither has what it ignores.

    The manifest is what `use_sources` left for the whole run; a member can only use a subset of that.
    """
    names = manifest.table["source"].astype(str).to_numpy()
    labelled = manifest.labels >= 0
    unlabelled = ~labelled
    for name, settings in sources.items():
        own = names == name
        if settings.use == "unlabelled":
            unlabelled |= own
            labelled &= ~own
        chosen = own & (_in_classes(manifest, name, settings) | (manifest.labels < 0))
        chosen &= _of_size(manifest, own, name, settings)
        if settings.use == "ignore":
            chosen[:] = False
        labelled &= ~own | chosen
        unlabelled &= ~own | chosen
    return labelled, unlabelled
