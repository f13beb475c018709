"""Prediction on TIFF files that do not fit into memory, window by window."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_mm.apis.predictor import ImageError, Predictor
from swinv2_mm.apis.results import Prediction
from swinv2_mm.apis.tiles import detect_tiles

_LARGEST_LOADED = 200_000_000
"""Pixels of the largest TIFF file that is read as a whole."""


def open_raster(location: str | int, predictor: Predictor) -> Any:
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


def detect_raster(raster: Any, predictor: Predictor, path: str) -> Prediction:
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


def segment_raster(raster: Any, predictor: Predictor, path: Path) -> None:
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


def _read(raster: Any, predictor: Predictor, x: int, y: int, width: int, height: int) -> np.ndarray:
    from rasterio.windows import Window

    return _convert(
        raster, predictor, np.moveaxis(raster.read(window=Window(x, y, width, height)), 0, 2)
    )


def _convert(raster: Any, predictor: Predictor, crop: np.ndarray) -> np.ndarray:
    """Return the bands of a window as the loader of the config returns those of an image.

    Raises:
        ImageError: If the file has bands of another kind.
    """
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
