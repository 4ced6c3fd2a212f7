"""What a second level has learned, as plain arrays: kept in one .npz without pickle, and applied to any members.

A run's test photographs, out-of-fold ones and new ones all go through the same functions here, so that what is
saved gives the very answers that were judged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import BaseModel, Field, model_validator
from scipy.special import softmax

from manihot.ensemble.blend import blend
from manihot.errors import DataError
from manihot.records.files import atomic_path
from manihot.records.readers import about_of, read_arrays, reading
from manihot.records.run_places import member_of

FLOOR = 1e-5  # of a probability before its logarithm: below it lies noise, not evidence
Arrays = dict[str, np.ndarray]
Names = Annotated[tuple[str, ...], Field(min_length=1)]


def member_features(pred_probs: np.ndarray) -> np.ndarray:
    """Centred log-probabilities of all members, float64 (N, M, K): zero mean over the classes."""
    logs = np.log(np.maximum(np.asarray(pred_probs, dtype=np.float64), FLOOR))
    logs -= logs.mean(axis=2, keepdims=True)
    return np.ascontiguousarray(logs.transpose(1, 0, 2))


def _standardised(arrays: Arrays, pred_probs: np.ndarray) -> np.ndarray:
    flat = member_features(pred_probs).reshape(pred_probs.shape[1], -1)
    return (flat - arrays["centre"]) / arrays["spread"]


def _spread_out(arrays: Arrays, probs: np.ndarray, k: int) -> np.ndarray:
    """Columns of the classes that were there to learn from; the others get the probability 0."""
    out = np.zeros((len(probs), k))
    out[:, arrays["present"]] = probs
    return out


def predict_linear(arrays: Arrays, pred_probs: np.ndarray) -> np.ndarray:
    """Softmax of a linear layer: weight (K', M * K), bias (K',)."""
    logits = _standardised(arrays, pred_probs) @ arrays["weight"].T + arrays["bias"]
    return _spread_out(arrays, softmax(logits, axis=1), pred_probs.shape[2])


def predict_perceptron(arrays: Arrays, pred_probs: np.ndarray) -> np.ndarray:
    """One hidden layer of rectified units, then softmax."""
    hidden = np.maximum(_standardised(arrays, pred_probs) @ arrays["weight0"] + arrays["bias0"], 0)
    logits = hidden @ arrays["weight1"] + arrays["bias1"]
    return _spread_out(arrays, softmax(logits, axis=1), pred_probs.shape[2])


def predict_trees(arrays: Arrays, pred_probs: np.ndarray) -> np.ndarray:
    """Boosted trees: the softmax of the sum of the leaves that a photograph falls into, a class's trees in turn.

    feature, threshold, left, right (T, S): splits, of which a value up to the threshold goes left; a child below zero
    is the leaf ~child. leaf (T, L): values. Two classes have one sum, the logit of the second.
    """
    values = _standardised(arrays, pred_probs)
    feature, threshold = arrays["feature"], arrays["threshold"]
    trees, splits = feature.shape
    rows, places = np.arange(len(values))[:, None], np.arange(trees)
    at = np.zeros((len(values), trees), dtype=np.int64)  # the split where each tree begins
    for _ in range(splits):
        inner = at >= 0
        if not inner.any():
            break
        here = np.maximum(at, 0)
        goes_left = values[rows, feature[places, here]] <= threshold[places, here]
        child = np.where(goes_left, arrays["left"][places, here], arrays["right"][places, here])
        at = np.where(inner, child, at)
    leaves = arrays["leaf"][places, ~at]
    present = len(arrays["present"])
    columns = 1 if present == 2 else present
    sums = leaves.reshape(len(values), -1, columns).sum(axis=1)
    logits = np.column_stack([np.zeros(len(values)), sums]) if columns == 1 else sums
    return _spread_out(arrays, softmax(logits, axis=1), pred_probs.shape[2])


def _check_trees(arrays: Arrays) -> None:
    """ValueError where splits could lead round in a circle or out of their tree."""
    (trees, splits), left, right = arrays["feature"].shape, arrays["left"], arrays["right"]
    for name in ("feature", "left", "right"):
        if arrays[name].dtype.kind != "i" or arrays[name].shape != (trees, splits):
            raise ValueError(f"{name} are not whole numbers of the shape of the splits")
    leaves = arrays["leaf"].shape[1]
    for child in (left, right):
        later = (child > np.arange(splits)) & (child < splits)
        if not (later | ((child < 0) & (child >= -leaves))).all():
            raise ValueError("a split of its trees leads nowhere")
    if (arrays["feature"] < 0).any():
        raise ValueError("a split of its trees has no feature")


def predict_cnn(arrays: Arrays, pred_probs: np.ndarray) -> np.ndarray:
    """The convolutional stackers, of `manihot.train.stackers`: convolution, rectifier, linear layer, softmax."""
    features = ((member_features(pred_probs) - arrays["centre"]) / arrays["spread"]).astype(np.float32)
    kernel, bias = arrays["net.1.weight"], arrays["net.1.bias"]
    if str(arrays["kind"]) == "1d":  # classes are channels
        windows = sliding_window_view(np.pad(features, ((0, 0), (1, 1), (0, 0))), 3, axis=1)
        maps = np.einsum("nmkt,okt->nom", windows, kernel) + bias[:, None]
    else:
        windows = sliding_window_view(np.pad(features, ((0, 0), (1, 1), (1, 1))), (3, 3), axis=(1, 2))
        maps = np.einsum("nmkij,oij->nomk", windows, kernel[:, 0]) + bias[:, None, None]
    logits = np.maximum(maps, 0).reshape(len(maps), -1) @ arrays["net.5.weight"].T + arrays["net.5.bias"]
    found: np.ndarray = softmax(logits.astype(np.float64), axis=1)
    return found


def predict_mean(arrays: Arrays, pred_probs: np.ndarray) -> np.ndarray:
    """A weighted mean: weights (M,), the mean's name, and for ranks the probabilities that they are taken among."""
    settings = {"reference": arrays["reference"]} if "reference" in arrays else {}
    return blend(pred_probs, arrays["weights"], str(arrays["mean"]), **settings)


@dataclass(frozen=True)
class Part:
    """One fitted model: (M, N, K) to probabilities float64 (N, K). kind: a row of KINDS."""

    kind: str
    arrays: Arrays

    def __call__(self, pred_probs: np.ndarray) -> np.ndarray:
        """Members (M, N, K) to probabilities (N, K)."""
        return KINDS[self.kind](self.arrays, pred_probs)


def weighted_mean(weights: np.ndarray, mean: str = "arithmetic", reference: np.ndarray | None = None) -> Part:
    """A blend as a part; reference (M, N, K): what ranks are taken among."""
    arrays = {"weights": np.asarray(weights, dtype=np.float64), "mean": np.array(mean)}
    if reference is not None:
        arrays["reference"] = np.sort(reference.reshape(len(reference), -1), axis=1)
    return Part("mean", arrays)


class SavedGroup(BaseModel):
    """A group of members in a saved blend."""

    name: str
    members: Names
    parts: list[list[str]]


class Saved(BaseModel):
    """What is stored in a saved blend beside its arrays."""

    members: Names
    classes: Names
    parts: list[list[str]]
    inputs: tuple[str, ...] = ()
    groups: list[SavedGroup] = []

    @model_validator(mode="after")
    def _fit(self) -> Saved:
        inside = {one for group in self.groups for one in group.members}
        groups = {group.name for group in self.groups}
        if unknown := inside - set(self.members):
            raise ValueError(f"a group of {', '.join(sorted(unknown))}, which is not a member")
        if unknown := set(self.inputs) - groups - set(self.members):
            raise ValueError(f"the input {', '.join(sorted(unknown))}, which is not a member or group")
        return self


@dataclass(frozen=True)
class Combination:
    """How a run's members become one answer: the mean over `parts`, each the mean over its fitted folds.

    groups: by name, members that become one first. `inputs` are then what the parts take: names of groups and of
    members; they are the members themselves where it is empty.
    """

    members: tuple[str, ...]
    classes: tuple[str, ...]
    parts: tuple[tuple[Part, ...], ...]
    inputs: tuple[str, ...] = ()
    groups: tuple[tuple[str, Combination], ...] = ()

    def __call__(self, pred_probs: np.ndarray) -> np.ndarray:
        """Members (M, N, K) in the order of `members` to probabilities float64 (N, K)."""
        if pred_probs.shape[::2] != (len(self.members), len(self.classes)):
            raise DataError(
                f"members of shape {pred_probs.shape} for a blend of {len(self.members)} members and "
                f"{len(self.classes)} classes",
                "predict with every member of the blend",
            )
        if self.inputs:
            groups, place = dict(self.groups), {name: m for m, name in enumerate(self.members)}
            pred_probs = np.stack(
                [
                    groups[name](pred_probs[[place[one] for one in groups[name].members]])
                    if name in groups
                    else pred_probs[place[name]]
                    for name in self.inputs
                ]
            )
        means = [np.mean([part(pred_probs) for part in folds], axis=0) for folds in self.parts]
        found: np.ndarray = np.mean(means, axis=0)
        return found

    @property
    def networks(self) -> tuple[str, ...]:
        """The members whose networks are needed, each once; `members` may be single views of them."""
        return tuple(dict.fromkeys(map(member_of, self.members)))

    @property
    def by_view(self) -> bool:
        """Whether it takes single views."""
        return any(member_of(name) != name for name in self.members)

    def check(self) -> None:
        """ValueError where the arrays can't answer for these members and classes."""
        for part in self._all_parts():
            if part.kind == "trees":
                _check_trees(part.arrays)
        shape = (len(self.members), 2, len(self.classes))
        answer = self(np.full(shape, 1 / len(self.classes)))
        if answer.shape != shape[1:] or not np.isfinite(answer).all() or abs(answer.sum(axis=1) - 1).max() > 0.01:
            raise ValueError("its answer to members that know nothing is not a distribution")

    def _all_parts(self) -> list[Part]:
        inner = [part for _, one in self.groups for part in one._all_parts()]
        return [part for folds in self.parts for part in folds] + inner

    def save(self, path: Path) -> None:
        """Write as .npz, atomically."""
        about: dict[str, Any] = {"members": self.members, "classes": self.classes, "parts": _kinds(self.parts)}
        if self.inputs:
            about["inputs"] = self.inputs
            about["groups"] = [
                {"name": name, "members": one.members, "parts": _kinds(one.parts)} for name, one in self.groups
            ]
        arrays = {"about": np.array(json.dumps(about)), **_arrays(self.parts, "")}
        for number, (_, one) in enumerate(self.groups):
            arrays |= _arrays(one.parts, f"group{number}.")
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            np.savez_compressed(handle, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Combination:
        """Read what `save` wrote; anything else is a DataError."""
        what, remedy = "a saved blend", "run the same `manihot run` again to regenerate it"
        arrays = read_arrays(path, what, ("about",), remedy)
        with reading(path, what, remedy, DataError):
            about = about_of(arrays, Saved)
            groups = tuple(
                (one.name, cls(one.members, about.classes, _parts(one.parts, arrays, f"group{number}.")))
                for number, one in enumerate(about.groups)
            )
            found = cls(about.members, about.classes, _parts(about.parts, arrays, ""), about.inputs, groups)
            found.check()
            return found


def as_weighted(
    members: Sequence[str],
    classes: Sequence[str],
    weights: np.ndarray,
    mean: str = "arithmetic",
    reference: np.ndarray | None = None,
) -> Combination:
    """A blend with fixed weights (M,); members without a weight are left out, so that nobody has to run them."""
    kept = [m for m in range(len(members)) if weights[m] > 0]
    part = weighted_mean(np.asarray(weights)[kept], mean, None if reference is None else reference[kept])
    return Combination(tuple(members[m] for m in kept), tuple(classes), ((part,),))


def with_groups(outer: Combination, groups: Mapping[str, Combination]) -> Combination:
    """A blend of `groups` by name and of members, as one that takes the members themselves."""
    inner = [groups[name].members if name in groups else (name,) for name in outer.members]
    leaves = tuple(dict.fromkeys(member for names in inner for member in names))
    kept = tuple((name, groups[name]) for name in outer.members if name in groups)
    return Combination(leaves, outer.classes, outer.parts, outer.members, kept)


Fits = tuple[tuple[Part, ...], ...]


def _kinds(parts: Fits) -> list[list[str]]:
    return [[part.kind for part in folds] for folds in parts]


def _arrays(parts: Fits, prefix: str) -> Arrays:
    return {
        f"{prefix}{i}.{j}.{name}": value
        for i, folds in enumerate(parts)
        for j, part in enumerate(folds)
        for name, value in part.arrays.items()
    }


def _parts(kinds: Sequence[Sequence[str]], arrays: Arrays, prefix: str) -> Fits:
    """What `_arrays` wrote; ValueError for anything else."""
    parts = tuple(
        tuple(Part(kind, _below(arrays, f"{prefix}{i}.{j}.")) for j, kind in enumerate(folds))
        for i, folds in enumerate(kinds)
    )
    if not parts or not all(part.kind in KINDS and part.arrays for folds in parts for part in folds):
        raise ValueError("its parts are unknown")
    return parts


def _below(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


KINDS: dict[str, Callable[[Arrays, np.ndarray], np.ndarray]] = {
    "mean": predict_mean,
    "linear": predict_linear,
    "perceptron": predict_perceptron,
    "trees": predict_trees,
    "cnn": predict_cnn,
}
