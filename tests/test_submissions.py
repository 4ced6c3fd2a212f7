"""Submissions are what their sample asks for, and the check finds whatever differs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manihot.errors import DataError
from manihot.records.predictions import Predictions
from manihot.records.submissions import Sample, check_submission, save_submission
from test_scan import photo, table

CLASSES = ("blight", "mite", "rust")


def answers(ids: list[str], best: list[int], classes=CLASSES, numbers=None) -> Predictions:
    probs = np.full((len(ids), len(classes)), 0.1)
    probs[np.arange(len(ids)), best] = 1 - 0.1 * (len(classes) - 1)
    return Predictions.from_probs(np.array(ids, object), probs, classes, numbers=numbers)


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def follow(tmp_path: Path, sample: str, predictions: Predictions, paths: dict[str, str], **options) -> list[str]:
    given = Sample.load(table(tmp_path / "sample_submission.csv", sample))
    save_submission(predictions, tmp_path / "submission.csv", paths=paths, sample=given, **options)
    assert check_submission(tmp_path / "submission.csv", given.path) == []
    return lines(tmp_path / "submission.csv")


IDS = ["test_images/10.jpg", "12.jpg", "test_images/11.jpg"]
PATHS = {
    "test_images/10.jpg": "test_images/10.jpg",
    "12.jpg": "test_images/12.jpg",
    "test_images/11.jpg": "test_images/11.jpg",
}


@pytest.mark.parametrize(
    ("sample", "numbers", "expected"),
    [
        # names and another header, its own order
        (
            "image,labels\n12.jpg,rust\n10.jpg,rust\n11.jpg,rust\n",
            None,
            ["image,labels", "12.jpg,mite", "10.jpg,blight", "11.jpg,rust"],
        ),
        (
            "image_id,label\n10.jpg,4\n11.jpg,4\n12.jpg,4\n",
            (3, 1, 7),
            ["image_id,label", "10.jpg,3", "11.jpg,7", "12.jpg,1"],
        ),
        # names are asked for, though the table has numbers too
        (
            "image_id,label\n10.jpg,mite\n11.jpg,mite\n12.jpg,mite\n",
            (3, 1, 7),
            ["image_id,label", "10.jpg,blight", "11.jpg,rust", "12.jpg,mite"],
        ),
        # ids without an ending, or with a folder
        ("Id,Category\n10,rust\n11,rust\n12,rust\n", None, ["Id,Category", "10,blight", "11,rust", "12,mite"]),
        (
            "id,label\ntest_images/10.jpg,rust\ntest_images/11.jpg,rust\ntest_images/12.jpg,rust\n",
            None,
            ["id,label", "test_images/10.jpg,blight", "test_images/11.jpg,rust", "test_images/12.jpg,mite"],
        ),
        # nothing but ids: as the table has the classes
        ("id,label\n10.jpg,\n11.jpg,\n12.jpg,\n", None, ["id,label", "10.jpg,blight", "11.jpg,rust", "12.jpg,mite"]),
        ("id,label\n10.jpg,\n11.jpg,\n12.jpg,\n", (3, 1, 7), ["id,label", "10.jpg,3", "11.jpg,7", "12.jpg,1"]),
        # a column of probabilities each, in the sample's order
        (
            "image_id,rust,blight,mite\n10.jpg,0.3,0.3,0.4\n11.jpg,0.3,0.3,0.4\n12.jpg,1,0,0\n",
            None,
            ["image_id,rust,blight,mite", "10.jpg,0.1,0.8,0.1", "11.jpg,0.8,0.1,0.1", "12.jpg,0.1,0.1,0.8"],
        ),
    ],
)
def test_the_sample_is_followed_exactly(tmp_path: Path, sample: str, numbers, expected: list[str]) -> None:
    assert follow(tmp_path, sample, answers(IDS, [0, 1, 2], numbers=numbers), PATHS) == expected


def test_classes_that_are_numbers_by_name(tmp_path: Path) -> None:
    made = answers(["a.jpg", "b.jpg"], [0, 2], classes=("0", "2", "10"))
    paths = {"a.jpg": "a.jpg", "b.jpg": "b.jpg"}
    assert follow(tmp_path, "i,l\nb.jpg,2\na.jpg,2\n", made, paths) == ["i,l", "b.jpg,10", "a.jpg,0"]
    with pytest.raises(DataError, match="holds rust, but the classes are 0, 2, 10"):
        follow(tmp_path, "i,l\nb.jpg,rust\na.jpg,rust\n", made, paths)


def test_without_a_sample_ids_are_the_file_names(tmp_path: Path) -> None:
    save_submission(answers(IDS, [0, 1, 2]), tmp_path / "s.csv", paths=PATHS)
    assert lines(tmp_path / "s.csv") == ["image_id,label", "10.jpg,blight", "12.jpg,mite", "11.jpg,rust"]
    save_submission(answers(IDS, [0, 1, 2], numbers=(3, 1, 7)), tmp_path / "s.csv", {"9.jpg": 1}, PATHS)
    assert lines(tmp_path / "s.csv") == ["image_id,label", "10.jpg,3", "12.jpg,1", "11.jpg,7", "9.jpg,1"]
    twice = {"a/1.jpg": "test/a/1.jpg", "b/1.jpg": "test/b/1.jpg", "P-7": "test/a/2.jpg"}
    save_submission(answers(list(twice), [0, 1, 2]), tmp_path / "s.csv", paths=twice)
    assert lines(tmp_path / "s.csv")[1:] == ["a/1.jpg,blight", "b/1.jpg,mite", "P-7,rust"]


def test_photographs_without_an_answer(tmp_path: Path) -> None:
    sample = Sample.load(table(tmp_path / "sample.csv", "id,label\n9.jpg,x\n10.jpg,x\n8.jpg,x\n"))
    with pytest.raises(DataError, match=r"asks for 2 photographs that were not predicted, first '9\.jpg'"):
        save_submission(answers(IDS, [0, 1, 2]), tmp_path / "s.csv", paths=PATHS, sample=sample)
    assert not (tmp_path / "s.csv").exists()
    paths = {**PATHS, "test_images/9.jpg": "test_images/9.jpg"}
    said = save_submission(
        answers(IDS, [0, 1, 2]), tmp_path / "s.csv", {"test_images/9.jpg": 2}, paths, sample, otherwise=1
    )
    assert lines(tmp_path / "s.csv") == ["id,label", "9.jpg,rust", "10.jpg,blight", "8.jpg,mite"]
    assert said == [
        "1 ids of sample.csv have no photograph: 8.jpg",
        "2 photographs that sample.csv does not ask for are left out",
    ]


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ("id,label\n10.jpg,4\n11.jpg,4\n12.jpg,4\n", "holds numbers, but the classes are names without numbers"),
        ("id,label\n10.jpg,0.5\n11.jpg,0.5\n12.jpg,0.5\n", "holds numbers such as 0.5, which are not classes"),
        ("id,rust,scab\n10.jpg,1,0\n11.jpg,1,0\n12.jpg,1,0\n", "columns rust, scab are not the classes"),
        ("id\n10.jpg\n", "one column"),
        ("id,label\n10.jpg,rust\n10.jpg,rust\n", "line 3: the id '10.jpg' appears twice"),
    ],
)
def test_samples_that_cannot_be_followed(tmp_path: Path, sample: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        follow(tmp_path, sample, answers(IDS, [0, 1, 2]), PATHS)
    assert words in caught.value.what and caught.value.remedy


def test_an_id_that_fits_two_photographs(tmp_path: Path) -> None:
    paths = {"a/1.jpg": "test/a/1.jpg", "b/1.jpg": "test/b/1.jpg"}
    with pytest.raises(DataError, match=r"'1\.jpg' fits 2 photographs: test/a/1\.jpg, test/b/1\.jpg"):
        follow(tmp_path, "id,label\n1.jpg,rust\n", answers(list(paths), [0, 1]), paths)


SAMPLE = "image_id,label\na.jpg,4\nb.jpg,4\nc.jpg,4\n"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (SAMPLE.replace("4", "1"), []),
        ("image_id;label\na.jpg;1\nb.jpg;1\nc.jpg;1\n", ["first line: image_id;label; the sample's is image_id,label"]),
        ("image,label\na.jpg,1\nb.jpg,1\nc.jpg,1\n", ["header: image, label; the sample's is image_id, label"]),
        ("image_id,label\na.jpg,1\nb.jpg,1\n", ["rows: 2; the sample has 3", "1 ids of the sample are missing: c.jpg"]),
        ("image_id,label\nb.jpg,1\na.jpg,1\nc.jpg,1\n", ["order: line 2 is 'b.jpg'; the sample has 'a.jpg' there"]),
        (
            "image_id,label\na.jpg,1\na.jpg,1\nc.jpg,1\n",
            ["1 ids appear more than once: a.jpg", "1 ids of the sample are missing: b.jpg"],
        ),
        (
            "image_id,label\nx.jpg,1\nb.jpg,1\nc.jpg,1\n",
            ["1 ids of the sample are missing: a.jpg", "1 ids are not in the sample: x.jpg"],
        ),
        (
            "image_id,label\nt/a.jpg,1\nb.jpg,1\nc.jpg,1\n",
            [
                "1 ids of the sample are missing: a.jpg",
                "1 ids are not in the sample: t/a.jpg",
                "they differ in the folder or the ending of the file name",
            ],
        ),
        (
            "image_id,label\na.jpg,rust\nb.jpg,1\nc.jpg,1\n",
            ["column 'label': 1 cells are not a whole number as in the sample, first 'rust' in line 2"],
        ),
        ("image_id,label\na.jpg,1\nb.jpg,\nc.jpg,1\n", ["column 'label': 1 empty cells, first in line 3"]),
    ],
)
def test_the_check_reports_what_differs(tmp_path: Path, given: str, said: list[str]) -> None:
    assert check_submission(table(tmp_path / "s.csv", given), table(tmp_path / "sample.csv", SAMPLE)) == said


def test_the_check_of_names_and_probabilities(tmp_path: Path) -> None:
    names = table(tmp_path / "names.csv", "id,label\na,rust\nb,rust\n")
    assert check_submission(table(tmp_path / "s.csv", "id,label\na,scab\nb,mite\n"), names) == []
    found = check_submission(table(tmp_path / "s.csv", "id,label\na,scab\nb,3\n"), names)
    assert found == ["column 'label': 1 cells are not a name as in the sample, first '3' in line 3"]
    probs = table(tmp_path / "p.csv", "id,x,y\na,0.5,0.5\nb,0.5,0.5\n")
    found = check_submission(table(tmp_path / "s.csv", "id,x,y\na,0.5,nan\nb,1,0\n"), probs)
    assert found == ["column 'y': 1 cells are not a finite number as in the sample, first 'nan' in line 2"]


def kaggle(home: Path, photos: Path) -> Path:
    """A competition whose test names stand in train too, with names for classes and a sample of its own header."""
    files = sorted(photos.glob("*/*[0-9].jpg"))
    rows = []
    for k, file in enumerate(files):
        target = home / ("test_images" if k % 5 == 0 else "train_images") / f"{k % 45}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.write_bytes(file.read_bytes())
            if k % 5:
                rows.append((target.name, file.parent.name))
    copied = home / "test_images" / rows[0][0]
    copied.write_bytes((home / "train_images" / rows[1][0]).read_bytes())
    pd.DataFrame(rows, columns=["image", "labels"]).to_csv(home / "train.csv", index=False)
    ids = sorted((path.name for path in (home / "test_images").iterdir()), reverse=True)
    table(home / "sample_submission.csv", "image,labels\n" + "".join(f"{name},healthy\n" for name in ids))
    return home


def test_a_run_writes_what_the_sample_asks_for(small_photos: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    from manihot import pipeline
    from manihot.engines import predict as predict_files

    home = kaggle(tmp_path / "in", small_photos)
    out = tmp_path / "run"
    pipeline.run(home, out, str(tiny_recipe), workers=1, report=False)
    assert check_submission(out / "submission.csv", home / "sample_submission.csv") == []
    found = pd.read_csv(out / "submission.csv")
    assert list(found.columns) == ["image", "labels"] and set(found["labels"]) <= {"red", "green", "blue spots"}
    test = Predictions.load(out / "predictions/main.test.parquet")
    best = dict(zip((name.rsplit("/", 1)[-1] for name in test.image_id), test.logits.argmax(axis=1)))
    assert len(best) == len(found) and any("/" in name for name in test.image_id)
    assert found["labels"].tolist() == [test.classes[best[name]] for name in found["image"]]
    predict_files(out, home / "test_images", tmp_path / "submission.csv", device="cpu", tta=1)
    assert check_submission(tmp_path / "submission.csv", home / "sample_submission.csv") == []


def test_a_sample_of_another_spelling_is_found(tmp_path: Path) -> None:
    from manihot.photos.scan import scan

    photo(tmp_path / "in/train/a/1.jpg"), photo(tmp_path / "in/train/b/2.jpg"), photo(tmp_path / "in/test/3.jpg")
    table(tmp_path / "in/SampleSubmission.csv", "file,label\n3.jpg,a\n")
    scan(tmp_path / "in", out=tmp_path / "run")
    assert lines(tmp_path / "run/sample_submission.csv") == ["file,label", "3.jpg,a"]


def test_classes_known_by_columns_alone_are_numbers(tmp_path: Path) -> None:
    save_submission(answers(["a", "b"], [1, 0], classes=("c0", "c1")), tmp_path / "s.csv")
    assert lines(tmp_path / "s.csv") == ["image_id,label", "a,1", "b,0"]


def test_the_command_checks_a_submission(tmp_path: Path, capsys) -> None:
    from manihot.cli import answer

    sample = table(tmp_path / "sample.csv", SAMPLE)
    for text, code, words in ((SAMPLE, 0, "as "), (SAMPLE.replace("a.jpg", "x.jpg"), 3, "not in the sample: x.jpg")):
        given = table(tmp_path / "s.csv", text)
        assert answer(["check-submission", str(given), str(sample)]) == code
        assert words in capsys.readouterr().out
