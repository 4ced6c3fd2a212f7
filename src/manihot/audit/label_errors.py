"""Wrong labels: every photograph's given label judged by several pieces of evidence, and by all of them together.

Predictions must be out of fold: a model that learned a wrong label defends it. cleanlab's names where it has them.
The combination (`combine_evidence`) knows no truth: its opinions are weighed by the given labels (`label_posterior`).
What it takes in was settled once by planting wrong labels, and benchmarks/label_errors.py says on which photographs.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from manihot.audit import label_scores
from manihot.audit.label_neighbours import find_neighbours, label_agreement, reduce_embeddings, typicality
from manihot.audit.label_posterior import count_errors, pool_predictions, pool_with_features
from manihot.audit.label_scores import best_other, noise_channel, normalise, self_confidence
from manihot.audit.one_class import one_class_scores
from manihot.errors import DataError
from manihot.progress import warn
from manihot.records.groups import group_numbers, join_labels, same_group
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.probabilities import check_labels, check_probs

NEIGHBOURS = 20  # photographs that vote; 10 and 40 gave the same within a hundredth
MARGINS_COUNT = 0.5  # of training margins against all other evidence
SHOWN = 5  # neighbours named in the table
SCORES = (
    "self_confidence",
    "normalized_margin",
    "confident_learning",
    "knn_score",
    "anomaly_score",
    "trajectory_score",
)
COMBINATIONS = ("auto", "probabilities")
OUT_OF_FOLD = "every photograph must be predicted by a model that never saw it"


@dataclass(frozen=True)
class Evidence:
    """What is known of N photographs with given labels: the input of the combination.

    pooled: P(class | photograph) from all opinions, given label unseen, (N, K). posterior: P(true class | photograph,
    given label), (N, K). probs: plain predictions (N, K) where they are all there is, or None. margins: area under the
    margin (N,), NaN where unknown, or None.
    """

    labels: np.ndarray
    pooled: np.ndarray
    posterior: np.ndarray
    probs: np.ndarray | None
    margins: np.ndarray | None


def find_label_errors(
    labels: np.ndarray,
    pred_probs: np.ndarray,
    *,
    embeddings: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    copies: np.ndarray | None = None,
    history: np.ndarray | None = None,
    image_id: np.ndarray | None = None,
    combine: str = "auto",
    k: int = NEIGHBOURS,
) -> pd.DataFrame:
    """One row a labelled photograph, worst first: given and suggested label, scores (low = bad), neighbours.

    labels: int (N,), -1 unlabelled (not judged, not in the table). pred_probs: (N, K), rows sum to 1, out of fold.
    embeddings: (N, D) of a network that never learned these labels. groups: (N,), '' or negative = alone;
    photographs of one group never vote for each other. copies: (N,), groups that show the same picture (`groups`
    when left out): a copy with another label is evidence. history: logits (E, N, K) or margins (E, N) of E training
    epochs, NaN where an epoch left a photograph out. combine: 'auto' pools all there is, 'probabilities' the
    predictions alone.

    Columns: image_id, given_label, suggested_label, label_score in [0, 1], is_label_issue, predicted_label and
    predicted_probability; the single scores self_confidence, normalized_margin, confident_learning, knn_score (share
    of near neighbours with the same label), anomaly_score (nearness within the given class), trajectory_score
    (area under the margin, from `history` or a linear head on the embeddings, squashed to (0, 1)), absent or NaN
    where their input is; no part of the label score: cleanlab_issue, one_class_score (`one_class`); neighbours (ids).

    is_label_issue: another class is likelier by all opinions of the photograph (where copies were given different
    labels, by these opinions and all their labels), and it is among the n worst, n being the number of wrong labels
    that the posterior allows (`label_posterior.count_errors`, attrs['estimated_errors']). Raises DataError for arrays
    that don't fit each other.
    """
    labels, pred_probs = _check(labels, pred_probs, combine)
    n_all = len(labels)
    ids = np.arange(n_all) if image_id is None else np.asarray(image_id, dtype=object)
    known = np.flatnonzero(labels >= 0)
    together = _numbers(groups, n_all)
    same_picture = together if copies is None else _numbers(copies, n_all)
    together = together if copies is None else join_labels(together, *same_group(same_picture))
    history = _check_history(history, n_all, pred_probs.shape[1])
    if embeddings is not None:
        embeddings = _check_embeddings(embeddings, n_all)[known]
    labels, pred_probs, ids = labels[known], pred_probs[known], ids[known]
    history = None if history is None else history[:, known]
    table = _judge(labels, pred_probs, ids, embeddings, together[known], same_picture[known], history, combine, k)
    table.attrs["unlabelled"] = int(n_all - len(known))
    return table


def _judge(
    labels: np.ndarray,
    pred_probs: np.ndarray,
    ids: np.ndarray,
    embeddings: np.ndarray | None,
    groups: np.ndarray,
    copies: np.ndarray,
    history: np.ndarray | None,
    combine: str,
    k: int,
) -> pd.DataFrame:
    classes = pred_probs.shape[1]
    predicted = pred_probs.argmax(axis=1)
    columns: dict[str, Any] = {
        "predicted_label": predicted,
        "predicted_probability": pred_probs.max(axis=1),
        "self_confidence": self_confidence(labels, pred_probs),
        "normalized_margin": label_scores.normalized_margin(labels, pred_probs),
        "confident_learning": label_scores.confident_learning(labels, pred_probs),
    }
    say_so = _copies_say(labels, copies, noise_channel(labels, pred_probs))
    alone, margins = embeddings is None or combine == "probabilities", None
    if embeddings is not None:
        features = reduce_embeddings(embeddings)
        index, _ = find_neighbours(features, groups, k)
        columns["knn_score"] = label_agreement(index, labels)
        columns["anomaly_score"] = typicality(features, labels, groups, min(k, 10))
        columns["neighbours"] = [[ids[j] for j in row[:SHOWN] if j >= 0] for row in index]
        if history is None:
            margins = label_scores.train_margins(labels, features, classes)
        columns["one_class_score"] = one_class_scores(features, labels)
    if history is not None:
        margins = label_scores.area_under_margin(labels, history)
    if margins is not None:
        columns["trajectory_score"] = expit(margins)
    if alone:
        pool = pool_predictions(labels, pred_probs)
    else:
        pool = pool_with_features(labels, pred_probs, features, index, groups, say_so)
    evidence = Evidence(
        labels,
        normalise(pool.probs * say_so),
        normalise(pool.posterior(labels) * say_so),
        normalise(pred_probs * say_so) if alone else None,
        None if combine == "probabilities" else margins,
    )
    score = combine_evidence(evidence)
    errors = count_errors(labels, evidence.posterior)
    issue = _flag(evidence, score, errors, np.ptp(say_so, axis=1) > 0)
    table = pd.DataFrame(
        {
            "image_id": ids,
            "given_label": labels,
            "suggested_label": _suggest(evidence, issue),
            "label_score": score,
            "is_label_issue": issue,
            **columns,
            "cleanlab_issue": cleanlab_filter(labels, pred_probs),
        }
    )
    for name in ("one_class_score", "neighbours"):  # beside the evidence
        if name in table:
            table[name] = table.pop(name)
    table = table.sort_values("label_score", kind="stable", ignore_index=True)
    table.attrs.update(estimated_errors=errors, evidence=[s for s in SCORES if s in table], combine=combine)
    return table


def combine_evidence(evidence: Evidence) -> np.ndarray:
    """How right the given labels look, (N,) in [0, 1], from all evidence; low = bad.

    With features: log-odds of the given label's posterior. Predictions alone: the mean of these (twice) and of the
    normalised margin's, which finds more where annotators err, and fails where the classes look alike.
    Training margins count half as much as the rest and are first stretched to the same spread, as logits of different
    networks have different scales.
    """
    labels = evidence.labels
    odds = _log_odds(self_confidence(labels, evidence.posterior))
    if evidence.probs is not None:
        odds = (2 * odds + _log_odds(label_scores.normalized_margin(labels, evidence.probs))) / 3
    if evidence.margins is None:
        found: np.ndarray = expit(odds)
        return found
    seen = np.isfinite(evidence.margins)
    spread = float(evidence.margins[seen].std()) if seen.any() else 0.0
    if spread == 0:
        found = expit(odds)
        return found
    stretched = evidence.margins * float(odds[seen].std()) / spread
    found = expit(np.where(seen, (odds + MARGINS_COUNT * stretched) / (1 + MARGINS_COUNT), odds))
    return found


def _flag(evidence: Evidence, score: np.ndarray, errors: int, torn: np.ndarray) -> np.ndarray:
    """Which labels are called wrong, bool (N,): see `find_label_errors`. torn: copies of the photograph disagree.

    Two copies with two labels would each be called wrong by the other's label; with its own counted too, one is.
    """
    labels, probs = evidence.labels, evidence.pooled if evidence.probs is None else evidence.probs
    issue = np.zeros(len(labels), dtype=bool)
    issue[np.argsort(score, kind="stable")[:errors]] = True
    probs = np.where(torn[:, None], evidence.posterior, probs)
    return issue & (best_other(labels, probs) > self_confidence(labels, probs) + 1e-6)


def _log_odds(score: np.ndarray) -> np.ndarray:
    found: np.ndarray = logit(np.clip(score, 1e-6, 1 - 1e-6))
    return found


def _copies_say(labels: np.ndarray, copies: np.ndarray, channel: np.ndarray) -> np.ndarray:
    """Likelihood (N, K), up to a factor, of the labels that a photograph's copies were given.

    Only groups whose labels differ speak: copies that agree were mostly labelled once and copied with the picture.
    """
    said = np.zeros((len(labels), len(channel)))
    frame = pd.DataFrame({"group": copies, "label": labels})
    torn = frame.groupby("group")["label"].transform("nunique").to_numpy() > 1
    spoken = np.log(np.maximum(channel, 1e-12))[labels]
    for _, rows in frame[torn].groupby("group").indices.items():
        members = np.flatnonzero(torn)[rows]
        said[members] = spoken[members].sum(axis=0) - spoken[members]
    return np.exp(said - said.max(axis=1, keepdims=True)) if len(said) else said


def _suggest(evidence: Evidence, issue: np.ndarray) -> np.ndarray:
    """The most probable true class; for a label issue, the most probable one apart from the given."""
    probs = evidence.posterior.copy()
    probs[np.flatnonzero(issue), evidence.labels[issue]] = -1
    found: np.ndarray = probs.argmax(axis=1)
    return found


def cleanlab_filter(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """cleanlab's find_label_issues with its defaults (prune_by_noise_rate), bool (N,)."""
    if len(np.unique(labels)) < 2:
        return np.zeros(len(labels), dtype=bool)
    from cleanlab.filter import find_label_issues

    with warnings.catch_warnings():  # of classes with few photographs; the table holds better than this filter
        warnings.filterwarnings("ignore", message="May not flag all label issues")
        found: np.ndarray = find_label_issues(labels, pred_probs, n_jobs=1)
        return found


# ------------------------------------------------------------------------------------------------- records


def label_issues(
    predictions: Predictions,
    manifest: Manifest | None = None,
    history: pd.DataFrame | None = None,
    *,
    duplicates: pd.DataFrame | None = None,
    embeddings: np.ndarray | None = None,
    out_of_fold: bool = False,
    combine: str = "auto",
    k: int = NEIGHBOURS,
) -> pd.DataFrame:
    """`find_label_errors` on records: labels by name, groups from the manifest and from the table of duplicates.

    manifest: gives the labels and groups of the predicted photographs (otherwise the predictions' labels).
    history: columns image_id, epoch, margin (own logit - highest other). duplicates: columns image_id, group.
    embeddings: (N, D) in the order of the predictions; the predictions' own when left out. out_of_fold: the caller
    vouches that every photograph was predicted by models that never saw it, as for a CSV, which has no folds.
    Raises DataError for predictions that don't say by which fold's model they were made, and says where photographs of
    one group were predicted by models of different folds.
    """
    twice = pd.Series(predictions.image_id).duplicated()
    if twice.any():
        raise DataError(
            f"{int(twice.sum())} photographs are predicted more than once, first {predictions.image_id[twice][0]!r}",
            "leave one row per photograph, by a model that never saw it",
        )
    if manifest is not None:
        if manifest.classes != predictions.classes:
            raise DataError(
                f"the predictions' classes ({', '.join(predictions.classes)}) are not the manifest's "
                f"({', '.join(manifest.classes)})",
                "give the predictions of this manifest; a CSV's columns c0, c1, ... take the manifest's class order",
            )
        at = pd.Index(manifest.image_id).get_indexer(pd.Index(predictions.image_id))
        if (at < 0).any():
            raise DataError(
                f"{int((at < 0).sum())} predicted photographs are not in the manifest, first "
                f"{predictions.image_id[at < 0][0]!r}",
                "give the manifest that the predictions were made for",
            )
        labels, groups = manifest.labels[at], manifest.table["group"].to_numpy()[at]
    else:
        labels, groups = predictions.labels, np.full(len(predictions), "", dtype=object)
    _check_folds(predictions.fold[labels >= 0], out_of_fold)
    copies = np.full(len(predictions), "", dtype=object)
    if duplicates is not None and len(duplicates):
        named = duplicates.drop_duplicates("image_id").set_index("image_id")["group"]
        copies = named.reindex(predictions.image_id).map(lambda g: "" if pd.isna(g) else str(g)).to_numpy(dtype=object)
    together = join_labels(_numbers(groups, len(groups)), *same_group(_numbers(copies, len(copies))))
    _warn_torn(predictions.fold, together)
    table = find_label_errors(
        labels,
        predictions.pred_probs,
        embeddings=predictions.embeddings if embeddings is None else embeddings,
        groups=groups,
        copies=copies,
        history=None if history is None else _margins(history, predictions.image_id),
        image_id=predictions.image_id,
        combine=combine,
        k=k,
    )
    names = np.array([*predictions.classes], dtype=object)
    for column in ("given_label", "suggested_label", "predicted_label"):
        table[column] = names[table[column].to_numpy(dtype=np.int64)]
    return table


def _check_folds(fold: np.ndarray, out_of_fold: bool) -> None:
    averaged = int((fold < 0).sum())
    if averaged and not out_of_fold:
        raise DataError(
            f"{averaged} of {len(fold)} labelled photographs have predictions without a fold: averaged over models "
            "that may have learned their labels, which hides wrong ones",
            f"give out-of-fold predictions (predictions/NAME.oof.parquet of a run); if {OUT_OF_FOLD}, as a CSV can't "
            "say, vouch for it with out_of_fold=True",
        )


def _warn_torn(fold: np.ndarray, group: np.ndarray) -> None:
    held = fold >= 0
    folds = pd.Series(fold[held]).groupby(group[held]).nunique()
    torn = int((folds > 1).sum())
    if torn:
        warn(
            f"{torn} groups of photographs were predicted by models of different folds: each was judged by "
            "a model that had learned a copy's label; make the folds with these groups and train again"
        )


def _margins(history: pd.DataFrame, image_id: np.ndarray) -> np.ndarray:
    """Margins (E, N) of the photographs, from rows of image_id, epoch, margin."""
    missing = {"image_id", "epoch", "margin"} - set(history.columns)
    if missing:
        raise DataError(
            f"the training history lacks the columns {', '.join(sorted(missing))}", "columns image_id, epoch, margin"
        )
    wide = history.pivot_table(index="epoch", columns="image_id", values="margin", aggfunc="mean")
    found: np.ndarray = wide.reindex(columns=image_id).to_numpy(dtype=np.float64)
    return found


# ------------------------------------------------------------------------------------------------- checks


def _check(labels: np.ndarray, pred_probs: np.ndarray, combine: str) -> tuple[np.ndarray, np.ndarray]:
    if combine not in COMBINATIONS:
        raise DataError(f"combine={combine!r} is unknown", f"one of {', '.join(COMBINATIONS)}")
    probs = check_probs(pred_probs)
    return check_labels(labels, *probs.shape), normalise(probs)


def _check_embeddings(embeddings: np.ndarray, n: int) -> np.ndarray:
    values = np.asarray(embeddings)
    if values.ndim != 2 or len(values) != n:
        raise DataError(f"embeddings of shape {values.shape} don't fit {n} photographs", "one row (D,) per photograph")
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values).all(axis=1)).sum())
        raise DataError(f"{bad} photographs have embeddings that are not finite", "compute the embeddings again")
    return values


def _check_history(history: np.ndarray | None, n: int, classes: int) -> np.ndarray | None:
    if history is None:
        return None
    values = np.asarray(history, dtype=np.float64)
    if values.ndim not in (2, 3) or values.shape[1:] not in ((n,), (n, classes)):
        raise DataError(
            f"a training history of shape {values.shape} doesn't fit {n} photographs and {classes} classes",
            "margins (epochs, N) or logits (epochs, N, K)",
        )
    return values


def _numbers(groups: np.ndarray | None, n: int) -> np.ndarray:
    """Group numbers (N,); '' and negative numbers are photographs that stand alone."""
    if groups is None:
        return np.arange(n)
    values = np.asarray(groups)
    if values.shape != (n,):
        raise DataError(f"groups of shape {values.shape} don't fit {n} photographs", "one group per photograph")
    number = np.issubdtype(values.dtype, np.number)
    alone = values < 0 if number else pd.isna(values) | (values == "")
    return group_numbers(np.where(alone, "", values.astype(str)), n)
