"""Tables written as CSV: as they are, or with cells that no spreadsheet runs as formulas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from manihot.audit.decision_files import read_decisions
from manihot.errors import SettingsError
from manihot.records.csv_files import as_written, csv_text, save_csv
from manihot.records.predictions import Predictions
from manihot.records.quarantine import load_quarantine

NAMES = ["=1+1", "+a", "-a", "@a", "\ta", "\uff1da", "'=a", "a=1", "'a", "", "a,b"]
MARKED = ["'=1+1", "'+a", "'-a", "'@a", "'\ta", "'\uff1da", "''=a", "a=1", "'a", "", "a,b"]


def test_tables_are_written_as_they_are_and_marked_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    table = pd.DataFrame({"=name": NAMES, "loss": np.linspace(-1, 0, len(NAMES))})
    for asked, header, cells in (("", "=name", NAMES), ("0", "=name", NAMES), ("1", "'=name", MARKED)):
        monkeypatch.setenv("MANIHOT_SAFE_CSV", asked)
        save_csv(table, tmp_path / "t.csv")
        found = pd.read_csv(tmp_path / "t.csv", keep_default_na=False)
        assert list(found) == [header, "loss"] and found[header].tolist() == cells
        assert found["loss"].tolist() == table["loss"].tolist()
        pd.testing.assert_frame_equal(as_written(found), table, check_dtype=False)


def test_another_value_of_the_variable_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MANIHOT_SAFE_CSV", "yes")
    with pytest.raises(SettingsError, match="MANIHOT_SAFE_CSV='yes'"):
        csv_text(pd.DataFrame({"a": [1]}))


def test_what_manihot_writes_it_reads_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MANIHOT_SAFE_CSV", "1")
    made = Predictions.from_probs(np.array(["=a.jpg", "-b.jpg"], dtype=object), np.eye(2), ("=x", "@y"), np.arange(2))
    made.save(tmp_path / "p.csv", named=True)
    assert "'=a.jpg,0," in (text := (tmp_path / "p.csv").read_text()) and text.rstrip().endswith("'@y")
    assert Predictions.load(tmp_path / "p.csv").image_id.tolist() == ["=a.jpg", "-b.jpg"]
    decided = pd.DataFrame({"image_id": ["=a.jpg"], "action": ["relabel"], "given_label": ["=x"], "new_label": ["@y"]})
    save_csv(decided, tmp_path / "d.csv")
    assert read_decisions(tmp_path / "d.csv")[list(decided)].to_numpy().tolist() == decided.to_numpy().tolist()


def test_a_scan_with_names_that_are_formulas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("=HYPERLINK(1)", "@rust"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(folder / "-1.png")
    (tmp_path / "photos/@rust/+2.png").write_bytes(b"GIF89a")
    for asked, start in (("0", "@"), ("1", "'@")):
        monkeypatch.setenv("MANIHOT_SAFE_CSV", asked)
        words = ["-m", "manihot", "scan", str(tmp_path / "photos"), "--out", str(tmp_path / f"run{asked}")]
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        written = (tmp_path / f"run{asked}/quarantine.csv").read_text().splitlines()[1]
        assert written.startswith(f"{start}rust/+2.png,")
        assert load_quarantine(tmp_path / f"run{asked}/quarantine.csv")["label"].tolist() == ["@rust"]


def test_every_table_is_written_by_this_module():
    import manihot

    root = Path(manihot.__file__).parent
    writers = {p.relative_to(root).as_posix() for p in root.rglob("*.py") if ".to_csv(" in p.read_text("utf-8")}
    assert writers == {"records/csv_files.py", "demo/make.py"}  # the demo's train.csv is read by manihot itself
