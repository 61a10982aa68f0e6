# Thin over scripts/; every target works on a fresh clone and sets up its own environment in $(VENV).
VENV ?= .venv
PYTHON ?= python3
export VENV PYTHON
# One thread per test process: two-thread torch on a busy machine is many times slower.
TEST_ENV = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
PYTEST = $(TEST_ENV) $(VENV)/bin/python -m pytest -n 2 --dist worksteal

.PHONY: setup demo demo-reason test-reason wheel test test-slow test-long test-vllm test-serve lint bench docs clean

setup:
	@scripts/setup

demo: setup
	@scripts/demo

demo-reason: setup
	@scripts/demo-reason

# The same against vLLM, with the long tests of the client and the verifiers. An hour.
test-reason: setup
	@scripts/test-reason

# A wheel for `pip install dist/burnish-*.whl`; pip fetches what it needs.
wheel: setup
	$(VENV)/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/burnish-*.whl

test: setup models/smollm2
	$(PYTEST) -q -m "not slow and not long"

test-slow: setup models/smollm2
	$(PYTEST) -q -m "slow and not long"

# Before a release: fuzzing, the whole crash matrix, every kind of processor instructions. An hour.
test-long: setup models/smollm2
	@$(TEST_ENV) scripts/test-long

test-vllm: setup
	@scripts/test-vllm

# Scheduling policies inside vLLM, and the simulator at length. Half an hour.
test-serve: setup models/smollm2
	@scripts/test-serve

models/smollm2: | setup
	@$(VENV)/bin/burnish fetch smollm2 --out models/smollm2

lint: setup
	$(VENV)/bin/ruff check src tests benchmarks examples docs scripts
	$(VENV)/bin/ruff format --check src tests benchmarks examples docs scripts
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/python scripts/derive.py --check
	$(VENV)/bin/python benchmarks/check.py

docs: setup
	$(VENV)/bin/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# `make bench` lists the benchmarks; `make bench NAME=yaqa` runs those of a method, or one by its own name.
bench: setup
	@$(VENV)/bin/python scripts/bench.py $(NAME)

clean:
	rm -rf $(VENV) models runs docs/_build .ci-venv
