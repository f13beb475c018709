"""The generated data set on disk: one folder of pictures with COCO and with ADE20K-style annotations."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from swinv2_mm.datasets.shape_scene import SHAPE_CLASSES, draw_scene
from swinv2_mm.datasets.staging import is_empty, staged, write_png

_VERSION = 1
"""Raise it when the same parameters draw other pictures: sets written before are then written again."""
_META = 'meta.json'
_SPLITS = ('training', 'validation')
_KINDS = ('images', 'annotations')
_FINE = 4
"""Cells per pixel and direction: the nearest pixel corner of a cell on the edge of a mask is unambiguous."""


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
        meta.json                                          the parameters

    A picture depends only on the seed, its split and its number, so a larger set begins with the pictures of a smaller
    one, and no picture of the training set is in the validation set. Both annotations describe the same pixels exactly.
    A set that lacks a file, or that has other parameters, is written again.

    Args:
        root: Folder of the set. Files in it that are not a set of shapes are an error, and left alone.
        num_train: Number of training pictures.
        num_val: Number of validation pictures.
        image_size: Height and width of the pictures, in pixels, at least 32 each.
        seed: Seed of all randomness.

    Returns:
        True if the set was written, False if a complete one with these parameters was there.
    """
    height, width = image_size
    for name, value, least in (
        ('num_train', num_train, 1),
        ('num_val', num_val, 1),
        ('image_size[0] (height)', height, 32),
        ('image_size[1] (width)', width, 32),
        ('seed', seed, 0),
    ):
        if value < least:
            raise ValueError(f'{name} must be at least {least}, got {value}')
    meta = {
        'generator': 'swinv2_mm shapes',
        'version': _VERSION,
        'training': num_train,
        'validation': num_val,
        'image_size': [height, width],
        'seed': seed,
        'complete': True,
    }
    folder = Path(root)
    if not is_empty(folder) and _read_meta(folder) == meta and _all_there(folder, meta):
        return False
    with staged(folder) as new:
        for number in range(len(_SPLITS)):
            _write_split(new, number, meta)
        _write_json(new / _META, meta)
    return True


def _read_meta(folder: Path) -> dict[str, Any]:
    """Return the parameters of the set in `folder`; raise FileExistsError if something else is there."""
    try:
        meta = json.loads((folder / _META).read_text(encoding='utf-8'))
    except (FileNotFoundError, ValueError):
        meta = None
    if not isinstance(meta, dict) or meta.get('generator') != 'swinv2_mm shapes':
        raise FileExistsError(
            f'{str(folder)!r} holds files that are not a set of generated shapes (no {_META} of one); they were left '
            'alone. Give an empty or a new folder, or delete this one'
        )
    return meta


def _names(count: int) -> list[str]:
    return [f'shape_{index:05d}.png' for index in range(count)]


def _all_there(folder: Path, meta: dict[str, Any]) -> bool:
    return all(
        (folder / 'annotations' / f'instances_{split}.json').is_file()
        and all(
            (folder / k / split / name).is_file() for k in _KINDS for name in _names(meta[split])
        )
        for split in _SPLITS
    )


def _write_split(folder: Path, number: int, meta: dict[str, Any]) -> None:
    split, (height, width) = _SPLITS[number], meta['image_size']
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    for index, name in enumerate(_names(meta[split])):
        scene = draw_scene(np.random.default_rng([meta['seed'], number, index]), height, width)
        labels = np.array((0, *scene.labels), np.uint8)[scene.owners]
        for kind, pixels in zip(_KINDS, (scene.image[..., ::-1], labels)):
            write_png(folder / kind / split / name, pixels)
        images.append({'id': index + 1, 'file_name': name, 'height': height, 'width': width})
        for owner, label in enumerate(scene.labels, start=1):
            mask = scene.owners == owner
            entry = {
                'id': len(annotations) + 1,
                'image_id': index + 1,
                'category_id': label,
                'bbox': list(cv2.boundingRect(mask.astype(np.uint8))),
                'area': int(mask.sum()),
                'iscrowd': 0,
                'segmentation': mask_to_polygons(mask),
            }
            annotations.append(entry)
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
    _write_json(folder / 'annotations' / f'instances_{split}.json', coco)


def mask_to_polygons(mask: np.ndarray) -> list[list[int]]:
    """Outline a mask along the edges between its pixels.

    A contour through pixel centres (what `cv2.findContours` returns) loses half a pixel on each side. The contours of
    an enlarged mask, rounded to pixel corners, rasterise to exactly the mask. COCO polygons do not have holes, so a
    part with a hole is split in two through the hole.

    Returns:
        One flat list `[x0, y0, x1, y1, ...]` per part, in pixels from the top left corner of the image.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(
            f'a mask must be a two-dimensional boolean array, got shape {mask.shape} of {mask.dtype}; '
            'index a batch of masks, or compare labels with `==`, before the call'
        )
    fine = np.kron(mask, np.ones((_FINE, _FINE), np.uint8))
    contours, hierarchy = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    contours = [np.rint(contour[:, 0] / _FINE).astype(int) for contour in contours]
    holes = [i for i in range(len(contours)) if hierarchy[0, i, 3] >= 0]
    if holes:
        columns = contours[holes[0]][:, 0]
        right = np.arange(mask.shape[1]) >= (columns.min() + columns.max() + 1) // 2
        return mask_to_polygons(mask & ~right) + mask_to_polygons(mask & right)
    # The cells on both sides of a concave corner give the same pixel corner twice.
    repeated = ((points == np.roll(points, 1, axis=0)).all(axis=1) for points in contours)
    return [points[~again].ravel().tolist() for points, again in zip(contours, repeated)]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, separators=(',', ':')) + '\n', encoding='utf-8')
