"""scikit-learn's handwritten digits as a folder of pictures, one sub-folder per digit."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from swinv2_mm.datasets.staging import is_empty, staged, write_png

DIGIT_SPLITS = {'train': 1437, 'val': 360}
"""Pictures of each split."""
SIDE = 32
"""Height and width of the pictures, in pixels."""
_SEED = 0


def write_digits(root: str | os.PathLike[str]) -> bool:
    """Write the 1797 digits of scikit-learn as grey PNGs of 32 x 32, unless they are there already.

    The layout is `{train,val}/<digit>/<number>.png`, with the numbers of scikit-learn's set. The split is always the
    same: a fifth of each digit's pictures is for validation.

    Source: the test part of the UCI set "Optical Recognition of Handwritten Digits", which comes with scikit-learn as
    `sklearn.datasets.load_digits`: 8 x 8 values of 0 to 16, here times 255 / 16 and four times as wide and high.

    Returns:
        True if the set was written, False if a complete one was there. Anything else there is an error.
    """
    folder = Path(root)
    if not is_empty(folder):
        counts = [len(list((folder / split).glob('[0-9]/*.png'))) for split in DIGIT_SPLITS]
        if counts == [*DIGIT_SPLITS.values()]:
            return False
        raise FileExistsError(
            f'{str(folder)!r} holds something else than the whole set of digits; it was left alone. '
            'Give an empty or a new folder, or delete this one'
        )
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    splits = train_test_split(
        np.arange(len(found.target)),
        train_size=DIGIT_SPLITS['train'],
        test_size=DIGIT_SPLITS['val'],
        stratify=found.target,
        random_state=_SEED,
    )
    with staged(folder) as new:
        for split, numbers in zip(DIGIT_SPLITS, splits):
            for number in numbers:
                path = new / split / str(found.target[number]) / f'{number:04d}.png'
                write_png(path, enlarge(found.images[number]))
    return True


def enlarge(picture: np.ndarray) -> np.ndarray:
    """Return an 8 x 8 picture with values of 0 to 16 as one of 32 x 32 bytes, smoothly enlarged."""
    grey = (picture * (255 / 16)).astype(np.float32)
    large = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return np.rint(large).clip(0, 255).astype(np.uint8)
