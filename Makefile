# The commands of the project. The README and CI call these. `make` alone lists them.
SHELL := /bin/bash
PYTHON ?= python3
UPGRADE ?= --upgrade
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet
LOCKED := --require-hashes --no-deps --only-binary :all: --requirement lock.txt
STAMP := .venv/.installed
EXPERIMENT := var/experiment
PORT := 9090
RULES := $(CURDIR)/serve/operate/observe
# A job of Prometheus on the page of metrics that service.json has under a key.
scrape = -e 's|^ *"$(2)": "http://([^/]+)/.*|- {job_name: $(1), static_configs: [{targets: ["\1"]}]}|p'
# Ray turns token authentication on by itself in some environments, so the mode is set here.
export RAY_AUTH_MODE ?= disabled
export RAY_USAGE_STATS_ENABLED ?= 0
# Images of containers often set this. Each of Ray's many processes would then compile the same
# packages again, so it is cleared.
export PYTHONDONTWRITEBYTECODE :=

# Parts of `test`, which write no file either.
.PHONY: with-ray without-ray in-background
.PHONY: help install demo experiment up down observe test proofs check ranklens dist audit lock fmt
.DEFAULT_GOAL := help

help: ## Print this list.
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## Create .venv with the pinned packages.

$(STAMP): pyproject.toml lock.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'tabrank needs Python 3.11 or newer; name one: make install PYTHON=python3.11' >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { \
	  echo '$(PYTHON) cannot make a virtual environment; on Debian or Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	@# Nothing is built from source, because the packages that a build needs have no hash here.
	@# uv installs faster than pip, because it unpacks on all processors. It does not read pip's
	@# configuration. If only that names the package index, uv fails, and pip installs the lock.
	@sed -n '/^uv==/,/[^\\]$$/p' lock.txt > .venv/uv.txt
	$(PIP) --require-hashes --no-deps --only-binary :all: --requirement .venv/uv.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(LOCKED) || { \
	  echo 'uv cannot install the lock; pip does' >&2; $(PIP) $(LOCKED); }
	@# uv compiles nothing. Several processes of Ray start at once, and they would start too slowly if
	@# each had to compile Ray first.
	@$(BIN)/python -m compileall -q -j 0 .venv/lib/python3*/site-packages/ray
	$(PIP) --no-compile --no-require-hashes --constraint constraints.txt --constraint lock.txt torch
	$(PIP) --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m pip check
	@touch $@

demo: install ## Simulate, train, serve and load, and report whether it held (4 minutes).
	@$(BIN)/python -m loadtest.scenarios.demo

experiment: install ## Rerun the original experiment over HTTP, and report it (12 minutes).
	@test ! -d $(EXPERIMENT)/run || $(BIN)/python -m serve down --run $(EXPERIMENT)/run
	@rm -rf "$$(readlink -f $(EXPERIMENT)/store)" $(EXPERIMENT)
	@$(BIN)/python -m training simulate --out $(EXPERIMENT)/log --rows 600000 --viewers 6000 --days 3
	@$(BIN)/python -m training fit --surface spaces --log $(EXPERIMENT)/log --out $(EXPERIMENT)/model
	@$(BIN)/python -m training publish --model $(EXPERIMENT)/model --models $(EXPERIMENT)/models
	@# The store is kept in memory where the system has room for that. Each ranking makes two commits,
	@# which a disk would slow down, and none of them has to survive.
	@test ! -d /dev/shm || ln -s "$$(mktemp -d /dev/shm/tabrank.XXXXXX)" $(EXPERIMENT)/store
	@cp benchmarks/rerun/cluster.yaml $(EXPERIMENT)/
	@trap '$(BIN)/python -m serve down --run $(EXPERIMENT)/run; rm -rf "$$(readlink -f $(EXPERIMENT)/store)"' EXIT; \
	$(BIN)/python -m serve load --log $(EXPERIMENT)/log --store lmdb:$(EXPERIMENT)/store && \
	$(BIN)/python -m serve up $(EXPERIMENT)/cluster.yaml --run $(EXPERIMENT)/run && \
	$(BIN)/python -m benchmarks rerun --log $(EXPERIMENT)/log --out $(EXPERIMENT)/truth
	@$(BIN)/python -m training experiment report --log $(EXPERIMENT)/log --config $(EXPERIMENT)/cluster.yaml \
	  --experiment original --out $(EXPERIMENT)/report

up: install var/models/CURRENT var/store/.filled ## Start the service of cluster.yaml.
	@$(BIN)/python -m serve up

down: ## Stop the service, and what a demo or a benchmark left running.
	@test ! -x $(BIN)/python || $(BIN)/python -m serve down
	@test ! -d var/demo/run || $(BIN)/python -m serve down --run var/demo/run
	@test ! -d $(EXPERIMENT)/run || $(BIN)/python -m serve down --run $(EXPERIMENT)/run
	@test ! -d var/bench/run || $(BIN)/python -m serve down --run var/bench/run

observe: install ## Run a local Prometheus with the alerts, until Ctrl-C (PORT=9090).
	@test -f var/run/service.json || { echo 'no service runs; start one with: python -m serve up' >&2; exit 1; }
	@command -v prometheus >/dev/null || { echo 'prometheus is missing; install it, and put it on PATH' >&2; exit 1; }
	@mkdir -p var/observe
	@# Each start of the service has its own ports for metrics, which service.json names.
	@{ echo 'global: {scrape_interval: 5s, evaluation_interval: 5s}'; \
	  echo 'rule_files: [$(RULES)/rules.yml, $(RULES)/alerts.yml]'; \
	  echo 'scrape_configs:'; \
	  sed -nE $(call scrape,tabrank,metrics_url) $(call scrape,haproxy,haproxy_metrics_url) \
	    var/run/service.json; } > var/observe/prometheus.yml
	prometheus --config.file=var/observe/prometheus.yml --storage.tsdb.path=var/observe/data \
	  --storage.tsdb.retention.time=7d --web.listen-address=127.0.0.1:$(PORT)

var/log: | install
	@echo 'There is no log yet: making a small one of the simulated world.'
	@$(BIN)/python -m training simulate --out $@ --rows 200000 --days 1 --end now

var/models/CURRENT: | install var/log
	@echo 'There is no model yet: fitting one to that log.'
	@rm -rf var/model
	@$(BIN)/python -m training fit --surface spaces --log var/log --out var/model --epochs 5
	@$(BIN)/python -m training publish --model var/model

var/store/.filled: | install var/log
	@$(BIN)/python -m serve load --log var/log
	@touch $@

# Each process of pytest gets one thread of OpenMP and of OpenBLAS. On two cores, more threads wait
# for each other, and one fixture of LightGBM takes 12 s instead of 2.
PYTEST := OMP_THREAD_LIMIT=1 OPENBLAS_NUM_THREADS=1 $(BIN)/pytest -q
# A worker of xdist takes up to 1 GB.
FAST := $(PYTEST) -n logical --maxprocesses 4 -m 'not integration and not gpu'
# One file at a time in each of two processes.
BY_FILE := $(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder

check: install ## Check format, lint, prose and types; run the tests without Ray (2 minutes).
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/python tests/support/check_prose.py
	@# Both use one core alone, so they run at the same time.
	@{ found=$$($(BIN)/lint-imports --no-cache --no-logo) || { echo "$$found"; exit 1; }; } & contracts=$$!; \
	$(BIN)/mypy --no-error-summary; types=$$?; wait $$contracts && exit $$types
	@$(FAST)

# A test that starts Ray or sends a load leaves the processors idle for a third of its time or more.
# So three groups run at once. What `check` does has the lowest priority: it takes only the time
# that the others leave, and does not delay a service that a test measures. At most two tests start
# Ray.
# Each group writes a line of progress each minute to descriptor 9, and make the rest when it ends.
test: install ## Run check, and the tests with Redis, Ray, HTTP and Locust (10 minutes).
	@exec 9>&2; $(MAKE) --no-print-directory --jobs 3 --output-sync=target with-ray without-ray in-background

with-ray without-ray in-background: PROGRESS = PROGRESS_OF=$@

with-ray: install
	@$(PROGRESS) $(BY_FILE) -m 'integration and not no_ray and not proof and not gpu'

without-ray: install
	@$(PROGRESS) $(BY_FILE) -m 'integration and no_ray and not proof and not gpu'

in-background: install
	@$(PROGRESS) nice -n 10 $(MAKE) --no-print-directory check

proofs: install ## Run the long tests: demo, kills, fuzzing, searches, scaling (20 minutes).
	@$(BIN)/pytest -q -n 2 -m 'proof and no_ray and not gpu'
	@$(BIN)/pytest -q -m 'proof and not no_ray and not gpu'

ranklens: install ## Fetch the data set RankLens (CC BY-SA 4.0) and verify its SHA-256.
	@$(BIN)/python tests/support/fetch_ranklens.py var/ranklens

dist: install ## Build both wheels and the sdist in dist, and try them.
	@rm -rf dist
	@$(BIN)/python -m hatchling build >/dev/null
	@cd serve/client && $(CURDIR)/$(BIN)/python -m hatchling build --target wheel --directory $(CURDIR)/dist >/dev/null
	@$(BIN)/python tests/support/check_dist.py dist

audit: install ## Ask the internet for known weaknesses of the pinned packages.
	@test -x .venv/audit/bin/pip-audit || { $(PYTHON) -m venv .venv/audit && .venv/audit/bin/pip install --quiet 'pip-audit>=2.10,<3'; }
	@# With --strict a failed look-up is an error: it does not mean that a package is safe.
	@.venv/audit/bin/pip-audit --requirement lock.txt --disable-pip --strict --progress-spinner off
	@.venv/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off

lock: ## Renew lock.txt from the internet; UPGRADE='--upgrade-package NAME' renews one.
	@test -x .venv/lock/bin/uv || { $(PYTHON) -m venv .venv/lock && .venv/lock/bin/pip install --quiet 'uv>=0.9,<1'; }
	@.venv/lock/bin/uv pip compile pyproject.toml --all-extras --universal --generate-hashes $(UPGRADE) \
	  --constraint constraints.txt --no-emit-package torch --no-annotate --custom-compile-command 'make lock' \
	  --quiet --output-file lock.txt
	@# The CUDA libraries leave the lock, because each build of torch brings those that it needs.
	@sed -i -E '/^(cuda-|nvidia-|triton==)/,/[^\\]$$/d' lock.txt

fmt: install ## Format the code, and mend what ruff can mend.
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
