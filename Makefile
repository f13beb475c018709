# From a bare checkout, with Python >= 3.10 and make:
#   make demo   trains a detector on generated shapes and draws what it predicts
#   make test   runs the test suite
# Both install what they need into $(VENV) first. No compiler is needed.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PINS := constraints.txt pyproject.toml setup.py
# The stamp names the checkout: an environment that several of them share must point at the one in use.
STAMP_NAME := installed-$(shell pwd | cksum | cut -d' ' -f1)
STAMP := $(VENV)/$(STAMP_NAME)
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

define install
@echo "Installing into $(VENV) (torch is large: this takes some minutes the first time)"
$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.$(1)'
@find $(VENV) -maxdepth 1 -name 'installed-*' ! -name '$(STAMP_NAME)*' -delete
@touch $@
endef

# Nothing is installed twice while the pins stay as they are.
$(STAMP): $(PINS) | $(BIN)/python
	$(call install,)

$(STAMP)-%: $(PINS) | $(BIN)/python
	$(call install,[$*])

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/python tools/dataset_converters/generate_shapes.py $(SHAPES_DIR)
	SWINV2_MM_SHAPES=$(SHAPES_DIR) $(BIN)/python tools/train.py $(DEMO_CONFIG) --work-dir $(DEMO_DIR)
	SWINV2_MM_SHAPES=$(SHAPES_DIR) $(BIN)/python tools/test.py $(DEMO_CONFIG) $(DEMO_DIR)/last_checkpoint \
	  --work-dir $(DEMO_DIR) --show-dir $(DEMO_DIR)/vis

# transformers is there to compare with and breaks mmpretrain at import: it has a folder of its own, which only tests look
# into.
PEERS := $(VENV)/peers

$(PEERS)/installed: constraints.txt | $(BIN)/python
	rm -rf $(PEERS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps \
	  --target $(PEERS)/transformers transformers tokenizers
	@touch $@

test: $(STAMP)-test $(PEERS)/installed
	SWINV2_MM_PEERS=$(PEERS) $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMP)-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info work_dirs .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
