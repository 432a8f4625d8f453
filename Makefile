# Every target creates the virtual environment that it needs. You need Python >= 3.11 and make. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
DAGSTER_PORT ?= 3000
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The build backend, and its requirement for an editable install. Both are pinned like everything else.
BUILD := hatchling editables
COMPILE := .venv-constraints/bin/uv pip compile --quiet --universal --python-version 3.11 \
	--default-index https://pypi.org/simple --generate-hashes --no-annotate --custom-compile-command 'make constraints'
# Real tools that exports are read with. Each has an environment of its own, and nautilus needs Python 3.12.
CLIENTS_PYTHON ?= python3.12
CLIENTS_DIR := market_data_pipeline_tests/clients
CLIENTS := $(patsubst $(CLIENTS_DIR)/requirements-%.txt,.venv-clients-%/.installed,$(wildcard $(CLIENTS_DIR)/requirements-*.txt))
# `make` installs the server and the live feed with the rest: the demo starts them.
EXTRAS := --extra server --extra live

.DEFAULT_GOAL := install
.PHONY: help install demo team-demo dev test test-clients test-engines lint format vendor docs bench constraints clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1	\2/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "make %-12s %s\n", $$1, $$2 }'

install: $(RUN) ## create the virtual environment with what the pipeline needs to run (default)

$(RUN): pyproject.toml constraints.txt
	@echo 'Installing what the pipeline needs to run into $(VENV): constraints.txt, each file by its hash.'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --require-hashes --no-deps --requirement constraints.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): $(RUN) constraints-dev.txt
	@echo 'Adding the tools of development to $(VENV): constraints-dev.txt, each file by its hash.'
	@$(PIP) --require-hashes --no-deps --requirement constraints-dev.txt
	@touch $@

demo: $(RUN) ## run the whole pipeline on generated data, without network
	$(BIN)/market-data demo

team-demo: $(DEV) ## run a team on this machine: PostgreSQL, Redis, UI, two workers, and one of them is killed
	$(BIN)/python -m tools.team_demo

dev: $(RUN) ## start Dagster's UI and daemon
	$(BIN)/market-data ui --port $(DAGSTER_PORT)

test: $(DEV) ## run all tests, and measure which lines of the package run
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 4 --dist loadgroup -p tools.coverage_gate --coverage-at-least 95

test-clients: $(DEV) $(CLIENTS) ## run the tests that need freqtrade and other real tools
	$(BIN)/python -m pytest -m clients market_data_pipeline_tests

test-engines: $(DEV) .venv-clients-iceberg/.installed ## run the tests that read Iceberg tables with Spark and other engines
	$(BIN)/python -m pytest -m clients -rs market_data_pipeline_tests/iceberg

.venv-clients-%/.installed: $(CLIENTS_DIR)/requirements-%.txt
	@echo 'Installing $* into .venv-clients-$*, for tests only.'
	@$(CLIENTS_PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

lint: $(DEV) ## check format, style, types, dependencies, walls and words
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/deptry --no-ansi market_data_pipeline
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tools.phrases

format: $(DEV) ## fix format and style where possible
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

vendor: $(DEV) ## fetch the scripts of others for the page of the server again
	$(BIN)/python -m tools.vendor

docs: $(DEV) ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(DEV) ## measure, with baselines in the same run
	$(BIN)/python -m benchmarks

constraints: ## pin the newest allowed versions, with the hashes of their files
	@rm -rf .venv-constraints && $(PYTHON) -m venv .venv-constraints
	@.venv-constraints/bin/python -m pip install --quiet --disable-pip-version-check uv
	@printf '%s\n' $(BUILD) | $(COMPILE) --upgrade $(EXTRAS) --extra mcp --extra postgres --extra celery --extra iceberg --extra s3 --extra dev --extra docs --output-file constraints-dev.txt pyproject.toml -
	@# What runs is a part of it, in the same versions.
	@printf '%s\n' $(BUILD) | $(COMPILE) --upgrade $(EXTRAS) --constraint constraints-dev.txt --output-file constraints.txt pyproject.toml -
	@rm -rf .venv-constraints

clean: ## remove the virtual environment and caches, never data
	rm -rf $(VENV) .venv-clients-* .mypy_cache .ruff_cache .pytest_cache site
