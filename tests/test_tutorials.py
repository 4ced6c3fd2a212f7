"""Every tutorial is followed as a reader would: its commands, in order, in an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from npm import npm_package

TUTORIALS = sorted((Path(__file__).parents[1] / "docs/tutorials").glob("*.md"))

pytestmark = [pytest.mark.tutorial, pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")]


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_can_be_followed(page: Path, tmp_path: Path) -> None:
    commands = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert commands, "a tutorial without a command"
    if runtime := re.search(r"npm pack .*(onnxruntime-web)@([\d.]+)", "\n".join(commands)):
        npm_package(*runtime.groups())  # skips where npm can't fetch it
    programs = tmp_path / "programs"
    programs.mkdir()
    manihot = programs / "manihot"
    manihot.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m manihot "$@"\n', encoding="utf-8")
    manihot.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    around = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(commands)], cwd=work, env=around, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
