# The two commands of the README. Windows has no make: the README gives the same as pip commands.
PYTHON ?= python3
BIN := .venv/bin
CORE := .venv-core/bin

.PHONY: demo test slow core tutorials check docs wheel lowest

# Reinstalled when the dependencies change: the core alone, and with all that the tests need.
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

tutorials: .venv/all
	$(BIN)/python -m pytest -m tutorial

check: .venv/all
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python -m pytest tests/test_style.py
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/missing.yml .github/ISSUE_TEMPLATE/wrong-result.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

# The documentation as a site, in site/; a warning or a dead link is an error.
.venv/docs: .venv/core
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch .venv/docs

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# The wheel, in an environment that has never seen this folder, makes the demo.
wheel: .venv/all
	rm -rf dist .venv-wheel
	$(BIN)/python -m build --quiet
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet dist/*.whl
	cd .venv-wheel && bin/manihot demo-data demo --photos 60 && bin/manihot run demo --recipe quick --out demo-run && test -s demo-run/report.html
	rm -rf .venv-wheel

# The oldest versions that pyproject.toml allows.
lowest: pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	VIRTUAL_ENV=.venv-lowest .venv-lowest/bin/uv pip install --quiet --resolution lowest-direct -e . && .venv-lowest/bin/python -m pip install --quiet pytest hypothesis
	.venv-lowest/bin/python -m pytest -m core
