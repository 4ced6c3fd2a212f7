"""A fold of the method `features`: a linear head on what the member's frozen backbone gives.

The backbone sees every photograph once for all folds; it is written once, and a fold keeps its head alone.
"""

from __future__ import annotations

import numpy as np

from manihot.infer.forward import merge_views
from manihot.members.member import Member
from manihot.members.outputs import as_predictions, make_card, save_views
from manihot.members.sampling import expected_repeats, with_class_numbers
from manihot.members.toolbox import Method
from manihot.members.training_labels import LabelRequest, make_training_labels
from manihot.networks.runner import LinearHead, Outputs, Runner
from manihot.progress import say
from manihot.quick.choose import Chosen, Examples, blocks_of
from manihot.quick.heads import fit_head, make_features
from manihot.records.files import digest_value
from manihot.records.run_folder import HEAD


def fit_fold(member: Member, fold: int, train: np.ndarray, held: np.ndarray) -> None:
    """Fit a linear head on features that the frozen backbone computed once for all folds."""
    recipe = member.recipe
    digest, computed = features_of(member)
    head, chosen = learn_head(member, fold, train, computed)
    if not member.backbone.is_file():  # removed since its features were computed
        member.open_backbone()
    views = tuple(recipe.tta[k] for k in chosen.views)
    card = make_card(member, fold, views=views, features=digest, choice=chosen.evidence)
    head.save(member.folder(fold) / HEAD, card.to_text())
    # the audit's limits were set on the first network's features, which others would only make larger
    audited = max(b.columns.stop for b in blocks_of(recipe.model, computed.shape[2]) if b.network == 0)
    for rows, name in ((held, "oof"), (member.test_rows, "test")):
        if len(rows):
            seen = head.logits(computed[rows])
            logits = merge_views(seen[:, chosen.views], views)
            made = as_predictions(member, rows, logits, fold, computed[rows].mean(1)[:, :audited])
            made.save(member.folder(fold) / f"{name}.parquet")
            save_views(member, rows, seen, fold, name)


def learn_head(member: Member, fold: int, train: np.ndarray, computed: np.ndarray) -> tuple[LinearHead, Chosen]:
    """A fold's head, and what it uses, from features (N, V, D) of all photographs."""
    recipe, manifest = member.recipe, member.manifest
    learned = make_training_labels(LabelRequest(member, fold, train, features=lambda rows: computed[rows].mean(1)))
    group = manifest.table["group"].to_numpy()
    alone = np.where(group == "", [f"\0{i}" for i in range(len(group))], group).astype(str)
    groups = np.unique(alone[learned.rows], return_inverse=True)[1]
    sampling = with_class_numbers(recipe.sampling, manifest.classes)
    weights = learned.weights * expected_repeats(sampling, learned.labels, member.seed(fold))
    say(f"{member.what(fold)}: fitting the head on {len(learned.rows)} photographs")
    examples = Examples(computed[learned.rows], learned.labels, weights, groups)
    head, chosen = fit_head(
        examples, len(manifest.classes), recipe.features, recipe.model, recipe.tta, member.seed(fold)
    )
    for what, option in ((row["what"], row["option"]) for row in chosen.evidence if row["chosen"]):
        say(f"  {what}: {option}")
    return head, chosen


def features_of(member: Member) -> tuple[str, np.ndarray]:
    """Name in RUN/features, and features (N, V, D) of all photographs, computed once."""
    recipe = member.recipe
    backbone = recipe.model.model_dump(mode="json", include={"backbone", "pretrained", "pooling", "taps", "power"})
    views = [view.model_dump(mode="json", exclude={"weight"}) for view in recipe.tta]
    drawn = None if recipe.model.pretrained else member.seed(0)
    photographs = digest_value(member.manifest.table[["image_id", "sha256"]].to_numpy().tolist())
    name = digest_value([backbone, drawn, views, member.preprocess.to_json(), photographs])[:16]
    folder = member.run.features(name)
    runner = OpenedLater(member)
    return name, make_features(folder, runner, member.photos, member.preprocess, recipe.tta, recipe.features.batch)


class OpenedLater:
    """A member's backbone, opened when it is first used: not at all where every feature is already there."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.runner: Runner | None = None

    def __call__(self, photos: np.ndarray) -> Outputs:
        """uint8 (N, H, W, 3) to embeddings (N, D)."""
        self.runner = self.runner or self.member.open_backbone()
        return self.runner(photos)


FEATURES = Method(fit_fold)
