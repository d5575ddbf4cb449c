# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# One process a core; the files stay whole, because their cases share what is costly to build.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

.PHONY: setup demo check test docs gpu clean

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

docs: setup
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# On a machine with a CUDA device; needs torch, torchvision and timm, nothing else.
gpu:
	$(PYTHON) -m pytest -q -m gpu tests/gpu

clean:
	rm -rf $(VENV) docs/_build build dist *.egg-info
