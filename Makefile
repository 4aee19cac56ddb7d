# Two commands: `make demo` sets everything up and runs the demo, `make test` sets everything up and runs the tests.
PYTHON ?= python3
VENV ?= .venv
VENV_VERL ?= .venv-verl
BIN = $(VENV)/bin
PIP_FLAGS = --quiet --disable-pip-version-check
CODE = src tests benchmarks scripts examples

.PHONY: demo test test-trl test-verl coverage lint clean

demo: $(VENV)/.ready-demo
	$(BIN)/depo demo --out demo

test: lint
	$(MAKE) test-trl
	$(MAKE) test-verl

test-trl: $(VENV)/.ready-test
	$(BIN)/python -m pytest

# A target of its own: watching every line makes the tests half as long again.
coverage: $(VENV)/.ready-test
	$(BIN)/python -m pytest --cov=depo_rl --cov-report=term:skip-covered

# verl and trl do not share an environment, so verl's engine has its own, and its own suite.
test-verl: $(VENV_VERL)/.ready
	$(VENV_VERL)/bin/python -m pytest tests/verl

lint: $(VENV)/.ready-test
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

$(VENV)/.ready-demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[trl,report]'
	touch $@

$(VENV)/.ready-test: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[trl,peft,report,dev]'
	touch $@

$(VENV_VERL)/.ready: pyproject.toml constraints-verl.txt
	$(PYTHON) -m venv $(VENV_VERL)
	$(VENV_VERL)/bin/pip install $(PIP_FLAGS) --constraint constraints-verl.txt --editable '.[verl,verl-test]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV_VERL) demo .pytest_cache .mypy_cache .ruff_cache .coverage
