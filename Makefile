# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup quickstart test test-slow stress lint bench bench-env clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 10) and "reeltag needs Python 3.10 or newer")'
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

quickstart: setup
	$(BIN)/reeltag run recipes/quickstart.toml --out runs/quickstart

test: setup
	$(BIN)/python -m pytest -m 'not slow'

test-slow: setup
	$(BIN)/python -m pytest -m slow

stress: setup
	$(BIN)/python -m pytest tests/test_promise_*.py --stress

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-env: .bench-venv/ready

.bench-venv/ready: bench/peers.txt
	python3 -m venv .bench-venv
	.bench-venv/bin/python -m pip install --quiet --requirement bench/peers.txt
	@touch $@

bench: setup
	$(BIN)/python bench/reader.py
	$(BIN)/python bench/loader.py
	$(BIN)/python bench/train.py
	$(BIN)/python bench/infer.py
	$(BIN)/python bench/families.py
	$(BIN)/python bench/modes.py
	$(BIN)/python bench/quantize.py
	$(BIN)/python bench/metrics.py
	$(BIN)/python bench/start.py
	$(BIN)/python bench/serve.py
	$(BIN)/python bench/gpu.py

clean:
	rm -rf $(VENV) .bench-venv runs dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
