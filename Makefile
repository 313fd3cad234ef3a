# VENV=DIR uses another environment; PYTHON=python3.12 chooses the interpreter for a new one.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
SHELL := bash
.DELETE_ON_ERROR:
.PHONY: help install quickstart test test-all test-gpu coverage lint style types format docs bench bench-full bench-gpu bench-accuracy floors release-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile

install: $(VENV)/.installed ## create .venv if there is none and install transferkit into it
	@echo "transferkit is installed: $(BIN)/transferkit --help"

quickstart: $(VENV)/.installed ## install, then transfer learning on real digits, offline, under 3 minutes
	@echo "Transfer learning on handwritten digits: under 3 minutes on 2 cores, no network connection."
	@$(BIN)/python -m transferkit quickstart --config configs/quickstart.yaml

test: $(VENV)/.installed-dev ## install, then the default tests, under 5 minutes
	@echo "Default tests: under 5 minutes on 2 cores, no network connection."
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(VENV)/.installed-dev ## every test: fuzzing, killed processes, hostile files; under 60 minutes
	@echo "Every test: under 60 minutes on 2 cores."
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m '' -n 2 --dist loadfile --no-loadscope-reorder

# Of a GPU machine the installed PyTorch is used: GPU_PYTHON=python3 needs no environment of its own.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

test-gpu: ## tests of a CUDA device with the PyTorch that is installed, 3 minutes
	@OMP_NUM_THREADS=1 $(GPU_PYTHON) -m pytest -m gpu tests/gpu -n 6 --dist loadfile --no-loadscope-reorder

coverage: $(VENV)/.installed-dev ## the default tests, and the share of the package's lines and branches they run
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered

lint: style types ## check style, format and types

style: $(VENV)/.installed-dev ## check style and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev ## check types
	@$(BIN)/mypy --strict transferkit

format: $(VENV)/.installed-dev ## format the code and fix what ruff can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(VENV)/.installed-dev ## run the documentation's code, then build it into build/docs
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m docs -n 2 tests/docs
	@NO_MKDOCS_2_WARNING=1 PATH="$(abspath $(BIN)):$$PATH" $(BIN)/mkdocs build --quiet --config-file .mkdocs.yml

bench: $(VENV)/.installed-dev ## benchmarks at reduced sizes
	@$(BIN)/python -m tests.bench

bench-full: $(VENV)/.installed-dev ## benchmarks at full sizes
	@$(BIN)/python -m tests.bench --full

bench-accuracy: $(VENV)/.installed-dev ## accuracy of our defaults and of other tools that are installed; hours
	@$(BIN)/python -m tests.bench.bench_accuracy

bench-gpu: ## benchmarks of a CUDA device, 3 minutes
	@PYTHONUNBUFFERED=1 $(GPU_PYTHON) -m tests.bench.gpu

floors: .venv-floor/floors.txt ## the default tests with the oldest versions that pyproject.toml allows
	@$(MAKE) test VENV=.venv-floor PIP_CONSTRAINT=$<

release-check: ## build wheel and sdist, install and use each on every Python that is here; 10 minutes or more
	@.ci/release-check

clean: ## remove caches and builds; environments and runs stay
	@rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find transferkit tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Each line of pyproject.toml with a `>=` requirement becomes a `==` constraint.
.venv-floor/floors.txt: pyproject.toml
	@mkdir -p $(@D)
	@sed -nE 's/^.*"([a-z0-9-]+)(\[[a-z]+\])?>=([0-9.]+).*/\1==\3/p' $< > $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("transferkit needs Python 3.11 or newer, $(PYTHON) is %d.%d: try make PYTHON=python3.12" % v[:2])'
	@echo "Creating the environment $(VENV): a few seconds."
	@$(PYTHON) -m venv $(VENV)

# pip's own output is long: only large downloads and errors are shown.
define install
	@echo "Installing transferkit into $(VENV): several GB of PyTorch the first time, 2 to 15 minutes."
	@set -o pipefail; PYTHONUNBUFFERED=1 $(BIN)/python -m pip install --progress-bar off -e '$(1)' | \
		while read -r first rest; do case "$$first $$rest" in \
			Downloading*[MG]B\)|Using*[MG]B\)) echo "  $$first $${rest##*/}" ;; \
			Installing*) echo "  Unpacking; this takes longest and prints nothing" ;; \
			"The "*|*"depends on"*) echo "  $$first $$rest" >&2 ;; \
		esac; done
	@touch $@
endef

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(call install,.)

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(call install,.[dev])
	@touch $(VENV)/.installed
