"""Packages of npm that tests of pages need: from $MANIHOT_CACHE/npm, or got by `npm pack` once per session."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest


@cache
def npm_package(name: str, version: str) -> Path:
    """The unpacked package; skips the test, with the reason, where it can't be had."""
    kept = Path(os.environ.get("MANIHOT_CACHE", tempfile.gettempdir())) / "npm" / f"{name}-{version}"
    if (kept / "package.json").is_file():
        return kept
    if shutil.which("npm") is None:
        pytest.skip(f"npm is not installed, and there is no {kept}")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        command = ["npm", "pack", f"{name}@{version}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"{' '.join(command)} failed: {done.stderr[-300:]}")
        shutil.unpack_archive(next(Path(folder).glob("*.tgz")), folder, filter="data")
        if not kept.exists():
            (Path(folder) / "package").rename(kept)
    return kept
