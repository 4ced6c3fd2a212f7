"""Saved and given files: whatever happened to one, its reader gives a record or a ManihotError that names the file."""

from __future__ import annotations

import random
import time
import warnings
import zlib
from pathlib import Path

import pytest
from damage import damage
from given_files import GIVEN
from saved_files import KINDS as SAVED

from manihot.errors import ManihotError

KINDS = SAVED | GIVEN
INPUTS = 35  # damaged files of each kind
LONGEST = 5.0  # seconds for one


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_file_is_read(kind: str, tmp_path: Path):
    path = tmp_path / KINDS[kind].name
    KINDS[kind].make(path)
    KINDS[kind].use(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_an_error_that_names_it(kind: str, tmp_path: Path, fuzz_inputs: int):
    path, seed = tmp_path / KINDS[kind].name, zlib.crc32(kind.encode())
    KINDS[kind].make(path)
    whole = path.read_bytes()
    for number in range(fuzz_inputs or INPUTS):
        path.write_bytes(damage(path, whole, random.Random(f"{seed} {number}")))
        clock = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                KINDS[kind].use(path)
        except ManihotError as error:
            assert str(tmp_path) in error.what, f"input {number}: {error}"
            assert error.remedy, f"input {number}: {error}"
        except Exception as error:
            raise AssertionError(f"{kind}, input {number}: {type(error).__name__}: {error}") from error
        assert time.monotonic() - clock < LONGEST, f"input {number}"
