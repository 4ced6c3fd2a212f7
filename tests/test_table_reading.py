"""Tables of users: what is unambiguous is read right, and everything else is an error with its line."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manihot.errors import DataError
from manihot.photos.labels import LONGEST_CLASS, load_classes, name_labels
from manihot.photos.scan import scan
from manihot.records.tables import decode_text, read_table, shown
from manihot.settings.options import TableOptions
from test_scan import labels_of, photo, table

TWO = [["a.jpg", "rust"], ["b.jpg", "scab"]]


def save(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


READ = [
    ("t.csv", "image,label\na.jpg,rust\nb.jpg,scab\n", [2, 3]),
    ("t.csv", "image,label\r\na.jpg,rust\r\nb.jpg,scab", [2, 3]),
    ("t.csv", "image,label\ra.jpg,rust\rb.jpg,scab\r", [2, 3]),
    ("t.csv", "\ufeffimage,label\na.jpg,rust\nb.jpg,scab\n", [2, 3]),
    ("t.csv", "image;label\na.jpg;rust\nb.jpg;scab\n", [2, 3]),
    ("t.csv", "image|label\na.jpg|rust\nb.jpg|scab\n", [2, 3]),
    ("t.tsv", "image\tlabel\na.jpg\trust\nb.jpg\tscab\n", [2, 3]),
    ("t.csv", "sep=;\nimage;label\na.jpg;rust\nb.jpg;scab\n", [3, 4]),
    ("t.csv", "\n\nimage,label\n\na.jpg,rust\n ,\n,\nb.jpg,scab\n\n", [5, 8]),
    ("t.csv", ' image , label \n "a.jpg",rust \nb.jpg,scab\n', None),
    ("t.csv", "image,label,\na.jpg,rust,\nb.jpg,scab,\n", [2, 3]),
    ("t.csv", "image,label\na.jpg,rust,,\nb.jpg,scab\n", [2, 3]),
    ("t.csv", '"image","label"\n"a.jpg","rust"\n"b.jpg","scab"\n', [2, 3]),
    ("t.csv", "image,label\na.jpg,rust\nb.jpg,scab\n".encode("utf-16"), [2, 3]),
    ("t.csv", b"\xfe\xff" + "image;label\na.jpg;rust\nb.jpg;scab\n".encode("utf-16-be"), [2, 3]),
    ("t.csv", "image,label\na.jpg,rust\nb.jpg,scab\n".encode("utf-32"), [2, 3]),
    ("t.jsonl", '{"image": "a.jpg", "label": "rust"}\n\n{"label": "scab", "image": "b.jpg"}\n', [1, 3]),
    ("T.CSV", "image,label\na.jpg,rust\nb.jpg,scab\n", [2, 3]),
]


@pytest.mark.parametrize(("name", "data", "lines"), READ)
def test_what_is_unambiguous_is_read(tmp_path: Path, name: str, data: bytes | str, lines: list[int] | None) -> None:
    path = save(tmp_path / name, data)
    if lines is None:  # a quote after a space is text, in CSV
        assert read_table(path)["image"].tolist() == ['"a.jpg"', "b.jpg"]
        return
    frame = read_table(path)
    assert list(frame.columns) == ["image", "label"] and frame.to_numpy().tolist() == TWO
    assert frame.index.tolist() == lines


def test_cells_with_commas_newlines_and_quotes(tmp_path: Path) -> None:
    frame = read_table(save(tmp_path / "t.csv", 'image,note\na.jpg,"x, y"\n"b\nc.jpg","5"" pot"\nd.jpg,5" pot\n'))
    assert frame["note"].tolist() == ["x, y", '5" pot', '5" pot'] and frame.index.tolist() == [2, 3, 5]


def rows(n: int, *changed: tuple[int, str]) -> str:
    lines = [f"{k}.jpg,x" for k in range(n)]
    for k, line in changed:
        lines[k] = line
    return "image,label\n" + "\n".join(lines) + "\n"


WRONG = [
    (rows(3, (0, "0.jpg,rust, severe")), "t.csv, line 2: 3 fields under 2 columns (image, label)"),
    (rows(900, (700, "700.jpg,rust, severe")), "t.csv, line 702: 3 fields under 2 columns"),
    (rows(3, (2, "2.jpg,rust, severe")), "t.csv, line 4: 3 fields under 2 columns"),
    (rows(3, (2, "2.jpg")), "t.csv, line 4: 1 field under 2 columns"),
    ('image,label\n"a\n\n.jpg",x\nb.jpg,y,z\n', "t.csv, line 5: 3 fields under 2 columns"),
    ("image;label;note\na.jpg;x\n", "t.csv, line 2: 2 fields under 3 columns"),
    (rows(4, (1, '1.jpg,"x')), "t.csv, line 3: a quote opens in this row and is never closed"),
    (rows(4, (1, '"1.jpg"x,y')), "t.csv, line 3: text stands after a closing quote"),
    (rows(4, (1, "1.jpg," + "x" * 200_000)), "t.csv, line 3: a cell of more than 131,072 characters"),
    ("i" * 200_000 + ",label\na.jpg,x\n", "t.csv, line 1: a cell of more than 131,072 characters"),
    (rows(4, (2, "2.jpg,a\0b")), "t.csv, line 4: contains a NUL byte"),
    (rows(4, (2, "2.jpg,café")).encode("latin-1"), "t.csv, line 4: not UTF-8 (byte 0xe9); Windows-1252 would read"),
    (rows(4).encode("utf-16-le"), "t.csv, line 1: contains a NUL byte, as UTF-16 without its mark does"),
    (rows(4).encode("utf-16")[:-1], "t.csv: its mark says utf-16, but it is cut off or damaged"),
    ("image,label,label\na.jpg,x,y\n", "t.csv, line 1: 2 columns are called 'label'"),
    ("image, label,label \na.jpg,x,y\n", "t.csv, line 1: 2 columns are called 'label'"),
    ("image;label, note\na.jpg;1,5\n", "t.csv: reads as 2 columns by commas or 2 columns by semicolons"),
    ("", "t.csv: the table is empty"),
    ("\n \n\n", "t.csv: the table is empty"),
    ("image,label\n", "t.csv: the table has no rows"),
    ("image,label\n,\n,\n", "t.csv: the table has no rows"),
    (b"PK\x03\x04rest", "t.csv: this is an Excel workbook or a zip"),
    (b"PAR1rest", "t.csv: this is parquet"),
    ("a.jpg,rust\nb.jpg,scab\n", "t.csv, line 1: column names were expected, found 'a.jpg'"),
]


@pytest.mark.parametrize(("data", "words"), WRONG)
def test_tables_that_are_wrong_name_the_line(tmp_path: Path, data: bytes | str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        scan(save(tmp_path / "t.csv", data))
    assert words in caught.value.what, caught.value.what
    assert caught.value.remedy and len(str(caught.value)) < 1200


WRONG_LINES = [
    ('{"image": "a.jpg"}\n{"image": \n', "t.jsonl, line 2: not JSON"),
    ('{"image": "a.jpg", "image": "b.jpg"}\n', "t.jsonl, line 1: 'image' appears twice"),
    ('{"image": ' + "[" * 100_000 + "\n", "t.jsonl, line 1: nested too deeply"),
    ('{"image": "a.jpg", "label": ' + "9" * 5000 + "}\n", "t.jsonl, line 1: a number of more than 4,300 digits"),
    (
        '{"image": "a.jpg", "label": "x"}\n{"image": "b.jpg", "label": ["x", "y"]}\n',
        "t.jsonl, line 2, column 'label': a list, and one word or number was expected",
    ),
    ('{"image": {"path": "a.jpg"}, "label": 1}\n', "t.jsonl: no column is obviously the image"),
    ('{"image": "a.jpg", "label": "x\\u0000"}\n', "t.jsonl, line 1, column 'label'"),
    ('{"image": "a.jpg", "label": "\\ud800"}\n', "t.jsonl, line 1, column 'label'"),
    ("[1]\n", "t.jsonl, line 1: not a JSON object"),
]


@pytest.mark.parametrize(("data", "words"), WRONG_LINES)
def test_json_lines_that_are_wrong_name_the_line(tmp_path: Path, data: str, words: str) -> None:
    photo(tmp_path / "a.jpg"), photo(tmp_path / "b.jpg")
    with pytest.raises(DataError) as caught:
        scan(save(tmp_path / "t.jsonl", data))
    assert words in caught.value.what, caught.value.what


def test_values_of_json_and_parquet_are_those_of_csv(tmp_path: Path) -> None:
    lines = '{"a": 1.0, "b": true, "c": null, "d": NaN, "e": 12345678901234567890}\n{"a": 2.5}\n'
    expected = [["1", "true", "", "", "12345678901234567890"], ["2.5", "", "", "", ""]]
    assert read_table(save(tmp_path / "t.jsonl", lines)).to_numpy().tolist() == expected
    frame = pd.DataFrame(
        {
            "whole": [1.0, None],
            "name": pd.Categorical(["x", None]),
            "day": pd.to_datetime(["2020-01-02", None]),
            "raw": [b"x", b"y"],
            "list": [[1], [2]],
            "flag": [True, False],
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    found = read_table(tmp_path / "t.parquet")
    assert found.to_numpy().tolist() == [["1", "x", "2020-01-02 00:00:00", "true"], ["", "", "", "false"]]
    assert set(found.attrs["nested"]) == {"raw", "list"} and found.index.tolist() == [1, 2]


def test_damaged_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": ["a.jpg"] * 500, "label": ["x"] * 500}), tmp_path / "t.parquet")
    data = (tmp_path / "t.parquet").read_bytes()
    for cut in (0, 3, 20, len(data) // 2, len(data) - 5):
        with pytest.raises(DataError, match=r"t\.parquet"):
            scan(save(tmp_path / "t.parquet", data[:cut]))
    pq.write_table(pa.table([["a.jpg"], ["b.jpg"]], names=["image", "image"]), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="a column appears twice"):
        scan(tmp_path / "t.parquet")


# ---------------------------------------------------------------------------------------- cells


@pytest.mark.parametrize("word", ["nan", "None", "null", "N/A", "NA", "NaN", "<NA>", "#N/A", "-", "?", "", "   "])
def test_missing_labels_are_missing(tmp_path: Path, capsys, word: str) -> None:
    for k in range(3):
        photo(tmp_path / f"{k}.jpg")
    listed = table(tmp_path / "t.csv", f"image,label\n0.jpg,rust\n1.jpg,{word}\n2.jpg,scab\n")
    manifest, _ = scan(listed)
    assert manifest.classes == ("rust", "scab") and labels_of(manifest)["1.jpg"] is None
    said = capsys.readouterr().err
    assert "1 rows have no label" in said
    if word.strip():
        assert f"1 {word!r} taken as no label" in said and "--keep-na" in said
        kept, _ = scan(listed, columns=TableOptions(keep_na=True))
        assert word in kept.classes and labels_of(kept)["1.jpg"] == word


def test_a_class_that_the_map_calls_none_is_a_class(tmp_path: Path) -> None:
    names = load_classes(table(tmp_path / "c.json", '["None", "rust"]'))
    found = name_labels(["None", "rust", "nan"], [2, 3, 4], tmp_path / "t.csv", names)
    assert found.names == ["None", "rust", None]


def test_missing_words_in_other_columns_are_missing(tmp_path: Path) -> None:
    for k in range(3):
        photo(tmp_path / f"{k}.jpg")
    listed = table(tmp_path / "t.csv", "image,label,group,fold\n0.jpg,a,nan,0\n1.jpg,b,nan,\n2.jpg,b,P1,NA\n")
    manifest, _ = scan(listed)
    assert list(manifest.table["group"]) == ["", "", "P1"] and list(manifest.fold) == [0, -1, -1]


@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [
        ("label", "9" * 400, "line 3, column 'label': '999999999999999999999999999999...' is not a class number"),
        ("label", "9" * 5000, "line 3, column 'label'"),
        ("fold", str(2**70), "line 3: fold '1180591620717411303424' is not a whole number from -1 to 9999"),
        ("fold", "9" * 5000, "line 3: fold"),
        ("fold", "1e400", "line 3: fold '1e400'"),
        ("fold", "-2", "line 3: fold '-2'"),
        ("fold", "\u0663", "line 3: fold"),
        ("label", '"a\nb"', "line 3, column 'label': the class name 'a\\\\x0ab' contains a control character"),
        ("split", "x" * 1000, "line 3: split"),
    ],
)
def test_cells_that_are_out_of_range(tmp_path: Path, column: str, cell: str, words: str) -> None:
    photo(tmp_path / "0.jpg"), photo(tmp_path / "1.jpg")
    filled = {"label": "0" if cell.isdigit() else "x", "fold": "0", "split": "train"}
    header = "image,label,fold,split\n"
    first = ",".join(["0.jpg", filled["label"], "0", "train"])
    second = ",".join(["1.jpg", *({**filled, column: cell}[name] for name in ("label", "fold", "split"))])
    with pytest.raises(DataError) as caught:
        scan(table(tmp_path / "t.csv", f"{header}{first}\n{second}\n"))
    assert words in caught.value.what and len(str(caught.value)) < 600, caught.value.what


def test_a_class_name_as_long_as_a_page(tmp_path: Path) -> None:
    photo(tmp_path / "0.jpg")
    listed = table(tmp_path / "t.csv", f"image,label\n0.jpg,{'x' * (LONGEST_CLASS + 1)}\n")
    with pytest.raises(DataError, match="line 2, column 'label': a class name of 256 characters"):
        scan(listed)
    assert scan(table(tmp_path / "t.csv", f"image,label\n0.jpg,{'x' * LONGEST_CLASS}\n"))[0].classes == ("x" * 255,)


def test_large_class_numbers_are_exact(tmp_path: Path) -> None:
    photo(tmp_path / "0.jpg"), photo(tmp_path / "1.jpg")
    manifest, _ = scan(table(tmp_path / "t.csv", "image,label\n0.jpg,900719925474099\n1.jpg,900719925474098\n"))
    assert manifest.classes == ("900719925474098", "900719925474099")


@pytest.mark.parametrize("length", [300, 5000])
def test_paths_too_long_for_a_disk_are_missing(tmp_path: Path, length: int) -> None:
    photo(tmp_path / "0.jpg"), photo(tmp_path / "1.jpg")
    listed = table(tmp_path / "t.csv", f"image,label\n0.jpg,x\n1.jpg,y\n{'z' * length}.jpg,x\n")
    manifest, quarantine = scan(listed, out=tmp_path / "run")
    assert len(manifest) == 2 and len(quarantine) == 1 and "line 4" in quarantine["detail"][0]
    with pytest.raises(DataError, match="none of the 1 photographs exists"):
        scan(table(tmp_path / "t.csv", f"image,label\n{'z' * length}.jpg,x\n"))


def test_one_column_a_class_is_named(tmp_path: Path) -> None:
    photo(tmp_path / "0.jpg")
    with pytest.raises(DataError, match="columns rust, scab hold 0 and 1 only") as caught:
        scan(table(tmp_path / "t.csv", "image,rust,scab\n0.jpg,0,1\n"))
    assert "one column `label`" in caught.value.remedy


@pytest.mark.skipif(os.name == "nt", reason="names of files are text there")
def test_a_table_whose_name_is_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.csv")
    (tmp_path / name).write_text("image,label\na.jpg,x\n")
    with pytest.raises(DataError, match="is not UTF-8") as caught:
        scan(tmp_path / name)
    assert caught.value.remedy == "rename it"
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"0": "a", "1"', "line 1"),
        (b'{"0": {"x": 1}}', "is not a class name"),
        (b"\xff\xfe\x00", "utf-16"),
        (b"[" * 100_000, "c.json"),
        (b'{"' + b"9" * 5000 + b'": "a"}', "no class names"),
        (b"a\0b", "NUL"),
        (b'{"0": ""}', "empty class name"),
        (b"true", "no class names"),
        (b"", "line 1"),
        (b"caf\xe9", "not UTF-8"),
        (b'{"0": true}', "is not a class name"),
    ],
)
def test_class_maps_that_are_wrong(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(DataError) as caught:
        load_classes(save(tmp_path / "c.json", data))
    assert words in str(caught.value), str(caught.value)


def test_text_for_messages() -> None:
    assert shown("a\nb\x1b[31m\ud800") == "a\\x0ab\\x1b[31m\\xd800" and shown("x" * 100) == "x" * 60 + "..."
    assert decode_text(Path("t"), "é".encode("utf-8-sig")) == "é"
