"""Where RoIAlign samples a feature map: positions, the pixels around each, and their weights.

Shape legend: K regions of a call, k of a group, (Ph, Pw) bins of a region, (Gh, Gw) samples of a bin,
S = Gh * Gw, H W feature height and width.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# A coordinate off every map. A sample counts up to one pixel off, so that this one has no weight anywhere.
OUTSIDE = -2.0

# Sample values held at a time, to bound memory (float32: 32 MB, and a few times that in temporaries).
_VALUES_AT_A_TIME = 2**23


class Samples(NamedTuple):
    """The samples of some regions that have the same number of samples per bin."""

    inds: Tensor
    """(k,) which regions they are."""
    y: Tensor
    """(k, Ph, Pw, S) rows, in feature pixels."""
    x: Tensor
    """(k, Ph, Pw, S) columns, in feature pixels."""
    corners: list[tuple[Tensor, Tensor]]
    """For each of the four pixels around a sample, (k, Ph, Pw, S) each: its position in the map flattened to
    (B * H * W), and its weight."""


def sample_groups(
    rois: Tensor,
    size: tuple[int, int],
    bins: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    channels: int,
) -> Iterator[Samples]:
    """Walk over the samples of all regions, those of equal sample counts together.

    Args:
        rois: (K, 5) regions: image index, then x1, y1, x2, y2 in image pixels. One that ends before it begins
            counts as empty, and an empty one as a pixel long without `aligned`.
        size: (H, W) of the feature map.
        bins: (Ph, Pw).
        spatial_scale: feature pixels per image pixel.
        sampling_ratio: samples per bin and direction; 0 takes about one per feature pixel.
        aligned: whether pixel centres lie at half coordinates.
        channels: values per sample, which bound how many regions come at a time.

    Yields:
        `Samples`. A region without samples comes in none of them.
    """
    start, bin_size, counts = _sample_grid(rois, bins, spatial_scale, sampling_ratio, aligned)
    for count in counts.unique(dim=0):
        grid_w, grid_h = (int(n) for n in count)
        samples = grid_h * grid_w
        if samples == 0:
            continue
        members = (counts == count).all(dim=1).nonzero().squeeze(1)
        step = max(1, _VALUES_AT_A_TIME // (bins[0] * bins[1] * samples * channels))
        for inds in members.split(step):
            y = _positions(start[inds, 1], bin_size[inds, 1], bins[0], grid_h)
            x = _positions(start[inds, 0], bin_size[inds, 0], bins[1], grid_w)
            yield _samples(inds, rois[inds, 0].long(), y, x, size)


def bin_weights(
    rois: Tensor,
    size: tuple[int, int],
    bins: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> tuple[Tensor, Tensor]:
    """How much each row and each column of the map counts in the average of a bin.

    A bin's samples are all pairs of a row and a column position, so that a pixel's weight in it is the product of its
    row's weight and its column's.

    Args:
        rois: (K, 5), as for `sample_groups`, and so are the others.
        size: (H, W).
        bins: (Ph, Pw).
        spatial_scale: feature pixels per image pixel.
        sampling_ratio: samples per bin and direction; 0 takes about one per feature pixel.
        aligned: whether pixel centres lie at half coordinates.

    Returns:
        (K, Ph, H) weights of rows and (K, Pw, W) of columns; all 0 for a region without samples.
    """
    start, bin_size, counts = _sample_grid(rois, bins, spatial_scale, sampling_ratio, aligned)

    def along(axis: int, length: int, parts: int) -> Tensor:
        weights = rois.new_zeros(len(rois), parts, length)
        count = counts[:, axis, None].to(rois.dtype)
        step = bin_size[:, axis, None]
        first = torch.arange(parts, device=rois.device) * step + start[:, axis, None]
        for sample in range(int(count.max()) if len(rois) else 0):
            coords = first + (sample + 0.5) * step / count.clamp(min=1)
            share = (sample < count).to(rois.dtype) / count.clamp(min=1)
            for index, weight in axis_corners(coords, length):
                weights.scatter_add_(2, index[..., None], (weight * share)[..., None])
        return weights

    return along(1, size[0], bins[0]), along(0, size[1], bins[1])


def axis_corners(coords: Tensor, size: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The two pixels around each coordinate along one axis, and their weights in linear interpolation.

    Args:
        coords: positions in pixels, any shape. Up to one pixel off the map they take the border's value; beyond,
            all weights are 0.
        size: pixels along the axis.

    Returns:
        ((index, weight), (index, weight)) of the lower and the upper pixel, in the shape of `coords`.
    """
    inside = (coords >= -1) & (coords <= size)
    coords = coords.clamp(0, size - 1)
    lower = coords.floor()
    fraction = coords - lower
    index = lower.long()
    return (index, (1 - fraction) * inside), ((index + 1).clamp(max=size - 1), fraction * inside)


def _sample_grid(
    rois: Tensor,
    bins: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Start, size of a bin (both in feature pixels) and samples per bin of each region, (K, 2) each: x, y."""
    start = rois[:, 1:3] * spatial_scale - (0.5 if aligned else 0.0)
    extent = rois[:, 3:] * spatial_scale - (0.5 if aligned else 0.0) - start
    extent = extent.clamp(min=0.0 if aligned else 1.0)
    bin_size = extent / extent.new_tensor([bins[1], bins[0]])
    if sampling_ratio > 0:
        return start, bin_size, torch.full_like(extent, sampling_ratio, dtype=torch.long)
    return start, bin_size, bin_size.ceil().long()


def _positions(start: Tensor, bin_size: Tensor, bins: int, samples: int) -> Tensor:
    """(k, bins, samples) sample positions along one axis, evenly spread in each bin."""
    first = torch.arange(bins, device=start.device) * bin_size[:, None] + start[:, None]
    step = (torch.arange(samples, device=start.device) + 0.5) * bin_size[:, None] / samples
    return first[:, :, None] + step[:, None, :]


def _samples(inds: Tensor, images: Tensor, y: Tensor, x: Tensor, size: tuple[int, int]) -> Samples:
    """Combine the rows (k, Ph, Gh) and columns (k, Pw, Gw) of samples into all their pairs."""
    height, width = size
    shape = (y.size(0), y.size(1), x.size(1), y.size(2), x.size(2))

    def along_rows(values: Tensor) -> Tensor:
        return values[:, :, None, :, None].expand(shape).flatten(3)

    def along_columns(values: Tensor) -> Tensor:
        return values[:, None, :, None, :].expand(shape).flatten(3)

    origin = images[:, None, None, None] * (height * width)
    corners = [
        (
            origin + along_rows(row) * width + along_columns(column),
            along_rows(row_weight) * along_columns(column_weight),
        )
        for row, row_weight in axis_corners(y, height)
        for column, column_weight in axis_corners(x, width)
    ]
    return Samples(inds, along_rows(y), along_columns(x), corners)
