# What a developer and a newcomer type. ARGS= goes on to the program: make demo ARGS=--once, make test ARGS="-k router"
.DEFAULT_GOAL := help
.PHONY: help demo test versions chaos bench check format servers reference docs screenshots release clean
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Most tests wait for servers, so five side by side suit two cores. Each has servers of its own. The long files of
# tests/acceptance begin first (no reorder): xdist would begin with the files of most tests.
JOBS ?= 5

help:  ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed-demo  ## The whole system on this machine, nothing to install first (ARGS="--once --database mariadb")
	@echo "==> Starting the demo"
	@$(BIN)/python -m demo $(ARGS)

test: $(VENV)/.installed-dev servers  ## Every test, against real servers (ARGS="-k words" chooses some)
	@echo "==> Running the tests"
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations 10 $(ARGS)

versions: $(VENV)/.installed-dev servers  ## The tests that matter, with each older Celery (docs/versions.md)
	@echo "==> Running the tests that matter with each older Celery"
	@scripts/test-versions

chaos: $(VENV)/.installed-dev servers  ## Kill it 200 times while clients write (ARGS="--kills 50 --seed 7 --target broker")
	@echo "==> Attacking"
	@$(BIN)/python -m tests.acceptance.chaos $(ARGS)

bench: $(VENV)/.installed-dev servers  ## Ours beside others, into docs/benchmarks.md (ARGS="--quick --output /tmp/bench" for a look)
	@echo "==> Measuring"
	@$(BIN)/python -m benchmarks $(ARGS)

check: $(VENV)/.installed-dev  ## Lint, format and types, nothing is changed
	@echo "==> Linting"
	@$(BIN)/ruff check .
	@$(BIN)/shellcheck .ci/run scripts/* docker/*/*.sh examples/install examples/run
	@echo "==> Checking the format"
	@$(BIN)/ruff format --check .
	@echo "==> Checking the types"
	@$(BIN)/mypy
	@echo "==> Checking that the pinned versions fit together"
	@$(BIN)/python -m pip check --disable-pip-version-check

format: $(VENV)/.installed-dev  ## Format the code, and mend what the linter can
	@echo "==> Formatting"
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

servers:  ## The servers that the tests need beside those from wheels (Debian, Ubuntu: installs them)
	@echo "==> Looking for the servers of the tests"
	@scripts/install-test-servers
	@[ -n "$$CDC_TEST_MYSQL_SERVER" ] || scripts/unpack-mysql >/dev/null || \
		echo "    no MySQL: its tests fail; set CDC_TEST_MYSQL_SERVER=/path/of/mysqld, or CDC_TEST_MYSQL_URL (docs/design.md)" >&2

reference: $(VENV)/.installed-dev  ## The pages of docs/reference and docs/settings.md, made from the code
	@echo "==> Making the reference"
	@$(BIN)/python -m reference

docs: $(VENV)/.installed-dev  ## The site of the documentation, into build/site, with each link looked at
	@echo "==> Making the site"
	@$(BIN)/zensical build --clean --strict

release: $(VENV)/.installed-dev  ## Wheel and source into dist/, each tried in an empty environment; nothing is uploaded
	@scripts/release

screenshots: $(VENV)/.installed-dev servers  ## The pictures of docs/console.md, of a console with example data
	@echo "==> Taking the pictures"
	@$(BIN)/python -m tests.acceptance.screenshots

clean:  ## Throw away the virtual environments and the caches
	@echo "==> Removing $(VENV), .versions and caches"
	@rm -rf $(VENV) .versions build/site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

$(VENV)/.installed-%: pyproject.toml constraints.txt scripts/make-venv
	@scripts/make-venv $(VENV) $*
	@touch $@
