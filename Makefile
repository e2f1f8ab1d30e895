# make demo         trains and evaluates the default recipe
# make test         runs the tests
# make test-all     runs the long tests too: speed, quick recipes, several processes, JAX's settings
# make lint         checks style and types
# make clean-room   tests the package as a new user gets it: the wheel alone, empty home, warnings as errors
# make lock         pins today's versions in the constraints file of this Python
#
# Another Python: make test PYTHON=python3.13 VENV=.venv-3.13

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := runs/convnet-digits
# JAX 0.10 is the last line for Python 3.11, which therefore has its own pins.
PINS := constraints$(shell $(PYTHON) -c 'import sys; print("-py311" * (sys.version_info < (3, 12)))').txt
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(PINS)
# Programs compiled by tests, kept for the next run on this machine.
PROGRAMS := $(CURDIR)/.cache/$(shell uname -n)-$(VENV)

RUN_TESTS = JAX_COMPILATION_CACHE_DIR=$${JAX_COMPILATION_CACHE_DIR:-$(PROGRAMS)} \
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all lint clean-room lock clean

demo: $(VENV)/.demo
	$(BIN)/zoo-train convnet-digits --out $(RUN)
	$(BIN)/zoo-evals $(RUN)

test: $(VENV)/.test
	$(RUN_TESTS) -m "not slow" $(PYTEST)

test-all: test
	$(RUN_TESTS) -m slow $(PYTEST)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean-room: $(VENV)/.test
	$(BIN)/python .ci/clean_room.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "purezoo needs Python 3.11 or newer; this is $$($(PYTHON) --version).  Try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml $(PINS)
	$(INSTALL) -e '.[evals]'
	@touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml $(PINS)
	$(INSTALL) -e '.[test]'
	@touch $@

lock:
	rm -rf $(VENV)/lock && $(PYTHON) -m venv $(VENV)/lock && $(VENV)/lock/bin/pip install --quiet '.[test]'
	$(VENV)/lock/bin/pip freeze --exclude purezoo | grep -v '@' > $(PINS)

clean:
	rm -rf .venv .venv-* build dist .cache
