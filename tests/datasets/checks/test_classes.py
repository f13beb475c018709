"""Heads, data set and annotation file must agree on the classes."""

from mmengine.config import Config

from swinv2_mm.datasets.checks.classes import (
    check_categories,
    check_heads,
    check_metainfo,
)

ALL = (check_metainfo, check_categories, check_heads)
TRAIN = ('train',)


def test_quickstarts_agree_with_the_generated_set(finds, detection_cfg, segmentation_cfg):
    assert finds(ALL, detection_cfg) == finds(ALL, segmentation_cfg) == []


def test_a_head_for_another_number_of_classes_is_named_once(finds, detection_cfg):
    detection_cfg.model.roi_head.mask_head.num_classes = 80
    (message,) = finds(ALL, detection_cfg)
    assert message.startswith(
        'error: model.roi_head.mask_head.num_classes is 80, and train_dataloader.dataset'
    )
    assert 'has 4 classes (disc, square, triangle, star). Set num_classes=4' in message


def test_a_segmentation_head_for_another_number_of_classes(finds, segmentation_cfg):
    segmentation_cfg.model.decode_head.num_classes = 150
    (message,) = finds(ALL, segmentation_cfg, TRAIN)
    assert 'model.decode_head.num_classes is 150, ' in message and 'has 5 classes' in message


def test_own_annotations_with_the_classes_of_coco(finds, detection_cfg):
    del detection_cfg.train_dataloader.dataset.metainfo
    detection_cfg.model.roi_head.bbox_head.num_classes = 80
    detection_cfg.model.roi_head.mask_head.num_classes = 80
    (message,) = finds(ALL, detection_cfg, TRAIN)
    assert 'has 80 classes, and 80 of them are not among the 4 categories' in message
    assert (
        "metainfo=dict(classes=('disc', 'square', 'triangle', 'star')) and num_classes=4" in message
    )


def test_classes_in_another_order_than_the_file(finds, detection_cfg):
    detection_cfg.train_dataloader.dataset.metainfo.classes = ('star', 'triangle', 'square', 'disc')
    (message,) = finds(ALL, detection_cfg, TRAIN)
    assert 'names would be swapped' in message


def test_some_of_the_categories_may_be_left_out(finds, detection_cfg):
    detection_cfg.train_dataloader.dataset.metainfo.classes = ('disc', 'star')
    detection_cfg.model.roi_head.bbox_head.num_classes = 2
    detection_cfg.model.roi_head.mask_head.num_classes = 2
    assert finds(ALL, detection_cfg, TRAIN) == []


def test_a_single_class_without_its_comma(finds, detection_cfg):
    detection_cfg.train_dataloader.dataset.metainfo.classes = 'disc'
    (message,) = finds(check_metainfo, detection_cfg, TRAIN)
    assert "the string 'disc', expected a tuple" in message


def test_heads_that_count_something_else_are_left_alone(finds, detection_cfg):
    detection_cfg.model.rpn_head.num_classes = 1
    assert finds(ALL, detection_cfg, TRAIN) == []


def test_classes_of_a_stock_data_set_come_from_its_code(finds, segmentation_cfg):
    segmentation_cfg.train_dataloader.dataset = Config(dict(type='ADE20KDataset'))
    (message,) = finds(ALL, segmentation_cfg, TRAIN)
    assert 'ADE20KDataset' in message and 'has 150 classes' in message
