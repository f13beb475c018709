"""Patterned paper: two-colour textures in integer arithmetic, so that they are the same on every machine.

Lengths are in units of 1/64 pixel where a name ends in `64`.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np

_DIRECTIONS = 16
"""Number of directions a pattern can lie in; each is a vector of length 64."""


def _direction(rng: np.random.Generator) -> tuple[int, int]:
    angle = math.pi * int(rng.integers(_DIRECTIONS)) / _DIRECTIONS
    return round(64 * math.cos(angle)), round(64 * math.sin(angle))


def _project(height: int, width: int, direction: tuple[int, int]) -> np.ndarray:
    """Distance of every pixel along ``direction``, (H, W), in 1/64 pixel."""
    rows = np.arange(height, dtype=np.int32)[:, None]
    columns = np.arange(width, dtype=np.int32)
    return direction[0] * columns + direction[1] * rows


def _ramp(signed64: np.ndarray) -> np.ndarray:
    """Turn a signed distance to an edge into a weight 0..255 that is one pixel soft."""
    return np.clip(signed64 + 32, 0, 64) * 255 // 64


def _bands(along: np.ndarray, period64: int, phase64: int) -> np.ndarray:
    distance = np.abs((along + phase64) % (2 * period64) - period64)
    return _ramp(distance - period64 // 2)


def _gradient(rng: np.random.Generator, height: int, width: int, pitch: int) -> np.ndarray:
    along = _project(height, width, _direction(rng))
    low, high = int(along.min()), int(along.max())
    return (along - low) * 255 // max(high - low, 1)


def _stripes(rng: np.random.Generator, height: int, width: int, pitch: int) -> np.ndarray:
    along = _project(height, width, _direction(rng))
    return _bands(along, 64 * pitch, int(rng.integers(128 * pitch)))


def _checks(rng: np.random.Generator, height: int, width: int, pitch: int) -> np.ndarray:
    dx, dy = _direction(rng)
    first = _bands(_project(height, width, (dx, dy)), 64 * pitch, int(rng.integers(128 * pitch)))
    second = _bands(_project(height, width, (-dy, dx)), 64 * pitch, int(rng.integers(128 * pitch)))
    return (first * (255 - second) + (255 - first) * second) // 255


def _dots(rng: np.random.Generator, height: int, width: int, pitch: int) -> np.ndarray:
    dx, dy = _direction(rng)
    period = 96 * pitch
    radius = period * 3 // 10
    u = (_project(height, width, (dx, dy)) + int(rng.integers(period))) % period - period // 2
    v = (_project(height, width, (-dy, dx)) + int(rng.integers(period))) % period - period // 2
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
    """Draw a random pattern in two colours with stripes, or other parts, of `pitch` pixels.

    Returns:
        (height, width, 3) int32 array with values 0..255, channels in the order of `colours`.
    """
    pattern = _PATTERNS[int(rng.integers(len(_PATTERNS)))]
    weight = pattern(rng, height, width, pitch)[..., None]
    first, second = (np.array(colour, np.int32) for colour in colours)
    return (first * (255 - weight) + second * weight + 127) // 255
