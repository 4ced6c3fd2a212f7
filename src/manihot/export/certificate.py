"""What an exported model was measured to do: the answers of its run, and how well it does on held-out photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax
from scipy.stats import binomtest

from manihot.errors import WeightsError
from manihot.infer.forward import PhotoFiles, Photos, forward_views
from manihot.infer.models import Engine, TrainedModel
from manihot.infer.predict import calibrated, predict_photos
from manihot.networks.runner import Outputs, Runner
from manihot.photos.decode import decode_photo
from manihot.photos.preprocess import Preprocess
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.settings import View
from manihot.trust.conformal import ConformalSets, binomial_interval, measure_coverage
from manihot.trust.files import predict_sets_held_out

COMPARED = 200  # photographs on which an exported model is compared with its run
JUDGED = 2000  # held-out photographs on which int8 is judged
BOUND = 1e-4  # largest difference of a probability between a run and its export
EQUAL = 0.999  # least share of equal decisions
LEVEL = 0.05  # of the tests whether int8 recalls a class worse
MOST_LOST = 0.3  # points of accuracy that int8 may lose


class WholeFiles(PhotoFiles):
    """Files decoded at their full size, as a browser does, before they are brought to the stored size."""

    def __getitem__(self, index: int) -> np.ndarray:
        return self.first_step(decode_photo(self.paths[index]))


def evenly(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows, evenly spaced."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]


def compare_with_run(model: TrainedModel, trust: Path, runner: Runner, manifest: Manifest) -> dict[str, Any]:
    """What `manihot predict --tta 1` and the exported model answer on the photographs of `manifest`.

    Counts raw and calibrated probabilities. Raises WeightsError where they differ beyond BOUND and EQUAL.
    """
    one = model.with_views(1)
    expected = predict_photos([one], manifest, Engine())
    shown = calibrated(expected, trust)
    found = answers(runner, PhotoFiles(manifest.paths, model.preprocess), model.preprocess, len(manifest))
    whole = answers(runner, WholeFiles(manifest.paths, model.preprocess), model.preprocess, len(manifest))
    raw, sure = softmax(found["logits"].astype(np.float64), axis=1), found["probabilities"]
    certificate = {
        "photographs": len(manifest),
        "compared_with": "manihot predict --tta 1, with and without --raw",
        "bound": BOUND,
        "least_equal": EQUAL,
        "raw": _differences(expected.pred_probs, raw),
        "calibrated": _differences(shown.pred_probs, sure),
        "decoded_in_full": {
            "what": "the same photographs decoded at their full size, as a browser does; manihot decodes large JPEGs "
            "at 1/2, 1/4 or 1/8 of their size",
            **_differences(sure, whole["probabilities"]),
        },
    }
    check(certificate)
    return certificate


def check(certificate: Mapping[str, Any]) -> None:
    """WeightsError where an exported model's answers are not those of its run."""
    for name in ("raw", "calibrated"):
        part = certificate[name]
        if not part["largest_difference"] <= BOUND or not part["equal_decisions"] >= EQUAL:
            raise WeightsError(
                f"the exported model differs from the run: {name} probabilities by up to "
                f"{part['largest_difference']:.2g} (at most {BOUND:g}), {part['equal_decisions']:.2%} equal decisions "
                f"on {certificate['photographs']} photographs; nothing was written",
                "run `manihot run` again, and report this if it stays",
            )


def _differences(expected: np.ndarray, found: np.ndarray) -> dict[str, float]:
    same = expected.argmax(axis=1) == found.argmax(axis=1)
    return {"equal_decisions": float(same.mean()), "largest_difference": float(np.abs(expected - found).max())}


def answers(runner: Runner, photos: Photos, preprocess: Preprocess, n: int) -> dict[str, np.ndarray]:
    """Every output of a runner for the whole photographs, by name: (n, ...)."""
    kept: list[dict[str, np.ndarray]] = []
    forward_views(
        [runner],
        photos,
        np.arange(n),
        preprocess,
        (View(),),
        want="embeddings",
        what="Comparing",
        also=lambda place, view, outputs: kept.append(outputs[0]),
    )
    return {name: np.concatenate([outputs[name] for outputs in kept]) for name in kept[0]}


@dataclass(frozen=True)
class Judged:
    """Photographs, each by the network of the fold that held it out.

    rows: of the manifest (n,). probs: raw (n, K). embeddings: (n, D).
    """

    rows: np.ndarray
    probs: np.ndarray
    embeddings: np.ndarray


def held_out(
    runners: Mapping[int, Runner], photos: Photos, manifest: Manifest, rows: np.ndarray, preprocess: Preprocess
) -> Judged:
    """What the networks say of `rows`, each photograph by the one of the fold that held it out."""
    fold = manifest.fold[rows]
    found: dict[str, np.ndarray] = {}
    for number, runner in runners.items():
        own = np.flatnonzero(fold == number)

        def keep(place: slice, view: int, outputs: list[Outputs], own: np.ndarray = own) -> None:
            for name in ("logits", "embeddings"):
                values = outputs[0][name]
                found.setdefault(name, np.zeros((len(rows), values.shape[1]), np.float32))[own[place]] = values

        if len(own):
            what = f"Held out by fold {number}"
            forward_views([runner], photos, rows[own], preprocess, (View(),), what=what, also=keep)
    return Judged(rows, softmax(found["logits"].astype(np.float64), axis=1), found["embeddings"])


def held_out_rows(manifest: Manifest, folds: Sequence[int], most: int = JUDGED) -> np.ndarray:
    """Rows of labelled photographs that one of the folds holds out, at most so many, evenly spaced."""
    usable = (manifest.labels >= 0) & np.isin(manifest.fold, list(folds))
    return evenly(np.flatnonzero(usable & (manifest.table["split"].to_numpy() != "test")), most)


def score(probs: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Accuracy with its exact 95 % interval."""
    right = int((probs.argmax(axis=1) == labels).sum())
    low, high = binomial_interval(np.array(right), np.array(len(labels)))
    return {"photographs": len(labels), "accuracy": right / len(labels), "low": float(low), "high": float(high)}


def set_coverage(sets: ConformalSets, predictions: Predictions) -> list[dict[str, Any]]:
    """How often a set holds the label, per class and of `all`: each photograph's by thresholds of the other folds."""
    assert predictions.fold is not None
    held, labels = (
        predict_sets_held_out(predictions, predictions.fold, sets.coverage, sets.per_class, sets.kind, sets.seed),
        predictions.labels,
    )
    table = measure_coverage(held, labels, predictions.classes)
    return [
        {str(k): None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()}
        for row in table.to_dict("records")
    ]


def compare_held_out(full: np.ndarray, small: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """int8 against fp32 on held-out photographs: accuracy and recall of both, decisions that changed.

    gain: of accuracy, with its 95 % interval (of paired differences, Wald's with Agresti and Min's 2005 correction).
    p_worse: of McNemar's exact test. classes: of each with photographs its recalls, and the p of its own test.
    """
    before, after = full.argmax(axis=1) == labels, small.argmax(axis=1) == labels
    classes = []
    for k in range(full.shape[1]):
        own = labels == k
        if own.any():
            fixed, broken = int((after & ~before)[own].sum()), int((before & ~after)[own].sum())
            one = {"class": k, "photographs": int(own.sum()), "fp32": float(before[own].mean())}
            classes.append({**one, "int8": float(after[own].mean()), **_test(fixed, broken)})
    fixed, broken = int((after & ~before).sum()), int((before & ~after).sum())
    gain, low, high = paired_difference(fixed, broken, len(labels))
    return {
        "fp32": score(full, labels),
        "int8": score(small, labels),
        **_differences(full, small),
        **_test(fixed, broken),
        "gain": {"points": 100 * gain, "low": 100 * low, "high": 100 * high},
        "classes": classes,
    }


def _test(fixed: int, broken: int) -> dict[str, Any]:
    p = float(binomtest(broken, fixed + broken, alternative="greater").pvalue) if fixed + broken else 1.0
    return {"fixed": fixed, "broken": broken, "p_worse": p}


def paired_difference(fixed: int, broken: int, n: int) -> tuple[float, float, float]:
    """Change of a share with its 95 % interval, of n pairs (Agresti and Min 2005: half a pair more of each kind)."""
    more, less, total = fixed + 0.5, broken + 0.5, n + 2
    middle = (more - less) / total
    spread = 1.96 * float(np.sqrt(more + less - (more - less) ** 2 / total)) / total
    return (fixed - broken) / n, middle - spread, middle + spread


def check_int8(measured: Mapping[str, Any], classes: Sequence[str], most: float = MOST_LOST) -> None:
    """WeightsError where int8 loses more than `most` points, or a class is recalled worse beyond chance."""
    gain, n = measured["gain"], measured["fp32"]["photographs"]
    if gain["points"] < -most - 1e-9:
        raise WeightsError(
            f"int8 loses accuracy: {measured['fp32']['accuracy']:.2%} to {measured['int8']['accuracy']:.2%} on "
            f"{n} held-out photographs, {gain['points']:+.2f} points (95 % interval {gain['low']:+.2f} to "
            f"{gain['high']:+.2f}), and at most {most:g} may be lost; nothing was written",
            "leave --int8 out",
        )
    level = LEVEL / max(1, len(measured["classes"]))  # of several tests
    for one in measured["classes"]:
        if one["p_worse"] < level:
            raise WeightsError(
                f"int8 loses the class {classes[one['class']]}: {one['fp32']:.1%} to {one['int8']:.1%} of its "
                f"{one['photographs']} held-out photographs are found (p {one['p_worse']:.2g}); nothing was written",
                "leave --int8 out",
            )
