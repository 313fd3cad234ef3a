# VENV=DIR uses another environment; PYTHON=python3.12 chooses the interpreter for a new one.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
SHELL := bash
.DELETE_ON_ERROR:
.PHONY: help install quickstart test test-all lint format bench bench-full floors clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

install: $(VENV)/.installed ## create .venv if there is none and install transferkit into it
	@echo "transferkit is installed: $(BIN)/transferkit --help"

quickstart: $(VENV)/.installed ## install, then transfer learning on real digits, offline, under 3 minutes
	@echo "Transfer learning on handwritten digits: under 3 minutes on 2 cores, no network."
	@$(BIN)/python -m transferkit quickstart --config configs/quickstart.yaml

test: $(VENV)/.installed-dev ## install, then the default tests, under 5 minutes
	@echo "Default tests: under 5 minutes on 2 cores, no network."
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(VENV)/.installed-dev ## every test: fuzzing, killed processes, hostile files; under 60 minutes
	@echo "Every test: under 60 minutes on 2 cores."
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m '' -n 2 --dist loadfile

lint: $(VENV)/.installed-dev ## check style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict transferkit

format: $(VENV)/.installed-dev ## format the code and mend what ruff can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.installed-dev ## benchmarks at reduced sizes, under 15 minutes
	@$(BIN)/python -m tests.bench

bench-full: $(VENV)/.installed-dev ## benchmarks at full sizes
	@$(BIN)/python -m tests.bench --full

floors: .venv-floor/floors.txt ## the default tests with the oldest versions that pyproject.toml allows
	@$(MAKE) test VENV=.venv-floor PIP_CONSTRAINT=$<

clean: ## remove caches and builds; environments and runs stay
	@rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find transferkit tests -name __pycache__ -type d -prune -exec rm -rf {} +

# One `>=` requirement a line in pyproject.toml becomes one `==` constraint.
.venv-floor/floors.txt: pyproject.toml
	@mkdir -p $(@D)
	@sed -nE 's/^.*"([a-z0-9-]+)(\[[a-z]+\])?>=([0-9.]+).*/\1==\3/p' $< > $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("transferkit needs Python 3.11 or newer, $(PYTHON) is %d.%d: try make PYTHON=python3.12" % v[:2])'
	@echo "Creating the environment $(VENV): a few seconds."
	@$(PYTHON) -m venv $(VENV)

# pip's own listing is long: only its large downloads and its reasons to refuse are shown.
define install
	@echo "Installing transferkit into $(VENV): several GB of PyTorch the first time, 2 to 15 minutes."
	@set -o pipefail; PYTHONUNBUFFERED=1 $(BIN)/python -m pip install --progress-bar off -e '$(1)' | \
		while read -r first rest; do case "$$first $$rest" in \
			Downloading*[MG]B\)|Using*[MG]B\)) echo "  $$first $${rest##*/}" ;; \
			Installing*) echo "  Unpacking; the longest part, without a word" ;; \
			"The "*|*"depends on"*) echo "  $$first $$rest" >&2 ;; \
		esac; done
	@touch $@
endef

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(call install,.)

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(call install,.[dev])
	@touch $(VENV)/.installed
