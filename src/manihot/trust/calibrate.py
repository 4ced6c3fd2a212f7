"""Calibration: make a stated probability mean what it says, fitted on out-of-fold predictions, saved with the
model.

Temperature and vector scaling: Guo et al., On calibration of modern neural networks, ICML 2017 (arXiv
1706.04599). Isotonic: Zadrozny and Elkan, KDD 2002, one class against the rest, rows scaled to one.
Confidence: the same staircase for the top probability alone (Kumar et al., 2019, arXiv 1909.10155, calibrate
the top label), which leaves every answer as it is. All work on probabilities:
a logit is only needed up to a constant per row, and log p is one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, model_validator
from scipy import optimize
from scipy.special import log_softmax, softmax
from sklearn.isotonic import IsotonicRegression

from manihot.errors import DataError, SettingsError
from manihot.metrics import ece, reliability
from manihot.records.files import atomic_path, save_json
from manihot.records.probabilities import TINY, check_labels, check_probs, log_probs
from manihot.records.readers import read_json, reading
from manihot.settings import suggest

LOG_T = (np.log(0.02), np.log(50.0))


def labelled(pred_probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float64 (N, K) and labels int64 (N,) of the labelled photographs; none at all is a DataError."""
    probs = check_probs(pred_probs, least=2)
    y = check_labels(labels, *probs.shape)
    known = y >= 0
    if not known.any():
        raise DataError("no photograph has a label", "give out-of-fold predictions with labels")
    return probs[known], y[known]


def scale_temperature(pred_probs: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / T): T above 1 makes probabilities (N, K) more modest, below 1 bolder."""
    return np.asarray(softmax(log_probs(pred_probs) / temperature, axis=1))


def fit_temperature(pred_probs: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T with the least log loss of softmax(log p / T), within [0.02, 50].

    pred_probs: (N, K). labels: int (N,), -1 left out. Raises DataError for what doesn't fit.
    """
    probs, y = labelled(pred_probs, labels)
    z = log_probs(probs)
    z -= z.max(axis=1, keepdims=True)
    true = z[np.arange(len(y)), y]

    def loss(log_t: float) -> float:
        scale = np.exp(-log_t)
        return float((np.log(np.exp(z * scale).sum(axis=1)) - true * scale).mean())

    return float(np.exp(optimize.minimize_scalar(loss, bounds=LOG_T, method="bounded", options={"xatol": 1e-6}).x))


def fit_vector(pred_probs: np.ndarray, labels: np.ndarray, l2: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
    """Vector scaling softmax(w * log p + b): w (K,) and b (K,) of least log loss; b sums to 0.

    l2 draws w to 1 and b to 0, so that a class with few photographs keeps its probabilities.
    """
    probs, y = labelled(pred_probs, labels)
    z, k = log_probs(probs), probs.shape[1]
    onehot = np.eye(k)[y]

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = x[:k], x[k:]
        log_p = log_softmax(z * w + b, axis=1)
        away = np.concatenate([w - 1.0, b])
        excess = (np.exp(log_p) - onehot) / len(y)
        gradient = np.concatenate([(excess * z).sum(axis=0), excess.sum(axis=0)])
        return float(-(onehot * log_p).sum() / len(y) + l2 / 2 * away @ away), gradient + l2 * away

    found = optimize.minimize(loss, np.concatenate([np.ones(k), np.zeros(k)]), jac=True, method="L-BFGS-B").x
    return found[:k], found[k:] - found[k:].mean()


def fit_isotonic(pred_probs: np.ndarray, labels: np.ndarray) -> list[dict[str, list[float]]]:
    """One rising staircase per class, from its probability to the share that had it: [{"x": [...], "y": [...]}]
    * K.

    Values stay within half a photograph of 0 and 1, so that no class is declared impossible.
    """
    probs, y = labelled(pred_probs, labels)
    edge = 0.5 / (len(y) + 1)
    curves = []
    for k in range(probs.shape[1]):
        fitted = IsotonicRegression(y_min=edge, y_max=1 - edge, out_of_bounds="clip").fit(probs[:, k], y == k)
        curves.append({"x": fitted.X_thresholds_.tolist(), "y": fitted.y_thresholds_.tolist()})
    return curves


def fit_confidence(pred_probs: np.ndarray, labels: np.ndarray) -> dict[str, list[float]]:
    """A rising staircase from the top probability to the share of right answers: {"x": [...], "y": [...]}."""
    probs, y = labelled(pred_probs, labels)
    edge = 0.5 / (len(y) + 1)
    fitted = IsotonicRegression(y_min=edge, y_max=1 - edge, out_of_bounds="clip")
    fitted.fit(probs.max(axis=1), probs.argmax(axis=1) == y)
    return {"x": fitted.X_thresholds_.tolist(), "y": fitted.y_thresholds_.tolist()}


def _apply_confidence(probs: np.ndarray, curve: dict[str, list[float]]) -> np.ndarray:
    """Give the top class its calibrated probability, share the rest in proportion; the top class stays the
    top.
    """
    rows, top = np.arange(len(probs)), probs.argmax(axis=1)
    rest = np.maximum(probs, TINY)
    rest[rows, top] = 0.0
    rest /= rest.sum(axis=1, keepdims=True)
    second = rest.max(axis=1)
    confidence = np.interp(probs.max(axis=1), curve["x"], curve["y"])
    confidence = np.maximum(confidence, second / (1 + second) * (1 + 1e-9))  # where c = (1 - c) * second
    out = rest * (1.0 - confidence)[:, None]
    out[rows, top] = confidence
    found: np.ndarray = out
    return found


class Curve(BaseModel):
    """A staircase from stated probabilities to shares."""

    x: list[FiniteFloat]
    y: list[Annotated[float, Field(ge=0, le=1)]]

    @model_validator(mode="after")
    def _fit(self) -> Curve:
        if not self.x or len(self.x) != len(self.y) or self.x != sorted(self.x):
            raise ValueError("not a rising curve of x and y of one length")
        return self


class NoParams(BaseModel):
    """Of probabilities left as they are."""


class Temperature(BaseModel):
    """Of temperature scaling."""

    temperature: Annotated[FiniteFloat, Field(gt=0)]


class Vector(BaseModel):
    """Of vector scaling."""

    weights: list[Annotated[float, Field(ge=-1e6, le=1e6)]]
    bias: list[Annotated[float, Field(ge=-1e6, le=1e6)]]

    @model_validator(mode="after")
    def _fit(self) -> Vector:
        if not self.weights or len(self.weights) != len(self.bias):
            raise ValueError("weights and bias of different lengths")
        return self


class Isotonic(BaseModel):
    """A curve per class."""

    curves: list[Curve]


class Confidence(BaseModel):
    """The curve of the top probability."""

    curve: Curve


class Saved(BaseModel):
    """What `Calibrator.to_json` gives."""

    kind: str
    params: dict[str, Any]
    classes: tuple[str, ...] = ()


PARAMS: dict[str, type[BaseModel]] = {
    "none": NoParams,
    "temperature": Temperature,
    "vector": Vector,
    "isotonic": Isotonic,
    "confidence": Confidence,
}


@dataclass(frozen=True)
class Calibrator:
    """A fitted calibration; `params` are plain JSON values, so that it travels with a model.

    kind: a name of CALIBRATORS. classes: K names, or empty where unknown.
    """

    kind: str
    params: dict[str, Any]
    classes: tuple[str, ...] = field(default=())

    def __call__(self, pred_probs: np.ndarray) -> np.ndarray:
        """Calibrated probabilities float64 (N, K); rows sum to 1."""
        probs = check_probs(pred_probs, least=2)
        if self.kind == "none":
            found: np.ndarray = probs / probs.sum(axis=1, keepdims=True)
            return found
        if self.kind == "temperature":
            return scale_temperature(probs, self.params["temperature"])
        if self.kind == "vector":
            w, b = (np.asarray(self.params[name]) for name in ("weights", "bias"))
            self._check_classes(probs, len(w))
            return np.asarray(softmax(log_probs(probs) * w + b, axis=1))
        if self.kind == "confidence":
            return _apply_confidence(probs, self.params["curve"])
        curves = self.params["curves"]
        self._check_classes(probs, len(curves))
        out = np.column_stack([np.interp(probs[:, k], c["x"], c["y"]) for k, c in enumerate(curves)])
        found = out / out.sum(axis=1, keepdims=True)
        return found

    def _check_classes(self, probs: np.ndarray, k: int) -> None:
        if probs.shape[1] != k:
            raise DataError(f"a calibration of {k} classes can't be used on {probs.shape[1]}", "fit it again")

    def to_json(self) -> dict[str, Any]:
        """Plain values for a model's metadata."""
        return {"kind": self.kind, "params": self.params, "classes": list(self.classes)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Calibrator:
        """The inverse of `to_json`; DataError for an unknown kind, pydantic's ValidationError for other damage."""
        saved = Saved.model_validate(values)
        if saved.kind not in CALIBRATORS:
            raise DataError(f"unknown calibration {saved.kind!r}", f"one of: {', '.join(CALIBRATORS)}")
        params = PARAMS[saved.kind].model_validate(saved.params)
        known = {"vector": "weights", "isotonic": "curves"}.get(saved.kind)
        if known is not None and saved.classes and len(getattr(params, known)) != len(saved.classes):
            raise DataError(f"{len(getattr(params, known))} {known} for {len(saved.classes)} classes", "fit it again")
        return cls(saved.kind, params.model_dump(), saved.classes)

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        save_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Calibrator:
        """Read what `save` wrote; anything else is a DataError that names the field."""
        what, remedy = "a saved calibration", "fit it again: manihot calibrate, or the same manihot run"
        values = read_json(path, what, remedy, DataError)
        with reading(path, what, remedy, DataError):
            return cls.from_json(values)


def make_none(pred_probs: np.ndarray, labels: np.ndarray) -> Calibrator:
    """The probabilities as they are."""
    return Calibrator("none", {})


def make_temperature(pred_probs: np.ndarray, labels: np.ndarray) -> Calibrator:
    """`fit_temperature` as a Calibrator."""
    return Calibrator("temperature", {"temperature": fit_temperature(pred_probs, labels)})


def make_vector(pred_probs: np.ndarray, labels: np.ndarray) -> Calibrator:
    """`fit_vector` as a Calibrator."""
    w, b = fit_vector(pred_probs, labels)
    return Calibrator("vector", {"weights": w.tolist(), "bias": b.tolist()})


def make_isotonic(pred_probs: np.ndarray, labels: np.ndarray) -> Calibrator:
    """`fit_isotonic` as a Calibrator."""
    return Calibrator("isotonic", {"curves": fit_isotonic(pred_probs, labels)})


def make_confidence(pred_probs: np.ndarray, labels: np.ndarray) -> Calibrator:
    """`fit_confidence` as a Calibrator."""
    return Calibrator("confidence", {"curve": fit_confidence(pred_probs, labels)})


def fit_calibrator(
    pred_probs: np.ndarray, labels: np.ndarray, kind: str = "temperature", classes: tuple[str, ...] = ()
) -> Calibrator:
    """Fit a calibration by its name in CALIBRATORS on probabilities (N, K) and labels (N,)."""
    if kind not in CALIBRATORS:
        raise SettingsError(f"there is no calibration {kind!r}", suggest(kind, list(CALIBRATORS)))
    fitted = CALIBRATORS[kind](pred_probs, labels)
    return Calibrator(fitted.kind, fitted.params, tuple(classes))


def cross_calibrate(pred_probs: np.ndarray, labels: np.ndarray, folds: np.ndarray, kind: str) -> np.ndarray:
    """Calibrated probabilities (N, K), each row by a calibration fitted on the other folds; folds int
    (N,).
    """
    out = np.empty(np.shape(pred_probs), dtype=np.float64)
    labels = np.asarray(labels)
    for fold in np.unique(folds):
        away = folds == fold
        out[away] = fit_calibrator(pred_probs[~away], labels[~away], kind)(pred_probs[away])
    return out


def draw_reliability(labels: np.ndarray, curves: dict[str, np.ndarray], path: Path) -> None:
    """Write a reliability diagram (PNG), a line an entry of `curves`: name -> probabilities (N, K)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from manihot.trust.diagram import reliability_figure

    named = {f"{name} (ECE {ece(labels, probs):.3f})": reliability(labels, probs) for name, probs in curves.items()}
    with warnings.catch_warnings(), atomic_path(path) as temporary:
        warnings.simplefilter("ignore")  # a class name's letters that the font lacks
        FigureCanvasAgg(reliability_figure(named)).figure.savefig(temporary, dpi=120, format="png")


CALIBRATORS: dict[str, Callable[[np.ndarray, np.ndarray], Calibrator]] = {
    "none": make_none,
    "temperature": make_temperature,
    "vector": make_vector,
    "isotonic": make_isotonic,
    "confidence": make_confidence,
}
