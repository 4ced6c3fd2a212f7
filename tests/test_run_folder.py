"""The run folder's places: spelled in one module, and where they always were."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import manihot
from manihot.errors import RunFolderError
from manihot.records.files import save_json
from manihot.records.readers import read_json
from manihot.records.run_folder import WHOLE, RunFolder
from manihot.records.summaries import FORMAT
from manihot.report.compare import leaderboard

SOURCE = Path(manihot.__file__).parent
HOMES = {SOURCE / "records/run_places.py", SOURCE / "records/run_parts.py"}
NAMES = (
    "run.json",
    "manifest.parquet",
    "folds.parquet",
    "quarantine.csv",
    "submission.csv",
    "metrics.json",
    "report.html",
    "audit.html",
    "audit.json",
    "what_if.json",
    "embeddings.parquet",
    "blend.json",
    "combination.npz",
    "trust.json",
    "calibrator.json",
    "sets.json",
    "unknown.json",
    "inputs.txt",
    "last.ckpt",
    "history.jsonl",
    "margins.parquet",
    "best.safetensors",
    "head.safetensors",
    "network.onnx",
    "backbone.onnx",
    "oof.parquet",
    "test.parquet",
)
FOLDERS = ("audit", "store", "features", "members", "predictions", "blend", "trust", "watch")
LITERAL = re.compile(rf"(.*[/.])?({'|'.join(map(re.escape, NAMES))})|({'|'.join(FOLDERS)})/\S*")


def literals(path: Path) -> list[str]:
    """Texts in the code of a file that spell a place of the run folder; docstrings and sentences don't count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    found = []
    for node in ast.walk(tree):
        joined = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant)
        if joined and node.right.value in FOLDERS:  # run / "audit"
            found.append(f"line {node.lineno}: / {node.right.value}")
        text = isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents
        if text and LITERAL.fullmatch(node.value):
            found.append(f"line {node.lineno}: {node.value}")
    return found


def test_no_other_module_spells_a_place_of_the_run_folder():
    found = [
        f"{path.relative_to(SOURCE)}, {one}"
        for path in sorted(SOURCE.rglob("*.py"))
        if path not in HOMES
        for one in literals(path)
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        'run / "manifest.parquet"',
        'f"predictions/{name}.oof.parquet"',
        'run / "audit"',
        '"members/*/fold*/best.safetensors"',
        'sorted(run.glob("trust/*.csv"))',
        'Path("x/last.ckpt")',
    ],
)
def test_a_place_that_is_spelled_is_found(code: str, tmp_path: Path):
    (tmp_path / "a.py").write_text(f'"""audit/audit.json"""\nx = {code}\n', encoding="utf-8")
    assert literals(tmp_path / "a.py")


@pytest.mark.parametrize("code", ['"see audit/duplicates.csv"', '"audit"', '"trust.coverage"', '"report"', '"a / b"'])
def test_other_texts_are_none(code: str, tmp_path: Path):
    (tmp_path / "a.py").write_text(f'"""audit/audit.json"""\nx = {code}\n', encoding="utf-8")
    assert literals(tmp_path / "a.py") == []


def test_places_are_where_they_always_were():
    run = RunFolder(Path("run"))
    places = {
        "run.json": run.record_file,
        "manifest.parquet": run.manifest,
        "folds.parquet": run.folds,
        "quarantine.csv": run.quarantine,
        "metrics.json": run.metrics,
        "report.html": run.report,
        "audit.html": run.audit_page,
        "submission.csv": run.submission,
        "audit/audit.json": run.audit.summary,
        "audit/duplicates.csv": run.audit.csv("duplicates"),
        "audit/thumbnails/thumbnails.npy": run.audit.thumbnail_pictures,
        "audit/mean_source1.png": run.audit.mean_source(1),
        "store/256x192-squash.npy": run.store(256, 192, "squash"),
        "features/ab12": run.features("ab12"),
        "members/main/fold3/network.onnx": run.network("main", 3),
        "members/main/backbone.onnx": run.member("main").backbone,
        "members/main/refit/oof.parquet": run.fold("main", WHOLE).oof,
        "members/main/fold0/stage2/last.ckpt": run.fold("main", 0).stage(2).checkpoint,
        "members/main/fold0/head.safetensors": run.fold("main", 0).head,
        "predictions/main.oof.parquet": run.oof("main"),
        "predictions/ensemble.test.parquet": run.predictions("ensemble", "test"),
        "blend/blend.json": run.blend.summary,
        "blend/combination.npz": run.blend.combination,
        "trust/calibrator.json": run.trust.calibrator,
        "trust/unknown.fold2.npz": run.trust.detector(2),
        "trust/unknown.npz": run.trust.detector(None),
        "watch/main-ab.parquet": run.watch("main", "ab"),
    }
    for name, path in places.items():
        assert path == Path("run") / name and run.relative(path) == name


def test_what_a_run_has_is_listed_in_order(tmp_path: Path):
    run = RunFolder(tmp_path)
    assert not run.has_parts() and run.members() == [] and run.predicted() == []
    for number in (10, 2, 0):
        run.fold("b", number).path.mkdir(parents=True)
    run.fold("b", 2).torch_network.touch()
    for name in ("refit", "foldx", "fold"):
        (run.member("b").path / name).mkdir()
    run.fold("a", 0).path.mkdir(parents=True)
    run.oof("b").parent.mkdir()
    run.oof("b").touch()
    assert [member.name for member in run.members()] == ["a", "b"] and run.predicted() == ["b"] and run.has_parts()
    assert list(run.member("b").folds()) == [0, 2, 10]
    assert run.member("b").torch_networks() == {2: run.fold("b", 2).torch_network}


OLD = {"recipe_name": "quick", "versions": {"manihot": "0.1.0"}, "stages": {"scan": {"status": "done"}}}


@pytest.mark.parametrize(
    ("record", "words", "remedy"),
    [
        (OLD, "format 1, written by manihot 0.1.0; this manihot reads format 2", "manihot==0.1.0"),
        ({"format": 1}, "format 1, written by another manihot", "run the same command again with another --out"),
        ({**OLD, "format": 3}, "format 3, written by manihot 0.1.0, which is newer", "pip install --upgrade manihot"),
    ],
)
def test_a_run_of_another_version_says_who_reads_it(tmp_path: Path, record: dict, words: str, remedy: str):
    run = RunFolder(tmp_path)
    save_json(run.record_file, record)
    for read in (lambda: run.record, lambda: run.update_record(seed=1), lambda: leaderboard([tmp_path])):
        with pytest.raises(RunFolderError, match=words) as caught:
            read()
        assert str(tmp_path) in caught.value.what and remedy in caught.value.remedy
    assert read_json(run.record_file) == record


def test_a_new_run_says_its_format(tmp_path: Path):
    with RunFolder(tmp_path / "run") as run:
        assert run.record == {}
        run.update_record(seed=1)
        assert run.record == {"format": FORMAT, "seed": 1}
