"""Several sources whose classes have other names: the folders of Cassava 2019 beside Kaggle's folder of 2020."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manihot.audit.sources import narrow, use_sources
from manihot.errors import DataError, SettingsError
from manihot.members.smoke import prepare_smoke
from manihot.photos.aliases import load_aliases
from manihot.photos.scan import scan
from manihot.pipeline import prepare
from manihot.records.manifest import Manifest
from manihot.records.run_folder import RunFolder
from manihot.settings import Source, load_recipe, recipe_names
from manihot.settings.options import EVERYTHING_GUESSED, TableOptions

OLD = {"cbb": 4, "cbsd": 3, "cgm": 3, "cmd": 6, "healthy": 2}
CLASSES = (
    "Cassava Bacterial Blight (CBB)",
    "Cassava Brown Streak Disease (CBSD)",
    "Cassava Green Mottle (CGM)",
    "Cassava Mosaic Disease (CMD)",
    "Healthy",
)
NAMES = dict(zip(OLD, CLASSES))
EACH = 5  # photographs of each class of 2020


def noise(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(str(path.relative_to(path.parents[2])).encode()))
    Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(path, "JPEG")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2020/ as Kaggle unpacks it, 2019/ with train/, test/0 and extraimages/ as that competition's archives do."""
    top = tmp_path_factory.mktemp("cassava")
    lines = ["image_id,label"]
    for number in range(5 * EACH):
        noise(top / f"2020/train_images/{number:03}.jpg")
        lines.append(f"{number:03}.jpg,{number % 5}")
    (top / "2020/train.csv").write_text("\n".join(lines) + "\n")
    (top / "2020/label_num_to_disease_map.json").write_text(json.dumps(dict(enumerate(CLASSES))))
    noise(top / "2020/test_images/test.jpg")
    (top / "2020/sample_submission.csv").write_text("image_id,label\ntest.jpg,4\n")
    for name, count in OLD.items():
        for number in range(count):
            noise(top / f"2019/train/train/{name}/train-{name}-{number}.jpg")
    for number in range(2):
        noise(top / f"2019/test/test/0/test-img-{number}.jpg")
    for number in range(5):
        noise(top / f"2019/extraimages/extraimages/extra-image-{number}.jpg")
    return top


def both(home: Path) -> list[Path]:
    return [home / "2020", home / "2019"]


def counts(manifest: Manifest, source: str) -> Counter[str]:
    own = (manifest.table["source"] == source).to_numpy() & (manifest.labels >= 0)
    return Counter(manifest.classes[k] for k in manifest.labels[own])


WITH_2019 = [name for name in recipe_names() if "2019" in load_recipe(name).sources]


def test_the_recipes_with_2019_are_those_of_the_lecture():
    assert {
        "lecture-effb4-2019",
        "lecture-regnety40-2019",
        "lecture-vit-2019",
        "lecture-fixmatch",
        "lecture-avengers",
        "lecture-lb-best",
        "cassava2020-18",
        "cassava2020-25",
        "cassava2020-28",
        "cassava2020-37",
        "cassava2020-77",
        "cassava2020-606",
    } <= set(WITH_2019)


@pytest.mark.parametrize("name", WITH_2019)
def test_every_recipe_with_2019_has_five_classes(name: str, home: Path, tmp_path: Path):
    recipe = load_recipe(name, ["audit.duplicates=false"])
    with RunFolder(tmp_path / "run") as folder:
        manifest = prepare(folder, recipe, both(home), EVERYTHING_GUESSED, workers=1, weights=False)
    assert manifest.classes == CLASSES and manifest.numbers == (0, 1, 2, 3, 4)
    assert counts(manifest, "2020") == dict.fromkeys(CLASSES, EACH)
    use = recipe.sources["2019"]
    expected = {NAMES[old]: count for old, count in OLD.items() if NAMES[old] not in use.but}
    assert counts(manifest, "2019") == ({} if use.use == "unlabelled" else expected)
    old = (manifest.table["source"] == "2019").to_numpy()
    assert (manifest.fold[old] == -1).all()
    stages = [stage for one in recipe.member_recipes().values() for stage in one.stage_recipes()]
    learned = [narrow(manifest, stage.sources) for stage in stages]
    assert any((labelled | blind)[old].any() for labelled, blind in learned)


def test_all_but_mosaic_leaves_mosaic_of_2019_out(home: Path, tmp_path: Path):
    recipe = load_recipe("cassava2020-25")
    assert recipe.sources["2019"].but == ("Cassava Mosaic Disease (CMD)",)
    manifest, _ = use_sources(scan(both(home), aliases=recipe.aliases)[0], recipe.sources)
    assert "Cassava Mosaic Disease (CMD)" not in counts(manifest, "2019")
    assert sum(counts(manifest, "2019").values()) == sum(OLD.values()) - OLD["cmd"]


def test_settings_that_name_classes_are_checked_after_the_names_were_matched(home: Path):
    recipe = load_recipe("cassava2020-25")
    manifest, _ = scan(both(home), aliases=recipe.aliases)
    with pytest.raises(SettingsError, match="there is no class 'cmd'"):
        use_sources(manifest, {"2019": Source(use="train", but=("cmd",))})


def test_what_was_matched_is_printed(home: Path, capsys: pytest.CaptureFixture[str]):
    scan(both(home), aliases=load_recipe("lecture-fixmatch").aliases)
    said = capsys.readouterr().err.splitlines()
    start = said.index("Class names that were matched:")
    assert [line.split(maxsplit=3) for line in said[start + 1 : start + 7]] == [
        ["source", "name", "there", "photos  class"],
        *(["2019", old, str(count), NAMES[old]] for old, count in OLD.items()),
    ]


def test_a_file_of_names_from_the_command_line(home: Path, tmp_path: Path):
    path = tmp_path / "names.yaml"
    path.write_text("".join(f"{old}: {new}\n" for old, new in NAMES.items()))
    assert load_aliases(path) == NAMES
    manifest, _ = scan(both(home), columns=TableOptions(alias=path))
    assert manifest.classes == CLASSES
    path.write_text(json.dumps(NAMES))
    assert load_aliases(path) == NAMES
    alone, _ = scan(home / "2019", columns=TableOptions(alias=path))  # classes as a model of 2020 has them
    assert alone.classes == CLASSES


def test_recipes_names_wait_for_a_source_that_has_the_class(home: Path):
    alone, _ = scan(home / "2019", aliases=load_recipe("lecture-fixmatch").aliases)
    assert alone.classes == tuple(OLD)


@pytest.mark.parametrize("use", ["train", "unlabelled"])
def test_a_source_that_shares_no_class_is_an_error_with_both_lists(use: str, home: Path):
    manifest, _ = scan(both(home))
    assert len(manifest.classes) == 10
    with pytest.raises(SettingsError) as caught:
        use_sources(manifest, {"2019": Source(use=use)})
    words = str(caught.value) + str(caught.value.remedy)
    assert all(name in words for name in (*OLD, *CLASSES, "--alias"))
    use_sources(manifest, {"2019": Source(use="ignore")})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cbb: Blight\ncbx: Blight\n", "no source has a class 'cbx'"),
        ("cbb: cmd\ncmd: Mosaic\n", r"names.yaml:1: 'cbb' stands for 'cmd', which stands for 'Mosaic'"),
        ("cbb: [Blight]\n", "names.yaml:1.*no class"),
        ("cbb:\n", "names.yaml:1.*no class"),
        ("- cbb\n", "a list"),
    ],
)
def test_wrong_maps_are_refused(text: str, words: str, home: Path, tmp_path: Path):
    path = tmp_path / "names.yaml"
    path.write_text(text)
    with pytest.raises((DataError, SettingsError), match=words) as caught:
        scan(home / "2019", columns=TableOptions(alias=path))
    assert caught.value.remedy


def test_two_classes_of_a_map_do_not_become_one(home: Path, tmp_path: Path):
    path = tmp_path / "names.yaml"
    path.write_text(f"{CLASSES[0]}: Healthy\n")
    with pytest.raises(DataError, match="two numbers"):
        scan(home / "2020", columns=TableOptions(alias=path))


def test_extra_images_are_offered_as_unlabelled_and_are(home: Path, capsys: pytest.CaptureFixture[str]):
    scan(home / "2019")
    said = capsys.readouterr().err
    place = home / "2019/extraimages/extraimages"
    assert "another reading: 5 photographs without labels, for pseudo-labels, FixMatch or clusters: " in said
    assert f"give {place} as a source" in said
    manifest, _ = scan([home / "2019", place])
    extra = (manifest.table["source"] == "extraimages").to_numpy()
    assert extra.sum() == 5 and (manifest.labels[extra] == -1).all() and manifest.classes == tuple(OLD)


def test_a_smoke_run_matches_the_names(home: Path, tmp_path: Path):
    _, path = prepare_smoke(load_recipe("lecture-fixmatch"), both(home), tmp_path, count_stages=lambda name: 5)
    assert Manifest.load(path).classes == CLASSES


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_2019)
def test_every_recipe_with_2019_runs_whole_on_folders_as_they_are_unpacked(name: str, home: Path, tmp_path: Path):
    """Smoke runs on the class folders of 2019 beside Kaggle's folder of 2020: five classes, and 2019 is learned."""
    from manihot import pipeline
    from manihot.records.predictions import Predictions

    out = tmp_path / "run"
    pipeline.run(both(home), out, name, smoke=True, workers=1)
    manifest = Manifest.load(out / "folds.parquet")
    assert manifest.classes == CLASSES
    old = (manifest.table["source"] == "2019").to_numpy()
    assert old.any() and (manifest.fold[old] == -1).all()
    assert (manifest.labels[old] == -1).all() == (load_recipe(name).sources["2019"].use == "unlabelled")
    recipe = load_recipe(name)
    for member in recipe.member_recipes():
        told = Predictions.load(out / f"predictions/{member}.oof.parquet")
        assert told.classes == CLASSES and not np.isin(told.image_id, manifest.image_id[old]).any()
    mosaic = manifest.labels[old] == CLASSES.index("Cassava Mosaic Disease (CMD)")
    assert not (mosaic.any() and recipe.sources["2019"].but)
