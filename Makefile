# make demo   trains and evaluates the default recipe     make test   runs the whole test suite
# make lint   style and types                             make lock   pins today's versions in constraints.txt

PYTHON ?= python3
BIN := .venv/bin
RUN := runs/convnet-digits
# Programs that tests compiled, for the next run of them on this machine.
PROGRAMS := $(CURDIR)/.cache/$(shell uname -n)

.PHONY: demo test lint lock clean

demo: .venv/.demo
	$(BIN)/python -m train convnet-digits --out $(RUN)
	$(BIN)/python -m evals $(RUN)

test: .venv/.test
	JAX_COMPILATION_CACHE_DIR=$${JAX_COMPILATION_CACHE_DIR:-$(PROGRAMS)} \
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST)

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "purezoo needs Python 3.11 or newer; this is $$($(PYTHON) --version).  Try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[evals]'
	@touch $@

.venv/.test: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

lock:
	rm -rf .venv/lock && $(PYTHON) -m venv .venv/lock && .venv/lock/bin/pip install --quiet '.[test]'
	.venv/lock/bin/pip freeze --exclude purezoo | grep -v '@' > constraints.txt

clean:
	rm -rf .venv build dist .cache
