# The two commands of the README. Windows has no make: the README gives the same as pip commands.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow check

# Installed anew when the dependencies change.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev,oracles]'
	touch .venv/installed

demo: .venv/installed
	$(BIN)/manihot demo-data demo
	$(BIN)/manihot run demo --out runs/demo
	@echo "Open runs/demo/report.html in a browser."

test: .venv/installed
	$(BIN)/python -m pytest

slow: .venv/installed
	$(BIN)/python -m pytest -m slow

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/mypy
