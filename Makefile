# The developer's commands.  Each makes .venv in this folder and installs what it needs there.
#
#   make demo    train LeNet-5 on handwritten digits and draw the curves (lenet.png)
#   make test    the whole test suite; PYTEST_ARGS="-k identity" runs a part of it
#   make lint    ruff, mypy and clang-format; changes nothing
#   make bench   the step against the peers that are installed
#   make clean   remove .venv and everything built

PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(shell find CMakeLists.txt pyproject.toml csrc python third_party -type f \
             ! -name '*.so' ! -name '*.pyc')
CXX_FILES := $(shell find csrc -name '*.[ch]pp')

.PHONY: demo test lint format bench clean

demo: .venv/installed-demo
	$(BIN)/python examples/train_lenet.py

test: .venv/installed-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: .venv/installed-bench
	$(BIN)/python bench/step.py $(BENCH_ARGS)

lint: .venv/installed-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: .venv/installed-lint
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv .venv

# An extra is installed again when a source has changed; the build folder makes that quick.
.venv/installed-%: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check ".[$*]"
	touch $@
