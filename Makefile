# make            what there is to make
# make test       needs nothing but Python >= 3.11 with pip; the rest it puts into .venv by itself
#
#   PYTHON=python3.12 VENV=.venv-3.12   another Python; it counts when its folder is made, so name a new one
#   ARGS="-k stream"    more arguments for the program run

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
# A warning is an error: an invalid docstring, a dead link, a public name that no page documents.
SPHINX := $(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet --builder html docs docs/_build
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo campaign service crunch cluster test test-long coverage check docs format bench build clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(STAMPS)/demo ## the image service: make photos, serve, download, resize them
	@exec $(BIN)/python -m examples.image_service --out demo-output $(ARGS)

campaign: $(STAMPS)/demo ## the e-mail campaign: 100 mails over 10 SMTP connections, with faults on purpose
	@exec $(BIN)/python -m examples.email_campaign --limit 100 $(ARGS)

service: $(STAMPS)/demo ## the web service: start it, post photos to it, stop it
	@exec $(BIN)/python -m examples.web_service --demo $(ARGS)

crunch: $(STAMPS)/demo ## the same CPU-bound jobs in a loop, in one process and on all cores
	@exec $(BIN)/python -m examples.crunch --all $(ARGS)

cluster: $(STAMPS)/cluster ## the same on a Dask cluster on this machine, which loses a worker in the middle
	@exec $(BIN)/python -m examples.cluster $(ARGS)

test: $(STAMPS)/test ## all tests, with a fixed budget for the random ones
	@exec $(BIN)/python -m pytest $(ARGS)

test-long: $(STAMPS)/test ## the same with many more random schedules
	@ASYNCPOOL_TEST_BUDGET=long exec $(BIN)/python -m pytest $(ARGS)

coverage: $(STAMPS)/test ## the tests, and which lines and branches they did not reach
	@exec $(BIN)/python -m pytest --cov --cov-report=term-missing $(ARGS)

# Types are checked as the oldest and as the newest Python sees them: some code is for one of the two only.
check: export PYRIGHT_PYTHON_IGNORE_WARNINGS = 1
check: $(STAMPS)/check ## ruff, mypy, pyright, the floors of the house, and whether the docs can be built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.13
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pyright --pythonpath $(BIN)/python --pythonversion 3.13
	$(BIN)/lint-imports
	$(SPHINX)

docs: $(STAMPS)/docs ## the documentation site, in docs/_build
	@$(SPHINX)
	@echo "Open docs/_build/index.html. The site and its search need no server and no network."

format: $(STAMPS)/check ## let ruff repair and format what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMPS)/bench ## what it costs, beside gather and other libraries (10 minutes); ARGS=--save keeps it
	@exec $(BIN)/python -m benchmarks $(ARGS)

build: $(STAMPS)/venv ## wheel and sdist in dist/
	@$(PIP) install build
	$(BIN)/python -m build

clean: ## remove what make made, .venv too
	rm -rf .venv .venv-* dist docs/_build demo-output email-campaign.db* .coverage* htmlcov .hypothesis .import_linter_cache
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# What a target needs is installed once, and again only when pyproject.toml changes.

$(STAMPS)/demo: EXTRAS := examples
$(STAMPS)/cluster: EXTRAS := dask,examples
$(STAMPS)/test: EXTRAS := examples,test
$(STAMPS)/check: EXTRAS := check,examples,test
$(STAMPS)/docs: EXTRAS := docs
$(STAMPS)/bench: EXTRAS := bench
# One of the rivals has the import name of another, so it gets a folder of its own.
$(STAMPS)/test $(STAMPS)/bench: NEXT_GENERATION := asyncio-pool-ng>=0.8.1,<0.10

$(STAMPS)/demo $(STAMPS)/cluster $(STAMPS)/test $(STAMPS)/check $(STAMPS)/docs $(STAMPS)/bench: pyproject.toml | $(STAMPS)/venv
	@echo "Installing [$(EXTRAS)] into $(VENV) ..."
	@$(PIP) install -e '.[$(EXTRAS)]'
	@$(if $(NEXT_GENERATION),$(PIP) install --upgrade --no-deps --target $(VENV)/asyncio-pool-ng '$(NEXT_GENERATION)')
	@touch $@

# Some systems ship venv without ensurepip: there, the pip of $(PYTHON) puts one in.
$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "asyncpool needs Python 3.11 or newer, and '$(PYTHON)' is not: name one with make PYTHON=..." >&2; \
	    exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version) ..."
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; \
	then $(PYTHON) -m venv --clear $(VENV); \
	else $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	    $(PYTHON) -m pip --python $(BIN)/python install --disable-pip-version-check -qq pip; fi
	@mkdir -p $(STAMPS)
	@touch $@
