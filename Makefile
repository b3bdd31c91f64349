# Everything that a clone needs: only Python >= 3.11 with its headers, gcc and make are expected on the machine.
# `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
ifeq ($(origin CC),default)
CC := gcc
endif
export CC
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONUNBUFFERED := 1

KERNEL_SOURCES := $(wildcard kernels_pyx/*.pyx kernels_pyx/*.pxi kernels_pyx/*.pxd kernels_pyx/c/*.c kernels_pyx/c/*.h)
PROTO_SOURCES := $(wildcard protos/dairllm/v1/*.proto)
PROTOC := .venv-protos/bin/python -m grpc_tools.protoc --proto_path=protos
PYTEST := $(BIN)/python -m pytest
PYTEST_ARGS ?=
WORKERS ?= 2
PARALLEL = -n $(WORKERS) --dist loadfile
SEEDS ?= 20000
FIRST ?= 0
LIMIT_S ?= 3600
FUZZ_S ?= 600
CHAOS_S ?= 900
LOAD_S ?= 300
SEED ?= 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help build dev demo test test-fast faults chaos load fuzz fuzz-files soak lint format types structure protos protos-check wheel bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: $(STAMPS)/build ## Create .venv with what dairllm needs to run, compile the kernels, install dairllm into it (editable)
	@$(BIN)/python .ci/typing_tree.py

dev: build $(STAMPS)/lint ## build, and install what the tests, the benchmarks and the checks need

demo: build ## A coordinator and two shards find each other and answer a question
	@$(BIN)/python deploy/demo.py

test: build $(STAMPS)/test ## All tests, WORKERS files of them at a time
	$(PYTEST) $(PARALLEL) $(PYTEST_ARGS)

test-fast: build $(STAMPS)/test ## The tests without slow ones and without network namespaces
	$(PYTEST) -m "not slow and not namespaces" $(PARALLEL) $(PYTEST_ARGS)

faults: build $(STAMPS)/test ## The whole matrix of faults (what × where × when) with real processes, and its table as Markdown
	$(PYTEST) tests/faults --all-faults $(PYTEST_ARGS)

chaos: build $(STAMPS)/test ## Four shards and a fault every few seconds, while clients compare answers: CHAOS_S (seconds), SEED
	$(BIN)/python -m tests.endurance.chaos --seconds $(CHAOS_S) --seed $(SEED)

load: build $(STAMPS)/test ## 600 clients at once, some of which stall, read slowly or vanish: LOAD_S (seconds)
	$(BIN)/python -m tests.endurance.load --seconds $(LOAD_S)

fuzz: build $(STAMPS)/test ## The HTTP API under random requests of schemathesis: FUZZ_S (seconds)
	FUZZ_S=$(FUZZ_S) $(PYTEST) tests/http/test_fuzzing.py -s $(PYTEST_ARGS)

fuzz-files: build $(STAMPS)/test ## Every reader of model files under atheris, a fuzzer that follows the lines reached: FUZZ_S (seconds)
	$(BIN)/python -m pip install --quiet 'atheris>=3.0'
	$(BIN)/python -m tests.endurance.readers --seconds $(FUZZ_S)

soak: build $(STAMPS)/test ## Thousands of simulated clusters with faults: SEEDS, FIRST, LIMIT_S (seconds)
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --first $(FIRST) --limit-s $(LIMIT_S)

lint: $(STAMPS)/lint ## Style of the Python code: ruff check and ruff format --check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMPS)/lint ## Mend the style of the Python code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMPS)/lint ## mypy --strict, and pyright as in an editor, over the packages, the tests, the benchmarks and the scripts
	@$(BIN)/python .ci/typing_tree.py
	MYPYPATH=.typing:protos:.:benchmarks $(BIN)/mypy --namespace-packages --explicit-package-bases \
	    $(patsubst %/__init__.py,%,$(wildcard */__init__.py)) tests benchmarks deploy/demo.py setup.py $(wildcard .ci/*.py)
	$(BIN)/pyright

structure: $(STAMPS)/environment ## Print the folders with the imports between them, and how long files and functions are
	@$(BIN)/python -m tests.structure

protos: .venv-protos/installed ## Generate the Python code of the .proto files
	$(PROTOC) --python_out=protos --pyi_out=protos --grpc_python_out=protos $(PROTO_SOURCES)

protos-check: .venv-protos/installed ## Fail if the generated code is not that of the .proto files
	@rm -rf build/protos-check && mkdir -p build/protos-check
	@$(PROTOC) --python_out=build/protos-check --pyi_out=build/protos-check --grpc_python_out=build/protos-check $(PROTO_SOURCES)
	@for file in build/protos-check/dairllm/v1/*; do cmp "$$file" "protos/dairllm/v1/$${file##*/}" \
	  || { echo "$${file##*/} is not what its .proto file gives: run 'make protos' and commit the result" >&2; exit 1; }; done
	@echo "the generated code is current"

wheel: build ## Build the wheel into dist/, with the kernels that `build` has compiled
	@rm -rf build/lib* build/bdist*
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@rm -rf *.egg-info
	@ls -l dist/*.whl

bench: build ## One stage without network on this machine: prefill and decode speed of SmolLM2
	$(BIN)/dairllm bench --model smollm2:135m --prompt 512 --generate 64 --repeat 5

clean: ## Remove everything that the other targets have made
	rm -rf $(VENV) .venv-protos .typing build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis deploy/clients/node/node_modules
	rm -f kernels_pyx/*.so kernels_pyx/_kernels.c
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMPS)/environment: pyproject.toml .ci/check-machine
	@sh .ci/check-machine $(PYTHON)
	@echo "==> creating $(VENV) and installing what dairllm needs (downloads are shown; a minute or two the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python .ci/requirements.py > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --requirement $(VENV)/requirements.txt
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/test: $(STAMPS)/environment
	@echo "==> installing what the tests need into $(VENV)"
	$(BIN)/python .ci/requirements.py test > $(VENV)/requirements-test.txt
	$(BIN)/python -m pip install --requirement $(VENV)/requirements-test.txt
	@touch $@

$(STAMPS)/lint: $(STAMPS)/test
	@echo "==> installing linters and type checkers into $(VENV)"
	$(BIN)/python .ci/requirements.py lint > $(VENV)/requirements-lint.txt
	$(BIN)/python -m pip install --requirement $(VENV)/requirements-lint.txt
	@touch $@

$(STAMPS)/build: $(STAMPS)/environment setup.py $(KERNEL_SOURCES)
	@echo "==> compiling the kernels and installing dairllm into $(VENV) (two or three minutes, if they are not compiled yet)"
	@$(BIN)/python .ci/install.py
	@touch $@

# What these tools generate runs on protobuf 5 to 7; newer ones write code that refuses older runtimes.
.venv-protos/installed:
	@echo "==> creating .venv-protos for the protobuf compiler"
	@sh .ci/check-machine $(PYTHON)
	@test -x .venv-protos/bin/python || $(PYTHON) -m venv .venv-protos
	.venv-protos/bin/python -m pip install --quiet 'setuptools<81' grpcio-tools==1.66.2
	@touch $@
