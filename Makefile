# make repro   set up and run the pipeline          make test   set up and run the tests
# make ui      MLflow's pages on this project       make bench  the benchmarks (QUICK=1: short)

PYTHON ?= python3
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
export PATH := $(BIN):$(PATH)
unexport PYTHONDONTWRITEBYTECODE PYTHONPATH

.PHONY: help setup repro original sync test check format lock ui bench kills outages fuzz clean

help:                       ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

setup: $(VENV)/.done        ## make .venv from the lock

# uv comes out of the same lock and brings the rest in parallel; where it can't, pip does.
$(VENV)/.done: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; say which: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear $(VENV)
	sed -n '/^uv==/,/^[^ ]/p' requirements.lock | sed '$$d' > $(VENV)/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --system-certs --compile-bytecode --require-hashes -r requirements.lock \
	  || $(BIN)/python -m pip install --require-hashes -r requirements.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --offline --no-deps --no-build-isolation -e .
	touch $@

repro: setup                ## run what is not up to date, and deliver the results to MLflow
	splice unlock
	dvc repro
	splice sync

original: setup             ## the original recipe as an experiment of its own
	dvc exp run --temp --name original $(addprefix -S ,$(shell sed 's/\#.*//' recipes/original))

sync: setup                 ## deliver to MLflow what it doesn't have yet
	splice sync

test: setup                 ## the test suite
	python -m pytest -n 2 --dist worksteal -m 'not long and not gpu'

check: setup                ## lint, format and types
	ruff check .
	ruff format --check .
	mypy src tests benchmarks

format: setup               ## format the code
	ruff check --fix .
	ruff format .

lock: setup                 ## make requirements.lock anew
	uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
	  --all-extras --upgrade pyproject.toml --output-file requirements.lock

ui: setup                   ## MLflow's pages on 127.0.0.1:5000
	splice ui

bench: setup                ## the benchmarks
	python benchmarks/run.py $(if $(QUICK),--quick)

kills: setup                ## harness: 100 kills over the whole pipeline
	python tests/harness/kills.py

outages: setup              ## harness: 50 outages of a tracking server
	python tests/harness/outages.py

fuzz: setup                 ## harness: 10,000 mutated inputs to the parsers
	python tests/harness/mutations.py

clean:                      ## remove what set-up made; data, models and runs stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
