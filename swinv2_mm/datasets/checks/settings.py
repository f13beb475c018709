"""Settings of data sets, heads and data loaders that do not fit together, and checkpoints of other classes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.registry import FUNCTIONS, MODELS, DefaultScope
from PIL import Image
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from swinv2_mm.checkpoints import CheckpointError, read_checkpoint_file
from swinv2_mm.datasets.checks.classes import configured_classes, listed
from swinv2_mm.datasets.checks.configured import ConfiguredData, as_list, kind_of
from swinv2_mm.datasets.checks.finding import Finding, error
from swinv2_mm.datasets.checks.read_files import data_info
from swinv2_mm.datasets.checks.samples import prepare, spread, untouched_randomness

_MOST_HEADERS = 5000
"""Images whose size is read from their headers."""
_MOST_SIZES = 32
"""Images that go through the pipeline to see whether they can be stacked."""


def check_ann_files(data: ConfiguredData) -> Iterator[Finding]:
    """Find data sets that name several annotation files, of which mmengine joins none."""
    for leaf in data.leaves():
        files = leaf.cfg.get('ann_file')
        if isinstance(files, (list, tuple)):
            sentence = f'{leaf.place}.ann_file names {len(files)} files, expected one.'
            remedy = "Set dataset=dict(type='ConcatDataset', datasets=[dict(..., ann_file='a.json'), ...])."
            yield error(leaf.place, sentence, remedy)


def check_palettes(data: ConfiguredData) -> Iterator[Finding]:
    """Find palettes with another number of colours than classes."""
    for leaf in data.leaves():
        palette = (leaf.cfg.get('metainfo') or {}).get('palette')
        classes = configured_classes(data, leaf)
        if palette and classes and len(palette) < len(classes):
            sentence = f'{leaf.place}.metainfo.palette has {len(palette)} colours for {len(classes)} classes.'
            remedy = 'Add colours, or leave the palette out for one that is made up.'
            yield error(leaf.place, sentence, remedy)


def check_zero_label_steps(data: ConfiguredData) -> Iterator[Finding]:
    """Find pipelines that disagree with their data set on `reduce_zero_label`."""
    for leaf in data.leaves() if data.scope == 'mmseg' else ():
        reduce = bool(data.setting(leaf, 'reduce_zero_label'))
        for index, step in enumerate(leaf.cfg.get('pipeline') or ()):
            own = step.get('reduce_zero_label') if isinstance(step, Mapping) else None
            if own is not None and bool(own) is not reduce:
                sentence = (
                    f'{leaf.place} has reduce_zero_label={reduce}, and its pipeline.{index} {own}.'
                )
                remedy = 'Leave it out of the pipeline.'
                yield error(leaf.place, sentence, remedy)


def check_zero_labels(data: ConfiguredData) -> Iterator[Finding]:
    """Find parts that disagree on `reduce_zero_label`."""
    first: tuple[str, bool] | None = None
    for leaf in data.leaves() if data.scope == 'mmseg' else ():
        reduce = bool(data.setting(leaf, 'reduce_zero_label'))
        first = first or (leaf.place, reduce)
        if reduce is not first[1]:
            yield error(
                leaf.place,
                f'{first[0]} has reduce_zero_label={first[1]}, and {leaf.place} {reduce}: labels would not agree.',
                'Set the same in all data sets.',
            )


def check_single_classes(data: ConfiguredData) -> Iterator[Finding]:
    """Find segmentation heads with a softmax over one class, whose loss is always 0."""
    if data.scope != 'mmseg' or 'train' not in data.parts:
        return
    for name in ('decode_head', 'auxiliary_head'):
        for head in as_list(data.cfg.model.get(name)):
            softmax = any(
                loss.get('type', 'CrossEntropyLoss') == 'CrossEntropyLoss'
                and not loss.get('use_sigmoid')
                for loss in as_list(head.get('loss_decode') or {'type': 'CrossEntropyLoss'})
            )
            if head.get('num_classes') == 1 and softmax:
                sentence = f'model.{name} has num_classes=1 and a softmax, whose loss is always 0.'
                remedy = 'Set num_classes=2 with the background as the first class, or use_sigmoid=True in loss_decode.'
                yield error(f'model.{name}', sentence, remedy)


def check_checkpoint_classes(data: ConfiguredData) -> Iterator[Finding]:
    """Find a checkpoint whose classes have other names or another order than those of the config."""
    path = data.cfg.get('load_from')
    if not isinstance(path, str) or not Path(path).is_file():
        return
    try:
        meta = read_checkpoint_file(path, mmap=True).get('meta')
    except (CheckpointError, AttributeError, OSError):
        return  # loading it says what is wrong with it
    of_checkpoint = (meta.get('dataset_meta') or {}) if isinstance(meta, Mapping) else {}
    theirs = [str(name) for name in of_checkpoint.get('classes') or ()]
    for leaf in data.leaves():
        ours = [str(name) for name in configured_classes(data, leaf) or ()]
        if theirs and len(theirs) == len(ours) and theirs != ours:
            yield Finding(
                'warning',
                path,
                f'The checkpoint {path} was trained for the classes {listed(theirs)}, and {leaf} has {listed(ours)}.',
                'Weights of the heads belong to the classes of the checkpoint, in its order.',
            )
            return


def check_loaders(data: ConfiguredData) -> Iterator[Finding]:
    """Find batch sizes below one, and an endless sampler in a training by epochs."""
    for part in data.parts:
        place, size = f'{part}_dataloader', data.loader(part).get('batch_size', 1)
        if not isinstance(size, int) or size < 1:
            sentence = f'{place}.batch_size is {size!r}: expected a whole number of at least 1.'
            yield error(place, sentence)
    loop = data.cfg.get('train_cfg') or {}
    by_epoch = loop.get('by_epoch', kind_of(loop) == 'EpochBasedTrainLoop')
    if by_epoch and _train_sampler(data) == 'InfiniteSampler':
        yield error(
            'train_dataloader.sampler',
            'train_dataloader.sampler is an InfiniteSampler, with which an epoch never ends, and train_cfg trains by '
            'epochs.',
            "Set train_dataloader.sampler.type='DefaultSampler', or train_cfg=dict(type='IterBasedTrainLoop', "
            'max_iters=N).',
        )


def check_epoch_length(data: ConfiguredData) -> Iterator[Finding]:
    """Find training sets that do not fill a single batch where incomplete ones are dropped."""
    if 'train' not in data.parts or 'Infinite' in _train_sampler(data):
        return
    loader, samples = data.loader('train'), _samples_per_process(data)
    size = loader.get('batch_size', 1)
    if loader.get('drop_last') and samples < size:
        yield error(
            'train_dataloader.batch_size',
            f'train_dataloader.batch_size is {size}, each process gets {samples} images, and drop_last=True drops '
            'incomplete batches: nothing would be trained.',
            f'Set train_dataloader.batch_size={samples} or less, or drop_last=False.',
        )


def check_single_images(data: ConfiguredData) -> Iterator[Finding]:
    """Find training batches of one image in a model with batch norm after pooling to one pixel.

    Each channel has a single value there, of which batch norm cannot compute a variance. UPerNet's, PSPNet's and
    DeepLab's heads are built so.
    """
    if 'train' not in data.parts:
        return
    loader = data.loader('train')
    size, rest = loader.get('batch_size', 1), 0
    if not loader.get('drop_last') and 'Infinite' not in _train_sampler(data):
        rest = _samples_per_process(data) % size
    norm = pooled_norm(data.model()) if 1 in (size, rest) else None
    sentence = (
        f'model.{norm} is a batch norm after pooling to one pixel, which cannot train on one image'
    )
    if norm and size == 1:
        sentence = f'{sentence}, and train_dataloader.batch_size is 1 per process.'
        remedy = "Set train_dataloader.batch_size=2 or more, or a norm_cfg such as dict(type='GN', num_groups=32)."
        yield error('train_dataloader.batch_size', sentence, remedy)
    elif norm:
        yield error(
            'train_dataloader.drop_last',
            f'{sentence}, and the last batch of an epoch has one: {_samples_per_process(data)} images per process in '
            f'batches of {size}.',
            'Set train_dataloader.drop_last=True, or another batch_size.',
        )


def pooled_norm(model: nn.Module) -> str | None:
    """Return the name of the first batch norm after pooling to one pixel, or None.

    SyncBN, which takes the images of all processes, is not meant.
    """
    for name, module in model.named_modules():
        first = module[0] if isinstance(module, nn.Sequential) and len(module) > 1 else None
        if isinstance(first, nn.AdaptiveAvgPool2d) and first.output_size in (1, (1, 1)):
            for inner, norm in module.named_modules():
                if isinstance(norm, _BatchNorm) and not isinstance(norm, nn.SyncBatchNorm):
                    return f'{name}.{inner}'.removeprefix('module.')
    return None


def check_batches(data: ConfiguredData) -> Iterator[Finding]:
    """Find images of several sizes in one batch that the model's own preprocessor cannot stack."""
    for part in data.parts:
        loader, place = data.loader(part), f'{part}_dataloader'
        if loader.get('batch_size', 1) == 1:
            continue
        with untouched_randomness(), DefaultScope.overwrite_default_scope(data.scope):
            dataset = data.dataset(part)
            samples = [prepare(dataset, index) for index in _different_images(dataset, part)]
            broken = [sample for sample in samples if isinstance(sample, Finding)]
            if broken:
                yield broken[0]
                continue
            reason = _why_not_stacked(data, part, [item for item in samples if item])
        if reason:
            yield error(
                f'{place}.batch_size',
                f'{place}.batch_size is {loader["batch_size"]}, and its images, which have several sizes, cannot be '
                f'put into one batch ({reason}).',
                f'Set {place}.batch_size=1, or resize all images to one size'
                f'{" with Resize(keep_ratio=False)" if part != "train" else ""}.',
            )


def _why_not_stacked(data: ConfiguredData, part: str, samples: list[Any]) -> str:
    """Return the message with which collating or the model's data preprocessor refuses the samples, if so."""
    inputs = [sample.get('inputs') for sample in samples if isinstance(sample, Mapping)]
    shapes = {tuple(image.shape) for image in inputs if torch.is_tensor(image)}
    model = data.cfg.get('model') or {}
    preprocessor = model.get('data_preprocessor') or data.cfg.get('data_preprocessor')
    if len(shapes) < 2 or not preprocessor:
        return ''
    collate = dict(data.loader(part).get('collate_fn') or {'type': 'pseudo_collate'})
    kind = collate.pop('type')
    function = FUNCTIONS.get(kind) if isinstance(kind, str) else kind
    # Mixing of images has nothing to do with their sizes.
    settings = {key: value for key, value in preprocessor.items() if key != 'batch_augments'}
    if data.scope == 'mmpretrain':
        settings.setdefault('type', 'ClsDataPreprocessor')
    try:
        MODELS.build(settings)(function(samples, **collate), part == 'train')
    except (AssertionError, RuntimeError) as refused:
        return ' '.join(str(refused).split()).rstrip('.') or type(refused).__name__
    return ''


def _different_images(dataset: Any, part: str) -> list[int]:
    """Return indices of images of different sizes on disk; for training, whose pipelines crop, a few of any size."""
    if part == 'train':
        return spread(len(dataset), 8)
    sizes: dict[Any, int] = {}
    for index in spread(len(dataset), _MOST_HEADERS):
        size: Any = index
        with suppress(OSError), Image.open(data_info(dataset, index).get('img_path', '')) as image:
            size = image.size
        sizes.setdefault(size, index)
        if len(sizes) == _MOST_SIZES:
            break
    return list(sizes.values())


def _samples_per_process(data: ConfiguredData) -> int:
    """Return how many images each process gets in an epoch."""
    return math.ceil(len(data.dataset('train')) / get_world_size())


def _train_sampler(data: ConfiguredData) -> str:
    """Return the name of the sampler for training; an `Infinite` one starts over without an incomplete batch."""
    return kind_of(data.loader('train').get('sampler') or {}) if 'train' in data.parts else ''
