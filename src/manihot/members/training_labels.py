"""Where a training stage takes its labels from: `TrainingLabels` are rows of the manifest with soft labels.

`given`: the manifest's. `pseudo`: also what a model of the same fold says of photographs without a label (Plant
Pathology's 2nd place: at .95 and more). `oof`: other members' out-of-fold answers change or drop doubtful labels
(7th and 77th place, the lecture's relabelling). `teacher`: a member's out-of-fold answers as soft labels
(distillation). `clusters`: k-means clusters of features instead of classes (77th place's pre-training). `checked`: the
manifest's, weighed by how likely they are right (`manihot.audit.label_posterior.trust_labels`).

Pseudo-labels come from a network of the same fold, which never learned the photographs that the fold holds out.
Out-of-fold answers come from models that saw other folds' labels, as in every published use of them; the held-out
photographs' own labels are never among what is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import softmax
from sklearn.cluster import KMeans

from manihot.audit.label_errors import cleanlab_filter
from manihot.audit.label_posterior import estimate_transition, trust_labels
from manihot.audit.tables import read_table
from manihot.errors import DataError
from manihot.infer.forward import PhotoFiles, Photos, UnknownOutput, forward_views, merge_views
from manihot.infer.models import load_model, network_of, open_network, read_card
from manihot.members.member import Member
from manihot.members.sampling import class_number
from manihot.members.transition import asks_for_transition
from manihot.networks.runner import Runner
from manihot.photos.preprocess import Preprocess
from manihot.photos.store import PhotoStore
from manihot.progress import say
from manihot.records.groups import group_numbers
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.run_folder import WHOLE
from manihot.settings import Recipe, View


@dataclass(frozen=True)
class TrainingLabels:
    """What is learned: rows (n,) of the manifest, soft labels (n, C) float32, weights (n,), teacher logits (n, C)."""

    rows: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    teacher: np.ndarray | None = None
    transition: np.ndarray | None = None  # P(label | true class), (C, C), where the loss wants it estimated

    @property
    def classes(self) -> int:
        """Outputs of the network that learns it."""
        found: int = self.targets.shape[1]
        return found

    @property
    def labels(self) -> np.ndarray:
        """The likeliest class of each, (n,)."""
        found: np.ndarray = self.targets.argmax(1)
        return found


@dataclass(frozen=True)
class StageBefore:
    """The network of the stage before, ready to be fed, and how photographs become its input."""

    runner: Runner
    preprocess: Preprocess


@dataclass(frozen=True)
class LabelRequest:
    """Who asks for labels: a member or stage, its fold, the rows it may train on, the network of the stage before.

    features: rows (n,) of the manifest to their features (n, D), where these were computed already.
    """

    member: Member
    fold: int
    train: np.ndarray
    before: StageBefore | None = None
    features: Callable[[np.ndarray], np.ndarray] | None = None


def given(asked: LabelRequest) -> TrainingLabels:
    """The labels of the manifest."""
    manifest, train = asked.member.manifest, asked.train
    return TrainingLabels(train, soft_targets(manifest)[train], manifest.table["weight"].to_numpy()[train])


def pseudo(
    asked: LabelRequest,
    *,
    above: float = 0.95,
    hard: bool = True,
    by: str = "",
    test: bool = False,
    weight: float = 1.0,
) -> TrainingLabels:
    """`given`, and photographs without a label that a model is sure of.

    above: least probability. hard: the likeliest class; its probabilities otherwise. by: the member whose network of
    the same fold is asked; that of the stage before when left out. test: test photographs too. weight: of each.
    """
    member, known = asked.member, given(asked)
    rows = member.unlabelled_rows(asked.fold)
    if test:
        rows = np.union1d(rows, member.apart(member.test_rows, asked.fold))
    if not len(rows):
        raise DataError(
            f"{member.name}: labels 'pseudo' found no photographs without a label",
            "add some, mark a source with use: unlabelled, or set labels.test: true",
        )
    probs = _ask(asked, rows, by)
    sure = probs.max(1) >= above
    told = np.eye(probs.shape[1])[probs.argmax(1)] if hard else probs / probs.sum(1, keepdims=True)
    say(f"{member.what(asked.fold)}: {int(sure.sum())} of {len(rows)} photographs got a pseudo-label")
    return TrainingLabels(
        np.concatenate([known.rows, rows[sure]]),
        np.concatenate([known.targets, told[sure].astype(np.float32)]),
        np.concatenate([known.weights, np.full(int(sure.sum()), weight, dtype=known.weights.dtype)]),
    )


def oof(
    asked: LabelRequest,
    *,
    of: str | tuple[str, ...],
    do: str = "relabel",
    rule: str = "confident",
    above: float = 0.9,
    worst: int = 0,
    classes: tuple[str | int, ...] = (),
    among: str = "held_out",
) -> TrainingLabels:
    """`given` without doubtful labels, which out-of-fold answers contradict.

    of: the member whose answers are taken. do: drop the photographs, relabel them, or soft: the mean of label and
    answer. rule: `confident`, answers with a probability of `above` that differ (7th place), or `cleanlab`, its filter
    with its own thresholds (the lecture's). worst: at most so many, the surest first; 0 for all. classes: of the
    given labels that may be doubted, by name or number; all when empty. among: `held_out`, photographs with an
    out-of-fold answer; `others`, those that are never held out, answered by the network of `of` of the same fold, which
    didn't learn them (the lecture's photographs of 2019); `all`, both.
    """
    known = given(asked)
    probs = _answers(asked, of)
    if among != "held_out":
        others = ~np.isfinite(probs).all(1)
        if among == "others":
            probs[~others] = np.nan
        if others.any():
            probs[others] = np.mean([_ask(asked, known.rows[others], one, "labels") for one in names_of(of)], axis=0)
    label, said = known.labels, np.nan_to_num(probs).argmax(1)
    named = tuple(class_number(one, asked.member.manifest.classes, "labels") for one in classes)
    doubtful = find_doubtful(label, probs, rule, above, worst, named)
    targets = known.targets.copy()
    if do == "relabel":
        targets[doubtful] = np.eye(targets.shape[1], dtype=np.float32)[said[doubtful]]
    elif do == "soft":
        targets[doubtful] = (targets[doubtful] + probs[doubtful]) / 2
    keep = ~doubtful if do == "drop" else np.ones(len(label), dtype=bool)
    say(f"{asked.member.what(asked.fold)}: {do} {int(doubtful.sum())} labels that {_said(of)} contradicts")
    return TrainingLabels(known.rows[keep], targets[keep], known.weights[keep])


def find_doubtful(
    label: np.ndarray,
    probs: np.ndarray,
    rule: str = "confident",
    above: float = 0.9,
    worst: int = 0,
    classes: tuple[int, ...] = (),
) -> np.ndarray:
    """Which of the labels (n,) out-of-fold answers (n, K) contradict, bool (n,); never one without an answer (NaN)."""
    answered = np.isfinite(probs).all(1)
    probs = np.nan_to_num(probs)
    said, sure = probs.argmax(1), probs.max(1)
    if rule == "cleanlab":
        doubtful = np.zeros(len(label), dtype=bool)
        doubtful[answered] = cleanlab_filter(label[answered], probs[answered])
        doubtful &= said != label  # it can doubt a label that the answer agrees with; there is nothing better to say
        sure = sure - probs[np.arange(len(label)), label]  # the lecture's order, normalised margin
    else:
        doubtful = answered & (said != label) & (sure >= above)
    if classes:
        doubtful &= np.isin(label, classes)
    if worst and doubtful.sum() > worst:
        doubtful[np.argsort(np.where(doubtful, -sure, 2.0), kind="stable")[worst:]] = False
    return doubtful


def teacher(asked: LabelRequest, *, of: str | tuple[str, ...], share: float = 0.0) -> TrainingLabels:
    """`given`, with the answers of member `of`, or the mean of several, as the teacher of the loss `distillation`.

    share: of the answers in the soft labels themselves, so that any loss learns from them. Photographs that no fold
    held out have no honest answer; their own label stands for it.
    """
    known = given(asked)
    probs = _answers(asked, of)
    probs = np.where(np.isfinite(probs).all(1)[:, None], probs, known.targets)
    targets = ((1 - share) * known.targets + share * probs).astype(np.float32)
    return TrainingLabels(known.rows, targets, known.weights, np.log(np.maximum(probs, 1e-7)).astype(np.float32))


def clusters(asked: LabelRequest, *, k: int = 50, labelled: bool = False) -> TrainingLabels:
    """Clusters of the photographs without a label as their classes: the head is thrown away after the stage.

    k: clusters of k-means over the pooled features of the network at hand. labelled: the training photographs too.
    """
    member = asked.member
    rows = member.unlabelled_rows(asked.fold)
    rows = np.union1d(rows, asked.train) if labelled else rows
    if len(rows) < 2 * k:
        raise DataError(
            f"{member.name}: labels 'clusters' found {len(rows)} photographs for {k} clusters",
            "lower labels.k, set labels.labelled: true, or mark a source with use: unlabelled",
        )
    features = _features(asked, rows, f"{member.name}: features for clusters")
    found = KMeans(k, n_init=4, random_state=member.seed(asked.fold)).fit_predict(features)
    return TrainingLabels(rows, np.eye(k, dtype=np.float32)[found], np.ones(len(rows), dtype=np.float32))


def checked(asked: LabelRequest) -> TrainingLabels:
    """`given`, each photograph weighed by the probability that its label is right, found inside the training part.

    Features are those of the method `features`, or of the network at hand (pretrained, or the stage before's).
    """
    member, known = asked.member, given(asked)
    trust, rate = trust_labels(*_features_and_groups(asked, known), member.seed(asked.fold))
    doubted = int((trust < 0.5).sum())
    say(
        f"{member.what(asked.fold)}: about {rate:.0%} of the labels are wrong, "
        f"{doubted} of {len(trust)} are more likely wrong than right and weigh little"
    )
    weights = known.weights * trust / trust.mean()
    return TrainingLabels(known.rows, known.targets, weights.astype(np.float32))


def _features(asked: LabelRequest, rows: np.ndarray, what: str) -> np.ndarray:
    """Pooled features (n, D) by the network of the stage before, or by the pretrained one."""
    member, before = asked.member, asked.before
    if before is None:
        before = StageBefore(member.open_backbone(), member.preprocess)
    photos, views = _stored(asked, before.preprocess), (View(),)
    seen = forward_views([before.runner], photos, rows, before.preprocess, views, want="embeddings", what=what)
    return seen[:, 0]


def _ask(asked: LabelRequest, rows: np.ndarray, by: str, what: str = "pseudo-labels") -> np.ndarray:
    """Probabilities (n, K) by the network of the stage before, or by another member's of the same fold.

    Of a network with the output `unknown` they sum to less than 1: the rest says that it is none of the classes.
    """
    what = f"{asked.member.what(asked.fold)}: {what}"
    if by:
        runners, preprocess, views = _others(asked, by)
    else:
        assert asked.before is not None, "check_labels lets no first stage ask for it"
        runners, preprocess, views = [asked.before.runner], asked.before.preprocess, (View(),)
    told = UnknownOutput(len(rows), views)
    seen = forward_views(runners, _stored(asked, preprocess), rows, preprocess, views, what=what, also=told)
    probs = softmax(merge_views(seen, views).astype(np.float64), axis=1)
    found: np.ndarray = probs if told.probability is None else probs * (1 - told.probability)[:, None]
    return found


def _others(asked: LabelRequest, by: str) -> tuple[list[Runner], Preprocess, tuple[View, ...]]:
    """Member `by`'s network of the same fold, its input and its views; all of them where nothing is held out."""
    folder, tools = asked.member.run.member(by).path, asked.member.tools
    if asked.fold == WHOLE:
        model = load_model(folder)[0]
        return model.open(tools.device, tools.opener), model.preprocess, model.views
    path = network_of(folder / f"fold{asked.fold}")
    if path is None:
        raise DataError(f"labels: member {by!r} has no network of fold {asked.fold}", f"train {by} first: {folder}")
    card = read_card(path)
    return [open_network(path, tools.device, tools.opener)], card.preprocess, card.views


def _stored(asked: LabelRequest, preprocess: Preprocess) -> Photos:
    """The photographs as another network sees them, whose size may be another one's than the stage's."""
    first = preprocess.for_store
    path = asked.member.run.store(*first.size, first.fit)
    if asked.member.recipe.photo.store == "none" or not path.is_file():  # the other may have had no store
        return PhotoFiles(asked.member.manifest.paths, preprocess)
    return PhotoStore.open(path)


def names_of(of: str | Sequence[str]) -> list[str]:
    return [of] if isinstance(of, str) else [str(name) for name in of]


def _said(of: str | Sequence[str]) -> str:
    return " and ".join(names_of(of))


def _answers(asked: LabelRequest, of: str | tuple[str, ...]) -> np.ndarray:
    """Out-of-fold probabilities (n, K) of other members, their mean, for the rows to train on; NaN without one."""
    found: np.ndarray = np.mean([_answers_of(asked, name) for name in names_of(of)], axis=0)
    return found


def _answers_of(asked: LabelRequest, of: str) -> np.ndarray:
    member = asked.member
    path = member.run.oof(of)
    if not path.is_file():
        raise DataError(f"labels.of: member {of!r} has no out-of-fold predictions", f"train {of} first: {path}")
    told = Predictions.load(path)
    place = {name: at for at, name in enumerate(told.image_id)}
    at = np.array([place.get(name, -1) for name in member.manifest.image_id[asked.train]])
    out = np.full((len(at), len(told.classes)), np.nan, dtype=np.float32)
    out[at >= 0] = told.pred_probs[at[at >= 0]]
    return out


def make_training_labels(asked: LabelRequest) -> TrainingLabels:
    """What the stage's recipe wants learned."""
    choice = asked.member.recipe.labels
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in choice.settings.items()}
    if settings.pop("one_a_group", False):
        found = duplicate_groups(asked.member)
        groups = asked.member.manifest.table["group"].to_numpy() if found is None else found
        rows = one_a_group(groups, asked.train)
        what = "copies" if found is not None else "photographs of groups (without a search for duplicates, any groups)"
        say(f"{asked.member.what(asked.fold)}: {len(asked.train) - len(rows)} {what} left out")
        asked = replace(asked, train=rows)
    labels = LABELS[choice.name](asked, **settings)
    if not asks_for_transition(asked.member.recipe.loss.settings):
        return labels
    matrix = estimate_transition(*_features_and_groups(asked, labels), asked.member.seed(asked.fold))
    wrong = 1 - float(matrix.diagonal()[labels.labels].mean())
    say(f"{asked.member.what(asked.fold)}: transition matrix estimated, about {wrong:.0%} of the labels are wrong")
    return replace(labels, transition=matrix)


def _features_and_groups(asked: LabelRequest, known: TrainingLabels) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
    """Features, labels, the number of classes, and groups of photographs whose labels are to be checked."""
    member = asked.member
    if asked.features is not None:
        features = asked.features(known.rows)
    else:
        features = _features(asked, known.rows, f"{member.name}: features to check labels with")
    groups = group_numbers(member.manifest.table["group"].to_numpy()[known.rows], len(known.rows))
    return features, known.labels, known.classes, groups


def duplicate_groups(member: Member) -> np.ndarray | None:
    """Names (N,) of the groups of duplicates that the run found, '' for none; None where it didn't search for any.

    The manifest's groups are wider: they hold the user's own too, such as the photographs of one plant, which are no
    copies of each other.
    """
    path = member.run.audit.table("duplicates")
    if not (member.recipe.audit.duplicates and path.is_file()):
        return None
    named = read_table(path, "duplicates", ["image_id", "group"]).set_index("image_id")["group"]
    found: np.ndarray | None = named.reindex(member.manifest.image_id).fillna("").to_numpy(dtype=object)
    return found


def one_a_group(group: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Those of `rows` (n,) that are the first of their group, or without one. group: names (N,), '' for none."""
    own = group[rows]
    first = np.zeros(len(rows), dtype=bool)
    first[np.unique(own, return_index=True)[1]] = True
    found: np.ndarray = rows[first | (own == "")]
    return found


def members_asked(recipe: Recipe) -> list[str]:
    """Names of other members that a member's stages take labels from."""
    asked = [stage.labels.settings.get(key, "") for stage in recipe.stage_recipes() for key in ("of", "by")]
    return [name for name in dict.fromkeys(name for names in asked for name in names_of(names)) if name]


def soft_targets(manifest: Manifest) -> np.ndarray:
    """Soft labels (N, K) float32: the hard label as one-hot without a soft one, zeros without either."""
    hard = np.zeros((len(manifest), len(manifest.classes)), dtype=np.float32)
    known = manifest.labels >= 0
    hard[known, manifest.labels[known]] = 1
    if manifest.soft_labels is None:
        return hard
    given = np.isfinite(manifest.soft_labels).all(axis=1)
    return np.where(given[:, None], manifest.soft_labels, hard)


LABELS: dict[str, Callable[..., TrainingLabels]] = {
    "given": given,
    "pseudo": pseudo,
    "oof": oof,
    "teacher": teacher,
    "clusters": clusters,
    "checked": checked,
}
