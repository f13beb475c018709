"""Stock configs of MMDetection and MMSegmentation with this backbone: each fits, or is told what to write."""

import copy
import re
from pathlib import Path

import mmdet
import mmseg
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from swinv2_mm.datasets.checks import ConfiguredData
from swinv2_mm.datasets.checks.model import MEAN, STD, check_model

ARCH = dict(embed_dims=96, depths=[1, 1, 1, 1], num_heads=[3, 6, 12, 24])
LINE = re.compile(r'(model\.[\w.]+)=(\(.*?\)|\[.*?\]|dict\(.*\)|\d+)(?: and |\.$)')
ALL, FROM_8 = [96, 192, 384, 768], [192, 384, 768]
# Config, what the backbone's stages must be, and `in_channels` of what follows it.
HEADS = {
    'mmdet': [
        ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', (0, 1, 2, 3), ALL),
        ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', (0, 1, 2, 3), ALL),
        ('cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py', (0, 1, 2, 3), ALL),
        ('htc/htc-without-semantic_r50_fpn_1x_coco.py', (0, 1, 2, 3), ALL),
        ('retinanet/retinanet_r50_fpn_1x_coco.py', (1, 2, 3), FROM_8),
        ('atss/atss_r50_fpn_1x_coco.py', (1, 2, 3), FROM_8),
        ('dyhead/atss_r50_fpn_dyhead_1x_coco.py', (1, 2, 3), FROM_8),
        ('tood/tood_r50_fpn_1x_coco.py', (1, 2, 3), FROM_8),
        ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', (1, 2, 3), FROM_8),
        ('rtmdet/rtmdet_s_8xb32-300e_coco.py', (1, 2, 3), FROM_8),
        ('yolox/yolox_s_8xb8-300e_coco.py', (1, 2, 3), FROM_8),
        ('dino/dino-4scale_r50_8xb2-12e_coco.py', (1, 2, 3), FROM_8),
        ('deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', (1, 2, 3), FROM_8),
        ('detr/detr_r50_8xb2-150e_coco.py', (3,), [768]),
        ('sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py', (0, 1, 2, 3), ALL),
        ('mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', (0, 1, 2, 3), ALL),
        ('yolof/yolof_r50-c5_8xb8-1x_coco.py', (0, 1, 2, 3), 768),
        ('yolact/yolact_r50_1xb8-55e_coco.py', (1, 2, 3), FROM_8),
        ('yolo/yolov3_d53_8xb8-320-273e_coco.py', (1, 2, 3), FROM_8[::-1]),
    ],
    'mmseg': [
        ('upernet/upernet_r50_4xb4-160k_ade20k-512x512.py', (0, 1, 2, 3), ALL),
        ('sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py', (0, 1, 2, 3), ALL),
        ('segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', (0, 1, 2, 3), ALL),
        ('mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py', (0, 1, 2, 3), ALL),
        ('pspnet/pspnet_r50-d8_4xb4-160k_ade20k-512x512.py', (0, 1, 2, 3), 768),
        ('deeplabv3plus/deeplabv3plus_r50-d8_4xb4-160k_ade20k-512x512.py', (0, 1, 2, 3), 768),
        ('knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512.py', (0, 1, 2, 3), ALL),
        ('erfnet/erfnet_fcn_4xb4-160k_cityscapes-512x1024.py', (0, 1, 2, 3), 768),
    ],
}
OFTEN = re.compile('^(faster|dyhead|fcos|rtmdet|dino|yolo|mask2former/.*coco|upernet|deeplab|knet)')
"""One of each kind runs always, the others with the long tests."""


def stock(scope, name):
    """Return a stock config with this backbone in place of its own, as README has it."""
    library = dict(mmdet=mmdet, mmseg=mmseg)[scope]
    cfg = Config.fromfile(Path(library.__file__).parent / '.mim/configs' / name)
    cfg.model.pop('pretrained', None)
    cfg.model.backbone = dict(type='swinv2_mm.SwinTransformerV2', arch=ARCH, window_size=8)
    return cfg


def findings(cfg):
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return list(check_model(ConfiguredData(cfg, ())))


def write(cfg, found):
    """Write the lines that the findings name."""
    for key, value in LINE.findall(found.remedy):
        value = eval(value)
        if isinstance(value, dict):
            value = {**cfg.model.data_preprocessor, **value}
        cfg.merge_from_dict({key: value})


@pytest.mark.parametrize(
    ('scope', 'name', 'indices', 'channels'),
    [
        pytest.param(
            scope, *case, id=case[0], marks=[] if OFTEN.search(case[0]) else pytest.mark.long
        )
        for scope in HEADS
        for case in HEADS[scope]
    ],
)
def test_what_a_finding_says_makes_the_stock_config_fit(scope, name, indices, channels):
    cfg = stock(scope, name)
    errors = [found for found in findings(cfg) if found.severity == 'error']
    assert errors and all(LINE.search(found.remedy) for found in errors)
    for found in errors:
        write(cfg, found)
    assert not [str(found) for found in findings(cfg) if found.severity == 'error']
    assert tuple(cfg.model.backbone.get('out_indices', (0, 1, 2, 3))) == indices
    part = cfg.model.get('neck') or cfg.model.get('decode_head') or cfg.model.panoptic_head
    part = part[0] if isinstance(part, list) else part
    assert part.get('kernel_generate_head', part).in_channels == channels
    with DefaultScope.overwrite_default_scope(scope), torch.no_grad():
        model = MODELS.build(copy.deepcopy(cfg.model)).eval()
        assert model.extract_feat(torch.zeros(1, 3, 64, 96))


@pytest.mark.parametrize(
    ('name', 'options', 'severity', 'line'),
    [
        ('rtmdet/rtmdet_s_8xb32-300e_coco.py', dict(out_indices=(0, 1, 2)), 'error', 'backbone.out_indices=(1, 2, 3)'),
        ('retinanet/retinanet_r50_fpn_1x_coco.py', dict(out_indices=(1, 2, 3)), 'error', 'neck.start_level=0'),
        ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', dict(out_indices=(1, 2, 3)), 'error', '=(0, 1, 2, 3)'),
        ('dino/dino-4scale_r50_8xb2-12e_coco.py', {}, 'warning', 'backbone.out_indices=(1, 2, 3)'),
    ],
)  # fmt: skip
def test_maps_of_other_strides_than_the_head_is_built_for(name, options, severity, line):
    """The channels are those of the maps, so nothing else would notice."""
    cfg = stock('mmdet', name)
    cfg.model.backbone.update(options)
    cfg.model.neck.in_channels = [ALL[index] for index in options.get('out_indices', range(4))]
    (found,) = findings(cfg)
    assert found.severity == severity and 'strides' in found.sentence
    assert line in found.remedy
    write(cfg, found)
    assert not findings(cfg)


@pytest.mark.parametrize(
    ('name', 'indices', 'line'),
    [
        ('retinanet/retinanet_r50_fpn_1x_coco.py', (0, 1, 2, 3), '(1, 2, 3)'),
        ('detr/detr_r50_8xb2-150e_coco.py', (0, 1, 2, 3), '(3,)'),
        ('yolof/yolof_r50-c5_8xb8-1x_coco.py', (0, 1, 2, 3), '(3,)'),
    ],
)
def test_maps_that_a_neck_does_not_take(name, indices, line, monkeypatch):
    cfg = stock('mmdet', name)
    channels = 768 if 'yolof' in name else ALL
    cfg.model.neck.in_channels = channels
    cfg.model.data_preprocessor.update(mean=list(MEAN), std=list(STD), bgr_to_rgb=True)
    (found,) = findings(cfg)
    assert found.severity == 'warning' and f'out_indices={line}' in found.remedy
    monkeypatch.setattr('swinv2_mm.datasets.checks.model.get_world_size', lambda: 2)
    assert [one.severity for one in findings(cfg)] == ['error']
    cfg.find_unused_parameters = True
    assert not findings(cfg)
    cfg.pop('find_unused_parameters')
    write(cfg, found)
    assert not findings(cfg)


def test_heads_that_choose_another_number_of_maps():
    cfg = stock('mmseg', 'ann/ann_r50-d8_4xb2-40k_cityscapes-512x1024.py')
    cfg.model.decode_head.in_channels = ALL
    (found,) = findings(cfg)
    assert 'in_index=[2, 3] chooses 2 maps' in found.sentence


def test_images_in_another_order_of_channels_than_the_weights():
    cfg = stock('mmdet', 'rtmdet/rtmdet_s_8xb32-300e_coco.py')
    cfg.model.backbone.update(out_indices=(1, 2, 3))
    cfg.model.neck.in_channels = FROM_8
    assert not findings(cfg)  # from scratch any order is right
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='swinv2.pth')
    (found,) = findings(cfg)
    assert found.severity == 'error' and 'RGB' in found.sentence
    write(cfg, found)
    assert not findings(cfg)
    cfg.model.data_preprocessor.std = [1.0, 57.0, 57.0]
    (found,) = findings(cfg)
    assert found.severity == 'warning'


def test_maps_that_no_head_takes():
    cfg = stock('mmseg', 'pspnet/pspnet_r50-d8_4xb4-160k_ade20k-512x512.py')
    found = [found for found in findings(cfg) if found.severity == 'warning']
    assert 'out_indices=(2, 3)' in found[0].remedy


def test_several_channels_for_one_map():
    """README's lines are for UperNet, which takes all maps."""
    cfg = stock('mmseg', 'pspnet/pspnet_r50-d8_4xb4-160k_ade20k-512x512.py')
    cfg.merge_from_dict(
        {'model.decode_head.in_channels': ALL, 'model.auxiliary_head.in_channels': 384}
    )
    (found,) = findings(cfg)
    assert found.severity == 'error' and 'model.decode_head.in_channels=768' in found.remedy
    write(cfg, found)
    assert not [found for found in findings(cfg) if found.severity == 'error']


@pytest.mark.parametrize(
    ('scope', 'name', 'place', 'reason'),
    [
        ('mmseg', 'beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py', 'neck', '768 channels'),
        ('mmseg', 'setr/setr_vit-l-mla_8xb1-160k_ade20k-512x512.py', 'neck', 'must match'),
        ('mmseg', 'dpt/dpt_vit-b16_8xb2-160k_ade20k-512x512.py', 'decode_head', 'AssertionError'),
        ('mmdet', 'rpn/rpn_r50-caffe-c4_1x_coco.py', 'bbox_head', '1024 channels'),
    ],
)
def test_a_part_that_takes_other_maps_is_named(scope, name, place, reason):
    """Parts for other backbones, whose arguments do not tell which maps they take."""
    cfg = stock(scope, name)
    for _ in range(2):
        errors = [found for found in findings(cfg) if found.severity == 'error']
        for found in errors:
            write(cfg, found)
    (found,) = errors
    assert found.sentence.startswith(f'model.{place} cannot take the maps of the backbone, 96 ')
    assert reason in found.sentence
