"""Do the heads, the data set's classes and the annotation file agree on the classes?

mmdet matches classes by name and silently drops every annotation of another class, so a detector with the 80 COCO
classes trains on anybody's json without an error, and learns nothing.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from swinv2_mm.engine.dataset_files import LeafDataset, leaf_datasets
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.engine.image_sets import classes_on_disk

_OTHER_CLASSES = ('RPNHead', 'FusedSemanticHead')
"""Heads whose `num_classes` counts something else than the data set's classes."""
_PREPROCESSOR = 'model.data_preprocessor'
_MIXING = f' and in {_PREPROCESSOR}, which mixes labels'
_LONGEST_CATEGORIES = 1 << 23
"""Bytes within which the list of categories in an annotation file ends; LVIS, the longest, needs 1 << 19."""


def check_classes(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Checks the number and the names of the classes.

    Args:
        cfg: The config; its files are there.
        loaders: The parts of it that will run, of `'train'`, `'val'` and `'test'`.

    Raises:
        SetupError: A head's `num_classes` is not the number of the data set's classes, a COCO annotation file lacks
            some of them or has them in another order, or data sets of whole images have folders for other classes.
    """
    folders: dict[str, list[str]] = {}
    for part in loaders:
        loader = cfg.get(f'{part}_dataloader')
        if loader is None:
            continue
        for leaf in leaf_datasets(loader['dataset'], f'{part}_dataloader.dataset'):
            dataset = _dataset_class(leaf.cfg.get('type'), cfg.default_scope)
            classes = _dataset_classes(dataset, leaf)
            found = classes_on_disk(leaf.cfg, next(iter(leaf.folders.values()), None))
            if found is not None:
                folders[leaf.place] = found
                _check_folders(folders, leaf, classes)
                classes = classes or found
            if classes is None:
                continue
            if _reads_coco(dataset) and leaf.ann_file and '://' not in leaf.ann_file:
                _check_categories(leaf, classes)
            _check_heads(cfg, leaf, classes)


def read_categories(path: str | Path) -> list[dict[str, Any]]:
    """Returns the categories of a COCO annotation file without parsing all of it, which takes long for COCO's own.

    Raises:
        SetupError: The file is not a COCO json.
    """
    try:
        categories = _scan_categories(Path(path))
        if categories is None:
            with open(path, encoding='utf-8') as file:
                categories = json.load(file)['categories']
        if not _are_categories(categories):
            raise ValueError('its "categories" are not a list of {"id": ..., "name": ...}')
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f'it has no key {error}' if isinstance(error, KeyError) else str(error)
        raise SetupError(f'The annotation file {path} is not a COCO json: {reason}.') from error
    return categories


def _scan_categories(path: Path) -> list[dict[str, Any]] | None:
    """Finds the list after the key "categories"; None if the key is not where it can be told apart."""
    if path.stat().st_size == 0:
        raise ValueError('it is empty')
    decoder = json.JSONDecoder()
    key = b'"categories"'
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        at = text.rfind(key)
        while at != -1:
            after = text[at + len(key) : at + len(key) + _LONGEST_CATEGORIES].decode(
                'utf-8', 'ignore'
            )
            start = re.match(r'\s*:\s*', after)
            if start:
                try:
                    found, _ = decoder.raw_decode(after, start.end())
                except ValueError:
                    return None
                if _are_categories(found):
                    return found
            at = text.rfind(key, 0, at)
    return None


def _are_categories(value: Any) -> bool:
    """Says whether `value` is a list of COCO categories."""
    return isinstance(value, list) and all(
        isinstance(item, dict) and 'id' in item and 'name' in item for item in value
    )


def _dataset_class(kind: Any, scope: str) -> Any:
    """Returns the class of a data set; None if no library knows it, which the runner will report."""
    if not isinstance(kind, str):
        return kind
    with DATASETS.switch_scope_and_registry(scope) as registry:
        return registry.get(kind)


def _dataset_classes(dataset: Any, leaf: LeafDataset) -> list[str] | None:
    """Returns the names of a data set's classes, or None if they are not known before it is built."""
    if not hasattr(dataset, '_load_metainfo'):
        return None
    if isinstance(leaf.cfg.get('classes'), (list, tuple)):  # mmpretrain's short form
        return list(leaf.cfg['classes'])
    classes = dataset._load_metainfo(leaf.cfg.get('metainfo')).get('classes')
    if isinstance(classes, str):
        raise SetupError(
            f'{leaf.place}.metainfo.classes is the string {classes!r}, expected a tuple of names: '
            f'write ({classes!r},) with a comma for a single class.'
        )
    return None if classes is None else list(classes)


def _reads_coco(dataset: Any) -> bool:
    """Says whether `dataset` is a class that reads COCO annotations in mmdet's own way."""
    bases = [base for base in dataset.__mro__ if 'load_data_list' in vars(base)]
    return bool(bases) and bases[0].__name__ == 'CocoDataset'


def _check_categories(leaf: LeafDataset, classes: list[str]) -> None:
    """Checks `classes` against the categories of the annotation file."""
    names = [str(category['name']) for category in read_categories(str(leaf.ann_file))]
    missing = [name for name in classes if name not in names]
    place = f'{leaf.place}.metainfo=dict(classes={_as_tuple(names)})'
    if missing:
        raise SetupError(
            f'{leaf.place} has {len(classes)} classes, and {len(missing)} of them are not among the {len(names)} '
            f'categories of {leaf.ann_file} (missing: {_listed(missing)}; there: {_listed(names)}). '
            f'Set {place} and num_classes={len(names)} in every head.'
        )
    used = [name for name in names if name in set(classes)]
    if used != classes:
        raise SetupError(
            f'{leaf.place} names its classes in the order {_listed(classes)}, and {leaf.ann_file} in the order '
            f'{_listed(used)}: mmdet numbers them in the order of the file, so names would be swapped. Set {place}.'
        )


def _check_folders(
    folders: Mapping[str, list[str]], leaf: LeafDataset, classes: list[str] | None
) -> None:
    """Checks the folders of a data set of whole images against its classes and the other data sets' folders."""
    here = folders[leaf.place]
    if classes is not None and len(classes) != len(here):
        raise SetupError(
            f'{leaf.place} ({leaf.cfg.get("type")}) has {len(classes)} classes and its files {len(here)} '
            f"({_listed(here)}): complete the data, or read it with type='CustomDataset', which takes the names of "
            'the folders for classes.'
        )
    first, names = next(iter(folders.items()))
    if here != names:
        other = sorted(set(here) ^ set(names)) or here
        raise SetupError(
            f'{first} and {leaf.place} have other classes ({len(names)} and {len(here)}; not in both: '
            f'{_listed(other)}): folders are numbered in the order of their names, so labels would not agree. '
            'Give both the same folders.'
        )


def _check_heads(cfg: Config, leaf: LeafDataset, classes: list[str]) -> None:
    """Checks every head's `num_classes` against the number of classes."""
    for place, number in _head_classes(cfg.model, 'model'):
        if number != len(classes):
            raise SetupError(
                f'{place}.num_classes is {number}, and {leaf.place} ({leaf.cfg.get("type")}) has {len(classes)} '
                f'classes ({_listed(classes)}): set num_classes={len(classes)} in every head'
                f'{_MIXING if cfg.default_scope == "mmpretrain" else ""}, or the classes of the data set.'
            )


def _head_classes(cfg: Any, place: str) -> Iterator[tuple[str, int]]:
    """Yields place and number of classes of each head in a model's config."""
    if isinstance(cfg, Mapping):
        number = cfg.get('num_classes')
        is_head = 'head' in place or place == _PREPROCESSOR
        if isinstance(number, int) and is_head and cfg.get('type') not in _OTHER_CLASSES:
            yield place, number
        for key, value in cfg.items():
            yield from _head_classes(value, f'{place}.{key}')
    elif isinstance(cfg, (list, tuple)):
        for index, value in enumerate(cfg):
            yield from _head_classes(value, f'{place}.{index}')


def _listed(names: Sequence[str]) -> str:
    """Returns the first names as a list in words."""
    return ', '.join(names[:6]) + (f', ... ({len(names)} in all)' if len(names) > 6 else '')


def _as_tuple(names: Sequence[str]) -> str:
    """Returns the names as they would be written in a config."""
    return repr(tuple(names)) if len(names) <= 6 else '(...)'
