"""One generated picture: patterned shapes that cover one another on patterned paper."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from swinv2_mm.datasets.outlines import GRID, SHAPE_CLASSES, Outline
from swinv2_mm.datasets.textures import draw_texture

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
