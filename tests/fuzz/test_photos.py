"""Photographs and TFRecords: whatever was damaged, a picture or a named fault comes out, soon and in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

INPUTS = 25  # damaged files of each kind
MOST_MEMORY = 1_000_000_000  # bytes


def test_damaged_photographs_and_records_are_read_or_named(fuzz_inputs: int) -> None:
    campaign = Path(__file__).with_name("photo_campaign.py")
    command = [sys.executable, str(campaign), str(fuzz_inputs or INPUTS)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    last = done.stdout.strip().rpartition("\n")[2]
    assert done.returncode == 0, f"{last}: {done.stderr[-2000:]}"
    assert done.stderr == "", "a library prints to the terminal"
    figures = json.loads(last)
    assert figures["memory"] < MOST_MEMORY, figures
    assert figures["outcomes"]["read"] > 0.1 * figures["inputs"], figures
    print(figures)
