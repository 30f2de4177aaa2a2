# Everything from a fresh clone: each target sets up what it needs, once. No root needed.
#   make run    the product with its live demonstration      make test   all that CI runs
#   make bench  the figures, each beside a measured limit    make lint   style, types, import contracts
#   make judges outside judges of x402, docs/judges.md       make clean  away with all of the above
#   make lock   requirements.lock anew

.PHONY: run test bench judges lint lock clean setup package
.DEFAULT_GOAL := run
SHELL := /bin/sh

# Where it is set, each of a thousand programs the tests start would compile Tollbook anew.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
PYTHON_MIN := 3.11
NODE_MIN := 18
TEST_WORKERS := 4
TEST_SECONDS_MAX := 1080
LOCK_FLAGS := --universal --python-version $(PYTHON_MIN) --generate-hashes --no-emit-index-url --no-header

run: setup
	@exec $(BIN)/tollbook up --demo

test: lint
	timeout -k 10 $(TEST_SECONDS_MAX) $(BIN)/pytest -n $(TEST_WORKERS) --dist worksteal
	@$(MAKE) --no-print-directory package

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(BIN)/lint-imports

# The wheel is tried where nothing of this folder can be seen; the libraries it needs are lent to it.
package: setup
	rm -rf build/dist build/fresh
	$(BIN)/python -m build --no-isolation --outdir build/dist >build/package.log 2>&1 || { cat build/package.log; exit 1; }
	$(BIN)/python -m venv build/fresh
	build/fresh/bin/pip install -q --no-deps --no-index build/dist/*.whl
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		>"$$(build/fresh/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/lent.pth"
	cd build && fresh/bin/python -I -c 'import sys, tollbook; assert tollbook.__file__.startswith(sys.prefix), tollbook'
	cd build && fresh/bin/tollbook --help >/dev/null
	cd build && fresh/bin/python -I -c "from tollbook.entrypoints.migrations import find_folders as f; from tollbook.migrate.formats import read; assert len(read(f())) > 2"
	@echo "The wheel installs and runs: $$(ls build/dist/*.whl)"

bench: setup build/bench/.ready
	@for file in bench/[a-z]*.py; do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

judges: setup build/judges/.ready
	@$(BIN)/python judges/run.py

# Other tools, to be measured beside ours.
build/bench/.ready: bench/requirements.txt .venv/.ready
	@$(BIN)/python -m venv --clear build/bench
	@build/bench/bin/pip install -q --disable-pip-version-check --require-hashes -r bench/requirements.txt
	@touch $@

build/judges/.ready: judges/requirements.txt
	@$(BIN)/python -m venv --clear build/judges
	@build/judges/bin/pip install -q --disable-pip-version-check --require-hashes -r judges/requirements.txt
	@touch $@

lock:
	python3 -m venv build/lock && build/lock/bin/pip install -q uv
	build/lock/bin/uv pip compile $(LOCK_FLAGS) --group dev --extra telemetry --extra alembic --extra s3 pyproject.toml \
		-o requirements.lock >/dev/null
	build/lock/bin/uv pip compile $(LOCK_FLAGS) bench/requirements.in -o bench/requirements.txt >/dev/null

clean:
	rm -rf .venv node_modules build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache

setup: .venv/.ready node_modules/.ready
	@mkdir -p build

# Shims of version managers may be there and not run: so each is asked.
.venv/.ready: requirements.lock pyproject.toml
	@for name in python3.13 python3.12 python3.11 python3; do \
		if "$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < ($(subst .,$(comma) ,$(PYTHON_MIN))))' \
			>/dev/null 2>&1; then found="$$name"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "Tollbook needs Python $(PYTHON_MIN) or newer, with its venv module, and found none on PATH." >&2; \
		echo "Install it (Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python@3.12)." >&2; \
		exit 1; \
	fi; \
	if [ ! -x $(BIN)/python ]; then echo "Making .venv with $$found ..."; "$$found" -m venv .venv || exit 1; fi
	@echo "Installing what requirements.lock names ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Node is for the local chain and the TypeScript client alone; without it the rest still works.
node_modules/.ready: package-lock.json package.json
	@mkdir -p node_modules
	@major="$$(node --version 2>/dev/null | sed 's/^v\([0-9]*\).*/\1/')"; \
	if [ "$${major:-0}" -ge $(NODE_MIN) ] && command -v npm >/dev/null; then \
		echo "Installing the local chain from package-lock.json ..."; npm ci --silent && touch $@; \
	else \
		echo "Node $(NODE_MIN) or newer is not here: no local chain, so no demonstration and no TypeScript test." >&2; \
		echo "Everything else works. Install Node from nodejs.org or your system's packages for the rest." >&2; \
	fi

comma := ,
