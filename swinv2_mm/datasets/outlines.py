"""The shapes themselves: corners on a fine grid, and how much of every pixel a shape covers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

SHAPE_CLASSES = ('disc', 'square', 'triangle', 'star')
"""Class names; the label of a class is its place in this tuple plus one, 0 is the background."""

GRID = 8
"""Lengths are whole numbers of 1/8 pixel, so that the last bit of a cosine cannot move an edge."""

_REACH: dict[str, tuple[float, list[float]]] = {
    'disc': (0.0, [0.95] * 72),
    'square': (math.pi / 4, [1.1] * 4),
    'triangle': (-math.pi / 2, [1.25] * 3),
    'star': (-math.pi / 2, [1.2, 0.55] * 5),
}
"""Where the first corner of an upright shape is, and how far all corners are from the centre, in radii, at equal
angles: shapes of one radius look equally large."""


@dataclass(frozen=True)
class Outline:
    """A shape placed on a canvas; lengths in 1/8 pixel.

    Attributes:
        label: Class label, 1..4.
        x: Centre, to the right.
        y: Centre, downwards.
        radius: Size.
        angle: Rotation from upright, in radians.
    """

    label: int
    x: int
    y: int
    radius: int
    angle: float

    @property
    def origin(self) -> tuple[int, int]:
        """Row and column, in pixels, of the top left pixel of the window that holds the shape and its shadow."""
        half = self.window // 2
        return self.y // GRID - half, self.x // GRID - half

    @property
    def window(self) -> int:
        """Side of that window, in pixels."""
        return 2 * (self.radius * 4 // (3 * GRID) + 2) + 1

    def coverage(self, shrink: int = 0, shift: int = 0) -> np.ndarray:
        """Rasterise the shape.

        Args:
            shrink: By how much the radius is smaller than that of the shape.
            shift: How far the shape is moved to the right and down.

        Returns:
            (window, window) int32 array, 0 (outside) to 64 (wholly covered).
        """
        row, column = self.origin
        first, reach = _REACH[SHAPE_CLASSES[self.label - 1]]
        corners = []
        for i, distance in enumerate(reach):
            angle = first + self.angle + 2 * math.pi * i / len(reach)
            length = (self.radius - shrink) * distance
            corners.append(
                (
                    self.x + shift - column * GRID + round(length * math.cos(angle)),
                    self.y + shift - row * GRID + round(length * math.sin(angle)),
                )
            )
        fine = np.zeros((self.window * GRID, self.window * GRID), np.uint8)
        cv2.fillPoly(fine, [np.array(corners, np.int32)], GRID * GRID)
        # The mean of 64 cells that are 0 or 64 is the number of cells set: a whole number, whatever the arithmetic.
        coarse = cv2.resize(fine, (self.window, self.window), interpolation=cv2.INTER_AREA)
        return coarse.astype(np.int32)

    def overlap(self, height: int, width: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where the window lies on an image of ``height`` x ``width`` pixels.

        Returns:
            Slices into the image, and slices into the window, of the part they share.
        """
        row, column = self.origin
        image, window = [], []
        for start, size in ((row, height), (column, width)):
            low, high = max(start, 0), min(start + self.window, size)
            image.append(slice(low, high))
            window.append(slice(low - start, high - start))
        return (image[0], image[1]), (window[0], window[1])
