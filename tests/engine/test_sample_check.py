"""What the real training pipelines of mmdet and mmseg give to the model."""

import json
import random
import shutil

import cv2
import numpy as np
import pycocotools.mask
import pytest
import torch
from mmengine.registry import DATASETS, init_default_scope

from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.sample_check import check_samples

ANNOTATIONS = 'annotations/instances_training.json'


@pytest.fixture
def root(shapes_root, tmp_path):
    return shutil.copytree(shapes_root, tmp_path / 'own')


def built(cfg, root):
    """The training set of a config, on another root."""
    init_default_scope(cfg.default_scope)
    return DATASETS.build(dict(cfg.train_dataloader.dataset, data_root=str(root)))


def rewrite(root, change):
    """Applies `change` to every instance of the training annotations."""
    path = root / ANNOTATIONS
    coco = json.loads(path.read_text())
    for index, instance in enumerate(coco['annotations']):
        change(index, instance)
    path.write_text(json.dumps(coco))


def to_rle(index, instance):
    rle = pycocotools.mask.merge(pycocotools.mask.frPyObjects(instance['segmentation'], 64, 64))
    instance['segmentation'] = dict(size=rle['size'], counts=rle['counts'].decode())


def test_healthy_data_passes_and_leaves_randomness_alone(detection_cfg, segmentation_cfg, root):
    detection, segmentation = built(detection_cfg, root), built(segmentation_cfg, root)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert check_samples(detection, None) is None
    assert check_samples(segmentation, 5) is None
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == before


def test_rle_masks_with_a_pipeline_for_polygons(detection_cfg, root):
    rewrite(root, to_rle)
    assert check_samples(built(detection_cfg, root), None) is None
    detection_cfg.train_dataloader.dataset.pipeline[1].poly2mask = False
    with pytest.raises(SetupError) as caught:
        check_samples(built(detection_cfg, root), None)
    assert 'No annotation of train_dataloader.dataset reaches the model' in str(caught.value)
    assert 'set poly2mask=True' in str(caught.value)


def test_some_rle_masks_with_a_pipeline_for_polygons(detection_cfg, root):
    rewrite(root, lambda index, instance: to_rle(index, instance) if index % 2 else None)
    detection_cfg.train_dataloader.dataset.pipeline[1].poly2mask = False
    warning = check_samples(built(detection_cfg, root), None)
    assert 'instances in 6 sampled images as ignored' in warning
    assert 'set poly2mask=True' in warning


def test_crowds_are_no_reason_to_worry(detection_cfg, root):
    rewrite(root, lambda index, instance: instance.update(iscrowd=int(index % 2)))
    assert check_samples(built(detection_cfg, root), None) is None


def test_only_crowds(detection_cfg, root):
    rewrite(root, lambda index, instance: instance.update(iscrowd=1))
    with pytest.raises(SetupError, match=r'None of 6 sampled images .* has an annotation'):
        check_samples(built(detection_cfg, root), None)


def test_everything_dropped_by_the_pipeline(detection_cfg, root):
    pipeline = detection_cfg.train_dataloader.dataset.pipeline
    pipeline.insert(3, dict(type='FilterAnnotations', min_gt_bbox_wh=(500, 500), keep_empty=True))
    with pytest.raises(
        SetupError, match=r'flags 0 as ignored and drops the rest\. Check its loading'
    ):
        check_samples(built(detection_cfg, root), None)


def test_a_missing_image(detection_cfg, root):
    for image in (root / 'images' / 'training').iterdir():
        image.unlink()
    with pytest.raises(
        SetupError, match=r'shape_00000\.png does not exist, but the training set lists it'
    ):
        check_samples(built(detection_cfg, root), None)


def test_a_missing_label_file(segmentation_cfg, root):
    (root / 'annotations' / 'training' / 'shape_00000.png').unlink()
    with pytest.raises(SetupError, match=r'annotations/training/shape_00000\.png does not exist'):
        check_samples(built(segmentation_cfg, root), 5)


def relabel(root, change):
    """Applies `change` to every label picture of the training set."""
    files = list((root / 'annotations' / 'training').glob('*.png'))
    assert files
    for file in files:
        cv2.imwrite(str(file), change(cv2.imread(str(file), cv2.IMREAD_UNCHANGED)))


def test_labels_out_of_range(segmentation_cfg, root):
    relabel(root, lambda labels: labels + 10)
    with pytest.raises(
        SetupError, match=r'holds the labels \[10, .* expected 0 to 4 for num_classes=5'
    ):
        check_samples(built(segmentation_cfg, root), 5)


def test_labels_that_begin_at_one(segmentation_cfg, root):
    relabel(root, lambda labels: labels + 1)
    with pytest.raises(
        SetupError, match=r'holds the labels \[5\].*reduce_zero_label=True if 0 means unlabelled'
    ):
        check_samples(built(segmentation_cfg, root), 5)


def test_coloured_label_files(segmentation_cfg, root):
    relabel(root, lambda labels: np.stack([labels] * 3, axis=-1))
    with pytest.raises(SetupError, match=r'has the shape \(64, 64, 3\): expected one channel'):
        check_samples(built(segmentation_cfg, root), 5)


def test_nothing_but_ignored_pixels(segmentation_cfg, root):
    relabel(root, lambda labels: np.full_like(labels, 255))
    with pytest.raises(SetupError, match='every pixel is ignored'):
        check_samples(built(segmentation_cfg, root), 5)


def test_wrapped_data_sets_are_looked_into(detection_cfg, root):
    rewrite(root, to_rle)
    inner = dict(detection_cfg.train_dataloader.dataset, data_root=str(root))
    inner['pipeline'][1].poly2mask = False
    init_default_scope('mmdet')
    wrapped = DATASETS.build(dict(type='RepeatDataset', times=2, dataset=inner))
    with pytest.raises(SetupError, match='set poly2mask=True'):
        check_samples(wrapped, None)


class Unfamiliar(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.zeros(1)


def test_samples_of_an_unknown_kind_are_let_through():
    assert check_samples(Unfamiliar(), None) is None
