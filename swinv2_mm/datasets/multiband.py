"""Images with any number of bands: GeoTIFF, npy, or the usual formats."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from PIL import Image

from swinv2_mm.datasets.errors import ImageSetError
from swinv2_mm.registry import TRANSFORMS

TIFF = ('.tif', '.tiff')
ARRAY = '.npy'
_MEASURED = 200
"""Images from which mean and standard deviation are measured."""
_PERCENTILES = (2, 98)
"""Values of a band that become black and white in pictures."""


@TRANSFORMS.register_module()
class LoadMultibandImage(BaseTransform):
    """Load an image of any number of bands as normalised float32.

    TIFF files need rasterio. In npy files, the shorter one of the first and last axis has the bands. Other files are
    read by OpenCV, with the bands in the order R, G, B, alpha. Pixels without data (`nodata` of a TIFF file, NaN) are 0
    after the normalisation. The data preprocessor of the model must not normalise again: `mean=None, std=None`.

    Required keys: `img_path`. Added keys: `img` `(H, W, C)`, `img_shape`, `ori_shape`.

    Args:
        mean: Mean of each band that is used.
        std: Standard deviation of each band that is used.
        bands: Numbers of the bands to use, from 0, in the order of the model's channels; default: all.
        show: Numbers of the bands in the file that pictures show as red, green and blue, or of a single one as grey.

    Raises:
        ValueError: If `mean`, `std` and `bands` have different lengths, or a standard deviation is not positive.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        bands: Sequence[int] | None = None,
        show: Sequence[int] = (0, 1, 2),
    ) -> None:
        if len(mean) != len(std) or (bands is not None and len(bands) != len(mean)):
            used = 'all' if bands is None else len(bands)
            raise ValueError(
                f'LoadMultibandImage has {len(mean)} means, {len(std)} standard deviations and {used} bands: expected '
                'one of each per band'
            )
        if not all(value > 0 for value in std):
            raise ValueError(f'LoadMultibandImage: std={list(std)} must be positive')
        if len(show) not in (1, 3):
            raise ValueError(f'LoadMultibandImage: show={list(show)} must have one or three bands')
        self.mean = np.array(mean, np.float32)
        self.std = np.array(std, np.float32)
        self.bands = None if bands is None else list(bands)
        self.show = list(show)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Load the image, whose number of bands must be that of `mean`."""
        path = results['img_path']
        image = read_bands(path, self.bands)
        if image.shape[2] != len(self.mean):
            raise ValueError(
                f'{path} has {image.shape[2]} bands: expected {len(self.mean)}, as in mean of LoadMultibandImage'
            )
        image = np.nan_to_num((image - self.mean) / self.std, copy=False, nan=0.0)
        results['img'] = np.ascontiguousarray(image)
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results

    def picture(self, path: str | Path) -> np.ndarray:
        """Return the bands of `show` as an RGB picture `(H, W, 3)` of uint8, stretched between two percentiles."""
        return _stretch(read_bands(path, self.show))

    def picture_of(self, image: np.ndarray) -> np.ndarray:
        """Return a picture like `picture` of a loaded image `(H, W, C)`; of its first bands if it lacks some."""
        channels = self.bands or list(range(image.shape[2]))
        shown = [channels.index(band) for band in self.show if band in channels]
        return _stretch(image[..., shown or [0]])

    def __repr__(self) -> str:
        return f'{type(self).__name__}(bands={self.bands}, num_bands={len(self.mean)}, show={self.show})'


def read_bands(path: str | Path, bands: Sequence[int] | None = None) -> np.ndarray:
    """Return an image, or some of its bands, as `(H, W, C)` of float32 with NaN where there is no data.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not an image of real numbers, or lacks a band.
        ImportError: If rasterio is needed and missing.
    """
    suffix = Path(path).suffix.lower()
    if suffix in TIFF:
        return _read_tiff(path, bands)
    image = _read_array(path) if suffix == ARRAY else _read_image(path)
    image = image[..., _require_bands(path, bands, image.shape[2])].astype(np.float32)
    return np.where(np.isfinite(image), image, np.float32(np.nan))


def band_statistics(paths: Iterable[str | Path]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each band over images, without pixels that have no data."""
    sums: Any = 0.0
    for path in paths:
        image = read_bands(path).astype(np.float64)
        found = np.isfinite(image)
        image = np.where(found, image, 0.0)
        parts = np.stack([found.sum((0, 1)), image.sum((0, 1)), (image**2).sum((0, 1))])
        if np.ndim(sums) and sums.shape != parts.shape:
            raise ValueError(
                f'{path} has {parts.shape[1]} bands, the images before {sums.shape[1]}'
            )
        sums = sums + parts
    count, total, squares = sums
    count = np.maximum(count, 1)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return mean.tolist(), np.where(std > 0, std, 1.0).tolist()


def measure_bands(paths: Sequence[Path]) -> tuple[list[float], list[float]] | None:
    """Return `band_statistics` of a sample of images, None if the first is not a TIFF or npy file with other bands."""
    if paths[0].suffix.lower() not in (*TIFF, ARRAY):
        return None
    with suppress(OSError), Image.open(paths[0]) as image:
        if image.mode in ('1', 'L', 'P', 'RGB'):
            return None
    try:
        return band_statistics(paths[:: max(1, len(paths) // _MEASURED)])
    except (OSError, ValueError, ImportError) as wrong:
        raise ImageSetError(str(wrong)) from wrong


def _stretch(image: np.ndarray) -> np.ndarray:
    """Return a picture `(H, W, 3)` of uint8 of one or three bands."""
    low, high = np.nanpercentile(image, _PERCENTILES, axis=(0, 1))
    scaled = (image - low) / np.maximum(high - low, 1e-6)
    picture = np.nan_to_num(scaled.clip(0, 1) * 255).astype(np.uint8)
    return picture if picture.shape[2] == 3 else np.repeat(picture[..., :1], 3, axis=2)


def _read_tiff(path: str | Path, bands: Sequence[int] | None) -> np.ndarray:
    try:
        import rasterio
    except ImportError as error:
        raise ImportError(
            f'{path}: TIFF files with bands need rasterio: pip install rasterio'
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path) as file:
                chosen = _require_bands(path, bands, file.count)
                image = file.read([band + 1 for band in chosen], masked=True)
    except rasterio.errors.RasterioError as error:
        raise OSError(f'{path} cannot be read: {error}') from error
    return np.moveaxis(image.astype(np.float32).filled(np.nan), 0, 2)


def _read_array(path: str | Path) -> np.ndarray:
    try:
        image = np.load(path, allow_pickle=False)
    except (EOFError, ValueError) as error:
        raise ValueError(f'{path} is not a npy file of numbers: {error}') from error
    if image.ndim not in (2, 3) or not image.size or image.dtype.kind not in 'buif':
        raise ValueError(
            f'{path} is an array {image.shape} of {image.dtype}: expected numbers (H, W), (H, W, C) or (C, H, W)'
        )
    image = image.reshape(*image.shape[:2], -1)
    return np.moveaxis(image, 0, 2) if image.shape[0] < image.shape[2] else image


def _read_image(path: str | Path) -> np.ndarray:
    try:
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # an empty file
        image = None
    if image is None:
        raise ValueError(f'{path} is not an image')
    image = image.reshape(*image.shape[:2], -1)
    return image[..., [2, 1, 0, 3][: image.shape[2]]] if image.shape[2] > 2 else image


def _require_bands(path: str | Path, bands: Sequence[int] | None, count: int) -> list[int]:
    """Return the numbers of the bands to use, which are all for None."""
    chosen = list(range(count) if bands is None else bands)
    if not all(0 <= band < count for band in chosen):
        raise ValueError(
            f'{path} has {count} bands, numbered from 0: there is no band {max(chosen)}'
        )
    return chosen
