.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo test test-all check format clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv and install everything into it (the other targets call this)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[test,dev]'
	@touch $@

demo: setup  ## render, score and report the embedded model's prompts (about 4 minutes on 2 cores)
	$(BIN)/python jobs/render.py --config configs/demo.yaml

test: setup  ## the fast test suite
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile tests

test-all: setup  ## every test, the slow ones too
	$(BIN)/python -m pytest -n 2 --dist loadfile tests

check: setup  ## lint, format, layering
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q tests/test_layering.py

format: setup  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the set-up and what runs wrote here
	rm -rf $(VENV) out
