"""Image scale, batch size, schedule and anchors for a data set, each with the reason in words."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np

from swinv2_mm.engine.devices import available_devices

_STRIDES = np.array([4, 8, 16, 32, 64])
_ANCHORS = (
    ((8,), (0.5, 1.0, 2.0)),  # the default
    ((4,), (0.5, 1.0, 2.0)),
    ((2,), (0.5, 1.0, 2.0)),
    ((8,), (0.25, 0.5, 1.0, 2.0, 4.0)),
    ((4, 8), (0.5, 1.0, 2.0)),
    ((4,), (0.25, 0.5, 1.0, 2.0, 4.0)),
    ((2, 8), (0.25, 0.5, 1.0, 2.0, 4.0)),
    ((2, 4, 8, 16), (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0)),
)
"""Scales and ratios of anchors, the fewest first."""
_COVERED, _ENOUGH = 0.5, 0.9
_LARGEST = (1333, 800)
_SMALL_OBJECT = 32
_PIXELS = {'instances': 2.2e6, 'semantic': 1.1e6}
"""Pixels of a batch that a GPU of 16 GB holds with the tiny model."""


@dataclass(frozen=True)
class Choice:
    """A setting and the reason for it."""

    value: tuple[float, ...]
    reason: str


def choose_scale(sizes: np.ndarray, boxes: np.ndarray | None, limit: float = 1.0) -> Choice:
    """Return the longer and the shorter side that images are resized to, multiples of 32.

    Args:
        sizes: `(n, 2)` widths and heights of the images.
        boxes: `(m, 2)` widths and heights of the objects, None if there are none.
        limit: Factor on the largest scale, 1333 x 800.
    """
    long, short = np.median(np.sort(sizes, axis=1), axis=0)[::-1]
    largest = min(_LARGEST[0] * limit / long, _LARGEST[1] * limit / short)
    factor = min(1.0, largest)
    images = f'The median size of the images is {long:.0f} x {short:.0f}'
    reason = f'{images}.' if factor == 1 else f'{images}, which is reduced to save time and memory.'
    if boxes is not None and len(boxes):
        side = float(np.percentile(np.sqrt(boxes.prod(axis=1)), 25))
        wanted = min(_SMALL_OBJECT / side, 2.0, 1.5 * largest)
        if wanted > factor:
            factor = wanted
            small = f'a quarter of the objects is smaller than {side:.0f} x {side:.0f} pixels'
            reason = f'{images}; enlarged, because {small}.'
    sides = [max(64, 32 * math.ceil(value * factor / 32 - 0.25)) for value in (long, short)]
    return Choice(
        tuple(sides), f'{reason} Sides are multiples of 32, the stride of the last stage.'
    )


def choose_crop(scale: tuple[float, ...], limit: int) -> Choice:
    """Return height and width of the crops that a segmentor is trained on, multiples of 32."""
    crop = tuple(min(limit, int(side)) for side in (scale[1], scale[0]))
    return Choice(crop, f'Height and width of the training crops, at most {limit}.')


def choose_batch(pixels: float, task: str, images: int) -> Choice:
    """Return the batch size, a power of two from 2 to 8, as memory allows and images are there; 2 without a GPU."""
    if available_devices() == ['cpu']:
        return Choice((2,), 'No GPU here. With one: from 2 to 8, as its memory allows.')
    count = min(_PIXELS[task] / pixels, 8, max(2, images))
    batch = max(2, 2 ** int(math.log2(count)))
    return Choice((batch,), 'As many as 16 GB of a GPU hold with the tiny model.')


def choose_rate(rate: float, of_batch: int, batch: int) -> Choice:
    """Return the learning rate: the shipped one, scaled with the square root of the batch size, as suits AdamW."""
    scaled = float(f'{rate * math.sqrt(batch / of_batch):.1e}')
    return Choice(
        (scaled,), f'{rate:g} at batch {of_batch}, scaled with the square root of the batch size.'
    )


def choose_length(images: int, batch: int) -> Choice:
    """Return the number of iterations: 12 epochs of a large set, more of a small one."""
    seen = max(12 * images, min(24000, 300 * images))
    iters = max(1000, math.ceil(seen / batch / 100) * 100)
    epochs = iters * batch / images
    return Choice((iters,), f'{images} images, {epochs:.0f} epochs.')


def choose_anchors(boxes: np.ndarray, sizes: np.ndarray, scale: tuple[float, ...]) -> Choice | None:
    """Return scales and ratios of anchors that meet nine of ten objects, None if the default does.

    Args:
        boxes: `(n, 2)` widths and heights of the objects.
        sizes: `(n, 2)` widths and heights of their images.
        scale: Longer and shorter side that images are resized to.
    """
    ordered = np.sort(sizes, axis=1)[:, ::-1]
    scaled = boxes * np.min(np.array(scale) / ordered, axis=1, keepdims=True)
    shares = [_coverage(scaled, *anchors) for anchors in _ANCHORS]
    best = next((i for i, share in enumerate(shares) if share >= _ENOUGH), int(np.argmax(shares)))
    if best == 0:
        return None
    reason = f'Anchors that overlap {shares[best]:.0%} of the objects by half, the default {shares[0]:.0%}.'
    return Choice(_ANCHORS[best], reason)  # type: ignore[arg-type]


def _coverage(boxes: np.ndarray, scales: tuple[float, ...], ratios: tuple[float, ...]) -> float:
    """Return the share of boxes with an anchor of an IoU of at least a half at the same centre."""
    sides = np.multiply.outer(_STRIDES, scales).ravel()[:, None]
    roots = np.sqrt(np.array(ratios))
    anchors = np.stack([sides / roots, sides * roots], axis=-1).reshape(-1, 2)
    common = np.minimum(boxes[:, None], anchors).prod(axis=-1)
    union = boxes.prod(axis=1)[:, None] + anchors.prod(axis=1) - common
    return float(((common / union).max(axis=1) >= _COVERED).mean())


def count_workers() -> int:
    """Return the number of processes that load data."""
    return max(1, min(4, (os.cpu_count() or 1) // 2))
