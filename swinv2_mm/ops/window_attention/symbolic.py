"""Partition of a feature map whose height and width are unknown, for exported models that accept any size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swinv2_mm.ops.window_attention.partition import Pair, WindowPartition


def has_symbolic_size(x: Tensor) -> bool:
    """Return whether the sizes of a tensor are unknown, as under `torch.jit.trace`."""
    return any(not isinstance(size, int) for size in x.shape)


@dataclass(frozen=True)
class SymbolicPartition(WindowPartition):
    """`WindowPartition` of plain operators without decisions by size, for the reference backend.

    Windows keep their size on maps that are smaller, where the padding is masked.
    """

    @classmethod
    def fit(cls, size: Any, window: Pair, shift: Pair) -> SymbolicPartition:
        """Fit windows to a map; the shift along an axis where one window covers the map is removed in the graph."""
        return cls(size, window, shift)

    @property
    def grid(self) -> Pair:
        """See `WindowPartition.grid`; the quotient of negative numbers differs in ONNX."""
        rows, cols = ((extent + side - 1) // side for extent, side in zip(self.size, self.window))
        return rows, cols

    def split(self, x: Tensor) -> Tensor:
        """See `WindowPartition.split`; padding repeats the last row and column, which `regions` separates."""
        (rows, cols), (height, width) = self.grid, self.window
        for axis in (0, 1):
            x = x.index_select(axis + 1, self._source(axis, x.device))
        x = x.reshape(x.shape[0], rows, height, cols, width, x.shape[-1]).transpose(2, 3)
        return x.reshape(-1, height * width, x.shape[-1])

    def join(self, windows: Tensor) -> Tensor:
        """See `WindowPartition.join`."""
        (rows, cols), (height, width) = self.grid, self.window
        channels = windows.shape[-1]
        x = windows.reshape(-1, rows, cols, height, width, channels).transpose(2, 3)
        x = x.reshape(-1, rows * height, cols * width, channels)
        for axis in (0, 1):
            tokens = torch.arange(self.size[axis], device=x.device)
            padded = self.grid[axis] * self.window[axis]
            x = x.index_select(axis + 1, (tokens + padded - self._shift(axis, x.device)) % padded)
        return x

    def regions(self, device: torch.device | str | None = None) -> Tensor:
        """See `WindowPartition.regions`; never `None`."""
        by_row, by_col = (self._axis_labels(axis, device) for axis in (0, 1))
        labels = by_row[:, None] * 3 + by_col[None, :]
        (rows, cols), (height, width) = self.grid, self.window
        return labels.reshape(rows, height, cols, width).transpose(1, 2).reshape(-1, height * width)

    def _shift(self, axis: int, device: torch.device | str | None) -> Tensor:
        """Return the shift along an axis, 0 if there is one window, as a tensor `(1,)`."""
        last = torch.arange(self.grid[axis], device=device)[-1:]
        return last.clamp(max=1) * self.shift[axis]

    def _rolled(self, axis: int, device: torch.device | str | None) -> tuple[Tensor, Tensor]:
        """Return positions along the shifted axis, and the positions that they come from."""
        padded = self.grid[axis] * self.window[axis]
        position = torch.arange(padded, device=device)
        return position, (position + self._shift(axis, device)) % padded

    def _source(self, axis: int, device: torch.device | str | None) -> Tensor:
        return self._rolled(axis, device)[1].clamp(max=self.size[axis] - 1)

    def _axis_labels(self, axis: int, device: torch.device | str | None) -> Tensor:
        """Return labels along one axis in shifted order: 1 for wrapped tokens, 2 for padding, 0 elsewhere."""
        position, source = self._rolled(axis, device)
        wrapped = (source < position).long()
        return torch.where(source >= self.size[axis], 2, wrapped)
