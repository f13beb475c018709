"""Settings of data loaders that would end in an assertion in the middle of a run."""

import shutil

import cv2
import pytest
from mmengine.registry import MODELS, DefaultScope

from swinv2_mm.datasets.checks import ConfiguredData
from swinv2_mm.datasets.checks.settings import (
    check_batches,
    check_epoch_length,
    check_loaders,
    check_single_images,
    pooled_norm,
)

TRAIN = ('train',)


def by_epoch(cfg):
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
    cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
    return cfg


@pytest.mark.parametrize('size', [0, -2, 1.5])
def test_batch_sizes_below_one(finds, segmentation_cfg, size):
    segmentation_cfg.val_dataloader.batch_size = size
    (message,) = finds(check_loaders, segmentation_cfg)
    assert f'val_dataloader.batch_size is {size}: expected a whole number' in message


def test_an_endless_epoch(finds, segmentation_cfg):
    assert finds(check_loaders, segmentation_cfg) == []
    segmentation_cfg.train_dataloader.sampler = dict(type='InfiniteSampler')
    segmentation_cfg.train_cfg = dict(by_epoch=True, max_epochs=2)
    (message,) = finds(check_loaders, segmentation_cfg)
    assert 'an epoch never ends' in message


def test_a_batch_larger_than_the_set(finds, segmentation_cfg):
    by_epoch(segmentation_cfg).train_dataloader.update(batch_size=7, drop_last=True)
    (message,) = finds(check_epoch_length, segmentation_cfg, TRAIN)
    assert 'each process gets 6 images' in message and 'batch_size=6 or less' in message
    segmentation_cfg.train_dataloader.drop_last = False
    assert finds(check_epoch_length, segmentation_cfg, TRAIN) == []


def test_a_single_image_before_a_pooled_batch_norm(finds, segmentation_cfg):
    segmentation_cfg.train_dataloader.batch_size = 1
    (message,) = finds(check_single_images, segmentation_cfg, TRAIN)
    assert 'model.decode_head.psp_modules.0.1.bn is a batch norm' in message
    assert 'train_dataloader.batch_size is 1' in message
    segmentation_cfg.model.decode_head.norm_cfg = dict(type='GN', num_groups=8)
    assert finds(check_single_images, segmentation_cfg, TRAIN) == []


def test_a_single_image_in_the_last_batch(finds, segmentation_cfg):
    by_epoch(segmentation_cfg).train_dataloader.batch_size = 5
    (message,) = finds(check_single_images, segmentation_cfg, TRAIN)
    assert '6 images per process in batches of 5' in message and 'drop_last=True' in message
    segmentation_cfg.train_dataloader.drop_last = True
    assert finds(check_single_images, segmentation_cfg, TRAIN) == []


def test_a_detector_trains_on_single_images(finds, detection_cfg):
    detection_cfg.train_dataloader.batch_size = 1
    assert finds(check_single_images, detection_cfg, TRAIN) == []


def test_pooled_norms_of_other_heads_are_found():
    head = dict(in_channels=8, channels=8, num_classes=3, norm_cfg=dict(type='BN'))
    with DefaultScope.overwrite_default_scope('mmseg'):
        assert pooled_norm(MODELS.build(dict(type='ASPPHead', **head))) == 'image_pool.1.bn'
        assert pooled_norm(MODELS.build(dict(type='PSPHead', **head))) == 'psp_modules.0.1.bn'
        assert pooled_norm(MODELS.build(dict(type='FCNHead', **head))) is None
        head['norm_cfg'] = dict(type='SyncBN')
        assert pooled_norm(MODELS.build(dict(type='ASPPHead', **head))) is None


def resize_one(root, shape):
    """Write one image and its labels of the validation set at another size."""
    for folder in ('images', 'annotations'):
        path = str(root / folder / 'validation' / 'shape_00003.png')
        picture = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        assert cv2.imwrite(path, cv2.resize(picture, shape, interpolation=cv2.INTER_NEAREST))


@pytest.fixture
def mixed_sizes(shapes_root, segmentation_cfg, tmp_path):
    """The segmentation config on a set whose last image has another size, validated in batches of two."""
    root = shutil.copytree(shapes_root, tmp_path / 'own')
    resize_one(root, (96, 64))
    segmentation_cfg.val_dataloader.dataset.data_root = str(root)
    segmentation_cfg.val_dataloader.batch_size = 2
    steps = segmentation_cfg.val_dataloader.dataset.pipeline
    segmentation_cfg.val_dataloader.dataset.pipeline = [
        step for step in steps if step.type != 'Resize'
    ]
    return segmentation_cfg


def test_images_of_several_sizes_in_one_batch(finds, mixed_sizes):
    (message,) = finds(check_batches, mixed_sizes, ('val',))
    assert 'val_dataloader.batch_size is 2' in message
    assert 'image size in a batch should be the same' in message
    assert 'Set val_dataloader.batch_size=1' in message
    mixed_sizes.val_dataloader.batch_size = 1
    assert finds(check_batches, mixed_sizes, ('val',)) == []


def test_a_resize_to_one_size_may_be_batched(finds, mixed_sizes):
    mixed_sizes.val_dataloader.dataset.pipeline.insert(
        1, dict(type='Resize', scale=(64, 64), keep_ratio=False)
    )
    assert finds(check_batches, mixed_sizes, ('val',)) == []


def test_a_detector_pads_its_batches(finds, detection_cfg, shapes_root, tmp_path):
    root = shutil.copytree(shapes_root, tmp_path / 'own')
    resize_one(root, (96, 64))
    detection_cfg.val_dataloader.dataset.data_root = str(root)
    detection_cfg.val_dataloader.batch_size = 2
    assert finds(check_batches, detection_cfg, ('val',)) == []


def test_data_sets_and_models_are_built_once(segmentation_cfg):
    built = []
    data = ConfiguredData(segmentation_cfg, TRAIN, build_dataset=lambda part: built.append(part))
    data.dataset('train')
    data.dataset('train')
    assert built == ['train']
