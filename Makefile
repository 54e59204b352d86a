# headrace: everything a person needs, each target doing its own set-up. `make` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test check crash fuzz bench lock clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("headrace needs Python 3.11 to 3.13, this is %d.%d; name another with make PYTHON=..." % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY) ## a real Kafka, three pipelines, a table of answers
	@$(BIN)/headrace demo

test: $(READY) ## all tests, against a real broker
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: $(READY) ## ruff and mypy, strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

crash: $(READY) ## the long form of the crash, cluster and model tests (about twenty minutes)
	HEADRACE_CRASH=long $(BIN)/python -m pytest tests/crash tests/integration/test_cluster.py \
		tests/unit/test_mapping_model.py -s

fuzz: $(READY) ## the long form of the tests of generated input (hours)
	HEADRACE_FUZZ=long $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --timeout 7200 \
		$$(grep -rl "^from tests.forms import .*examples" tests)

bench: $(READY) ## what headrace does on this machine
	$(BIN)/python -m benchmarks

lock: $(READY) ## resolve the dependencies anew
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-header --quiet -o requirements.lock

clean: ## remove what the other targets made, the virtual environment included
	rm -rf $(VENV) .headrace-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build dist
