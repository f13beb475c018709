# From a bare checkout, with Python >= 3.10 and make:
#   make demo   trains a detector on generated shapes and draws what it predicts
#   make web    serves a page in the browser that predicts with the detector of make demo (docs/web.md)
#   make test   runs the test suite
#   make test-fast   runs the tests that need no training, in three minutes
#   make test-slow   runs longer proofs: many random faults, and half an hour of training under random kills
#   make gpu    measures on a GPU, with the packages that PYTHON has and those in .gpu-wheels (docs/gpu.md)
#   make gpu-wheels   collects into .gpu-wheels what a GPU machine without network lacks
# The first two install what they need into $(VENV) first. No compiler is needed.

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
WEB_ARGS ?=

.PHONY: help install demo web test test-fast test-slow lint gpu gpu-wheels clean

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
	SWINV2_MM_SHAPES=$(SHAPES_DIR) $(BIN)/python tools/train.py $(DEMO_CONFIG) --work-dir $(DEMO_DIR) \
	  $(if $(wildcard $(DEMO_DIR)/*.pth),--resume)
	SWINV2_MM_SHAPES=$(SHAPES_DIR) $(BIN)/python tools/test.py $(DEMO_CONFIG) $(DEMO_DIR)/last_checkpoint \
	  --work-dir $(DEMO_DIR) --show-dir $(DEMO_DIR)/vis

web: $(STAMP)-web
	@test -d $(DEMO_DIR) || { echo 'make demo comes first: it trains the model of the page'; exit 2; }
	$(BIN)/python tools/web.py $(DEMO_DIR) $(WEB_ARGS)

# transformers is there to compare with and breaks mmpretrain at import: it has a folder of its own, which only tests look
# into.
PEERS := $(VENV)/peers

$(PEERS)/installed: constraints.txt | $(BIN)/python
	rm -rf $(PEERS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps \
	  --target $(PEERS)/transformers transformers tokenizers
	@touch $@

# One worker for each core, with one thread each. The tests of a file stay together: many share what a fixture trained.
WORKERS ?= 2
# A test that stands still for a quarter of an hour ends its worker, with a traceback.
LIMIT := -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true
PYTEST := OMP_NUM_THREADS=1 SWINV2_MM_PEERS=$(PEERS) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test: $(STAMP)-test $(PEERS)/installed
	$(PYTEST) $(LIMIT) -m 'not long' $(PYTEST_ARGS)

test-fast: $(STAMP)-test $(PEERS)/installed
	$(PYTEST) $(LIMIT) -m 'not slow and not long' $(PYTEST_ARGS)

test-slow: $(STAMP)-test $(PEERS)/installed
	$(PYTEST) -m long $(PYTEST_ARGS)
	$(BIN)/python tests/soak.py

lint: $(STAMP)-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

# What a machine lacks that has torch, torchvision, timm and the usual scientific packages: what OpenMMLab's
# libraries import, and nothing else. Versions are those of constraints.txt where that names one.
GPU_WHEELS ?= .gpu-wheels
GPU_PYTHON_VERSION ?= 3.12
GPU_WHEELS_BUILT := onedl-mmengine onedl-mmcv onedl-mmdetection onedl-mmsegmentation onedl-mmpretrain
GPU_WHEELS_SMALL := timm addict yapf platformdirs termcolor terminaltables prettytable wcwidth rich markdown-it-py mdurl pygments \
  einops ftfy regex imaug mat4py model-index ordered-set markdown pycocotools shapely orjson
# With GPU_WHEELS_ALL=1 also the usual packages: torch, torchvision and timm are then enough.
GPU_WHEELS_LARGE := opencv-python-headless scipy matplotlib contourpy cycler fonttools kiwisolver pyparsing python-dateutil \
  six scikit-image lazy-loader imageio tifffile pytest iniconfig pluggy hypothesis sortedcontainers
GPU_WHEELS_ALL ?=
GPU_WHEELS_MIB ?= $(if $(GPU_WHEELS_ALL),192,64)
GPU_PLATFORMS := $(foreach glibc,17 24 27 28,--platform manylinux_2_$(glibc)_x86_64) --platform manylinux2014_x86_64
PIP_QUIET := --quiet --disable-pip-version-check

gpu-wheels:
	@mkdir -p $(GPU_WHEELS)
	@rm -f $(GPU_WHEELS)/*.whl
	MMCV_WITH_OPS=0 $(PYTHON) -m pip wheel $(PIP_QUIET) -c constraints.txt --no-deps --wheel-dir $(GPU_WHEELS) \
	  $(GPU_WHEELS_BUILT)
	@! ls $(GPU_WHEELS) | grep -v -e '-none-any.whl$$' || { echo 'the wheels above are not pure Python'; exit 1; }
	$(PYTHON) -m pip download $(PIP_QUIET) -c constraints.txt --no-deps --only-binary=:all: --dest $(GPU_WHEELS) \
	  --implementation cp --python-version $(GPU_PYTHON_VERSION) $(GPU_PLATFORMS) \
	  $(GPU_WHEELS_SMALL) $(if $(GPU_WHEELS_ALL),$(GPU_WHEELS_LARGE))
	@bytes=$$(cat $(GPU_WHEELS)/*.whl | wc -c); mib=$$(( (bytes + 1048575) / 1048576 )); \
	  echo "$$(ls $(GPU_WHEELS)/*.whl | wc -l) wheels, $$mib MiB, in $(GPU_WHEELS)"; \
	  [ $$mib -le $(GPU_WHEELS_MIB) ] || { echo 'more than $(GPU_WHEELS_MIB) MiB (GPU_WHEELS_MIB)'; exit 1; }

MINUTES ?= 9
GPU_DIR ?= work_dirs/gpu
GPU_SITE ?= work_dirs/gpu-site
GPU_ARGS ?=
HAS_OPENMMLAB := import importlib.util as u, sys; \
  sys.exit(not all(map(u.find_spec, ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain'))))

# Wheels are for an environment without OpenMMLab's libraries: another one stays as it is.
gpu:
	@command -v $(PYTHON) > /dev/null || \
	  { echo "there is no '$(PYTHON)': make test creates .venv/bin/python, which has all that make gpu needs"; exit 2; }
	@path="$(CURDIR)"; \
	if ls $(GPU_WHEELS)/*.whl > /dev/null 2>&1 && ! $(PYTHON) -c "$(HAS_OPENMMLAB)"; then \
	  echo "Installing $(GPU_WHEELS) into $(GPU_SITE)"; \
	  $(PYTHON) -m pip install $(PIP_QUIET) --no-index --no-deps --no-compile --upgrade --target $(GPU_SITE) \
	    $(GPU_WHEELS)/*.whl || exit 1; \
	  path="$$path:$(abspath $(GPU_SITE))"; \
	fi; \
	PYTHONPATH="$$path$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTHON) tools/gpu_report.py --minutes $(MINUTES) --out "$(GPU_DIR)" \
	  $(GPU_ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info work_dirs .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
