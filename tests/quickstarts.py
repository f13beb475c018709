"""Fixtures: a tiny generated set, and the quickstart configs on it."""

from pathlib import Path

import pytest
from mmengine.config import Config

from swinv2_mm.datasets import generate_shapes

CONFIGS = Path(__file__).parents[1] / 'configs'


@pytest.fixture(scope='session')
def shapes_root(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes')
    generate_shapes(root, num_train=6, num_val=4, image_size=(64, 64))
    return root


@pytest.fixture
def detection_config(shapes_root, monkeypatch):
    monkeypatch.setenv('SWINV2_MM_SHAPES', str(shapes_root))
    return str(next(CONFIGS.glob('quickstart/mask-rcnn_*.py')))


@pytest.fixture
def segmentation_config(shapes_root, monkeypatch):
    monkeypatch.setenv('SWINV2_MM_SHAPES', str(shapes_root))
    return str(next(CONFIGS.glob('quickstart/*upernet*.py')))


@pytest.fixture
def detection_cfg(detection_config):
    return Config.fromfile(detection_config)


@pytest.fixture
def segmentation_cfg(segmentation_config):
    return Config.fromfile(segmentation_config)
