"""What mmpretrain's data sets of whole images expect on disk; looks at paths only."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from swinv2_mm.datasets.cifar_files import CIFAR10_FOLDER, CIFAR10_URL, cifar10_batches
from swinv2_mm.datasets.errors import ImageSetError
from swinv2_mm.datasets.places_files import (
    find_places365,
    places365_layout,
    read_categories,
    read_listing,
)
from swinv2_mm.engine.errors import SetupError

_CIFAR = {'CIFAR10', 'LocalCIFAR10'}
_DOWNLOADING = {'CIFAR100', 'MNIST', 'FashionMNIST'}
"""Data sets that mmpretrain downloads unless it is told not to."""
_FOLDER_SETS = {'CustomDataset', 'ImageNet', 'ImageNet21k'}
"""Data sets that take the names of folders for classes, unless they are given a list."""


def is_cifar(cfg: Mapping[str, Any]) -> bool:
    """Says whether a data set's config is for CIFAR-10."""
    return _kind(cfg) in _CIFAR


def is_places(cfg: Mapping[str, Any]) -> bool:
    """Says whether a data set's config is for Places365."""
    return _kind(cfg) == 'Places365'


def has_class_folders(cfg: Mapping[str, Any]) -> bool:
    """Says whether a data set finds images and classes by walking through one folder per class."""
    if _kind(cfg) not in _FOLDER_SETS or cfg.get('ann_file') or not cfg.get('with_label', True):
        return False
    split = cfg.get('split')
    listing = os.path.join(str(cfg.get('data_root') or ''), 'meta', f'{split}.txt')
    return not (split and os.path.isfile(listing)) and split != 'test'


def image_prefix(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Returns the folder of a data set that names it by its split, in the form of `data_prefix`."""
    if _kind(cfg) not in _FOLDER_SETS:
        return {}
    split = cfg.get('split')
    return {'img_path': str(split or '')} if split or has_class_folders(cfg) else {}


def check_cifar(cfg: Mapping[str, Any], place: str, hint: Callable[[str], str]) -> None:
    """Checks that CIFAR-10 is there, or that its download was asked for.

    mmpretrain's own class would download without being asked.

    Args:
        cfg: Config of the data set.
        place: Where the config defines it, for the message.
        hint: Says of a path how data get there.

    Raises:
        SetupError: A file is missing.
    """
    root = str(cfg.get('data_root') or cfg.get('data_prefix') or '')
    try:
        batches = cifar10_batches(root, str(cfg.get('split', 'train')))
    except ValueError as error:
        raise SetupError(f'{place}: {error}.') from error
    missing = [str(path) for path in batches if not path.is_file()]
    if not missing or cfg.get('download') is True:
        return
    raise SetupError(
        f'{missing[0]} of {place} ({cfg.get("type")}) does not exist; expected: {root}/{CIFAR10_FOLDER}/ with '
        f'data_batch_1 to data_batch_5 and test_batch. Unpack {CIFAR10_URL} in {root}, or let it be downloaded there: '
        f'--cfg-options {place}.download=True. {hint(root)}'
    )


def check_download(cfg: Mapping[str, Any], place: str) -> None:
    """Checks that a data set which downloads by default was told whether to; arguments as of `check_cifar`.

    Raises:
        SetupError: It was not.
    """
    if _kind(cfg) in _DOWNLOADING and 'download' not in cfg:
        raise SetupError(
            f'{place} ({cfg.get("type")}) would download what it misses in {cfg.get("data_root")}: say whether it may, '
            f'--cfg-options {place}.download=True (or False).'
        )


def check_places(cfg: Mapping[str, Any], place: str, hint: Callable[[str], str]) -> None:
    """Checks that Places365 is there in one of its layouts; arguments as of `check_cifar`.

    Raises:
        SetupError: It is not.
    """
    root, split = str(cfg.get('data_root')), str(cfg.get('split', 'train'))
    try:
        found = find_places365(root, split)
    except FileNotFoundError as error:
        raise SetupError(
            f'{place} ({cfg.get("type")}) finds no images in {root}; expected: {places365_layout(root, split)}. '
            f'{hint(root)}'
        ) from error
    except ValueError as error:
        raise SetupError(f'{place}: {error}.') from error
    if found.listing is None:
        check_class_folders(str(found.images), f'{place} ({cfg.get("type")})')


def check_class_folders(folder: str, of: str) -> None:
    """Checks that a folder has folders for classes in it.

    Args:
        folder: The folder.
        of: Whose it is, for the message.

    Raises:
        SetupError: It has none.
    """
    if '://' not in folder and not class_folders(folder):
        raise SetupError(
            f'The folder {folder} of {of} has no folders in it; expected: one for each class, {folder}/<class>/*.jpg.'
        )


def class_folders(folder: str | Path) -> list[str]:
    """Returns the names of the classes in a folder, in the order of their labels."""
    with os.scandir(folder) as entries:
        return sorted(
            item.name for item in entries if item.is_dir()
        )  # hidden ones count, as in mmpretrain


def classes_on_disk(cfg: Mapping[str, Any], folder: str | None) -> list[str] | None:
    """Returns the names of the classes that the files of a data set stand for.

    Args:
        cfg: Config of the data set; its files are there.
        folder: Its folder of images.

    Returns:
        The names in the order of their labels; None if the files do not tell.

    Raises:
        SetupError: A list of files is broken.
    """
    try:
        if is_places(cfg):
            found = find_places365(str(cfg.get('data_root')), str(cfg.get('split', 'train')))
            if found.listing is None:
                return class_folders(found.images)
            if found.categories is not None:
                return read_categories(found.categories)
            last = max(label for _, label in read_listing(found.listing))
            return [str(label) for label in range(last + 1)]
    except ImageSetError as error:
        raise SetupError(f'{error}.') from error
    if has_class_folders(cfg) and folder is not None and '://' not in folder:
        return class_folders(folder)
    return None


def _kind(cfg: Mapping[str, Any]) -> str:
    """Returns the name of a data set's class without the scope."""
    kind = cfg.get('type')
    return kind.rsplit('.', 1)[-1] if isinstance(kind, str) else getattr(kind, '__name__', '')
