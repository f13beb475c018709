"""The files of CIFAR-10, the Python version: five batches to train and one to test, each a pickled dict."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_mm.datasets.errors import ImageSetError

CIFAR10_URL = 'https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz'
CIFAR10_FOLDER = 'cifar-10-batches-py'
"""Folder that the archive unpacks to."""
CIFAR10_BATCHES = {
    'train': tuple(f'data_batch_{number}' for number in range(1, 6)),
    'test': ('test_batch',),
}
CIFAR10_CLASSES = (
    'airplane',
    'automobile',
    'bird',
    'cat',
    'deer',
    'dog',
    'frog',
    'horse',
    'ship',
    'truck',
)
_ALLOWED = {
    ('numpy', 'ndarray'),
    ('numpy', 'dtype'),
    ('numpy.core.multiarray', '_reconstruct'),
    ('numpy._core.multiarray', '_reconstruct'),
    ('numpy._core.numeric', '_frombuffer'),  # numpy 2 writes protocol 5 so
    ('_codecs', 'encode'),
}
"""What an array in a pickle needs, and no more: nothing that could run code."""


def cifar10_batches(root: str | Path, split: str) -> list[Path]:
    """Return the paths of a split's batches below `root`, whether they exist or not.

    Raises:
        ValueError: If `split` is neither `'train'` nor `'test'`.
    """
    if split not in CIFAR10_BATCHES:
        raise ValueError(f"split is {split!r}: CIFAR-10 has 'train' and 'test'")
    return [Path(root) / CIFAR10_FOLDER / name for name in CIFAR10_BATCHES[split]]


def read_batch(path: str | Path) -> tuple[np.ndarray, list[int]]:
    """Read one batch, without running anything that the file may contain.

    Args:
        path: A file of CIFAR-10's Python version.

    Returns:
        Pictures `(N, 32, 32, 3)`, RGB, uint8, and their labels, N numbers of 0 to 9.

    Raises:
        ImageSetError: If the file is something else, or damaged.
        FileNotFoundError: If it is not there.
    """
    with open(path, 'rb') as file:
        try:
            batch = _ArraysOnly(file, encoding='latin1').load()
        except Exception as error:  # a damaged pickle fails in any way
            raise ImageSetError(
                f'{path} is not a batch of CIFAR-10, or is damaged: {error}. Unpack {CIFAR10_URL} again'
            ) from error
    # The official files were written by Python 2; own ones may have bytes for keys.
    batch = {_text(key): value for key, value in batch.items()} if isinstance(batch, dict) else {}
    data, labels = np.asarray(batch.get('data', ())), np.asarray(batch.get('labels', ()))
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * 32 * 32:
        raise ImageSetError(
            f'{path} has data of shape {data.shape} and type {data.dtype}: '
            'expected (N, 3072) bytes, the red, green and blue plane of 32 x 32 pictures'
        )
    if labels.shape != data.shape[:1] or not np.isin(labels, range(len(CIFAR10_CLASSES))).all():
        raise ImageSetError(
            f'{path} has labels of shape {labels.shape} for {len(data)} pictures: '
            f'expected one number of 0 to {len(CIFAR10_CLASSES) - 1} for each'
        )
    pictures = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pictures), labels.tolist()


class _ArraysOnly(pickle.Unpickler):
    """Read dicts, lists, strings, numbers and arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f'it asks for {module}.{name}')
        if module == 'numpy.core.multiarray' and hasattr(np, '_core'):
            module = 'numpy._core.multiarray'  # its name since numpy 2
        return super().find_class(module, name)


def _text(key: Any) -> Any:
    return key.decode() if isinstance(key, bytes) else key
