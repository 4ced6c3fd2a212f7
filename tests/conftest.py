"""What the tests share: where the real photographs are, if anywhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_data(name: str = "") -> Path:
    """The folder of real data: $MANIHOT_DATA, or `shared/data` beside the checkout; skips the test without it."""
    home = os.environ.get("MANIHOT_DATA")
    folder = Path(home) if home else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / name).exists():
        pytest.skip(f"real data not present: {folder / name} (set MANIHOT_DATA to the folder that holds bracol/ and cassava/)")
    return folder / name
