# Each target sets up what it needs on a fresh machine: a virtual environment with pinned packages.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow reliability faults soak check bench docs lock clean test-s3

demo: $(VENV)/.run
	$(BIN)/python pipeline/run.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow and not s3server"

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow and not s3server"

# A real S3 server, killed in the middle of reads and writes. Needs Debian and, once, root.
test-s3: $(VENV)/.dev
	tests/ceph_rgw.sh install
	$(BIN)/python -m pytest -m s3server --junitxml=build/promises/s3.xml
	$(BIN)/python -m tests.promises

# What the project promises, which tests hold it and how they went: docs/reliability.md.
reliability: $(VENV)/.dev
	$(BIN)/python -m pytest -m "promise and not slow and not s3server" --junitxml=build/promises/fast.xml
	$(BIN)/python -m tests.promises

faults: $(VENV)/.dev
	$(BIN)/python -m pytest -m "promise and slow and not s3server" --junitxml=build/promises/slow.xml
	$(BIN)/python -m tests.promises

soak: $(VENV)/.dev
	$(BIN)/python -m tests.soak 30

test-browser: $(VENV)/.dev
	$(BIN)/python -m pytest -m browser

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

bench: $(VENV)/.run
	$(BIN)/python -m benchmarks

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# Configuration reference, error messages and tables of docs/, from the code.
docs: $(VENV)/.dev
	$(BIN)/python docs/make.py

# The lock of the image, from requirements.txt.
lock: $(VENV)/.run
	$(BIN)/python infra/lock.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
