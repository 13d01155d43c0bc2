# The two commands of the README. Each does all its own set-up: Python 3.11, make and git are enough.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/quickstart-$(shell date +%Y%m%d-%H%M%S)

.PHONY: quickstart test faults lint

quickstart: $(VENV)/installed
	$(BIN)/adapt train quickstart --out $(RUN) --plot
	$(BIN)/adapt eval $(RUN)/adapter.safetensors --data emoji@fluent-3d
	$(BIN)/adapt predict $(RUN)/adapter.safetensors notebooks/example.png

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto  # a process for each core; threads on top only get in their way

faults: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m faults -rP tests/faults

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[plot]"
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@
