# The commands of the README. Each does all its own set-up: Python 3.11, make and git are enough.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# a process for each core; threads on top only get in their way
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto
RUN := runs/quickstart-$(shell date +%Y%m%d-%H%M%S)

.PHONY: quickstart serve test test-full faults mutants lint docs

quickstart: $(VENV)/installed
	$(BIN)/adapt train quickstart --out $(RUN) --plot
	$(BIN)/adapt eval $(RUN)/adapter.safetensors --data emoji@fluent-3d
	$(BIN)/adapt predict $(RUN)/adapter.safetensors notebooks/example.png

# the latest quickstart's adapter, which is trained where there is none, at http://127.0.0.1:8000
serve: $(VENV)/installed-serve
	@ls runs/quickstart-*/adapter.safetensors > /dev/null 2>&1 || $(MAKE) quickstart
	$(BIN)/adapt serve "$$(ls -d runs/quickstart-* | tail -n 1)" --folder runs

# each method on two backbones, and all other tests
test: $(VENV)/installed-dev
	$(PYTEST)

# each method on every backbone that it fits
test-full: $(VENV)/installed-dev
	$(PYTEST) --all-pairs

# small changes to the code that some test must notice; tests/mutation/README.md says how
mutants: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutation/run.py

faults: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m faults -rP tests/faults

# the site, in build/docs/index.html
docs: $(VENV)/installed-docs
	$(BIN)/sphinx-build -q -W -n --keep-going docs build/docs

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[plot]"
	touch $@

$(VENV)/installed-serve: $(VENV)/installed
	$(BIN)/pip install --quiet --editable ".[serve]"
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/pip install --quiet --editable ".[docs]"
	touch $@
