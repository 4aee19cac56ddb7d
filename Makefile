# Two commands: `make demo` sets everything up and runs the demo, `make test` sets everything up and runs the tests.
PYTHON ?= python3
VENV ?= .venv
VENV_VERL ?= .venv-verl
VENV_LOWEST ?= .venv-lowest
VENV_GATEWAY ?= .venv-gateway
BIN = $(VENV)/bin
PIP_FLAGS = --quiet --disable-pip-version-check
CODE = src tests benchmarks scripts examples

.PHONY: demo test test-trl test-wheel test-lowest test-verl test-gateway coverage lint docs clean

demo: $(VENV)/.ready-demo
	$(BIN)/depo demo --out demo

test: lint docs
	$(MAKE) test-trl
	$(MAKE) test-wheel
	$(MAKE) test-verl

test-trl: $(VENV)/.ready-test
	$(BIN)/python -m pytest

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
	rm -rf $(VENV) $(VENV_VERL) $(VENV_LOWEST) $(VENV_GATEWAY) demo site .pytest_cache .mypy_cache .ruff_cache .coverage
