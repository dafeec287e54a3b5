# sidestep: `make demo` records a real training, `make test` runs the tests. `make help` lists the rest.
# Needs Python 3.11 or newer, make and the package index. All of it lives in .venv; `make clean` removes it.

PYTHON ?= python3
TORCH  ?= torch==2.13.0
UV     ?= uv
ARGS   ?=
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSIDE := PATH="$(CURDIR)/$(BIN):$$PATH"
# One set of versions for all systems and Pythons; no index stands in the lock, so that it fits any mirror.
LOCK   := $(UV) pip compile --no-config --universal --python-version 3.11 \
	--generate-hashes --only-binary :all: --custom-compile-command "make lock" --quiet $(if $(UPGRADE),--upgrade)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-long lint bench lock clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Variables: PYTHON=python3.12   TORCH='torch==2.13.0 --index-url …'   ARGS='-k journal' (for test)   UPGRADE=1 (for lock)"

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "There is no '$(PYTHON)' here; sidestep needs Python 3.11 or newer. Name one: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "sidestep needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12 …" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# The lock is whole but for torch, so pip looks up no dependencies (it would find torch missing, and unlocked).
# Each step has its stamp, so that a second `make` starts at once and a changed lock is installed again.
$(VENV)/locked: requirements/dev.txt | $(BIN)/python
	@echo "Installing what is locked in requirements/dev.txt"
	@$(PIP) install --no-deps --require-hashes --requirement requirements/dev.txt
	@touch $@

# torch is a peer: whoever trains has chosen a build of it already, so it is neither a dependency nor in the lock.
$(VENV)/torch: $(VENV)/locked
	@echo "Installing $(TORCH) (on Linux its default build brings CUDA; CONTRIBUTING.md names a small one)"
	@$(PIP) install $(TORCH)
	@touch $@

$(VENV)/installed: pyproject.toml $(VENV)/torch
	@echo "Installing sidestep itself, editable"
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/duckdb2/installed: requirements/duckdb2.txt $(VENV)/locked
	@echo "Installing a second DuckDB, to read the store with"
	@rm -rf $(VENV)/duckdb2
	@$(PIP) install --require-hashes --target $(VENV)/duckdb2 --requirement requirements/duckdb2.txt
	@touch $@

install: $(VENV)/installed ## make .venv and install all that is needed

demo: install ## record a real training: a small network on real images, under two minutes
	@$(INSIDE) sidestep run -- python examples/digits.py
	@echo "  (these commands are in $(VENV): first say  . $(BIN)/activate)"

test: install $(VENV)/duckdb2/installed ## run all tests but the long ones
	@$(INSIDE) SIDESTEP_TEST_DUCKDB2="$(CURDIR)/$(VENV)/duckdb2" pytest --numprocesses 2 --dist loadfile -m "not long" $(ARGS)

test-long: install ## run the tests that take minutes: a training that collapses
	@$(INSIDE) pytest --numprocesses 2 --dist loadfile -m long $(ARGS)

lint: install ## style, types, and who may import whom
	@$(INSIDE) ruff check .
	@$(INSIDE) ruff format --check .
	@$(INSIDE) pyright
	@$(INSIDE) lint-imports

bench: install ## run the benchmarks, one after the other
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(INSIDE) python "$$file" || exit 1; done

lock: ## renew the locks in requirements/ (UPGRADE=1 takes the newest versions)
	@command -v $(UV) >/dev/null || { echo "make lock needs uv: pip install uv, or name it: make lock UV=/path/to/uv" >&2; exit 1; }
	@$(LOCK) --constraint requirements/constraints.txt --override requirements/overrides.in \
		--extra collector --group dev --group integrations pyproject.toml requirements/build.in requirements/dev.in --output-file requirements/dev.txt >/dev/null
	@$(LOCK) --constraint requirements/dev.txt --extra collector pyproject.toml --output-file requirements/collector.txt >/dev/null
	@$(LOCK) --constraint requirements/dev.txt requirements/build.in --output-file requirements/build.txt >/dev/null
	@$(LOCK) requirements/duckdb2.in --output-file requirements/duckdb2.txt >/dev/null
	@echo "Renewed requirements/*.txt"

clean: ## remove .venv and caches; recorded data stays
	@rm -rf $(VENV) dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
