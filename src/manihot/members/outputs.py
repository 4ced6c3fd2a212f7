"""What a fold leaves beside its network: the model card and predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from manihot.infer.forward import UnknownOutput, forward_views, merge_views
from manihot.members.member import Member
from manihot.networks.card import ModelCard
from manihot.networks.runner import Runner
from manihot.records.predictions import Predictions


def make_card(member: Member, fold: int, classes: tuple[str, ...] | None = None, **about: Any) -> ModelCard:
    """The card of a fold's network as it learns. classes: of the network, where not the manifest's (clusters)."""
    recipe, manifest, numbers = member.recipe, member.manifest, None
    about = {"recipe": recipe.name, "member": member.name, "fold": fold, "precision": "fp32", **about}
    if classes is None or classes == manifest.classes:
        labelled = manifest.take((manifest.labels >= 0) & (manifest.table["split"].to_numpy() != "test"))
        about["class_counts"] = labelled.class_counts().tolist()
        numbers = manifest.numbers
    return ModelCard(classes or manifest.classes, member.preprocess, recipe.tta, recipe.model, about, numbers)


def as_predictions(
    member: Member, rows: np.ndarray, logits: np.ndarray, fold: int, embeddings: np.ndarray | None = None
) -> Predictions:
    """Logits (n, K) of rows of the manifest as a record; a column more is the probability of something else."""
    manifest = member.manifest
    logits, unknown = logits[:, : len(manifest.classes)], logits[:, len(manifest.classes) :]
    return Predictions(
        manifest.image_id[rows],
        logits.astype(np.float32),
        manifest.classes,
        manifest.labels[rows],
        np.full(len(rows), fold),
        embeddings,
        np.clip(unknown[:, 0], 0, 1).astype(np.float32) if unknown.size else None,
        manifest.numbers,
    )


def predict_fold(
    member: Member,
    fold: int,
    held: np.ndarray,
    runner: Runner,
    by_parts: Callable[[np.ndarray, Callable[[np.ndarray], np.ndarray]], np.ndarray] | None = None,
) -> None:
    """Predict the photographs that the fold held out, and the test photographs, in the member's views.

    by_parts: shares rows out among several processes.
    """
    views = member.recipe.tta
    for rows, name in ((held, "oof"), (member.test_rows, "test")):
        if not len(rows):
            continue
        what = f"{member.what(fold)}: {name}"

        def predict(rows: np.ndarray, what: str = what) -> np.ndarray:
            told = UnknownOutput(len(rows), views)
            seen = forward_views([runner], member.photos, rows, member.answering, views, what=what, also=told)
            logits = merge_views(seen, views)
            return logits if told.probability is None else np.column_stack([logits, told.probability])

        logits = predict(rows) if by_parts is None else by_parts(rows, predict)
        if member.tools.is_first():
            as_predictions(member, rows, logits, fold).save(member.folder(fold) / f"{name}.parquet")
