"""Settings of data loaders that end in an assertion of a library in the middle of a run, or train nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.registry import FUNCTIONS, MODELS, DefaultScope
from PIL import Image, UnidentifiedImageError
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from swinv2_mm.datasets.checks.configured import ConfiguredData
from swinv2_mm.datasets.checks.finding import Finding, error
from swinv2_mm.datasets.checks.read_files import data_info
from swinv2_mm.datasets.checks.samples import prepare, spread, untouched_randomness

_MOST_HEADERS = 5000
"""Images whose size is read from their headers."""
_MOST_SIZES = 32
"""Images that go through the pipeline to see whether they can be stacked."""


def check_loaders(data: ConfiguredData) -> Iterator[Finding]:
    """Find batch sizes below one, and an endless sampler in a training by epochs."""
    for part in data.parts:
        loader, place = data.loader(part), f'{part}_dataloader'
        size = loader.get('batch_size', 1)
        if not isinstance(size, int) or size < 1:
            yield error(
                place, f'{place}.batch_size is {size!r}: expected a whole number of at least 1.'
            )
    if (
        'train' in data.parts
        and _by_epoch(data)
        and _kind(data.loader('train').get('sampler')) == 'InfiniteSampler'
    ):
        yield error(
            'train_dataloader.sampler',
            'train_dataloader.sampler is an InfiniteSampler, with which an epoch never ends, and train_cfg trains by '
            'epochs.',
            "Set train_dataloader.sampler.type='DefaultSampler', or train_cfg=dict(type='IterBasedTrainLoop', "
            'max_iters=N).',
        )


def check_epoch_length(data: ConfiguredData) -> Iterator[Finding]:
    """Find training sets that do not fill a single batch where incomplete ones are dropped."""
    if 'train' not in data.parts or _is_endless(data):
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
    size = loader.get('batch_size', 1)
    rest = 0 if loader.get('drop_last') or _is_endless(data) else _samples_per_process(data) % size
    if 1 not in (size, rest):
        return
    norm = pooled_norm(data.model())
    if norm is None:
        return
    sentence = (
        f'model.{norm} is a batch norm after pooling to one pixel, which cannot train on one image'
    )
    if size == 1:
        yield error(
            'train_dataloader.batch_size',
            f'{sentence}, and train_dataloader.batch_size is 1 per process.',
            "Set train_dataloader.batch_size=2 or more, or a norm_cfg such as dict(type='GN', num_groups=32).",
        )
    else:
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
            reason = _why_not_stacked(
                data, loader, [item for item in samples if item], part == 'train'
            )
        if reason:
            yield error(
                f'{place}.batch_size',
                f'{place}.batch_size is {loader["batch_size"]}, and its images, which have several sizes, cannot be '
                f'put into one batch ({reason}).',
                f'Set {place}.batch_size=1, or resize all images to one size'
                f'{" with Resize(keep_ratio=False)" if part != "train" else ""}.',
            )


def _why_not_stacked(
    data: ConfiguredData, loader: Mapping[str, Any], samples: list[Any], training: bool
) -> str:
    """Return the message with which collating or the model's data preprocessor refuses the samples, if so."""
    shapes = {tuple(item['inputs'].shape) for item in samples if torch.is_tensor(_inputs(item))}
    preprocessor = (data.cfg.get('model') or {}).get('data_preprocessor') or data.cfg.get(
        'data_preprocessor'
    )
    if len(shapes) < 2 or not preprocessor:
        return ''
    collate = dict(loader.get('collate_fn') or {'type': 'pseudo_collate'})
    kind = collate.pop('type')
    function = FUNCTIONS.get(kind) if isinstance(kind, str) else kind
    # Mixing of images has nothing to do with their sizes.
    settings = {key: value for key, value in preprocessor.items() if key != 'batch_augments'}
    if data.scope == 'mmpretrain':
        settings.setdefault('type', 'ClsDataPreprocessor')
    try:
        MODELS.build(settings)(function(samples, **collate), training)
    except (AssertionError, RuntimeError) as refused:
        return ' '.join(str(refused).split()).rstrip('.') or type(refused).__name__
    return ''


def _inputs(sample: Any) -> Any:
    return sample.get('inputs') if isinstance(sample, Mapping) else None


def _different_images(dataset: Any, part: str) -> list[int]:
    """Return indices of images of different sizes on disk; for training, whose pipelines crop, a few of any size."""
    if part == 'train':
        return list(spread(len(dataset), 8))
    sizes: dict[Any, int] = {}
    for index in spread(len(dataset), _MOST_HEADERS):
        path = data_info(dataset, index).get('img_path')
        size: Any = index
        if isinstance(path, str) and Path(path).is_file():
            try:
                with Image.open(path) as image:
                    size = image.size
            except UnidentifiedImageError:
                pass
        sizes.setdefault(size, index)
        if len(sizes) == _MOST_SIZES:
            break
    return list(sizes.values())


def _samples_per_process(data: ConfiguredData) -> int:
    """Return how many images each process gets in an epoch."""
    return math.ceil(len(data.dataset('train')) / get_world_size())


def _by_epoch(data: ConfiguredData) -> bool:
    """Return whether the config trains by epochs."""
    loop = data.cfg.get('train_cfg') or {}
    return bool(loop.get('by_epoch', _kind(loop) == 'EpochBasedTrainLoop'))


def _is_endless(data: ConfiguredData) -> bool:
    """Return whether the training sampler starts over without an incomplete batch."""
    return 'Infinite' in _kind(data.loader('train').get('sampler'))


def _kind(cfg: Any) -> str:
    """Return the name of the class of a config, without its scope."""
    kind = cfg.get('type', '') if isinstance(cfg, Mapping) else type(cfg).__name__
    return kind.rsplit('.', 1)[-1] if isinstance(kind, str) else getattr(kind, '__name__', '')
