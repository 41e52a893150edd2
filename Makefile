.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_TO_TEST := $(VENV)/.ready-to-test
CONSTRAINTS ?= constraints.txt
EXACTLY = $(addprefix --constraint ,$(CONSTRAINTS))
INSTALL = $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python $(EXACTLY) --editable

.PHONY: help setup demo test test-all faults check format constraints clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY_TO_TEST)  ## create .venv with all packages (the other targets do what they need of it)

$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(EXACTLY) "uv>=0.5"
	$(INSTALL) .
	@touch $@

$(READY_TO_TEST): $(READY)
	$(INSTALL) '.[test,dev]'
	@touch $@

demo: $(READY)  ## render, score and report the embedded model's prompts (about 4 minutes on 2 cores)
	$(BIN)/python jobs/render.py --config configs/demo.yaml

test: setup  ## the fast test suite
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile tests

test-all: setup  ## every test, including the slow ones
	$(BIN)/python -m pytest -n 2 --dist loadfile tests

faults: setup  ## inject faults into runs and compare them with an undisturbed run (25 minutes)
	$(BIN)/python tests/faults/suite.py

check: setup  ## lint, format, types, layering
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layering.py

format: setup  ## format the code and apply automatic fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch pins the packages of its CUDA, so they are left out: a torch for another CUDA fits too.
constraints: setup  ## write the versions in .venv to constraints.txt (for the newest: make clean setup CONSTRAINTS=)
	@$(BIN)/uv pip freeze --quiet --python $(BIN)/python --exclude-editable > $(VENV)/versions.txt
	@echo '# Written by `make constraints`: the versions that the tests passed with.' > constraints.txt
	@sed -E -e 's/\+[^+]*$$//' -e '/^nvidia-ml-py=/b' -e '/^(cuda-|nvidia-|triton=|pip=)/d' $(VENV)/versions.txt >> constraints.txt

clean:  ## remove .venv and the outputs of runs
	rm -rf $(VENV) out
