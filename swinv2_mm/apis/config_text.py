"""The text of a config for a data set: the shipped parts that it inherits, and what the data decide."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from yapf.yapflib.yapf_api import FormatCode

from swinv2_mm import shipped
from swinv2_mm.apis import choices
from swinv2_mm.apis.choices import METHODS, Choice, Name, backbone_of, code, model_lines
from swinv2_mm.apis.results import categories_of


@dataclass
class Data:
    """What a config says of its data.

    Attributes:
        parts: Arguments of the data sets for training, validation and test.
        images: Number of training images.
        sizes: `(n, 2)` widths and heights of training images.
        boxes: `(m, 2)` widths and heights of training objects.
        of_boxes: Rows of their images in `sizes`.
        background: Number of training images without objects.
        bands: Mean and standard deviation of each band, if the images are not ordinary ones.
    """

    root: Path
    classes: list[str]
    parts: dict[str, dict[str, Any]]
    images: int
    sizes: np.ndarray
    boxes: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))
    of_boxes: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    background: int = 0
    bands: tuple[list[float], list[float]] | None = None


def write_text(method_name: str, size: str, data: Data, title: str) -> str:
    """Return the text of the config of a model for data that fit it, with a comment at the top."""
    method = METHODS[method_name]
    nano = size == 'nano'
    rate = Config.fromfile(shipped.config(method.rates['nano' if nano else 't']))
    head = [f'# {line}' for line in title.splitlines()]
    model, dataset, runtime = method.bases
    if nano and method.task in ('masks', 'boxes'):
        model = model.replace('swinv2', 'swinv2-nano')
    bases = (f'models/{model}', f'datasets/{dataset}', 'schedules/adamw', runtime)
    names = ', '.join(f"'_base_/{name}.py'" for name in bases)
    head += [
        '',
        '# Parts of the configs that come with the package, wherever it is installed.',
        f"_base_ = __import__('swinv2_mm.shipped').shipped.configs({names})",
        '',
        f'data_root = {str(data.root)!r}',
        f'classes = {tuple(data.classes)!r}',
    ]
    make = dict(masks=_detector, boxes=_detector, semantic=_segmentor, classes=_classifier)
    body, batch, best = make[method.task](method_name, size, data)
    schedule = _schedule(data.images, batch, rate, best)
    style = dict(
        based_on_style='facebook', column_limit=100, blank_lines_around_top_level_definition=1
    )
    return str(FormatCode('\n'.join([*head, *body, *schedule, '']), style_config=style)[0])


def _detector(method_name: str, size: str, data: Data) -> tuple[list[str], int, str]:
    """Return the lines on model and data of a detector, its batch size and the metric of its best checkpoint."""
    masks = method_name == 'mask-rcnn'
    scale = choices.choose_scale(data.sizes, data.boxes, 0.5 if size == 'nano' else 1.0)
    batch = choices.choose_batch(float(np.prod(scale.value)), 'instances', data.images)
    anchors = choices.choose_anchors(data.boxes, data.sizes[data.of_boxes], scale.value)
    count = len(data.classes)
    roi: dict[str, Any] = dict(bbox_head=dict(num_classes=count))
    roi |= dict(mask_head=dict(num_classes=count) if masks else None)
    model: dict[str, Any] = dict(
        backbone_of(size, {} if size == 'nano' else dict(neck='all')), roi_head=roi
    )
    if not masks:
        roi['mask_roi_extractor'] = None
        model['type'], model['data_preprocessor'] = 'FasterRCNN', dict(pad_mask=False)
    lines = []
    if anchors:
        generator = dict(scales=list(anchors.value[0]), ratios=list(anchors.value[1]))
        lines = [f'# {anchors.reason}', f'anchors = {code(generator)}']
        model['rpn_head'] = dict(anchor_generator=Name('anchors'))
    lines += _band_lines(data, model)
    lines += model_lines(size, model)
    lines += ['', f'# {scale.reason}', f'scale = {scale.value}', *_batch_lines(batch)]
    load = dict(type='LoadAnnotations', with_bbox=True, with_mask=masks)
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    pipelines = (
        [
            _load(data),
            load,
            dict(type='RandomResize', scale=Name('scale'), ratio_range=(0.8, 1.2), keep_ratio=True),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackDetInputs'),
        ],
        [
            _load(data),
            dict(type='Resize', scale=Name('scale'), keep_ratio=True),
            load,
            dict(type='PackDetInputs', meta_keys=keys),
        ],
    )
    # The default palette has the 80 colours of COCO.
    palette = dict(palette='random') if count > 80 else {}
    metainfo = dict(classes=Name('classes'), **palette)
    extra: dict[str, Any] = dict(sampler=dict(type='InfiniteSampler'))
    if data.background:
        lines.append(
            f'# {data.background} images without objects stay in the training as background.'
        )
        extra['dataset'] = dict(filter_cfg=dict(filter_empty_gt=False))
    lines += _loader_lines(data, pipelines, dict(metainfo=metainfo), extra)
    metric = ['bbox', 'segm'] if masks else ['bbox']
    for part in ('val', 'test'):
        file = data.parts[part]['ann_file']
        file = Name(repr(file)) if Path(file).is_absolute() else Name(f'data_root + {"/" + file!r}')
        same = part == 'test' and data.parts['test'] == data.parts['val']
        value = 'val_evaluator' if same else code(dict(ann_file=file, metric=metric))
        lines.append(f'{part}_evaluator = {value}')
    return lines, batch.value, 'coco/segm_mAP' if masks else 'coco/bbox_mAP'


def _segmentor(method_name: str, size: str, data: Data) -> tuple[list[str], int, str]:
    """Do the same for a segmentor."""
    limit = 256 if size == 'nano' else 512
    scale = choices.choose_scale(data.sizes, None, 0.5 if size == 'nano' else 1.28)
    crop = choices.choose_crop(scale.value, limit)
    batch = choices.choose_batch(float(np.prod(crop.value)), 'semantic', data.images)
    count = dict(num_classes=len(data.classes))
    channels = (
        dict(decode_head='all', auxiliary_head=2) if method_name == 'upernet' else dict(neck='all')
    )
    model = backbone_of(size, channels)
    heads = ('decode_head', 'auxiliary_head') if method_name == 'upernet' else ('decode_head',)
    for head in heads:
        model[head] = {**model.get(head, {}), **count}
    if size == 'nano' and method_name == 'upernet':
        model['decode_head']['channels'], model['auxiliary_head']['channels'] = 64, 32
    model = dict(data_preprocessor=dict(size=Name('crop_size')), **model)
    lines = ['', f'# {scale.reason}', f'scale = {scale.value}']
    lines += [f'# {crop.reason}', f'crop_size = {crop.value}']
    lines += [*_batch_lines(batch), *_band_lines(data, model), *model_lines(size, model)]
    pipelines = (
        [
            _load(data),
            dict(type='LoadAnnotations'),
            dict(type='RandomResize', scale=Name('scale'), ratio_range=(0.5, 2.0), keep_ratio=True),
            dict(type='RandomCrop', crop_size=Name('crop_size'), cat_max_ratio=0.75),
            dict(type='RandomFlip', prob=0.5),
            *([] if data.bands else [dict(type='PhotoMetricDistortion')]),
            dict(type='PackSegInputs'),
        ],
        [
            _load(data),
            dict(type='Resize', scale=Name('scale'), keep_ratio=True),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
    )
    metainfo: dict[str, Any] = dict(classes=Name('classes'))
    if count['num_classes'] <= 20:  # otherwise MMSegmentation draws colours by chance
        colours = categories_of({'classes': data.classes}).colours
        metainfo['palette'] = [list(colour) for colour in colours]
    common = dict(type='BaseSegDataset', metainfo=metainfo, reduce_zero_label=False)
    return lines + _loader_lines(data, pipelines, common, {}), batch.value, 'mIoU'


def _load(data: Data) -> Any:
    """Return the transform that loads images."""
    return Name('load') if data.bands else dict(type='LoadImageFromFile')


def _band_lines(data: Data, model: dict[str, Any]) -> list[str]:
    """Return the lines on the bands of images that are not ordinary ones, and set the model up for them."""
    if data.bands is None:
        return []
    mean, std = ([float(f'{value:.6g}') for value in values] for values in data.bands)
    shown = [0, 1, 2] if len(mean) >= 3 else [0]
    load = dict(type='swinv2_mm.LoadMultibandImage', mean=mean, std=std, show=shown)
    plain = dict(mean=None, std=None, bgr_to_rgb=False)
    model['data_preprocessor'] = {**model.get('data_preprocessor', {}), **plain}
    model['backbone'] = {**model.get('backbone', {}), 'in_channels': len(mean)}
    reason = f'Mean and standard deviation of the {len(mean)} bands of the training images; `show`: bands of pictures.'
    return ['', f'# {reason}', f'load = {code(load)}']


def _classifier(method_name: str, size: str, data: Data) -> tuple[list[str], int, str]:
    """Do the same for a classifier."""
    side = float(np.median(data.sizes.min(axis=1)))
    pixels = next(value for value in (256, 128, 64, 32) if side >= 0.6 * value or value == 32)
    batch = Choice(min(32, max(4, data.images // 8)), 'Small sets need many steps.')
    model = backbone_of(size, dict(head=3))
    count = len(data.classes)
    model['head'] = {**model.get('head', {}), 'num_classes': count}
    model = dict(data_preprocessor=dict(num_classes=count), **model, train_cfg=None)
    reason = f'Half of the images have a shorter side above {side:.0f} pixels.'
    lines = ['', f'# {reason}', f'size = {pixels}', *_batch_lines(batch)]
    lines += ['# `train_cfg=None`: mixed images (Mixup, CutMix) need long schedules.']
    lines += model_lines(size, model)
    interpolation = dict(backend='pillow', interpolation='bicubic')
    shape = dict(scale=Name('size'), **interpolation)
    pipelines = (
        [
            _load(data),
            dict(type='RandomResizedCrop', crop_ratio_range=(0.35, 1.0), **shape),
            Name('*_base_.train_pipeline[2:]'),
        ],
        [
            _load(data),
            dict(type='ResizeEdge', scale=round(pixels / 0.875), edge='short', **interpolation),
            dict(type='CenterCrop', crop_size=Name('size')),
            dict(type='PackInputs'),
        ],
    )
    common = dict(_delete_=True, type='CustomDataset', metainfo=dict(classes=Name('classes')))
    extra = dict(sampler=dict(type='InfiniteSampler'))
    lines += _loader_lines(data, pipelines, common, extra)
    topk = (1, 5) if count > 5 else (1,)
    lines += [f'val_evaluator = dict(topk={topk})', 'test_evaluator = val_evaluator']
    return lines, batch.value, 'accuracy/top1'


def _batch_lines(batch: Choice) -> list[str]:
    return [f'# {batch.reason}', f'batch_size = {batch.value}']


def _loader_lines(
    data: Data, pipelines: tuple[Any, Any], common: dict[str, Any], extra: dict[str, Any]
) -> list[str]:
    """Return the lines on pipelines and data loaders."""
    workers = max(1, min(4, (os.cpu_count() or 1) // 2))
    lines = ['']
    for name, pipeline in zip(('train', 'test'), pipelines):
        lines.append(f'{name}_pipeline = {code(pipeline)}')
    for part in ('train', 'val', 'test'):
        if part == 'test' and data.parts['test'] == data.parts['val']:
            lines.append('test_dataloader = val_dataloader')
            continue
        dataset = dict(common, data_root=Name('data_root'), **data.parts[part])
        if part != 'train' and common.get('_delete_'):
            dataset['test_mode'] = True
        more = extra if part == 'train' else {}
        dataset |= more.get('dataset', {})
        dataset['pipeline'] = Name('train_pipeline' if part == 'train' else 'test_pipeline')
        loader: dict[str, Any] = dict(batch_size=Name('batch_size')) if part == 'train' else {}
        if common.get('_delete_') and part != 'train':
            loader['batch_size'] = Name('batch_size')
        loader |= dict(num_workers=workers) | {k: v for k, v in more.items() if k != 'dataset'}
        lines.append(f'{part}_dataloader = {code(dict(loader, dataset=dataset))}')
    return lines


def _schedule(images: int, batch: int, shipped_config: Config, best: str) -> list[str]:
    """Return the lines on the schedule."""
    length = choices.choose_length(images, batch)
    of_batch = shipped_config.auto_scale_lr.base_batch_size
    rate = choices.choose_rate(shipped_config.optim_wrapper.optimizer.lr, of_batch, batch)
    iters = length.value
    interval, warmup = iters // 10, min(500, iters // 10)
    decay = shipped_config.optim_wrapper.optimizer.weight_decay
    text = _SCHEDULE.format(
        length=length.reason,
        iters=iters,
        interval=interval,
        rate=rate.reason,
        optimizer=code(dict(lr=rate.value, weight_decay=decay)),
        warmup=warmup,
        log=min(50, iters // 100),
        best=best,
        batch=batch,
    )
    return text.splitlines()


_SCHEDULE = """
# {length}
max_iters = {iters}
val_interval = {interval}
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=val_interval)
# {rate}
optim_wrapper = dict(optimizer={optimizer}, clip_grad=dict(max_norm=10.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end={warmup}),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin={warmup}, end=max_iters),
]
default_hooks = dict(
    logger=dict(interval={log}, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=val_interval, save_best='{best}'),
)
log_processor = dict(by_epoch=False)
auto_scale_lr = dict(enable=False, base_batch_size={batch})
"""
