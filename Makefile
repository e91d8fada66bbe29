# Two commands on a fresh machine: `make demo` and `make test`. Everything they write stays inside this folder.
#   PYTHON=python3.12    which interpreter makes .venv (3.11 or later)
#   PIP_ARGS="..."       more arguments for pip, e.g. --extra-index-url https://download.pytorch.org/whl/cpu
#   PYTEST_ARGS="..."    more arguments for pytest, e.g. -k spline
PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-cache-dir install --quiet -c constraints.txt $(PIP_ARGS)
PYTEST := $(BIN)/python -m pytest

# Nothing of the caller's Python setup leaks in, and no cache or settings folder in the home directory is written.
unexport PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX
export PIP_USER := 0
export PYTHONNOUSERSITE := 1
export MPLBACKEND := Agg
export MPLCONFIGDIR := $(CURDIR)/$(VENV)/.cache/matplotlib
export XDG_CACHE_HOME := $(CURDIR)/$(VENV)/.cache
export TORCHINDUCTOR_CACHE_DIR := $(CURDIR)/$(VENV)/.cache/inductor
export IPYTHONDIR := $(CURDIR)/$(VENV)/.cache/ipython
export JUPYTER_CONFIG_DIR := $(CURDIR)/$(VENV)/.cache/jupyter
export JUPYTER_DATA_DIR := $(CURDIR)/$(VENV)/.cache/jupyter
export JUPYTER_RUNTIME_DIR := $(CURDIR)/$(VENV)/.cache/jupyter

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-wheel lint bench clean

help:
	@echo "make demo        install into $(VENV), reconstruct the embedded MRI scan, name the files it wrote"
	@echo "make test        install the test tools; ruff, mypy, import-linter, the built wheel, doctests and pytest"
	@echo "make test-slow   the long statistical and training runs"
	@echo "make bench       timings against other libraries"
	@echo "make clean       remove what these commands made"

# sbibm asks for an old sbi, Julia bindings and more; its tasks need none of them, hence --no-deps.
# The stamps live inside .venv: removing it, or changing what is to be installed, starts again.
$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "error: there is no '$(PYTHON)' on this machine; sciflow needs Python 3.11 or later: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: '$(PYTHON)' is $$($(PYTHON) --version 2>&1); sciflow needs Python 3.11 or later: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: '$(PYTHON)' has no venv module (Debian and Ubuntu: apt install python3-venv)" >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.demo: pyproject.toml constraints.txt $(VENV)/.made
	$(PIP) -e '.[mri]'
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt $(VENV)/.made
	$(PIP) -e '.[test]'
	$(PIP) --no-deps sbibm
	@touch $(VENV)/.demo $@

$(VENV)/.bench: pyproject.toml constraints.txt $(VENV)/.made
	$(PIP) -e '.[test,bench]'
	$(PIP) --no-deps sbibm
	@touch $(VENV)/.demo $(VENV)/.test $@

demo: $(VENV)/.demo
	@$(BIN)/sciflow demo mri --output demo-output

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-wheel: $(VENV)/.test
	OMP_NUM_THREADS=1 $(PYTEST) -q -m wheel tests/sciflow/test_packaging.py

# Last, so that the final line is pytest's own: passed, failed, skipped.
test: lint test-wheel
	OMP_NUM_THREADS=1 $(PYTEST) -n $(WORKERS) -m "not slow and not wheel" $(PYTEST_ARGS)

test-slow: $(VENV)/.test
	OMP_NUM_THREADS=1 $(PYTEST) -n $(WORKERS) -m slow $(PYTEST_ARGS)

bench: $(VENV)/.bench
	@for script in $(filter-out $(addprefix benchmarks/,timing.py moons.py code_lines.py zee_closure.py methods.py few_step.py few_step_rows.py digit_bits.py sbibm_tasks.py sbibm_peer.py solver_candidates.py model_comparison.py closed_form_posteriors.py diagnostics_power.py evidence.py mri_anomalies.py mri_baselines.py mri_calibration.py mri_cases.py mri_methods.py mri_out_of_distribution.py mri_people.py mri_posterior.py),$(wildcard benchmarks/*.py)); do echo "== $$script"; OMP_NUM_THREADS=1 $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) build dist demo-output *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
