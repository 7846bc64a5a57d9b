# The two commands of the README are `make demo` and `make test`. Both need Python 3.11 to 3.13, this checkout
# and a network to install from; both may be repeated.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet --constraint constraints.txt

.PHONY: demo test slow check bench gpu clean help

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

demo: $(VENV)/installed ## the main job on the photo in assets/
	@mkdir -p out
	@$(BIN)/zero123 reconstruct assets/coffee.jpg -o out/coffee.glb --force
	@ls -l out/coffee.glb

test: $(VENV)/tested ## the tests, some minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow and not bench" $(ARGS)

slow: $(VENV)/tested ## the longer tests beside them: whole chains, and further cases of what `test` shows by one
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "slow and not bench" $(ARGS)

check: $(VENV)/checked ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/tested ## what measures, or takes minutes
	$(BIN)/python -m pytest -m bench -s $(ARGS)

gpu: $(VENV)/tested ## what a CUDA card changes: its code paths tested, then measured
	$(BIN)/python -m pytest -s tests/test_radiance_*.py tests/test_bench_radiance.py tests/test_bench_viewmodel.py $(ARGS)
	$(BIN)/python -m pytest -s tests/test_bench_lift.py -k gpu $(ARGS)

clean: ## what the commands made
	rm -rf $(VENV) out build dist

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone: nothing else may choose its build.
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV): some minutes the first time"
	@$(PIP) torch
	@$(PIP) --editable .
	@touch $@

$(VENV)/tested: $(VENV)/installed
	@$(PIP) --editable ".[test,heic,train]"
	@touch $@

$(VENV)/checked: $(VENV)/tested
	@$(PIP) --editable ".[check]"
	@touch $@
