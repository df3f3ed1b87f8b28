# Everything a person types in this checkout. Bare `make` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest
HOST ?= salt_master
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help env master single lab lab-down lab-status lab-shell soak test unit functional integration lab-test lint lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(READY) ## set up .venv and the Salt configuration of this checkout

$(READY): requirements/dev.txt etc/configure.py etc/prerequisites.sh
	@exec 9<.
	@flock -n 9 || { echo "Another make sets up $(VENV): waiting for it"; flock 9; }
	@if [ -e $@ ] && [ -z "$$(find $^ -newer $@)" ]; then exit 0; fi
	@etc/prerequisites.sh $(PYTHON)
	@echo "Python packages into $(VENV) (requirements/dev.txt)"
	@# Where the last time was interrupted, packages may be there by half.
	@anew=$$([ -e $@ ] || echo --clear)
	@rm -f $@
	@$(PYTHON) -m venv $$anew $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python etc/configure.py --root-dir .run
	@touch $@
	@echo "Ready. Salt's commands are in $(BIN): . $(BIN)/activate"

lab: $(READY) ## raise the five hosts and deploy the platform to them
	@$(BIN)/python -m lab up

lab-down: $(READY) ## remove the hosts; the cache of artifacts stays
	@$(BIN)/python -m lab down

lab-status: $(READY) ## what each host is, does and uses
	@$(BIN)/python -m lab status

lab-shell: $(READY) ## a root shell on HOST= (salt_master)
	@$(BIN)/python -m lab shell $(HOST)

master: ## make this server the Salt master of one's own hosts (root)
	@etc/install-master.sh

single: ## make this server one without a master (root); docs/single.md
	@etc/install-single.sh

soak: lab ## 10,000 hostile requests; servers killed; twenty rotations under load; binding; one server; a Consul agent; make lab killed (results in docs)
	@trap 'exit 130' INT
	@failed=()
	@soak() { $(PYTEST) "$$@" || failed+=("$$@"); }
	@HOSTILE_RESULTS=docs/hostile-soak.json soak tests/soak/test_hostile.py
	@FAILURES=docs soak tests/soak/test_failures.py
	@ROTATIONS=20 ROTATION_RESULTS=docs/rotation-soak.json soak tests/soak/test_rotation.py
	@SINGLE_RESULTS=docs/single-platform.json soak tests/soak/test_single_platform.py
	@soak tests/soak/test_master.py tests/soak/test_binding.py tests/soak/test_discovery.py tests/soak/test_interrupted.py
	@[ $${#failed[@]} -eq 0 ] || { echo "Failed: $${failed[*]}" >&2; exit 1; }

lint: $(READY) ## every linter
	@tests/lint.sh

unit: $(READY) ## pure functions and modules, seconds
	@$(PYTEST) tests/unit --numprocesses=auto

functional: $(READY) ## modules and states against real servers on loopback
	@$(BIN)/python -m lab artifacts
	@$(PYTEST) tests/functional -m "not timed" --numprocesses=2 --dist=loadfile
	@$(PYTEST) tests/functional -m timed

integration: $(READY) ## a real master and minions under salt-factories; two NUMA nodes under QEMU
	@$(BIN)/python -m lab artifacts
	@$(PYTEST) tests/integration tests/numa --numprocesses=2 --dist=loadfile

lab-test: lab ## the converged hosts: verification, faults, second run
	@$(PYTEST) tests/lab -m timed
	@$(PYTEST) tests/lab -m "not timed" --verbose --numprocesses=2 --dist=loadscope

test: $(READY) ## all of it, with one closing line of counts
	@$(BIN)/python tests/run.py

lock: ## renew requirements/*.txt from requirements/*.in
	@etc/lock.sh

clean: ## remove what make made in this checkout, the lab and its cache excepted
	@rm -rf $(VENV) .run etc/*/*.d/paths.conf
