# From a bare checkout, with Python >= 3.10 and make:
#   make demo   trains a detector on generated shapes and draws what it predicts
#   make test   runs the test suite
# Both install what they need into $(VENV) first. No compiler is needed.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PINS := constraints.txt pyproject.toml setup.py
DEMO_CONFIG := configs/quickstart/mask-rcnn_swinv2-nano_fpn_shapes.py
DEMO_DIR := work_dirs/demo
SHAPES_DIR ?= data/shapes
PYTEST_ARGS ?=

.PHONY: help install demo test lint clean

help:
	@sed -n 's/^#   //p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "swinv2_mm needs Python >= 3.10, '$(PYTHON)' is older: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp per set of packages: nothing is installed twice while the pins stay as they are.
$(VENV)/installed-%: $(PINS) | $(BIN)/python
	@echo "Installing into $(VENV) (torch is large: this takes some minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@

$(VENV)/installed: $(PINS) | $(BIN)/python
	@echo "Installing into $(VENV) (torch is large: this takes some minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

install: $(VENV)/installed

demo: $(VENV)/installed
	$(BIN)/python tools/dataset_converters/generate_shapes.py $(SHAPES_DIR)
	SWINV2_MM_SHAPES=$(SHAPES_DIR) $(BIN)/python tools/train.py $(DEMO_CONFIG) --work-dir $(DEMO_DIR)
	SWINV2_MM_SHAPES=$(SHAPES_DIR) $(BIN)/python tools/test.py $(DEMO_CONFIG) $(DEMO_DIR)/last_checkpoint \
	  --work-dir $(DEMO_DIR) --show-dir $(DEMO_DIR)/vis

test: $(VENV)/installed-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info work_dirs .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
