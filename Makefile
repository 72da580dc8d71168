# `make help` lists the targets. Everything runs in a virtual environment of its own, .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
REPOSITORY ?= $(or $(ENGINEHOUSE_REPOSITORY),repository)
export ENGINEHOUSE_REPOSITORY := $(REPOSITORY)
export PATH := $(BIN):$(PATH)
PROTOS := proto/enginehouse/v1/*.proto
# Tests and benchmarks of a GPU have an environment of their own: onnxruntime-gpu and onnxruntime
# overwrite each other's files. GPU_PYTHON=… takes an interpreter as it is instead.
GPU_VENV ?= .venv-gpu
HAS_DRIVER := $(shell command -v nvidia-smi || ldconfig -p 2>/dev/null | grep -m1 libcuda.so.1)
GPU_RUN = $(or $(GPU_PYTHON),$(if $(HAS_DRIVER),$(abspath $(GPU_VENV)),$(abspath $(VENV)))/bin/python)
SOURCES = proto:server:builder:clients/python
SITE = $$($(BIN)/python -c "import google.rpc, os; print(os.path.dirname(os.path.dirname(list(google.rpc.__path__)[0])))")

.DEFAULT_GOAL := help
.PHONY: help install install-gpu serve test test-all test-gpu build-engine loadtest bench bench-gpu check lint format typecheck proto proto-check wheel clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-14s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## Install everything into .venv

# pip takes torch's CPU build where one is offered; the packages after it then leave torch alone.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet "torch==2.13.0"
	$(BIN)/pip install --quiet --editable ".[builder,onnxruntime,tensorrt-rtx,demo,loadtest]" --group dev
	touch $@

serve: install ## Build the demo engines if the repository is empty, and serve (ARGS="--listen … --no-demo-generate")
	@ls -d $(REPOSITORY)/*/*/manifest.json >/dev/null 2>&1 || $(BIN)/enginehouse demo $(if $(filter --no-demo-generate,$(ARGS)),--no-generate) $(DEMO_ARGS)
	exec $(BIN)/enginehouse serve $(filter-out --no-demo-generate,$(ARGS))

build-engine: install ## Build MODEL=<hub id or folder> [NAME= TASK= TARGET= PRECISION= REPOSITORY= ARGS=]
	@test -n "$(MODEL)" || { echo 'usage: make build-engine MODEL=<hub id or folder> [NAME=…] [TASK=classify|generate] [TARGET="openvino onnxruntime=int8 tensorrt-rtx:any=fp16"] [PRECISION=fp32|tf32|bf16|fp16|int8|int4|fp8] [ARGS="…"]' >&2; exit 2; }
	$(BIN)/enginehouse build --model "$(MODEL)" $(if $(NAME),--name "$(NAME)") $(if $(TASK),--task "$(TASK)") $(foreach target,$(TARGET),--target "$(target)") $(if $(PRECISION),--precision "$(PRECISION)") $(ARGS)

loadtest: install ## Load-test a running server (TASK=classify|generate ARGS="--concurrency 32 --duration 10")
	$(BIN)/enginehouse loadtest $(or $(TASK),classify) $(ARGS)

test: install ## Run every test that fits a laptop
	$(BIN)/python -m pytest -m "not wide" $(ARGS)

test-all: install ## Run every test, all architectures and precisions
	$(BIN)/python -m pytest $(ARGS)

# Where there is no driver, what is installed says what could not run and why; pytest ends with 5.
test-gpu: $(if $(GPU_PYTHON),,$(if $(HAS_DRIVER),install-gpu,install)) ## Test on an NVIDIA GPU, and say what could not run and why
	PYTHONPATH=$(SOURCES):$$PYTHONPATH $(GPU_RUN) -m pytest -m gpu tests/gpu $(ARGS)

bench-gpu: $(if $(GPU_PYTHON),,$(if $(HAS_DRIVER),install-gpu)) ## Measure on an NVIDIA GPU beside transformers on torch (ARGS="--only classify-base")
	PYTHONPATH=$(SOURCES):$$PYTHONPATH $(if $(or $(GPU_PYTHON),$(HAS_DRIVER)),$(GPU_RUN),$(PYTHON)) -m bench.gpu $(ARGS)

install-gpu: $(GPU_VENV)/.installed ## Install everything with what NVIDIA GPUs need into .venv-gpu

# What only NVIDIA's index or a compiler can give is left out where there is none; the tests say so.
$(GPU_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/pip install --quiet --upgrade "pip>=25.1"
	$(GPU_VENV)/bin/pip install --quiet --editable ".[builder,cuda,tensorrt-rtx,loadtest]" --group dev
	-$(GPU_VENV)/bin/pip install --quiet "tensorrt>=11.4,<12"
	-$(GPU_VENV)/bin/pip install --quiet "pycuda>=2026.1"
	touch $@

bench: install ## Measure the server against the floor and a naive server (ARGS="--only minilm")
	$(BIN)/python -m bench $(ARGS)

check: proto-check lint typecheck test ## What CI runs

lint: install ## Lint code and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: install ## Format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

typecheck: install ## Check types, with mypy and pyright
	$(BIN)/mypy
	$(BIN)/pyright

proto: install ## Generate the stubs in place
	cd proto && $(BIN)/python -m grpc_tools.protoc -I. -I$(SITE) --python_out=. --grpc_python_out=. \
	  --mypy_out=quiet:. --mypy_grpc_out=quiet:. enginehouse/v1/*.proto

proto-check: install ## Lint the protocol, and check that the stubs are current
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && cd proto && \
	$(BIN)/python -m grpc_tools.protoc -I. -I$(SITE) --include_imports --include_source_info -o $$out/image.binpb enginehouse/v1/*.proto && \
	$(BIN)/buf lint $$out/image.binpb --config buf.yaml --path enginehouse && $(BIN)/buf format --diff --exit-code . && \
	$(BIN)/python -m grpc_tools.protoc -I. -I$(SITE) --python_out=$$out --grpc_python_out=$$out \
	  --mypy_out=quiet:$$out --mypy_grpc_out=quiet:$$out enginehouse/v1/*.proto && \
	for f in $$out/enginehouse/v1/*; do cmp "$$f" enginehouse/v1/$${f##*/} || { echo "stubs are not current: make proto" >&2; exit 1; }; done

wheel: install ## Build the wheel and try it in a clean environment
	rm -rf dist && $(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	$(PYTHON) -m venv dist/venv && dist/venv/bin/pip install --quiet dist/*.whl
	dist/venv/bin/enginehouse --version && dist/venv/bin/python -c "import enginehouse_client"
	rm -rf dist/venv

clean: ## Remove what was generated, the engine repository excepted
	rm -rf $(VENV) $(GPU_VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
