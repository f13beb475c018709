"""The models that `new-config` offers: the shipped parts of their configs, backbones and learning rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmengine.config import Config

from swinv2_mm import shipped

_MASK_RCNN = 'mask_rcnn/mask-rcnn_swinv2-{}_fpn_{}.py'
_BACKBONES = {
    'nano': _MASK_RCNN.format('nano-p4-w8', '1xb4-2k_pennfudan'),
    **{size: _MASK_RCNN.format(f'{size}-p4-w8', '1x_coco') for size in 'tsb'},
    'l': _MASK_RCNN.format('l-p4-w12', '1x_coco'),
}
"""Shipped configs with the backbone of each size, its weights and its number of channels."""
_UPERNET = 'upernet/swinv2-{}.py'
_CLASSIFIER = 'classification/swinv2-{}.py'
_FPN = 'fpn/swinv2-t-p4-w8-in1k-pre_fpn_8xb4-40k_ade20k-512x512.py'


@dataclass(frozen=True)
class Method:
    """A kind of model: what its data are, the parts of its config, and shipped configs with its learning rate."""

    task: str
    bases: tuple[str, ...]
    rates: dict[str, str]


_DETECTION = ('coco_instance', 'default_runtime_det')
_SEGMENTATION = ('ade20k', 'default_runtime_seg')
_DETECTOR_RATES = {'nano': _BACKBONES['nano'], 't': _BACKBONES['t']}
_SEGMENTOR_RATES = {
    'nano': _UPERNET.format('nano-p4-w8_upernet_1xb4-2k_camvid-192x256'),
    't': _UPERNET.format('t-p4-w8-in1k-pre_upernet_8xb2-160k_ade20k-512x512'),
}
METHODS = {
    'mask-rcnn': Method('masks', ('mask-rcnn_swinv2_fpn', *_DETECTION), _DETECTOR_RATES),
    'faster-rcnn': Method('boxes', ('mask-rcnn_swinv2_fpn', *_DETECTION), _DETECTOR_RATES),
    'upernet': Method('semantic', ('upernet_swinv2', *_SEGMENTATION), _SEGMENTOR_RATES),
    'fpn': Method('semantic', ('fpn_swinv2', *_SEGMENTATION), {**_SEGMENTOR_RATES, 't': _FPN}),
    '': Method(
        'classes',
        ('swinv2_classifier', 'imagenet', 'default_runtime_cls'),
        {
            'nano': _CLASSIFIER.format('nano-p4-w8_1xb32-30e_digits'),
            't': _CLASSIFIER.format('t-p4-w8_16xb64-300e_imagenet-256x256'),
        },
    ),
}
SIZES = tuple(_BACKBONES)


def backbone_of(size: str, channels: dict[str, Any]) -> dict[str, Any]:
    """Return what a size changes in the model: the backbone, and the channels of what follows.

    Args:
        size: One of `SIZES`.
        channels: `'all'` or the number of a stage, by the part of the model that has it as `in_channels`.
    """
    shipped_model = Config.fromfile(shipped.config(_BACKBONES[size])).model
    backbone = shipped_model.backbone
    changes: dict[str, Any] = {}
    if size == 'nano':
        if channels:
            arch = {key: value for key, value in backbone.arch.items() if key != '_delete_'}
            changes = dict(arch=dict(_delete_=True, **arch), drop_path_rate=0.0)
    else:
        if size != 't':
            changes = dict(arch=backbone.arch, drop_path_rate=backbone.drop_path_rate)
        if backbone.window_size != 8:
            changes['window_size'] = backbone.window_size
        changes['init_cfg'] = dict(type='Pretrained', checkpoint=Name('checkpoint'))
    model: dict[str, Any] = dict(backbone=changes) if changes else {}
    if size != 't':
        widths = list(shipped_model.neck.in_channels)
        for part, stage in channels.items():
            model[part] = dict(in_channels=widths if stage == 'all' else widths[stage])
    return model


def model_lines(size: str, model: dict[str, Any]) -> list[str]:
    """Return the lines on the model and its pre-trained weights."""
    lines = ['']
    if size == 'nano':
        lines.append('# There are no pre-trained weights of this size: it is trained from scratch.')
    else:
        backbone = Config.fromfile(shipped.config(_BACKBONES[size])).model.backbone
        lines.append('# Official weights, ImageNet; `train --no-pretrained` starts from scratch.')
        lines.append(f'checkpoint = {backbone.init_cfg.checkpoint!r}')
    return [*lines, f'model = {code(model)}']


class Name(str):
    """A name in the text of the config."""


def code(value: Any) -> str:
    """Return a value as OpenMMLab's configs write it."""
    if isinstance(value, Name):
        return str(value)
    if isinstance(value, dict):
        return f'dict({", ".join(f"{key}={code(item)}" for key, item in value.items())})'
    if isinstance(value, list):
        return f'[{", ".join(map(code, value))}]'
    return repr(tuple(value) if isinstance(value, tuple) else value)
