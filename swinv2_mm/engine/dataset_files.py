"""Are the folders and files there that a config's data sets name? Looks at paths only."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.image_sets import (
    check_cifar,
    check_class_folders,
    check_download,
    check_places,
    has_class_folders,
    image_prefix,
    is_cifar,
    is_places,
)

_DEFAULT_SHAPES = 'data/shapes'
_GENERATOR = 'tools/dataset_converters/generate_shapes.py'
_DEFAULT_DIGITS = 'data/digits'
_DIGITS_CONVERTER = 'tools/dataset_converters/digits.py'


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

    @property
    def layout(self) -> str:
        """What is expected on disk, in words."""
        parts = [f'annotations in {self.ann_file}'] if self.ann_file else []
        if has_class_folders(self.cfg):
            return ', '.join(f'images in {path}/<class>/' for path in self.folders.values())
        parts += [f'{_FOLDER_WORDS.get(key, key)} in {path}' for key, path in self.folders.items()]
        return ', '.join(parts)


_FOLDER_WORDS = {
    'img': 'images',
    'img_path': 'images',
    'seg': 'label PNGs',
    'seg_map_path': 'label PNGs',
}


def leaf_datasets(cfg: Mapping[str, Any], place: str) -> Iterator[LeafDataset]:
    """Yields the data sets inside `cfg`, through wrappers such as `RepeatDataset` and `ConcatDataset`."""
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


def check_dataset_files(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Checks that what the data loaders and evaluators read is there.

    Args:
        cfg: The config.
        loaders: The parts of it that will run, of `'train'`, `'val'` and `'test'`.

    Raises:
        SetupError: A data set's root, annotation file or folder is missing, or an evaluator's annotation file.
    """
    for part in loaders:
        loader = cfg.get(f'{part}_dataloader')
        if loader is None:
            continue
        for leaf in leaf_datasets(loader['dataset'], f'{part}_dataloader.dataset'):
            _check_leaf(leaf)
        evaluators = cfg.get(f'{part}_evaluator') or []
        for evaluator in [evaluators] if isinstance(evaluators, Mapping) else evaluators:
            ann_file = evaluator.get('ann_file')
            if isinstance(ann_file, str) and ann_file and _is_missing(ann_file):
                raise SetupError(
                    f'The annotation file {ann_file} of {part}_evaluator does not exist. {_hint(ann_file)}'
                )


def _check_leaf(leaf: LeafDataset) -> None:
    """Checks the paths of one data set, from the outside to the inside."""
    kind = str(leaf.cfg.get('type'))
    if is_cifar(leaf.cfg):
        check_cifar(leaf.cfg, leaf.place, _hint)
        return
    if is_places(leaf.cfg):
        check_places(leaf.cfg, leaf.place, _hint)
        return
    check_download(leaf.cfg, leaf.place)
    if leaf.root and _is_missing(leaf.root):
        raise SetupError(
            f'The data root {leaf.root} of {leaf.place} ({kind}) does not exist{_seen_from(leaf.root)}; expected: '
            f'{leaf.layout}. {_hint(leaf.root)}'
        )
    root = leaf.root or ''
    if leaf.ann_file and _is_missing(leaf.ann_file):
        raise SetupError(
            f'The annotation file {leaf.ann_file} of {leaf.place} ({kind}) does not exist'
            f'{_seen_from(leaf.ann_file)}; expected: {leaf.layout}. {_hint(root or leaf.ann_file)}'
        )
    for key, folder in leaf.folders.items():
        if _is_missing(folder):
            raise SetupError(
                f'The folder {folder} ({_FOLDER_WORDS.get(key, key)}) of {leaf.place} ({kind}) does not exist'
                f'{_seen_from(folder)}; expected: {leaf.layout}. {_hint(root or folder)}'
            )
    if has_class_folders(leaf.cfg):
        for folder in leaf.folders.values():
            check_class_folders(folder, f'{leaf.place} ({kind})')


def _is_missing(path: str) -> bool:
    """Says whether `path` is a local path with nothing there."""
    return '://' not in path and not Path(path).exists()


def _joined(root: str | None, path: str) -> str:
    """Returns `path` below `root`, as mmengine joins them."""
    if not root or os.path.isabs(path) or '://' in path:
        return path
    return os.path.join(root, path)


def _seen_from(path: str) -> str:
    """Returns the current folder in words if `path` depends on it."""
    return '' if os.path.isabs(path) else f' in {os.getcwd()}'


def _hint(path: str) -> str:
    """Returns what to do about missing data: generate the shapes, or move the data or the root."""
    shapes = os.environ.get('SWINV2_MM_SHAPES', _DEFAULT_SHAPES)
    if Path(os.path.abspath(path)).is_relative_to(os.path.abspath(shapes)):
        return f'Generate it: python {_GENERATOR} {shapes}'
    digits = os.environ.get('SWINV2_MM_DIGITS', _DEFAULT_DIGITS)
    if Path(os.path.abspath(path)).is_relative_to(os.path.abspath(digits)):
        return f'Write it: python {_DIGITS_CONVERTER} {digits}'
    data = os.environ.get('SWINV2_MM_DATA')
    now = f'it is {data} now' if data else 'it is not set now, so configs look in data/'
    return f'Put the data there, or let SWINV2_MM_DATA name the folder that holds it ({now}).'
