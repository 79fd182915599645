# Everything a newcomer or a machine types. Works with GNU make 3.81.

# The first Python on the path that will do; another one: make install PYTHON=/path/to/python3.12
PYTHON ?= $(shell for each in python3 python3.13 python3.12 python3.11; do \
	"$$each" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo "$$each" && break; done)

BIN := .venv/bin
STAMP := .venv/.installed
MANIFEST := dbt_project/target/manifest.json
DBT_SOURCES := $(shell find dbt_project -path dbt_project/target -prune -o -path dbt_project/logs -prune \
	-o -type f \( -name '*.sql' -o -name '*.yml' -o -name '*.md' \) -print)

.PHONY: help install demo up down test slow torture figures bench check format lock clean
.DEFAULT_GOAL := help

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

install: $(STAMP) $(MANIFEST) ## Make .venv from the hashed lock

demo: install ## Extract a month from a simulated helpdesk and show what came of it
	@$(BIN)/bridge demo

up: install ## Serve Dagster's UI on 127.0.0.1:3000 until Ctrl-C
	@$(BIN)/bridge up

down: ## Stop the UI, the daemon and the embedded database
	@test ! -x $(BIN)/bridge || $(BIN)/bridge down

# The dearest files first, or one of them is run alone at the end.
test: install ## Run all tests
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: install ## Run the tests that take more than some seconds each
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow

torture: install ## Run the long campaigns; BRIDGE_TORTURE_RUNS=1000 for their full form
	$(BIN)/pytest -n 2 -m long --timeout 0

figures: install ## Write what the last campaigns came to into docs/guarantees.md
	@$(BIN)/python -m tests.torture.table

bench: install ## Measure the pipeline side by side with others; hours; BENCH="--only imports" is shorter
	$(BIN)/python -m bench --page docs/benchmarks.md $(BENCH)

check: install ## Format, lint, types, import contracts, Dagster definitions, SQL
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	@mkdir -p .venv/.dagster && : > .venv/.dagster/dagster.yaml
	VIRTUAL_ENV="$(CURDIR)/.venv" DAGSTER_HOME="$(CURDIR)/.venv/.dagster" $(BIN)/dg check defs
	$(BIN)/sqlfluff lint dbt_project

format: install ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## Write requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-annotate --group dev --output-file requirements.lock pyproject.toml

clean: ## Remove .venv and all that is built; the data in BRIDGE_HOME stays
	rm -rf .venv build *.egg-info dbt_project/target dbt_project/logs dbt_project/dbt_packages
	rm -rf .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find assets bench bridge_pipeline resources tests -name __pycache__ -type d -prune -exec rm -rf {} +

# pip and not uv: uv does not read pip's configuration, where many a network names its index.
# pip compiles what it installs, whatever PYTHONDONTWRITEBYTECODE says; our own code is compiled
# here, because each of Dagster's processes imports all of it.
$(STAMP): requirements.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 || { \
		echo "Project Bridge needs Python 3.11, 3.12 or 3.13; found: $$("$(PYTHON)" -V 2>&1 | tail -n 1)" >&2; \
		echo "Install one, or name it: make install PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "making .venv from requirements.lock; the first time this takes a minute or two"
	@test -x $(BIN)/python && $(BIN)/python -c '' 2>/dev/null || "$(PYTHON)" -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		-r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q bridge_pipeline assets resources
	@touch $(STAMP)

$(MANIFEST): $(STAMP) $(DBT_SOURCES)
	@$(BIN)/dbt --quiet parse --project-dir dbt_project --profiles-dir dbt_project
	@touch $(MANIFEST)
