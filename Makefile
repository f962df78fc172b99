PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DONE := $(VENV)/.installed

# One thread per process: networks of this size gain little from a second, and lose much where a core is shared.
# Simulations run in two Python threads of their own.
export OMP_NUM_THREADS ?= 1

# Files of tests are shared out to this many processes.
TEST_WORKERS ?= 2
# In the order of their names: the few tests of analyses take longest, and by number of tests they would come last.
PYTEST := $(RUN) -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: install demo paper bench numerics test test-slow check lint format types clean

install: $(DONE)

$(DONE): pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(DONE)

demo: $(DONE)  ## the posterior of a real solar spectrum, end to end
	$(RUN) analyses/02_stokes_crisp.py

paper: $(DONE)  ## the published benchmark with every number of the README
	$(RUN) analyses/01_stokes_paper_case.py

bench: $(DONE)  ## against sbi, zuko, nflows and BayesFlow, alternating; about 20 minutes and then the README's table
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(RUN) analyses/benchmarks/speed.py --record
	$(RUN) analyses/benchmarks/streaming.py --record
	$(RUN) analyses/benchmarks/executors.py --record
	$(RUN) analyses/benchmarks/distributed.py --record
	$(RUN) analyses/benchmarks/training.py --record
	$(RUN) analyses/benchmarks/table.py --readme README.md

numerics: $(DONE)  ## round trips of all transforms and the residual flow's estimator, by the seeds of their tests
	$(RUN) -m pytest -s -k "absolute or test_float32 or no_bias" tests/transforms/test_catalogue.py \
		tests/transforms/test_float32.py tests/transforms/test_residual_flow.py > analyses/results/numerics.txt

test: $(DONE)  ## what CI runs
	$(PYTEST)

test-slow: $(DONE)  ## the tests marked slow
	$(PYTEST) -m "slow"

lint: $(DONE)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(DONE)
	$(RUN) -m mypy

check: lint types test  ## before every commit

format: $(DONE)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis analyses/output
