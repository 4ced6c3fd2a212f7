"""The run folder's places: spelled in one module, and where they always were."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import manihot
from manihot.records.run_folder import WHOLE, RunFolder

SOURCE = Path(manihot.__file__).parent
HOME = SOURCE / "records/run_places.py"
NAMES = (
    "run.json", "manifest.parquet", "folds.parquet", "quarantine.csv", "submission.csv", "metrics.json", "report.html",
    "audit.html", "audit.json", "what_if.json", "embeddings.parquet", "blend.json", "combination.npz", "trust.json",
    "calibrator.json", "sets.json", "unknown.json", "inputs.txt", "last.ckpt", "history.jsonl", "margins.parquet",
    "best.safetensors", "head.safetensors", "network.onnx", "backbone.onnx", "oof.parquet", "test.parquet",
)  # fmt: skip
FOLDERS = ("audit", "store", "features", "members", "predictions", "blend", "trust", "watch")
LITERAL = re.compile(rf"(.*[/.])?({'|'.join(map(re.escape, NAMES))})|({'|'.join(FOLDERS)})/\S*")


def literals(path: Path) -> list[str]:
    """Texts in the code of a file that spell a place of the run folder; docstrings and sentences don't count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and node.body
        and isinstance(node.body[0], ast.Expr)
    }  # fmt: skip
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
            if node.right.value in FOLDERS:  # run / "audit"
                found.append(f"line {node.lineno}: / {node.right.value}")
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            if LITERAL.fullmatch(node.value):
                found.append(f"line {node.lineno}: {node.value}")
    return found


def test_no_other_module_spells_a_place_of_the_run_folder():
    found = [
        f"{path.relative_to(SOURCE)}, {one}"
        for path in sorted(SOURCE.rglob("*.py")) if path != HOME
        for one in literals(path)
    ]  # fmt: skip
    assert found == []
