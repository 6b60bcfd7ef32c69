# make repro   set up and run the pipeline          make test   set up and run the tests
# make ui      MLflow's pages on this project       make bench  the benchmarks (QUICK=1: short)

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(value PATH)
unexport PYTHONDONTWRITEBYTECODE PYTHONPATH

# Only a .venv that was made here is ever emptied: it holds this mark, which says in which folder it
# was made, once it is whole (an earlier Makefile left .done alone). A link is never one, whatever
# it leads to.
MARK := .venv/.made-in
IS_OURS := [ ! -L .venv ] && { [ -e $(MARK) ] || [ -e .venv/.done ]; }
EMPTY := : > $(MARK) && find .venv -mindepth 1 -maxdepth 1 ! -path $(MARK) -exec rm -rf {} +

# An environment's files name the folder that it was made in: moved or copied, it is made anew.
MADE_ELSEWHERE := $(shell [ "$$(cat $(MARK) 2>/dev/null)" = "$$(pwd -P)" ] || echo made-elsewhere)

.PHONY: help setup repro recipe original sync test check format lock ui serve draw docs screenshots diagrams
.PHONY: bench kills outages races workers crowd long gpu sweep experiments report fuzz rename clean made-elsewhere

help:                       ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

setup: .venv/.done .venv/vega.js  ## make .venv from the lock

# uv comes out of the same lock and brings the rest in parallel; where it can't, pip does.
.venv/.done: requirements.lock pyproject.toml $(MADE_ELSEWHERE)
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; say which: make PYTHON=python3.12")'
	@if [ -e .venv ] || [ -L .venv ]; then $(IS_OURS) || { echo ".venv was not made by this Makefile and stays as it is; move it elsewhere, then call make again" >&2; exit 1; }; fi
	base=$$("$(PYTHON)" -c 'import sys; print(sys._base_executable)') && mkdir -p .venv && $(EMPTY) && "$$base" -m venv .venv
	sed -n '/^uv==/,/^[^ ]/p' requirements.lock | sed '$$d' > .venv/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.lock
	$(BIN)/uv pip install --python $(BIN)/python --system-certs --compile-bytecode --require-hashes -r requirements.lock \
	  || $(BIN)/python -m pip install --require-hashes -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --quiet --offline --no-deps --no-build-isolation -e .
	pwd -P > $(MARK)
	touch $@

# What draws the charts of `dvc plots show`, for .dvc/plots/page.html: so it needs no network.
.venv/vega.js: .venv/.done
	$(BIN)/python -c 'import vl_convert; print("(() => {" + vl_convert.javascript_bundle() + "})()")' > $@.part
	mv $@.part $@

repro: setup                ## run what is not up to date, and deliver the results to MLflow
	$(BIN)/python -m digits.cli check
	$(BIN)/python -m splice.cli repro
	@$(BIN)/python -m splice.cli sync; status=$$?; $(BIN)/python -m splice.cli compare; \
	  $(BIN)/python -m digits.cli next; exit $$status

recipe: setup               ## a recipe as an experiment of its own: make recipe NAME=fast
	$(BIN)/python -m digits.cli recipe "$(NAME)"

original: NAME := original
original: recipe            ## the recipe original

sweep: setup                ## search parameters by Optuna: make sweep FILE=sweeps/lr.yaml
	$(BIN)/python -m digits.cli sweep "$(or $(FILE),sweeps/lr.yaml)"

experiments: setup          ## DVC's experiments: their scores, and the parameters that differ
	$(BIN)/python -m dvc exp show --no-pager --hide-workspace --only-changed --keep 'test\.(accuracy|loss)' \
	  --drop 'Created|(train|validation)\.(accuracy|loss)|test\.[^al].*|.*/.*'

report: setup               ## report.html of the result here: RESULTS="main my-experiment" compares
	$(BIN)/python -m digits.cli report $(RESULTS)

sync: setup                 ## deliver to MLflow what it doesn't have yet
	$(BIN)/python -m splice.cli sync

test: setup                 ## the tests, but for those that take long
	$(BIN)/python -m pytest -n 3 --dist worksteal -m 'not long and not gpu'

long: setup                 ## the tests that take long
	$(BIN)/python -m pytest -n 3 --dist loadfile -m 'long and not gpu'

gpu: setup                  ## the tests that need a GPU by NVIDIA; one after the other
	$(BIN)/python -m pytest -m gpu

check: setup                ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy src tests benchmarks

format: setup               ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: setup                 ## make requirements.lock anew
	$(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
	  --all-extras --upgrade pyproject.toml --output-file requirements.lock

ui: setup                   ## MLflow's pages on 127.0.0.1:5000
	$(BIN)/python -m splice.cli ui

serve: setup                ## the champion behind HTTP on 127.0.0.1:5001
	@$(BIN)/python -m digits.cli serve

draw: setup                 ## a page to draw a digit on, which says what the model takes it for
	$(BIN)/python -m digits.cli draw

docs: setup                 ## README.md and docs/ as a site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "open site/index.html; as you write: mkdocs serve"

screenshots: setup          ## the pictures in docs/images, of MLflow's pages and of make draw
	$(BIN)/python docs/screenshots.py

diagrams: setup             ## the pictures of the documentation's diagrams, for the site
	$(BIN)/python docs/diagrams.py

bench: setup                ## the benchmarks
	$(BIN)/python benchmarks/run.py $(if $(QUICK),--quick)

kills: setup                ## harness: 100 kills over the whole pipeline
	$(BIN)/python tests/harness/kills.py

outages: setup              ## harness: 50 outages of a tracking server
	$(BIN)/python tests/harness/outages.py

races: setup                ## harness: 50 rounds of 4 machines that deliver at once
	$(BIN)/python tests/harness/races.py

workers: setup              ## harness: 20 kills of processes that train together
	$(BIN)/python tests/harness/workers.py

crowd: setup                ## harness: 20 trainings at once into a team's service
	$(BIN)/python tests/harness/crowd.py

fuzz: setup                 ## harness: 10,000 mutated inputs to the parsers
	$(BIN)/python tests/harness/mutations.py

# Where the word means what MNIST shows, it stays.
rename:                     ## another name for package and command: make rename NAME=flowers
	@echo "$(NAME)" | grep -Eqx '[a-z][a-z0-9_]*' || { echo "say which name, of lower-case letters: make rename NAME=flowers" >&2; exit 1; }
	@[ ! -e "src/$(NAME)" ] || { echo "src/$(NAME) is there already; say another name" >&2; exit 1; }
	@[ ! -e .digits ] || { echo "results may be waiting in .digits: call make sync, then remove it" >&2; exit 1; }
	git mv src/digits "src/$(NAME)"
	git grep -lzIw digits | xargs -0 perl -pi -e 's/(?<![-\w])(?<!real )(?<!ten )(?<!packaged )(?<!random )(?<!training )(?<!string\.)(?<!emnist\(")digits\b(?!,)/$(NAME)/g'
	@if command -v ruff >/dev/null; then ruff check --quiet --select I --fix . && ruff format --quiet .; \
	else echo "next: make format, for imports and lines stand by the new name"; fi

clean:                      ## remove what set-up made; data, models and runs stay
	@if $(IS_OURS); then $(EMPTY) && rm -rf .venv; \
	elif [ -e .venv ] || [ -L .venv ]; then echo ".venv stays: it was not made by this Makefile"; fi
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
