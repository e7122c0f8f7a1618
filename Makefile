# Every target first makes .venv from the lock where it is missing or older than the lock.

BENCHMARKS ?= resnet9-onecycle-adam resnet34-sgd-224 resnet18-step-decay cifar100-resnet speedrun-90
SEEDS ?= 1
SEEDS_PER_DEVICE ?=
PROFILE ?=
DEVICE ?= auto
DATA ?= $(value RESNET_BENCH_DATA)
STUDY ?= resnet18-step-decay
FORCE ?= $(AGAIN)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CLI := $(BIN)/resnet-bench
# Two processes of one thread each keep two cores busy; tests of one file share its fixtures.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile

ifneq ($(DATA),)
# The environment takes any path; make would split one with blanks, and a shell one with quotes.
bench study perf: export RESNET_BENCH_DATA := $(DATA)
test test-slow: export RESNET_BENCH_TEST_DATA := $(DATA)
endif

export MLFLOW_DISABLE_TELEMETRY := true
# Where compiled modules are not kept, as in many containers, each start compiles torch again and takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup docs docs-serve bench smoke full ui study report perf dashboard test test-slow lint audit lock clean

help: ## Show this list
	@echo "make TARGET [BENCHMARKS=\"NAME …\"] [SEEDS=1] [SEEDS_PER_DEVICE=N] [PROFILE=full|smoke] [DEVICE=auto] [DATA=folder] [FORCE=1] [STUDY=NAME]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv; every other target does so first

bench: $(READY) ## Train the four benchmarks and our own recipe, compare them with their claims, and write the report
	@$(CLI) run $(BENCHMARKS) --resume $(if $(FORCE),--force) --seeds $(SEEDS) $(if $(SEEDS_PER_DEVICE),--seeds-per-device $(SEEDS_PER_DEVICE)) $(if $(PROFILE),--profile $(PROFILE)) --device $(DEVICE); \
	status=$$?; \
	case $$status in 0|1) $(CLI) report || exit $$? ;; esac; \
	exit $$status

smoke: ## The same in a few minutes on a laptop: a small part of each recipe
	@$(MAKE) --no-print-directory bench PROFILE=smoke

full: ## The same as published: every epoch on every image
	@$(MAKE) --no-print-directory bench PROFILE=full

ui: $(READY) ## Open MLflow on the runs, on this machine only
	@$(CLI) ui

study: $(READY) ## Tune a benchmark with Optuna (STUDY=NAME)
	@$(CLI) study run $(STUDY) $(if $(PROFILE),--profile $(PROFILE)) --device $(DEVICE)

report: $(READY) ## Write reports/latest/ from what MLflow holds
	@$(CLI) report

perf: $(READY) ## Measure training steps against each source's training loop (BENCHMARKS="NAME …")
	@$(CLI) perf $(BENCHMARKS) --device $(DEVICE)

dashboard: $(READY) ## Open Optuna's dashboard on the studies, on this machine only
	@$(BIN)/optuna-dashboard --host 127.0.0.1 sqlite:///optuna.db

test: $(READY) ## Run the quick tests; with DATA=folder also those on real CIFAR
	@$(PYTEST)

test-slow: $(READY) ## Run the tests that take longer
	@$(PYTEST) -m slow

lint: $(READY) ## Check style, types and the arrows between packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: $(READY) ## Look for unsafe code, and for known holes in the locked packages
	@$(BIN)/python .ci/audit.py

docs: $(READY) ## Write the documentation as a site: build/site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "open build/site/index.html"

docs-serve: $(READY) ## Show the documentation while you write it, on this machine only
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8000

lock: $(READY) ## Choose versions again and write requirements.lock
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --upgrade \
		--generate-hashes --no-emit-index-url --no-header --quiet --output-file requirements.lock

clean: ## Remove the environment and every cache; runs, reports and data stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14) and "resnet-bench needs Python 3.11 to 3.14, which the locked packages were tried with; this is " + sys.version.split()[0] + " (choose another with PYTHON=…)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes --requirement requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@
