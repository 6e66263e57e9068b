# Two commands do everything on a fresh machine with Python 3.11 or newer: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := demo-run

.PHONY: demo test lint bench clean

demo: $(VENV)/train.stamp
	@rm -rf $(RUN)
	$(BIN)/thrifty plan jobs/demo.yaml --on local --out $(RUN)/plan.yaml
	$(BIN)/thrifty train $(RUN)/plan.yaml --run-dir $(RUN)/run
	$(BIN)/thrifty generate $(RUN)/run --prompt "def " --tokens 120
	$(BIN)/thrifty report $(RUN)/run

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/throughput.py

# The demo needs less than the tests; a change of pyproject.toml installs again.
$(VENV)/train.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,report]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/train.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,report,hf,dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(RUN) runs
