"""Faults of COCO annotation files.

mmdet drops annotations without a message, and pycocotools ends the process with a segmentation fault on an infinite
coordinate. The checks here look at every annotation of a file and build nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from swinv2_mm.datasets.checks.coco_file import CocoFile
from swinv2_mm.datasets.checks.configured import ConfiguredData, LeafDataset, as_list
from swinv2_mm.datasets.checks.finding import Finding, Severity, Things

_BEYOND = 0.05
"""Share of the image's side by which a box or polygon may extend beyond it: tools round differently."""
_MANY_BEYOND = 0.5
"""Share of boxes beyond their images from which their format must be another one."""
_FAR = 1e6
"""Coordinates of polygons above which pycocotools, which walks along their edges, does not end well."""


class _Json:
    """A file, and whether the model or the evaluator reads its masks, and pycocotools evaluates with it."""

    def __init__(self, file: CocoFile) -> None:
        self.file, self.masks, self.evaluated = file, False, False
        path = file.path
        self.images = Things(path, f'images in {path}', file.file_names).find
        self.annotations = Things(path, f'annotations in {path}', file.ids, '; ids').find


def _find_ids(json: _Json) -> Iterator[Finding]:
    """Ids that are missing or not unique; mmdet looks images and annotations up by them."""
    file = json.file
    yield from json.images('error', 'image-id', _are_none(file.image_ids), "have no valid 'id'")
    yield from json.annotations('error', 'annotation-id', _are_none(file.ids), "have no valid 'id'")
    unique = 'Number them anew: 1, 2, 3, ...'
    repeated = _are_repeated(file.image_ids)
    fault = 'share an id with another, and only the last one with it is read'
    yield from json.images('error', 'image-id-repeated', repeated, fault, unique)
    repeated = _are_repeated(file.ids)
    fault = 'share an id with another annotation'
    yield from json.annotations('error', 'annotation-id-repeated', repeated, fault, unique)
    if json.evaluated:
        zero = np.array([key == 0 for key in file.ids], bool)
        fault = 'have the id 0, which pycocotools takes for "not found" in the evaluation'
        yield from json.annotations('warning', 'annotation-id-zero', zero, fault, unique)


def _find_links(json: _Json) -> Iterator[Finding]:
    """Annotations of images and categories that the file does not have."""
    file = json.file
    known = [category['id'] for category in file.categories]
    for what, links, ids in (
        ('image', file.of_image_ids, file.image_ids),
        ('category', file.category_ids, known),
    ):
        missing = _are_none(links)
        fault = f'have no valid {what}_id'
        yield from json.annotations('error', f'{what}-id-missing', missing, fault)
        there = {key for key in ids if key is not None}
        unknown = np.array([key not in there for key in links], bool) & ~missing
        texts = {str(key) for key in there}
        retyped = unknown.copy()
        retyped[unknown] = [str(links[row]) in texts for row in np.flatnonzero(unknown)]
        fault = f'have a {what}_id that is written as another type than the id it means (1 and "1"), and are dropped'
        remedy = 'Write all ids as numbers.'
        yield from json.annotations('error', f'{what}-id-type', retyped, fault, remedy)
        severity: Severity | None = None if what == 'image' else 'error'
        fault = f'have a {what}_id that is not in the file, and are dropped'
        yield from json.annotations(severity, f'{what}-id-unknown', unknown & ~retyped, fault)


def _find_images(json: _Json) -> Iterator[Finding]:
    """Images without a file name or size, or listed twice."""
    file = json.file
    missing = _are_none(file.file_names)
    yield from json.images('error', 'file-name', missing, "have no 'file_name'")
    wrong = ~(np.isfinite(file.sizes) & (file.sizes > 0)).all(-1)
    fault = "have no 'width' and 'height' of at least 1"
    yield from json.images('error', 'image-size-missing', wrong, fault)
    fault = 'are listed more than once, and are separate images to mmdet'
    repeated = _are_repeated(file.file_names)
    yield from json.images('warning', 'image-repeated', repeated, fault)


def _find_boxes(json: _Json) -> Iterator[Finding]:
    """Boxes and areas that crash the reader or that it drops, and crowds."""
    file = json.file
    missing = file.box_missing
    yield from json.annotations('error', 'box-missing', missing, "have no 'bbox'")
    wrong = ~missing & ~np.isfinite(file.boxes).all(-1)
    fault = 'have a bbox that is not four finite numbers'
    yield from json.annotations('error', 'box-not-finite', wrong, fault, 'Write [x, y, w, h].')
    start, size = file.boxes[:, :2], file.boxes[:, 2:]
    fault = 'have a bbox of negative width or height, and are dropped'
    yield from json.annotations('error', 'box-negative', (size < 0).any(-1), fault)
    empty = ((size >= 0) & (size < 1)).any(-1)
    fault = 'have a bbox below one pixel in width or height, and are dropped'
    remedy = 'Boxes are counted in pixels, not in shares of the image.'
    yield from json.annotations(None, 'box-empty', empty, fault, remedy)
    outside = ((start >= file.image_sizes) | (start + size <= 0)).any(-1)
    fault = 'have a bbox outside of the image, and are dropped'
    yield from json.annotations(None, 'box-outside', outside & ~empty, fault)
    beyond = _are_beyond(start, start + size, file.image_sizes)
    many = beyond.sum() > _MANY_BEYOND * len(beyond)
    fault = 'have a bbox that extends beyond the image'
    remedy = 'A bbox is [x, y, w, h], not [x1, y1, x2, y2].' if many else ''
    severity: Severity = 'error' if many else 'warning'
    yield from json.annotations(severity, 'box-beyond', beyond & ~outside, fault, remedy)
    remedy = "Write the area of the mask, or of the bbox, in pixels as 'area'."
    fault = "have no 'area' that is a finite number"
    yield from json.annotations('error', 'area-missing', ~np.isfinite(file.area), fault, remedy)
    fault = 'have an area of 0 or less, and are dropped'
    yield from json.annotations(None, 'area-zero', file.area <= 0, fault, remedy)
    if json.evaluated:
        fault = "have no 'iscrowd', which pycocotools needs in the evaluation"
        missing = file.crowd_missing
        yield from json.annotations('error', 'crowd-missing', missing, fault, 'Write "iscrowd": 0.')
    if file.crowd.all():
        fault = 'are crowds, which are ignored, and there are no others'
        remedy = 'Write "iscrowd": 0 for single objects.'
        yield from json.annotations('error', 'all-crowd', file.crowd, fault, remedy)


def _find_masks(json: _Json) -> Iterator[Finding]:
    """Polygons and run-length masks that crash pycocotools or that mmdet flags as ignored."""
    file, polygons, runs = json.file, json.file.polygons, json.file.run_lengths

    def owners(rows: np.ndarray, of: np.ndarray = polygons.owners) -> np.ndarray:
        return np.bincount(of[rows], minlength=len(file.ids)) > 0

    if not json.masks:
        return
    fault = "have no 'segmentation' or an empty one, and the config reads masks"
    remedy = 'Add masks, or train a model without a mask head (Faster R-CNN).'
    yield from json.annotations('error', 'mask-missing', file.mask_missing, fault, remedy)
    fault = 'have a polygon that is not a list of numbers'
    remedy = 'Write [[x1, y1, x2, y2, ...], ...].'
    malformed = owners(polygons.malformed)
    yield from json.annotations('error', 'polygon-malformed', malformed, fault, remedy)
    fault = 'have a polygon with NaN or infinite coordinates, on which pycocotools crashes'
    yield from json.annotations('error', 'polygon-not-finite', owners(~polygons.finite), fault)
    fault = f'have a polygon with coordinates above {_FAR:g}, for which pycocotools asks for all of the memory'
    far = np.maximum(np.abs(polygons.lower), np.abs(polygons.upper)).max(-1, initial=0) > _FAR
    far &= polygons.finite
    yield from json.annotations('error', 'polygon-far', owners(far), fault)
    short = ((polygons.lengths % 2 > 0) | (polygons.lengths < 6)) & ~polygons.malformed
    fault = 'have a polygon of fewer than three points or an odd number of coordinates, which is left out'
    yield from json.annotations(None, 'polygon-short', owners(short), fault)
    outside = _are_beyond(polygons.lower, polygons.upper, file.image_sizes[polygons.owners])
    beyond = owners(outside & polygons.finite & ~far)
    severity: Severity = 'error' if beyond.sum() > _MANY_BEYOND * len(beyond) else 'warning'
    fault = 'have a polygon that extends beyond the image'
    yield from json.annotations(severity, 'polygon-beyond', beyond, fault)
    flat = polygons.finite & ((polygons.upper - polygons.lower) <= 0).any(-1)
    fault = 'have a polygon without area'
    yield from json.annotations(None, 'polygon-flat', owners(flat), fault)
    fault = 'have a broken run-length mask: its runs do not add up to its size'
    yield from json.annotations('error', 'rle-broken', owners(runs.broken, runs.owners), fault)
    sizes = file.image_sizes[runs.owners]
    other = (runs.sizes != sizes).any(-1) & ~runs.broken & np.isfinite(sizes).all(-1)
    fault = 'have a run-length mask of another size than the image'
    yield from json.annotations('error', 'rle-size', owners(other, runs.owners), fault)


def check_json(data: ConfiguredData) -> Iterator[Finding]:
    """Find faults of single images and annotations in the COCO files of all parts."""
    jsons: dict[str, _Json] = {}
    for leaf in data.leaves():
        file = data.coco_file(leaf)
        if file is not None:
            found = jsons.setdefault(file.path, _Json(file))
            found.masks |= _reads_masks(data, leaf)
            found.evaluated |= leaf.part != 'train'
            if leaf.part == 'train' and not file.ids:
                sentence = f'The annotation file {file.path} of {leaf} has no annotations.'
                yield Finding('error', file.path, sentence, kind='no-annotations')
    for json in jsons.values():
        for find in (_find_ids, _find_links, _find_images, _find_boxes, _find_masks):
            yield from find(json)


def _reads_masks(data: ConfiguredData, leaf: LeafDataset) -> bool:
    """Return whether the pipeline of a data set or the evaluator of its part reads masks."""
    evaluators = as_list(data.cfg.get(f'{leaf.part}_evaluator'))
    metrics = [metric for item in evaluators for metric in np.atleast_1d(item.get('metric', ()))]
    steps = leaf.cfg.get('pipeline') or []
    return 'segm' in metrics or any(
        isinstance(step, Mapping) and step.get('with_mask') for step in steps
    )


def _are_beyond(lower: np.ndarray, upper: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return which boxes extend beyond their images by more than tools round."""
    tolerance = np.maximum(2, _BEYOND * sizes)
    return ((lower < -tolerance) | (upper > sizes + tolerance)).any(-1)


def _are_none(values: list[Any]) -> np.ndarray:
    return np.array([value is None for value in values], bool)


def _are_repeated(values: list[Any]) -> np.ndarray:
    counts = Counter(values)
    if len(counts) == len(values):
        return np.zeros(len(values), bool)
    return np.array([value is not None and counts[value] > 1 for value in values], bool)
