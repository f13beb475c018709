"""Images as the backbone of a model sees them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from torch import Tensor, nn

from swinv2_mm.apis.inputs import ImageError, as_bgr, local_file
from swinv2_mm.apis.predictor import Predictor
from swinv2_mm.checkpoints import guard_mmengine
from swinv2_mm.engine.errors import SetupError
from swinv2_mm.models import SwinTransformerV2

_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of ImageNet in RGB, for backbones without a test pipeline."""


@dataclass(frozen=True)
class PreparedImage:
    """An image as the backbone sees it, and where its pixels come from.

    Args:
        inputs: `(1, C, h, w)`, with the padding of the data preprocessor.
        picture: `(H, W, 3)` of uint8 in BGR, at the size of the image.
        used: Height and width of `inputs` without padding.
        scale: Vertical and horizontal factor by which the image was resized.
        offset: Rows and columns that were cut off above and at the left after that.
    """

    inputs: Tensor
    picture: np.ndarray
    used: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)

    def pixels(self, axis: int) -> np.ndarray:
        """Return where the centres of the image's rows (0) or columns (1) are in `inputs`."""
        centres = np.arange(self.picture.shape[axis]) + 0.5
        return centres * self.scale[axis] - self.offset[axis]

    def token(self, point: tuple[float, float], stride: int) -> tuple[int, int]:
        """Return row and column of the token at a point (x, y) of the image."""
        height, width = self.picture.shape[:2]
        x, y = point
        if not (0 <= x < width and 0 <= y < height):
            raise SetupError(
                f'The point ({x}, {y}) is outside of the image, which has {width} x {height} pixels.'
            )
        place = self.pixels(0)[int(y)], self.pixels(1)[int(x)]
        if not all(0 <= value < size for value, size in zip(place, self.used)):
            raise SetupError(
                f'The point ({x}, {y}) is outside of the part of the image that the test pipeline cuts out.'
            )
        return int(place[0] // stride), int(place[1] // stride)

    def spread(self, tokens: np.ndarray, stride: int, smooth: bool) -> np.ndarray:
        """Return a map of tokens `(h, w, C)` at the size of the image, zero where the model does not see it.

        If not `smooth`, each pixel has the value of its token.
        """
        for axis in (0, 1):
            place, last = self.pixels(axis), -(-self.used[axis] // stride) - 1
            inside = (place >= 0) & (place < self.used[axis])
            at = place / stride - 0.5 if smooth else np.floor(place / stride)
            at = at.clip(0, last)
            before = np.floor(at).astype(int)
            shape = (-1, 1, 1) if axis == 0 else (-1, 1)
            part = (at - before).astype(np.float32).reshape(shape)
            low, high = (tokens.take(i, axis) for i in (before, (before + 1).clip(max=last)))
            tokens = (low + (high - low) * part) * inside.reshape(shape)
        return tokens


def prepare_image(model: nn.Module | Predictor, image: Any) -> PreparedImage:
    """Run the test pipeline of a model on an image; a bare backbone gets the image normalised by ImageNet's mean.

    Args:
        model: A model of `swinv2_mm.apis.models.load_model`, its `Predictor`, or a backbone.
        image: See `Predictor`.

    Raises:
        ImageError: If the image cannot be read or prepared.
        SetupError: If the model has no test pipeline.
    """
    if isinstance(model, SwinTransformerV2):
        return _prepare_plainly(model, image)
    if isinstance(model, nn.Module) and not hasattr(model, 'cfg'):
        raise SetupError(
            f'The {type(model).__name__} has no config with a test pipeline: build it with '
            'swinv2_mm.apis.models.load_model.'
        )
    predictor = model if isinstance(model, Predictor) else Predictor(model)
    loaded = predictor.load(image)
    packed = loaded.packed or predictor.pack(loaded.pixels, loaded.path)
    used, meta = tuple(packed['inputs'].shape[-2:]), packed['data_samples'].metainfo
    scale = tuple(meta.get('scale_factor', (1.0, 1.0)))[1::-1]
    whole = [round(side * factor) for side, factor in zip(loaded.pixels.shape, scale)]
    with guard_mmengine():
        batch = predictor.model.data_preprocessor(
            {'inputs': [packed['inputs']], 'data_samples': [packed['data_samples']]}, False
        )
    # Pipelines of classifiers end with a crop at the centre.
    offset = [max(0, round((full - part) / 2)) for full, part in zip(whole, used)]
    return PreparedImage(batch['inputs'], loaded.picture, used, scale, tuple(offset))


def _prepare_plainly(backbone: SwinTransformerV2, image: Any) -> PreparedImage:
    if backbone.in_channels != 3:
        raise SetupError(
            f'A backbone for {backbone.in_channels} bands needs the config that loads them: use load_model.'
        )
    try:
        if isinstance(image, (str, Path)):
            with local_file(str(image)) as file:
                image = mmcv.imread(file)
        picture = as_bgr(image)
        normal = mmcv.imnormalize(picture, np.array(_MEAN), np.array(_STD))
    except Exception as error:  # decoders raise errors of many kinds on damaged files
        raise ImageError(f'The image cannot be read: {error}') from error
    like = next(backbone.parameters())
    inputs = torch.from_numpy(normal).permute(2, 0, 1)[None].to(like.device)
    return PreparedImage(inputs, picture, tuple(inputs.shape[2:]))  # type: ignore[arg-type]
