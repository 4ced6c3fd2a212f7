"""Standard output holds results and nothing else, on any terminal, pipe or disk; messages go to standard error."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manihot.cli import answer
from manihot.cli.output import OutputError, watched
from manihot.errors import EXIT_PIPE, DiskFullError
from manihot.records.predictions import Predictions

COMMAND = [sys.executable, "-m", "manihot"]


def manihot(*words: str | Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *map(str, words)], capture_output=True, check=False, **options)


@pytest.fixture
def oof(tmp_path: Path) -> list[Path]:
    """Two members' out-of-fold predictions; the second class's name would turn a terminal red."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120)
    files = []
    for name in "ab":
        probs = rng.dirichlet([1, 1, 1], 120) + 2 * np.eye(3)[labels]
        made = Predictions.from_probs(
            np.array([f"{i}.jpg" for i in range(120)], dtype=object),
            probs / probs.sum(1, keepdims=True),
            ("healthy", "\x1b[31mrust", "葉 – spot"),
            labels,
        )
        files.append(tmp_path / f"{name}.parquet")
        made.save(files[-1])
    return files


def test_a_table_goes_to_standard_output_whole_and_messages_do_not():
    found = manihot("recipes", text=True, encoding="utf-8", env={**os.environ, "COLUMNS": "40"})
    assert (found.returncode, found.stderr) == (0, "")
    lines = found.stdout.splitlines()
    assert [line.split()[0] for line in lines if " ViT-B/16 384" in line] == ["lecture-vit"]
    assert max(map(len, lines)) > 100 and not [line for line in lines if line != line.rstrip()]


@pytest.mark.parametrize(
    ("verb", "words", "told"),
    [
        ("blend", ["{a}", "{b}"], "Blend: uniform (a 0.5, b 0.5), written to"),
        ("stack", ["{a}", "{b}"], "no gain over plain averaging beyond chance"),
        ("calibrate", ["{a}"], "held out on 120 photographs"),
        ("decide", ["{a}", "{costs}"], "120 photographs: "),
    ],
)
def test_summaries_of_predictions_go_to_standard_output(verb, words, told, oof, tmp_path: Path, capsys):
    (tmp_path / "costs.yaml").write_text("missed: {healthy: 2}\n", encoding="utf-8")
    places = {"a": oof[0], "b": oof[1], "costs": tmp_path / "costs.yaml"}
    assert answer([verb, *(word.format(**places) for word in words), "--out", str(tmp_path / "out")]) == 0
    assert told in " ".join(capsys.readouterr().out.split())


def test_class_names_never_steer_the_terminal_and_stay_as_they_are_in_files(tmp_path: Path, capsys):
    folder = tmp_path / "photos"
    for name in ("healthy", "\x1b[31mrust"):
        for k in range(2):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"{k}.jpg").write_bytes(b"")
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    from PIL import Image

    Image.fromarray(pixels).save(folder / "healthy/good.png")
    assert answer(["scan", str(folder), "--out", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "\\x1b[31mrust" in err  # the class without a readable photograph
    assert "\x1b[31mrust" in set(pd.read_csv(tmp_path / "run/quarantine.csv")["label"])


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are told otherwise there")
@pytest.mark.parametrize("words", [["recipes"], ["--help"], ["scan", "--help"], ["recipes", "show", "standard"]])
def test_a_reader_that_has_enough_ends_it_quietly(words: list[str]):
    process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == EXIT_PIPE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", [["recipes"], ["--help"], ["--version"], ["recipes", "show", "standard"]])
def test_a_full_disk_is_told_as_such(words: list[str]):
    with open("/dev/full", "wb") as full:
        found = subprocess.run([*COMMAND, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert found.returncode == DiskFullError.exit_code
    assert found.stderr.startswith("DiskFullError: standard output: no space left on the disk")
    assert "Traceback" not in found.stderr and "Exception ignored" not in found.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a closed descriptor is told otherwise there")
def test_closed_standard_output_is_no_error():
    words = ["sh", "-c", '"$0" -m manihot recipes >&-', sys.executable]
    found = subprocess.run(words, capture_output=True, check=False)
    assert (found.returncode, found.stderr) == (0, b"")


@pytest.mark.parametrize("encoding", ["cp932", "latin-1", "ascii"])
def test_what_an_encoding_lacks_is_replaced(encoding: str, oof, tmp_path: Path):
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    for words in (["recipes"], ["scan", "--help"], ["suite", "lecture-ablations", "--list"]):
        found = manihot(*words, env=env)
        assert found.returncode == 0 and found.stderr == b"", found.stderr
        assert len(found.stdout.decode(encoding)) > 500
    found = manihot("compare", tmp_path / "ünknown 葉", env=env)  # an error's text, on standard error
    assert found.returncode == 5 and b"Traceback" not in found.stderr


def test_errors_of_other_files_are_not_taken_for_those_of_standard_output(capsys):
    with pytest.raises(BrokenPipeError), watched():
        raise BrokenPipeError(32, "a worker's pipe")

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    usual, sys.stdout = sys.stdout, Full()
    try:
        with pytest.raises(OutputError) as caught, watched():
            print("result")
    finally:
        sys.stdout = usual
    assert caught.value.cause.errno == 28


def test_a_mistaken_command_is_told_on_standard_error():
    found = manihot("scna", text=True)
    assert found.returncode != 0 and found.stdout == "" and "scan" in found.stderr
