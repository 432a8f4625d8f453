# Every target creates the virtual environment that it needs. You need Python >= 3.11 and make. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DAGSTER_PORT ?= 3000
# The build backend, and its requirement for an editable install. Both are pinned like everything else.
BUILD := hatchling editables

.DEFAULT_GOAL := install
.PHONY: help install demo dev test lint format docs bench constraints clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1	\2/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "make %-12s %s\n", $$1, $$2 }'

install: $(STAMP) ## create the virtual environment (default)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP) ## run the whole pipeline on generated data, without network
	$(BIN)/market-data demo

dev: $(STAMP) ## start Dagster's UI and daemon
	$(BIN)/market-data ui --port $(DAGSTER_PORT)

test: $(STAMP) ## run all tests, and measure which lines of the package run
	$(BIN)/python -m pytest -n 3 --dist loadgroup -p tools.coverage_gate --coverage-at-least 95

lint: $(STAMP) ## check format, style, types, dependencies, walls and words
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/deptry --no-ansi market_data_pipeline
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tools.phrases

format: $(STAMP) ## fix format and style where possible
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP) ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(STAMP) ## measure, with baselines in the same run
	$(BIN)/python -m benchmarks

constraints: ## pin the newest allowed versions, with the hashes of their files
	rm -rf .venv-constraints && $(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/python -m pip install --quiet --disable-pip-version-check uv
	printf '%s\n' $(BUILD) | .venv-constraints/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
		--default-index https://pypi.org/simple --generate-hashes --no-annotate \
		--custom-compile-command 'make constraints' --extra dev --extra docs --output-file constraints.txt pyproject.toml -
	rm -rf .venv-constraints

clean: ## remove the virtual environment and caches, never data
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache site
