"""Prediction on large images by tiles, also window by window on TIFF files that do not fit into memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.structures import InstanceData

from swinv2_mm.apis.inputs import ImageError
from swinv2_mm.apis.results import Prediction, encode_crop

Run = Callable[[list[np.ndarray]], list[Any]]
"""Predicts on several crops `(h, w, C)`, and returns their data samples on the CPU."""


def detect_tiles(image: Any, tile: int, batch: int, run: Run) -> InstanceData:
    """Detect objects by overlapping tiles with `supervision.InferenceSlicer`.

    Parts of one object in several tiles are merged if they share half of the smaller one.

    Args:
        image: Array `(H, W, C)`, or an open data set of rasterio.
        tile: Side of a tile in pixels; a quarter of it overlaps with the next one.
        batch: Number of tiles that are predicted at once.
        run: Predicts on tiles.

    Returns:
        `bboxes`, `scores`, `labels` and, if the model has them, `masks` as run lengths.
    """
    import supervision

    has_masks = False

    def callback(crops: list[np.ndarray]) -> list[Any]:
        nonlocal has_masks
        found = []
        for sample in run(crops):
            has_masks = has_masks or 'masks' in sample.pred_instances
            found.append(supervision.Detections.from_mmdetection(sample))
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
    merged: Any = slicer(image)
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

    At any time, the logits of one row of tiles' overlap with the next row are in memory, not those of the image. `read`
    returns the crop `(h, w, C)` from x, y, width and height. For the other arguments, see `detect_tiles`.

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


_LARGEST_LOADED = 200_000_000
"""Pixels of the largest TIFF file that is read as a whole."""


def open_raster(location: str | int, predictor: Any) -> Any:
    """Return an open data set of rasterio for a TIFF file of more than 200 million pixels, or None for other files.

    It is also None without tiles or without rasterio; reading the whole file then fails with the reason.
    """
    if predictor.tile is None or Path(str(location)).suffix.lower() not in ('.tif', '.tiff'):
        return None
    try:
        import rasterio
    except ImportError:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', rasterio.errors.NotGeoreferencedWarning)
            raster = rasterio.open(location)
    except rasterio.errors.RasterioError:
        return None
    if raster.width * raster.height > _LARGEST_LOADED:
        return raster
    raster.close()
    return None


def detect_raster(raster: Any, predictor: Any, path: str) -> Prediction:
    """Return the objects in a TIFF file; its picture is black, since the image is not in memory."""
    assert predictor.tile is not None
    first = predictor.pack(_read(raster, predictor, 0, 0, predictor.tile, predictor.tile))
    sample = first['data_samples']
    sample.set_metainfo({'ori_shape': (raster.height, raster.width)})
    sample.pred_instances = detect_tiles(
        raster,
        predictor.tile,
        predictor.batch,
        lambda crops: predictor.run_crops([_convert(raster, predictor, crop) for crop in crops]),
    )
    black = np.broadcast_to(np.zeros(3, np.uint8), (raster.height, raster.width, 3))
    return Prediction(sample, black, path, predictor.categories)


def segment_raster(raster: Any, predictor: Any, path: Path) -> None:
    """Write the label map of a TIFF file as a TIFF file with the same coordinates, and the colours of the classes."""
    import rasterio
    from rasterio.windows import Window

    ids = np.array(predictor.categories.ids)
    wide = max(ids) > 255
    profile = dict(
        driver='GTiff',
        width=raster.width,
        height=raster.height,
        count=1,
        dtype='uint16' if wide else 'uint8',
        crs=raster.crs,
        transform=raster.transform,
        tiled=True,
        compress='deflate',
        BIGTIFF='IF_SAFER',
    )
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, 'w', **profile) as target:
            if not wide:
                colours = zip(ids.tolist(), predictor.categories.colours)
                target.write_colormap(1, {number: (*rgb, 255) for number, rgb in colours})
            for x, y, labels in predictor.label_parts(
                (raster.height, raster.width),
                lambda x, y, width, height: _read(raster, predictor, x, y, width, height),
            ):
                window = Window(x, y, labels.shape[1], labels.shape[0])
                target.write(ids[labels.astype(int)].astype(profile['dtype']), 1, window=window)


def _read(raster: Any, predictor: Any, x: int, y: int, width: int, height: int) -> np.ndarray:
    from rasterio.windows import Window

    return _convert(
        raster, predictor, np.moveaxis(raster.read(window=Window(x, y, width, height)), 0, 2)
    )


def _convert(raster: Any, predictor: Any, crop: np.ndarray) -> np.ndarray:
    """Return the bands of a window as the loader of the config returns those of an image."""
    if predictor.multiband is not None:
        return _normalise(crop, raster.nodata, predictor.multiband)
    if crop.dtype == np.uint16:
        crop = (crop >> 8).astype(np.uint8)
    if crop.dtype != np.uint8:
        raise ImageError(f'{raster.name}: bands of {crop.dtype}, expected uint8 or uint16')
    if crop.shape[2] < 3:
        return np.repeat(crop[..., :1], 3, axis=2)
    return np.ascontiguousarray(crop[..., 2::-1])


def _normalise(crop: np.ndarray, nodata: float | None, loader: Any) -> np.ndarray:
    """Return bands as `LoadMultibandImage` normalises them; pixels without data are 0."""
    used = crop if loader.bands is None else crop[..., loader.bands]
    image = (used.astype(np.float32) - loader.mean) / loader.std
    if nodata is not None:
        image[used == nodata] = 0
    return np.nan_to_num(image, copy=False, nan=0.0)
