# Every target installs what it needs into .venv first.
PYTHON ?= python3.11
BIN = .venv/bin
PYTEST = $(BIN)/python -m pytest

.PHONY: install demo test test-slow test-reference golden lint bench lock clean

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

test-slow: install  ## kills, full-size runs: about an hour on two cores
	$(PYTEST) -m slow

test-reference: install  ## needs `pip install -e .[reference]`
	$(PYTEST) -m reference

golden: install  ## writes tests/golden/*.npz anew; needs `pip install -e .[reference]`
	for script in tests/golden/make_*.py; do $(BIN)/python $$script || exit 1; done

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

bench: install  ## against PyTorch, if pip install -e .[bench]: a table, benchmarks/results.json
	$(BIN)/python -m benchmarks.run

lock:  ## resolves setup.py's ranges into requirements.lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet uv
	.venv-lock/bin/uv pip compile setup.py --extra test --generate-hashes --no-header \
	  --python-version 3.11 --output-file requirements.lock
	rm -r .venv-lock

clean:
	rm -rf .venv runs build *.egg-info
