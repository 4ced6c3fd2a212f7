"""The core alone: every verb that promises to work without torch, from the command line, on a few drawn photographs.

Runs in both environments. Where torch is installed it is hidden from the commands, so that the promise is tested there
too; the environment without it finds what a package pulls in by accident.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytestmark = pytest.mark.core

HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "onnxscript"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in ("torch", "timm") else find(name, package)
"""


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment for commands in which torch can't be imported."""
    folder = tmp_path_factory.mktemp("hidden")
    (folder / "sitecustomize.py").write_text(HIDE, encoding="utf-8")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


def manihot(hidden: dict[str, str], *words: object, code: int = 0) -> str:
    """What a command prints, both streams; fails where it leaves with another exit code."""
    command = [sys.executable, "-m", "manihot", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=hidden, timeout=600, encoding="utf-8")
    assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


FAST = ("--set", "folds.n=2", "--set", "features.c=[0.01]", "--set", "photo.area=9216", "--set", "tta=[{name: full}]")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, hidden: dict[str, str]) -> Path:
    """Drawn photographs and two finished runs, `quick` and `robust`."""
    folder = tmp_path_factory.mktemp("core")
    manihot(hidden, "demo-data", folder / "demo", "--photos", 90)
    for recipe in ("quick", "robust"):
        out = folder / recipe
        said = manihot(hidden, "run", folder / "demo", "--out", out, "--recipe", recipe, *FAST)
        assert (out / "report.html").is_file() and (out / "audit.html").is_file(), said
    return folder


def test_torch_is_hidden(hidden: dict[str, str]):
    done = subprocess.run([sys.executable, "-c", "import torch"], env=hidden, capture_output=True, text=True)
    assert "ModuleNotFoundError" in done.stderr


def test_quick_is_the_recipe_where_torch_is_not_installed(hidden: dict[str, str], home: Path, tmp_path: Path):
    said = manihot(hidden, "run", home / "demo", "--out", tmp_path / "run", *FAST)
    assert "Recipe: quick" in said


def test_a_run_stores_one_backbone_and_small_heads(home: Path):
    networks = sorted((home / "quick/members").rglob("*.onnx"))
    heads = sorted((home / "quick/members").rglob("head.safetensors"))
    assert [path.name for path in networks] == ["backbone.onnx"] and len(heads) == 2
    assert sum(path.stat().st_size for path in (*networks, *heads)) < 20e6


def test_predict(hidden: dict[str, str], home: Path, tmp_path: Path):
    for name in ("quick", "robust"):
        out = tmp_path / f"{name}.csv"
        said = manihot(hidden, "predict", home / name, home / "demo", "--out", out)
        assert "accuracy" in said and "log loss" in said
        table = pd.read_csv(out)
        probs = table[[column for column in table if column[1:].isdigit()]].to_numpy()
        assert len(table) > 80 and np.allclose(probs.sum(axis=1), 1, atol=1e-5)
        assert (tmp_path / f"{name}.answers.csv").is_file()
    manihot(hidden, "predict", home / "quick", home / "demo", "--out", tmp_path / "my submission.csv")


def test_audit_clean_watch_explain(hidden: dict[str, str], home: Path, tmp_path: Path):
    manihot(hidden, "audit", home / "demo", "--out", tmp_path / "audited", *FAST, "--what-if")
    assert (tmp_path / "audited/audit.html").is_file() and (tmp_path / "audited/audit/what_if.json").is_file()
    oof = home / "quick/predictions/main.oof.parquet"
    manihot(hidden, "audit", "--predictions", oof, "--out", tmp_path / "from predictions")
    assert (tmp_path / "from predictions/audit.html").is_file()
    manihot(hidden, "clean", home / "quick", "--out", tmp_path / "cleaned")
    assert (tmp_path / "cleaned/manifest.parquet").is_file()
    manihot(hidden, "watch", home / "quick", home / "demo", "--out", tmp_path / "watched")
    photo = next((home / "demo/train_images").glob("*.jpg"))
    manihot(hidden, "explain", home / "quick", photo, "--out", tmp_path / "explained")
    assert "Grad-CAM" in (tmp_path / "explained/explain.html").read_text(encoding="utf-8")


def test_what_needs_saved_predictions_only(hidden: dict[str, str], home: Path, tmp_path: Path):
    both = [home / f"{name}/predictions/main.oof.parquet" for name in ("quick", "robust")]
    manihot(hidden, "blend", *both, "--out", tmp_path / "blend")
    manihot(hidden, "stack", *both, "--out", tmp_path / "stack")
    manihot(hidden, "calibrate", both[0], "--out", tmp_path / "calibrated")
    costs = tmp_path / "costs.yaml"
    costs.write_text("ask: 0.2\n", encoding="utf-8")
    manihot(hidden, "decide", both[0], costs, "--out", tmp_path / "decided")
    assert "quick" in manihot(hidden, "compare", home / "quick", home / "robust")
    manihot(hidden, "report", home / "quick")
    manihot(hidden, "share", home / "quick", "--out", tmp_path / "shared.zip")
    assert (tmp_path / "shared.zip").stat().st_size < 30e6
    shutil.unpack_archive(tmp_path / "shared.zip", tmp_path / "there")
    manihot(hidden, "predict", tmp_path / "there/quick", home / "demo", "--out", tmp_path / "there.csv")


def test_what_needs_no_run(hidden: dict[str, str], home: Path, tmp_path: Path):
    photo = next((home / "demo/train_images").glob("*.jpg"))
    manihot(hidden, "scan", home / "demo", "--out", tmp_path / "scanned")
    manihot(hidden, "show-augment", "quick", photo, "--out", tmp_path / "augment.html")
    assert "standard" in manihot(hidden, "recipes")
    manihot(hidden, "recipes", "show", "standard")
    manihot(hidden, "suite", "lecture-ablations", "--list")


@pytest.mark.parametrize(
    "words",
    [
        ("run", "PHOTOS", "--out", "OUT", "--recipe", "standard"),
        ("run", "PHOTOS", "--out", "OUT", "--recipe", "quick", "--set", "model.backbone=resnet18"),
        ("prepare", "PHOTOS", "--out", "OUT", "--recipe", "standard"),
        ("lr-find", "standard", "PHOTOS", "--out", "OUT"),
        ("translate", "PHOTOS", "--from", "healthy", "--to", "mosaic", "--out", "OUT"),
        ("suite", "lecture-ablations", "PHOTOS", "--out", "OUT"),
    ],
)
def test_what_needs_torch_says_so_before_a_photograph_is_read(
    hidden: dict[str, str], home: Path, tmp_path: Path, words: tuple[str, ...]
):
    named = {"PHOTOS": home / "demo", "OUT": tmp_path / "out"}
    said = " ".join(manihot(hidden, *(named.get(word, word) for word in words), code=2).split())
    assert "needs the extra 'train'" in said and 'pip install "manihot[train]"' in said and "CPU" in said
    assert not (tmp_path / "out" / "manifest.parquet").exists()
