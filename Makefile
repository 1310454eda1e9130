# Every target works on a fresh machine: it makes .venv, installs what it needs, and runs.
#
#   PYTHON  the interpreter that .venv is made from           (python3)
#   TORCH   the requirement that installs torch               (torch==2.13.0); e.g. TORCH=torch for the newest build
#   TRITON  used where the installed torch brought no triton (triton==3.6.0)
#   CUDA_TORCH  what installs a CUDA build of torch for `make cuda-extension` (torch==2.14.1, 5.5 GB)
#   WORKERS processes that `make test` runs tests in         (2); 0 runs them in one, as for a debugger
#   VENV    the virtual environment; `make gpu VENV=` uses PYTHON and the torch that is installed there
PYTHON ?= python3
TORCH ?= torch==2.13.0
TRITON ?= triton==3.6.0
CUDA_TORCH ?= torch==2.14.1
VENV ?= .venv
WORKERS ?= 2
ARGS ?=

ifeq ($(VENV),)
RUN := $(PYTHON)
READY :=
CLANG_FORMAT ?= clang-format
else
RUN := $(VENV)/bin/python
READY := $(VENV)/ready
CLANG_FORMAT ?= $(VENV)/bin/clang-format
endif
CPP := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test test-quick matrix lint format bench report docs aot aot-cuda cuda-extension gpu sanitize sdist wheel clean FORCE
.DEFAULT_GOAL := help

help:
	@echo "make demo      train a ContinuousNet on images, refine it, evaluate it with other solvers"
	@echo "make test      run the tests                       make test ARGS='-k refine'"
	@echo "make test-quick  the part of them that takes under two minutes"
	@echo "make matrix    parts of them beside other releases of torch, triton, numpy, setuptools: ARGS=2.11-newest"
	@echo "make lint      ruff, mypy and clang-format; make format rewrites"
	@echo "make bench     the benchmark suite on this machine     make bench ARGS=--quick takes a minute"
	@echo "make report    tables and charts of the committed results into README and docs/"
	@echo "make docs      the documentation as a site in build/site, every link checked"
	@echo "make aot       compile the Triton kernels for sm_80, sm_90, sm_100 and write their tables, without a GPU"
	@echo "make aot-cuda  compile the CUDA C++ kernels for sm_80, sm_90a, sm_100a and write their table; needs nvcc, no GPU"
	@echo "make cuda-extension  build the extension with CUDA against a CUDA build of torch and import it; needs nvcc, no GPU"
	@echo "make gpu       tests, benchmarks and a training on this machine's NVIDIA GPU, results to benchmarks/results/"
	@echo "make sanitize  C++ kernels under the address and undefined-behaviour sanitizers"
	@echo "make sdist     build a source distribution into dist/"
	@echo "make wheel     build a wheel with the C++ extension into dist/"
	@echo "make clean     remove .venv and build outputs"
	@echo "options: PYTHON=$(PYTHON)  TORCH=$(TORCH)  VENV=$(VENV)"

demo: $(READY)
	$(RUN) -m contnet_fast demo $(ARGS)

# a file's tests stay in one process
test: $(READY)
	$(RUN) -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# tests/support/tiers.py says what it leaves out
test-quick: $(READY)
	$(RUN) -m pytest --quick --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# resumes where it stopped; 5 to 8 GB for each release of torch, in build/matrix: ARGS=--once keeps one at a time
matrix:
	$(PYTHON) tests/matrix.py $(ARGS)

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(CLANG_FORMAT) --dry-run --Werror $(CPP)

format: $(READY)
	$(RUN) -m ruff format .
	$(CLANG_FORMAT) -i $(CPP)

# appends to benchmarks/results/suite-<device>.jsonl; the machine should be idle
bench: $(READY)
	PYTHONPATH=$(CURDIR) $(RUN) -m benchmarks.suite.run $(ARGS)

report: $(READY)
	PYTHONPATH=$(CURDIR) $(RUN) -m benchmarks.report.run $(ARGS)

docs: $(READY)
	@$(RUN) tools/docs_site.py | xargs -d '\n' $(PIP)
	$(RUN) -m mkdocs build --strict $(ARGS)

aot: $(READY)
	$(RUN) -m tools.aot $(ARGS)

aot-cuda: $(READY)
	$(RUN) -m tools.cuda_build --write $(ARGS)

# TORCH_CUDA_ARCH_LIST=9.0a builds for one chip
cuda-extension: build/cuda-venv/ready
	CONTNET_FAST_BUILD=cuda build/cuda-venv/bin/python setup.py --quiet build --build-base build/with-cuda \
		--build-lib build/with-cuda/lib
	PYTHONPATH=build/with-cuda/lib build/cuda-venv/bin/python tests/support/cuda/import_extension.py

build/cuda-venv/ready:
	@$(PYTHON) -m venv build/cuda-venv
	@echo "installing $(CUDA_TORCH)"
	@build/cuda-venv/bin/python -m pip install --quiet --disable-pip-version-check "$(CUDA_TORCH)" numpy setuptools ninja
	@touch $@

# resumes where it stopped; make gpu VENV= ARGS='--out /tmp/results --minutes 5' uses the packages that are there
gpu: $(READY)
	PYTHONPATH=$(CURDIR) $(RUN) -m benchmarks.gpu.run $(ARGS)

# C++ kernels under the address and undefined-behaviour sanitizers
sanitize: $(READY)
	CONTNET_FAST_BUILD=cpu CONTNET_FAST_SANITIZE=1 $(RUN) setup.py --quiet build --build-base build/sanitize \
		--build-lib build/sanitize/lib
	cd build && PYTHONPATH=$(CURDIR)/build/sanitize/lib ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		$(abspath $(RUN)) -m pytest -q -p no:cacheprovider -c $(CURDIR)/pyproject.toml \
		$(addprefix $(CURDIR)/tests/,cpu/test_cpu_backend.py functional/test_pytrees.py functional/test_compensated.py \
		cpu/test_cpu_conv.py cpu/test_cpu_conv_gradients.py cpu/test_cpu_conv_ops.py cpu/test_cpu_attention.py \
		cpu/test_cpu_bfloat16.py cpu/test_cpu_diffusion.py graphs/test_graph_solve.py \
		cpu/test_cpu_coarse.py cpu/test_cpu_slices.py cpu/test_cpu_conv_unit.py cpu/test_cpu_conv_stem.py \
		ode/test_odeint_native.py) $(ARGS)

sdist: $(READY)
	$(RUN) -m build --sdist --no-isolation --outdir dist $(ARGS)

# build/lib* would bring modules that are gone; the objects beside it stay
wheel: $(READY)
	rm -rf build/lib* build/bdist*
	CONTNET_FAST_BUILD=cpu $(RUN) -m build --wheel --no-isolation --outdir dist $(ARGS)

# torch comes first and by itself, so that nothing later can choose another one
$(VENV)/torch: FORCE
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@[ "$$(cat $@ 2>/dev/null)" = "$(TORCH)" ] || \
		{ echo "installing $(TORCH)"; $(PIP) "$(TORCH)" setuptools ninja && echo "$(TORCH)" > $@; }

$(VENV)/ready: $(VENV)/torch pyproject.toml setup.py tools/nvcc.py $(shell find csrc -type f)
	@echo "installing contnet_fast and what its tests need"
	@$(RUN) -m pip freeze --disable-pip-version-check | grep -E '^(torch|triton)==' > $(VENV)/constraints.txt || true
	@grep -q '^triton==' $(VENV)/constraints.txt || echo "$(TRITON)" >> $(VENV)/constraints.txt
	@$(PIP) --no-build-isolation --constraint $(VENV)/constraints.txt --editable ".[dev]"
	@touch $@

FORCE:

clean:
	rm -rf .venv build dist *.egg-info contnet_fast.egg-info
