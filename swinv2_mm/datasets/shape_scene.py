"""One generated picture: patterned shapes that cover one another on patterned paper.

Integer arithmetic makes it the same on every machine. Lengths are in units of 1/64 pixel where a name ends in `64`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

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
_DIRECTIONS = 16
"""Number of directions a pattern can lie in; each is a vector of length 64."""
_FEWEST, _MOST = 2, 5
"""Shapes of a picture; fewer where there is no room."""
_SMALLEST, _LARGEST = 14, 30
"""Radius of a shape, in hundredths of the shorter image side."""
_MOST_TURNED = 20
"""Rotation of a shape from upright, either way, in degrees."""
_MIN_VISIBLE = 50
"""Least visible share of the area of a shape, in percent; a shape that would hide more is not placed."""
_ATTEMPTS = 60

# Red, green, blue. Vivid paint, edged with ink, on pale paper: a shape differs from what is behind it by more than its
# pattern. The pattern is a tint of the paint, towards cream or towards ink.
_INK = (38, 42, 62)
_CREAM = (252, 244, 226)
_PAINTS = (
    *((230, 57, 70), (244, 132, 49), (249, 199, 79), (124, 181, 88), (42, 157, 143)),
    *((72, 149, 239), (120, 95, 205), (228, 92, 168), (255, 160, 178), (96, 190, 220)),
)
_PAPERS = (
    ((243, 239, 228), (229, 221, 203)),
    ((228, 236, 241), (207, 220, 229)),
    ((236, 230, 243), (219, 209, 231)),
    ((231, 241, 227), (212, 227, 206)),
    ((251, 232, 220), (243, 215, 197)),
    ((238, 238, 238), (221, 221, 221)),
)


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
        """Rasterise the shape with a smaller radius, shifted right and down, as `(window, window)` of 0 to 64."""
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


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it."""

    image: np.ndarray  # (H, W, 3) uint8, red, green, blue
    owners: np.ndarray  # (H, W) uint8; 0 where the paper shows, i + 1 where shape i is the one seen
    labels: tuple[int, ...]  # class label of every shape, 1..4, the rearmost first


def draw_scene(rng: np.random.Generator, height: int, width: int) -> Scene:
    """Draw a picture with one to five shapes, of each of which at least half is visible.

    Only whole numbers are drawn from `rng`: numpy keeps these the same over its versions.
    """
    shapes, owners = _place(rng, height, width)
    pitch = max(2, min(height, width) * int(rng.integers(3, 9)) // 100)
    paper = draw_texture(rng, height, width, pitch, _PAPERS[int(rng.integers(len(_PAPERS)))])
    margin = _margin(height, width)
    image = np.pad(paper, ((margin, margin), (margin, margin), (0, 0)))
    for shape in shapes:
        _paint(rng, shape, shape.crop(image, margin))
    image = image[margin : margin + height, margin : margin + width]
    return Scene(image.astype(np.uint8), owners, tuple(shape.label for shape in shapes))


def _margin(height: int, width: int) -> int:
    """Pixels around an image in which the windows of all shapes lie."""
    return min(height, width) * _LARGEST // 100 + 3


def _place(rng: np.random.Generator, height: int, width: int) -> tuple[list[Outline], np.ndarray]:
    """Return shapes of which enough is visible, and the owner of each pixel as in `Scene`."""
    wanted = int(rng.integers(_FEWEST, _MOST + 1))
    shapes: list[Outline] = []
    full_areas: list[int] = []
    margin = _margin(height, width)
    inside = (slice(margin, margin + height), slice(margin, margin + width))
    owners = np.zeros((height + 2 * margin, width + 2 * margin), np.uint8)
    attempts = 0
    while len(shapes) < wanted and (attempts < _ATTEMPTS or not shapes):
        attempts += 1
        radius = min(height, width) * GRID * int(rng.integers(_SMALLEST, _LARGEST + 1)) // 100
        shape = Outline(
            label=int(rng.integers(len(SHAPE_CLASSES))) + 1,
            x=int(rng.integers(radius // 2, width * GRID - radius // 2)),
            y=int(rng.integers(radius // 2, height * GRID - radius // 2)),
            radius=radius,
            angle=math.pi * int(rng.integers(-_MOST_TURNED, _MOST_TURNED + 1)) / 180,
        )
        covered = 2 * shape.coverage() >= GRID * GRID
        areas = [*full_areas, int(covered.sum())]
        proposed = owners.copy()
        shape.crop(proposed, margin)[covered] = len(areas)
        seen = np.bincount(proposed[inside].ravel(), minlength=len(areas) + 1)[1:]
        if (100 * seen >= _MIN_VISIBLE * np.array(areas)).all():
            shapes.append(shape)
            full_areas, owners = areas, proposed
    return shapes, owners[inside]


def _paint(rng: np.random.Generator, shape: Outline, below: np.ndarray) -> None:
    """Paint a shape with a dark rim and a soft shadow onto the int32 colours in its window, in place."""
    colour = np.array(_PAINTS[int(rng.integers(len(_PAINTS)))], np.int32)
    tint = (_CREAM, _CREAM, _INK)[int(rng.integers(3))]
    share = int(rng.integers(25, 50))
    tinted = (colour * (100 - share) + np.array(tint, np.int32) * share) // 100
    pitch = max(2, shape.radius * int(rng.integers(18, 36)) // (100 * GRID))
    paint = draw_texture(rng, shape.window, shape.window, pitch, (colour, tinted))

    lift = max(GRID, shape.radius // 12)
    rim = max(3 * GRID // 2, shape.radius // 12)
    whole = shape.coverage()[..., None]
    inner = shape.coverage(shrink=rim)[..., None]
    blur = 2 * (lift // GRID) + 1
    shadow = cv2.blur(shape.coverage(shift=lift).astype(np.uint8), (blur, blur))
    paint = (paint * inner + np.array(_INK, np.int32) * (64 - inner)) // 64
    shaded = below * (192 - shadow.astype(np.int32)[..., None]) // 192
    below[:] = (shaded * (64 - whole) + paint * whole + 32) // 64


def _axes(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance of every pixel along a random direction and across it, `(H, W)`, in 1/64 pixel."""
    angle = math.pi * int(rng.integers(_DIRECTIONS)) / _DIRECTIONS
    x, y = round(64 * math.cos(angle)), round(64 * math.sin(angle))
    rows = np.arange(height, dtype=np.int32)[:, None]
    columns = np.arange(width, dtype=np.int32)
    return x * columns + y * rows, x * rows - y * columns


def _ramp(signed64: np.ndarray) -> np.ndarray:
    """Turn a signed distance to an edge into a weight 0..255 that is one pixel soft."""
    return np.clip(signed64 + 32, 0, 64) * 255 // 64


def _bands(along: np.ndarray, period64: int, phase64: int) -> np.ndarray:
    distance = np.abs((along + phase64) % (2 * period64) - period64)
    return _ramp(distance - period64 // 2)


def _gradient(rng: np.random.Generator, height: int, width: int, pitch: int) -> np.ndarray:
    along, _ = _axes(rng, height, width)
    low, high = int(along.min()), int(along.max())
    return (along - low) * 255 // max(high - low, 1)


def _stripes(rng: np.random.Generator, height: int, width: int, pitch: int) -> np.ndarray:
    along, _ = _axes(rng, height, width)
    return _bands(along, 64 * pitch, int(rng.integers(128 * pitch)))


def _checks(rng: np.random.Generator, height: int, width: int, pitch: int) -> np.ndarray:
    first, second = (
        _bands(axis, 64 * pitch, int(rng.integers(128 * pitch)))
        for axis in _axes(rng, height, width)
    )
    return (first * (255 - second) + (255 - first) * second) // 255


def _dots(rng: np.random.Generator, height: int, width: int, pitch: int) -> np.ndarray:
    period = 96 * pitch
    radius = period * 3 // 10
    u, v = (
        (axis + int(rng.integers(period))) % period - period // 2
        for axis in _axes(rng, height, width)
    )
    # (r^2 - d^2) / 2r is r - d near the rim of a dot, which is all the ramp looks at, and needs no square root.
    return _ramp((radius * radius - u * u - v * v) // (2 * radius))


def _clouds(rng: np.random.Generator, height: int, width: int, pitch: int) -> np.ndarray:
    total = np.zeros((height, width), np.int32)
    for cell, weight in ((4 * pitch, 2), (2 * pitch, 1)):
        grid = rng.integers(256, size=(height // cell + 2, width // cell + 2)).astype(np.uint8)
        total += weight * cv2.resize(
            grid, (width, height), interpolation=cv2.INTER_LINEAR_EXACT
        ).astype(np.int32)
    return total // 3


_PATTERNS = (_gradient, _stripes, _checks, _dots, _clouds)


def draw_texture(
    rng: np.random.Generator, height: int, width: int, pitch: int, colours: tuple[Any, Any]
) -> np.ndarray:
    """Draw a random pattern in two colours, `(height, width, 3)` of int32, with parts of `pitch` pixels."""
    pattern = _PATTERNS[int(rng.integers(len(_PATTERNS)))]
    weight = pattern(rng, height, width, pitch)[..., None]
    first, second = (np.array(colour, np.int32) for colour in colours)
    return (first * (255 - weight) + second * weight + 127) // 255
