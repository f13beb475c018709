"""Number, names and order of the classes in heads, data sets and annotation files.

mmdet matches classes by name and drops every annotation of another class without a message, so a detector with the 80
COCO classes trains on any COCO json and learns nothing.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from swinv2_mm.datasets.checks.configured import ConfiguredData, LeafDataset
from swinv2_mm.datasets.checks.finding import Finding, error
from swinv2_mm.datasets.checks.image_sets import classes_on_disk
from swinv2_mm.datasets.errors import ImageSetError

_OTHER_CLASSES = ('RPNHead', 'FusedSemanticHead')
"""Heads whose `num_classes` counts something else than the data set's classes."""
_PREPROCESSOR = 'model.data_preprocessor'
_LONGEST_CATEGORIES = 1 << 23
"""Bytes within which the list of categories in an annotation file ends; LVIS, the longest, needs 1 << 19."""


def check_metainfo(data: ConfiguredData) -> Iterator[Finding]:
    """Find `classes` that are one string."""
    for leaf in data.leaves():
        classes = _configured_classes(data, leaf)
        if isinstance(classes, str):
            yield error(
                leaf.place,
                f'{leaf.place}.metainfo.classes is the string {classes!r}, expected a tuple of names.',
                f'Write ({classes!r},) with a comma for a single class.',
            )


def check_folder_classes(data: ConfiguredData) -> Iterator[Finding]:
    """Find data sets of whole images whose folders disagree with their classes or with each other."""
    first: tuple[str, list[str]] | None = None
    for leaf in data.leaves():
        try:
            here = _folder_classes(leaf)
        except ImageSetError as broken:
            yield error(leaf.place, f'{broken}.')
            continue
        if here is None:
            continue
        classes = _configured_classes(data, leaf)
        if classes is not None and len(classes) != len(here):
            yield error(
                leaf.place,
                f'{leaf} has {len(classes)} classes and its files {len(here)} ({_listed(here)}).',
                "Complete the data, or read it with type='CustomDataset', which takes the names of the folders for "
                'classes.',
            )
        first = first or (leaf.place, here)
        if here != first[1]:
            other = sorted(set(here) ^ set(first[1])) or here
            yield error(
                leaf.place,
                f'{first[0]} and {leaf.place} have other classes ({len(first[1])} and {len(here)}; not in both: '
                f'{_listed(other)}): folders are numbered in the order of their names, so labels would not agree.',
                'Give both the same folders.',
            )


def check_categories(data: ConfiguredData) -> Iterator[Finding]:
    """Find COCO annotation files that lack classes of the data set or have them in another order."""
    for leaf in data.leaves():
        classes = _configured_classes(data, leaf)
        if (
            not classes
            or not leaf.ann_file
            or '://' in leaf.ann_file
            or not _reads_coco(data, leaf)
        ):
            continue
        try:
            names = [str(category['name']) for category in read_categories(leaf.ann_file)]
        except ValueError as broken:
            yield error(leaf.ann_file, f'{broken}.')
            continue
        missing = [name for name in classes if name not in names]
        used = [name for name in names if name in set(classes)]
        setting = f'{leaf.place}.metainfo=dict(classes={_as_tuple(names)})'
        if missing:
            yield error(
                leaf.place,
                f'{leaf.place} has {len(classes)} classes, and {len(missing)} of them are not among the {len(names)} '
                f'categories of {leaf.ann_file} (missing: {_listed(missing)}; there: {_listed(names)}).',
                f'Set {setting} and num_classes={len(names)} in every head.',
            )
        elif used != classes:
            yield error(
                leaf.place,
                f'{leaf.place} names its classes in the order {_listed(classes)}, and {leaf.ann_file} in the order '
                f'{_listed(used)}: mmdet numbers them in the order of the file, so names would be swapped.',
                f'Set {setting}.',
            )


def check_heads(data: ConfiguredData) -> Iterator[Finding]:
    """Find heads whose `num_classes` is not the number of the data set's classes, each once."""
    mixing = f' and in {_PREPROCESSOR}, which mixes labels' if data.scope == 'mmpretrain' else ''
    reported: set[str] = set()
    for leaf in data.leaves():
        classes = _configured_classes(data, leaf) or _folder_classes(leaf)
        if classes is None:
            continue
        for place, number in _head_classes(data.cfg.get('model'), 'model'):
            if number != len(classes) and place not in reported:
                reported.add(place)
                yield error(
                    place,
                    f'{place}.num_classes is {number}, and {leaf} has {len(classes)} classes ({_listed(classes)}).',
                    f'Set num_classes={len(classes)} in every head{mixing}, or the classes of the data set.',
                )


def read_categories(path: str | Path) -> list[dict[str, Any]]:
    """Return the categories of a COCO annotation file, without parsing the whole file if possible.

    Raises:
        ValueError: The file is not a COCO json.
    """
    try:
        categories = _scan_categories(Path(path))
        if categories is None:
            with open(path, encoding='utf-8') as file:
                categories = json.load(file)['categories']
        if not _are_categories(categories):
            raise ValueError('its "categories" are not a list of {"id": ..., "name": ...}')
    except (OSError, ValueError, KeyError, TypeError) as broken:
        reason = f'it has no key {broken}' if isinstance(broken, KeyError) else str(broken)
        raise ValueError(f'The annotation file {path} is not a COCO json: {reason}') from broken
    return categories


def _scan_categories(path: Path) -> list[dict[str, Any]] | None:
    """Return the list after the last key "categories" of the file, or None if it cannot be told apart."""
    if path.stat().st_size == 0:
        raise ValueError('it is empty')
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
                    found, _ = json.JSONDecoder().raw_decode(after, start.end())
                except ValueError:
                    return None
                if _are_categories(found):
                    return found
            at = text.rfind(key, 0, at)
    return None


def _are_categories(value: Any) -> bool:
    """Return whether `value` is a list of COCO categories."""
    return isinstance(value, list) and all(
        isinstance(item, dict) and 'id' in item and 'name' in item for item in value
    )


def _dataset_class(data: ConfiguredData, leaf: LeafDataset) -> Any:
    """Return the class of a data set, or None if it is not registered."""
    kind = leaf.cfg.get('type')
    if not isinstance(kind, str):
        return kind
    with DATASETS.switch_scope_and_registry(data.scope) as registry:
        return registry.get(kind)


def _configured_classes(data: ConfiguredData, leaf: LeafDataset) -> Any:
    """Return the names of a data set's classes as its config or class defines them, or None."""
    dataset = _dataset_class(data, leaf)
    if not hasattr(dataset, '_load_metainfo'):
        return None
    if isinstance(leaf.cfg.get('classes'), (list, tuple)):  # mmpretrain's short form
        return list(leaf.cfg['classes'])
    classes = dataset._load_metainfo(leaf.cfg.get('metainfo')).get('classes')
    return classes if classes is None or isinstance(classes, str) else list(classes)


def _folder_classes(leaf: LeafDataset) -> list[str] | None:
    """Return the names of the classes that a data set's files stand for, or None."""
    return classes_on_disk(leaf.cfg, next(iter(leaf.folders.values()), None))


def _reads_coco(data: ConfiguredData, leaf: LeafDataset) -> bool:
    """Return whether the data set inherits the reading of annotations from mmdet's `CocoDataset`."""
    dataset = _dataset_class(data, leaf)
    bases = [base for base in getattr(dataset, '__mro__', ()) if 'load_data_list' in vars(base)]
    return bool(bases) and bases[0].__name__ == 'CocoDataset'


def _head_classes(cfg: Any, place: str) -> Iterator[tuple[str, int]]:
    """Yield config key and number of classes of each head of a model."""
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
    """Return the first names as a list in words."""
    return ', '.join(names[:6]) + (f', ... ({len(names)} in all)' if len(names) > 6 else '')


def _as_tuple(names: Sequence[str]) -> str:
    """Return the names as a config writes them."""
    return repr(tuple(names)) if len(names) <= 6 else '(...)'
