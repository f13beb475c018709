"""What mmpretrain's data sets of whole images expect on disk; only paths are looked at."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from swinv2_mm.datasets.checks.finding import Finding, error
from swinv2_mm.datasets.cifar_files import CIFAR10_FOLDER, CIFAR10_URL, cifar10_batches
from swinv2_mm.datasets.places_files import (
    find_places365,
    places365_layout,
    read_categories,
    read_listing,
)

_CIFAR = {'CIFAR10', 'LocalCIFAR10'}
_DOWNLOADING = {'CIFAR100', 'MNIST', 'FashionMNIST'}
"""Data sets that mmpretrain downloads unless `download=False`."""
_FOLDER_SETS = {'CustomDataset', 'ImageNet', 'ImageNet21k'}
"""Data sets that take the names of folders for classes, unless they are given a list."""


def find_image_set(cfg: Mapping[str, Any], place: str, hint: str) -> Iterator[Finding] | None:
    """Return the findings about a data set whose files have a layout of their own, or None for any other.

    Args:
        cfg: Config of the data set.
        place: Where the config defines it.
        hint: How the data get to where the config looks.
    """
    kind = dataset_kind(cfg)
    if kind in _CIFAR:
        return _find_cifar(cfg, place, hint)
    if kind == 'Places365':
        return _find_places(cfg, place, hint)
    if kind in _DOWNLOADING and 'download' not in cfg:
        sentence = f'{place} ({kind}) would download what is missing in {cfg.get("data_root")}.'
        remedy = f'Allow or forbid it: --cfg-options {place}.download=True (or False).'
        return iter([error(place, sentence, remedy)])
    return None


def _find_cifar(cfg: Mapping[str, Any], place: str, hint: str) -> Iterator[Finding]:
    """Yield a missing file of CIFAR-10, unless the download was asked for; mmpretrain's own class needs no asking."""
    root = str(cfg.get('data_root') or cfg.get('data_prefix') or '')
    try:
        batches = cifar10_batches(root, str(cfg.get('split', 'train')))
    except ValueError as wrong_split:
        yield error(place, f'{place}: {wrong_split}.')
        return
    missing = [path for path in batches if not path.is_file()]
    if missing and cfg.get('download') is not True:
        yield error(
            missing[0],
            f'{missing[0]} of {place} ({cfg.get("type")}) does not exist; expected: {root}/{CIFAR10_FOLDER}/ with '
            'data_batch_1 to data_batch_5 and test_batch.',
            f'Unpack {CIFAR10_URL} in {root}, or download it: --cfg-options {place}.download=True. {hint}',
        )


def _find_places(cfg: Mapping[str, Any], place: str, hint: str) -> Iterator[Finding]:
    """Yield a finding if Places365 is in none of its layouts."""
    root, split = str(cfg.get('data_root')), str(cfg.get('split', 'train'))
    of = f'{place} ({cfg.get("type")})'
    try:
        found = find_places365(root, split)
    except FileNotFoundError:
        expected = places365_layout(root, split)
        yield error(root, f'{of} finds no images in {root}; expected: {expected}.', hint)
    except ValueError as wrong_split:
        yield error(place, f'{place}: {wrong_split}.')
    else:
        if found.listing is None:
            yield from find_class_folders(str(found.images), of)


def find_class_folders(folder: str, of: str) -> Iterator[Finding]:
    """Yield a finding if `folder`, which belongs to the data set `of`, does not hold one folder per class."""
    if '://' not in folder and not class_folders(folder):
        yield error(
            folder,
            f'The folder {folder} of {of} has no folders in it; expected: one for each class, {folder}/<class>/*.jpg.',
        )


def has_class_folders(cfg: Mapping[str, Any]) -> bool:
    """Return whether a data set takes images and classes from one folder per class."""
    if (
        dataset_kind(cfg) not in _FOLDER_SETS
        or cfg.get('ann_file')
        or not cfg.get('with_label', True)
    ):
        return False
    split = cfg.get('split')
    listing = os.path.join(str(cfg.get('data_root') or ''), 'meta', f'{split}.txt')
    return not (split and os.path.isfile(listing)) and split != 'test'


def image_prefix(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Return the folder of a data set that names it by its split, in the form of `data_prefix`."""
    if dataset_kind(cfg) not in _FOLDER_SETS:
        return {}
    split = cfg.get('split')
    return {'img_path': str(split or '')} if split or has_class_folders(cfg) else {}


def class_folders(folder: str | Path) -> list[str]:
    """Return the names of the classes in a folder, in the order of their labels."""
    with os.scandir(folder) as entries:
        return sorted(
            item.name for item in entries if item.is_dir()
        )  # mmpretrain counts hidden ones


def classes_on_disk(cfg: Mapping[str, Any], folder: str | None) -> list[str] | None:
    """Return the names of the classes that the files of a data set stand for, in the order of their labels.

    Args:
        cfg: Config of the data set, whose files exist.
        folder: Its folder of images.

    Returns:
        The names, or None if the files do not tell.

    Raises:
        ImageSetError: A list of files is broken.
    """
    if dataset_kind(cfg) == 'Places365':
        found = find_places365(str(cfg.get('data_root')), str(cfg.get('split', 'train')))
        if found.listing is None:
            return class_folders(found.images)
        if found.categories is not None:
            return read_categories(found.categories)
        last = max(label for _, label in read_listing(found.listing))
        return [str(label) for label in range(last + 1)]
    if has_class_folders(cfg) and folder is not None and '://' not in folder:
        return class_folders(folder)
    return None


def dataset_kind(cfg: Mapping[str, Any]) -> str:
    """Return the name of a data set's class without the scope."""
    kind = cfg.get('type')
    return kind.rsplit('.', 1)[-1] if isinstance(kind, str) else getattr(kind, '__name__', '')
