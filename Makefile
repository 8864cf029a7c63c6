# make demo: agents of several kinds on the same streams, a leaderboard and a picture. make test: the whole test suite.
# Each makes .venv and installs what it needs; nothing else is asked for but Python 3.11+ and make.

PYTHON ?= python3
BIN := .venv/bin

# On Linux without a GPU the pinned torch is installed first, so that no CUDA build is pulled in.
ifeq ($(shell uname -s),Linux)
ifeq ($(shell command -v nvidia-smi),)
PINS := --constraint constraints.txt
endif
endif
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PINS)

.PHONY: demo test lint docs

demo: .venv/.installed
	$(BIN)/clenv bench demo

test: .venv/.installed
	$(BIN)/python -m pytest --numprocesses auto --dist loadgroup $(ARGS)

docs: .venv/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "The documentation is in site/index.html."

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "clenv needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv: takes a few minutes the first time."
	$(INSTALL) torch
	$(INSTALL) --editable '.[dev]'
	touch $@
