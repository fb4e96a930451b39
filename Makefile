# make            list the targets
# make test       needs only Python >= 3.11 with pip; everything else is installed into .venv
#
#   PYTHON=python3.12 VENV=.venv-3.12   use another Python, in a new folder: an existing one keeps its Python
#   ARGS="-k stream"    pass more arguments to the program

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
# Warnings are errors: invalid docstrings, broken links, undocumented public names.
SPHINX := $(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet --builder html docs docs/_build
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo campaign service crunch cluster test test-long coverage check docs format bench build clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(STAMPS)/demo ## image service: generate photos, serve, download and resize them
	@exec $(BIN)/python -m examples.image_service --out demo-output $(ARGS)

campaign: $(STAMPS)/demo ## e-mail campaign: 100 mails over 10 SMTP connections, with deliberate faults
	@exec $(BIN)/python -m examples.email_campaign --limit 100 $(ARGS)

service: $(STAMPS)/demo ## web service: start it, post photos to it, stop it
	@exec $(BIN)/python -m examples.web_service --demo $(ARGS)

crunch: $(STAMPS)/demo ## CPU-bound jobs in a loop, in one process and on all cores, compared
	@exec $(BIN)/python -m examples.crunch --all $(ARGS)

cluster: $(STAMPS)/cluster ## the same jobs on a local Dask cluster that loses a worker
	@exec $(BIN)/python -m examples.cluster $(ARGS)

test: $(STAMPS)/test ## run the tests, with a fixed budget for random ones
	@exec $(BIN)/python -m pytest $(ARGS)

test-long: $(STAMPS)/test ## run the tests with many more random schedules
	@ASYNCPOOL_TEST_BUDGET=long exec $(BIN)/python -m pytest $(ARGS)

coverage: $(STAMPS)/test ## run the tests and list the lines and branches that they do not reach
	@exec $(BIN)/python -m pytest --cov --cov-report=term-missing $(ARGS)

# Check types for the oldest and the newest Python, because some code only runs on one of them.
check: export PYRIGHT_PYTHON_IGNORE_WARNINGS = 1
check: $(STAMPS)/check ## run ruff, mypy, pyright and import-linter, and build the docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.13
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pyright --pythonpath $(BIN)/python --pythonversion 3.13
	$(BIN)/lint-imports
	$(SPHINX)

docs: $(STAMPS)/docs ## build the documentation site in docs/_build
	@$(SPHINX)
	@echo "Open docs/_build/index.html. The site and its search need no server and no network."

format: $(STAMPS)/check ## fix and format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMPS)/bench ## compare the cost with gather and other libraries (10 minutes); ARGS=--save keeps the results
	@exec $(BIN)/python -m benchmarks $(ARGS)

build: $(STAMPS)/venv ## build wheel and sdist in dist/
	@$(PIP) install build
	$(BIN)/python -m build

clean: ## remove everything that make has created, including .venv
	rm -rf .venv .venv-* dist docs/_build demo-output email-campaign.db* .coverage* htmlcov .hypothesis .import_linter_cache
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# Requirements are installed once, and again only when pyproject.toml changes.

$(STAMPS)/demo: EXTRAS := examples
$(STAMPS)/cluster: EXTRAS := dask,examples
$(STAMPS)/test: EXTRAS := examples,test
$(STAMPS)/check: EXTRAS := check,examples,test
$(STAMPS)/docs: EXTRAS := docs
$(STAMPS)/bench: EXTRAS := bench
# Two of the rivals have the same import name, so one of them gets its own folder.
$(STAMPS)/test $(STAMPS)/bench: NEXT_GENERATION := asyncio-pool-ng>=0.8.1,<0.10

$(STAMPS)/demo $(STAMPS)/cluster $(STAMPS)/test $(STAMPS)/check $(STAMPS)/docs $(STAMPS)/bench: pyproject.toml | $(STAMPS)/venv
	@echo "Installing [$(EXTRAS)] into $(VENV) ..."
	@$(PIP) install -e '.[$(EXTRAS)]'
	@$(if $(NEXT_GENERATION),$(PIP) install --upgrade --no-deps --target $(VENV)/asyncio-pool-ng '$(NEXT_GENERATION)')
	@touch $@

# Some systems ship venv without ensurepip. In that case, the pip of $(PYTHON) installs pip.
$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "asyncpool needs Python 3.11 or newer, but '$(PYTHON)' is older: choose another with make PYTHON=..." >&2; \
	    exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version) ..."
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; \
	then $(PYTHON) -m venv --clear $(VENV); \
	else $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	    $(PYTHON) -m pip --python $(BIN)/python install --disable-pip-version-check -qq pip; fi
	@mkdir -p $(STAMPS)
	@touch $@
