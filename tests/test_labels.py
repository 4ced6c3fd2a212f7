"""Where the labels come from: each row of LABELS on a few photographs, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

from manihot.errors import DataError, SettingsError
from manihot.members import training_labels as labels_module
from manihot.members.check import check_classes
from manihot.members.crossval import in_order
from manihot.members.member import Member
from manihot.members.training_labels import (
    LABELS,
    LabelRequest,
    StageBefore,
    TrainingLabels,
    make_training_labels,
    members_asked,
)
from manihot.photos.preprocess import Preprocess
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.settings import load_recipe
from manihot.train.check import check_recipe
from manihot.train.runners import TorchRunner
from tiny_member import CLASSES, draw_photos, tiny_member


class Colours(nn.Module):
    """A network that sees the mean colour, and, with `unknown`, that a grey photograph shows none."""

    def __init__(self, unknown: bool = False) -> None:
        super().__init__()
        self.unknown = unknown

    def embed(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))

    def classify(self, features: Tensor) -> Tensor:
        logits = 6 * (features - features.mean(1, keepdim=True))
        return torch.cat([logits, 3 - logits.amax(1, keepdim=True)], 1) if self.unknown else logits


def model(member: Member, unknown: bool = False) -> StageBefore:
    """The stage before's, of the member's size; grey is grey to it."""
    return before_of(Colours(unknown), plain(member))


def before_of(network: nn.Module, preprocess: Preprocess) -> StageBefore:
    return StageBefore(TorchRunner(network, preprocess, torch.device("cpu")), preprocess)  # type: ignore[arg-type]


def plain(member: Member) -> Preprocess:
    return replace(member.preprocess, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def manifest(home: Path) -> Manifest:
    """24 labelled photographs, 6 without, one of them grey and one a copy of a held-out one, 3 test ones."""
    made = draw_photos(home / "photos")
    from PIL import Image

    Image.fromarray(np.full((40, 48, 3), 90, np.uint8)).save(home / "photos/field024.png")
    group = np.full(len(made), "", dtype=object)
    group[[0, 25, 30]] = "g"  # row 0 is held out by fold 0; 25 has no label, 30 is a test photograph
    return made.with_columns(group=group)


def asked(home: Path, recipe: Path, *sets: str, before: bool = False, unknown: bool = False) -> LabelRequest:
    member = tiny_member(home, recipe, sets, manifest(home))
    return LabelRequest(member, 0, member.rows(0)[0], model(member, unknown) if before else None)


def answers(question: LabelRequest, probs: np.ndarray, rows: np.ndarray, name: str = "other") -> None:
    """Write the out-of-fold answers of another member for some rows, in a shuffled order."""
    order = np.random.default_rng(1).permutation(len(rows))
    ids = question.member.manifest.image_id[rows]
    path = question.member.run / f"predictions/{name}.oof.parquet"
    Predictions.from_probs(ids[order], probs[order], CLASSES).save(path)


def test_given_labels_are_the_manifests(tmp_path: Path, tiny_recipe: Path):
    question = asked(tmp_path, tiny_recipe)
    soft = np.full((33, 3), np.nan, dtype=np.float32)
    soft[3] = (0.2, 0.5, 0.3)
    made = replace(question.member.manifest.with_columns(weight=np.arange(33, dtype=np.float32)), soft_labels=soft)
    training_labels = make_training_labels(replace(question, member=replace(question.member, manifest=made)))
    np.testing.assert_array_equal(training_labels.rows, question.train)
    np.testing.assert_array_equal(training_labels.weights, question.train)
    np.testing.assert_allclose(training_labels.targets[list(training_labels.rows).index(3)], soft[3])
    assert training_labels.classes == 3 and (training_labels.targets.max(1)[training_labels.rows != 3] == 1).all()


def test_pseudo_labels_are_sure_and_none_is_a_copy_of_what_is_held_out(tmp_path: Path, tiny_recipe: Path):
    question = asked(tmp_path, tiny_recipe, "labels={name: pseudo, above: 0.9, weight: 0.5}", before=True)
    training_labels = make_training_labels(question)
    known = len(question.train)
    # 24 is grey, 25 a copy of row 0, which fold 0 holds out
    np.testing.assert_array_equal(training_labels.rows[known:], [26, 27, 28, 29])
    np.testing.assert_array_equal(
        training_labels.labels[known:], question.member.manifest.table["truth"][[26, 27, 28, 29]]
    )
    np.testing.assert_array_equal(training_labels.targets[known:].max(1), 1)
    np.testing.assert_array_equal(training_labels.weights[known:], 0.5)
    assert not set(training_labels.rows) & set(question.member.rows(0)[1])
    other = replace(question, fold=1, train=question.member.rows(1)[0])
    assert 25 in make_training_labels(other).rows  # fold 1 learns from row 0 itself


def test_pseudo_labels_of_test_photographs_are_asked_for(tmp_path: Path, tiny_recipe: Path):
    question = asked(tmp_path, tiny_recipe, "labels={name: pseudo, above: 0.9, test: true, hard: false}", before=True)
    training_labels = make_training_labels(question)
    np.testing.assert_array_equal(
        training_labels.rows[len(question.train) :], [26, 27, 28, 29, 31, 32]
    )  # 30 is a copy too
    told = training_labels.targets[len(question.train) :]
    assert told.max(1).min() >= 0.9 and told.max() < 1
    np.testing.assert_allclose(told.sum(1), 1, rtol=1e-6)


def test_what_a_network_knows_to_be_something_else_gets_no_pseudo_label(tmp_path: Path, tiny_recipe: Path):
    choice = "labels={name: pseudo, above: 0.3, hard: false}"
    sure = make_training_labels(asked(tmp_path / "a", tiny_recipe, choice, before=True))
    assert 24 in sure.rows  # a third for each colour
    less = make_training_labels(asked(tmp_path / "b", tiny_recipe, choice, before=True, unknown=True))
    assert 24 not in less.rows and 26 in less.rows
    np.testing.assert_allclose(less.targets.sum(1), 1, rtol=1e-6)


def test_the_model_before_is_asked_in_its_own_size(tmp_path: Path, tiny_recipe: Path):
    question = asked(tmp_path, tiny_recipe, "labels={name: pseudo, above: 0.9}", before=True)
    sizes = []

    class Sized(Colours):
        def embed(self, images: Tensor) -> Tensor:
            sizes.append(tuple(images.shape[2:]))
            return super().embed(images)

    smaller = tiny_member(tmp_path, tiny_recipe, ("photo.size=[24, 16]",), question.member.manifest)
    before = before_of(Sized(), plain(smaller))
    training_labels = make_training_labels(replace(question, before=before))
    np.testing.assert_array_equal(training_labels.rows[len(question.train) :], [26, 27, 28, 29])
    assert set(sizes) == {(24, 16)}
    assert smaller.preprocess != question.member.preprocess


def test_pseudo_labels_need_photographs_without_labels(tmp_path: Path, tiny_recipe: Path):
    member = tiny_member(tmp_path, tiny_recipe, ("labels={name: pseudo}",), draw_photos(tmp_path / "p", unlabelled=0))
    with pytest.raises(DataError, match="'pseudo' found no photographs"):
        make_training_labels(LabelRequest(member, 0, member.rows(0)[0], model(member)))
    by = tiny_member(tmp_path, tiny_recipe, ("labels={name: pseudo, by: elder}",))
    with pytest.raises(DataError, match="'elder' has no network of fold 0"):
        make_training_labels(LabelRequest(by, 0, by.rows(0)[0]))


def contradicted(question: LabelRequest, *, surely: dict[int, int]) -> None:
    """Answers that agree with all labels but those of the given places among the training rows; none for the last."""
    label = question.member.manifest.labels[question.train]
    probs = np.full((len(label), 3), 0.02)
    probs[np.arange(len(label)), label] = 0.96
    for place, (said, sure) in zip(surely, [(k, 0.99 - 0.01 * n) for n, k in enumerate(surely.values())]):
        probs[place] = (1 - sure) / 2
        probs[place, said] = sure
    answers(question, probs[:-1], question.train[:-1])


def test_photographs_that_are_never_held_out_are_answered_by_the_folds_network(tmp_path, tiny_recipe, monkeypatch):
    def left(among: str) -> tuple[set[int], np.ndarray]:
        question = asked(tmp_path, tiny_recipe, f"labels={{name: oof, of: other, do: drop, among: {among}}}")
        label = question.member.manifest.labels[question.train]
        contradicted(question, surely={0: (label[0] + 1) % 3})  # and none for the last row

        def ask(about: LabelRequest, rows: np.ndarray, by: str, what: str) -> np.ndarray:
            assert (by, rows.tolist()) == ("other", question.train[-1:].tolist())
            return np.eye(3)[[(label[-1] + 1) % 3]]

        monkeypatch.setattr(labels_module, "_ask", ask)
        return set(question.train) - set(make_training_labels(question).rows), question.train

    for among, places in (("held_out", [0]), ("others", [-1]), ("all", [0, -1])):
        gone, train = left(among)
        assert gone == set(train[places]), among


def test_a_network_does_not_check_the_labels_that_it_learned(tiny_recipe: Path):
    text = "members={{a: {{sources: {{web: {{use: {}}}}}}}, b: {{labels: {{name: oof, of: a, among: others}}}}}}"
    check_recipe(load_recipe(str(tiny_recipe), ["sources={web: {use: train}}", text.format("ignore")]))
    with pytest.raises(SettingsError, match="'a' learned the photographs of 'web'"):
        check_recipe(load_recipe(str(tiny_recipe), ["sources={web: {use: train}}", text.format("train")]))


def test_out_of_fold_answers_change_or_drop_doubtful_labels(tmp_path: Path, tiny_recipe: Path):
    def training_labels(settings: str) -> tuple[TrainingLabels, LabelRequest]:
        question = asked(tmp_path, tiny_recipe, f"labels={{name: oof, of: other, {settings}}}")
        label = question.member.manifest.labels[question.train]
        # three contradictions, the surest first; the last row has no answer
        contradicted(question, surely={0: (label[0] + 1) % 3, 4: (label[4] + 1) % 3, 2: (label[2] + 2) % 3})
        return make_training_labels(question), question

    relabelled, question = training_labels("do: relabel")
    label = question.member.manifest.labels[question.train]
    changed = np.flatnonzero(relabelled.labels != label)
    np.testing.assert_array_equal(changed, [0, 2, 4])
    assert relabelled.labels[0] == (label[0] + 1) % 3 and relabelled.labels[2] == (label[2] + 2) % 3
    dropped, _ = training_labels("do: drop, worst: 2")
    np.testing.assert_array_equal(dropped.rows, np.delete(question.train, [0, 4]))
    softened, _ = training_labels("do: soft, above: 0.975")
    np.testing.assert_allclose(softened.targets[0].max(), 0.5 + 0.0025, atol=1e-6)
    assert (softened.targets[[2]].max(1) == 1).all()
    for named in (label[4], CLASSES[label[4]]):
        only, _ = training_labels(f"do: drop, classes: [{named}]")
        gone = set(question.train) - set(only.rows)
        assert gone == {question.train[p] for p in (0, 2, 4) if label[p] == label[4]}
    with pytest.raises(SettingsError, match="there is no class 'grey'"):
        training_labels("do: drop, classes: [grey]")
    with pytest.raises(SettingsError, match="labels: there is no class 'grey'"):
        check_classes(load_recipe(str(tiny_recipe), ["labels={name: oof, of: other, classes: [grey]}"]), CLASSES)
    with pytest.raises(DataError, match="'nobody' has no out-of-fold predictions"):
        make_training_labels(asked(tmp_path, tiny_recipe, "labels={name: oof, of: nobody}"))


def test_a_teachers_answers_stand_beside_their_photographs(tmp_path: Path, tiny_recipe: Path):
    question = asked(tmp_path, tiny_recipe, "labels={name: teacher, of: other, share: 0.3}")
    rows = np.concatenate([question.train[:-1], question.member.rows(0)[1]])
    probs = np.random.default_rng(0).dirichlet((1, 1, 1), len(rows))
    answers(question, probs, rows)
    training_labels = make_training_labels(question)
    given = np.eye(3)[question.member.manifest.labels[question.train]]
    taught = torch.from_numpy(training_labels.teacher).softmax(1).numpy()
    np.testing.assert_allclose(taught[:-1], probs[: len(question.train) - 1], atol=1e-4)
    np.testing.assert_allclose(taught[-1], given[-1], atol=1e-5)  # nobody held it out
    np.testing.assert_allclose(training_labels.targets[:-1], 0.7 * given[:-1] + 0.3 * taught[:-1], atol=1e-4)
    two = asked(tmp_path, tiny_recipe, "labels={name: teacher, of: [other, second]}")
    answers(two, probs[:, ::-1], rows, "second")
    both = torch.from_numpy(make_training_labels(two).teacher).softmax(1).numpy()
    np.testing.assert_allclose(both[:-1], ((probs + probs[:, ::-1]) / 2)[: len(question.train) - 1], atol=1e-4)


def test_clusters_are_what_looks_alike(tmp_path: Path, tiny_recipe: Path):
    choice = "labels={name: clusters, k: 3, labelled: true}"
    question = asked(tmp_path, tiny_recipe, choice, before=True)
    training_labels = make_training_labels(question)
    rows = question.member.unlabelled_rows(0)
    np.testing.assert_array_equal(training_labels.rows, np.union1d(rows, question.train))
    shown = question.member.manifest.table["truth"].to_numpy()[training_labels.rows]
    coloured = training_labels.rows != 24  # the grey one may go anywhere
    assert adjusted_rand_score(shown[coloured], training_labels.labels[coloured]) == 1
    assert training_labels.classes == 3
    np.testing.assert_array_equal(make_training_labels(question).targets, training_labels.targets)
    with pytest.raises(DataError, match="found 5 photographs for 3 clusters"):
        make_training_labels(asked(tmp_path, tiny_recipe, "labels={name: clusters, k: 3}", before=True))


def test_one_photograph_of_each_group(tmp_path: Path, tiny_recipe: Path, capsys):
    question = asked(tmp_path, tiny_recipe, "labels={name: given, one_a_group: true}")
    group = np.full(33, "", dtype=object)
    group[question.train[[1, 4, 6]]] = "plant"
    made = question.member.manifest.with_columns(group=group)
    training_labels = make_training_labels(replace(question, member=replace(question.member, manifest=made)))
    np.testing.assert_array_equal(training_labels.rows, np.delete(question.train, [4, 6]))
    assert "without a search for duplicates, any groups" in capsys.readouterr().err


def test_where_duplicates_were_sought_only_they_are_thinned(tmp_path: Path, tiny_recipe: Path, capsys):
    """Four photographs of one plant, two of which are copies: the user's own group isn't thinned."""
    question = asked(tmp_path, tiny_recipe, "labels={name: given, one_a_group: true}")
    group = np.full(33, "", dtype=object)
    group[question.train[[1, 2, 4, 6]]] = "plant"
    made = question.member.manifest.with_columns(group=group)
    ids = made.image_id[question.train[[4, 6]]]
    table = question.member.run / "audit/duplicates.parquet"
    table.parent.mkdir(parents=True)
    pd.DataFrame({"image_id": ids, "group": "dup-" + ids[0]}).to_parquet(table)
    training_labels = make_training_labels(replace(question, member=replace(question.member, manifest=made)))
    np.testing.assert_array_equal(training_labels.rows, np.delete(question.train, [6]))
    assert "1 copies left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("{name: gven}", "there are no labels 'gven'"),
        ("{name: given, above: 0.9}", "given has no setting 'above'"),
        ("{name: pseudo}", "pseudo asks the network of the stage before"),
        ("{name: pseudo, by: b, above: 1.2}", "above = 1.2"),
        ("{name: pseudo, by: c}", "by: there is no other member 'c'"),
        ("{name: pseudo, by: a}", "by: there is no other member 'a'"),
        ("{name: oof}", "oof needs the setting 'of'"),
        ("{name: oof, of: [b, c]}", "of: there is no other member 'c'"),
        ("{name: oof, of: b, do: forget}", "do = 'forget'"),
        ("{name: oof, of: b, worst: -1}", "worst = -1"),
        ("{name: oof, of: b, among: some}", "among = 'some'"),
        ("{name: teacher, of: b, share: 2}", "share = 2"),
        ("{name: clusters}", "clusters are not classes to predict"),
        ("{name: clusters, k: 1}", "k = 1"),
        ("{name: given, one_a_group: 1}", "one_a_group = 1"),
        ("{name: oof, of: 3}", "of = 3"),
        ("{name: oof, of: []}", r"of = \[\]"),
        ("{name: oof, of: b, classes: a}", "classes = 'a'"),
        ("{name: oof, of: b, classes: [-1]}", r"classes = \[-1\]"),
        ("{name: oof, of: b, do: [drop]}", r"do = \['drop'\]"),
        ("{name: pseudo, by: [b]}", r"by = \['b'\]"),
        ("{name: pseudo, by: b, hard: 1}", "hard = 1"),
        ("{name: pseudo, by: b, weight: much}", "weight = 'much'"),
        ("{name: pseudo, by: b, weight: -1}", "weight = -1"),
    ],
)
def test_wrong_settings_are_refused(tiny_recipe: Path, labels: str, words: str):
    sets = ["members={a: {labels: " + labels + "}, b: {}}"]
    with pytest.raises(SettingsError, match=words) as caught:
        check_recipe(load_recipe(str(tiny_recipe), sets))
    assert caught.value.remedy


def test_members_are_trained_after_those_they_ask(tiny_recipe: Path):
    sets = "members={a: {labels: {name: teacher, of: [c, b]}}, b: {}, c: {labels: {name: pseudo, by: b}}}"
    recipes = load_recipe(str(tiny_recipe), [sets]).member_recipes()
    assert members_asked(recipes["a"]) == ["c", "b"]
    assert in_order(recipes) == ["b", "c", "a"]
    circle = "members={a: {labels: {name: oof, of: b}}, b: {labels: {name: oof, of: a}}}"
    with pytest.raises(SettingsError, match="in a circle"):
        in_order(load_recipe(str(tiny_recipe), [circle]).member_recipes())
    assert set(LABELS) >= {"given", "pseudo", "oof", "teacher", "clusters"}
