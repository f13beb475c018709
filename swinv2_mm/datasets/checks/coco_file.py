"""The fields of a COCO annotation file as columns, read without the trust that pycocotools has in them."""

from __future__ import annotations

import gc
import json
import re
from collections import Counter
from functools import cached_property
from itertools import chain, compress
from pathlib import Path
from typing import Any

import numpy as np
import orjson

Array = np.ndarray
_RUNS = re.compile(r'([P-o]{0,7}[0-O])+')
"""Compressed run lengths: groups of five bits, all but the last one of a run with a sixth bit, each plus 48."""


class CocoFile:
    """Columns of a COCO annotation file, one row per image, annotation, polygon or run-length mask.

    Numbers that are missing or of another type are NaN, ids None. The content of the file is not kept.

    Raises:
        ValueError: It is not a COCO json; the message says why.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        collecting = gc.isenabled()
        gc.disable()  # it would look at millions of new lists again and again
        try:
            content = _read(Path(path))
            self.categories = content['categories']
            self._read_images(content['images'])
            self._read_annotations(content.get('annotations', []))
        except (OSError, ValueError, OverflowError) as broken:
            reason = f'The annotation file {path} is not a COCO json: {broken}'
            raise ValueError(reason) from broken
        finally:
            if collecting:
                gc.enable()

    @cached_property
    def class_counts(self) -> dict[str, int]:
        """Number of annotations of each category, crowds left out."""
        counts = Counter(compress(self.category_ids, (~self.crowd).tolist()))
        return {str(item['name']): counts[item['id']] for item in self.categories}

    @cached_property
    def parents(self) -> set[str]:
        """Categories that are only the group of others, as Roboflow exports them."""
        groups = _column(self.categories, 'supercategory')
        tops = [
            str(category['name'])
            for category, group in zip(self.categories, groups)
            if group in (None, '', 'none')
        ]
        return {name for name in tops if name in groups and not self.class_counts[name]}

    def _read_images(self, images: list[dict[str, Any]]) -> None:
        self.image_ids = _ids(images, 'id')
        names = _column(images, 'file_name')
        self.file_names = [name if isinstance(name, str) else None for name in names]
        self.sizes = np.stack([_numbers(_column(images, key)) for key in ('width', 'height')], -1)

    def _read_annotations(self, annotations: list[dict[str, Any]]) -> None:
        self.ids = _ids(annotations, 'id')
        self.category_ids = _ids(annotations, 'category_id')
        self.of_image_ids = _ids(annotations, 'image_id')
        self.area = _numbers(_column(annotations, 'area'))
        crowd = _column(annotations, 'iscrowd')
        self.crowd_missing = np.array([value is None for value in crowd], bool)
        self.crowd = np.array([bool(value) for value in crowd], bool)
        boxes = _column(annotations, 'bbox')
        self.box_missing = np.array([box is None for box in boxes], bool)
        self.boxes = _vectors(boxes, 4)
        row = {key: index for index, key in enumerate(self.image_ids) if key is not None}
        self.image_rows = np.array([row.get(key, -1) for key in self.of_image_ids], int)
        # The last row is that of annotations without an image.
        self.image_sizes = np.append(self.sizes, [[np.nan] * 2], 0)[self.image_rows]
        segmentations = _column(annotations, 'segmentation')
        self.mask_missing = np.array([not mask for mask in segmentations], bool)
        self.polygons = Polygons(segmentations)
        self.run_lengths = RunLengths(segmentations)


class Polygons:
    """All polygons of a list of segmentations: the rows of the annotations that own them, and what they are.

    `malformed` ones are not lists of numbers, e.g. lists of pairs; `lengths` are the counts of numbers. `lower` and
    `upper` are the least and greatest x and y, `(n, 2)`, NaN for polygons without whole points.
    """

    def __init__(self, segmentations: list[Any]) -> None:
        lists = [mask if isinstance(mask, list) else [] for mask in segmentations]
        self.owners = np.repeat(np.arange(len(lists)), [len(mask) for mask in lists])
        polygons = list(chain.from_iterable(lists))
        self.malformed: Any = np.zeros(len(polygons), bool)
        if not _are_numbers(polygons):
            self.malformed = np.array([not _are_numbers([polygon]) for polygon in polygons], bool)
            polygons = [[] if bad else p for p, bad in zip(polygons, self.malformed)]
        self.lengths = np.array([len(polygon) for polygon in polygons], int)
        points = self.lengths // 2
        numbers: Array = np.fromiter(chain.from_iterable(polygons), float, self.lengths.sum())
        ends = np.cumsum(self.lengths)
        owner = np.searchsorted(ends, np.flatnonzero(~np.isfinite(numbers)), 'right')
        self.finite = np.bincount(owner, minlength=len(polygons)) == 0
        odd = self.lengths % 2 == 1
        if odd.any():  # without their last numbers, x and y alternate
            numbers = np.delete(numbers, ends[odd] - 1)
        pairs = numbers.reshape(-1, 2)
        some, starts = points > 0, np.cumsum(points) - points
        self.lower, self.upper = np.full((2, len(polygons), 2), np.nan)
        if some.any():
            self.lower[some] = np.minimum.reduceat(pairs, starts[some])
            self.upper[some] = np.maximum.reduceat(pairs, starts[some])


class RunLengths:
    """All run-length masks of a list of segmentations, with the rows of the annotations that own them.

    `broken` are masks whose runs are missing, negative, or do not add up to the `sizes`, `(n, 2)` width and height.
    """

    def __init__(self, segmentations: list[Any]) -> None:
        masks = [(row, mask) for row, mask in enumerate(segmentations) if isinstance(mask, dict)]
        self.owners = np.array([row for row, _ in masks], int)
        self.sizes = _vectors([mask.get('size') for _, mask in masks], 2)[:, ::-1]
        totals = np.array([sum_of_runs(mask.get('counts')) for _, mask in masks], float)
        self.broken = totals != self.sizes.prod(-1)


def sum_of_runs(counts: Any) -> float:
    """Return the number of pixels of a run-length code, NaN if it is broken: pycocotools reads beyond its end.

    It is a list of whole numbers of at least 0, or a text, which from the fourth run on has the difference from the
    last run but one.
    """
    if isinstance(counts, list):
        return sum(counts) if all(type(run) is int and run >= 0 for run in counts) else np.nan
    if not isinstance(counts, str) or not _RUNS.fullmatch(counts):
        return np.nan
    runs: list[int] = []
    value = shift = 0
    for character in counts.encode():
        code = character - 48
        value |= (code & 31) << shift
        shift += 5
        if code < 32:
            if code & 16:
                value -= 1 << shift
            if len(runs) > 2:
                value += runs[-2]
            runs.append(value)
            value = shift = 0
    return sum(runs) if min(runs) >= 0 else np.nan


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a json; raise ValueError if its lists are not lists of dicts."""
    text = path.read_bytes()
    if not text:
        raise ValueError('it is empty')
    try:
        try:
            content = orjson.loads(text)  # three times as fast as json
        except ValueError:
            content = json.loads(text)  # takes NaN, which is to be found here
    except RecursionError:
        raise ValueError('its lists are nested too deeply') from None
    if not isinstance(content, dict):
        raise ValueError(f'it holds a {type(content).__name__}, expected a dict')
    for key in ('images', 'categories', 'annotations'):
        if key not in content and key != 'annotations':  # a test set may have none
            raise ValueError(f"it has no key '{key}' (there: {', '.join(list(content)[:6])})")
        value = content.get(key, [])
        if not isinstance(value, list) or not set(map(type, value)) <= {dict}:
            raise ValueError(f'its "{key}" are not a list of dicts')
    if not all(
        isinstance(item.get('id'), (int, str)) and 'name' in item for item in content['categories']
    ):
        raise ValueError('its "categories" are not a list of {"id": ..., "name": ...}')
    return content


def _column(items: list[dict[str, Any]], key: str) -> list[Any]:
    return [item.get(key) for item in items]


def _ids(items: list[dict[str, Any]], key: str) -> list[Any]:
    """Return a column of ids, None for those that are missing or of a type that cannot be an id."""
    values = _column(items, key)
    return [value if isinstance(value, (int, float, str)) else None for value in values]


def _are_numbers(rows: list[Any]) -> bool:
    """Return whether all rows are lists of numbers."""
    if not set(map(type, rows)) <= {list}:
        return False
    return set(map(type, chain.from_iterable(rows))) <= {int, float}


def _numbers(values: list[Any]) -> Array:
    """Return the values as floats, NaN where they are not numbers."""
    if not set(map(type, values)) <= {int, float}:
        values = [value if type(value) in (int, float) else np.nan for value in values]
    return np.array(values, float)


def _vectors(values: list[Any], count: int) -> Array:
    """Return lists of `count` numbers as rows, NaN for all others."""
    whole = [v if isinstance(v, list) and len(v) == count else [None] * count for v in values]
    return _numbers(list(chain.from_iterable(whole))).reshape(-1, count)
