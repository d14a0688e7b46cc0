# Every target first sets up .venv/ if it is not there or the requirements have changed.
# Python 3.11 or newer is all that is assumed; PYTHON names another interpreter.

PYTHON ?= python3
EXTRAS ?= test
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
# For mypy: our packages under the names that they are installed by.
TYPES := build/types

.PHONY: help setup demo test test-extended test-fast fuzz lint format bench clean

help:
	@echo "make demo       set up and run the demo: train KTN on rendered people"
	@echo "make test       set up and run the tests (make test-fast: without the slow ones;"
	@echo "                make test-extended: trainings and killed processes, minutes)"
	@echo "make fuzz       read damaged and hostile files for a quarter of an hour"
	@echo "make lint       check style and types (make format: fix the style)"
	@echo "make bench      measure speed, and add a line to bench.jsonl"

setup: $(STAMP)

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	# Compiling every file of every package takes longer than installing them; Python compiles
	# what it imports.
	$(BIN)/python -m pip install --quiet --no-compile --requirement requirements.txt \
		--editable '.[$(EXTRAS)]'
	@touch $(STAMP)

demo: setup
	$(BIN)/ktn demo

test: setup
	$(BIN)/python -m pytest -q -n 2 --dist worksteal --durations 15 -m 'not extended'

test-extended: setup
	$(BIN)/python -m pytest -q -m extended

test-fast: setup
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m 'not slow and not extended'

fuzz: setup
	KTN_FUZZ_EXAMPLES=2000 $(BIN)/python -m pytest -q tests/fuzz

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(TYPES) && mkdir -p $(TYPES)/ktn_jax
	ln -s "$(CURDIR)"/ktn_jax/* "$(CURDIR)"/configs "$(CURDIR)"/data_pipelines $(TYPES)/ktn_jax
	cd $(TYPES) && ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml \
		--cache-dir ../mypy -p ktn_jax

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS),bench]"
	$(BIN)/python experiments/bench/track.py

clean:
	rm -rf $(VENV) build dist *.egg-info
