"""COCO polygons that reproduce a mask pixel for pixel."""

from __future__ import annotations

import cv2
import numpy as np

_FINE = 4
"""Cells per pixel and direction: the nearest pixel corner of a cell on the edge of a mask is unambiguous."""


def mask_to_polygons(mask: np.ndarray) -> list[list[int]]:
    """Outline a mask along the edges between its pixels.

    A contour through pixel centres (what `cv2.findContours` returns) loses half a pixel on each side. The contours of
    an enlarged mask, rounded to pixel corners, rasterise to exactly the mask. COCO polygons do not have holes, so a
    part with a hole is split in two through the hole.

    Args:
        mask: (H, W) boolean array.

    Returns:
        One flat list `[x0, y0, x1, y1, ...]` per part, in pixels from the top left corner of the image.

    Raises:
        ValueError: If `mask` is not a two-dimensional boolean array.
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
