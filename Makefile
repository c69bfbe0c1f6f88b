# `make` alone lists the targets. Everything runs in .venv, which is made when first needed.
#   make demo PYTHON=python3.12                                      choose the interpreter
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu       torch without the CUDA libraries (Linux)
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
TORCH_INDEX ?=
export MPLBACKEND = Agg

.PHONY: help demo test test-slow lint format tutorials bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z.-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /	/' | sort | awk -F '\t' '{printf "  make %-10s %s\n", $$1, $$2}'

.venv: $(READY) ## the virtual environment, with the tested versions

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV) (a few minutes the first time, most of it downloading torch) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -c constraints.txt torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY) ## compare AutoVI with NUTS on eight schools, write out/eight_schools
	@$(BIN)/ppl compare eight_schools --out out/eight_schools || \
	  { status=$$?; [ $$status -eq 1 ] || exit $$status; }  # status 1 is a verdict, not a failure

test: $(READY) ## the default test suite
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

test-slow: $(READY) ## the tests marked slow, run before a release
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m slow

lint: $(READY) ## style and obvious faults (`make format` mends most)
	@$(BIN)/ruff check --quiet --output-format concise .
	@$(BIN)/ruff format --check --quiet --output-format concise .

format: $(READY) ## put the code into the house style
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

tutorials: $(READY) ## run every tutorial, make notebooks in out/tutorials
	@mkdir -p out/tutorials
	@set -e; for script in $(wildcard tutorials/*.py); do \
	  echo "$$script"; \
	  $(BIN)/python $$script; \
	  $(BIN)/jupytext --quiet --to ipynb --output out/tutorials/$$(basename $$script .py).ipynb $$script; \
	done

bench: $(READY) ## install the peers, run every benchmark, write tables to out/benchmarks
	@$(PIP) install -c constraints.txt -e '.[bench]' || echo "Some peers cannot be installed; the tables leave them out." >&2
	@mkdir -p out/benchmarks
	@set -e; for name in check gradient nuts svi mixtures_hmm verdict_rates verdict_bank; do \
	  echo "benchmarks.$$name"; \
	  $(BIN)/python -m benchmarks.$$name > out/benchmarks/$$name.md; \
	done

clean: ## remove what was made: .venv, out, caches
	@rm -rf $(VENV) out build dist *.egg-info .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
