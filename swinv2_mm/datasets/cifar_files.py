"""The files of CIFAR-10, the Python version: five batches to train and one to test, each a pickled dict."""

from __future__ import annotations

import pickle
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
CIFAR10_CLASSES = (
    *('airplane', 'automobile', 'bird', 'cat', 'deer'),
    *('dog', 'frog', 'horse', 'ship', 'truck'),
)


def cifar10_batches(root: str | Path, split: str) -> list[Path]:
    """Return the paths of a split's batches below `root`, whether they exist or not.

    Raises:
        ValueError: If `split` is neither `'train'` nor `'test'`.
    """
    if split not in CIFAR10_BATCHES:
        raise ValueError(f"split is {split!r}: CIFAR-10 has 'train' and 'test'")
    return [Path(root) / CIFAR10_FOLDER / name for name in CIFAR10_BATCHES[split]]


def read_batch(path: str | Path) -> tuple[np.ndarray, list[int]]:
    """Read one batch, without running code from the file.

    Returns:
        Pictures `(N, 32, 32, 3)`, RGB, uint8, and their labels, N numbers of 0 to 9.

    Raises:
        ImageSetError: If the file is not a batch of CIFAR-10, or damaged.
        FileNotFoundError: If it is not there.
    """
    with open(path, 'rb') as file:
        try:
            batch = _ArraysOnly(file, encoding='latin1').load()
            # The official files were written by Python 2; own ones may have bytes for keys.
            batch = {k.decode() if isinstance(k, bytes) else k: v for k, v in batch.items()}
            data, labels = np.asarray(batch['data']), np.asarray(batch['labels'])
            pictures = data.reshape(*labels.shape, 3, 32, 32).transpose(0, 2, 3, 1)
            if data.dtype != np.uint8 or not np.isin(labels, range(len(CIFAR10_CLASSES))).all():
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
