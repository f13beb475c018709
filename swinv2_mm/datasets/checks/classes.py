"""Number, names and order of the classes in heads, data sets and annotation files.

mmdet matches classes by name and drops every annotation of another class without a message, so a detector with the 80
COCO classes trains on any COCO json and learns nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from swinv2_mm.datasets.checks.configured import ConfiguredData, LeafDataset
from swinv2_mm.datasets.checks.finding import Finding, Things, error
from swinv2_mm.datasets.errors import ImageSetError

_OTHER_CLASSES = ('RPNHead', 'FusedSemanticHead')
"""Heads whose `num_classes` counts something else than the data set's classes."""
_PREPROCESSOR = 'model.data_preprocessor'


def check_metainfo(data: ConfiguredData) -> Iterator[Finding]:
    """Find `classes` that are one string."""
    for leaf in data.leaves():
        classes = configured_classes(data, leaf)
        if isinstance(classes, str):
            sentence = f'{leaf.place}.metainfo.classes is the string {classes!r}, expected a tuple of names.'
            remedy = f'Write ({classes!r},) with a comma for a single class.'
            yield error(leaf.place, sentence, remedy)


def check_folder_classes(data: ConfiguredData) -> Iterator[Finding]:
    """Find data sets of whole images whose folders disagree with their classes or with each other."""
    first: tuple[str, list[str]] | None = None
    for leaf in data.leaves():
        try:
            here = leaf.classes_on_disk()
        except ImageSetError as broken:
            yield error(leaf.place, f'{broken}.')
            continue
        if here is None:
            continue
        classes = configured_classes(data, leaf)
        if classes is not None and len(classes) != len(here):
            yield error(
                leaf.place,
                f'{leaf} has {len(classes)} classes and its files {len(here)} ({listed(here)}).',
                "Complete the data, or read it with type='CustomDataset', which takes the names of the folders for "
                'classes.',
            )
        first = first or (leaf.place, here)
        if here != first[1]:
            other = sorted(set(here) ^ set(first[1])) or here
            yield error(
                leaf.place,
                f'{first[0]} and {leaf.place} have other classes ({len(first[1])} and {len(here)}; not in both: '
                f'{listed(other)}): folders are numbered in the order of their names, so labels would not agree.',
                'Give both the same folders.',
            )


def check_categories(data: ConfiguredData) -> Iterator[Finding]:
    """Find COCO annotation files that lack classes of the data set or have them in another order."""
    for leaf in data.leaves():
        try:
            file = data.coco_file(leaf)
        except ValueError as broken:
            yield error(leaf.ann_file, f'{broken}.')
            continue
        classes = configured_classes(data, leaf)
        if file is None or not classes:
            continue
        names = [str(category['name']) for category in file.categories]
        for key in ('id', 'name'):
            counts = Counter(str(category[key]) for category in file.categories)
            repeated = [value for value, count in counts.items() if count > 1]
            if repeated:
                sentence = f'Categories of {leaf.ann_file} share the {key} {listed(repeated)}.'
                yield error(leaf.ann_file, sentence, f'Give each category its own {key}.')
        missing = [name for name in classes if name not in names]
        used = [name for name in names if name in set(classes)]
        own = [name for name in names if name not in file.parents]
        setting = f'{leaf.place}.metainfo=dict(classes={tuple(own) if len(own) <= 6 else "(...)"})'
        if missing:
            yield error(
                leaf.place,
                f'{leaf.place} has {len(classes)} classes, and {len(missing)} of them are not among the {len(names)} '
                f'categories of {leaf.ann_file} (missing: {listed(missing)}; there: {listed(names)}).',
                f'Set {setting} and num_classes={len(own)} in every head.',
            )
        elif used != classes:
            yield error(
                leaf.place,
                f'{leaf.place} names its classes in the order {listed(classes)}, and {leaf.ann_file} in the order '
                f'{listed(used)}: mmdet numbers them in the order of the file, so names would be swapped.',
                f'Set {setting}.',
            )
        elif file.ids:
            unused = [not file.class_counts[name] for name in classes]
            groups = sorted(file.parents.intersection(classes))
            remedy = f'{listed(groups)} is a parent category, as Roboflow exports it: leave it out of the classes.'
            find = Things(file.path, f'classes of {leaf}', classes).find
            fault = f'have no annotation in {leaf.ann_file}'
            yield from find('warning', 'class-unused', unused, fault, remedy if groups else '')


def check_heads(data: ConfiguredData) -> Iterator[Finding]:
    """Find heads whose `num_classes` is not the number of the data set's classes, each once."""
    mixing = f' and in {_PREPROCESSOR}, which mixes labels' if data.scope == 'mmpretrain' else ''
    reported: set[str] = set()
    for leaf in data.leaves():
        classes = configured_classes(data, leaf) or leaf.classes_on_disk()
        if classes is None:
            continue
        for place, number in _head_classes(data.cfg.get('model'), 'model'):
            if number != len(classes) and place not in reported:
                reported.add(place)
                yield error(
                    place,
                    f'{place}.num_classes is {number}, and {leaf} has {len(classes)} classes ({listed(classes)}).',
                    f'Set num_classes={len(classes)} in every head{mixing}, or the classes of the data set.',
                )


def configured_classes(data: ConfiguredData, leaf: LeafDataset) -> Any:
    """Return the names of a data set's classes as its config or class defines them, or None."""
    dataset = data.dataset_class(leaf)
    if not hasattr(dataset, '_load_metainfo'):
        return None
    if isinstance(leaf.cfg.get('classes'), (list, tuple)):  # mmpretrain's short form
        return list(leaf.cfg['classes'])
    classes = dataset._load_metainfo(leaf.cfg.get('metainfo')).get('classes')
    return classes if classes is None or isinstance(classes, str) else list(classes)


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


def listed(names: Sequence[str]) -> str:
    """Return the first names as a list in words."""
    return ', '.join(names[:6]) + (f', ... ({len(names)} in all)' if len(names) > 6 else '')
