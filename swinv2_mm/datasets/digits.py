"""scikit-learn's handwritten digits as a folder of pictures, one sub-folder per digit."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np

DIGIT_SPLITS = {'train': 1437, 'val': 360}
"""Pictures of each split."""
SIDE = 32
"""Height and width of the pictures, in pixels."""
_SEED = 0
_DIGITS = [str(digit) for digit in range(10)]


def write_digits(root: str | os.PathLike[str]) -> bool:
    """Write the 1797 digits of scikit-learn as grey PNGs of 32 x 32, unless they are there already.

    The layout is `{train,val}/<digit>/<number>.png`, where the number is that of the digit in scikit-learn's set. The
    split is the same every time: a fifth of each digit's pictures is held out. The set appears under its name only once
    it is whole.

    Source: the test part of the UCI set "Optical Recognition of Handwritten Digits", which comes with scikit-learn as
    `sklearn.datasets.load_digits`: 8 x 8 values of 0 to 16, here times 255 / 16 and four times as wide and high.

    Args:
        root: Folder of the set; made if need be.

    Returns:
        True if the set was written, False if a complete one was there.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
        FileExistsError: If `root` holds something else, or a part of the set; it is left alone.
        OSError: If `root` cannot be written.
    """
    folder = Path(root)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if _is_complete(folder):
            return False
        raise FileExistsError(
            f'{str(folder)!r} holds something else than the whole set of digits; it was left alone. '
            'Give an empty or a new folder, or delete this one'
        )
    pictures, digits = _load()
    splits = _split(digits)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{folder.name}.', dir=folder.parent) as temporary:
        for split, numbers in splits.items():
            for digit in _DIGITS:
                (Path(temporary) / split / digit).mkdir(parents=True)
            for number in numbers:
                path = Path(temporary) / split / str(digits[number]) / f'{number:04d}.png'
                if not cv2.imwrite(str(path), enlarge(pictures[number])):
                    raise OSError(f'cannot write {path}')
        folder.mkdir(exist_ok=True)
        for split in splits:
            shutil.move(Path(temporary) / split, folder / split)
    return True


def enlarge(picture: np.ndarray) -> np.ndarray:
    """Return an 8 x 8 picture with values of 0 to 16 as one of 32 x 32 bytes, smoothly enlarged."""
    grey = (picture * (255 / 16)).astype(np.float32)
    large = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return np.rint(large).clip(0, 255).astype(np.uint8)


def _load() -> tuple[np.ndarray, np.ndarray]:
    """Return pictures `(1797, 8, 8)` and digits `(1797,)` of scikit-learn's set."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        if error.name != 'sklearn':
            raise
        raise ModuleNotFoundError(
            'the digits come with scikit-learn, which is not installed: '
            "pip install -c constraints.txt '.[classification]'",
            name=error.name,
        ) from error
    found = load_digits()
    return found.images, found.target


def _split(digits: np.ndarray) -> dict[str, list[int]]:
    """Return the numbers of the pictures of each split, each digit in the same share."""
    from sklearn.model_selection import train_test_split

    train, val = train_test_split(
        np.arange(len(digits)),
        train_size=DIGIT_SPLITS['train'],
        test_size=DIGIT_SPLITS['val'],
        stratify=digits,
        random_state=_SEED,
    )
    return {'train': sorted(train.tolist()), 'val': sorted(val.tolist())}


def _is_complete(folder: Path) -> bool:
    """Return whether a folder holds the set."""
    for split, count in DIGIT_SPLITS.items():
        found = [len(list((folder / split / digit).glob('*.png'))) for digit in _DIGITS]
        if sum(found) != count or not all(found):
            return False
    return True
