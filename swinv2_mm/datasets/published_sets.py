"""The files of CIFAR-10 and Places365-Standard.

CIFAR-10, the Python version, is five batches to train and one to test, each a pickled dict.

Places365 with "easy directory structure" has one folder per class, `{train,val}/<class>/*.jpg`. The other layout has
lists of files: `places365_{train_standard,val}.txt`, with one `path label` per line, `categories_places365.txt`, with
one `/letter/class label` per line, and the pictures in `data_256` (or `data_large`) and `val_256` (`val_large`).
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_mm.checkpoints.allowed import numpy_globals
from swinv2_mm.datasets.errors import ImageSetError

CIFAR10_URL = 'https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz'
CIFAR10_FOLDER = 'cifar-10-batches-py'
"""Folder that the archive unpacks to."""
CIFAR10_BATCHES = {
    'train': tuple(f'data_batch_{number}' for number in range(1, 6)),
    'test': ('test_batch',),
}
_CIFAR10_LABELS = range(10)
_PLACES365_LISTS = {'train': 'places365_train_standard.txt', 'val': 'places365_val.txt'}
_PLACES365_FOLDERS = {
    'train': ('data_256', 'data_256_standard', 'train_256', 'data_large', 'data_large_standard'),
    'val': ('val_256', 'val_large'),
}
_PLACES365_URL = 'http://data.csail.mit.edu/places/places365/places365standard_easyformat.tar'


def cifar10_batches(root: str | Path, split: str) -> list[Path]:
    """Return the paths of a split's batches below `root`, whether they exist or not."""
    if split not in CIFAR10_BATCHES:
        raise ValueError(f"split is {split!r}: CIFAR-10 has 'train' and 'test'")
    return [Path(root) / CIFAR10_FOLDER / name for name in CIFAR10_BATCHES[split]]


def read_batch(path: str | Path) -> tuple[np.ndarray, list[int]]:
    """Read one batch of CIFAR-10, without running code from the file.

    Returns:
        Pictures `(N, 32, 32, 3)`, RGB, uint8, and their labels, N numbers of 0 to 9.
    """
    with open(path, 'rb') as file:
        try:
            batch = _ArraysOnly(file, encoding='latin1').load()
            # The official files were written by Python 2; own ones may have bytes for keys.
            batch = {k.decode() if isinstance(k, bytes) else k: v for k, v in batch.items()}
            data, labels = np.asarray(batch['data']), np.asarray(batch['labels'])
            pictures = data.reshape(*labels.shape, 3, 32, 32).transpose(0, 2, 3, 1)
            if data.dtype != np.uint8 or not np.isin(labels, _CIFAR10_LABELS).all():
                raise ValueError('expected bytes of 32 x 32 pictures and labels of 0 to 9')
        except Exception as error:  # a damaged pickle fails in any way
            raise ImageSetError(
                f'{path} is not a batch of CIFAR-10, or is damaged: {error}. Unpack {CIFAR10_URL} again'
            ) from error
    return np.ascontiguousarray(pictures), labels.tolist()


class _ArraysOnly(pickle.Unpickler):
    """Read dicts, lists, strings, numbers and plain arrays."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a function or class that the file names."""
        allowed = {**numpy_globals(), '_codecs.encode': _encode}
        if f'{module}.{name}' not in allowed:
            raise pickle.UnpicklingError(f'it asks for {module}.{name}')
        return allowed[f'{module}.{name}']


def _encode(text: str, encoding: str) -> bytes:
    """Stands for the function by which Python 3 writes bytes in old protocols."""
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'it asks for the encoding {encoding!r}')
    return text.encode(encoding)


@dataclass(frozen=True)
class PlacesSplit:
    """Where a split of Places365 is."""

    images: Path
    listing: Path | None = (
        None  # lines `path label` relative to `images`, unless classes are folders
    )
    categories: Path | None = None  # names of the classes, if they are beside the list


def find_places365(root: str | Path, split: str) -> PlacesSplit:
    """Find the split `'train'` or `'val'` of Places365; raise FileNotFoundError if it is there in neither layout."""
    if split not in _PLACES365_LISTS:
        raise ValueError(f"split is {split!r}: Places365 has 'train' and 'val'")
    root = Path(root)
    if (root / split).is_dir() and any(item.is_dir() for item in (root / split).iterdir()):
        return PlacesSplit(root / split)
    # The archive of lists unpacks to a folder of its own where it is given one.
    listing = root / _PLACES365_LISTS[split]
    images = [root / name for name in _PLACES365_FOLDERS[split] if (root / name).is_dir()]
    if listing.is_file() and images:
        categories = root / 'categories_places365.txt'
        return PlacesSplit(images[0], listing, categories if categories.is_file() else None)
    raise FileNotFoundError(f'{root} holds {places365_layout(root, split)} in neither layout')


def places365_layout(root: str | Path, split: str) -> str:
    """Return in words what is expected of a split."""
    first, *_, last = _PLACES365_FOLDERS[split]
    return (
        f'{root}/{split}/<class>/*.jpg (easy directory structure, {_PLACES365_URL}), or '
        f'{root}/{_PLACES365_LISTS[split]} with the pictures in {first} or {last}'
    )


def read_listing(path: str | Path) -> list[tuple[str, int]]:
    """Return path and label of each picture in a list, without the slash before paths of the official one."""
    found = []
    for number, line in enumerate(Path(path).read_text(encoding='utf-8').splitlines(), start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(' ')
        if not name or not label.isdigit():
            raise ImageSetError(f'{path}, line {number}: {line[:80]!r}, expected "path label"')
        found.append((name.lstrip('/'), int(label)))
    if not found:
        raise ImageSetError(f'{path} is empty: expected lines "path label"')
    return found


def read_categories(path: str | Path) -> list[str]:
    """Read the names of the classes, in the order of their labels, without their first letter's folder."""
    named = sorted((label, name) for name, label in read_listing(path))
    return [name.split('/', 1)[-1] for _, name in named]
