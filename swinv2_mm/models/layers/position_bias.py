"""Log-spaced continuous relative position bias (SwinV2 paper, section 3.3)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from swinv2_mm.ops import private
from swinv2_mm.ops.window_attention import Pair

HIDDEN = 512  # width of the bias MLP in the official models
MAX_BIAS = 16.0  # the official models squash the bias to (0, 16)


def log_spaced_coords(
    window: Pair,
    pretrained_window: Pair,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the relative coordinates of all token pairs of a window on the logarithmic scale of equation 4.

    They are normalised by the extent of the window that the weights were trained with, so that coordinates of a larger
    window are only slightly outside the training range. The scale is that of the official code: 8 at the corner of the
    training window, divided by log2(8). Returns `(2 * Wh - 1, 2 * Ww - 1, 2)`: row and column offset of query minus
    key. A side of `pretrained_window` of 0 stands for that of `window`.
    """
    axes = []
    for extent, pretrained in zip(window, pretrained_window):
        offset = torch.arange(1 - extent, extent, dtype=dtype, device=device)
        # A window one token wide has only the offset 0; dividing by 1 avoids 0 / 0.
        scaled = offset * (8 / max((pretrained or extent) - 1, 1))
        axes.append(scaled.sign() * (scaled.abs() + 1).log2() / math.log2(8))
    return torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1)


def _rebuild_after_load(module: PositionBias, _: Any) -> None:
    # `load_state_dict(..., assign=True)` moves a model off the meta device without calling `_apply`.
    module.rebuild_derived()


class PositionBias(nn.Sequential, ABC):
    """MLP from relative coordinates to one bias per head.

    The coordinate table is computed from the window sizes. It is not saved, and is rebuilt when the module is moved.

    Args:
        layers: Named layers of the MLP; the table has the device and dtype of the first weight.
        window: Height and width of the window, in tokens.
        pretrained_window: The window that the weights were trained with; `(0, 0)` for `window`.
    """

    coords: Tensor

    def __init__(
        self, layers: OrderedDict[str, nn.Module], window: Pair, pretrained_window: Pair = (0, 0)
    ) -> None:
        super().__init__(layers)
        self.window = window
        self.pretrained_window = pretrained_window
        self.rebuild_derived()
        self.register_load_state_dict_post_hook(_rebuild_after_load)

    @abstractmethod
    def coordinates(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return the input of the MLP: `(2 * Wh - 1, 2 * Ww - 1, 2)`, by row and column of query minus key."""

    def squash(self, table: Tensor) -> Tensor:
        """Bound the output of the MLP."""
        return table

    def resize(self, window: Pair) -> None:
        """Change the window; the training window stays the same."""
        self.pretrained_window = (
            self.pretrained_window[0] or self.window[0],
            self.pretrained_window[1] or self.window[1],
        )
        self.window = window
        self.rebuild_derived()

    def retarget(self, pretrained_window: Pair) -> None:
        """Change the training window, which divides the coordinates."""
        self.pretrained_window = pretrained_window
        self.rebuild_derived()

    @property
    def _like(self) -> Tensor:
        """Tensor that sets device and dtype of the table; quantised layers do not have parameters."""
        weight = next(self.parameters(), None)
        return self.coords if weight is None else weight

    def rebuild_derived(self) -> None:
        """Compute the coordinate table for the current window sizes, on the device of the weights.

        The table is in fp32, also for weights in half precision, and in fp64 for weights in fp64.
        """
        like = self._like
        dtype = torch.promote_types(like.dtype, torch.float32)
        with torch.inference_mode(False):  # training may follow
            self.register_buffer('coords', self.coordinates(like.device, dtype), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PositionBias:
        # Called by `.to()`, `.half()` and `.to_empty()`. Rebuilding keeps the table in full precision and fills it
        # after construction on the meta device.
        super()._apply(fn, recurse)
        self.rebuild_derived()
        return self

    def forward(self, window: Pair | None = None) -> Tensor:
        """Return the bias for every offset between two tokens of a window; small maps have a smaller `window`.

        Returns:
            `(nH, 2 * Wh - 1, 2 * Ww - 1)` in fp32 (fp64 for weights in fp64), by row and column of query minus key.
        """
        height, width = window or self.window
        top, left = self.window[0] - height, self.window[1] - width
        coords = self.coords[top : top + 2 * height - 1, left : left + 2 * width - 1]
        with private.no_autocast(coords.device):
            table: Any = coords.to(self._like.dtype)
            for layer in self:
                table = layer(table)
            return self.squash(table.to(self.coords.dtype)).permute(2, 0, 1)


class ContinuousPositionBias(PositionBias):
    """Official position bias of `num_heads` heads: coordinates in units of the training window, bias in (0, 16).

    The layers have the official names (`0.weight`, `0.bias`, `2.weight`). See `PositionBias` for the windows.
    """

    def __init__(self, window: Pair, pretrained_window: Pair, num_heads: int) -> None:
        layers = (nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_heads, False))
        named = OrderedDict((str(index), layer) for index, layer in enumerate(layers))
        super().__init__(named, window, pretrained_window)

    def coordinates(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return the coordinates of `log_spaced_coords`."""
        return log_spaced_coords(self.window, self.pretrained_window, device, dtype)

    def squash(self, table: Tensor) -> Tensor:
        """Squash the bias to (0, 16)."""
        return MAX_BIAS * table.sigmoid()


class SignedLogPositionBias(PositionBias):
    """Position bias of Christoph Reich's reimplementation: unbounded, from sign(d) log(1 + |d|) of offsets d in tokens.

    The coordinates do not depend on the window size, so neither do the weights. The layers have timm's names (`fc1`,
    `fc2`); `hidden_dims` and `drop` are width and dropout of the hidden layer.
    """

    def __init__(self, window: Pair, num_heads: int, hidden_dims: int, drop: float = 0.0) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            fc1=nn.Linear(2, hidden_dims),
            act=nn.ReLU(),
            drop=nn.Dropout(drop),
            fc2=nn.Linear(hidden_dims, num_heads),
        )
        super().__init__(layers, window)

    def coordinates(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return the signed logarithms of the offsets."""
        axes = []
        for extent in self.window:
            offset = torch.arange(1 - extent, extent, dtype=dtype, device=device)
            axes.append(offset.sign() * offset.abs().log1p())
        return torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1)
