"""What a fold leaves beside its network: the model card and predictions."""

from __future__ import annotations

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


def predict_fold(member: Member, fold: int, held: np.ndarray, runner: Runner) -> None:
    """Predict the photographs that the fold held out, and the test photographs, in the member's views."""
    views = member.recipe.tta
    for rows, name in ((held, "oof"), (member.test_rows, "test")):
        if not len(rows):
            continue
        what, told = f"{member.what(fold)}: {name}", UnknownOutput(len(rows), views)
        seen = forward_views([runner], member.photos, rows, member.answering, views, what=what, also=told)
        logits = merge_views(seen, views)
        if told.probability is not None:
            logits = np.column_stack([logits, told.probability])
        as_predictions(member, rows, logits, fold).save(member.folder(fold) / f"{name}.parquet")
