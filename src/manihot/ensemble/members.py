"""Members side by side: the checks that every way of combining predictions needs before it starts.

A stack of members is an array (M, N, K): M members' probabilities for the same N photographs and K classes,
as `stack_members` makes it from `Predictions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from manihot.errors import DataError
from manihot.records.predictions import Predictions
from manihot.records.probabilities import check_labels, check_probs

ROW_BLOCK = 65_536  # photographs handled at a time, so that a million rows need no second copy


def check_members(pred_probs: np.ndarray, labels: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Members (M, N, K) and labels (N,) as arrays, checked: shapes, finite numbers, labels in
    0..K-1 (DataError).
    """
    pred_probs = np.asarray(pred_probs)
    if pred_probs.ndim != 3 or 0 in pred_probs.shape or pred_probs.shape[2] < 2:
        raise DataError(
            f"members have shape {pred_probs.shape}", "an array (members, photographs, classes), two classes or more"
        )
    if not np.issubdtype(pred_probs.dtype, np.floating):
        pred_probs = pred_probs.astype(np.float64)
    for member, probs in enumerate(pred_probs):
        check_probs(probs, any_scale=True, what=f"member {member}")
    if labels is None:
        return pred_probs, np.empty(0, dtype=np.int64)
    return pred_probs, check_labels(labels, *pred_probs.shape[1:], all_known=True)


def check_weights(weights: np.ndarray | Sequence[float] | None, m: int) -> np.ndarray:
    """Weights as float64 (M,) that sum to 1; None means equal ones. Negative, all-zero or too few:
    DataError.
    """
    if weights is None:
        return np.full(m, 1.0 / m)
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (m,) or not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
        raise DataError(
            f"weights {np.array2string(weights, precision=3)} don't fit {m} members",
            "one weight per member, none negative, not all zero",
        )
    found: np.ndarray = weights / weights.sum()
    return found


def row_blocks(n: int, size: int = ROW_BLOCK) -> Iterator[slice]:
    """Slices that cover range(n)."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


@dataclass(frozen=True)
class Members:
    """Several members' predictions for the same photographs.

    pred_probs: float32 (M, N, K). labels: int64 (N,), -1 unknown. fold: int64 (N,), the first level's folds
    where all members share them, else -1. unknown: float32 (N,), mean probability of the output `unknown` over the
    members that have it, or None.
    """

    names: tuple[str, ...]
    image_id: np.ndarray
    pred_probs: np.ndarray
    labels: np.ndarray
    fold: np.ndarray
    classes: tuple[str, ...]
    unknown: np.ndarray | None = None
    numbers: tuple[int, ...] | None = None  # of the classes, of the first member that says so

    @property
    def has_folds(self) -> bool:
        """Whether the first level's folds are known: two or more, none missing."""
        return len(self.fold) > 0 and self.fold.min() >= 0 and self.fold.max() >= 1

    def subset(self, names: Sequence[str]) -> Members:
        """Those members alone, in the order of `names`."""
        rows = [self.names.index(name) for name in names]
        return replace(self, names=tuple(names), pred_probs=self.pred_probs[rows])

    def take(self, rows: np.ndarray) -> Members:
        """The photographs of `rows`, places or a mask (N,)."""
        return replace(
            self,
            image_id=self.image_id[rows],
            pred_probs=self.pred_probs[:, rows],
            labels=self.labels[rows],
            fold=self.fold[rows],
            unknown=None if self.unknown is None else self.unknown[rows],
        )

    def labelled(self) -> Members:
        """Only the photographs with a label; none at all is a DataError."""
        rows = self.labels >= 0
        if rows.all():
            return self
        if not rows.any():
            raise DataError(
                f"{self.names[0]}: no photograph has a label, so nothing can be fitted or scored",
                "give out-of-fold predictions with a label column",
            )
        return self.take(rows)


def stack_members(predictions: Iterable[Predictions], names: Sequence[str]) -> Members:
    """Members side by side in the first one's order of photographs; they are taken one at a time.

    Raises DataError, naming the member, where photographs, classes or labels differ.
    """
    if not names:
        raise DataError("there are no members to combine", "name at least one predictions file")
    out: np.ndarray | None = None
    unknown: list[np.ndarray] = []
    numbers: tuple[int, ...] | None = None
    for index, (member, name) in enumerate(zip(predictions, names, strict=True)):
        if out is None:
            image_id, classes, labels, folds = member.image_id, member.classes, member.labels, member.fold
            out = np.empty((len(names), len(member), len(classes)), dtype=np.float32)
        member = _fit_to(member, name, image_id, classes, labels, names[0])
        labels = np.where(labels >= 0, labels, member.labels)
        if not np.array_equal(member.fold, folds):
            folds = np.full(len(labels), -1)
        out[index] = member.pred_probs
        unknown += [] if member.unknown is None else [member.unknown]
        numbers = numbers or member.numbers
    assert out is not None
    mean = np.mean(unknown, axis=0) if unknown else None
    return Members(tuple(names), image_id, out, labels, folds, classes, mean, numbers)


def _fit_to(
    member: Predictions, name: str, image_id: np.ndarray, classes: tuple[str, ...], labels: np.ndarray, first: str
) -> Predictions:
    """The member's rows in the order of image_id, after checking that it speaks of the same things."""
    if member.classes != classes:
        raise DataError(
            f"{name}: classes {', '.join(member.classes)} are not those of {first}: {', '.join(classes)}",
            "combine members that were trained on the same classes in the same order",
        )
    if len(member) != len(image_id):
        raise DataError(
            f"{name} predicts {len(member)} photographs, {first} {len(image_id)}",
            "every member must predict the same photographs",
        )
    if not np.array_equal(member.image_id, image_id):
        try:
            member = member.align(image_id)
        except DataError as error:
            raise DataError(f"{name}: {error.what}, which {first} has", "predict the same photographs") from error
    differ = (member.labels >= 0) & (labels >= 0) & (member.labels != labels)
    if differ.any():
        raise DataError(
            f"{name}: {int(differ.sum())} labels differ from those of {first}, first {image_id[differ][0]!r}",
            "make all predictions from one manifest",
        )
    return member


def _name(path: Path) -> str:
    member, _, rest = path.name.partition(".")
    view = rest.split(".")[0]
    return f"{member}.{view}" if view.startswith("tta") and view[3:].isdigit() else member


def load_members(paths: Sequence[Path], classes: tuple[str, ...] | None = None) -> Members:
    """Read predictions files (parquet or CSV) as members, named after their files up to the first dot.

    Views of one member (NAME.tta0.oof.parquet, ...) keep their number.
    classes: names for the columns of CSV files; those of the first parquet file when None.
    """
    names = [_name(Path(path)) for path in paths]
    if len(set(names)) < len(names):
        names = [f"{Path(path).parent.name}-{name}" for path, name in zip(paths, names)]
    if len(set(names)) < len(names):
        names = [f"{name}-{index}" for index, name in enumerate(names)]
    if classes is None and any(Path(path).suffix == ".csv" for path in paths):
        own = [path for path in paths if Path(path).suffix != ".csv"]
        classes = Predictions.load(Path(own[0])).classes if own else None
    return stack_members((Predictions.load(Path(path), classes) for path in paths), names)
