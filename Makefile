# Every target sets up what it needs; a second run reuses it. `make help` lists the targets.
#
# All that must be there beforehand: Python 3.11 or later with pip, and a C++20 compiler.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
ifeq ($(strip $(PYTHON)),)
$(error No Python 3.11 or later was found: install one, or name it with make PYTHON=/path/to/python)
endif

BIN := .venv/bin
JOBS ?= 2
CXX_FILES = $(shell find csrc -name '*.cpp' -o -name '*.h')
BUILD_INPUTS := pyproject.toml CMakeLists.txt python/treadle/_version.py $(shell find cmake csrc)

# The suite, the examples and the benchmarks need no accelerator.
export JAX_PLATFORMS ?= cpu

# For a package index that is busy for a moment.
export PIP_RETRIES ?= 10

# $(call environment,DIRECTORY,SECTIONS): a virtual environment with what those sections of pyproject.toml require.
define environment
	$(PYTHON) -m venv $(1)
	$(PYTHON) tools/project.py $(2) | $(1)/bin/python -m pip install --quiet --disable-pip-version-check -r /dev/stdin
endef

# $(call editable,DIRECTORY): Python files are used where they are, the extension is rebuilt incrementally.
define editable
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		-C build-dir=build/$(patsubst .%,%,$(1)) -C cmake.define.TREADLE_WERROR=ON --editable .
endef

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench bench-full bench-compare sanitize fuzz wheels test-wheels build clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

demo: build ## train a CNN on real handwritten digits, through treadle.jit
	$(BIN)/python examples/digits.py $(DEMO_ARGS)

test: build ## the whole suite, with the doctests of every public docstring and of the documentation
	$(BIN)/python -m pytest -q -n $(JOBS) --doctest-modules tests python/treadle $(TEST_ARGS)

lint: .venv/.deps ## ruff, pyright on the package, clang-format
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: .venv/.deps ## rewrite Python and C++ the way `make lint` wants them
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FILES)

bench: .venv-bench/.built ## dispatch benchmarks against hand-written jax.jit and peers, short
	.venv-bench/bin/python bench/run.py --quick $(BENCH_ARGS)

bench-full: .venv-bench/.built ## the same, long enough for stable numbers
	.venv-bench/bin/python bench/run.py --full $(BENCH_ARGS)

bench-compare: .venv-bench/.built ## compare two results: make bench-compare OLD=a.json NEW=b.json
	.venv-bench/bin/python bench/compare.py $(OLD) $(NEW)

sanitize: .venv/.deps ## the suite under AddressSanitizer and UndefinedBehaviorSanitizer (SANITIZE_ARGS=--thread, --growth)
	$(BIN)/python tools/sanitize.py --jobs $(JOBS) $(SANITIZE_ARGS)

fuzz: .venv/.deps ## fuzz with coverage of the C++ (needs Clang): make fuzz FUZZ_ARGS="--seconds 3600"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	$(BIN)/python tools/fuzz.py $(FUZZ_ARGS)

wheels: .venv-wheels/.deps ## build, repair and check the wheels and the sdist, into dist/
	.venv-wheels/bin/python tools/wheels.py $(WHEEL_ARGS)

test-wheels: ## the suite against the wheels in dist/, installed in fresh environments
	$(PYTHON) tools/test_wheels.py --jobs $(JOBS) $(TEST_WHEEL_ARGS)

build: .venv/.built ## set up .venv and build the extension, where anything changed

clean: ## remove builds and environments
	rm -rf build dist .venv .venv-bench .venv-wheels

.venv/.deps: pyproject.toml tools/project.py
	$(call environment,.venv,build runtime dev)
	@touch $@

.venv/.built: .venv/.deps $(BUILD_INPUTS)
	$(call editable,.venv)
	@touch $@

# Peers that the benchmarks compare with stay out of .venv.
.venv-bench/.deps: pyproject.toml tools/project.py
	$(call environment,.venv-bench,build runtime bench)
	@touch $@

.venv-bench/.built: .venv-bench/.deps $(BUILD_INPUTS)
	$(call editable,.venv-bench)
	@touch $@

.venv-wheels/.deps: pyproject.toml tools/project.py
	$(call environment,.venv-wheels,build wheels)
	@touch $@
