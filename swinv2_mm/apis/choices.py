"""What `new-config` chooses: image scale, batch size, schedule and anchors for a data set, and the offered models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config

from swinv2_mm import shipped
from swinv2_mm.engine.devices import available_devices

_STRIDES = np.array([4, 8, 16, 32, 64])
_ANCHORS = (
    ((8,), (0.5, 1.0, 2.0)),  # the default
    ((4,), (0.5, 1.0, 2.0)),
    ((2,), (0.5, 1.0, 2.0)),
    ((8,), (0.25, 0.5, 1.0, 2.0, 4.0)),
    ((4, 8), (0.5, 1.0, 2.0)),
    ((4,), (0.25, 0.5, 1.0, 2.0, 4.0)),
    ((2, 8), (0.25, 0.5, 1.0, 2.0, 4.0)),
    ((2, 4, 8, 16), (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0)),
)
"""Scales and ratios of anchors, the fewest first."""
_COVERED, _ENOUGH = 0.5, 0.9
_LARGEST = (1333, 800)
_SMALL_OBJECT = 32
_PIXELS = {'instances': 2.2e6, 'semantic': 1.1e6}
"""Pixels of a batch that a GPU of 16 GB holds with the tiny model."""


class Choice(NamedTuple):
    """A setting and the reason for it."""

    value: Any
    reason: str


def choose_scale(sizes: np.ndarray, boxes: np.ndarray | None, limit: float = 1.0) -> Choice:
    """Return the longer and the shorter side that images are resized to, multiples of 32.

    Images and objects are given as `(n, 2)` widths and heights; `limit` is a factor on the largest scale, 1333 x 800.
    """
    long, short = np.median(np.sort(sizes, axis=1), axis=0)[::-1]
    largest = min(_LARGEST[0] * limit / long, _LARGEST[1] * limit / short)
    factor = min(1.0, largest)
    images = f'The median size of the images is {long:.0f} x {short:.0f}'
    reason = f'{images}.' if factor == 1 else f'{images}, which is reduced to save time and memory.'
    if boxes is not None and len(boxes):
        side = float(np.percentile(np.sqrt(boxes.prod(axis=1)), 25))
        wanted = min(_SMALL_OBJECT / side, 2.0, 1.5 * largest)
        if wanted > factor:
            factor = wanted
            small = f'a quarter of the objects is smaller than {side:.0f} x {side:.0f} pixels'
            reason = f'{images}; enlarged, because {small}.'
    sides = [max(64, 32 * math.ceil(value * factor / 32 - 0.25)) for value in (long, short)]
    return Choice(
        tuple(sides), f'{reason} Sides are multiples of 32, the stride of the last stage.'
    )


def choose_crop(scale: tuple[float, ...], limit: int) -> Choice:
    """Return height and width of the crops that a segmentor is trained on, multiples of 32."""
    crop = tuple(min(limit, int(side)) for side in (scale[1], scale[0]))
    return Choice(crop, f'Height and width of the training crops, at most {limit}.')


def choose_batch(pixels: float, task: str, images: int) -> Choice:
    """Return the batch size, a power of two from 2 to 8, as memory allows and images are there; 2 without a GPU."""
    if available_devices() == ['cpu']:
        return Choice(2, 'No GPU here. With one: from 2 to 8, as its memory allows.')
    count = min(_PIXELS[task] / pixels, 8, max(2, images))
    batch = max(2, 2 ** int(math.log2(count)))
    return Choice(batch, 'As many as 16 GB of a GPU hold with the tiny model.')


def choose_rate(rate: float, of_batch: int, batch: int) -> Choice:
    """Return the learning rate: the shipped one, scaled with the square root of the batch size, as suits AdamW."""
    scaled = float(f'{rate * math.sqrt(batch / of_batch):.1e}')
    return Choice(
        scaled, f'{rate:g} at batch {of_batch}, scaled with the square root of the batch size.'
    )


def choose_length(images: int, batch: int) -> Choice:
    """Return the number of iterations: 12 epochs of a large set, more of a small one."""
    seen = max(12 * images, min(24000, 300 * images))
    iters = max(1000, math.ceil(seen / batch / 100) * 100)
    epochs = iters * batch / images
    return Choice(iters, f'{images} images, {epochs:.0f} epochs.')


def choose_anchors(boxes: np.ndarray, sizes: np.ndarray, scale: tuple[float, ...]) -> Choice | None:
    """Return scales and ratios of anchors that meet nine of ten objects, None if the default does.

    Each object has its row in `boxes` and the size of its image in `sizes`; `scale` is that of the training.
    """
    ordered = np.sort(sizes, axis=1)[:, ::-1]
    scaled = boxes * np.min(np.array(scale) / ordered, axis=1, keepdims=True)
    shares = [_coverage(scaled, *anchors) for anchors in _ANCHORS]
    best = next((i for i, share in enumerate(shares) if share >= _ENOUGH), int(np.argmax(shares)))
    if best == 0:
        return None
    reason = f'Anchors that overlap {shares[best]:.0%} of the objects by half, the default {shares[0]:.0%}.'
    return Choice(_ANCHORS[best], reason)


def _coverage(boxes: np.ndarray, scales: tuple[float, ...], ratios: tuple[float, ...]) -> float:
    """Return the share of boxes with an anchor of an IoU of at least a half at the same centre."""
    sides = np.multiply.outer(_STRIDES, scales).ravel()[:, None]
    roots = np.sqrt(np.array(ratios))
    anchors = np.stack([sides / roots, sides * roots], axis=-1).reshape(-1, 2)
    common = np.minimum(boxes[:, None], anchors).prod(axis=-1)
    union = boxes.prod(axis=1)[:, None] + anchors.prod(axis=1) - common
    return float(((common / union).max(axis=1) >= _COVERED).mean())


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
    """Return what a size changes in the model: the backbone, and `in_channels` of what follows.

    `channels` has `'all'` or the number of a stage by the part of the model.
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
