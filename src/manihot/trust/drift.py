"""Have new photographs drifted from the training data? The numbers behind `manihot watch MODEL NEW_PHOTOS`.

Four questions to two sets of predictions, each answered by an effect (how far) and a p-value (how surely):

- input: can a classifier separate old embeddings from new ones (AUC held out; Lopez-Paz and Oquab 2017, arXiv
  1610.06545; Rabanser et al. 2019, arXiv 1810.11953);
- prediction mix: are the answered classes in other shares (chi-squared test, total variation);
- confidence: are top probabilities distributed otherwise (Kolmogorov and Smirnov), and what accuracy do they
  promise (Guillory et al. 2021, arXiv 2107.03315, difference of confidences);
- unknown: are more photographs stranger than the threshold of a detector allows.

Something has moved where the effect is large enough to matter and no accident at a family-wise 1 %: on
thousands of photographs the smallest change is significant, on twenty the largest is chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from manihot.errors import DataError
from manihot.records.predictions import Predictions
from manihot.trust.priors import estimate_prior
from manihot.trust.unknown import UnknownDetector, auroc

EXIT_SAME, EXIT_MOVED, EXIT_TOO_FEW = 0, 10, 11
FAMILY_ERROR = 0.01
FEWEST = 30  # new photographs below which nothing is said
MOST = 2000  # photographs of each side that the classifier sees
COMPONENTS = 32
# effect from which a movement matters: AUC, total variation, KS distance, extra share of unknown photographs
MATTERS = {"input": 0.65, "prediction mix": 0.10, "confidence": 0.10, "unknown": 0.05}


@dataclass(frozen=True)
class DriftReport:
    """table: one row a question. shares: class shares then and now. verdict: 'same', 'moved' or 'too few'."""

    table: pd.DataFrame
    shares: pd.DataFrame
    verdict: str
    photographs: int
    expected_accuracy: float
    known_accuracy: float

    @property
    def exit_code(self) -> int:
        """0 nothing moved, 10 something moved, 11 too few photographs to tell."""
        return {"same": EXIT_SAME, "moved": EXIT_MOVED, "too few": EXIT_TOO_FEW}[self.verdict]

    def sentence(self) -> str:
        """The verdict in words."""
        if self.verdict == "too few":
            return f"{self.photographs} new photographs are too few to detect drift; {FEWEST} are needed."
        moved = self.table.loc[self.table["moved"], "what"].tolist()
        if not moved:
            return f"No drift detected in {self.photographs} new photographs."
        return f"Drift from the training data: {', '.join(moved)}."

    def to_json(self) -> dict[str, Any]:
        """Plain values for a report or a page; NaN becomes None."""
        return {
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "sentence": self.sentence(),
            "photographs": self.photographs,
            "expected_accuracy": _plain(self.expected_accuracy),
            "known_accuracy": _plain(self.known_accuracy),
            "table": [{key: _plain(v) for key, v in row.items()} for row in self.table.to_dict("records")],
            "shares": [{key: _plain(v) for key, v in row.items()} for row in self.shares.to_dict("records")],
        }


def watch_predictions(
    reference: Predictions, new: Predictions, detector: UnknownDetector | None = None, seed: int = 0
) -> DriftReport:
    """Compare new predictions with the out-of-fold ones a model was fitted on.

    reference: out-of-fold, with labels where known. new: of photographs from the field, by the same model;
    embeddings on both sides, of the same length, make the question about the input possible. Raises DataError
    where the two don't fit together.
    """
    if reference.classes != new.classes:
        raise DataError(
            f"classes {', '.join(new.classes)} are not the model's {', '.join(reference.classes)}",
            "predict with the model whose out-of-fold predictions these are",
        )
    if len(reference) < FEWEST:
        raise DataError(
            f"this model was fitted on {len(reference)} photographs; watch needs at least {FEWEST}",
            "train on more photographs; or, of saved predictions, give all out-of-fold ones",
        )
    if len(new) == 0:
        raise DataError("there are no new photographs", "give a folder or predictions with at least one photograph")
    old_probs, new_probs = reference.pred_probs, new.pred_probs
    rows = []
    if reference.embeddings is not None and new.embeddings is not None:
        rows.append(_watch_input(reference.embeddings, new.embeddings, seed))
    rows.append(_watch_mix(old_probs, new_probs))
    rows.append(_watch_confidence(old_probs, new_probs))
    if detector is not None:
        rows.append(_watch_unknown(reference, new, detector))
    table = pd.DataFrame(rows)
    table["matters_from"] = table["what"].map(MATTERS)
    surely = table["p_value"] < FAMILY_ERROR / len(table)
    enough = len(new) >= FEWEST
    table["moved"] = surely & (table["effect"] >= table["matters_from"]) & enough
    known = reference.labels >= 0
    right = old_probs[known].argmax(axis=1) == reference.labels[known]
    accuracy = float(right.mean()) if known.any() else float("nan")
    shift = float(new_probs.max(axis=1).mean() - old_probs.max(axis=1).mean())
    verdict = "too few" if not enough else "moved" if table["moved"].any() else "same"
    shares = _class_shares(reference, old_probs, new_probs)
    return DriftReport(table, shares, verdict, len(new), float(np.clip(accuracy + shift, 0, 1)), accuracy)


def _watch_input(old: np.ndarray, new: np.ndarray, seed: int) -> dict[str, Any]:
    if old.shape[1] != new.shape[1]:
        raise DataError(
            f"embeddings of length {old.shape[1]} and {new.shape[1]} are of different models",
            "predict with the same model",
        )
    value, p = compare_embeddings(old, new, seed)
    return {"what": "input", "measure": "AUC of old against new", "effect": value, "p_value": p}


def compare_embeddings(old: np.ndarray, new: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Held-out AUC of a logistic regression that separates old (N, D) from new (N', D) embeddings, and its
    p-value.

    .5 means no difference is found. The p-value is one-sided, of the Mann-Whitney statistic, averaged over two
    halves that judge each other.
    """
    rng = np.random.default_rng(seed)
    old, new = (e[rng.permutation(len(e))[:MOST]].astype(np.float64) for e in (old, new))
    both = StandardScaler().fit_transform(np.vstack([old, new]))
    if both.shape[1] > COMPONENTS:
        _, _, axes = np.linalg.svd(both - both.mean(axis=0), full_matrices=False)
        both = both @ axes[:COMPONENTS].T
    is_new = np.r_[np.zeros(len(old), dtype=int), np.ones(len(new), dtype=int)]
    half = np.empty(len(both), dtype=int)
    for side in (0, 1):
        members = np.flatnonzero(is_new == side)
        half[members[rng.permutation(len(members))]] = np.arange(len(members)) % 2
    areas, scores = [], []
    for part in (0, 1):
        if min(np.bincount(is_new[half == part], minlength=2)) < 2:
            return 0.5, 1.0
        fit = LogisticRegression(C=0.05, class_weight="balanced", max_iter=300).fit(
            both[half != part], is_new[half != part]
        )
        told = fit.decision_function(both[half == part])
        truth = is_new[half == part]
        areas.append(auroc(told[truth == 0], told[truth == 1]))
        n, m = int((truth == 0).sum()), int((truth == 1).sum())
        scores.append((areas[-1] - 0.5) / np.sqrt((n + m + 1) / (12 * n * m)))
    return float(np.mean(areas)), float(stats.norm.sf(np.sum(scores) / np.sqrt(2)))


def _watch_mix(old: np.ndarray, new: np.ndarray) -> dict[str, Any]:
    k = old.shape[1]
    counts = np.stack([np.bincount(p.argmax(axis=1), minlength=k) for p in (old, new)])
    counts = counts[:, counts.sum(axis=0) > 0]
    shares = counts / counts.sum(axis=1, keepdims=True)
    p = stats.chi2_contingency(counts).pvalue if counts.shape[1] > 1 else 1.0
    distance = float(np.abs(shares[0] - shares[1]).sum() / 2)
    return {
        "what": "prediction mix",
        "measure": "total variation of the answers",
        "effect": distance,
        "p_value": float(p),
    }


def _watch_confidence(old: np.ndarray, new: np.ndarray) -> dict[str, Any]:
    found = stats.ks_2samp(old.max(axis=1), new.max(axis=1), method="asymp")
    return {
        "what": "confidence",
        "measure": "Kolmogorov-Smirnov distance of top probabilities",
        "effect": float(found.statistic),
        "p_value": float(found.pvalue),
    }


def _watch_unknown(reference: Predictions, new: Predictions, detector: UnknownDetector) -> dict[str, Any]:
    strange = int(detector.is_unknown(new).sum())
    allowed = max(float(detector.is_unknown(reference).mean()), detector.false_rejection)
    p = stats.binomtest(strange, len(new), min(allowed, 1.0), alternative="greater").pvalue
    return {
        "what": "unknown",
        "measure": f"share of unknown photographs above the {allowed:.0%} allowed",
        "effect": max(0.0, strange / len(new) - allowed),
        "p_value": float(p),
    }


def _class_shares(reference: Predictions, old_probs: np.ndarray, new_probs: np.ndarray) -> pd.DataFrame:
    k = len(reference.classes)
    labelled = np.bincount(reference.labels[reference.labels >= 0], minlength=k)
    estimate = np.full(k, np.nan)
    if (labelled > 0).all():
        estimate = estimate_prior(old_probs, reference.labels, new_probs, "bbse").prior
    return pd.DataFrame(
        {
            "class": reference.classes,
            "labelled": labelled / max(1, labelled.sum()),
            "answered_then": np.bincount(old_probs.argmax(axis=1), minlength=k) / len(old_probs),
            "answered_now": np.bincount(new_probs.argmax(axis=1), minlength=k) / len(new_probs),
            "estimated_now": estimate,
        }
    )


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
