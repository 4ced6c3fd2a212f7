"""A real Chromium, and axe-core to judge pages by; tests without them are skipped with the reason."""

from __future__ import annotations

import shutil
import time
from typing import Any

import pytest

from npm import npm_package

AXE = "4.10.3"  # as in test_accessibility.py
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


def find_axe() -> str:
    """The script of axe-core."""
    return (npm_package("axe-core", AXE) / "axe.min.js").read_text(encoding="utf-8")


def serious_findings(page: Any, axe: str) -> list[str]:
    """What axe-core finds serious or critical in a page as it is shown now."""
    page.evaluate(axe)
    found = page.evaluate("axe.run().then(found => found.violations)")
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found if one["impact"] in SERIOUS]
