# make demo   edit examples/astronaut.png; the pictures are left in examples/output
# make test   run the tests
#
# Both need Python >= 3.10, a package index and nothing else; they install into .venv. Options for
# pip, such as another index with CPU builds of PyTorch, go into PIP_FLAGS.

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
PYTEST_FLAGS ?=

BIN := $(VENV)/bin
OUTPUT := examples/output

.PHONY: demo test

demo: $(VENV)/installed-demo
	$(BIN)/python examples/demo.py
	$(BIN)/faceedit sweep examples/astronaut.png smile age glasses -o $(OUTPUT)/sweep.png --overwrite
	@echo "Look at $(OUTPUT)/before_after.png and $(OUTPUT)/sweep.png"

test: $(VENV)/installed-test
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

# One stamp for each extra, renewed when what it installs has changed.
$(VENV)/installed-%: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[$*]'
	touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "faceedit needs Python 3.10 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
