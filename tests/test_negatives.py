"""Photographs of something else: how they are made, how they are learned, and what the output `unknown` gives."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from manihot.demo.scenes import Shot, draw_photograph
from manihot.errors import DataError, SettingsError
from manihot.infer.forward import UnknownOutput
from manihot.infer.models import Engine, load_model
from manihot.infer.predict import predict_photos
from manihot.members.crossval import collect
from manihot.members.training_labels import LabelRequest, TrainingLabels, make_training_labels
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.records.readers import read_json
from manihot.settings import Choice, View, load_recipe
from manihot.train.check import check_recipe
from manihot.train.data.negatives import NEGATIVES, Extended, Material, check_negatives, make_negatives, write_negatives
from manihot.train.finetune import finetune
from manihot.train.networks.backbones import make_model, make_preprocess
from manihot.train.networks.checkpoint import load_network
from manihot.train.optim.losses import make_loss
from manihot.train.runners import TorchRunner
from manihot.train.training import make_training, one_more_class, with_negatives
from manihot.trust.out_of_distribution import OutOfDistribution
from manihot.trust.unknown import auroc
from tiny_member import draw_photos, tiny_member

STORE = np.random.default_rng(0).integers(0, 256, (12, 40, 48, 3), dtype=np.uint8)
MATERIAL = Material(STORE, (40, 48), np.arange(10), {"web": np.array([10, 11])})
UNKNOWN = ("model.unknown=true", "negatives={name: drawn, share: 0.5}")


@pytest.mark.parametrize("name", [name for name in NEGATIVES if name not in ("none", "source")])
def test_what_is_drawn_depends_on_seed_and_number_alone(name: str, tmp_path: Path):
    made = make_negatives(Choice(name=name, share=0.6), MATERIAL)
    assert (made.count, len(made.rows)) == (6, 0)
    path = write_negatives(tmp_path / "some.npy", made, (40, 48), seed=1)
    first = np.load(path)
    assert first.shape == (6, 40, 48, 3) and first.dtype == np.uint8
    assert first.std((1, 2, 3)).min() > 1  # none is empty
    assert len(np.unique(first.reshape(6, -1), axis=0)) == 6
    longer = write_negatives(tmp_path / "more.npy", make_negatives(Choice(name=name, share=1), MATERIAL), (40, 48), 1)
    np.testing.assert_array_equal(np.load(longer)[:6], first)
    other = np.load(write_negatives(tmp_path / "other.npy", made, (40, 48), seed=2))
    assert not np.array_equal(other, first)
    times = path.stat().st_mtime_ns
    assert write_negatives(path, made, (40, 48), seed=1).stat().st_mtime_ns == times  # not drawn again


def test_mixed_takes_turns():
    both = [make_negatives(Choice(name="mixed"), MATERIAL).draw(np.random.default_rng(n), n) for n in range(4)]
    alone = [
        make_negatives(Choice(name=kind), MATERIAL).draw(np.random.default_rng(n), n // 2)
        for n, kind in enumerate(["drawn", "blurred", "drawn", "blurred"])
    ]
    assert all(np.array_equal(a, b) for a, b in zip(both, alone, strict=True))


def test_shuffled_patches_keep_colours_and_blur_loses_shapes():
    leaf = np.full((48, 48, 3), 30, np.uint8)
    leaf[:, 20:28] = (60, 200, 40)
    material = Material(leaf[None], (48, 48), np.arange(1))
    for way in ("blur", "shuffle", "corner"):
        draw = make_negatives(Choice(name="blurred", ways=[way]), material).draw
        spoilt = draw(np.random.default_rng(3), 0).astype(float)
        if way == "shuffle":
            assert spoilt.mean() == pytest.approx(leaf.mean(), rel=0.1)
            assert abs(np.corrcoef(spoilt[..., 1].ravel(), leaf[..., 1].ravel())[0, 1]) < 0.3
        elif way == "blur":  # the edge of the leaf rises over a third of the picture and more
            steps = np.abs(np.diff(spoilt[24, :, 1]))
            assert steps.max() < 0.1 * 170
        else:
            assert spoilt.shape == leaf.shape


def test_photographs_behind_the_store():
    with pytest.raises(SettingsError, match="no photograph without a label of source 'wub'") as caught:
        make_negatives(Choice(name="source", source="wub"), MATERIAL)
    assert "use: unlabelled" in caught.value.remedy and "web" in caught.value.remedy
    np.testing.assert_array_equal(make_negatives(Choice(name="source", source="web"), MATERIAL).rows, [10, 11])


def test_extended_photographs_travel_as_paths(tmp_path: Path):
    made = make_negatives(Choice(name="blurred", share=0.3), MATERIAL)
    more = Extended(STORE, write_negatives(tmp_path / "n.npy", made, (40, 48), 0))
    assert len(more) == 15
    np.testing.assert_array_equal(more[11], STORE[11])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(more))[14], np.load(tmp_path / "n.npy")[2])
    with pytest.raises(IndexError):
        more[15]


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("name: drown", "there are no negatives 'drown'"),
        ("name: drawn, share: 0", "share = 0"),
        ("name: drawn, ways: [blur]", "drawn has no setting 'ways'"),
        ("name: blurred, ways: [smear]", "ways = "),
        ("name: source", "source needs the setting 'source'"),
    ],
)
def test_wrong_settings_are_refused(tiny_recipe: Path, choice: str, words: str):
    with pytest.raises(SettingsError, match=f"negatives: {words}") as caught:
        check_recipe(load_recipe(str(tiny_recipe), ["model.unknown=true", f"negatives={{{choice}}}"]))
    assert caught.value.remedy


def test_the_output_and_its_photographs_go_together(tiny_recipe: Path):
    for sets in (UNKNOWN[:1], UNKNOWN[1:]):
        with pytest.raises(SettingsError, match="go together"):
            check_recipe(load_recipe(str(tiny_recipe), list(sets)))
    with pytest.raises(SettingsError, match="'features' has no output `unknown`"):
        check_recipe(load_recipe(str(tiny_recipe), [*UNKNOWN, "method=features"]))
    check_recipe(load_recipe(str(tiny_recipe), list(UNKNOWN)))
    check_negatives(Choice(name="mixed", share=0.2, ways=["corner"]), "here")


def test_training_labels_get_one_more_class(tmp_path: Path, tiny_recipe: Path):
    member = tiny_member(tmp_path, tiny_recipe, UNKNOWN)
    train, _ = member.rows(0)
    known = make_training_labels(LabelRequest(member, 0, train))
    known = TrainingLabels(known.rows, known.targets, known.weights, np.zeros((12, 3), np.float32))
    training_labels, photos = with_negatives(member, 0, known)
    assert len(train) == 12 and len(training_labels.rows) == 18 and training_labels.classes == 4
    np.testing.assert_array_equal(training_labels.labels, [*known.labels, *[3] * 6])
    np.testing.assert_array_equal(training_labels.targets.sum(1), 1)
    np.testing.assert_array_equal(training_labels.rows[12:], len(member.photos) + np.arange(6))
    assert photos[int(training_labels.rows[17])].shape == photos[0].shape
    taught = torch.from_numpy(training_labels.teacher).softmax(1)
    assert taught[:12, 3].max() < 1e-6 and taught[12:, 3].min() > 0.999
    again, _ = with_negatives(tiny_member(tmp_path / "again", tiny_recipe, UNKNOWN), 0, known)
    np.testing.assert_array_equal(again.rows, training_labels.rows)


def test_a_source_of_something_else_is_no_source_of_leaves(tmp_path: Path, tiny_recipe: Path):
    sets = ("model.unknown=true", "negatives={name: source, source: field}")
    member = tiny_member(tmp_path, tiny_recipe, sets, draw_photos(tmp_path / "photos", unlabelled=6))
    train, _ = member.rows(0)
    training_labels, photos = with_negatives(member, 0, make_training_labels(LabelRequest(member, 0, train)))
    np.testing.assert_array_equal(member.manifest.table["source"].to_numpy()[training_labels.rows[12:]], "field")
    assert photos is member.photos
    assert not len(member.unlabelled_rows(0))  # neither pseudo-labels nor FixMatch take them for leaves


SETTINGS = [
    ("cross_entropy", {"class_weights": [1.0, 2.0, 3.0]}, {"class_weights": [1.0, 2.0, 3.0, 1.0]}),
    ("focal", {"alpha": [1.0, 2.0, 0.5], "gamma": 1.0}, {"alpha": [1.0, 2.0, 0.5, 1.0], "gamma": 1.0}),
    ("focal", {"alpha": 0.25}, {"alpha": 0.25}),
    ("class_balanced", {"counts": [5, 6, 7], "inner": "focal"}, {"counts": [5, 6, 7, 9.0], "inner": "focal"}),
    (
        "combo",
        {"terms": [{"name": "nce"}, {"name": "focal", "alpha": [1.0, 1.0, 2.0]}]},
        {"terms": [{"name": "nce"}, {"name": "focal", "alpha": [1.0, 1.0, 2.0, 1.0]}]},
    ),
]


@pytest.mark.parametrize(("name", "given", "wanted"), SETTINGS)
def test_losses_with_a_number_a_class_take_one_class_more(name, given, wanted):
    made = one_more_class(given, 3, 9.0)
    assert made == wanted
    loss = make_loss(name, made, classes=4, photographs=3, class_counts=[1, 1, 1, 9])
    assert torch.isfinite(loss(torch.randn(3, 4), torch.tensor([0, 3, 2])))


def test_runners_give_the_classes_and_unknown_beside_them(tiny_recipe: Path):
    """Softmax over the first K logits is the classes' probabilities divided by 1 - unknown."""
    recipe = load_recipe(str(tiny_recipe), list(UNKNOWN))
    model = make_model(recipe.model, 3, (32, 32), 0)
    assert model.head.weight.shape[0] == 4
    torch.nn.init.normal_(model.head.weight, std=30.0, generator=torch.Generator().manual_seed(0))
    runner = TorchRunner(model, make_preprocess(recipe.model, (32, 32), "squash"), torch.device("cpu"))
    out = runner(STORE[:5, :32, :32])
    assert out["logits"].shape == (5, 3) and out["unknown"].shape == (5,)
    with torch.no_grad():
        whole = model(runner.normalise(torch.from_numpy(STORE[:5, :32, :32]))).softmax(1).numpy()
    np.testing.assert_allclose(out["unknown"], whole[:, 3], atol=1e-5)
    known = torch.from_numpy(out["logits"]).softmax(1).numpy()
    np.testing.assert_allclose(known, whole[:, :3] / (1 - whole[:, 3:]), rtol=1e-3, atol=1e-5)
    told = UnknownOutput(2, (View(), View(weight=3)))
    for view, values in ((0, (0.2, 0.6)), (1, (0.8, 0.0))):
        told(slice(0, 2), view, [{"unknown": np.array(values)}, {"unknown": np.array(values) / 2}, {}])
    np.testing.assert_allclose(told.probability, [0.75 * (0.25 * 0.2 + 0.75 * 0.8), 0.75 * 0.25 * 0.6])
    assert UnknownOutput(2, (View(),)).probability is None


def test_predictions_keep_unknown(tmp_path: Path):
    probs = np.array([[0.7, 0.3], [0.5, 0.5], [0.1, 0.9]])
    whole = Predictions.from_probs(np.array(["a", "b", "c"]), probs, ("x", "y"), unknown=np.array([0.0, 0.25, 1.0]))
    for name in ("p.parquet", "p.csv"):
        whole.save(tmp_path / name)
        again = Predictions.load(tmp_path / name, None if name == "p.parquet" else ("x", "y"))
        assert again.unknown.dtype == np.float32
        np.testing.assert_allclose(again.unknown, whole.unknown)
        np.testing.assert_allclose(again.pred_probs, probs, atol=1e-6)
    np.testing.assert_array_equal(whole.align(np.array(["c", "a"])).unknown, [1.0, 0.0])
    assert whole.take(np.array([True, False, True])).unknown.tolist() == [0.0, 1.0]
    without = Predictions.from_probs(np.array(["a"]), probs[:1], ("x", "y"))
    without.save(tmp_path / "w.parquet")
    assert Predictions.load(tmp_path / "w.parquet").unknown is None
    with pytest.raises(DataError, match="unknown"):
        Predictions.from_probs(np.array(["a"]), probs[:1], ("x", "y"), unknown=np.array([1.5]))
    broken = pd.read_csv(tmp_path / "p.csv").assign(unknown=["0.5", "what", "0"])
    broken.to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(DataError, match="column 'unknown'"):
        Predictions.load(tmp_path / "b.csv")


def test_a_member_with_the_output_trains_and_predicts(tmp_path: Path, tiny_recipe: Path):
    sets = (*UNKNOWN, "train.epochs=1", "loss={name: cross_entropy, class_weights: [1, 2, 3]}")
    member = tiny_member(tmp_path, tiny_recipe, sets)
    for fold in (0, 1):
        train, held = member.rows(fold)
        finetune(member, fold, train, held)
    collect(member, [0, 1])
    oof = Predictions.load(member.run / "predictions/main.oof.parquet")
    assert oof.logits.shape == (24, 3) and oof.unknown.shape == (24,)
    test = Predictions.load(member.run / "predictions/main.test.parquet")
    assert load_network(member.folder(0) / "best.safetensors")[0].unknown
    (model,) = load_model(member.run / "members/main")
    assert model.classes == ("red", "green", "blue") and model.folds == [0, 1]
    assert {file.name for file in model.files} == {"network.onnx"}
    rows = member.test_rows
    new = predict_photos([model], member.manifest.take(rows), Engine())
    np.testing.assert_allclose(new.unknown, test.unknown, atol=1e-4)
    np.testing.assert_allclose(new.pred_probs, test.pred_probs, atol=1e-4)


def draw_leaves(folder: Path, n: int) -> Manifest:
    """Drawn cassava leaves of three diseases, in two folds."""
    from PIL import Image

    rows = []
    for number in range(n):
        rng = np.random.default_rng([5, number])
        symptom = ("healthy", "mosaic", "streak")[number % 3]
        shot = Shot(
            symptom, 0.7, ("closeup", "leaf", "plant")[number // 3 % 3], 72, 72, 0.3, 0.0, 0.0, 0.02, (1.0, 1.0, 1.0)
        )
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_photograph(rng, shot)).save(folder / f"{number}.png")
        name = f"{number}.png"
        rows.append({"image_id": name, "path": name, "label": number % 3, "fold": number // 9 % 2})
    return Manifest.from_table(pd.DataFrame(rows), ("healthy", "mosaic", "streak"), folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("taught", "asked", "span"), [("blurred", "drawn", (0.6, 0.8)), ("drawn", "blurred", (0.2, 0.6))]
)
def test_what_is_not_taught_is_hardly_told(tmp_path: Path, tiny_recipe: Path, taught, asked, span):
    """AUROC of leaves that a fold held out against negatives of the kind it was taught, and of another.

    Taught spoilt photographs it finds drawn scenes strange (.67), but taught drawn scenes it takes spoilt photographs,
    which have a leaf's colours, for leaves (.41): what is not taught is not learned, and `mixed` teaches both.
    """
    manifest = draw_leaves(tmp_path / "photos", 180)
    sets = (
        "model.unknown=true",
        f"negatives={{name: {taught}, share: 0.5}}",
        "train.epochs=12",
        "train.batch=16",
        "photo.size=[64,64]",
        "averaging={name: none}",
        "augment=[{name: horizontal_flip}]",
        "mixing=[]",
    )
    member = tiny_member(tmp_path, tiny_recipe, sets, manifest)
    train, held = member.rows(0)
    finetune(member, 0, train, held)
    leaves = Predictions.load(member.folder(0) / "oof.parquet").unknown
    network, card = load_network(member.folder(0) / "best.safetensors")
    runner = TorchRunner(network, card.preprocess, torch.device("cpu"))
    found = {}
    for kind in (taught, asked):
        material = Material(member.photos, card.preprocess.stored, held)
        draw = make_negatives(Choice(name=kind), material).draw
        pictures = [card.preprocess(draw(np.random.default_rng([9, n]), n)) for n in range(60)]
        found[kind] = auroc(leaves, runner(np.stack(pictures))["unknown"])
    print({"taught": taught, **{kind: round(value, 3) for kind, value in found.items()}})
    assert found[taught] > 0.85
    assert span[0] < found[asked] < span[1]


def test_training_with_it_is_the_same_twice(tmp_path: Path, tiny_recipe: Path):
    first, second = (
        make_training(member, 0, make_training_labels(LabelRequest(member, 0, member.rows(0)[0])))
        for member in (tiny_member(tmp_path / str(n), tiny_recipe, UNKNOWN) for n in range(2))
    )
    for a, b in zip(first.loader, second.loader, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert first.model.head.weight.shape[0] == 4


def test_a_run_says_how_probable_something_else_is(small_photos: Path, tmp_path: Path, tiny_recipe: Path):
    """From `manihot run` to the answers of `manihot predict`."""
    from manihot.engines import predict
    from manihot.pipeline import run

    sets = [*UNKNOWN, "train.epochs=1", "audit={duplicates: false, labels: false}"]
    sets += ["trust={coverage: 0.8, false_rejection: 0.2}"]
    run(small_photos, tmp_path / "run", str(tiny_recipe), overrides=sets, device="cpu", workers=1, report=False)
    oof = Predictions.load(tmp_path / "run/predictions/main.oof.parquet")
    assert oof.logits.shape == (45, 3) and oof.unknown.shape == (45,)
    new = predict(tmp_path / "run", small_photos / "red", tmp_path / "new.csv", device="cpu", workers=1)
    written, answers = pd.read_csv(tmp_path / "new.csv"), pd.read_csv(tmp_path / "new.answers.csv")
    np.testing.assert_allclose(written["unknown"], new.unknown, rtol=1e-5)
    np.testing.assert_allclose(answers["unknown_probability"], new.unknown, rtol=1e-5)
    strangers = OutOfDistribution.load(tmp_path / "run/trust")
    limit = strangers.output_limit
    assert strangers.false_rejection == 0.2 and limit is not None
    assert 0.1 < (oof.unknown > limit).mean() <= 0.2
    assert read_json(tmp_path / "run/trust/sets.json")["coverage"] == 0.8
    assert answers["unknown"].to_numpy()[new.unknown > limit].all()
    np.testing.assert_allclose(written[["c0", "c1", "c2"]].sum(axis=1), 1, rtol=1e-6)


def test_a_blend_says_the_mean_of_the_members_that_know(tmp_path: Path):
    from manihot.ensemble.files import blend_files

    rng = np.random.default_rng(0)
    ids, labels = np.array([f"{n}" for n in range(60)]), np.arange(60) % 3
    told = (None, rng.uniform(0, 1, 60), rng.uniform(0, 1, 60))
    for name, unknown in zip("abc", told):
        probs = rng.dirichlet((1, 1, 1), 60) * 0.5 + 0.5 * np.eye(3)[labels]
        made = Predictions.from_probs(ids, probs, ("x", "y", "z"), labels, np.arange(60) % 2, unknown=unknown)
        made.save(tmp_path / f"{name}.oof.parquet")
    blend_files([tmp_path / f"{name}.oof.parquet" for name in "abc"], tmp_path / "blend", method="uniform")
    blended = Predictions.load(tmp_path / "blend/blend.oof.parquet")
    np.testing.assert_allclose(blended.align(ids).unknown, (told[1] + told[2]) / 2, atol=1e-6)
    np.testing.assert_allclose(blended.pred_probs.sum(1), 1, rtol=1e-5)
