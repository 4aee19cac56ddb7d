# Two commands: `make demo` sets everything up and runs the demo, `make test` sets everything up and runs the tests.
PYTHON ?= python3
VENV ?= .venv
VENV_VERL ?= .venv-verl
VENV_LOWEST ?= .venv-lowest
VENV_TRL ?= .venv-trl
VENV_GATEWAY ?= .venv-gateway
BIN = $(VENV)/bin
PIP_FLAGS = --quiet --disable-pip-version-check
CODE = src tests benchmarks scripts examples

.PHONY: demo test test-trl test-trl-versions test-descendants test-axolotl test-unsloth test-wheel test-lowest test-verl test-gateway coverage reliability lint docs clean

demo: $(VENV)/.ready-demo
	$(BIN)/depo demo --out demo

test: lint docs
	$(MAKE) test-trl
	$(MAKE) test-trl-versions
	$(MAKE) test-wheel
	$(MAKE) test-verl

test-trl: $(VENV)/.ready-test
	$(BIN)/python -m pytest

# Older releases of TRL, which what is built on it pins: a slice, in an environment of the packages of its time each.
test-trl-versions: test-trl-0.24 test-trl-0.29 test-trl-1.8

test-trl-%: $(VENV_TRL)-%/.ready
	$(VENV_TRL)-$*/bin/python -m pytest -m versions tests/test_trl_*.py

# What is built on TRL, with the packages that it pins. Not part of `make test`.
test-descendants: test-axolotl test-unsloth

test-axolotl: $(VENV_TRL)-axolotl/.ready
	$(VENV_TRL)-axolotl/bin/python -m pytest tests/test_axolotl.py

test-unsloth: $(VENV_TRL)-unsloth/.ready
	$(VENV_TRL)-unsloth/bin/python -m pytest tests/test_unsloth.py

# The package as somebody else gets it: built, and run from the wheel outside the checkout.
test-wheel: $(VENV)/.ready-test
	$(BIN)/python -m pytest tests/wheel

# The core, without torch, with the lowest versions that pyproject.toml allows: `make test-lowest PYTHON=python3.10`.
# Not part of `make test`, which tests what is new.
test-lowest: $(VENV_LOWEST)/.ready
	$(VENV_LOWEST)/bin/python -m pytest

# A target of its own: watching every line makes the tests half as long again.
coverage: $(VENV)/.ready-test
	$(BIN)/python -m pytest --cov=depo_rl --cov-report=term:skip-covered

# What is broken on purpose, and what holds: the table of docs/reliability.md, some 40 minutes; a campaign cut short goes on.
reliability: $(VENV)/.ready-test
	$(BIN)/python benchmarks/bench_reliability.py --page docs/reliability.md

# verl and trl do not share an environment, so verl's engine has its own, and its own suite.
test-verl: $(VENV_VERL)/.ready
	$(VENV_VERL)/bin/python -m pytest tests/verl

# LiteLLM's proxy as a process, two back ends as processes, the official client. Not part of `make test`.
test-gateway: $(VENV_GATEWAY)/.ready
	$(VENV_GATEWAY)/bin/python -m pytest tests/gateway

lint: $(VENV)/.ready-test
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

# The documentation as a site, site/index.html. A dead link or a page without a place fails (never with --quiet, which hides
# warnings from --strict too).
docs: $(VENV)/.ready-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.ready-demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[trl,report]'
	touch $@

$(VENV)/.ready-test: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[trl,peft,report,docs,dev]'
	touch $@

$(VENV_TRL)-axolotl/.ready: pyproject.toml constraints-axolotl.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install $(PIP_FLAGS) --no-deps axolotl==0.19.0
	$(@D)/bin/pip install $(PIP_FLAGS) --constraint constraints-axolotl.txt --editable '.[trl,peft,core-test]' \
		addict colorama evaluate fire numba pillow posthog triton wandb
	touch $@

$(VENV_TRL)-unsloth/.ready: pyproject.toml constraints-unsloth.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install $(PIP_FLAGS) --no-deps unsloth==2026.10.9 unsloth_zoo==2026.10.9
	$(@D)/bin/pip install $(PIP_FLAGS) --constraint constraints-unsloth.txt --editable '.[trl,peft,core-test]' \
		pillow psutil triton
	touch $@

.PRECIOUS: $(VENV_TRL)-%/.ready
$(VENV_TRL)-%/.ready: pyproject.toml constraints-trl-%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install $(PIP_FLAGS) --constraint constraints-trl-$*.txt --editable '.[trl,peft,core-test]'
	touch $@

$(VENV_VERL)/.ready: pyproject.toml constraints-verl.txt
	$(PYTHON) -m venv $(VENV_VERL)
	$(VENV_VERL)/bin/pip install $(PIP_FLAGS) --constraint constraints-verl.txt --editable '.[verl,verl-test]'
	touch $@

$(VENV_GATEWAY)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV_GATEWAY)
	$(VENV_GATEWAY)/bin/pip install $(PIP_FLAGS) --editable '.[gateway,core-test]'
	touch $@

$(VENV_LOWEST)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV_LOWEST)
	$(VENV_LOWEST)/bin/pip install $(PIP_FLAGS) uv
	$(VENV_LOWEST)/bin/uv pip install --quiet --python $(VENV_LOWEST)/bin/python --resolution lowest-direct \
		--editable '.[report,core-test]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV_VERL) $(VENV_LOWEST) $(VENV_TRL)-* $(VENV_GATEWAY) demo reliability site .pytest_cache .mypy_cache .ruff_cache .coverage
