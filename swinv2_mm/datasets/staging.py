"""Write generated data sets so that an interrupted run leaves no part of one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose entries move to `folder`, in the order of their names, when the block succeeds."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.', dir=folder) as temporary:
        yield Path(temporary)
        for entry in sorted(Path(temporary).iterdir()):
            if entry.is_dir():
                shutil.rmtree(folder / entry.name, ignore_errors=True)
            entry.replace(folder / entry.name)


def is_empty(folder: Path) -> bool:
    """Return whether a folder is empty or missing; hidden files do not count."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f'{str(folder)!r} is a file; give a folder')
    return not folder.exists() or all(item.name.startswith('.') for item in folder.iterdir())


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write a picture, channels in the order of OpenCV, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode('.png', pixels)[1].tobytes())
