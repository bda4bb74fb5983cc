# Two commands: `make demo` runs the whole method on the built-in tiny model, `make test` proves the code.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
OLDEST := .venv-oldest

.PHONY: help install demo clean-demo paper clean-paper test test-oldest bench gpu lint toy-teacher words-teacher world-teacher

help:
	@echo "make demo         rollout, preprocess, train, evaluate and report on the built-in tiny model (CPU, minutes)"
	@echo "make clean-demo   remove what the demo made"
	@echo "make paper        the paper's tables 1-7 at toy scale, five seeds, one report (CPU, 1.6 hours on two cores; PAPER_SEEDS=1: one seed)"
	@echo "make clean-paper  remove what it made"
	@echo "make test         lint, types and tests"
	@echo "make test-oldest  the tests with the oldest releases that pyproject.toml accepts, in a venv of their own"
	@echo "make bench        decoding and training speed beside peers, to bench_results/"
	@echo "make gpu          parity and speed on one card in nine minutes, to bench_results/ (GPU=cpu TINY=1: try it)"
	@echo "make toy-teacher  train the built-in model again"
	@echo "make words-teacher  train the teacher of a larger vocabulary, to build/toy_words (CPU, a quarter of an hour)"
	@echo "make world-teacher  train the teacher of the GSM-Symbolic world, to build/toy_world (CPU, 20 minutes)"
	@echo "make install      create $(VENV) and install everything"

install: $(VENV)/.installed

# torch first: a bare range would fetch a CUDA build of several GB onto a CPU machine.
$(VENV)/.installed: pyproject.toml requirements.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev,eval]"
	touch $@

demo: install
	BIN=$(BIN) t3d/toy/demo.sh

clean-demo:
	rm -rf demo

paper: install
	BIN=$(BIN) t3d/toy/paper.sh

clean-paper:
	rm -rf toy_paper

test: install lint
	$(BIN)/python -m pytest -n auto

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -n auto

# The oldest releases want a Python of their time; no lint: its tools are not what is tried.
$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	python3.11 -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet -c constraints-oldest.txt torch
	$(OLDEST)/bin/pip install --quiet -c constraints-oldest.txt -e ".[dev,eval]"
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python bench/decode.py
	$(BIN)/python bench/train.py

# Without installation: with the environment that is there, or else $(PYTHON) and what it finds.
GPU    ?= cuda
gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m bench.gpu --device $(GPU) $(if $(TINY),--tiny)

toy-teacher: install
	BIN=$(BIN) t3d/toy/train_teacher.sh

words-teacher: install
	BIN=$(BIN) t3d/toy/train_words_teacher.sh

world-teacher: install
	$(BIN)/pip install --quiet -c constraints.txt -e ".[world]"
	BIN=$(BIN) t3d/toy/train_world_teacher.sh
