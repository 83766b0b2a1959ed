# Each target sets up what it needs on a fresh machine: a virtual environment with pinned packages.
# `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Without a GPU: make demo TORCH_INDEX=ADDRESS, the CPU address of pytorch.org's install page.
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow test-s3 test-browser reliability faults soak check bench docs lock clean help

demo: $(VENV)/.run ## the whole path on 1,797 digits, three seeds: train, evaluate, mine, compare
	$(BIN)/python pipeline/run.py reproduce demo

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "%-14s%s\n", $$1, $$2 }'

test: $(VENV)/.dev ## all tests but the slow ones
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not s3server" --durations=15

test-slow: $(VENV)/.dev ## tests that take longer than a minute each
	$(BIN)/python -m pytest -m "slow and not s3server"

test-s3: $(VENV)/.dev ## tests on a real S3 server that is killed meanwhile; needs Debian and, once, root
	tests/ceph_rgw.sh install
	$(BIN)/python -m pytest -m s3server --junitxml=build/promises/s3.xml
	$(BIN)/python -m tests.promises

test-browser: $(VENV)/.dev ## the pages in Chromium
	$(BIN)/python -m pytest -m browser

reliability: $(VENV)/.dev ## the fast tests of docs/reliability.md, and its table
	$(BIN)/python -m pytest -m "promise and not slow and not s3server" --junitxml=build/promises/fast.xml
	$(BIN)/python -m tests.promises

faults: $(VENV)/.dev ## the slow tests of docs/reliability.md: processes and nodes are killed
	$(BIN)/python -m pytest -m "promise and slow and not s3server" --junitxml=build/promises/slow.xml
	$(BIN)/python -m tests.promises

soak: $(VENV)/.dev ## half an hour of training with something killed every 20 to 60 s
	$(BIN)/python -m tests.soak 30

check: $(VENV)/.dev ## ruff, mypy (strict), architecture and prose
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py tests/test_prose.py

bench: $(VENV)/.run ## measured ratios: docs/performance.md
	$(BIN)/python -m benchmarks

docs: $(VENV)/.dev ## the parts of docs/ that are made of the code
	$(BIN)/python docs/make.py

lock: $(VENV)/.run ## infra/requirements.lock, from requirements.txt
	$(BIN)/python infra/lock.py

clean: ## remove the virtual environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.txt | $(VENV)/bin/python
	$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) $(shell grep -oE '^torch(vision)?==[^ ]+' requirements.txt))
	$(PIP) -r requirements.txt
	touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run
	$(PIP) -r requirements-dev.txt
	touch $@
