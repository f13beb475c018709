"""The data sets of a config, for the checks."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope

from swinv2_mm.datasets.checks.coco_file import CocoFile
from swinv2_mm.datasets.checks.read_files import (
    Progress,
    Record,
    find_step,
    is_local,
    read_records,
)
from swinv2_mm.datasets.published_sets import find_places365, read_categories, read_listing

FOLDER_WORDS = {
    'img': 'images',
    'img_path': 'images',
    'seg': 'label PNGs',
    'seg_map_path': 'label PNGs',
}
_FOLDER_SETS = {'CustomDataset', 'ImageNet', 'ImageNet21k'}
"""Data sets of mmpretrain that take the names of folders for classes, unless they are given a list."""


@dataclass(frozen=True)
class LeafDataset:
    """A data set of a config that reads files itself, with its paths joined."""

    place: str  # where the config defines it, e.g. `train_dataloader.dataset`
    cfg: Mapping[str, Any]
    root: str | None  # the folder that its other paths are below
    ann_file: str | None
    folders: dict[str, str]  # by their keys in `data_prefix`, e.g. `img` or `seg_map_path`

    def __str__(self) -> str:
        return f'{self.place} ({self.cfg.get("type")})'

    @property
    def part(self) -> str:
        """The data loader that it belongs to: `'train'`, `'val'` or `'test'`."""
        return self.place.partition('_')[0]

    @property
    def layout(self) -> str:
        """The files expected on disk, in words."""
        if has_class_folders(self.cfg):
            return ', '.join(f'images in {path}/<class>/' for path in self.folders.values())
        parts = [f'annotations in {self.ann_file}'] if self.ann_file else []
        parts += [f'{FOLDER_WORDS.get(key, key)} in {path}' for key, path in self.folders.items()]
        return ', '.join(parts)

    def classes_on_disk(self) -> list[str] | None:
        """Return the names of the classes that its files stand for, in the order of their labels, or None."""
        if kind_of(self.cfg) == 'Places365':
            found = find_places365(self.root or '', str(self.cfg.get('split', 'train')))
            if found.listing is None:
                return class_folders(found.images)
            if found.categories is not None:
                return read_categories(found.categories)
            last = max(label for _, label in read_listing(found.listing))
            return [str(label) for label in range(last + 1)]
        folder = next(iter(self.folders.values()), '://')
        return class_folders(folder) if has_class_folders(self.cfg) and is_local(folder) else None


def leaf_datasets(cfg: Mapping[str, Any], place: str) -> Iterator[LeafDataset]:
    """Yield the data sets inside `cfg`, through wrappers such as `RepeatDataset` and `ConcatDataset`."""
    if 'dataset' in cfg:
        yield from leaf_datasets(cfg['dataset'], f'{place}.dataset')
    elif 'datasets' in cfg:
        for index, dataset in enumerate(cfg['datasets']):
            yield from leaf_datasets(dataset, f'{place}.datasets.{index}')
    else:
        root, ann_file, split = cfg.get('data_root') or None, cfg.get('ann_file'), cfg.get('split')
        prefixes = cfg.get('data_prefix') or {}
        if not prefixes and ((kind_of(cfg) in _FOLDER_SETS and split) or has_class_folders(cfg)):
            prefixes = str(split or '')
        if isinstance(prefixes, str):  # mmpretrain's way to name the one folder
            prefixes = {'img_path': prefixes}
        steps = [step for step in cfg.get('pipeline') or [] if isinstance(step, Mapping)]
        if kind_of(cfg) == 'CocoDataset' and not any(step.get('with_seg') for step in steps):
            # Configs inherit the folder, as Mask2Former for instances that of panoptic labels.
            prefixes = {key: path for key, path in prefixes.items() if key != 'seg'}
        yield LeafDataset(
            place=place,
            cfg=cfg,
            root=root,
            ann_file=_joined(root, ann_file) if isinstance(ann_file, str) and ann_file else None,
            folders={
                key: _joined(root, path) for key, path in prefixes.items() if path is not None
            },
        )


class ConfiguredData:
    """What the checks look at: a config, and the data sets and the model that it defines.

    `dataset` and `records` return the data set of a part and its sampled files, `model` the model; each is made once.

    Args:
        cfg: The config.
        parts: The data loaders to check, of `'train'`, `'val'` and `'test'`; those that the config lacks are left out.
        build_dataset: Return the data set of a part; by default it is built from the config.
        build_model: Return the model; by default it is built from the config.
        sample: Number of images and label files of each part that are read; None for all.
        progress: Shows the progress of reading them; by default nothing does.
    """

    def __init__(
        self,
        cfg: Config,
        parts: tuple[str, ...],
        build_dataset: Callable[[str], Any] | None = None,
        build_model: Callable[[], Any] | None = None,
        sample: int | None = 256,
        progress: Progress = lambda items, count, title: items,
    ) -> None:
        self.cfg = cfg
        self.scope: str = cfg.get('default_scope', 'mmengine')
        self.parts = tuple(part for part in parts if cfg.get(f'{part}_dataloader'))
        self.sample = sample
        self._progress = progress
        self.dataset = cache(build_dataset or self._dataset_of_config)
        self.model = cache(build_model or self._model_of_config)
        self.records = cache(self._read_records)
        self._read_coco = cache(CocoFile)

    @property
    def segmentation_classes(self) -> int:
        """The number of classes of a segmentor's last head, 0 for other models."""
        heads = as_list(self.cfg.model.get('decode_head')) if self.scope == 'mmseg' else []
        return heads[-1].get('num_classes', 0) if heads else 0

    def loader(self, part: str) -> Mapping[str, Any]:
        """Return the config of a data loader."""
        loader: Mapping[str, Any] = self.cfg[f'{part}_dataloader']
        return loader

    def leaves(self) -> Iterator[LeafDataset]:
        """Yield the data sets of all parts that read files."""
        for part in self.parts:
            yield from leaf_datasets(self.loader(part)['dataset'], f'{part}_dataloader.dataset')

    def dataset_class(self, leaf: LeafDataset) -> Any:
        """Return the class of a data set, or None if it is not registered."""
        kind = leaf.cfg.get('type')
        if not isinstance(kind, str):
            return kind
        with DATASETS.switch_scope_and_registry(self.scope) as registry:
            return registry.get(kind)

    def coco_file(self, leaf: LeafDataset) -> CocoFile | None:
        """Return the annotation file of a data set that reads it as mmdet's `CocoDataset` does, else None."""
        kinds = getattr(self.dataset_class(leaf), '__mro__', ())
        reader = next((kind for kind in kinds if 'load_data_list' in vars(kind)), None)
        of_mmdet = getattr(reader, '__name__', '') == 'CocoDataset'
        return self._read_coco(leaf.ann_file) if of_mmdet and is_local(leaf.ann_file) else None

    def rotates_by_exif(self, part: str) -> bool | None:
        """Return whether the pipeline of a part rotates images as EXIF says, None if it is not known."""
        loading = find_step(self.dataset(part), 'LoadImageFromFile')
        return loading and getattr(loading, 'color_type', '') in ('color', 'grayscale')

    def setting(self, leaf: LeafDataset, key: str) -> Any:
        """Return a setting of a data set as the config or its class defines it, or None."""
        if key in leaf.cfg:
            return leaf.cfg[key]
        signature = inspect.signature(self.dataset_class(leaf))
        return signature.parameters[key].default if key in signature.parameters else None

    def _read_records(self, part: str) -> list[Record]:
        dataset = self.dataset(part)
        size = len(dataset)
        count = size if self.sample is None else min(size, self.sample)
        indices = np.linspace(0, size - 1, count).astype(int).tolist()
        loading = find_step(dataset, 'LoadAnnotations') if self.scope == 'mmseg' else None
        return read_records(dataset, indices, loading, self._progress, part)

    def _dataset_of_config(self, part: str) -> Any:
        with DefaultScope.overwrite_default_scope(self.scope):
            dataset = DATASETS.build(self.loader(part)['dataset'])
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
        return dataset

    def _model_of_config(self) -> Any:
        with DefaultScope.overwrite_default_scope(self.scope):
            return MODELS.build(copy.deepcopy(self.cfg.model))  # some models change theirs


def has_class_folders(cfg: Mapping[str, Any]) -> bool:
    """Return whether a data set takes images and classes from one folder per class."""
    listed = cfg.get('ann_file') or not cfg.get('with_label', True)
    if listed or kind_of(cfg) not in _FOLDER_SETS:
        return False
    split = cfg.get('split')
    listing = os.path.join(str(cfg.get('data_root') or ''), 'meta', f'{split}.txt')
    return not (split and os.path.isfile(listing)) and split != 'test'


def class_folders(folder: str | Path) -> list[str]:
    """Return the names of the classes in a folder, in the order of their labels."""
    # mmpretrain counts hidden ones.
    return sorted(entry.name for entry in Path(folder).iterdir() if entry.is_dir())


def kind_of(cfg: Mapping[str, Any]) -> str:
    """Return the name of the class of a config, without its scope."""
    kind = cfg.get('type')
    return kind.rsplit('.', 1)[-1] if isinstance(kind, str) else getattr(kind, '__name__', '')


def as_list(value: Any) -> list[Any]:
    """Return what a config gives as one value or a list of them; nothing for None or an empty dict."""
    if isinstance(value, (list, tuple)):
        return list(value)
    return [] if value in (None, {}, '') else [value]


def _joined(root: str | None, path: str) -> str:
    """Return `path` below `root`, as mmengine joins them."""
    return os.path.join(root, path) if root and '://' not in path else path
