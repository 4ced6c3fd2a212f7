"""The leaderboard over finished, unfinished and broken runs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from manihot.errors import RunFolderError
from manihot.metrics import accuracy, evaluate
from manihot.records.files import save_json
from manihot.records.manifest import Manifest
from manihot.records.predictions import Predictions
from manihot.report.compare import duration, leaderboard, load_scores, print_leaderboard, read_history

CLASSES = ("healthy", "mosaic", "[red]")


def draw(n: int, signal: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    logits = rng.normal(size=(n, 3))
    logits[np.arange(n), labels] += signal
    probs = np.exp(logits)
    return labels, probs / probs.sum(1, keepdims=True)


def scored(signal: float, seed: int) -> dict:
    return evaluate(*draw(90, signal, seed), CLASSES, repeats=30)


def finished(run: Path, members: dict[str, float], test: bool = False, seed: int = 3) -> Path:
    found: dict = {"members": {}}
    for name, signal in members.items():
        found["members"][name] = {
            "oof": scored(signal, 0),
            "folds": {str(k): {"accuracy": 0.5 + k / 100, "n": 9} for k in (10, 9, 1)},
        }
        if test:
            found["members"][name]["test"] = scored(signal, 1)
    if len(members) > 1:
        found["ensemble"] = {"oof": scored(3.0, 0)}
    run.mkdir(parents=True)
    save_json(run / "metrics.json", found)
    stages = {"scan": {"status": "done", "seconds": 2.5}, "train": {"status": "done", "seconds": 60.0}}
    recipe = {"name": "quick", "seed": seed}
    save_json(run / "run.json", {"format": 2, "recipe": recipe, "recipe_name": "quick", "stages": stages})
    return run


def test_members_ensembles_and_splits_in_order(tmp_path: Path) -> None:
    a = finished(tmp_path / "a", {"one": 1.0, "two": 2.0}, test=True)
    b = finished(tmp_path / "b", {"main": 1.5}, seed=9)
    table = leaderboard([a, b])
    assert table["split"].tolist() == ["oof"] * 4 + ["test"] * 2
    assert table.loc[:3, "member"].tolist() == ["(ensemble)", "two", "main", "one"]
    assert table.loc[:3, "accuracy"].is_monotonic_decreasing
    best = table.iloc[1]
    assert best["accuracy"] == accuracy(*draw(90, 2.0, 0)) and best["n"] == 90
    assert best["accuracy_low"] < best["accuracy"] < best["accuracy_high"]
    assert best["folds"] == [0.51, 0.59, 0.60]  # in the folds' order, not the alphabet's
    assert best["seconds"] == 62.5 and best["recipe"] == "quick"
    assert table.loc[table["run"] == "b", "seed"].item() == 9


def test_a_run_in_the_middle_of_its_folds(tmp_path: Path) -> None:
    run = tmp_path / "half"
    labels, probs = draw(60, 1.0, 2)
    ids = np.array([f"{i}.jpg" for i in range(60)], dtype=object)
    fold = np.repeat([0, 1], 30)
    (run / "predictions").mkdir(parents=True)
    Predictions.from_probs(ids, probs, CLASSES, labels, fold).save(run / "predictions" / "main.oof.parquet")
    history = run / "members" / "other" / "fold2" / "history.jsonl"
    history.parent.mkdir(parents=True)
    epochs = [json.dumps({"epoch": e, "val_accuracy": 0.4 + e / 10}) for e in range(2)]
    history.write_text("\n".join([*epochs, '{"epoch": 2, "val_ac']), encoding="utf-8")
    table = leaderboard([run]).set_index("member")
    assert (table["status"] == "unfinished").all()
    row = table.loc["main"]
    assert row["accuracy"] == pytest.approx(accuracy(labels, probs))
    assert row["folds"] == pytest.approx([accuracy(labels[fold == k], probs[fold == k]) for k in (0, 1)])
    assert table.loc["other", "folds"] == [0.5] and np.isnan(table.loc["other", "accuracy"])
    assert np.isnan(row["seconds"])


def test_groups_of_the_manifest_widen_an_unfinished_run_s_interval(tmp_path: Path) -> None:
    right = np.repeat(np.random.default_rng(0).random(20) < 0.6, 10)
    ids = np.array([f"{i}.jpg" for i in range(200)], dtype=object)
    probs = np.where(right[:, None], [[0.8, 0.1, 0.1]], [[0.1, 0.8, 0.1]])
    made = Predictions.from_probs(ids, probs, CLASSES, np.zeros(200), np.zeros(200))
    width = []
    for name, groups in (("alone", [""] * 200), ("plants", [f"plant{i // 10}" for i in range(200)])):
        run = tmp_path / name
        made.save(run / "predictions" / "main.oof.parquet")
        table = pd.DataFrame({"image_id": ids, "path": ids, "label": 0, "group": groups})
        Manifest.from_table(table, CLASSES, tmp_path).save(run / "manifest.parquet")
        row = leaderboard([run]).iloc[0]
        width.append(row["accuracy_high"] - row["accuracy_low"])
    assert width[1] > 2 * width[0]


def test_a_run_that_has_only_begun_has_a_row(tmp_path: Path) -> None:
    run = tmp_path / "begun"
    run.mkdir()
    stages = {"scan": {"status": "running", "started": 1.0}}
    save_json(run / "run.json", {"format": 2, "recipe": {"seed": 0}, "recipe_name": "standard", "stages": stages})
    row = leaderboard([run]).iloc[0]
    assert row["status"] == "unfinished" and row["recipe"] == "standard" and np.isnan(row["accuracy"])
    print_leaderboard(leaderboard([run]), Console(file=io.StringIO()))


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [finished(tmp_path / where / "run", {"main": 1.0}) for where in ("x", "y")]
    assert set(leaderboard(runs)["run"]) == {str(run) for run in runs}


def test_the_printed_table_shows_names_and_intervals_as_they_are(tmp_path: Path) -> None:
    run = finished(tmp_path / "[bold]run", {"main": 1.0})
    table = leaderboard([run])
    out = io.StringIO()
    print_leaderboard(table, Console(file=out, width=200))
    low, high = (f"{100 * table.iloc[0][name]:.1f}" for name in ("accuracy_low", "accuracy_high"))
    assert "[bold]run" in out.getvalue() and f"({low}–{high})" in out.getvalue()
    assert "51.0 59.0 60.0" in out.getvalue() and "1 min 02 s" in out.getvalue()


def test_a_narrow_terminal_gets_fewer_columns_and_a_file_gets_all(tmp_path: Path) -> None:
    table = leaderboard([finished(tmp_path / "a-run-with-a-name", {"main": 1.0})])
    text = {}
    for terminal in (True, False):
        out = io.StringIO()
        print_leaderboard(table, Console(file=out, width=80, force_terminal=terminal, color_system=None))
        text[terminal] = out.getvalue()
    assert max(map(len, text[True].splitlines())) <= 80 and "not shown for lack of width" in text[True]
    for lines in text.values():
        assert "a-run-with-a-name" in lines and "accuracy" in lines
    assert "51.0 59.0 60.0" in text[False] and "1 min 02 s" in text[False] and "not shown" not in text[False]
    assert "51.0 59.0 60.0" not in text[True]


def test_no_runs_make_an_empty_table() -> None:
    assert leaderboard([]).empty
    print_leaderboard(leaderboard([]), Console(file=io.StringIO()))


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="not a run folder"):
        leaderboard([tmp_path])
    (tmp_path / "metrics.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"metrics\.json"):
        load_scores(tmp_path)


def test_durations_and_missing_histories(tmp_path: Path) -> None:
    words = [duration(s) for s in (3.21, 42, 185, 7625, None)]
    assert words == ["3.2 s", "42 s", "3 min 05 s", "2 h 07 min", "–"]
    assert read_history(tmp_path / "none.jsonl") == []
