"""The data sets of a config, for the checks."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope

from swinv2_mm.datasets.checks.coco_file import CocoFile
from swinv2_mm.datasets.checks.image_sets import has_class_folders, image_prefix
from swinv2_mm.datasets.checks.read_files import Progress, Record, find_step, read_records

FOLDER_WORDS = {
    'img': 'images',
    'img_path': 'images',
    'seg': 'label PNGs',
    'seg_map_path': 'label PNGs',
}


@dataclass(frozen=True)
class LeafDataset:
    """A data set of a config that reads files itself, with its paths joined.

    Attributes:
        place: Where the config defines it, e.g. `train_dataloader.dataset`.
        cfg: Its config.
        root: The folder that its other paths are below, if it has one.
        ann_file: Its annotation file, if it has one.
        folders: Its folders by their keys in `data_prefix`, e.g. `img` or `seg_map_path`.
    """

    place: str
    cfg: Mapping[str, Any]
    root: str | None
    ann_file: str | None
    folders: dict[str, str]

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


def leaf_datasets(cfg: Mapping[str, Any], place: str) -> Iterator[LeafDataset]:
    """Yield the data sets inside `cfg`, through wrappers such as `RepeatDataset` and `ConcatDataset`."""
    if 'dataset' in cfg:
        yield from leaf_datasets(cfg['dataset'], f'{place}.dataset')
    elif 'datasets' in cfg:
        for index, dataset in enumerate(cfg['datasets']):
            yield from leaf_datasets(dataset, f'{place}.datasets.{index}')
    else:
        root = cfg.get('data_root') or None
        ann_file = cfg.get('ann_file')
        prefixes = cfg.get('data_prefix') or image_prefix(cfg)
        if isinstance(prefixes, str):  # mmpretrain's way to name the one folder
            prefixes = {'img_path': prefixes}
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
        self._build_dataset = build_dataset or self._dataset_of_config
        self._build_model = build_model or self._model_of_config
        self.sample = sample
        self._progress = progress
        self._records: dict[str, list[Record]] = {}
        self._built: dict[str, Any] = {}
        self._coco_files: dict[str, CocoFile] = {}

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
        """Return the annotation file of a data set that reads it as mmdet's `CocoDataset` does, else None; read once.

        Raises:
            ValueError: It is not a COCO json.
        """
        path = leaf.ann_file
        kinds = getattr(self.dataset_class(leaf), '__mro__', ())
        reader = next((kind for kind in kinds if 'load_data_list' in vars(kind)), None)
        if not path or '://' in path or getattr(reader, '__name__', '') != 'CocoDataset':
            return None
        if path not in self._coco_files:
            self._coco_files[path] = CocoFile(path)
        return self._coco_files[path]

    def dataset(self, part: str) -> Any:
        """Return the data set of a part; it is built once."""
        if part not in self._built:
            self._built[part] = self._build_dataset(part)
        return self._built[part]

    def records(self, part: str) -> list[Record]:
        """Return the sampled files of a part; they are read once."""
        if part not in self._records:
            dataset = self.dataset(part)
            size = len(dataset)
            count = size if self.sample is None else min(size, self.sample)
            indices = np.linspace(0, size - 1, count).astype(int).tolist()
            loading = find_step(dataset, 'LoadAnnotations') if self.scope == 'mmseg' else None
            self._records[part] = read_records(dataset, indices, loading, self._progress, part)
        return self._records[part]

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

    def model(self) -> Any:
        """Return the model."""
        if 'model' not in self._built:
            self._built['model'] = self._build_model()
        return self._built['model']

    def _dataset_of_config(self, part: str) -> Any:
        with DefaultScope.overwrite_default_scope(self.scope):
            dataset = DATASETS.build(self.loader(part)['dataset'])
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
        return dataset

    def _model_of_config(self) -> Any:
        with DefaultScope.overwrite_default_scope(self.scope):
            return MODELS.build(self.cfg.model)


def _joined(root: str | None, path: str) -> str:
    """Return `path` below `root`, as mmengine joins them."""
    if not root or os.path.isabs(path) or '://' in path:
        return path
    return os.path.join(root, path)
