# One command does each thing. All that is needed beforehand is Python 3.11 or newer, and make.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
# Remade whenever what it depends on changes, so that a second run installs nothing.
INSTALLED := $(VENV)/.installed

.PHONY: help venv browser demo up test check lint format clean long fuzz faults soak

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(INSTALLED) ## Install the farm and its tools into .venv

$(INSTALLED): pyproject.toml constraints.txt
	@python=""; \
	for name in "$${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python; do \
	  if [ -n "$$name" ] && "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    python="$$name"; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then echo "the farm needs Python 3.11 or newer (PYTHON=... names one)" >&2; exit 1; fi; \
	if ! $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  echo "creating $(VENV) with $$("$$python" --version)"; \
	  "$$python" -m venv --clear $(VENV); \
	fi
	@echo "installing the farm and its tools; the first time this takes some minutes"
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -c constraints.txt -e '.[all,dev]'
	@touch $@

browser: ## Install Chromium, which the tests of the page drive, where there is none (Debian and Ubuntu, as root)
	@if ! command -v chromium chromium-browser google-chrome >/dev/null; then \
	  apt-get update && apt-get install -y --no-install-recommends chromium; \
	fi

demo: $(INSTALLED) ## Render a set of prompts on a farm of its own, into out/demo/
	@$(BIN)/python -m cli.main demo

up: $(INSTALLED) ## Start a farm on this machine; Ctrl-C stops it
	@$(BIN)/python -m cli.main up

test: $(INSTALLED) ## Run all tests that this machine can run
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m "not long" tests/e2e tests/integration tests/unit
	$(BIN)/python -m pytest -n auto --maxprocesses 2 --dist loadfile --no-loadscope-reorder -m "not long" tests/faults tests/browser

long: $(INSTALLED) ## Run the tests that `make test` leaves out: further variants of what it tests
	$(BIN)/python -m pytest -m long tests

fuzz: $(INSTALLED) ## Try what is tested by example on four times as many new examples, drawn at random
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m hypothesis --hypothesis-profile=fuzz tests

faults: $(INSTALLED) ## Break real processes in every way that the farm must outlive: some four minutes
	$(BIN)/python -m pytest tests/faults

soak: $(INSTALLED) ## Render thousands of images while everything breaks at random: SEED=7 UNITS=4000; some ten minutes
	PYTHONPATH=.:tests $(BIN)/python -m soak $(if $(SEED),--seed $(SEED)) $(if $(UNITS),--units $(UNITS))

lint: $(INSTALLED) ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint test ## Everything that must be green before a change lands

clean: ## Remove what was built; weights, data/ and pictures stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
