"""What people change by hand in files that they give to manihot: errors that name the place."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from given_files import GIVEN

from manihot.errors import DataError, ManihotError, RunFolderError, WeightsError
from manihot.records.readers import read_features


def make(kind: str, folder: Path) -> Path:
    path = folder / GIVEN[kind].name
    GIVEN[kind].make(path)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": ["rust", "scab"]}, "2 numbers|3 numbers for 2 classes"),
        ({"classes": ["rust", "scab"], "numbers": [1, 2]}, "2 classes, but model.onnx answers with 3"),
        ({"classes": ["rust", "rust", "scab"]}, "appear twice"),
        ({"preprocess": {"size": [8, 8], "": 1}}, ""),
        ({"sha256": "0" * 64}, "another sha256"),
    ],
)
def test_an_exported_model_whose_description_is_another(tmp_path: Path, change: dict[str, object], words: str):
    path = make("exported model", tmp_path)
    about = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(about | change), encoding="utf-8")
    if not words:  # what is not known is left out
        assert GIVEN["exported model"].use(path)
        return
    with pytest.raises(WeightsError, match=words) as caught:
        GIVEN["exported model"].use(path)
    assert str(tmp_path) in caught.value.what


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE answers SET verdict = 'delete'",
        "UPDATE answers SET seen = x'ff'",
        "UPDATE answers SET at = 'yesterday'",
        "ALTER TABLE answers RENAME COLUMN ms TO seconds",
        "DROP TABLE handed_out; CREATE TABLE handed_out (a)",
    ],
)
def test_a_database_that_no_review_wrote(tmp_path: Path, change: str):
    pytest.importorskip("sqlalchemy")
    path = make("answers of a team", tmp_path)
    with sqlite3.connect(path) as connection:
        connection.executescript(change)
    with pytest.raises(RunFolderError, match=r"answers\.sqlite") as caught:
        GIVEN["answers of a team"].use(path)
    assert caught.value.remedy


def test_features_that_do_not_go_together(tmp_path: Path):
    for name, shape in (("0.npy", (4, 2, 8)), ("1.npy", (4, 2, 9))):
        np.save(tmp_path / name, np.zeros(shape, np.float32))
    with pytest.raises(RunFolderError, match=r"1\.npy.*shape \(4, 2, 9\), expected \(any, 2, 8\)"):
        read_features([tmp_path / "0.npy", tmp_path / "1.npy"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("member,latency,download\na,0.5,1\n", "0 rows of the member 'b'"),
        ("member,latency,download\na,0.5,1\na,1,2\nb,1,2\n", "2 rows of the member 'a'"),
        ("member,latency,download\na,0.5,1\nb,fast,2\n", "line 3, column latency: 'fast'"),
        ("member,latency,download\na,0.5,1\nb,1,-2\n", "line 3, column download: '-2'"),
        ("member,latency,download\na,0.5,1\nb,1,2,3\n", "line 3"),
        ("member,seconds\na,1\n", "no column latency, only member, seconds"),
    ],
)
def test_costs_of_members_that_are_wrong_name_the_line(tmp_path: Path, text: str, words: str):
    path = make("costs of members", tmp_path)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        GIVEN["costs of members"].use(path)


@pytest.mark.parametrize("line", ["", "{", "[1]", '{"epoch": "one"}', '{"val_loss": 1.0}', "\x00"])
def test_a_history_that_a_refit_counts_by(tmp_path: Path, line: str):
    pytest.importorskip("torch")
    from manihot.train.finetune import _history

    path = tmp_path / "history.jsonl"
    path.write_text(f"{line}\n" if line else "", encoding="utf-8")
    with pytest.raises(ManihotError, match=r"history\.jsonl") as caught:
        _history(tmp_path)
    assert "folder of the fold" in str(caught.value.remedy)
