# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# One process a core; the files stay whole, because their cases share what is costly to build.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

LOWEST ?= .venv-lowest

.PHONY: setup demo check test test-lowest docs rooms gpu clean

# A stamp file, so that a second `make` does not install again. An interrupted install leaves no stamp.
$(VENV)/.dev: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

$(VENV)/.run: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

setup: $(VENV)/.dev

# The development install holds all that the demo needs.
demo: $(if $(wildcard $(VENV)/.dev),,$(VENV)/.run)
	$(BIN)/explainguide demo

# Before each commit: lint, types, the fast tests.
check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow and not gpu"

# Everything: lint, types, all tests, the documentation with warnings as errors.
test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) docs
	$(PYTEST) --durations=15

$(LOWEST)/.installed: setup.cfg tests/lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet -c tests/lowest.txt -e ".[coco,sweep,tensorboard,test]"
	touch $@

# The fast tests with the lowest versions that setup.cfg names. For another Python:
# make test-lowest PYTHON=python3.10 LOWEST=.venv-lowest-3.10
test-lowest: $(LOWEST)/.installed
	@$(LOWEST)/bin/python --version
	@$(LOWEST)/bin/python -m pip list --exclude-editable
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -q -n auto --dist loadfile -m "not slow and not gpu"

docs: setup
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# How many rooms, floors and arrows the package has, and what one call touches.
rooms: setup
	$(BIN)/python -m tests.rooms

# On a machine with a CUDA device; needs torch, torchvision and timm, nothing else.
gpu:
	$(PYTHON) -m pytest -q -m gpu tests/gpu

clean:
	rm -rf $(VENV) $(LOWEST) docs/_build build dist *.egg-info
