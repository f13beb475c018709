"""The fields of a COCO annotation file as columns, read without the trust that pycocotools has in them."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import chain, compress
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray


class CocoFile:
    """Columns of a COCO annotation file, one row per image, annotation, polygon or run-length mask.

    Numbers that are missing or of another type are NaN, ids None.

    Args:
        path: The file; it is parsed once, and its content is not kept.

    Raises:
        ValueError: It is not a COCO json; the message says why.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        with _no_garbage_collection():
            try:
                content = _read(self.path)
                self.categories = content['categories']
                self._read_images(content['images'])
                self._read_annotations(content.get('annotations', []))
            except (OSError, ValueError, OverflowError) as broken:
                reason = f'The annotation file {path} is not a COCO json: {broken}'
                raise ValueError(reason) from broken

    @cached_property
    def class_counts(self) -> dict[str, int]:
        """Number of annotations of each category, crowds left out."""
        counts = Counter(compress(self.category_ids, (~self.crowd).tolist()))
        return {str(item['name']): counts[item['id']] for item in self.categories}

    def _read_images(self, images: list[dict[str, Any]]) -> None:
        self.image_ids = _ids(images, 'id')
        self.file_names = [
            name if isinstance(name, str) else None for name in _column(images, 'file_name')
        ]
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
        whole = [box if isinstance(box, list) and len(box) == 4 else [None] * 4 for box in boxes]
        self.boxes = _numbers(list(chain.from_iterable(whole))).reshape(-1, 4)
        row = {key: index for index, key in enumerate(self.image_ids) if key is not None}
        self.image_rows = np.array([row.get(key, -1) for key in self.of_image_ids], int)
        known = self.image_rows >= 0
        self.image_sizes = np.full((len(annotations), 2), np.nan)
        self.image_sizes[known] = self.sizes[self.image_rows[known]]
        segmentations = _column(annotations, 'segmentation')
        self.mask_missing = np.array([not mask for mask in segmentations], bool)
        self.polygons = Polygons(segmentations)
        self.run_lengths = RunLengths(segmentations)


class Polygons:
    """All polygons of a list of segmentations.

    Attributes:
        owners: Row of the annotation of each polygon.
        malformed: Polygons that are not lists of numbers, e.g. lists of pairs.
        lengths: Numbers in each polygon; 0 for malformed ones.
        finite: Polygons without NaN and infinite numbers.
        lower, upper: `(n, 2)` least and greatest x and y; NaN for polygons without whole points.
    """

    def __init__(self, segmentations: list[Any]) -> None:
        counts = [len(mask) if isinstance(mask, list) else 0 for mask in segmentations]
        self.owners = np.repeat(np.arange(len(counts)), counts)
        polygons = list(chain.from_iterable(m for m in segmentations if isinstance(m, list)))
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
        if (
            self.lengths % 2
        ).any():  # leave the last number of odd ones out, so that x and y alternate
            numbers = np.delete(numbers, ends[self.lengths % 2 == 1] - 1)
        some, starts = points > 0, np.cumsum(points) - points
        self.lower = np.full((len(polygons), 2), np.nan)
        self.upper = self.lower.copy()
        if some.any():
            pairs = numbers.reshape(-1, 2)
            self.lower[some] = np.minimum.reduceat(pairs, starts[some])
            self.upper[some] = np.maximum.reduceat(pairs, starts[some])


class RunLengths:
    """All run-length masks of a list of segmentations.

    Attributes:
        owners: Row of the annotation of each mask.
        sizes: `(n, 2)` width and height; NaN if they are missing.
        broken: Masks whose runs are missing, negative, or do not add up to the size.
    """

    def __init__(self, segmentations: list[Any]) -> None:
        masks = [(row, mask) for row, mask in enumerate(segmentations) if isinstance(mask, dict)]
        self.owners = np.array([row for row, _ in masks], int)
        sizes = [mask.get('size') for _, mask in masks]
        whole = [s[::-1] if isinstance(s, list) and len(s) == 2 else [None] * 2 for s in sizes]
        self.sizes = _numbers(list(chain.from_iterable(whole))).reshape(-1, 2)
        counts = [mask.get('counts') for _, mask in masks]
        totals = np.array([_sum_of_runs(runs) for runs in counts], float)
        texts = {row: runs for row, runs in enumerate(counts) if isinstance(runs, str) and runs}
        totals[list(texts)] = compressed_totals(list(texts.values()))
        self.broken = totals != self.sizes.prod(-1)


def compressed_totals(texts: list[str]) -> Array:
    """Return the number of pixels that each compressed run-length code covers, NaN if the code is broken.

    pycocotools reads broken codes beyond their end. A run is written in groups of five bits, least first, each plus 48;
    from the fourth run on, the difference from the last run but one is written.
    """
    if not texts:
        return np.zeros(0)
    lengths = np.array([len(text) for text in texts])
    codes = np.frombuffer(''.join(texts).encode('latin-1', 'replace'), np.uint8).astype(int) - 48
    text = np.repeat(np.arange(len(texts)), lengths)
    last = np.cumsum(lengths) - 1
    ends = codes & 32 == 0  # of the runs
    broken = ~ends[last] | (np.bincount(text, (codes < 0) | (codes > 63), len(texts)) > 0)
    ends[last] = True
    start = np.append(0, np.flatnonzero(ends)[:-1] + 1)
    run = np.cumsum(ends) - ends
    group = np.arange(len(codes)) - start[run]
    broken |= np.bincount(text, group > 7, len(texts)) > 0
    value = np.bincount(run, (codes & 31) * 2.0 ** (5 * np.minimum(group, 7)))
    final = np.flatnonzero(ends)
    value -= np.where(codes[final] & 16, 2.0 ** (5 * np.minimum(group[final] + 1, 8)), 0)
    text = text[final]
    number = np.arange(len(value)) - np.searchsorted(text, text)  # of the run in its text
    for parity in (0, 1):
        chosen = np.flatnonzero((number % 2 == parity) & (number > 0))
        if len(chosen):
            sums, of = np.cumsum(value[chosen]), text[chosen]
            first = np.searchsorted(of, of)
            value[chosen] = sums - np.where(first > 0, sums[first - 1], 0)
    broken |= np.bincount(text, value < 0, len(texts)) > 0
    return np.where(broken, np.nan, np.bincount(text, value, len(texts)))


def _sum_of_runs(runs: Any) -> float:
    """Return the sum of uncompressed runs, NaN if they are not whole numbers of at least 0."""
    whole = isinstance(runs, list) and all(type(run) is int and run >= 0 for run in runs)
    return sum(runs) if whole else np.nan


def _read(path: str) -> dict[str, Any]:
    """Return the content of a json after checking that its lists are lists of dicts.

    Raises:
        ValueError: They are not.
    """
    if Path(path).stat().st_size == 0:
        raise ValueError('it is empty')
    try:
        content = _parse(Path(path).read_bytes())
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


def _parse(text: bytes) -> Any:
    """Return the content of a json; orjson is three times as fast, and refuses NaN, which is to be found here."""
    try:
        import orjson

        return orjson.loads(text)
    except (ImportError, ValueError):
        return json.loads(text)


def _column(items: list[dict[str, Any]], key: str) -> list[Any]:
    return [item.get(key) for item in items]


def _ids(items: list[dict[str, Any]], key: str) -> list[Any]:
    """Return a column of ids, None for those that are missing or of a type that cannot be an id."""
    values = _column(items, key)
    if set(map(type, values)) <= {int, str}:
        return values
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


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Parse without garbage collection, which would look at millions of new lists again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
