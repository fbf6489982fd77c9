# Commands for developers and newcomers. ARGS= is passed to the program: make demo ARGS=--once, make test ARGS="-k router"
.DEFAULT_GOAL := help
.PHONY: help demo test versions chaos bench check format servers reference docs screenshots release clean
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Most tests wait for servers, so five side by side suit two cores. Each has servers of its own. The long files of
# tests/acceptance begin first (no reorder): xdist would begin with the files of most tests.
JOBS ?= 5

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed-demo  ## Run the whole system on this machine, with nothing to install first (ARGS="--once --database mariadb")
	@echo "==> Starting the demo"
	@$(BIN)/python -m demo $(ARGS)

test: $(VENV)/.installed-dev servers  ## Run all tests against real servers (ARGS="-k words" selects some)
	@echo "==> Running the tests"
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations 10 $(ARGS)

versions: $(VENV)/.installed-dev servers  ## Run the tests of compatibility with each older Celery (docs/versions.md)
	@echo "==> Running the tests that matter with each older Celery"
	@scripts/test-versions

chaos: $(VENV)/.installed-dev servers  ## Kill it 200 times while clients write (ARGS="--kills 50 --seed 7 --target broker")
	@echo "==> Attacking"
	@$(BIN)/python -m tests.acceptance.chaos $(ARGS)

bench: $(VENV)/.installed-dev servers  ## Compare with other tools, write docs/benchmarks.md (ARGS="--quick --output /tmp/bench" for a short run)
	@echo "==> Measuring"
	@$(BIN)/python -m benchmarks $(ARGS)

check: $(VENV)/.installed-dev  ## Check lint, format and types; change nothing
	@echo "==> Linting"
	@$(BIN)/ruff check .
	@$(BIN)/shellcheck .ci/run scripts/* docker/*/*.sh examples/install examples/run
	@echo "==> Checking the format"
	@$(BIN)/ruff format --check .
	@echo "==> Checking the types"
	@$(BIN)/mypy
	@echo "==> Checking that the pinned versions fit together"
	@$(BIN)/python -m pip check --disable-pip-version-check

format: $(VENV)/.installed-dev  ## Format the code, and apply the linter's fixes
	@echo "==> Formatting"
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

servers:  ## Install the servers that the tests need besides those from wheels (Debian, Ubuntu)
	@echo "==> Looking for the servers of the tests"
	@scripts/install-test-servers
	@[ -n "$$CDC_TEST_MYSQL_SERVER" ] || scripts/unpack-mysql >/dev/null || \
		echo "    no MySQL: its tests fail; set CDC_TEST_MYSQL_SERVER=/path/of/mysqld, or CDC_TEST_MYSQL_URL (docs/design.md)" >&2

reference: $(VENV)/.installed-dev  ## Generate docs/reference and docs/settings.md from the code
	@echo "==> Making the reference"
	@$(BIN)/python -m reference

docs: $(VENV)/.installed-dev  ## Build the documentation site into build/site, and check all links
	@echo "==> Making the site"
	@$(BIN)/zensical build --clean --strict

release: $(VENV)/.installed-dev  ## Build wheel and source distribution into dist/, test each in an empty environment; upload nothing
	@scripts/release

screenshots: $(VENV)/.installed-dev servers  ## Create the pictures of docs/console.md, from a console with example data
	@echo "==> Taking the pictures"
	@$(BIN)/python -m tests.acceptance.screenshots

clean:  ## Delete the virtual environments and the caches
	@echo "==> Removing $(VENV), .versions and caches"
	@rm -rf $(VENV) .versions build/site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

$(VENV)/.installed-%: pyproject.toml constraints.txt scripts/make-venv
	@scripts/make-venv $(VENV) $*
	@touch $@
