# `make` lists the targets. Everything is installed into .venv; nothing outside the repository changes.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

VENV := .venv
BIN := $(VENV)/bin

# A Python of 3.11 or newer: the usual one if it is, else a versioned one. Or: make PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)

# The stamps are named after what decides the installation, so an unchanged repository installs once and
# never asks the network again, whatever happens to the files' times.
KEY := $(shell { cat pyproject.toml constraints.txt; echo '$(CURDIR)'; } | cksum | cut -d' ' -f1)
RUN_STAMP := $(VENV)/.installed-run-$(KEY)
DEV_STAMP := $(VENV)/.installed-dev-$(KEY)

# What a browser computes with (npm packages, pinned by the lock file), copied for the page to load.
RUNTIME := astra_mesh/web/runtime
VENDOR := astra_mesh/web/site/vendor
RUNTIME_STAMP := $(VENDOR)/.copied-$(shell cat $(RUNTIME)/* | cksum | cut -d' ' -f1)

RUNTIME_IF_ABLE := $(if $(shell command -v npm),$(RUNTIME_STAMP),no-npm)

PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt

PYTEST_ARGS ?=
PYTEST := $(BIN)/python -m pytest
# Three at a time are not too many for two cores: tests beside each other often wait, those of faults most of their time
# (tests/conftest.py has the kinds).
WORKERS := $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 3 ? 3 : n > 6 ? 6 : n)))
OR_NONE := || [ $$? -eq 5 ]
# Else each of the hundreds of processes that tests start compiles the package anew, 0.2 s each time.
unexport PYTHONDONTWRITEBYTECODE
DATA := $(or $(ASTRA_MESH_DATA),../shared/data)

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: $(RUN_STAMP) ## three peers on this machine find each other and answer
	@$(if $(wildcard $(DATA)),ASTRA_MESH_DATA="$(DATA)") $(BIN)/astra-mesh demo

.PHONY: test
test: lint $(RUNTIME_IF_ABLE) ## style, types and all tests (PYTEST_ARGS="-k session" for some)
	@failed=0; \
	run() { $(PYTEST) "$$@" $(PYTEST_ARGS) $(OR_NONE) || failed=1; }; \
	run --kind beside -n $(WORKERS) --dist worksteal; \
	run --kind faults -n $$(($(WORKERS) + 1)) --dist loadgroup; \
	run --kind browsers -n $(WORKERS); run --kind alone; \
	exit $$failed

no-npm:
	@echo 'npm was not found: this goes without what browser tabs compute with. Debian, Ubuntu: apt install npm'

.PHONY: runtime no-npm
runtime: $(RUNTIME_STAMP) ## what lets a browser tab compute (needs npm and node; the rest works without)

.PHONY: lint
lint: $(DEV_STAMP) ## style and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: $(DEV_STAMP) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: models
models: $(DEV_STAMP) ## train the shipped models and their codebooks again (hours without a GPU)
	$(BIN)/python -m tools.models.train_tiny_gpt2 --threads 1
	$(BIN)/python -m tools.models.train_vit_tiny --threads 1 --steps 4000 --until 1250
	$(BIN)/python -m tools.models.train_vit_tiny --threads 1 --steps 2800
	$(MAKE) codebooks

.PHONY: codebooks
codebooks: $(DEV_STAMP) ## fit and measure the shipped models' codebooks again (half an hour)
	$(BIN)/python -m tools.models.split_text build/texts
	$(BIN)/astra-mesh fit models/tiny-gpt2 --data build/texts/train.txt
	$(BIN)/astra-mesh fit models/vit-tiny --data "$(DATA)/datasets/cifar10_train_jpeg.zip"
	$(BIN)/astra-mesh eval models/tiny-gpt2 --data build/texts/valid.txt --limit 193 \
		--peers 2,4 --codec vq --save
	$(BIN)/astra-mesh eval models/vit-tiny --data "$(DATA)/datasets/cifar10_test_jpeg.zip" --limit 2000 \
		--peers 2,4 --codec vq --save

.PHONY: bench
bench: $(DEV_STAMP) ## a short speed benchmark on an idle machine: docs/benchmarks.md (root, 15 minutes)
	$(BIN)/python -m tools.bench.speed --preset reduced --replace
	$(BIN)/python -m tools.bench.speed_plots docs/data/speed-reduced.json

.PHONY: fidelity
fidelity: $(DEV_STAMP) ## what the codes cost in quality: docs/fidelity.md (hours without a fast machine)
	ASTRA_MESH_DATA="$(DATA)" $(BIN)/python -m tools.bench.fidelity

FUZZ_ARGS ?= --seconds 20

.PHONY: fuzz
fuzz: $(DEV_STAMP) ## damaged inputs for every parser (FUZZ_ARGS="--jobs 4 --inputs 10000000")
	$(BIN)/python -m tools.fuzz $(FUZZ_ARGS)

.PHONY: nemesis
nemesis: $(DEV_STAMP) ## 20 seeded schedules of faults against real peers (root, 10 minutes)
	$(BIN)/python -m tools.lab nemesis --seeds 1-20

.PHONY: soak
soak: $(DEV_STAMP) ## an hour of requests on 8 peers, one killed every 30 s (root)
	$(BIN)/python -m tools.lab soak --minutes 60

.PHONY: wheel
wheel: $(DEV_STAMP) $(RUNTIME_IF_ABLE) ## dist/*.whl and dist/*.tar.gz
	$(BIN)/python -m build --outdir dist

.PHONY: clean
clean: ## remove the environment, caches and built files
	rm -rf $(VENV) $(VENDOR) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find astra_mesh tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@if [ -z '$(PYTHON)' ]; then \
		echo 'astra_mesh needs Python 3.11 or newer, and none was found.' >&2; \
		echo 'Install one, or name it: make demo PYTHON=/path/to/python3.11' >&2; exit 1; fi
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'astra_mesh needs Python 3.11 or newer; $(PYTHON) is older or does not start.' >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.maxsize < 2**32)' || { \
		echo 'astra_mesh needs a 64-bit Python; several packages have no 32-bit files.' >&2; exit 1; }
	@echo "Creating $(VENV) with $(PYTHON)"
	@'$(PYTHON)' -m venv $(VENV) || { rm -rf $(VENV); \
		echo 'No virtual environment could be made; Debian and Ubuntu need: apt install python3-venv' >&2; exit 1; }

$(RUN_STAMP): | $(BIN)/python
	@echo "Installing astra_mesh into $(VENV) (once; a few minutes)"
	@$(INSTALL) --editable .
	@rm -f $(VENV)/.installed-*; touch $@

# What the tests need includes what the program needs, so both stamps are set.
$(DEV_STAMP): | $(BIN)/python
	@echo "Installing astra_mesh and its development tools into $(VENV) (once; a few minutes)"
	@$(INSTALL) --editable '.[dev]'
	@rm -f $(VENV)/.installed-*; touch $(RUN_STAMP) $@

$(RUNTIME_STAMP):
	@command -v npm >/dev/null && command -v node >/dev/null || { \
		echo 'npm and node are needed to install what the browser computes with.' >&2; \
		echo 'Debian and Ubuntu: apt install npm. Everything but tabs that compute works without.' >&2; exit 1; }
	@echo "Installing the browser's runtime into $(VENDOR) (once; about 20 MB)"
	@mkdir -p build/runtime && cp $(RUNTIME)/package.json $(RUNTIME)/package-lock.json build/runtime/
	@cd build/runtime && npm ci --ignore-scripts --no-audit --no-fund --silent
	@node $(RUNTIME)/copy.mjs build/runtime/node_modules $(VENDOR)
	@touch $@
