"""Options of the tests on damaged files."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--fuzz-inputs 500`: so many damaged inputs of each kind; a few, in seconds, without it."""
    parser.addoption("--fuzz-inputs", type=int, default=0, metavar="N", help="damaged inputs of each kind of file")


@pytest.fixture
def fuzz_inputs(request: pytest.FixtureRequest) -> int:
    """How many damaged inputs of each kind were asked for; 0 for the default."""
    return int(request.config.getoption("--fuzz-inputs", 0))
