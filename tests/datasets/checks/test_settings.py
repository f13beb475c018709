"""Settings of data sets and heads that do not fit together, and checkpoints of other classes."""

import torch

from swinv2_mm.datasets.checks.settings import (
    check_ann_files,
    check_checkpoint_classes,
    check_palettes,
    check_single_classes,
    check_zero_label_steps,
    check_zero_labels,
)

ALL = (
    check_ann_files,
    check_palettes,
    check_zero_label_steps,
    check_zero_labels,
    check_single_classes,
    check_checkpoint_classes,
)


def test_quickstarts_pass(finds, detection_cfg, segmentation_cfg):
    assert finds(ALL, detection_cfg) == finds(ALL, segmentation_cfg) == []


def test_several_annotation_files(finds, detection_cfg):
    detection_cfg.train_dataloader.dataset.ann_file = ['a.json', 'b.json']
    (message,) = finds(check_ann_files, detection_cfg)
    assert 'names 2 files, expected one' in message and 'ConcatDataset' in message


def test_a_short_palette(finds, segmentation_cfg):
    segmentation_cfg.val_dataloader.dataset.metainfo.palette = [[0, 0, 0]]
    (message,) = finds(check_palettes, segmentation_cfg, ('train', 'val'))
    assert 'val_dataloader.dataset.metainfo.palette has 1 colours for 5 classes' in message


def test_zero_labels_that_a_pipeline_or_part_treats_otherwise(finds, segmentation_cfg):
    segmentation_cfg.train_dataloader.dataset.reduce_zero_label = True
    (message,) = finds(check_zero_label_steps, segmentation_cfg)
    assert 'has reduce_zero_label=True, and its pipeline.1 False' in message
    (message,) = finds(check_zero_labels, segmentation_cfg, ('train', 'val'))
    assert 'has reduce_zero_label=True, and val_dataloader.dataset False' in message


def test_a_softmax_over_one_class(finds, segmentation_cfg):
    segmentation_cfg.model.decode_head.num_classes = 1
    (message,) = finds(check_single_classes, segmentation_cfg)
    assert 'model.decode_head has num_classes=1 and a softmax, whose loss is always 0' in message
    segmentation_cfg.model.decode_head.loss_decode = dict(type='CrossEntropyLoss', use_sigmoid=True)
    assert finds(check_single_classes, segmentation_cfg) == []


def test_a_checkpoint_with_the_classes_in_another_order(finds, detection_cfg, tmp_path):
    detection_cfg.load_from = str(tmp_path / 'other.pth')
    for classes, count in (
        (('disc', 'square', 'triangle', 'star'), 0),
        (('star', 'disc', 'square', 'triangle'), 1),
    ):
        torch.save(dict(meta=dict(dataset_meta=dict(classes=classes))), detection_cfg.load_from)
        messages = finds(check_checkpoint_classes, detection_cfg)
        assert len(messages) == count
    assert 'was trained for the classes star, disc, square, triangle, and train_' in messages[0]
