# make demo | test | run | check | bench: each installs what it needs.
PYTHON ?= python3
BIN := .venv/bin
# Its locks are for every Python from 3.11 on and every processor; pip-compile's are for the one that it runs on.
LOCKER := uv==0.13.9
DEBIAN := chromium curl fdisk fonts-dejavu-core jq nginx-light openssh-server openssl postgresql python3-venv qemu-utils
# Groups that run side by side tell each line with their name.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
# Where a group is of few folders they are named: to look through all for its marks takes eight seconds.
TESTS = $(BIN)/pytest --durations=15
# What moves disks or decides that they may be moved; 98 % of its lines and branches have to be covered.
CORE := jobs/engine/*,hosts/remote/**,jobs/models/approval.py,jobs/web/review.py,jobs/web/base.py,jobs/web/overview.py,jobs/web/migrations.py,jobs/web/approvals.py,jobs/web/leftovers.py,jobs/web/backups.py
# What differs by database, and what only PostgreSQL has: it runs there, too.
BY_DATABASE := tests/fleet/test_health.py tests/fleet/test_incidents.py tests/fleet/test_metrics.py \
  tests/jobs/test_archives.py tests/jobs/test_ticks.py tests/jobs/test_watch.py tests/pages/test_changes.py \
  tests/volmig/test_checks.py tests/volmig/test_online.py tests/volmig/test_overload.py
PROCESSES := tests/lab_tests/test_killed_processes.py
NAMED = 2>&1 | sed -u 's/^/$@ | /'
LOGGED = $(NAMED) | { mkdir -p .cache && tee -a .cache/$@.log; }
.DEFAULT_GOAL := help
.PHONY: help demo test test-pages test-hosts covered cloud trust torture torture-hosts torture-fakes torture-processes run check house reference bench fleet lock packages

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: .venv/ready ## a storage lab and volmig on it, with two logins (Linux, root)
	@$(BIN)/python -m tests.demo

run: .venv/ready ## volmig alone, ready for your own hypervisors
	@$(BIN)/python manage.py up all

test: .venv/ready packages check ## everything: linters, types, unit, lab and browser tests
	@echo "Two groups of tests side by side, about 40 minutes on two processors:"
	@rm -f .cache/test-*.log
	@failed=0; \
	  $(MAKE) --no-print-directory -j2 --keep-going test-pages test-hosts || failed=1; \
	  $(MAKE) --no-print-directory covered || failed=1; \
	  grep -hE '^test-[a-z]+ \| (FAILED|ERROR) ' .cache/test-*.log; exit $$failed

# In each group what comes later runs although something before it failed: whoever mends it wants to know all at once.
# Tests that failed are named again at the end.
# This group leaves the processors to the other one's guests, which are slow while they wait for one.
test-pages:
	@$(BIN)/coverage erase
	@failed=0; \
	  nice $(BIN)/coverage run -m pytest --durations=15 -m "not lab and not browser and not cloud and not real and not torture" $(LOGGED) || failed=1; \
	  $(TESTS) -m "browser and not lab and not real" tests/browser tests/trust $(LOGGED) || failed=1; \
	  $(TESTS) -m "cloud and not lab" tests/cloud_tests $(LOGGED) || failed=1; \
	  exit $$failed

# By the tests without lab and browser; of the core, what is not covered is listed.
covered:
	@$(BIN)/coverage combine --quiet
	@echo "Lines and branches covered, of what moves disks or decides about it:"
	@$(BIN)/coverage report --include='$(CORE)' --skip-covered --show-missing --fail-under=98
	@echo "Lines and branches covered, of the whole project:"
	@$(BIN)/coverage report --fail-under=90 | grep -E '^TOTAL|failure'

# Nova first, so that the other group, which comes to it late, does not wait for it. One lab for all: two at once take
# twice as long.
test-hosts: export VOLMIG_LAB_KEEP = 1
test-hosts:
	@trap '$(BIN)/python -m tests.lab down' EXIT; failed=0; \
	  $(TESTS) -m "lab and cloud and not real and not torture" tests/lab_tests $(LOGGED) || failed=1; \
	  $(TESTS) -m "lab and browser and not torture" tests/lab_tests $(LOGGED) || failed=1; \
	  $(TESTS) -m "lab and not cloud and not browser and not torture" tests/lab_tests tests/hosts $(LOGGED) || failed=1; \
  $(BIN)/python -m tests.postgresql $(BY_DATABASE) $(LOGGED) || failed=1; \
	  exit $$failed

cloud: .venv/ready ## a real Nova boots instances on the lab's hypervisors, and their disks are moved
	$(BIN)/pytest -m real

trust: .venv/ready packages ## attacks and bad nights at full size, each with its figure
	TRUST=full $(TESTS) -s -m "not lab and not cloud" tests/trust tests/fleet/test_two_machines.py tests/fleet/test_fault_matrix.py

torture: .venv/ready packages ## every fault at every instant, and hosts that lose their power amid a migration, on the lab
	@$(MAKE) --no-print-directory -j2 --keep-going torture-hosts torture-fakes torture-processes

torture-fakes:
	@$(TESTS) -s -m "torture and not lab" $(NAMED)

torture-processes:
	@VOLMIG_LAB_NAME=lab-of-processes $(TESTS) -s -m "torture and lab" $(PROCESSES) $(NAMED)

torture-hosts:
	@$(TESTS) -s -m "torture and lab" --ignore=$(PROCESSES) $(NAMED)

check: .venv/ready ## the quick ones: linters, types, import arrows, templates, migrations
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy volmig hosts jobs
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m tests.cycles
	$(BIN)/djlint --quiet --lint templates
	$(BIN)/python manage.py check
	$(BIN)/python manage.py makemigrations --check --dry-run

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
