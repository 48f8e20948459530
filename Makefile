# make demo | test | quick | run | check | bench: each installs what it needs.
PYTHON ?= python3
BIN := .venv/bin
# Its locks are for every Python from 3.11 on and every processor; pip-compile's are for the one that it runs on.
LOCKER := uv==0.13.9
DEBIAN := chromium curl fdisk fonts-dejavu-core jq nginx-light openssh-server openssl postgresql python3-venv qemu-utils
# Groups that run side by side tell each line with their name.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
# What moves disks or decides that they may be moved; 98 % of its lines and branches have to be covered.
CORE := jobs/engine/*,hosts/remote/**,jobs/models/approval.py,jobs/web/review.py,jobs/web/base.py,jobs/web/overview.py,jobs/web/migrations.py,jobs/web/approvals.py,jobs/web/leftovers.py,jobs/web/backups.py
# How many groups of tests run side by side: two with a lab each, whose guests wait for each other, and others beside.
LANES ?= 3
BEGAN := $(shell date +%s)
TOOK = took=$$(($$(date +%s) - $(BEGAN))); echo "make $@: $$((took / 60)) min $$((took % 60)) s"
NAMED = 2>&1 | sed -u 's/^/$@ | /'
LOGGED = $(NAMED) | { mkdir -p .cache && tee -a .cache/$@.log; }
.DEFAULT_GOAL := help
# In the order in which they begin: the longest first.
TESTS := test-lab test-second test-jobs test-trust test-floor test-rest test-browser test-cloud test-postgresql
TORTURES := torture-hosts torture-fakes torture-processes
QUICKS := quick-moves quick-pages
.PHONY: help demo test $(TESTS) quick $(QUICKS) covered cloud trust torture $(TORTURES) run check house reference bench fleet lock packages

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: .venv/ready ## a storage lab and volmig on it, with two logins (Linux, root)
	@$(BIN)/python -m tests.demo

run: .venv/ready ## volmig alone, ready for your own hypervisors
	@$(BIN)/python manage.py up all

test: .venv/ready packages check ## everything: linters, types, unit, lab and browser tests
	@echo "Groups of tests, $(LANES) side by side (docs/testing.md has where the time goes):"
	@rm -f .cache/test-*.log
	@$(BIN)/python -m tests.groups forget
	@$(BIN)/coverage erase
	@failed=0; \
	  $(MAKE) --no-print-directory -j$(LANES) --keep-going $(TESTS) || failed=1; \
	  $(MAKE) --no-print-directory covered || failed=1; \
	  $(BIN)/python -m tests.groups times; $(TOOK); \
	  grep -hE '^test-[a-z]+ \| (FAILED|ERROR) ' .cache/test-*.log; exit $$failed

# Which tests are in a group is in tests/groups.py. Tests that failed are named again at the end.
test-lab test-second: export VOLMIG_LAB_KEEP = 1
test-lab:
	@trap '$(BIN)/python -m tests.lab down' EXIT; $(BIN)/python -m tests.groups lab $(LOGGED)

# On a second lab: while guests of one wait for each other, those of the other work.
test-second: export VOLMIG_LAB_NAME = second-lab
test-second:
	@trap '$(BIN)/python -m tests.lab down' EXIT; $(BIN)/python -m tests.groups nova lab-browser lab-undone $(LOGGED)

test-jobs:
	@$(BIN)/python -m tests.groups jobs $(LOGGED)

test-trust:
	@$(BIN)/python -m tests.groups trust $(LOGGED)

test-floor:
	@$(BIN)/python -m tests.groups floor $(LOGGED)

test-rest:
	@$(BIN)/python -m tests.groups rest $(LOGGED)

test-browser:
	@$(BIN)/python -m tests.groups browser $(LOGGED)

test-cloud:
	@$(BIN)/python -m tests.groups cloud $(LOGGED)

test-postgresql:
	@$(BIN)/python -m tests.groups postgresql $(LOGGED)

quick: .venv/ready ## for daily work, in less than three minutes: what check runs, and the unit tests that say most
	@failed=0; $(MAKE) --no-print-directory -j2 --keep-going $(QUICKS) check || failed=1; $(TOOK); exit $$failed

quick-moves:
	@$(BIN)/python -m tests.groups quick-moves $(NAMED)

quick-pages:
	@$(BIN)/python -m tests.groups quick-pages $(NAMED)

# By the tests without lab and browser; of the core, what is not covered is listed.
covered:
	@$(BIN)/coverage combine --quiet
	@echo "Lines and branches covered, of what moves disks or decides about it:"
	@$(BIN)/coverage report --include='$(CORE)' --skip-covered --show-missing --fail-under=98
	@echo "Lines and branches covered, of the whole project:"
	@$(BIN)/coverage report --fail-under=90 | grep -E '^TOTAL|failure'

cloud: .venv/ready ## a real Nova boots instances on the lab's hypervisors, and their disks are moved
	@$(BIN)/python -m tests.groups real

trust: .venv/ready packages ## attacks and bad nights at full size, each with its figure
	TRUST=full $(BIN)/pytest --durations=15 -s -m "not lab and not cloud" tests/trust tests/fleet/test_two_machines.py tests/fleet/test_fault_matrix.py

torture: .venv/ready packages ## every fault at every instant, and hosts that lose their power amid a migration, on the lab
	@$(MAKE) --no-print-directory -j2 --keep-going $(TORTURES)

torture-fakes:
	@$(BIN)/python -m tests.groups torture-fakes $(NAMED)

torture-processes:
	@VOLMIG_LAB_NAME=lab-of-processes $(BIN)/python -m tests.groups torture-processes $(NAMED)

torture-hosts:
	@$(BIN)/python -m tests.groups torture-hosts $(NAMED)

check: .venv/ready ## the quick ones: linters, types, import arrows, templates, migrations
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy volmig hosts jobs
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m tests.cycles
	$(BIN)/djlint --quiet --lint templates
	$(BIN)/python manage.py check
	$(BIN)/python manage.py makemigrations --check --dry-run
	@$(TOOK)

house: .venv/ready ## figures of the source to consider: lengths, docstrings, patches for each test, repeats
	@$(BIN)/python -m tests.house

reference: .venv/ready ## writes docs/reference.md, of the REST API and the client
	@$(BIN)/python -m tests.api.reference

bench: .venv/ready ## pages of a long history, 500 live pages, then the manual procedure against volmig on the lab with links at 100 Mbit/s
	@$(BIN)/python -m tests.bench

# How many hypervisors, each with a migration that runs.
FLEET ?= 10 50 200 500
fleet: .venv/ready packages ## sites of FLEET="10 50 200 500" hypervisors behind real SSH, as many migrations: a table, 35 minutes
	@$(BIN)/python -m tests.bench.fleet $(FLEET)

lock: ## locks every package that requirements*.txt need, with versions and hashes (asks the package index)
	@$(PYTHON) -m venv .cache/lock && .cache/lock/bin/pip install --quiet --disable-pip-version-check $(LOCKER)
	@for each in requirements requirements-dev; do \
	  env -u PIP_FIND_LINKS -u UV_FIND_LINKS .cache/lock/bin/uv --no-config pip compile --quiet --universal --python-version 3.11 \
	    --generate-hashes --no-annotate --custom-compile-command "make lock" $$each.txt --output-file $$each.lock || exit 1; done

packages:
	@dpkg -s $(DEBIAN) >/dev/null 2>&1 || { echo "Installing Debian packages: $(DEBIAN)"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(DEBIAN) >/dev/null; }

.venv/ready: requirements.lock requirements-dev.lock
	@$(PYTHON) -c "import ensurepip" 2>/dev/null || { echo "Installing Debian package: python3-venv"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null; }
	@echo "Installing Python packages into .venv (about a minute, once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@
