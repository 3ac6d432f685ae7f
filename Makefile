# make demo   install das-gpu into .venv and turn a synthetic recording into images (demo/)
# make test   install what the tests need and run them all
# make help   the rest
#
# Nothing is installed outside .venv and node_modules. Another Python: make demo PYTHON=python3.13

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
NPM := npm install --no-package-lock --no-audit --no-fund --ignore-scripts --loglevel=error

# A stamp is newer than what it depends on when that has been installed.
MADE := $(VENV)/.made
INSTALLED := $(VENV)/.installed
FAST := $(VENV)/.fast
TESTABLE := $(VENV)/.testable
TORCH := $(VENV)/.torch
DOCUMENTED := $(VENV)/.documented
AZURITE := node_modules/.installed
CHECKED := src tests bench docs

# Where the environment forbids it, as that of many containers does, every process that a test
# starts would compile the package anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo browser test test-fast test-gpu lint format docs bench bench-table bench-growth bench-reading bench-profile bench-scale bench-peers roofline mutants kills constraints clean
.DEFAULT_GOAL := help

help:
	@echo "make demo         install das-gpu into .venv, make images of a synthetic recording in demo/"
	@echo "make test         install what the tests need and run them all (ARGS='-k png' to choose)"
	@echo "make test-fast    the tests that take less than a second or so each"
	@echo "make test-gpu     on a machine with a GPU: the tests that need one"
	@echo "make lint         ruff, mypy --strict and the import contracts"
	@echo "make format       let ruff put the code in order"
	@echo "make docs         the documentation site, in build/docs/index.html"
	@echo "make bench        all that das-gpu is held to, against the pipeline it replaces: half an hour"
	@echo "make bench-table  write the tables of README.md and bench/README.md from kept results"
	@echo "make bench-growth  how a run's costs grow with its length"
	@echo "make bench-reading  ways to read an archive over a network, side by side"
	@echo "make bench-profile  where the time of a run goes, step by step"
	@echo "make bench-scale  what a run costs besides its work, and how it grows with its workers"
	@echo "make bench-peers  the same job by other packages, each in an environment of its own"
	@echo "make roofline     what a row of tiles asks of a GPU, counted; the times modelled"
	@echo "make kills        end a run at every change it makes on the disk, one at a time"
	@echo "make mutants      break the kernels and the GPU backend in a hundred places, one at a time"
	@echo "make constraints  resolve every package anew and write constraints.txt"
	@echo "make clean        remove everything that make has made, .venv and demo/ included"

demo: $(INSTALLED)
	@$(BIN)/das-gpu extract demo: demo
	@echo "The images are in demo/images, one line about each in demo/metadata.jsonl."

# Comes from the system's own packages, as npm does; .ci/run installs it.
browser:
	@for name in "$$CHROMIUM" chromium chromium-browser google-chrome google-chrome-stable; do \
	  command -v "$$name" >/dev/null && exit 0; \
	done; \
	echo "Tests that look at pages in a browser will be skipped: there is no Chromium. On Debian and" \
	     "Ubuntu: apt-get install chromium; elsewhere name a program: make test CHROMIUM=..."

test: $(TESTABLE) $(TORCH) $(AZURITE) browser
	@$(BIN)/python -m pytest -q -n 3 --dist worksteal $(ARGS)

# On a node with a GPU: what elsewhere is executed by a stand-in for CuPy, by the real one.
test-gpu: $(TESTABLE)
	@$(BIN)/das-gpu doctor
	@$(BIN)/python -m pytest -q -m gpu tests/gpu $(ARGS)

test-fast: $(TESTABLE) $(TORCH) $(AZURITE) browser
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow" $(ARGS)

# Every write, fsync and rename in turn, with one process, a driver and its workers.
kills: $(TESTABLE)
	@DAS_GPU_TEST_EVERY_KILL=1 $(BIN)/python -m pytest -q --timeout 3600 -k any_change tests/test_kills.py

lint: $(TESTABLE)
	@$(BIN)/ruff check $(CHECKED)
	@$(BIN)/ruff format --check $(CHECKED)
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(TESTABLE)
	@$(BIN)/ruff check --fix $(CHECKED)
	@$(BIN)/ruff format $(CHECKED)

docs: $(DOCUMENTED)
	@$(BIN)/python -m sphinx -q -E -W --keep-going -d build/doctrees docs build/docs
	@echo "The site is in build/docs/index.html."

bench: $(FAST)
	@$(BIN)/python bench/bars.py $(ARGS)

# To measure anew, remove the result first.
bench/results/bench.json: | $(FAST)
	@work=$$(mktemp -d) && trap 'rm -rf "$$work"' EXIT && \
	$(BIN)/das-gpu simulate "$$work/archive.zarr" --channels 12000 --minutes 4 && \
	$(BIN)/das-gpu bench "$$work/archive.zarr" --channels ::5 --bands 4 --minutes 4 --out $@

bench-table: bench/results/bench.json
	@$(BIN)/python bench/table.py bench/results/bench.json --write README.md
	@$(BIN)/python bench/table.py bench/results/bars.json --write bench/README.md

bench-growth: $(INSTALLED)
	@$(BIN)/python bench/growth.py $(ARGS)

bench-reading: $(INSTALLED)
	@$(BIN)/python bench/reading.py $(ARGS)

bench-profile: $(FAST)
	@$(BIN)/python bench/profiling.py $(ARGS)

bench-scale: $(INSTALLED)
	@$(BIN)/python bench/scale.py --json bench/results/scale.json $(ARGS)

bench-peers: $(FAST)
	@$(BIN)/python bench/peers.py $(ARGS)

roofline: $(TESTABLE)
	@$(BIN)/python bench/roofline.py --json bench/results/roofline.json $(ARGS)

mutants: $(TESTABLE)
	@$(BIN)/python tests/gpu/mutants.py --json bench/results/mutants.json $(ARGS)

# dask-cuda, which the tests need, accepts one release of dask at a time: so the same versions are
# tested here and run on a GPU node.
constraints:
	@echo "Resolving every package in a fresh environment ..."
	@work=$$(mktemp -d) && trap 'rm -rf "$$work"' EXIT && \
	$(PYTHON) -m venv "$$work/venv" && \
	"$$work/venv/bin/python" -m pip --disable-pip-version-check -qq install ".[test,torch]" && \
	{ \
	  echo "# Every package of a resolved environment: das-gpu and its extras test and torch. What a GPU"; \
	  echo "# needs beyond that is chosen by the extras cuda12 and cuda13."; \
	  echo "# Written by \`make constraints\`; use with: pip install -c constraints.txt -e ."; \
	  "$$work/venv/bin/python" -m pip --disable-pip-version-check freeze --exclude das-gpu | \
	    sed 's/+.*//'; \
	} > "$$work/constraints.txt" && \
	cp "$$work/constraints.txt" constraints.txt
	@echo "constraints.txt: $$(grep -c == constraints.txt) packages"

clean:
	rm -rf $(VENV) node_modules demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "das-gpu needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo not there)." \
	       "Name another one: make demo PYTHON=python3.13" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments." \
	       "On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(INSTALLED): $(MADE) pyproject.toml constraints.txt
	@echo "Installing das-gpu into $(VENV) ..."
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(FAST): $(INSTALLED)
	@echo "Installing what compiles loops into $(VENV) ..."
	@$(PIP) install -c constraints.txt -e ".[fast]"
	@touch $@

$(TESTABLE): $(INSTALLED)
	@echo "Installing what the tests need into $(VENV) ..."
	@$(PIP) install -c constraints.txt -e ".[test]"
	@touch $@

# The build for processors is small, and to be had where pip's settings name a place that has it.
# The one for CUDA weighs gigabytes and wants other CUDA packages than constraints.txt has: where
# there is no other, pip refuses, and the tests are skipped, but not where CI=true.
$(TORCH): $(TESTABLE)
	@echo "Installing PyTorch, which trains on tiles in the tests, into $(VENV) ..."
	@if $(PIP) install -c constraints.txt -e ".[torch]"; then touch $@; else \
	  echo "Tests that train with PyTorch will be skipped. Name a place that has its build for" \
	       "processors in pip's settings (pip config), or install it: $(BIN)/pip install torch"; fi

$(DOCUMENTED): $(INSTALLED)
	@echo "Installing what builds the site into $(VENV) ..."
	@$(PIP) install -c constraints.txt -e ".[docs]"
	@touch $@

$(AZURITE): package.json
	@command -v npm >/dev/null || { \
	  echo "The tests read from and write to Azurite, an emulator of Azure Blob Storage, which comes" \
	       "through npm. On Debian and Ubuntu: apt-get install npm" >&2; exit 1; }
	@echo "Installing Azurite into node_modules ..."
	@$(NPM)
	@touch $@
