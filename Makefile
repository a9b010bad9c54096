# Two commands do everything, set-up included: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test lint types check test-4.57 clean

demo: $(VENV)/ready
	$(BIN)/edgetl run demo

test: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 --timeout 300 --durations 10

lint: $(VENV)/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/mypy

check: $(VENV)/ready
	$(BIN)/edgetl recipes check

test-4.57: .venv-4.57/ready
	.venv-4.57/bin/python -m pytest --timeout 300 tests/network tests/families tests/contract/test_families.py

# torch first and by name: that finds the CPU build where there is one.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q torch==2.13.0
	$(BIN)/pip install -q -c constraints.txt -e '.[compress,data,dev]'
	touch $@

.venv-4.57/ready: pyproject.toml constraints-4.57.txt
	$(PYTHON) -m venv .venv-4.57
	.venv-4.57/bin/pip install -q torch==2.13.0
	.venv-4.57/bin/pip install -q -c constraints-4.57.txt -e '.[compress]' pytest pytest-timeout hypothesis
	touch $@

clean:
	rm -rf .venv .venv-4.57 build dist
