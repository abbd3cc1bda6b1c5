# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints.txt

.PHONY: setup quickstart test test-avx2 test-slow stress fuzz lint docs package bench bench-env clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml $(CONSTRAINTS)
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 10) and "reeltag needs Python 3.10 or newer")'
	python3 -m venv $(VENV)
	@echo 'installing into $(VENV), about 2 GB: some minutes'
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $@

quickstart: setup
	$(BIN)/reeltag run recipes/quickstart.toml --out runs/quickstart

# Two processes of one thread: the tests are small, and a file's tests stay together. The longest folders, which
# pyproject.toml lists first, begin first, so that both processes end at about the same time.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow'

# The tests of vector code as on a CPU with AVX2 alone: without kernels for AVX-512 and bfloat16.
test-avx2: setup
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile \
		-m 'not slow' tests/models tests/training tests/artifact/test_quantize.py tests/inference/test_modes.py

test-slow: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

stress: setup
	$(BIN)/python -m pytest $$(grep -rlw --include='test_*.py' promise tests) --stress

# Each target for five minutes; `make fuzz SECONDS=60` for less. What fails stays in .fuzz.
SECONDS := 300

fuzz: .fuzz-venv/ready
	for target in artifact recipe shards; do \
		mkdir -p .fuzz/$$target && .fuzz-venv/bin/python -m fuzz $$target .fuzz/$$target -max_total_time=$(SECONDS) \
			-timeout=20 -rss_limit_mb=3000 -artifact_prefix=.fuzz/$$target- || exit 1; \
	done

.fuzz-venv/ready: pyproject.toml constraints.txt
	python3 -m venv .fuzz-venv
	.fuzz-venv/bin/python -m pip install --quiet --constraint constraints.txt --editable . 'atheris>=3'
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Wheel and sdist in dist/, the wheel tried in a fresh environment.
package: setup
	.ci/package $(BIN)/python $(CONSTRAINTS)

# The documentation, to be opened as site/index.html; any warning is an error.
docs: setup
	$(BIN)/python -m sphinx --conf-dir docs --fresh-env --fail-on-warning --quiet . site

bench-env: .bench-venv/ready

.bench-venv/ready: bench/peers.txt
	python3 -m venv .bench-venv
	.bench-venv/bin/python -m pip install --quiet --requirement bench/peers.txt
	@touch $@

bench: setup
	$(BIN)/python bench/reader.py
	$(BIN)/python bench/loader.py
	$(BIN)/python bench/train.py
	$(BIN)/python bench/import.py
	$(BIN)/python bench/infer.py
	$(BIN)/python bench/families.py
	$(BIN)/python bench/modes.py
	$(BIN)/python bench/quantize.py
	$(BIN)/python bench/metrics.py
	$(BIN)/python bench/start.py
	$(BIN)/python bench/serve.py
	$(BIN)/python bench/videos.py
	$(BIN)/python bench/gpu.py

clean:
	rm -rf $(VENV) .bench-venv .fuzz-venv .fuzz runs site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
