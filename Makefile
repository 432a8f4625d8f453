# Every target makes the virtual environment it needs; a fresh machine wants Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DAGSTER_PORT ?= 3000
# What builds the package, pinned as the rest is: hatchling, and what it wants for an editable install.
BUILD := hatchling editables

.DEFAULT_GOAL := install
.PHONY: install demo dev test lint format bench constraints clean

install: $(STAMP) ## make the virtual environment

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
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

constraints: ## pin the newest versions that pyproject.toml allows, with the hashes of their files
	rm -rf .venv-constraints && $(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/python -m pip install --quiet --disable-pip-version-check uv
	printf '%s\n' $(BUILD) | .venv-constraints/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
		--generate-hashes --no-annotate --custom-compile-command 'make constraints' --extra dev \
		--output-file constraints.txt pyproject.toml -
	rm -rf .venv-constraints

clean: ## remove the virtual environment and caches, never data
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
