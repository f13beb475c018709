"""Cutting a feature map into windows, and what the cut means for attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class WindowPartition:
    """The cut of a map of H x W tokens into windows.

    The map is padded at the bottom and right to whole windows first and shifted cyclically afterwards. In this order
    (the reverse of timm's) the border of the image stays where it is, and `regions` can keep real tokens
    away from the padding and from what the shift brought to their side.

    Attributes:
        size: H and W of the map, in tokens.
        window: Height and width of a window, in tokens; never larger than the map.
        shift: Rows and columns by which the map moves up and left.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    shift: tuple[int, int]

    @classmethod
    def fit(
        cls, size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
    ) -> WindowPartition:
        """Fit windows to a map: along an axis where one window covers the map, it shrinks to it and never shifts."""
        fits = [length <= extent for length, extent in zip(size, window)]
        return cls(
            size=size,
            window=(size[0] if fits[0] else window[0], size[1] if fits[1] else window[1]),
            shift=(0 if fits[0] else shift[0], 0 if fits[1] else shift[1]),
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Number of windows along height and width."""
        return -(-self.size[0] // self.window[0]), -(-self.size[1] // self.window[1])

    @property
    def padding(self) -> tuple[int, int]:
        """Rows added at the bottom and columns added at the right."""
        return (
            self.grid[0] * self.window[0] - self.size[0],
            self.grid[1] * self.window[1] - self.size[1],
        )

    def split(self, x: Tensor) -> Tensor:
        """Cut `(B, H, W, C)` into windows `(B * nW, N, C)`, row by row of the grid."""
        (rows, cols), (height, width) = self.grid, self.window
        if any(self.padding):
            x = F.pad(x, (0, 0, 0, self.padding[1], 0, self.padding[0]))
        if any(self.shift):
            x = torch.roll(x, shifts=(-self.shift[0], -self.shift[1]), dims=(1, 2))
        x = x.reshape(x.shape[0], rows, height, cols, width, x.shape[-1]).transpose(2, 3)
        return x.reshape(-1, height * width, x.shape[-1])

    def join(self, windows: Tensor) -> Tensor:
        """Inverse of `split`: `(B * nW, N, C)` to `(B, H, W, C)`, padding removed."""
        (rows, cols), (height, width) = self.grid, self.window
        channels = windows.shape[-1]
        x = windows.reshape(-1, rows, cols, height, width, channels).transpose(2, 3)
        x = x.reshape(-1, rows * height, cols * width, channels)
        if any(self.shift):
            x = torch.roll(x, shifts=self.shift, dims=(1, 2))
        return x[:, : self.size[0], : self.size[1]]

    def regions(self, device: torch.device | str | None = None) -> Tensor | None:
        """Label the tokens of every window such that only equal labels may attend to one another.

        The labels keep apart the sides of the image that the cyclic shift brought together, and give padding a label of
        its own, -1.

        Returns:
            `(nW, N)` integers, or `None` where every window is one region.
        """
        if not any(self.padding) and not any(self.shift):
            return None
        by_row, by_col = (self._axis_labels(axis, device) for axis in (0, 1))
        labels = by_row[:, None] * 2 + by_col[None, :]
        labels = labels.masked_fill((by_row < 0)[:, None] | (by_col < 0)[None, :], -1)
        (rows, cols), (height, width) = self.grid, self.window
        return labels.reshape(rows, height, cols, width).transpose(1, 2).reshape(rows * cols, -1)

    def _axis_labels(self, axis: int, device: torch.device | str | None) -> Tensor:
        """Labels along one axis in shifted order: 1 where the shift wrapped round, -1 padding, 0 elsewhere."""
        padded, shift = self.grid[axis] * self.window[axis], self.shift[axis]
        position = torch.arange(padded, device=device)
        wrapped = (position >= padded - shift).long()
        return wrapped.masked_fill((position + shift) % padded >= self.size[axis], -1)
