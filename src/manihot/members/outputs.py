"""What a fold leaves beside its network: the model card and predictions."""

from __future__ import annotations

from typing import Any

import numpy as np

from manihot.infer.forward import UnknownOutput, forward_views, merge_views
from manihot.members.member import Member
from manihot.networks.card import ModelCard
from manihot.networks.runner import Runner
from manihot.records.predictions import Predictions
from manihot.records.run_parts import FoldFolder
from manihot.settings import Recipe, View


def make_card(
    member: Member,
    fold: int,
    classes: tuple[str, ...] | None = None,
    views: tuple[View, ...] | None = None,
    **about: Any,
) -> ModelCard:
    """The card of a fold's network as it learns.

    classes, views: of the network, where they are not the manifest's (clusters) and the recipe's.
    """
    recipe, manifest, numbers = member.recipe, member.manifest, None
    about = {"recipe": recipe.name, "member": member.name, "fold": fold, "precision": "fp32", **about}
    if classes is None or classes == manifest.classes:
        labelled = manifest.take((manifest.labels >= 0) & (manifest.table["split"].to_numpy() != "test"))
        about["class_counts"] = labelled.class_counts().tolist()
        numbers = manifest.numbers
    return ModelCard(classes or manifest.classes, member.preprocess, views or recipe.tta, recipe.model, about, numbers)


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


def predict_fold(member: Member, fold: int, held: np.ndarray, runner: Runner, views_alone: bool = False) -> None:
    """Predict the photographs that the fold held out, and the test photographs, in the member's views.

    views_alone: write the predictions of each view, and not their mean, which is there.
    """
    views = member.recipe.tta
    for rows, name in ((held, "oof"), (member.test_rows, "test")):
        if not len(rows):
            continue
        what, told = f"{member.what(fold)}: {name}", UnknownOutput(len(rows), views)
        seen = forward_views([runner], member.photos, rows, member.answering, views, what=what, also=told)
        if not views_alone:
            made = as_predictions(member, rows, _beside(merge_views(seen, views), told.probability), fold)
            made.save(member.folder(fold) / f"{name}.parquet")
        save_views(member, rows, seen, fold, name, told.probability)


def _beside(logits: np.ndarray, unknown: np.ndarray | None) -> np.ndarray:
    return logits if unknown is None else np.column_stack([logits, unknown])


def save_views(
    member: Member, rows: np.ndarray, seen: np.ndarray, fold: int, kind: str, unknown: np.ndarray | None = None
) -> None:
    """Logits (n, V, K) of each view, a file each, where the recipe keeps them; unknown (n,): of all views together."""
    for number in range(seen.shape[1]) if keeps_views(member.recipe) else ():
        logits = _beside(seen[:, number], unknown)
        as_predictions(member, rows, logits, fold).save(FoldFolder(member.folder(fold)).view(kind, number))


def keeps_views(recipe: Recipe) -> bool:
    """Whether predictions of each view are kept."""
    return recipe.save_views or recipe.blend.views
