# make play    walk through the dreamed maze        make play ARGS="--seed 3"
# make test    run the tests
# make check   style, format, types, import contracts
# make setup   create .venv and install; the three above do it when needed
#
# TORCH=auto   a CPU build of PyTorch without an NVIDIA GPU, a CUDA build with one; TORCH=cpu or TORCH=cuda to choose
# TEST_JOBS=2  processes that test side by side; each keeps one core busy
# PYTHON=...   the interpreter for .venv; otherwise the first Python 3.11+ found, 3.12 or older preferred

TORCH ?= auto
TEST_JOBS ?= 2
BIN := .venv/bin
STAMP := .venv/.setup-$(TORCH)

.PHONY: help setup play test check

help:
	@sed -n 's/^# //p' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml dev/bootstrap.py
	$(or $(PYTHON),python3) dev/bootstrap.py --torch $(TORCH) $(if $(PYTHON),--python $(PYTHON))
	@touch .venv/.setup-auto $@

play: setup
	$(BIN)/python play.py $(ARGS)

test: setup
	$(BIN)/python -m pytest -q -n $(TEST_JOBS) --dist loadfile

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
