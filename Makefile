# Two commands for a newcomer: `make quickstart` and `make test`. `make help` lists all.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: help setup quickstart test test-slurm test-full torture check docs bench bench-short bench-loop bench-ranks gpu-check house clean

help:           ## list these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

setup: $(VENV)/.installed  ## make .venv and install xlpretrain into it

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("xlpretrain needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[plots,wandb]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: setup  ## build a dataset, train a small Transformer-XL on it, and print a summary
	$(BIN)/xlpretrain data build configs/quickstart_data.yaml
	$(BIN)/xlpretrain train configs/quickstart.yaml
	$(BIN)/xlpretrain report runs/quickstart

test: $(VENV)/.installed-dev  ## the tests that need nothing but Python (under 5 minutes)
	$(PYTEST) --numprocesses 2 --dist loadfile --no-loadscope-reorder  # the tests of a file share what they build

test-slurm: $(VENV)/.installed-dev  ## the tests that need a Slurm cluster (under 8 minutes); they boot one
	$(PYTEST) -m "slurm and not full" -rs  # shows why any of them is skipped

test-full: $(VENV)/.installed-dev  ## all tests, with matrices, kills and long runs (under 60 minutes)
	$(PYTEST) -m "slurm and full" -rs
	$(PYTEST) -m "not slurm" --numprocesses 2 --dist loadfile --no-loadscope-reorder --timeout 3000 -rs

torture: $(VENV)/.installed-dev  ## kill a run 100 times; no step may be lost, no bit may differ (15 minutes)
	$(BIN)/python tests/support/torture.py

check: $(VENV)/.installed-dev  ## style, types, and import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(VENV)/.installed-docs  ## the documentation as a site in build/docs/site, with search and the reference of all keys
	$(BIN)/python -W ignore tools/docs_site/build_site.py

bench: $(VENV)/.installed-dev  ## training steps against transformers', into docs/benchmarks.md (resumes where it was)
	$(BIN)/python -W ignore benchmarks/compare.py

bench-short: $(VENV)/.installed-dev  ## the same with tiny models, once: only to see that it runs
	$(BIN)/python -W ignore benchmarks/compare.py --short

bench-loop: $(VENV)/.installed-dev  ## the cost of the loop around the model, ours and transformers' (after make quickstart)
	$(BIN)/python -W ignore benchmarks/loop.py

bench-ranks: $(VENV)/.installed-dev  ## speedup of two processes over one, with ZeRO-1 and with torch's DDP
	$(BIN)/python -W ignore benchmarks/ranks.py

gpu-check:      ## what needs a GPU: correctness, then speed (8 minutes; a rehearsal on a CPU); works uninstalled
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -W ignore -m benchmarks.gpu.check $(ARGS)

house: $(VENV)/.installed-dev  ## measure the floor plan: files per level, layers, cycles, files that a batch crosses
	$(BIN)/python -W ignore tools/house.py $(ROOT)

clean:          ## remove what was built, but neither data/ nor runs/
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
