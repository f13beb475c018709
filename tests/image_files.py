"""Real pictures, scikit-learn's digits at 32 x 32, in the layouts of public sets of whole images."""

import pickle
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from swinv2_mm.datasets.published_sets import CIFAR10_BATCHES, CIFAR10_FOLDER

CIFAR10_CLASSES = (
    *('airplane', 'automobile', 'bird', 'cat', 'deer'),
    *('dog', 'frog', 'horse', 'ship', 'truck'),
)


def digit_pictures(count: int) -> tuple[np.ndarray, list[int]]:
    """`(count, 32, 32, 3)` pictures and their labels; each channel has a brightness of its own."""
    datasets = pytest.importorskip('sklearn.datasets')
    from swinv2_mm.datasets.digits import enlarge

    found = datasets.load_digits()
    grey = np.stack([enlarge(picture) for picture in found.images[:count]])
    colours = np.stack([grey, grey // 2, 255 - grey], axis=-1)
    return colours, found.target[:count].tolist()


class Python2Pickler(pickle._Pickler):
    """Writes byte strings and the names of numpy's functions as Python 2 did for the official files."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, text):
        short = len(text) < 256
        length = struct.pack('<B' if short else '<I', len(text))
        self.write((b'U' if short else b'T') + length + text)
        self.memoize(text)

    dispatch[bytes] = save_string

    def save_global(self, obj, name=None):
        if getattr(obj, '__name__', '') == '_reconstruct':
            self.write(b'cnumpy.core.multiarray\n_reconstruct\n')
            self.memoize(obj)
        else:
            super().save_global(obj, name)

    dispatch[type(np.ndarray)] = save_global
    dispatch[type(lambda: None)] = save_global
    dispatch[type(len)] = save_global


def write_cifar10(root: Path, per_batch: int = 6) -> tuple[np.ndarray, list[int]]:
    """All six batches of the Python version and `batches.meta`; returns pictures and labels of the training set."""
    names = [*CIFAR10_BATCHES['train'], *CIFAR10_BATCHES['test']]
    pictures, labels = digit_pictures(per_batch * len(names))
    folder = root / CIFAR10_FOLDER
    folder.mkdir(parents=True)
    for index, name in enumerate(names):
        part = slice(index * per_batch, (index + 1) * per_batch)
        planes = pictures[part].transpose(0, 3, 1, 2).reshape(per_batch, 3072)
        batch = {
            b'batch_label': f'batch {index + 1}'.encode(),
            b'labels': labels[part],
            b'data': np.ascontiguousarray(planes),
            b'filenames': [f'digit_{number}.png'.encode() for number in range(per_batch)],
        }
        with (folder / name).open('wb') as file:
            Python2Pickler(file, protocol=2).dump(batch)
    with (folder / 'batches.meta').open('wb') as file:
        meta = {
            b'num_cases_per_batch': per_batch,
            b'label_names': [name.encode() for name in CIFAR10_CLASSES],
            b'num_vis': 3072,
        }
        Python2Pickler(file, protocol=2).dump(meta)
    train = per_batch * len(CIFAR10_BATCHES['train'])
    return pictures[:train], labels[:train]


def write_picture(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture[..., ::-1])


def write_class_folders(root: Path, classes: list[str], per_class: int = 1) -> None:
    """`{train,val}/<class>/*.jpg`: ImageNet, and Places365 with "easy directory structure"."""
    pictures, _ = digit_pictures(min(2 * per_class * len(classes), 1000))
    count = 0
    for split in ('train', 'val'):
        for name in classes:
            for number in range(per_class):
                path = root / split / name / f'{number + 1:08d}.jpg'
                write_picture(path, pictures[count % len(pictures)])
                count += 1


def write_places365_lists(root: Path, categories: list[str]) -> list[tuple[str, int]]:
    """The layout with lists of files; returns the list of the training set."""
    pictures, _ = digit_pictures(2 * len(categories))
    lines: dict[str, list[str]] = {'train': [], 'val': []}
    listed = []
    for label, category in enumerate(categories):
        name = f'/{category[0]}/{category}/00000001.jpg'
        write_picture(root / 'data_256' / name[1:], pictures[2 * label])
        lines['train'].append(f'{name} {label}')
        listed.append((name, label))
        name = f'Places365_val_{label + 1:08d}.jpg'
        write_picture(root / 'val_256' / name, pictures[2 * label + 1])
        lines['val'].append(f'{name} {label}')
    named = [f'/{category[0]}/{category} {label}' for label, category in enumerate(categories)]
    for file, text in (
        ('places365_train_standard.txt', lines['train']),
        ('places365_val.txt', lines['val']),
        ('categories_places365.txt', named),
    ):
        (root / file).write_text('\n'.join(text) + '\n')
    return listed
