"""Prediction on large images by tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.structures import InstanceData

from swinv2_mm.apis.pictures import import_supervision
from swinv2_mm.apis.results import encode_crop

Run = Callable[[list[np.ndarray]], list[Any]]
"""Predicts on several crops `(h, w, C)`, and returns their data samples on the CPU."""


def detect_tiles(image: Any, tile: int, batch: int, run: Run) -> InstanceData:
    """Detect objects by overlapping tiles with `supervision.InferenceSlicer`.

    Parts of one object in several tiles are merged if they share half of the smaller one.

    Args:
        image: Array `(H, W, C)`, or an open data set of rasterio.
        tile: Side of a tile in pixels; a quarter of it overlaps with the next one.
        batch: Number of tiles that are predicted at once.
        run: Predicts on tiles, with `pred_instances` above the score threshold.

    Returns:
        `bboxes`, `scores`, `labels` and, if the model has them, `masks` as run lengths.
    """
    supervision = import_supervision()
    has_masks = False

    def callback(crops: list[np.ndarray]) -> list[Any]:
        nonlocal has_masks
        found = []
        for sample in run(crops):
            objects = sample.pred_instances
            masks = objects.get('masks')
            has_masks = has_masks or masks is not None
            found.append(
                supervision.Detections(
                    xyxy=objects.bboxes.numpy(),
                    mask=None if masks is None else masks.numpy().astype(bool),
                    confidence=objects.scores.numpy(),
                    class_id=objects.labels.numpy(),
                )
            )
        return found

    slicer = supervision.InferenceSlicer(
        callback if batch > 1 else lambda crop: callback([crop])[0],
        slice_wh=tile,
        overlap_wh=tile // 4,
        overlap_filter=supervision.OverlapFilter.NON_MAX_MERGE,
        overlap_metric=supervision.OverlapMetric.IOS,
        iou_threshold=0.5,
        compact_masks=True,
        batch_size=batch,
    )
    merged = slicer(image)
    found = InstanceData(
        bboxes=torch.from_numpy(merged.xyxy.astype(np.float32).reshape(-1, 4)),
        scores=torch.from_numpy(np.asarray(merged.confidence, np.float32).reshape(-1)),
        labels=torch.from_numpy(np.asarray(merged.class_id, np.int64).reshape(-1)),
    )
    if has_masks:
        masks: Any = merged.mask.repack() if len(merged) else []
        found.masks = [
            encode_crop(masks.crop(index), masks.offsets[index], masks.image_shape)
            for index in range(len(masks))
        ]
    return found


def segment_tiles(
    shape: tuple[int, int],
    read: Callable[[int, int, int, int], np.ndarray],
    tile: int,
    batch: int,
    run: Run,
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Segment an image by overlapping tiles whose logits fade into one another.

    At any time, the logits of one row of tiles' overlap with the next row are in memory, not those of the image.

    Args:
        shape: Height and width.
        read: Returns the crop `(h, w, C)` from x, y, width and height.
        tile: Side of a tile in pixels; a quarter of it overlaps with the next one.
        batch: Number of tiles that are predicted at once.
        run: Predicts on tiles, with `seg_logits` of the size of the tile.

    Yields:
        x, y and the logits `(C, h, w)` of a part of the image; the parts cover it.
    """
    height, width = shape
    overlap = tile // 4
    columns, rows = _spans(width, tile, overlap), _spans(height, tile, overlap)
    above = None
    for top, bottom, first_row in rows:
        crops = (read(x, top, end - x, bottom - top) for x, end, _ in columns)
        down = _ramp(bottom - first_row, first_row > 0, bottom < height, overlap)
        below = left = None
        for (x, end, first), sample in zip(columns, _predict_row(crops, batch, run)):
            across = _ramp(end - first, first > 0, end < width, overlap)
            logits = sample.seg_logits.data[:, first_row - top :, first - x :].numpy()
            logits = logits * (down[:, None] * across)
            if left is not None:
                logits[..., :overlap] += left
            done = end - first - (overlap if end < width else 0)
            left, logits = logits[..., done:].copy(), logits[..., :done]
            here = slice(first, first + done)
            whole = bottom - first_row
            if bottom < height:
                whole -= overlap
                if below is None:
                    below = np.empty((len(logits), overlap, width), np.float32)
                below[..., here] = logits[:, whole:]
            if above is not None:
                logits[:, :overlap] += above[..., here]
            yield first, first_row, logits[:, :whole]
        above = below


def _predict_row(crops: Iterator[np.ndarray], batch: int, run: Run) -> Iterator[Any]:
    while chosen := list(islice(crops, batch)):
        yield from run(chosen)


def _spans(length: int, tile: int, overlap: int) -> Sequence[tuple[int, int, int]]:
    """Return start, end and first used pixel of tiles along an axis; neighbours share `overlap` used pixels."""
    spans = [(0, min(tile, length), 0)]
    while (end := spans[-1][1]) < length:
        start = min(end - overlap, length - tile)
        spans.append((start, start + tile, end - overlap))
    return spans


def _ramp(length: int, rises: bool, falls: bool, overlap: int) -> np.ndarray:
    """Return weights that add up to 1 with those of the neighbours."""
    weights = np.ones(length, np.float32)
    ramp = (np.arange(overlap, dtype=np.float32) + 0.5) / overlap
    if rises:
        weights[:overlap] = ramp
    if falls:
        weights[length - overlap :] = 1 - ramp
    return weights
