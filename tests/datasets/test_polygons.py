"""Outlines along pixel edges."""

from __future__ import annotations

import numpy as np
import pytest

from swinv2_mm.datasets.shapes import mask_to_polygons


def rasterise(polygons: list[list[int]], height: int, width: int) -> np.ndarray:
    codes = pytest.importorskip('pycocotools.mask')
    if not polygons:
        return np.zeros((height, width), bool)
    parts = codes.frPyObjects(polygons, height, width)
    return codes.decode(codes.merge(parts)).astype(bool)


def test_a_rectangle_has_four_corners() -> None:
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:7] = True
    assert mask_to_polygons(mask) == [[2, 1, 2, 4, 7, 4, 7, 1]]


def test_an_empty_mask_has_no_polygon() -> None:
    assert mask_to_polygons(np.zeros((3, 5), bool)) == []


def test_a_hole_is_cut_open() -> None:
    mask = np.ones((5, 5), bool)
    mask[2, 2] = False
    polygons = mask_to_polygons(mask)
    assert len(polygons) == 2
    np.testing.assert_array_equal(rasterise(polygons, 5, 5), mask)


@pytest.mark.parametrize('share', [0.2, 0.5, 0.8])
@pytest.mark.parametrize('size', [(1, 1), (1, 9), (7, 1), (12, 17)])
def test_any_mask_comes_back_pixel_for_pixel(size: tuple[int, int], share: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random(size) < share
        np.testing.assert_array_equal(rasterise(mask_to_polygons(mask), *size), mask)


@pytest.mark.parametrize('mask', [np.zeros((4, 4), np.uint8), np.zeros((2, 4, 4), bool)])
def test_anything_but_a_boolean_mask_is_refused(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match='two-dimensional boolean array, got shape'):
        mask_to_polygons(mask)
