# Every target installs what it needs into .venv first.
PYTHON ?= python3.11
BIN = .venv/bin
PYTEST = $(BIN)/python -m pytest
# Tests of what other packages do for us.
VERSIONED = $(patsubst %,tests/test_%.py, checkpoint corruptions data install photometric \
  pipeline randaugment report weights)

.PHONY: install demo test test-slow test-reference test-versions golden lint bench lock clean

install: .venv/.installed

.venv/.installed: requirements.lock setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

demo: install  ## adversarial BYOL on scikit-learn's digits, fine-tuning, scores, a page
	$(BIN)/python -m adv_ssl.main --config=configs/byol_l2.py:digits --workdir=runs/demo

test: install  ## a file of tests to each process, four at most
	$(PYTEST) -m "not slow and not reference" -n auto --maxprocesses 4 \
	  --dist loadfile --no-loadscope-reorder

test-slow: install  ## kills, full-size runs, compiled as users' are: two hours on two cores
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PYTEST) -m slow

test-reference: install  ## needs `pip install -e '.[reference]'`
	$(PYTEST) -m reference

golden: install  ## writes tests/golden/*.npz anew; needs `pip install -e '.[reference]'`
	for script in tests/golden/make_*.py; do $(BIN)/python $$script || exit 1; done

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

bench: install  ## against PyTorch, if pip install -e '.[bench]': a table, benchmarks/results.json
	$(BIN)/python -m benchmarks.run

lock: .venv-uv/bin/uv  ## resolves setup.py's ranges into requirements.lock
	$< pip compile setup.py --extra test --generate-hashes --no-header \
	  --python-version 3.11 --output-file requirements.lock

test-versions: .venv-uv/bin/uv  ## with the lowest and the newest versions that setup.py allows
	for which in lowest-direct highest; do \
	  $< venv --quiet --clear --python $(PYTHON) .venv-$$which && \
	  $< pip install --quiet --python .venv-$$which --resolution $$which -e '.[test]' && \
	  .venv-$$which/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile \
	    -m "not slow and not reference" -o filterwarnings=default $(VERSIONED) || exit 1; \
	done

.venv-uv/bin/uv:
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/pip install --quiet uv

clean:
	rm -rf .venv .venv-* runs build *.egg-info
