# The two commands of the README. Windows has no make: the README gives the same as pip commands.
PYTHON ?= python3
BIN := .venv/bin
CORE := .venv-core/bin

.PHONY: demo test slow core check

# Installed anew when the dependencies change: the core alone, and with all that the tests need.
.venv/core: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch .venv/core

.venv/all: .venv/core
	$(BIN)/python -m pip install --quiet -e '.[dev,train,oracles]'
	touch .venv/all

# An environment that has never seen torch.
.venv-core/installed: pyproject.toml
	$(PYTHON) -m venv .venv-core
	$(CORE)/python -m pip install --quiet --upgrade pip
	$(CORE)/python -m pip install --quiet -e . pytest hypothesis
	touch .venv-core/installed

demo: .venv/core
	$(BIN)/manihot demo-data demo
	$(BIN)/manihot run demo --out runs/demo
	@echo "Open runs/demo/report.html in a browser."

test: .venv/all
	$(BIN)/python -m pytest

slow: .venv/all
	$(BIN)/python -m pytest -m slow

core: .venv-core/installed
	$(CORE)/python -m pytest -m core

check: .venv/all
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
