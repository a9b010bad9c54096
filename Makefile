# Two commands do everything, set-up included: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test test-slow test-page lint types check test-4.57 clean

demo: $(VENV)/ready
	$(BIN)/edgetl run demo

test: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 --dist loadgroup --timeout 300 --durations 10

# What takes long; what needs real data or a program that is not here skips and says so.
test-slow: $(VENV)/ready
	$(BIN)/python -m pytest -m 'slow and not gpu' -n 2 --dist loadgroup -rs --timeout 600 --durations 10

test-page: $(VENV)/ready
	$(BIN)/python -m pytest -m slow -rs --timeout 300 tests/profile/test_html_report.py

lint: $(VENV)/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/mypy

check: $(VENV)/ready
	$(BIN)/edgetl recipes check

test-4.57: .venv-4.57/ready
	.venv-4.57/bin/python -m pytest --timeout 300 tests/network tests/families tests/contract/test_families.py tests/targets/test_optimum.py

define new-enough
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
  echo "error: $(PYTHON) is not Python 3.11 or newer: `$(PYTHON) --version 2>&1`" >&2; \
  echo "  fix: make $(firstword $(MAKECMDGOALS) demo) PYTHON=python3.12   (or the path of another one)" >&2; \
  exit 2; }
endef

# Each environment is made once, and again when its pins change.
# torch first and by name: that finds the CPU build where there is one.
$(VENV)/ready: pyproject.toml constraints.txt
	$(new-enough)
	@echo "making $(VENV): a few minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[compress,data,report,openvino,trt-rtx,dev]'
	@touch $@

.venv-4.57/ready: pyproject.toml constraints-4.57.txt
	$(new-enough)
	@echo "making .venv-4.57: a few minutes, once"
	$(PYTHON) -m venv .venv-4.57
	.venv-4.57/bin/python -m pip install -q torch==2.13.0
	.venv-4.57/bin/python -m pip install -q -c constraints-4.57.txt -e '.[compress,optimum]' pytest pytest-timeout hypothesis
	@touch $@

clean:
	rm -rf $(VENV) .venv-4.57 build dist
