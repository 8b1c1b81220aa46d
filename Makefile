# Two commands on a fresh machine: `make demo` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo test lint types docs clean
help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv: some minutes without a word from pip, about 6 GB with the default torch"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(READY)  ## three loops: CT phantom, driving frames, boxes on them; prints a table a round and the reports' paths
	$(BIN)/python datasets/prepare_demo.py ct runs/demo_ct/data
	$(BIN)/python tools/train_al.py --config configs/demo_ct.yaml
	$(BIN)/python datasets/prepare_demo.py driving runs/demo_driving/data
	$(BIN)/python tools/train_al.py --config configs/demo_driving.yaml
	$(BIN)/python tools/train_al.py --config configs/demo_detection.yaml

test: $(READY)  ## unit, conformance and end-to-end tests that can run here, one process a core
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

lint: $(READY)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## mypy --strict
	$(BIN)/mypy

docs: $(READY)  ## HTML documentation in docs/_build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/python -m sphinx -W -q docs docs/_build

clean:  ## remove the environment and the demo runs
	rm -rf .venv runs/demo_ct runs/demo_driving runs/demo_detection
