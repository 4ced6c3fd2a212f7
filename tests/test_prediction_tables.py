"""Tables of predictions that others wrote: labels by name or number, and what is wrong named with its line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manihot.cli import app
from manihot.errors import DataError
from manihot.records.predictions import Predictions
from manihot.records.probabilities import TINY

THREE = "0.2,0.3,0.5"


def load(folder: Path, text: str, classes: tuple[str, ...] | None = None) -> Predictions:
    path = folder / "p.csv"
    path.write_bytes(text.encode("utf-8"))
    return Predictions.load(path, classes)


def rows(header: str, labels: list[str]) -> str:
    lines = [f"{k}.jpg,{label},{THREE}" for k, label in enumerate(labels)]
    return "\n".join([f"image_id,label,{header}", *lines, ""])


# labels by name or by number


@pytest.mark.parametrize(
    ("header", "labels", "expected"),
    [
        ("1,2,3", ["1", "2", "3", "-1", ""], [0, 1, 2, -1, -1]),
        ("1,2,3", ["1", "1", "2"], [0, 0, 1]),  # would fit as positions too: names come first
        ("2,1,0", ["0", "1", "2"], [2, 1, 0]),
        ("0,1,2", ["0", "1", "2"], [0, 1, 2]),
        ("1,2,3", ["1.0", "2.0", "3.0"], [0, 1, 2]),  # a column of numbers with gaps, as pandas writes it
        ("01,02,03", ["1", "02", "3"], [0, 1, 2]),
        ("rust,scab,healthy", ["0", "scab", "2"], [0, 1, 2]),
        ("rust,scab,healthy", ["2.0", "0", "-1"], [2, 0, -1]),
        ("c0,c1,c2", ["2", "0", "-1"], [2, 0, -1]),
        ("c2,c1,c0", ["2", "0", "-1"], [2, 0, -1]),  # wherever the columns stand
        ("-1,0,1", ["-1", "0", "1"], [0, 1, 2]),  # -1 is a class here
        ("class 0,class 1,class 2", ["2", "class 1", "0"], [2, 1, 0]),
        ("year 2019,year 2020,other", ["2", "0", "-1"], [2, 0, -1]),
    ],
)
def test_labels_are_names_of_columns_first(tmp_path: Path, header: str, labels: list[str], expected: list[int]) -> None:
    assert load(tmp_path, rows(header, labels)).labels.tolist() == expected


@pytest.mark.parametrize(
    ("header", "labels", "classes", "words"),
    [
        ("1,2,3", ["1", "0"], None, ["label '0' in line 3", "none of the columns 1, 2, 3", "counted from 0 it is '1'"]),
        ("2,1,0", ["3"], None, ["label '3' in line 2", "none of the columns 2, 1, 0"]),
        ("rust,scab,healthy", ["1", "3"], None, ["label '3' in line 3", "counted from 0", "0 rust, 1 scab, 2 healthy"]),
        ("c0,c1,c2", ["1", "2"], ("1", "2", "3"), ["two ways", "'1' is the name of class 0", "counted from 0 '2'"]),
        ("c0,c1,c2", ["1", "3"], ("1", "2", "3"), ["label '3' in line 3", "counted from 0", "as a name it is class 2"]),
        (
            "c1,c2,c3",
            ["2", "1"],
            None,
            ["label '2' in line 2", "two ways", "names it is 'c2', counted from 0 it is 'c3'"],
        ),
        ("plot 3,plot 4,plot 5", ["3"], None, ["names it is 'plot 3', counted from 0 it is none"]),
        ("c0,c1", ["0"], ("a", "b", "c"), ["2 columns c0 to c1 for 3 classes: a, b, c"]),
    ],
)
def test_what_reads_in_two_ways_is_refused_and_both_are_shown(
    tmp_path: Path, header: str, labels: list[str], classes: tuple[str, ...] | None, words: list[str]
) -> None:
    text = rows(header, labels) if header.count(",") == 2 else f"image_id,label,{header}\na,0,1,0\n"
    with pytest.raises(DataError) as error:
        load(tmp_path, text, classes)
    for word in (*words, "p.csv"):
        assert word in error.value.what
    assert error.value.remedy


@given(st.permutations(range(4)), st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_names_that_are_numbers_in_any_order(tmp_path_factory, order: list[int], labels: list[int]) -> None:
    header = ",".join(map(str, order))
    text = "\n".join([f"image_id,label,{header}", *(f"{k},{label},0.1,0.2,0.3,0.4" for k, label in enumerate(labels))])
    found = load(tmp_path_factory.mktemp("p"), text)
    assert [int(found.classes[k]) for k in found.labels] == labels


def test_what_manihot_writes_comes_back_with_classes_that_are_numbers(tmp_path: Path) -> None:
    probs = np.random.default_rng(0).dirichlet(np.ones(3), 4)
    ids = np.array(list("abcd"), dtype=object)
    made = Predictions.from_probs(ids, probs, ("1", "2", "3"), np.array([0, 1, 2, -1]))
    made.save(tmp_path / "p.csv", named=True)
    assert Predictions.load(tmp_path / "p.csv", ("1", "2", "3")).labels.tolist() == [0, 1, 2, -1]


# labels that are none


@pytest.mark.parametrize("header", ["c0,c1,c2", "1,2,3", "rust,scab,healthy"])
@pytest.mark.parametrize(
    "label", ["1e30", "-7", "-2", "9" * 400, "0.5", "inf", "1e400", "-1.5", "rot", "999", "1,5".replace(",", ";")]
)
def test_a_label_that_is_no_class_is_an_error_with_line_and_value(tmp_path: Path, header: str, label: str) -> None:
    with pytest.raises(DataError) as error:
        load(tmp_path, rows(header, ["1", label]))
    assert "line 3" in error.value.what and label[:20] in error.value.what and len(str(error.value)) < 600


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "null", "N/A", "NA", "<NA>", "  "])
def test_words_for_nothing_are_no_label_and_counted(tmp_path: Path, word: str, capsys) -> None:
    assert load(tmp_path, rows("rust,scab,healthy", ["rust", word, word])).labels.tolist() == [0, -1, -1]
    said = capsys.readouterr().err
    assert ("2 labels" in said) == bool(word.strip())
    if word.strip():
        header = f"rust,{word},healthy"
        assert load(tmp_path, rows(header, ["rust", word, word])).labels.tolist() == [0, 1, 1]  # a class of that name


@pytest.mark.parametrize("label", [7, -7, -2])
def test_a_saved_file_with_a_label_that_is_no_class_is_refused(tmp_path: Path, label: int) -> None:
    probs = np.full((2, 2), 0.5)
    good = Predictions.from_probs(np.array(["a", "b"], dtype=object), probs, ("x", "y"), np.array([0, 1]))
    good.save(tmp_path / "p.parquet")
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "p.parquet")
    at = table.column_names.index("label")
    pq.write_table(table.set_column(at, "label", [[0, label]]), tmp_path / "p.parquet")
    with pytest.raises(DataError, match=rf"p\.parquet.*'b' has label {label}, but there are 2 classes"):
        Predictions.load(tmp_path / "p.parquet")


# columns and cells


def test_a_column_that_is_no_class_is_named_with_all_that_were_taken(tmp_path: Path) -> None:
    text = "image_id,label,rust,scab,healthy,fold\na,rust,0.7,0.2,0.1,0\nb,scab,0.2,0.7,0.1,1\n"
    with pytest.raises(DataError) as error:
        load(tmp_path, text)
    assert "columns taken as classes: rust, scab, healthy, fold: 1 rows" in error.value.what
    assert "line 3: 0.2, 0.7, 0.1, 1 sum to 2" in error.value.what
    assert error.value.remedy.startswith("drop the column that is not a class")


@pytest.mark.parametrize("header", ["c0,c1,c2", "rust,scab,healthy"])
@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("", "the cell is empty"),
        ("high", "'high' is not a number"),
        ("nan", "holds nan"),
        ("-0.5", "holds -0.5"),
        ("inf", "holds inf"),
        ("9" * 400, "holds inf"),
    ],
)
def test_a_cell_that_is_no_probability_is_named(tmp_path: Path, header: str, cell: str, words: str) -> None:
    text = f"image_id,label,{header}\na,0,{THREE}\n\nb,0,0.5,{cell},0.5\n"
    with pytest.raises(DataError) as error:
        load(tmp_path, text)
    column = header.split(",")[1]
    assert "line 4" in error.value.what and column in error.value.what and words in error.value.what


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"image_id,{'x' * 131_000},label\na,1,0\n", "expected columns image_id"),
        (f"image_id,{'x' * 140_000},label\na,1,0\n", "line 1: a cell of more than"),
        ("image_id,label,c0,c1\na,0,1,0,0\n", "line 2: 5 fields under 4 columns"),
        ("image_id,label,c0,c1\na,0,1\n", "line 2: 3 fields under 4 columns"),
        ("image_id,label,c0,c0\na,0,1,0\n", "2 columns are called 'c0'"),
        ("image_id,label,c0,c1\na\0,0,1,0\n", "line 2: contains a NUL byte"),
        (f"image_id,c{'9' * 5000},c1\na,1,0\n", "expected columns image_id"),
        ("image_id,c0,c1,unknown\na,1,0,0.5\nb,1,0,2\n", "line 3, column 'unknown': 2 is not a probability"),
        ("image_id,c0,c1,unknown\na,1,0,\n", "line 2, column 'unknown': the cell is empty"),
        ("image_id,c0,c1\n ,1,0\n", "line 2 has no image_id"),
    ],
    ids=range(10),
)
def test_broken_tables_are_refused_in_few_words(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError) as error:
        load(tmp_path, text)
    assert words in error.value.what and len(str(error.value)) < 1000


def test_a_path_that_no_system_takes(tmp_path: Path) -> None:
    for name in ("x" * 300 + ".csv", "x" * 5000 + ".parquet", "a\0.csv"):
        with pytest.raises(DataError):
            Predictions.load(tmp_path / name)


def test_probabilities_are_those_of_the_text(tmp_path: Path) -> None:
    probs = np.random.default_rng(1).dirichlet(np.ones(5), 50)
    frame = pd.DataFrame(probs, columns=[f"c{k}" for k in range(5)])
    frame.insert(0, "image_id", [f"{k}.jpg" for k in range(50)])
    frame.to_csv(tmp_path / "p.csv", index=False)
    found = Predictions.load(tmp_path / "p.csv")
    assert found.logits == pytest.approx(np.log(np.maximum(probs, TINY)).astype(np.float32), abs=1e-6)


def test_the_command_line_says_it(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(rows("c0,c1,c2", ["0", "-7"]), encoding="utf-8")
    with pytest.raises(DataError, match="label '-7' in line 3"):
        app(["calibrate", str(tmp_path / "p.csv"), "--out", str(tmp_path / "out")], exit_on_error=False)
    assert not (tmp_path / "out").exists()
