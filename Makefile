# Needs python3 (3.11 or newer) and make; everything else comes into .venv.

PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv
# Where uv installs to, whatever environment is active.
export VIRTUAL_ENV := $(CURDIR)/.venv

.PHONY: help run init serve test test-services check format lock clean
.DEFAULT_GOAL := help

help:  ## Show this
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

run: .venv/installed  ## Install, prepare the database, and serve on 127.0.0.1:8000 (PORT=8001, HOST=0.0.0.0)
	@$(BIN)/python manage.py init
	@exec $(BIN)/python manage.py serve $(if $(filter command%,$(origin HOST)),--host $(HOST))

test: .venv/installed-dev  ## Run the tests (those that start real servers: make test-services)
	$(BIN)/pytest

test-services: .venv/installed-dev  ## Run the tests that start real server processes
	$(BIN)/pytest -m processes

check: .venv/installed-dev  ## Lint, types, layers, migrations, system checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	SECRET_KEY=$(CHECK_KEY) ENV_FILE= LOG_FILE= $(BIN)/python manage.py makemigrations --check --dry-run
	SECRET_KEY=$(CHECK_KEY) ENV_FILE= LOG_FILE= $(BIN)/python manage.py check --deploy --fail-level ERROR
	SECRET_KEY=$(CHECK_KEY) ENV_FILE= LOG_FILE= QUIET_SCHEMA=false \
		$(BIN)/python manage.py spectacular --validate --file /dev/null
CHECK_KEY := checks-only-0123456789abcdef0123456789abcdef0123456789abcdef

format: .venv/installed-dev  ## Format, and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(UV)  ## Compile requirements*.txt into the lock files
	$(UV) pip compile -q --no-header --no-annotate --python-version 3.11 requirements.txt -o requirements.lock
	$(UV) pip compile -q --no-header --no-annotate --python-version 3.11 requirements-dev.txt -o requirements-dev.lock

clean:  ## Remove the virtual environment and caches (never data or .env)
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis htmlcov .coverage

# --- The virtual environment --------------------------------------------------------------------------------------
# Installing adds and never removes, so that `make run` and `make test` share one environment. Compiled at once: where
# Python may not write bytecode (PYTHONDONTWRITEBYTECODE), each start would compile for seconds.

.venv/installed: requirements.lock $(UV)
	@echo "Installing what the server needs…"
	@$(UV) pip install -q --compile-bytecode -r requirements.lock
	@touch $@

.venv/installed-dev: requirements-dev.lock $(UV)
	@echo "Installing what the server, its tests and checks need…"
	@$(UV) pip install -q --compile-bytecode -r requirements-dev.lock
	@touch $@ .venv/installed

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another: make run PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "Python's venv is missing. On Debian or Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv==0.13.9
