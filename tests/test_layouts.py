"""What a folder is: every layout with the reading that it must get, what is printed of it, and no silent guess."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

import manihot
from manihot.errors import DataError, SettingsError
from manihot.photos.folders import split_of
from manihot.photos.image_paths import Files
from manihot.photos.labels import find_several
from manihot.photos.layouts import recognise
from manihot.photos.scan import scan
from manihot.photos.tables import Columns
from manihot.settings.options import TableOptions
from test_scan import labels_of, photo, table


def make(home: Path, *names: str) -> Path:
    for name in names:
        photo(home / name)
    return home


def read(home: Path, **options) -> dict[str, tuple[str | None, str]]:
    """path below `home` -> (class, split) of every photograph."""
    manifest, _ = scan(home, columns=TableOptions(**options))
    names = [*manifest.classes, None]
    return {
        path.relative_to(home).as_posix(): (names[label], split)
        for path, label, split in zip(manifest.paths, manifest.labels, manifest.table["split"])
    }


def kind(home: Path) -> tuple[str, str | None]:
    listing = recognise(home, Columns(), None, None, None)
    return listing.kind, listing.pattern


# ---------------------------------------------------------------------------------- folders


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Train", "train"),
        ("TRAINING", "train"),
        ("training_set", "train"),
        ("seg_train", "train"),
        ("Train images", "train"),
        ("valid", "val"),
        ("Validation", "val"),
        ("val-data", "val"),
        ("dev", "val"),
        ("test", "test"),
        ("Testing", "test"),
        ("test_images", "test"),
        ("trains", None),
        ("train1", None),
        ("test_rust", None),
        ("train_test", None),
        ("images", None),
    ],
)
def test_names_of_splits(name: str, split: str | None) -> None:
    assert split_of(name) == split


TREES = [
    # files, pattern, {file: (class, split)}
    (["a/1.jpg", "b/2.jpg"], "{class}", {"a/1.jpg": ("a", "train"), "b/2.jpg": ("b", "train")}),
    (
        ["Train/a/1.jpg", "Train/b/2.jpg", "Valid/a/3.jpg", "Test/b/4.jpg"],
        "{split}/{class}",
        {
            "Train/a/1.jpg": ("a", "train"),
            "Train/b/2.jpg": ("b", "train"),
            "Valid/a/3.jpg": ("a", "val"),
            "Test/b/4.jpg": ("b", "test"),
        },
    ),
    (
        ["training/a/1.jpg", "training/b/2.jpg", "validation/a/3.jpg", "testing/b/4.jpg"],
        "{split}/{class}",
        {
            "training/a/1.jpg": ("a", "train"),
            "training/b/2.jpg": ("b", "train"),
            "validation/a/3.jpg": ("a", "val"),
            "testing/b/4.jpg": ("b", "test"),
        },
    ),
    (  # as Kaggle's archives unpack
        ["train/train/a/1.jpg", "train/train/b/2.jpg", "test/test/3.jpg"],
        "{split}/{class}",
        {
            "train/train/a/1.jpg": ("a", "train"),
            "train/train/b/2.jpg": ("b", "train"),
            "test/test/3.jpg": (None, "test"),
        },
    ),
    (
        ["seg_train/seg_train/a/1.jpg", "seg_train/seg_train/b/2.jpg", "seg_test/seg_test/a/3.jpg"],
        "{split}/{class}",
        {
            "seg_train/seg_train/a/1.jpg": ("a", "train"),
            "seg_train/seg_train/b/2.jpg": ("b", "train"),
            "seg_test/seg_test/a/3.jpg": ("a", "test"),
        },
    ),
    (
        ["train/images/a/1.jpg", "train/images/b/2.jpg", "val/images/a/3.jpg"],
        "{split}/{class}",
        {
            "train/images/a/1.jpg": ("a", "train"),
            "train/images/b/2.jpg": ("b", "train"),
            "val/images/a/3.jpg": ("a", "val"),
        },
    ),
    (  # splits below the classes
        ["a/train/1.jpg", "a/test/2.jpg", "b/train/3.jpg", "b/val/4.jpg"],
        "{class}/{split}",
        {
            "a/train/1.jpg": ("a", "train"),
            "a/test/2.jpg": ("a", "test"),
            "b/train/3.jpg": ("b", "train"),
            "b/val/4.jpg": ("b", "val"),
        },
    ),
    (  # vehicles, one of which is called train
        ["bus/1.jpg", "car/2.jpg", "train/3.jpg"],
        "{class}",
        {"bus/1.jpg": ("bus", "train"), "car/2.jpg": ("car", "train"), "train/3.jpg": ("train", "train")},
    ),
    (["1.jpg", "2.jpg"], "", {"1.jpg": (None, "train"), "2.jpg": (None, "train")}),
    (["train/1.jpg", "test/2.jpg"], "{split}/{class}", {"train/1.jpg": (None, "train"), "test/2.jpg": (None, "test")}),
]


@pytest.mark.parametrize(("files", "pattern", "expected"), TREES)
@pytest.mark.parametrize("wrapper", ["", "archive", "archive/PlantVillage"])
def test_folders(tmp_path: Path, files: list[str], pattern: str, expected: dict, wrapper: str) -> None:
    make(tmp_path / "in" / wrapper, *files)
    start = f"{wrapper}/" if wrapper else ""
    if wrapper and not pattern:  # a lone folder of photographs may be a class
        above, _, last = wrapper.rpartition("/")
        expected = {name: (last, split) for name, (_, split) in expected.items()}
        pattern = f"{above}/{{class}}" if above else "{class}"
    elif pattern:  # told from the place that is named
        pattern = start + pattern
    assert read(tmp_path / "in") == {start + name: value for name, value in expected.items()}
    assert kind(tmp_path / "in")[1] == pattern


def test_a_wrapper_with_folders_beside_it_that_hold_no_photograph(tmp_path: Path) -> None:
    make(tmp_path, "images/a/1.jpg", "images/b/2.jpg")
    table(tmp_path / "annotations/1.xml", "<x/>")
    assert read(tmp_path) == {"images/a/1.jpg": ("a", "train"), "images/b/2.jpg": ("b", "train")}


def test_what_was_recognised_is_printed(tmp_path: Path, capsys) -> None:
    make(tmp_path, *(f"class{k:02d}/{k}.jpg" for k in range(12)))
    scan(tmp_path)
    said = capsys.readouterr().err
    names = ", ".join(f"class{k:02d}" for k in range(10))
    assert "class folders, 12 photographs" in said and f"12 classes: {names} and 2 more" in said


def test_two_levels_are_offered(tmp_path: Path, capsys) -> None:
    files = [f"Birds/{name}/{k}.jpg" for name in ("Sparrow", "Swift") for k in range(2)]
    make(tmp_path, *files, *(f"Insects/{name}/{k}.jpg" for name in ("Bee", "Fly", "Wasp") for k in range(2)))
    manifest, _ = scan(tmp_path)
    assert manifest.classes == ("Birds", "Insects")
    said = capsys.readouterr().err
    assert "2 classes: Birds, Insects" in said
    assert "another reading: 5 classes two folders deep: Birds/Sparrow, Birds/Swift" in said
    assert "--folders '{class}/{class}'" in said
    deeper, _ = scan(tmp_path, columns=TableOptions(folders="{class}/{class}"))
    assert deeper.classes == ("Birds/Sparrow", "Birds/Swift", "Insects/Bee", "Insects/Fly", "Insects/Wasp")
    below, _ = scan(tmp_path, columns=TableOptions(folders="*/{class}"))
    assert below.classes == ("Bee", "Fly", "Sparrow", "Swift", "Wasp")


@pytest.mark.parametrize("name", ["labels.json", "labels.txt", "annotations.xml"])
def test_labels_in_a_file_that_is_no_table_are_named(tmp_path: Path, name: str, capsys) -> None:
    make(tmp_path, *(f"images/{k}.jpg" for k in range(6)))
    (tmp_path / name).write_text("\n".join(f"{k}.jpg rust" for k in range(6)), encoding="utf-8")
    (tmp_path / "notes.txt").write_text("photographed in May", encoding="utf-8")
    manifest, _ = scan(tmp_path)
    said = " ".join(capsys.readouterr().err.split())
    assert f"{name} names photographs here, but only tables are read" in said and "notes.txt names" not in said
    assert manifest.classes == () and "one class 'images': --folders '{class}'" in said
    assert scan(tmp_path, columns=TableOptions(folders="{class}"))[0].classes == ("images",)


def test_a_column_of_a_table_that_is_not_used_says_why(tmp_path: Path) -> None:
    make(tmp_path, *(f"images/{k}.jpg" for k in range(6)))
    table(tmp_path / "labels.csv", "file,disease\n" + "".join(f"{k}.jpg,rust,2020\n" for k in range(6)))
    with pytest.raises(DataError, match=r"photographs without labels; labels\.csv is not used: line 2: 3 fields"):
        scan(tmp_path, columns=TableOptions(label="disease"))


def test_three_levels_are_offered(tmp_path: Path, capsys) -> None:
    animals = {"Birds": ("Owl", "Swift"), "Insects": ("Bee", "Fly")}
    make(tmp_path / "a", *(f"Wild/{k}/{n}/{i}.jpg" for k, names in animals.items() for n in names for i in range(2)))
    make(tmp_path / "a", *(f"Kept/Pets/{n}/{i}.jpg" for n in ("Cat", "Dog") for i in range(2)))
    scan(tmp_path / "a")
    said = capsys.readouterr().err
    assert "6 classes 3 folders deep: Kept/Pets/Cat" in said and "--folders '{class}/{class}/{class}'" in said
    manifest, _ = scan(tmp_path / "a", columns=TableOptions(folders="{class}/{class}/{class}"))
    assert len(manifest.classes) == 6
    months = [f"{y}/{m}/{c}/{y}{m}{i}.jpg" for y in (2019, 2020) for m in "56" for c in ("rust", "scab") for i in "12"]
    make(tmp_path / "b", *months)
    scan(tmp_path / "b")
    said = capsys.readouterr().err
    assert "2 classes, the names 3 folders deep: rust, scab: --folders '*/*/{class}'" in said
    manifest, _ = scan(tmp_path / "b", columns=TableOptions(folders="*/*/{class}"))
    assert manifest.classes == ("rust", "scab") and len(manifest.table) == 16


def test_sources_and_plants_as_folders(tmp_path: Path, capsys) -> None:
    make(tmp_path / "years", *(f"{y}/{c}/{y}_{k}.jpg" for y in (2019, 2020) for c in ("rust", "scab") for k in (1, 2)))
    scan(tmp_path / "years")
    assert "2 classes in 2 sources: rust, scab: --folders '{source}/{class}'" in capsys.readouterr().err
    manifest, _ = scan(tmp_path / "years", columns=TableOptions(folders="{source}/{class}"))
    assert manifest.classes == ("rust", "scab")
    assert manifest.table["source"].value_counts().to_dict() == {"2019": 4, "2020": 4}
    make(tmp_path / "plants", *(f"{c}/plant{p}/{p}{k}.jpg" for c in ("rust", "scab") for p in range(4) for k in (1, 2)))
    scan(tmp_path / "plants")
    assert "--folders '{class}/{group}'" in capsys.readouterr().err
    manifest, _ = scan(tmp_path / "plants", columns=TableOptions(folders="{class}/{group}"))
    assert manifest.classes == ("rust", "scab") and manifest.table["group"].nunique() == 8
    assert manifest.table["group"].iloc[0] == "rust/plant0"


def test_options_for_other_readings_are_followed(tmp_path: Path) -> None:
    """Every reading that a scan offers is one that a scan can make."""
    make(tmp_path, *(f"train/{a}/{b}/{k}.jpg" for a in "xy" for b in "pqr" for k in range(2)), "test/x/p/9.jpg")
    listing = recognise(tmp_path, Columns(), None, None, None)
    offered = [line.split("--folders '")[1].rstrip("'") for line in listing.otherwise]
    assert offered[:2] == ["{split}/{class}/{class}", "{split}/{source}/{class}"]
    counts = [len(scan(tmp_path, columns=TableOptions(folders=pattern))[0].classes) for pattern in offered[:2]]
    assert counts == [6, 3]


@pytest.mark.parametrize("pattern", ["{klass}", "x*", "{split}/{split}", "{class"])
def test_patterns_that_are_wrong(tmp_path: Path, pattern: str) -> None:
    make(tmp_path, "a/1.jpg")
    with pytest.raises(SettingsError, match="--folders"):
        scan(tmp_path, columns=TableOptions(folders=pattern))


def test_a_pattern_that_fits_nothing(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jpg")
    with pytest.raises(DataError, match=r"no photograph lies in folders that fit --folders 'b/\{class\}'.*lies in a"):
        scan(tmp_path, columns=TableOptions(folders="b/{class}"))
    with pytest.raises(SettingsError, match="names the photographs itself"):
        scan(table(tmp_path / "t.csv", "image,label\na/1.jpg,x\n"), columns=TableOptions(folders="{class}"))


def test_train_and_Train_are_both_read(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.jpg", "Train/b/2.jpg")
    assert read(tmp_path) == {"train/a/1.jpg": ("a", "train"), "Train/b/2.jpg": ("b", "train")}


@pytest.mark.parametrize(
    ("one", "two"), [("Leaf spot", "leaf_spot_"), ("leafspot", "Leaf-Spot"), ("caf\u00e9", "cafe\u0301"), ("-", "_")]
)
def test_twins_in_spaces_and_accents(tmp_path: Path, one: str, two: str) -> None:
    table(
        tmp_path / "t.csv", "image,label\n" + "".join(f"{k}.jpg,{name}\n" for k, name in enumerate((one, two, "rust")))
    )
    make(tmp_path, *(f"{k}.jpg" for k in range(3)))
    found, _ = scan(tmp_path, columns=TableOptions(merge_case=True, keep_na=True))
    assert len(found.classes) == (3 if one == "-" else 2)


def test_twins_in_capitals(tmp_path: Path, capsys) -> None:
    make(tmp_path, "Rust/1.jpg", "rust/2.jpg", "rust/3.jpg", "leaf spot/4.jpg", "leaf_spot/5.jpg")
    assert scan(tmp_path)[0].classes == ("Rust", "leaf spot", "leaf_spot", "rust")
    said = capsys.readouterr().err
    assert "'Rust' (1) and 'rust' (2) differ in capitals" in said and "--merge-case" in said
    assert "'leaf spot' (1) and 'leaf_spot' (1)" in said
    merged, _ = scan(tmp_path, columns=TableOptions(merge_case=True))
    assert merged.classes == ("leaf spot", "rust") and list(merged.class_counts()) == [2, 3]


# ------------------------------------------------------------------------- tables beside photographs


def test_a_table_beside_a_folder_of_images_is_used(tmp_path: Path, capsys) -> None:
    make(tmp_path, *(f"images/{k}.jpg" for k in range(12)))
    table(tmp_path / "labels.csv", "filename,label\n" + "".join(f"{k}.jpg,{'xy'[k % 2]}\n" for k in range(12)))
    manifest, _ = scan(tmp_path)
    assert manifest.classes == ("x", "y") and list(manifest.class_counts()) == [6, 6]
    said = capsys.readouterr().err
    assert "labels.csv" in said and "images/{filename}" in said and "without labels: --folders ''" in said
    assert "ignored" not in said
    assert scan(tmp_path, columns=TableOptions(folders="{class}"))[0].classes == ("images",)


def test_a_table_against_folders_stops_with_both_options(tmp_path: Path) -> None:
    make(tmp_path, *(f"images/{k}.jpg" for k in range(12)), "plots/a.png", "plots/b.png")
    listed = table(tmp_path / "labels.csv", "filename,label\n" + "".join(f"{k}.jpg,{'xy'[k % 2]}\n" for k in range(12)))
    with pytest.raises(DataError) as caught:
        scan(tmp_path)
    assert "labels.csv names 12 of 14 photographs" in caught.value.what and "images/, plots/" in caught.value.what
    assert f"{listed} --image 'images/{{filename}}'" in caught.value.remedy
    assert "--folders '{class}'" in caught.value.remedy
    assert scan(listed, columns=TableOptions(image="images/{filename}"))[0].classes == ("x", "y")
    assert scan(tmp_path, columns=TableOptions(folders="{class}"))[0].classes == ("images", "plots")


@pytest.mark.parametrize("places", [["{k}.jpg"], ["photos/{k}.jpg"], ["part1/{k}.jpg", "part2/{k}.jpg"]])
@pytest.mark.parametrize("form", ["{k}.jpg", "{k}"])
def test_tables_find_their_photographs(tmp_path: Path, places: list[str], form: str) -> None:
    for k in range(10):
        photo(tmp_path / places[k % len(places)].format(k=f"img{k}"))
    rows = "".join(f"{form.format(k=f'img{k}')},{'xy'[k % 2]}\n" for k in range(10))
    table(tmp_path / "meta.csv", "image_id,diagnosis\n" + rows)
    if len(places) == 2:  # two folders that could be classes
        with pytest.raises(DataError, match="which column is the class is not obvious") as caught:
            scan(tmp_path)
        assert "--label 'diagnosis'" in caught.value.remedy
    manifest, _ = scan(tmp_path, columns=TableOptions(label="diagnosis"))
    assert manifest.classes == ("x", "y") and len(manifest) == 10


def test_a_table_in_a_folder_of_its_own(tmp_path: Path, capsys) -> None:
    make(tmp_path, *(f"images/{k}.jpg" for k in range(12)))
    rows = "".join(f"{k}.jpg,{'xy'[k % 2]}\n" for k in range(12))
    listed = table(tmp_path / "annotations/labels.csv", "filename,label\n" + rows)
    assert scan(tmp_path)[0].classes == ("x", "y")
    make(tmp_path, "plots/a.png", "plots/b.png")
    with pytest.raises(DataError, match=r"labels\.csv names 12 of 14 photographs") as caught:
        scan(tmp_path)
    assert f"add --csv {listed} --image 'images/{{filename}}'" in caught.value.remedy
    asked = TableOptions(csv=listed, image="images/{filename}")
    assert list(scan(tmp_path, columns=asked)[0].class_counts()) == [6, 6]


def test_lists_of_splits_beside_class_folders_change_nothing(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg")
    for name in ("train", "val"):
        table(tmp_path / f"splits/{name}.csv", "image,label\na/1.jpg,a\na/2.jpg,a\nb/3.jpg,b\n")
    assert list(scan(tmp_path)[0].class_counts()) == [2, 2]


def test_class_folders_named_as_missing_labels_are_remarked_on(tmp_path: Path, capsys) -> None:
    make(tmp_path, "rust/1.jpg", "nan/2.jpg", "scab/3.jpg")
    assert scan(tmp_path)[0].classes == ("nan", "rust", "scab")
    said = " ".join(capsys.readouterr().err.split())
    assert "folders nan/ count as classes, though their names say that the label is missing" in said


def test_a_table_that_agrees_with_the_folders(tmp_path: Path, capsys) -> None:
    make(tmp_path, "a/1.jpg", "a/2.jpg", "b/3.jpg")
    table(tmp_path / "t.csv", "image,label\n1.jpg,a\n2.jpg,a\n3.jpg,b\n")
    assert scan(tmp_path)[0].classes == ("a", "b")
    assert "t.csv says the same as the folders of 3 photographs" in capsys.readouterr().err
    table(tmp_path / "t.csv", "image,label\n1.jpg,a\n2.jpg,b\n3.jpg,b\n")
    with pytest.raises(DataError, match=r"they differ for 1 of them, first a/2\.jpg: 'b' in the table, 'a' by"):
        scan(tmp_path)


def test_a_table_that_names_a_minority_stops(tmp_path: Path) -> None:
    make(tmp_path, *(f"images/{k}.jpg" for k in range(20)))
    listed = table(tmp_path / "l.csv", "image,label\n1.jpg,a\n2.jpg,b\n3.jpg,b\n")
    with pytest.raises(DataError, match=r"l\.csv names 3 of 20 photographs only") as caught:
        scan(tmp_path)
    assert f"{listed} --image 'images/{{image}}'" in caught.value.remedy
    assert len(scan(listed, columns=TableOptions(image="images/{image}"))[0]) == 3


def test_two_tables_with_labels_stop(tmp_path: Path) -> None:
    make(tmp_path, *(f"images/{k}.jpg" for k in range(4)))
    for name in ("one.csv", "two.csv"):
        table(tmp_path / name, "image,label\n" + "".join(f"{k}.jpg,x{k % 2}\n" for k in range(4)))
    with pytest.raises(DataError, match=r"one\.csv, two\.csv each name its photographs"):
        scan(tmp_path)


def test_tables_of_other_things_are_left_out_with_the_reason(tmp_path: Path, capsys) -> None:
    make(tmp_path, "a/1.jpg", "b/2.jpg")
    table(tmp_path / "weather.csv", "day,rain\nMonday,2\nFriday,3\n")
    table(tmp_path / "broken.csv", "a,b\n1,2,3\n")
    table(tmp_path / "old.csv", "image_id,label,c0,c1\n1.jpg,-1,0.5,0.5\n2.jpg,-1,0.5,0.5\n")
    assert scan(tmp_path)[0].classes == ("a", "b")
    said = capsys.readouterr().err
    assert "weather.csv is not used: it names none of the photographs" in said
    assert "broken.csv is not used: line 2: 3 fields under 2 columns" in said
    assert "old.csv is not used: it holds predictions" in said


def test_photographs_of_a_test_folder_beside_a_table(tmp_path: Path) -> None:
    make(tmp_path, *(f"train/{k}.jpg" for k in range(4)), "test/8.jpg", "test/9.jpg")
    table(tmp_path / "train.csv", "id,label\n" + "".join(f"{k},{'xy'[k % 2]}\n" for k in range(4)))
    assert read(tmp_path) == {
        "train/0.jpg": ("x", "train"),
        "train/1.jpg": ("y", "train"),
        "train/2.jpg": ("x", "train"),
        "train/3.jpg": ("y", "train"),
        "test/8.jpg": (None, "test"),
        "test/9.jpg": (None, "test"),
    }


def test_photographs_to_predict_are_not_limited_by_a_table(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    table(tmp_path / "l.csv", "image,label\n1.jpg,a\n2.jpg,b\n")
    assert len(scan(tmp_path)[0]) == 2
    assert labels_of(scan(tmp_path, tables=False)[0]) == {"1.jpg": None, "2.jpg": None, "3.jpg": None}


# --------------------------------------------------------------------------------------- advice


def test_only_a_pattern_that_finds_all_is_advised(tmp_path: Path) -> None:
    for k in range(12):
        photo(tmp_path / f"train_images/{('rust', 'scab', 'mite')[k % 3]}/{k}.jpg")
    rows = "".join(f"{k},{('rust', 'scab', 'mite')[k % 3]}\n" for k in range(12))
    table(tmp_path / "train.csv", "image_id,label\n" + rows)
    with pytest.raises(DataError, match="none of the 12 photographs exists") as caught:
        scan(tmp_path)
    assert "--image '{label}/{image_id}.jpg' (it finds all 12)" in caught.value.remedy
    manifest, _ = scan(tmp_path, columns=TableOptions(image="{label}/{image_id}.jpg"))
    assert manifest.classes == ("mite", "rust", "scab") and list(manifest.class_counts()) == [4, 4, 4]
    with pytest.raises(DataError, match="only 4 of the 12 photographs exist, the first that is missing") as caught:
        scan(tmp_path, columns=TableOptions(image="rust/{image_id}.jpg"))
    assert "--image '{label}/{image_id}.jpg' (it finds all 12)" in caught.value.remedy
    assert len(scan(tmp_path, columns=TableOptions(image="rust/{image_id}.jpg", allow_missing=True))[0]) == 4


def test_a_star_is_any_folder(tmp_path: Path) -> None:
    make(tmp_path, "part_1/1.jpg", "part_2/2.jpg", "other/3.jpg")
    listed = table(tmp_path / "t.csv", "id,label\n1,a\n2,b\n3,b\n")
    with pytest.raises(DataError) as caught:
        scan(listed, columns=TableOptions(image="{id}"))
    assert "--image '*/{id}.jpg' (it finds all 3)" in caught.value.remedy
    assert len(scan(listed, columns=TableOptions(image="*/{id}.jpg"))[0]) == 3
    manifest, quarantine = scan(listed, columns=TableOptions(image="part_*/{id}.jpg"))
    assert list(manifest.image_id) == ["1.jpg", "2.jpg"] and list(quarantine["fault"]) == ["missing"]
    photo(tmp_path / "part_1/2.jpg")
    with pytest.raises(DataError, match=r"line 3: 'part_\*/2\.jpg' stands for 2 files: part_1/2\.jpg, part_2/2\.jpg"):
        scan(listed, columns=TableOptions(image="part_*/{id}.jpg"))


def test_a_table_most_of_whose_photographs_are_missing(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.jpg")
    listed = table(tmp_path / "t.csv", "image,label\n" + "".join(f"{k}.jpg,{'xy'[k % 2]}\n" for k in range(1, 9)))
    with pytest.raises(DataError, match="only 2 of the 8 photographs exist") as caught:
        scan(listed)
    assert "--allow-missing" in caught.value.remedy and "--image" not in caught.value.remedy
    assert len(scan(listed, columns=TableOptions(allow_missing=True))[0]) == 2


def test_proposals_are_counted_on_all_rows(tmp_path: Path) -> None:
    make(tmp_path, *(f"a/{k}.jpg" for k in range(5)), *(f"b/{k}.jpg" for k in range(5, 7)))
    frame = pd.DataFrame({"n": [str(k) for k in range(8)]})
    found = dict(Files(tmp_path).propose(frame["n"], frame, "n"))
    assert found == {"*/{n}.jpg": 7, "a/{n}.jpg": 5, "b/{n}.jpg": 2}


def test_file_names_that_begin_with_the_class_are_no_groups(tmp_path: Path, capsys) -> None:
    from manihot.records.groups import propose_name_pattern

    birds = ["sparrow", "swift", "robin", "crow"]
    make(tmp_path, *(f"{bird}/{bird}_{k:03d}.jpg" for bird in birds for k in range(8)))
    manifest, _ = scan(tmp_path)
    assert propose_name_pattern(manifest) is None
    with pytest.raises(DataError, match=r"4 of 4 classes lie in one group each, such as 'crow'") as caught:
        scan(tmp_path, columns=TableOptions(group="{group}_*"))
    assert "--group {group}_*" in caught.value.what and "--group ''" in caught.value.remedy


def test_a_column_of_groups_that_is_the_classes_again_is_refused(tmp_path: Path) -> None:
    make(tmp_path, *(f"{k}.jpg" for k in range(20)))
    near = [f"P{k % 2}" if k < 18 else "P9" for k in range(20)]  # nearly: one of ten in each class stands apart
    rows = "".join(f"{k}.jpg,{'xy'[k % 2]},{near[k]}\n" for k in range(20))
    listed = table(tmp_path / "t.csv", f"image,label,plot\n{rows}")
    assert len(scan(listed)[0]) == 20
    with pytest.raises(DataError, match="2 of 2 classes lie in one group each"):
        scan(listed, columns=TableOptions(group="plot"))


def test_one_class_of_one_plant_is_a_warning(tmp_path: Path, capsys) -> None:
    make(tmp_path, *(f"{k}.jpg" for k in range(24)))
    rows = "".join(f"{k}.jpg,{'xyz'[k % 3]},{'P' if k % 3 == 2 else f'Q{k}'}\n" for k in range(24))
    listed = table(tmp_path / "t.csv", f"image,label,plant\n{rows}")
    manifest, _ = scan(listed, columns=TableOptions(group="plant"))
    assert manifest.table["group"].nunique() == 17
    assert "1 of 3 classes lie in one group each, such as 'z' in 'P' (8 of 8" in capsys.readouterr().err


def test_groups_of_several_plants_a_class_are_taken(tmp_path: Path, capsys) -> None:
    make(tmp_path, *(f"{c}/plant{p}{c}_{k}.jpg" for c in "ab" for p in range(3) for k in range(4)))
    manifest, _ = scan(tmp_path, columns=TableOptions(group="{group}_*"))
    assert manifest.table["group"].nunique() == 6 and "in one group" not in capsys.readouterr().err


# --------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["scab", "frog_eye_leaf_spot", "scab frog_eye_leaf_spot"], ["scab frog_eye_leaf_spot"]),
        (["rust", "rust|scab", "mite"], ["rust|scab"]),
        (["rust, mite", "mite, scab"], ["rust, mite", "mite, scab"]),
        (["rust", "scab", "rust and scab"], ["rust and scab"]),
        (["rust", "mite", "rust/mite", "rust + mite"], ["rust + mite", "rust/mite"]),
        (["red rust", "red spot", "healthy"], []),
        (["leaf, upper side", "leaf spot"], []),
        (["black rot", "rot"], []),
    ],
)
def test_labels_that_hold_several(names: list[str], expected: list[str]) -> None:
    assert sorted(find_several(Counter(names))) == sorted(expected)


def test_several_labels_in_a_cell_are_remarked(tmp_path: Path, capsys) -> None:
    names = ["scab", "scab", "rust", "rust scab", "rust scab"]
    make(tmp_path, *(f"{k}.jpg" for k in range(5)))
    listed = table(tmp_path / "t.csv", "image,labels\n" + "".join(f"{k}.jpg,{n}\n" for k, n in enumerate(names)))
    assert scan(listed)[0].classes == ("rust", "rust scab", "scab")
    said = capsys.readouterr().err
    assert "1 of 3 labels (2 of 5 photographs) seem to hold several classes: 'rust scab' (2): rust + scab" in said


def test_options_are_told_from_the_place_that_was_named(tmp_path: Path) -> None:
    make(tmp_path, *(f"photos/{name}/{k}.jpg" for name in ("Birds/Owl", "Birds/Jay", "Insects/Bee") for k in range(2)))
    listing = recognise(tmp_path, Columns(), None, None, None)
    options = [text.rpartition("--folders ")[2].strip("'") for text in listing.otherwise]
    assert "photos/{class}/{class}" in options
    found, _ = scan(tmp_path, columns=TableOptions(folders="photos/{class}/{class}"))
    assert found.classes == ("Birds/Jay", "Birds/Owl", "Insects/Bee")


@pytest.mark.parametrize("above", ["", "photos/"])
def test_a_table_that_gives_the_names_of_other_folders_contradicts_them(tmp_path: Path, above: str) -> None:
    make(tmp_path, *(f"{above}{name}/{name}{k}.jpg" for name in ("rust", "ok") for k in range(3)))
    rows = [f"{name}{k}.jpg,{other}\n" for name, other in (("rust", "ok"), ("ok", "rust")) for k in range(3)]
    table(tmp_path / "labels.csv", "image,label\n" + "".join(rows))
    with pytest.raises(DataError, match="differ for 6 of them") as caught:
        scan(tmp_path)
    assert f"--folders '{above}{{class}}'" in str(caught.value.remedy)
    found, _ = scan(tmp_path, columns=TableOptions(folders=f"{above}{{class}}"))
    assert found.classes == ("ok", "rust")
    table(tmp_path / "labels.csv", "image,label\n" + "".join(rows).replace("ok\n", "0\n").replace("rust\n", "1\n"))
    assert scan(tmp_path)[0].classes == ("ok", "rust")  # numbers for the folders


def test_metadata_without_file_names_is_a_table_like_any_other(tmp_path: Path) -> None:
    make(tmp_path, *(f"pics/{k}.jpg" for k in range(4)))
    table(tmp_path / "metadata.csv", "file,class\n" + "".join(f"{k}.jpg,{'ab'[k % 2]}\n" for k in range(4)))
    assert scan(tmp_path)[0].classes == ("a", "b")


@pytest.mark.parametrize("each", [3, 6])
def test_file_names_that_begin_with_a_small_class_are_no_groups(tmp_path: Path, each: int, capsys) -> None:
    make(tmp_path, *(f"{name}/{name}_{k}.jpg" for name in ("owl", "jay", "bee") for k in range(each)))
    manihot.scan(tmp_path, out=tmp_path.with_name("run"))
    assert "look grouped" not in capsys.readouterr().err
    with pytest.raises(DataError, match="3 of 3 classes lie in one group each"):
        manihot.scan(tmp_path, out=tmp_path.with_name("two"), columns=TableOptions(group="{group}_*"))
