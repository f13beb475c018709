"""Partition of a feature map into windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]  # height and width


@dataclass(frozen=True)
class Run:
    """`count` consecutive windows of `length` tokens along an axis, from token `start`."""

    start: int
    count: int
    length: int

    @property
    def tokens(self) -> slice:
        """The tokens of all windows."""
        return slice(self.start, self.start + self.count * self.length)

    def part(self, first: int, count: int) -> Run:
        """Return the windows from `first` to before `first + count`, or to the last one."""
        start = self.start + first * self.length
        return Run(start, min(count, self.count - first), self.length)


Runs = tuple[tuple[Run, ...], tuple[Run, ...]]


@dataclass(frozen=True)
class Tile:
    """A rectangle of windows of one size, for some images of the batch (`None` for all)."""

    rows: Run
    cols: Run
    images: slice | None = None

    @property
    def window(self) -> Pair:
        """Height and width of the windows, in tokens."""
        return self.rows.length, self.cols.length

    def view(self, x: Tensor) -> Tensor:
        """Return the windows in `(B, H, W, C)` as a view `(B, rows, cols, h, w, C)`."""
        (height, width), images = self.window, self.images or slice(None)
        place = x[images, self.rows.tokens, self.cols.tokens]
        place = place.unflatten(1, (self.rows.count, height)).unflatten(3, (self.cols.count, width))
        return place.transpose(2, 3)

    def put(self, windows: Tensor, out: Tensor) -> None:
        """Copy windows `(windows, N, ...)` to their positions in `out`, `(B, H, W, C)`."""
        place = self.view(out)
        place.copy_(windows.reshape(place.shape))

    def chunks(self, images: int, most: int) -> Iterator[Tile]:
        """Split the tile of a batch of `images` into tiles of at most `most` windows, at least one."""
        per_image = self.rows.count * self.cols.count
        batch = max(1, most // per_image)
        down = max(1, most // self.cols.count)
        across = min(most, self.cols.count)
        for image in range(0, images, batch):
            for row in range(0, self.rows.count, down):
                for col in range(0, self.cols.count, across):
                    yield Tile(
                        self.rows.part(row, down),
                        self.cols.part(col, across),
                        slice(image, min(image + batch, images)),
                    )


def _tiles(runs: Runs) -> tuple[Tile, ...]:
    return tuple(Tile(row, col) for row, col in product(*runs))


@dataclass(frozen=True)
class Band:
    """Complete rows of windows of a map, for some images of the batch.

    `rows` is a slice of the rows of tokens, and `runs` are the windows relative to the band `(images, rows, W)`.
    """

    images: slice
    rows: slice
    runs: Runs
    window: Pair

    def tiles(self) -> tuple[Tile, ...]:
        """See `WindowPartition.tiles`."""
        return _tiles(self.runs)


@dataclass(frozen=True)
class WindowPartition:
    """Partition of a map of H x W tokens into windows.

    The map is first padded at the bottom and right to complete windows and then cyclically shifted. In this order (the
    reverse of timm's) `regions` can separate real tokens from the padding and from tokens that the shift moved next to
    them.

    Attributes:
        size: H and W of the map, in tokens.
        window: Height and width of a window, in tokens; never larger than the map.
        shift: Rows and columns by which the map moves up and left.
    """

    size: Pair
    window: Pair
    shift: Pair

    @classmethod
    def fit(cls, size: Pair, window: Pair, shift: Pair) -> WindowPartition:
        """Fit windows to a map: along an axis where one window covers the map, it has its size and is not shifted."""
        fits = [length <= extent for length, extent in zip(size, window)]
        return cls(
            size=size,
            window=(size[0] if fits[0] else window[0], size[1] if fits[1] else window[1]),
            shift=(0 if fits[0] else shift[0], 0 if fits[1] else shift[1]),
        )

    @property
    def grid(self) -> Pair:
        """Number of windows along height and width; the quotient of negative numbers differs in ONNX."""
        rows, cols = ((extent + side - 1) // side for extent, side in zip(self.size, self.window))
        return rows, cols

    @property
    def padding(self) -> Pair:
        """Rows added at the bottom and columns added at the right."""
        return -self.size[0] % self.window[0], -self.size[1] % self.window[1]

    def tiles(self) -> tuple[Tile, ...]:
        """Equivalent partition without shift, padding or labels.

        Tokens that the labels of `regions` separate are in different, smaller windows at the border of the map. All
        windows of one size form one tile; there are at most nine.
        """
        return _tiles(self.runs)

    @property
    def runs(self) -> Runs:
        """The windows of `tiles` along height and width."""
        return self._runs(0), self._runs(1)

    def bands(self, images: int, tokens: int) -> Iterator[Band]:
        """Split a batch of `images` maps into bands of about `tokens` tokens, at least one row of windows."""
        cols, width = self._runs(1), self.size[1]
        together = max(1, tokens // (self.size[0] * width))
        lengths = [run.length for run in self._runs(0) for _ in range(run.count)]
        for image in range(0, images, together):
            start, rows = 0, list[Run]()
            for index, length in enumerate(lengths):
                height = sum(run.count * run.length for run in rows)
                if rows and rows[-1].length == length:
                    rows[-1] = Run(rows[-1].start, rows[-1].count + 1, length)
                else:
                    rows.append(Run(height, 1, length))
                height += length
                following = lengths[index + 1] if index + 1 < len(lengths) else tokens
                if (height + following) * width > tokens or index + 1 == len(lengths):
                    yield Band(
                        slice(image, min(image + together, images)),
                        slice(start, start + height),
                        (tuple(rows), cols),
                        self.window,
                    )
                    start, rows = start + height, []

    def _runs(self, axis: int) -> tuple[Run, ...]:
        size, window, shift = self.size[axis], self.window[axis], self.shift[axis]
        count, rest = divmod(size - shift, window)
        runs = (Run(0, 1, shift), Run(shift, count, window), Run(size - rest, 1, rest))
        return tuple(run for run in runs if run.count and run.length)

    def split(self, x: Tensor) -> Tensor:
        """Split `(B, H, W, C)` into windows `(B * nW, N, C)`, in row-major order."""
        (rows, cols), (height, width) = self.grid, self.window
        x = self.pad_and_shift(x)
        x = x.reshape(x.shape[0], rows, height, cols, width, x.shape[-1]).transpose(2, 3)
        return x.reshape(-1, height * width, x.shape[-1])

    def pad_and_shift(self, x: Tensor) -> Tensor:
        """Pad `(B, H, W, C)` to complete windows and shift it."""
        if any(self.padding):
            x = F.pad(x, (0, 0, 0, self.padding[1], 0, self.padding[0]))
        if any(self.shift):
            x = torch.roll(x, shifts=(-self.shift[0], -self.shift[1]), dims=(1, 2))
        return x

    def join(self, windows: Tensor) -> Tensor:
        """Inverse of `split`: `(B * nW, N, C)` to `(B, H, W, C)`, padding removed."""
        (rows, cols), (height, width) = self.grid, self.window
        channels = windows.shape[-1]
        x = windows.reshape(-1, rows, cols, height, width, channels).transpose(2, 3)
        return self.undo_pad_and_shift(x.reshape(-1, rows * height, cols * width, channels))

    def undo_pad_and_shift(self, x: Tensor) -> Tensor:
        """Inverse of `pad_and_shift`."""
        if any(self.shift):
            x = torch.roll(x, shifts=self.shift, dims=(1, 2))
        return x[:, : self.size[0], : self.size[1]]

    def regions(self, device: torch.device | str | None = None) -> Tensor | None:
        """Return labels of the tokens of every window; only tokens of equal labels attend to one another.

        The labels separate opposite sides of the image that the cyclic shift moved next to each other. Those of padding
        are negative.

        Returns:
            `(nW, N)` integers, or `None` if every window is one region.
        """
        if not any(self.padding) and not any(self.shift):
            return None
        return self.labels(device)

    def labels(self, device: torch.device | str | None) -> Tensor:
        """Return the labels of `regions`, also if they are equal."""
        by_row, by_col = (self._axis_labels(axis, device) for axis in (0, 1))
        labels = by_row[:, None] * 2 + by_col[None, :]
        (rows, cols), (height, width) = self.grid, self.window
        return labels.reshape(rows, height, cols, width).transpose(1, 2).reshape(-1, height * width)

    def source(self, axis: int, device: torch.device | str | None) -> tuple[Tensor, Tensor]:
        """Return positions along an axis of the shifted map, and the positions that they come from."""
        padded = self.grid[axis] * self.window[axis]
        position = torch.arange(padded, device=device)
        return position, (position + self.shift_of(axis, device)) % padded

    def shift_of(self, axis: int, device: torch.device | str | None) -> int | Tensor:
        """Return the shift along an axis."""
        return self.shift[axis]

    def _axis_labels(self, axis: int, device: torch.device | str | None) -> Tensor:
        """Return labels along one axis in shifted order: 1 for wrapped tokens, -4 for padding, 0 elsewhere."""
        position, source = self.source(axis, device)
        wrapped = (source < position).long()
        return torch.where(source >= self.size[axis], -4, wrapped)


def has_symbolic_size(x: Tensor) -> bool:
    """Return whether the sizes of a tensor are unknown, as under `torch.jit.trace`."""
    return any(not isinstance(size, int) for size in x.shape)


@dataclass(frozen=True)
class SymbolicPartition(WindowPartition):
    """`WindowPartition` of plain operators without decisions by size, for exported models that accept any size.

    For the reference backend. Windows keep their size on maps that are smaller, where the padding is masked.
    """

    @classmethod
    def fit(cls, size: Any, window: Pair, shift: Pair) -> SymbolicPartition:
        """Fit windows to a map; the shift along an axis where one window covers the map is removed in the graph."""
        return cls(size, window, shift)

    def pad_and_shift(self, x: Tensor) -> Tensor:
        """See `WindowPartition.pad_and_shift`; padding repeats the last row and column."""
        for axis in (0, 1):
            _, source = self.source(axis, x.device)
            x = x.index_select(axis + 1, source.clamp(max=self.size[axis] - 1))
        return x

    def undo_pad_and_shift(self, x: Tensor) -> Tensor:
        """See `WindowPartition.undo_pad_and_shift`."""
        for axis in (0, 1):
            tokens = torch.arange(self.size[axis], device=x.device)
            padded = self.grid[axis] * self.window[axis]
            shifted = (tokens + padded - self.shift_of(axis, x.device)) % padded
            x = x.index_select(axis + 1, shifted)
        return x

    def regions(self, device: torch.device | str | None = None) -> Tensor:
        """See `WindowPartition.regions`; never `None`."""
        return self.labels(device)

    def shift_of(self, axis: int, device: torch.device | str | None) -> Tensor:
        """Return the shift along an axis, 0 if there is one window, as a tensor `(1,)`."""
        last = torch.arange(self.grid[axis], device=device)[-1:]
        return last.clamp(max=1) * self.shift[axis]
