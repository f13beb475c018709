"""The generated data set on disk: one folder of pictures with COCO and with ADE20K-style annotations."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from swinv2_mm.datasets.outlines import SHAPE_CLASSES
from swinv2_mm.datasets.polygons import mask_to_polygons
from swinv2_mm.datasets.shape_scene import Scene, draw_scene

_VERSION = 1
"""Raise it when the same parameters draw other pictures: sets written before are then written again."""
_META = 'meta.json'
_SPLITS = ('training', 'validation')
_MIN_SIDE = 32


def generate_shapes(
    root: str | os.PathLike[str],
    num_train: int = 1200,
    num_val: int = 150,
    image_size: tuple[int, int] = (128, 128),
    seed: int = 0,
) -> bool:
    """Write the set of shapes, unless it is there already.

    The layout is::

        images/{training,validation}/shape_00000.png       the pictures
        annotations/{training,validation}/shape_00000.png  labels: 0 background, 1..4 the classes of `SHAPE_CLASSES`
        annotations/instances_{training,validation}.json   COCO instances: polygons of the visible part, tight boxes
        meta.json                                          the parameters; says so when the set is complete

    A picture depends only on the seed, its split and its number, so a larger set begins with the pictures of a smaller
    one, and no picture of the training set is in the validation set. Both annotations describe the same pixels exactly.
    A run that was cut short, or that had other parameters, is written again.

    Args:
        root: Folder of the set; made if need be.
        num_train: Number of training pictures, at least 1.
        num_val: Number of validation pictures, at least 1.
        image_size: Height and width of the pictures, in pixels, at least 32 each.
        seed: Seed of all randomness, at least 0.

    Returns:
        True if the set was written, False if a complete one with these parameters was there.

    Raises:
        TypeError: If a number is not an int, or ``image_size`` is not a pair.
        ValueError: If a number is too small.
        FileExistsError: If ``root`` holds files that are not a set of shapes; they are left alone.
        OSError: If ``root`` cannot be written.
    """
    parameters = _check(num_train, num_val, image_size, seed)
    folder = Path(root)
    with _plain_errors(folder):
        state = _read_meta(folder)
        if state == {**parameters, 'complete': True} and _all_there(folder, parameters):
            return False
        _write_set(folder, parameters)
    return True


def _check(num_train: int, num_val: int, image_size: tuple[int, int], seed: int) -> dict[str, Any]:
    if not isinstance(image_size, (tuple, list)) or len(image_size) != 2:
        raise TypeError(f'image_size must be a pair (height, width) in pixels, got {image_size!r}')
    for name, value, least in (
        ('num_train', num_train, 1),
        ('num_val', num_val, 1),
        ('image_size[0] (height)', image_size[0], _MIN_SIDE),
        ('image_size[1] (width)', image_size[1], _MIN_SIDE),
        ('seed', seed, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(
                f'{name} must be a whole number, got {value!r} of type {type(value).__name__}'
            )
        if value < least:
            raise ValueError(f'{name} must be at least {least}, got {value}')
    return {
        'generator': 'swinv2_mm shapes',
        'version': _VERSION,
        'training': num_train,
        'validation': num_val,
        'image_size': list(image_size),
        'seed': seed,
    }


@contextmanager
def _plain_errors(folder: Path) -> Iterator[None]:
    """Add to errors of the file system where the data were to be written, and what to do."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise type(error)(
            f'cannot write the generated shapes to {str(folder)!r} ({error.strerror or error}); '
            'choose a folder that can be written and has room, about 25 KB for a picture'
        ) from error


def _read_meta(folder: Path) -> dict[str, Any] | None:
    """Return what is in ``folder``: the parameters of a set, complete or not, or None if nothing is there yet.

    Raises:
        FileExistsError: If something else is there.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise FileExistsError(f'{str(folder)!r} is a file; give a folder for the generated shapes')
    try:
        meta = json.loads((folder / _META).read_text(encoding='utf-8'))
    except FileNotFoundError:
        if not any(folder.iterdir()):
            return None
        meta = None
    except ValueError:
        meta = None
    if not isinstance(meta, dict) or meta.get('generator') != 'swinv2_mm shapes':
        raise FileExistsError(
            f'{str(folder)!r} holds files that are not a set of generated shapes (no {_META} of one); they were left '
            'alone. Give an empty or a new folder, or delete this one'
        )
    return meta


def _names(count: int) -> list[str]:
    return [f'shape_{index:05d}.png' for index in range(count)]


def _all_there(folder: Path, parameters: dict[str, Any]) -> bool:
    for split in _SPLITS:
        names = set(_names(parameters[split]))
        for kind in ('images', 'annotations'):
            place = folder / kind / split
            if not place.is_dir() or not names <= set(os.listdir(place)):
                return False
        if not (folder / 'annotations' / f'instances_{split}.json').is_file():
            return False
    return True


def _write_set(folder: Path, parameters: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Every file appears under its name only once it is whole, so two processes that write the same set do no harm.
    _write(folder, _META, _to_json({**parameters, 'complete': False}))
    for number, split in enumerate(_SPLITS):
        names = _names(parameters[split])
        for kind in ('images', 'annotations'):
            place = folder / kind / split
            place.mkdir(parents=True, exist_ok=True)
            for left_over in set(os.listdir(place)) - set(names):
                if left_over.startswith('shape_'):
                    (place / left_over).unlink(missing_ok=True)
        _write_split(folder, split, number, names, parameters)
    _write(folder, _META, _to_json({**parameters, 'complete': True}))


def _write_split(
    folder: Path, split: str, number: int, names: list[str], parameters: dict[str, Any]
) -> None:
    height, width = parameters['image_size']
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        scene = draw_scene(
            np.random.default_rng([parameters['seed'], number, index]), height, width
        )
        labels = np.array((0, *scene.labels), np.uint8)[scene.owners]
        _write(folder / 'images' / split, name, _to_png(scene.image[..., ::-1]))
        _write(folder / 'annotations' / split, name, _to_png(labels))
        images.append({'id': index + 1, 'file_name': name, 'height': height, 'width': width})
        for instance in _instances(scene):
            annotations.append({'id': len(annotations) + 1, 'image_id': index + 1, **instance})
    coco = {
        'info': {'description': 'generated shapes', 'version': str(_VERSION)},
        'licenses': [],
        'images': images,
        'annotations': annotations,
        'categories': [
            {'id': label, 'name': name, 'supercategory': 'shape'}
            for label, name in enumerate(SHAPE_CLASSES, start=1)
        ],
    }
    _write(folder / 'annotations', f'instances_{split}.json', _to_json(coco))


def _instances(scene: Scene) -> Iterator[dict[str, Any]]:
    for owner, label in enumerate(scene.labels, start=1):
        mask = scene.owners == owner
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        left, top = int(columns[0]), int(rows[0])
        yield {
            'category_id': label,
            'bbox': [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
            'area': int(mask.sum()),
            'iscrowd': 0,
            'segmentation': mask_to_polygons(mask),
        }


def _to_png(pixels: np.ndarray) -> bytes:
    done, encoded = cv2.imencode('.png', pixels)
    if not done:
        raise OSError(f'OpenCV could not encode a picture of shape {pixels.shape} as PNG')
    return encoded.tobytes()


def _to_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, separators=(',', ':')) + '\n').encode()


def _write(folder: Path, name: str, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f'.{name}.', dir=folder)
    try:
        with os.fdopen(handle, 'wb') as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, folder / name)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
