# Every target sets up .venv from nothing and is quick when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EMFC := OMP_NUM_THREADS=1 $(BIN)/emfc
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
COVERAGE := --cov --cov-report=term --cov-fail-under=90
LAWS := tests/transforms tests/test_every_family.py tests/test_laws.py tests/test_layers_on_corpus.py tests/program/test_corpus.py \
	tests/layers/test_emit.py tests/layers/test_drawing.py tests/layers/test_recurrent.py tests/passes/test_recurrences.py \
	tests/inference/test_guide.py tests/models tests/flows/test_inversion.py

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint format bench accuracy pictures docs clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 14

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev,docs,test]'
	@touch $@

install: $(INSTALLED)  ## .venv with the project, its tools and its tests' needs

demo: $(INSTALLED)  ## train on real digits and show what came out (about five minutes)
	@mkdir -p runs/demo
	$(EMFC) check models/digits.py --set populations=10
	$(EMFC) graph models/digits.py --set populations=10 -o runs/demo/graph.svg
	$(EMFC) train models/digits.py --epochs 200 --out runs/demo/one --overwrite --baseline --rival spline --rival copula
	$(EMFC) train models/digits.py --set populations=10 --hidden 120,120 --epochs 150 --out runs/demo/ten --overwrite
	$(EMFC) sample runs/demo/ten -n 256 -o runs/demo/drawn.npz
	$(EMFC) score runs/demo/ten runs/demo/drawn.npz --top 8 --bottom 8 --picture runs/demo/drawn-ranked.png

test: $(INSTALLED)  ## ordinary tests and the examples in docstrings; coverage of all but the laws of families and programs
	$(PYTEST) -n $(WORKERS) -q $(LAWS)
	$(PYTEST) -n $(WORKERS) --doctest-modules emfc tests $(LAWS:%=--ignore=%) $(COVERAGE)

test-all: $(INSTALLED)  ## the slow tests too
	$(PYTEST) -n $(WORKERS) --doctest-modules emfc tests -m 'not benchmark' $(COVERAGE)

lint: $(INSTALLED)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)  ## timed work, one after the other
	$(PYTEST) tests -m benchmark -s

accuracy: $(INSTALLED)  ## every family against mpmath, into docs/accuracy.md (about an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.accuracy

pictures: $(INSTALLED)  ## the pictures of the pages
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.accuracy.saturation
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.accuracy.densities

docs: $(INSTALLED)  ## the pages, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet -f .mkdocs.yml

clean:  ## remove what the targets made, but not .venv
	rm -rf site runs dist .coverage .pytest_cache .mypy_cache .ruff_cache
