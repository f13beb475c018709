"""Log-spaced continuous relative position bias (SwinV2 paper, section 3.3)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

HIDDEN = 512  # width of the bias MLP in the official models
MAX_BIAS = 16.0  # the official models squash the bias to (0, 16)


def log_spaced_coords(
    window: tuple[int, int],
    pretrained_window: tuple[int, int],
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Relative coordinates of all token pairs of a window, on the logarithmic scale of equation 4.

    They are normalised by the extent of the window that the weights were trained with, so that a larger window asks the
    MLP about nearby coordinates only a little outside its training range. The scale is that of the official
    code: 8 at the corner of the training window, divided by log2(8).

    Args:
        window: Height and width of the window, in tokens.
        pretrained_window: The same of the window the weights come from; 0 for `window` itself.
        device: Where the result lives.
        dtype: Its dtype.

    Returns:
        `(2 * Wh - 1, 2 * Ww - 1, 2)`: row and column offset of query minus key.
    """
    axes = []
    for extent, pretrained in zip(window, pretrained_window):
        offset = torch.arange(1 - extent, extent, dtype=dtype, device=device)
        # A window one token wide knows the offset 0 only; dividing by 1 keeps that 0 from becoming 0 / 0.
        scaled = offset * (8 / max((pretrained or extent) - 1, 1))
        axes.append(scaled.sign() * (scaled.abs() + 1).log2() / math.log2(8))
    return torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1)


def _rebuild_after_load(module: PositionBias, _: Any) -> None:
    # `load_state_dict(..., assign=True)` moves a model off the meta device without calling `_apply`.
    module.rebuild_derived()


class PositionBias(nn.Sequential, ABC):
    """An MLP from relative coordinates to one bias per head.

    The coordinate table is derived from the window sizes, never saved, and made anew wherever the module goes.

    Args:
        layers: The MLP, by name; the first has the weight whose device and dtype the table follows.
        window: Height and width of the window, in tokens.
        pretrained_window: The same for the window the weights were trained with; `(0, 0)` for `window` itself.
    """

    coords: Tensor

    def __init__(
        self,
        layers: OrderedDict[str, nn.Module],
        window: tuple[int, int],
        pretrained_window: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__(layers)
        self.window = window
        self.pretrained_window = pretrained_window
        self.rebuild_derived()
        self.register_load_state_dict_post_hook(_rebuild_after_load)

    @abstractmethod
    def coordinates(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """What the MLP is asked about: `(2 * Wh - 1, 2 * Ww - 1, 2)`, by row and column of query minus key."""

    def squash(self, table: Tensor) -> Tensor:
        """Bound what the MLP answers."""
        return table

    def resize(self, window: tuple[int, int]) -> None:
        """Serve another window from now on; coordinates keep the unit they have."""
        self.pretrained_window = (
            self.pretrained_window[0] or self.window[0],
            self.pretrained_window[1] or self.window[1],
        )
        self.window = window
        self.rebuild_derived()

    def retarget(self, pretrained_window: tuple[int, int]) -> None:
        """Divide the coordinates by another window from now on: that of the weights just loaded."""
        self.pretrained_window = pretrained_window
        self.rebuild_derived()

    @property
    def _weight(self) -> Tensor:
        return cast(nn.Linear, self[0]).weight

    def rebuild_derived(self) -> None:
        """Make the coordinate table for the current window sizes, on the device of the weights.

        It is in fp32, also for weights in half precision, and in fp64 for weights in fp64.
        """
        weight = self._weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        with torch.inference_mode(False):  # training may follow
            self.register_buffer('coords', self.coordinates(weight.device, dtype), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PositionBias:
        # `.to()`, `.half()` and `.to_empty()` come through here. Rebuilding keeps the table precise and, after
        # construction on the meta device, gives it values.
        super()._apply(fn, recurse)
        self.rebuild_derived()
        return self

    def forward(self, window: tuple[int, int] | None = None) -> Tensor:
        """Bias for every offset between two tokens of a window.

        Args:
            window: Height and width of a part of the configured window, for maps smaller than it; default all of it.

        Returns:
            `(nH, 2 * Wh - 1, 2 * Ww - 1)` in fp32 (fp64 for weights in fp64), by row and column of query minus key.
        """
        height, width = window or self.window
        top, left = self.window[0] - height, self.window[1] - width
        coords = self.coords[top : top + 2 * height - 1, left : left + 2 * width - 1]
        with torch.autocast(device_type=coords.device.type, enabled=False):
            table: Any = coords.to(self._weight.dtype)
            for layer in self:
                table = layer(table)
            return self.squash(table.to(self.coords.dtype)).permute(2, 0, 1)


class ContinuousPositionBias(PositionBias):
    """The official form: coordinates in units of the training window, the bias squashed to (0, 16).

    The layers carry the official names (`0.weight`, `0.bias`, `2.weight`).

    Args:
        window: Height and width of the window, in tokens.
        pretrained_window: The same for the window the weights were trained with; `(0, 0)` for `window` itself.
        num_heads: Number of attention heads.
    """

    def __init__(
        self, window: tuple[int, int], pretrained_window: tuple[int, int], num_heads: int
    ) -> None:
        layers = (nn.Linear(2, HIDDEN), nn.ReLU(inplace=True), nn.Linear(HIDDEN, num_heads, False))
        named = OrderedDict((str(index), layer) for index, layer in enumerate(layers))
        super().__init__(named, window, pretrained_window)

    def coordinates(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """See `log_spaced_coords`."""
        return log_spaced_coords(self.window, self.pretrained_window, device, dtype)

    def squash(self, table: Tensor) -> Tensor:
        """Squash the bias to (0, 16)."""
        return MAX_BIAS * table.sigmoid()


class SignedLogPositionBias(PositionBias):
    """The form of Christoph Reich's reimplementation: sign(d) log(1 + |d|) of offsets d in tokens, and no bound.

    The coordinates have no unit that belongs to a window, so weights mean the same at every window. The layers carry
    timm's names (`fc1`, `fc2`).

    Args:
        window: Height and width of the window, in tokens.
        num_heads: Number of attention heads.
        hidden_dims: Width of the hidden layer.
        drop: Dropout of the hidden layer.
    """

    def __init__(
        self, window: tuple[int, int], num_heads: int, hidden_dims: int, drop: float = 0.0
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            fc1=nn.Linear(2, hidden_dims),
            act=nn.ReLU(inplace=True),
            drop=nn.Dropout(drop),
            fc2=nn.Linear(hidden_dims, num_heads),
        )
        super().__init__(layers, window)

    def coordinates(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Signed logarithms of the offsets."""
        axes = []
        for extent in self.window:
            offset = torch.arange(1 - extent, extent, dtype=dtype, device=device)
            axes.append(offset.sign() * offset.abs().log1p())
        return torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1)
