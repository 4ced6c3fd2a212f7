"""A real Chromium, and axe-core to judge pages by; tests without them are skipped with the reason."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

AXE = "axe-core@4.14.1"  # npm, MPL-2.0: for tests alone
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SERIOUS = ("serious", "critical")


def start_browser(play: Any) -> Any:
    """A browser without a window."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    return play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])


def until(page: Any, expression: str, seconds: float = 30) -> None:
    """Wait until an expression is true in a page whose policy forbids `eval`, which playwright's own waiting needs."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never true: {expression}"
        time.sleep(0.02)


def find_axe(folder: Path) -> str:
    """The script of axe-core, got by npm."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, which gets axe-core")
    done = subprocess.run(["npm", "pack", AXE], cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm pack {AXE} failed: {done.stderr[-300:]}")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        script = archive.extractfile("package/axe.min.js")
        assert script is not None
        return script.read().decode("utf-8")


def serious_findings(page: Any, axe: str) -> list[str]:
    """What axe-core finds serious or critical in a page as it is shown now."""
    page.evaluate(axe)
    found = page.evaluate("axe.run().then(found => found.violations)")
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found if one["impact"] in SERIOUS]
