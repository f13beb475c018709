"""What the real training pipelines of mmdet and mmseg pass to the model."""

import json
import random
import shutil

import cv2
import numpy as np
import pycocotools.mask
import pytest
import torch

from swinv2_mm.datasets.checks import ConfiguredData
from swinv2_mm.datasets.checks.files import check_labels
from swinv2_mm.datasets.checks.samples import (
    check_annotations,
    check_building,
    check_label_maps,
)

ANNOTATIONS = 'annotations/instances_training.json'


@pytest.fixture
def root(shapes_root, tmp_path):
    return shutil.copytree(shapes_root, tmp_path / 'own')


@pytest.fixture
def found(root, finds):
    """Return a function that looks at the training set of a config, on the copy."""

    def look(cfg):
        cfg.train_dataloader.dataset.data_root = str(root)
        checks = [check_building, check_labels, check_annotations, check_label_maps]
        return finds(checks, cfg, ('train',))

    return look


def rewrite(root, change):
    """Apply `change` to every instance of the training annotations."""
    path = root / ANNOTATIONS
    coco = json.loads(path.read_text())
    for index, instance in enumerate(coco['annotations']):
        change(index, instance)
    path.write_text(json.dumps(coco))


def to_rle(index, instance):
    rle = pycocotools.mask.merge(pycocotools.mask.frPyObjects(instance['segmentation'], 64, 64))
    instance['segmentation'] = dict(size=rle['size'], counts=rle['counts'].decode())


def test_healthy_data_passes_and_leaves_randomness_alone(found, detection_cfg, segmentation_cfg):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert found(detection_cfg) == found(segmentation_cfg) == []
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == before


def test_rle_masks_with_a_pipeline_for_polygons(found, detection_cfg, root):
    rewrite(root, to_rle)
    assert found(detection_cfg) == []
    detection_cfg.train_dataloader.dataset.pipeline[1].poly2mask = False
    (message,) = found(detection_cfg)
    assert message.startswith('error: No annotation of train_dataloader.dataset reaches the model')
    assert 'set poly2mask=True' in message


def test_some_rle_masks_with_a_pipeline_for_polygons(found, detection_cfg, root):
    rewrite(root, lambda index, instance: to_rle(index, instance) if index % 2 else None)
    detection_cfg.train_dataloader.dataset.pipeline[1].poly2mask = False
    (message,) = found(detection_cfg)
    assert message.startswith('warning: ')
    assert 'instances in 6 sampled images as ignored' in message
    assert 'set poly2mask=True' in message


def test_crowds_are_not_reported(found, detection_cfg, root):
    rewrite(root, lambda index, instance: instance.update(iscrowd=int(index % 2)))
    assert found(detection_cfg) == []


def test_only_crowds(found, detection_cfg, root):
    rewrite(root, lambda index, instance: instance.update(iscrowd=1))
    (message,) = found(detection_cfg)
    assert 'None of 6 sampled images' in message and 'has an annotation' in message


def test_everything_dropped_by_the_pipeline(found, detection_cfg):
    pipeline = detection_cfg.train_dataloader.dataset.pipeline
    pipeline.insert(3, dict(type='FilterAnnotations', min_gt_bbox_wh=(500, 500), keep_empty=True))
    (message,) = found(detection_cfg)
    assert 'flags 0 as ignored and drops the rest. Check its loading' in message


def test_a_missing_image(found, detection_cfg, root):
    for image in (root / 'images' / 'training').iterdir():
        image.unlink()
    (message,) = found(detection_cfg)
    assert 'shape_00000.png does not exist, but the data set lists it' in message


def test_a_broken_image(found, detection_cfg, root):
    (root / 'images' / 'training' / 'shape_00000.png').write_bytes(b'no picture')
    (message,) = found(detection_cfg)
    assert 'shape_00000.png cannot be read as a picture' in message


def test_a_missing_label_file(found, segmentation_cfg, root):
    (root / 'annotations' / 'training' / 'shape_00000.png').unlink()
    (message,) = found(segmentation_cfg)
    assert 'label files read of train_dataloader.dataset do not exist: ' in message
    assert 'annotations/training/shape_00000.png' in message


def relabel(root, change):
    """Apply `change` to every label picture of the training set."""
    files = list((root / 'annotations' / 'training').glob('*.png'))
    assert files
    for file in files:
        cv2.imwrite(str(file), change(cv2.imread(str(file), cv2.IMREAD_UNCHANGED)))


def test_labels_out_of_range(found, segmentation_cfg, root):
    relabel(root, lambda labels: labels + 10)
    (message,) = found(segmentation_cfg)
    assert 'hold the labels [10, ' in message and 'expected 0 to 4 for num_classes=5' in message


def test_labels_that_begin_at_one(found, segmentation_cfg, root):
    relabel(root, lambda labels: labels + 1)
    (message,) = found(segmentation_cfg)
    assert 'hold the labels [5]' in message
    assert 'reduce_zero_label=True if 0 means unlabelled' in message


def test_coloured_label_files(found, segmentation_cfg, root):
    relabel(root, lambda labels: np.stack([labels] * 3, axis=-1))
    (message,) = found(segmentation_cfg)
    assert 'have several channels: expected one channel' in message


def test_nothing_but_ignored_pixels(found, segmentation_cfg, root):
    relabel(root, lambda labels: np.full_like(labels, 255))
    (message,) = found(segmentation_cfg)
    assert 'every pixel is ignored' in message


def test_wrapped_data_sets_are_looked_into(finds, detection_cfg, root):
    rewrite(root, to_rle)
    inner = dict(detection_cfg.train_dataloader.dataset, data_root=str(root))
    inner['pipeline'][1].poly2mask = False
    detection_cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=inner)
    (message,) = finds(check_annotations, detection_cfg, ('train',))
    assert 'set poly2mask=True' in message


def test_annotations_that_are_not_json(found, detection_cfg, root):
    """mmengine's registry raises the error anew, as another one."""
    (root / ANNOTATIONS).write_text('{"images": [')
    (message,) = found(detection_cfg)
    assert f'{root}/{ANNOTATIONS} is not valid json: Expecting value' in message


def test_an_empty_set(found, detection_cfg, root):
    coco = json.loads((root / ANNOTATIONS).read_text())
    (root / ANNOTATIONS).write_text(json.dumps(dict(coco, annotations=[])))
    (message,) = found(detection_cfg)
    assert 'train_dataloader.dataset is empty' in message


class Unfamiliar(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.zeros(1)


def test_samples_of_an_unknown_kind_are_let_through(detection_cfg):
    data = ConfiguredData(detection_cfg, ('train',), build_dataset=lambda part: Unfamiliar())
    assert list(check_annotations(data)) == []
