"""The shapes of the generated set: their corners on a fine grid, and the share of each pixel that a shape covers."""

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
"""Angle of the first corner of an upright shape, and the distance of all corners from the centre, in radii, at equal
angles: shapes of one radius look equally large."""


@dataclass(frozen=True)
class Outline:
    """A shape placed on a canvas; lengths in 1/8 pixel."""

    label: int  # 1..4
    x: int  # of the centre
    y: int
    radius: int
    angle: float  # from upright, in radians

    @property
    def window(self) -> int:
        """Side of the window, in pixels, that holds the shape and its shadow; the centre is in its middle."""
        return 2 * (self.radius * 4 // (3 * GRID) + 2) + 1

    def crop(self, canvas: np.ndarray, margin: int) -> np.ndarray:
        """Return the view of the window in an image to which `margin` pixels were added on each side."""
        top, left = (centre // GRID - self.window // 2 + margin for centre in (self.y, self.x))
        return canvas[top : top + self.window, left : left + self.window]

    def coverage(self, shrink: int = 0, shift: int = 0) -> np.ndarray:
        """Rasterise the shape with a smaller radius, shifted to the right and down.

        Returns:
            (window, window) int32 array, 0 (outside) to 64 (wholly covered).
        """
        first, reach = _REACH[SHAPE_CLASSES[self.label - 1]]
        angles = first + self.angle + 2 * math.pi * np.arange(len(reach)) / len(reach)
        length = (self.radius - shrink) * np.array(reach)
        corners = np.rint(length * [np.cos(angles), np.sin(angles)]).astype(np.int32).T
        centre = self.window // 2 * GRID + shift + np.array([self.x % GRID, self.y % GRID])
        fine = np.zeros((self.window * GRID, self.window * GRID), np.uint8)
        cv2.fillPoly(fine, [(corners + centre).astype(np.int32)], GRID * GRID)
        # The mean of 64 cells that are 0 or 64 is the number of cells set: a whole number, whatever the arithmetic.
        coarse = cv2.resize(fine, (self.window, self.window), interpolation=cv2.INTER_AREA)
        return coarse.astype(np.int32)
