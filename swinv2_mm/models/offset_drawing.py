"""Visualisation of the offsets of deformable blocks."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from matplotlib.colors import to_rgb
from torch import Tensor, nn

from swinv2_mm.models.layers import DeformableSwinBlock


def last_offsets(model: nn.Module) -> dict[str, Tensor]:
    """Return the offsets of all deformable blocks of a model in its last forward pass.

    Args:
        model: A backbone, or any model that contains one.

    Returns:
        Map from block names to offsets `(B, nH, H, W, 2)` in tokens of the stage, x before y.

    Raises:
        ValueError: If the model does not have deformable blocks, or has not been run yet.
    """
    blocks = {
        name: block
        for name, block in model.named_modules()
        if isinstance(block, DeformableSwinBlock)
    }
    if not blocks:
        raise ValueError(
            f'{type(model).__name__} has no deformable block: build the backbone with use_deformable_block=True'
        )
    offsets = {name: block.offsets for name, block in blocks.items() if block.offsets is not None}
    if not offsets:
        raise ValueError('no offsets yet: run an image through the model first')
    return offsets


def draw_offsets(
    image: np.ndarray,
    offsets: Tensor,
    head: int | None = None,
    max_arrows: int = 24,
    color: Any = 'yellow',
) -> np.ndarray:
    """Draw offsets on an image as arrows from each token to its sampling position.

    Args:
        image: `(H, W, 3)`, RGB, 0 to 255: the input image without batch padding.
        offsets: `(nH, h, w, 2)`, offsets of one image from `last_offsets`.
        head: Index of the head; `None` for the mean over all heads.
        max_arrows: Maximum number of arrows along the longer side of the map; larger maps are subsampled.
        color: Colour of the arrows, as in matplotlib.

    Returns:
        `(H, W, 3)`, RGB, 0 to 255.

    Raises:
        ValueError: If a shape is wrong or `head` is out of range.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f'expected an RGB image (H, W, 3), got {image.shape}')
    if offsets.dim() != 4 or offsets.shape[-1] != 2:
        raise ValueError(
            f'expected the offsets of one image (nH, h, w, 2), got {tuple(offsets.shape)}: choose one of the batch, '
            'offsets[0]'
        )
    if head is not None and head not in range(len(offsets)):
        raise ValueError(
            f'head is {head!r}: expected 0 to {len(offsets) - 1}, or None for the mean'
        )
    moves = (offsets.mean(0) if head is None else offsets[head]).detach().cpu().double().numpy()
    (height, width), (rows, cols) = image.shape[:2], moves.shape[:2]
    every = -(-max(rows, cols) // max_arrows)
    row, col = np.mgrid[every // 2 : rows : every, every // 2 : cols : every]
    scale = np.array([width / cols, height / rows])  # pixels of a token, x before y
    starts = (np.stack((col, row), axis=-1) + 0.5) * scale - 0.5
    ends = starts + moves[row, col] * scale
    rgb = [255 * part for part in to_rgb(color)]
    drawn = np.array(image, np.uint8, order='C')
    for start, end in np.stack((starts, ends), axis=-2).reshape(-1, 2, 2):
        tail, tip = (np.rint(16 * point).astype(int).tolist() for point in (start, end))
        cv2.arrowedLine(drawn, tail, tip, rgb, line_type=cv2.LINE_AA, shift=4, tipLength=0.3)
    return drawn
