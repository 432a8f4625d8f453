# Every target makes the virtual environment it needs; a fresh machine wants Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DAGSTER_PORT ?= 3000

.DEFAULT_GOAL := install
.PHONY: install demo dev test lint format bench constraints clean

install: $(STAMP) ## make the virtual environment

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## the whole pipeline on made-up data, without network
	$(BIN)/market-data demo

dev: $(STAMP) ## Dagster's UI and daemon
	$(BIN)/market-data ui --port $(DAGSTER_PORT)

test: $(STAMP) ## all tests
	$(BIN)/python -m pytest -n 3 --dist loadgroup

lint: $(STAMP) ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP) ## mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## measure, beside baselines
	$(BIN)/python -m benchmarks

constraints: ## pin the newest versions that pyproject.toml allows
	rm -rf .venv-constraints && $(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	.venv-constraints/bin/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools > constraints.txt
	rm -rf .venv-constraints

clean: ## remove the virtual environment and caches, never data
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
