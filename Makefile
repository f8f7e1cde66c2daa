# Every target makes what it needs: `make quickstart` works in a fresh clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEVELOP := $(VENV)/.develop
# Compiling is most of what tests do. JAX keeps what it has compiled, so that processes that tests
# start, and a second call, need not do it again.
COMPILED := JAX_COMPILATION_CACHE_DIR=$(CURDIR)/build/compiled \
  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=0
PYTEST := JAX_PLATFORMS=cpu $(COMPILED) $(BIN)/python -m pytest
# Nearly all tests run programs for a few steps: XLA shall not spend its time on optimising them.
# Those of label enhancement compute for long; they, and the commands of the README in .ci/run, run
# what users run.
UNOPTIMISED := XLA_FLAGS="--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
# Compiling keeps one core busy: two processes do in half the time what one does.
PARALLEL := --numprocesses auto --maxprocesses 4
LONG := tests/enhancement
COVERED := tests/losses tests/evaluation $(wildcard tests/test_queue*.py)

.PHONY: quickstart test test-slow coverage lint types format wheel gpu bench bench-input bench-loss bench-step yeast clean help

help:
	@echo "quickstart  train the embedded default and write a report (about 4 minutes)"
	@echo "test        the fast tests, with coverage          test-slow  the others"
	@echo "lint types  ruff and mypy           format     ruff's own layout"
	@echo "coverage    losses, queue and evaluation, at least 95 %"
	@echo "wheel       build the wheel, install it by itself and try it"
	@echo "gpu         every check and benchmark that wants a GPU"
	@echo "bench       speed on vectors beside PyTorch, where that is installed"
	@echo "bench-input images per second of the input pipeline beside a PyTorch DataLoader"
	@echo "bench-loss  time and memory of the loss beside plain JAX and PyTorch"
	@echo "bench-step  the training step on photographs beside PyTorch, and its convolutions"
	@echo "yeast       MulSupCon on Yeast (JAXMLCL_DATA names the folder of the data)"

$(BIN)/python:
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or later is needed, not {v[0]}.{v[1]}; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(DEVELOP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@ $(INSTALLED)

quickstart: $(INSTALLED)
	rm -rf runs/quickstart
	$(BIN)/jaxmlcl train configs/quickstart.py
	$(BIN)/jaxmlcl evaluate runs/quickstart
	$(BIN)/jaxmlcl report runs/quickstart

# What coverage looks at is run by it, and not once more.
test: coverage
	$(UNOPTIMISED) $(PYTEST) tests $(COVERED:%=--ignore=%) -m "not slow" $(PARALLEL)
	$(UNOPTIMISED) $(PYTEST) --doctest-modules jaxmlcl $(PARALLEL)

test-slow: $(DEVELOP)
	$(UNOPTIMISED) $(PYTEST) tests $(LONG:%=--ignore=%) -m slow $(PARALLEL) --dist loadfile
	$(PYTEST) $(LONG) -m slow $(PARALLEL)

coverage: $(DEVELOP)
	$(UNOPTIMISED) $(PYTEST) $(COVERED) -m "not slow" $(PARALLEL) \
	  --cov=jaxmlcl.losses --cov=jaxmlcl.queue --cov=jaxmlcl.evaluation --cov-fail-under=95

lint: $(DEVELOP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEVELOP)
	$(BIN)/mypy

format: $(DEVELOP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The wheel in an environment of its own, away from the sources and without what only developers
# have: every file is there, and the commands that a user begins with work.
wheel: $(DEVELOP)
	rm -rf dist build/wheel .venv-wheel
	$(BIN)/python -m build --wheel --outdir dist
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	mkdir -p build/wheel
	cd build/wheel && JAX_PLATFORMS=cpu $(CURDIR)/.venv-wheel/bin/python $(CURDIR)/tests/wheel.py $(CURDIR)

# With the packages that are there: a machine with a GPU has its own JAX.
gpu:
	@if [ -x $(BIN)/python ]; then python=$(BIN)/python; \
	elif $(PYTHON) -c 'import jax, flax, optax, orbax.checkpoint' 2>/dev/null; then python=$(PYTHON); \
	else $(MAKE) --no-print-directory $(INSTALLED) && python=$(BIN)/python; fi; \
	$$python -m benchmarks.gpu

# PyTorch is large and only the benchmark wants it: pip install "jaxmlcl[benchmark]" adds the peer.
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.vectors --json build/vectors.json

bench-input: $(INSTALLED)
	$(BIN)/python -m benchmarks.input --json build/input.json

bench-loss: $(INSTALLED)
	$(BIN)/python -m benchmarks.loss

bench-step: $(INSTALLED)
	$(BIN)/python -m benchmarks.train_step --json build/train_step.json
	$(BIN)/python -m benchmarks.convolution --json build/convolution.json

yeast: $(INSTALLED)
	$(BIN)/jaxmlcl train configs/mulsupcon/yeast_released.py
	$(BIN)/jaxmlcl evaluate runs/mulsupcon-yeast-released
	$(BIN)/jaxmlcl report runs/mulsupcon-yeast-released

clean:
	rm -rf $(VENV) .venv-wheel build dist runs
