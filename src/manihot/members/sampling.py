"""Which photographs an epoch sees, and how often: answers to classes of very different sizes.

Every row of SAMPLINGS is a function (labels (N,), rng, **settings) -> places int64 (n,), in no order. n is the same
in every epoch. Class weights in the loss (`class_weights`, `class_balanced`) are the other way to the same end.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from manihot.errors import SettingsError
from manihot.settings import Choice, suggest


def each_once(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every photograph once."""
    return np.arange(len(labels))


def oversample(
    labels: np.ndarray,
    rng: np.random.Generator,
    *,
    most: float = 5.0,
    classes: Sequence[int] = (),
    times: Mapping[int, float] | None = None,
) -> np.ndarray:
    """Photographs of smaller classes repeated until a class is as large as the largest, at most `most` times.

    classes: only these; all when empty. times: how often photographs of a class are seen, whatever its size. The
    fraction of a repetition is redrawn each epoch.
    """
    counts = np.bincount(labels)
    repeats = np.minimum(counts.max() / np.maximum(counts, 1), most)
    if len(classes):
        repeats[~np.isin(np.arange(len(counts)), classes)] = 1.0
    for k, wanted in (times or {}).items():
        if k < len(counts):  # otherwise none of its photographs is here
            repeats[k] = wanted
    return _repeat(labels, repeats, rng)


def undersample(labels: np.ndarray, rng: np.random.Generator, *, ratio: float = 1.0) -> np.ndarray:
    """Of each class at most `ratio` times the smallest one's photographs, redrawn each epoch."""
    counts = np.bincount(labels)
    most = max(1, round(ratio * counts[counts > 0].min()))
    return _repeat(labels, np.minimum(1.0, most / np.maximum(counts, 1)), rng)


def balanced(labels: np.ndarray, rng: np.random.Generator, *, power: float = 0.0) -> np.ndarray:
    """As many photographs as there are, a class's share proportional to its size to the `power`.

    0: all classes alike. .5: square root (arXiv 1805.00932). 1: as they come.
    """
    counts = np.bincount(labels)
    shares = np.where(counts > 0, np.maximum(counts, 1.0) ** power, 0.0)
    wanted = shares / shares.sum() * len(labels)
    return _repeat(labels, wanted / np.maximum(counts, 1), rng)


def _repeat(labels: np.ndarray, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each photograph of class k times[k] times: the whole part surely, the rest by drawing without repetition."""
    parts = []
    for k in np.unique(labels):
        own = np.flatnonzero(labels == k)
        whole, total = int(times[k]), round(times[k] * len(own))
        parts += [np.tile(own, whole), rng.choice(own, total - whole * len(own), replace=False)]
    return np.sort(np.concatenate(parts)).astype(np.int64)


def draw_epoch(sampling: Choice, labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Places among labels (N,) that one epoch sees, int64 (n,), decided by (seed, epoch) and not yet shuffled."""
    return SAMPLINGS[sampling.name](labels, np.random.default_rng([seed, epoch, 5]), **sampling.settings)


def expected_repeats(sampling: Choice, labels: np.ndarray, seed: int, epochs: int = 20) -> np.ndarray:
    """How often an epoch sees each photograph, float64 (N,), for what learns from all of them at once."""
    seen = np.zeros(len(labels))
    for epoch in range(epochs):
        seen += np.bincount(draw_epoch(sampling, labels, seed, epoch), minlength=len(labels))
    mean = np.bincount(labels, weights=seen) / np.maximum(np.bincount(labels), 1) / epochs
    found: np.ndarray = mean[labels]
    return found


def named_classes(sampling: Choice) -> list[str | int]:
    """The classes that a sampling names, by name or number."""
    return [*sampling.settings.get("classes", ()), *sampling.settings.get("times", ())]


def with_class_numbers(sampling: Choice, classes: Sequence[str], where: str = "sampling") -> Choice:
    """The sampling with numbers in place of the names of classes; SettingsError for a class that isn't there."""
    if not named_classes(sampling):
        return sampling
    own = sampling.settings
    if "classes" in own:
        own["classes"] = [class_number(one, classes, where) for one in own["classes"]]
    if "times" in own:
        own["times"] = {class_number(one, classes, where): n for one, n in own["times"].items()}
    return Choice(name=sampling.name, **own)


def class_number(one: str | int, classes: Sequence[str], where: str) -> int:
    """The place of a class among `classes`, given by its name or, where none is called so, by that number itself."""
    if str(one) in classes:
        return list(classes).index(str(one))
    if str(one).isdigit() and int(one) < len(classes):
        return int(one)
    numbers = f"a number from 0 to {len(classes) - 1}"
    raise SettingsError(f"{where}: there is no class {one!r}", f"{suggest(str(one), list(classes))} (or {numbers})")


def check_sampling(sampling: Choice, where: str) -> None:
    """SettingsError for a sampling or a setting that doesn't exist, or a value that makes no sense."""
    if sampling.name not in SAMPLINGS:
        raise SettingsError(f"{where}: there is no sampling {sampling.name!r}", suggest(sampling.name, [*SAMPLINGS]))
    known = [*inspect.signature(SAMPLINGS[sampling.name]).parameters][2:]
    for key, value in sampling.settings.items():
        if key not in known:
            raise SettingsError(
                f"{where}: {sampling.name} has no setting {key!r}",
                suggest(key, known) if known else "it has no settings",
            )
        if key == "classes":
            good = isinstance(value, (list, tuple)) and all(isinstance(one, (str, int)) for one in value)
            if not good or not value:
                raise SettingsError(f"{where}: classes = {value!r}", "a list of names or numbers of classes")
            continue
        if key == "times" and (not isinstance(value, Mapping) or not value):
            raise SettingsError(f"{where}: times = {value!r}", "a number per class, for example {4: 3}")
        for one, number in value.items() if key == "times" else [("", value)]:
            _check_number(number, 0.0 if key == "power" else 1.0, f"{where}: {key}{one and f'.{one}'}")


def _check_number(value: Any, least: float, what: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not least <= value <= 100:
        raise SettingsError(f"{what} = {value!r}", f"a number from {least:g} to 100")


SAMPLINGS: dict[str, Callable[..., np.ndarray]] = {
    "each_once": each_once,
    "oversample": oversample,
    "undersample": undersample,
    "balanced": balanced,
}
