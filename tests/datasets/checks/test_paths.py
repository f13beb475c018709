"""Missing data is reported with the path, the layout that is expected, and what to do."""

import copy
import shutil

import pytest
from mmengine.config import Config

from swinv2_mm.datasets.checks.configured import leaf_datasets
from swinv2_mm.datasets.checks.paths import check_paths

ALL = ('train', 'val', 'test')


@pytest.fixture
def own_data(shapes_root, tmp_path, monkeypatch):
    """A copy of the set under another name, so that it is not taken for the generated one."""
    monkeypatch.setenv('SWINV2_MM_SHAPES', str(shapes_root))
    monkeypatch.setenv('SWINV2_MM_DATA', '/somewhere')
    return shutil.copytree(shapes_root, tmp_path / 'own')


def on(cfg, root):
    """The config with another data root."""
    cfg = copy.deepcopy(cfg)
    for part in ALL:
        cfg[f'{part}_dataloader'].dataset.data_root = str(root)
        if 'ann_file' in cfg.get(f'{part}_evaluator', {}):
            cfg[f'{part}_evaluator'].ann_file = f'{root}/annotations/instances_validation.json'
    return cfg


def test_complete_data_passes(finds, detection_cfg, segmentation_cfg, own_data):
    assert finds(check_paths, on(detection_cfg, own_data)) == []
    assert finds(check_paths, on(segmentation_cfg, own_data)) == []


def test_a_missing_root_names_the_layout_and_the_variable_once(finds, detection_cfg, own_data):
    missing = own_data / 'nothing'
    (message,) = finds(check_paths, on(detection_cfg, missing))
    assert (
        f'The data root {missing} of train_dataloader.dataset (CocoDataset) does not exist'
        in message
    )
    assert f'annotations in {missing}/annotations/instances_training.json' in message
    assert f'images in {missing}/images/training' in message
    assert 'SWINV2_MM_DATA' in message
    assert 'it is /somewhere now' in message


def test_a_missing_generated_set_names_the_generator(finds, detection_cfg, tmp_path, monkeypatch):
    root = tmp_path / 'shapes'
    monkeypatch.setenv('SWINV2_MM_SHAPES', str(root))
    (message,) = finds(check_paths, on(detection_cfg, root))
    assert message.endswith(f'generate_shapes.py {root}')


def test_a_relative_path_says_from_where(finds, detection_cfg, own_data, monkeypatch):
    monkeypatch.chdir(own_data)
    (message,) = finds(check_paths, on(detection_cfg, 'data/nothing'))
    assert 'data/nothing of ' in message and f'does not exist in {own_data}' in message


def test_a_missing_annotation_file(finds, detection_cfg, own_data):
    (own_data / 'annotations' / 'instances_training.json').unlink()
    (message,) = finds(check_paths, on(detection_cfg, own_data))
    assert 'instances_training.json of train_dataloader' in message


def test_a_missing_annotation_file_of_the_evaluator(finds, detection_cfg, own_data):
    cfg = on(detection_cfg, own_data)
    cfg.val_evaluator.ann_file = str(own_data / 'other.json')
    (message,) = finds(check_paths, cfg)
    assert 'other.json of val_evaluator does not exist' in message
    assert finds(check_paths, cfg, ('train', 'test')) == []  # only what will run is looked at


@pytest.mark.parametrize('folder', ['images/training', 'annotations/validation'])
def test_a_missing_folder_of_images_or_labels(finds, segmentation_cfg, own_data, folder):
    shutil.rmtree(own_data / folder)
    words = 'images' if folder.startswith('images') else 'label PNGs'
    (message,) = finds(check_paths, on(segmentation_cfg, own_data))
    assert f'The folder {own_data}/{folder} ({words})' in message


def test_data_sets_are_found_inside_wrappers():
    inner = dict(type='CocoDataset', data_root='a/', ann_file='b.json', data_prefix=dict(img='c/'))
    cfg = Config(
        dict(
            type='RepeatDataset',
            times=2,
            dataset=dict(type='ConcatDataset', datasets=[inner, dict(inner, ann_file='/d.json')]),
        )
    )
    leaves = list(leaf_datasets(cfg, 'train_dataloader.dataset'))
    assert [leaf.place for leaf in leaves] == [
        'train_dataloader.dataset.dataset.datasets.0',
        'train_dataloader.dataset.dataset.datasets.1',
    ]
    assert [leaf.ann_file for leaf in leaves] == ['a/b.json', '/d.json']
    assert leaves[0].folders == {'img': 'a/c/'}


def test_remote_data_is_left_alone(finds, detection_cfg):
    assert finds(check_paths, on(detection_cfg, 's3://bucket/shapes')) == []
