"""RoIAlign of the mmcv stand-in (He et al., "Mask R-CNN", ICCV 2017), on torchvision's kernels.

They do not have a max mode: here it is the maximum of averages over one sample each. On a CPU they are serial: here
regions are divided among threads. Their gradient is also not deterministic on a GPU; matrix products replace it.

Shape legend: B images, C channels, H W feature height and width, K regions, (Ph, Pw) bins of a region.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

from swinv2_mm.ops.execution import is_observed
from swinv2_mm.ops.mmcv_ext.operators import working_dtype

MAX, AVERAGE = 0, 1

# A coordinate outside of every map. Samples more than one pixel outside have weight 0.
_OUTSIDE = -2.0
_PARTS_PER_THREAD = 4  # to balance regions of different sizes
# Maximum number of sample values, or of weights of rows and columns, in memory (float32: 32 MB).
_VALUES_AT_A_TIME = 2**23


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool each region of a feature map into a fixed grid of bins, by bilinear samples.

    `rois` are (K, 5), image index and box, and `output` (K, C, Ph, Pw). A bin without samples (a region without area)
    is 0. In max mode `argmax_y` and `argmax_x` become the position of the greatest sample.

    Raises:
        ValueError: a region is not finite, has an invalid image index, or has a negative size (checked on the CPU
            only: the check would synchronise a GPU).
    """
    if output.numel() == 0:
        return
    dtype = working_dtype(input)
    input, rois = input.to(dtype), rois.to(dtype)
    check_rois(rois, input.size(0), aligned)
    bins = (aligned_height, aligned_width)
    pool = torch.ops.torchvision.roi_align
    if pool_mode == AVERAGE:
        output.copy_(_pool_average(input, rois, spatial_scale, *bins, sampling_ratio, aligned))
        return
    output.zero_()
    argmax_y.fill_(_OUTSIDE)
    argmax_x.fill_(_OUTSIDE)
    start, step, counts = _sample_grid(rois, bins, spatial_scale, sampling_ratio, aligned)
    top, left = (torch.arange(n, dtype=dtype, device=rois.device) for n in bins)
    for count in counts.unique(dim=0):
        rows, columns = count.tolist()
        if rows * columns == 0:
            continue
        at_a_time = max(1, _VALUES_AT_A_TIME // (output[0].numel() * rows * columns))
        fine = (bins[0] * rows, bins[1] * columns)
        for k in (counts == count).all(dim=1).nonzero()[:, 0].split(at_a_time):
            samples = pool(input, rois[k], spatial_scale, *fine, 1, aligned)
            samples = samples.unflatten(3, (-1, columns)).unflatten(2, (-1, rows)).transpose(3, 4)
            greatest, where = samples.flatten(4).max(dim=4)  # the first of equal samples
            (y, x), (high, wide) = (t[k, :, None, None, None].unbind(1) for t in (start, step))
            y = y + high * (top[:, None] * rows + where // columns + 0.5) / rows
            x = x + wide * (left * columns + where % columns + 0.5) / columns
            for buffer, result in ((output, greatest), (argmax_y, y), (argmax_x, x)):
                buffer[k] = result.to(buffer.dtype)


def _pool_average(input: Tensor, rois: Tensor, *settings: Any) -> Tensor:
    """Return the averages, (K, C, Ph, Pw), computed by the threads of torch on a CPU."""
    pool, threads = torch.ops.torchvision.roi_align, torch.get_num_threads()
    parts = rois.split(-(-len(rois) // (threads * _PARTS_PER_THREAD)))
    if (
        threads == 1
        or len(parts) == 1
        or input.device.type != 'cpu'
        or is_observed(input, rois)
        or not threading.main_thread().is_alive()  # an executor cannot start during shutdown
    ):
        return pool(input, rois, *settings)

    def of_part(part: Tensor) -> Tensor:
        with torch.no_grad():  # a setting of the thread
            return pool(input, part, *settings)

    with ThreadPoolExecutor(threads) as executor:
        return torch.cat(list(executor.map(of_part, parts)))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of the features to `grad_input`, (B, C, H, W). See `roi_align_forward`."""
    if grad_output.numel() == 0:
        return
    dtype = working_dtype(grad_output)
    rois, grad = rois.to(dtype), grad_output.to(dtype)
    bins = (aligned_height, aligned_width)
    if pool_mode == MAX:
        grad_input += _scatter_to_greatest(grad, rois, argmax_y, argmax_x, grad_input.shape)
    elif grad.device.type == 'cpu' or torch.are_deterministic_algorithms_enabled():
        grid = _sample_grid(rois, bins, spatial_scale, sampling_ratio, aligned)
        sums = grad_input.to(dtype)  # half precision is rounded once
        _add_by_products(grad, rois[:, 0].long(), grid, sums)
        grad_input.copy_(sums)
    else:
        grad_input += torch.ops.torchvision._roi_align_backward(
            grad, rois, spatial_scale, *bins, *grad_input.shape, sampling_ratio, aligned
        )


def _sample_grid(
    rois: Tensor, bins: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return start, bin size (both in feature pixels) and samples per bin of each region, (K, 2) each: y, x."""
    corners = rois[:, [2, 1, 4, 3]] * spatial_scale - (0.5 if aligned else 0.0)
    start, end = corners.split(2, dim=1)
    extent = (end - start).clamp(min=0.0 if aligned else 1.0)
    bin_size = extent / extent.new_tensor(bins)
    if sampling_ratio > 0:
        return start, bin_size, torch.full_like(extent, sampling_ratio, dtype=torch.long)
    return start, bin_size, bin_size.ceil().long()


def _add_by_products(
    grad: Tensor, images: Tensor, grid: tuple[Tensor, Tensor, Tensor], grad_input: Tensor
) -> None:
    """Add the gradient of average pooling, two small matrix products per region.

    The samples of a bin are all pairs of a row and a column position, so the weight of a pixel is the product of the
    weights of its row and its column.
    """
    weights_of_one = sum(n * size for n, size in zip(grad.shape[2:], grad_input.shape[2:]))
    at_a_time = max(1, _VALUES_AT_A_TIME // weights_of_one)
    for grads, indices, *part in zip(*(t.split(at_a_time) for t in (grad, images, *grid))):
        rows, columns = (
            _bin_weights([t[:, axis, None] for t in part], grad.size(2 + axis), size)
            for axis, size in enumerate(grad_input.shape[2:])
        )
        spans = zip(indices.tolist(), _spans(rows), _spans(columns))
        for k, (image, (top, bottom), (left, right)) in enumerate(spans):
            if top < bottom and left < right:
                across = grads[k] @ columns[k, :, left:right]  # (C, Ph, right - left)
                grad_input[image, :, top:bottom, left:right] += rows[k, :, top:bottom].t() @ across


def _bin_weights(grid: list[Tensor], bins: int, size: int) -> Tensor:
    """Return the weights of pixels along an axis in the average of each bin, (K, bins, size), from (K, 1) inputs."""
    start, step, count = grid
    weights = start.new_zeros(len(start), bins, size)
    first = torch.arange(bins, device=start.device) * step + start
    for sample in range(int(count.max())):
        coords = first + (sample + 0.5) * step / count.clamp(min=1)
        share = (sample < count) / count.clamp(min=1).to(start.dtype)
        for index, weight in _axis_corners(coords, size):
            weights.scatter_add_(2, index[..., None], (weight * share)[..., None])
    return weights


def _spans(weights: Tensor) -> list[list[int]]:
    """Return the range of pixels with non-zero weight in any bin, per region of (K, bins, pixels); [0, 0] if none."""
    counts = weights.ne(0).any(dim=1)
    index = torch.arange(weights.size(2), device=weights.device)
    first = torch.where(counts, index, weights.size(2)).amin(dim=1)
    behind = torch.where(counts, index + 1, 0).amax(dim=1)
    return torch.stack((first, behind), dim=1).tolist()


def _scatter_to_greatest(
    grad: Tensor, rois: Tensor, y: Tensor, x: Tensor, shape: torch.Size
) -> Tensor:
    """Add the gradient of max pooling: that of each bin goes to the four pixels around its greatest sample."""
    _, channels, height, width = shape
    planes = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=rois.device)
    origin = planes[:, :, None, None] * (height * width)  # start of a plane in the flat map
    sums = grad.new_zeros(shape.numel())
    for row, row_weight in _axis_corners(y.to(grad.dtype), height):
        for column, column_weight in _axis_corners(x.to(grad.dtype), width):
            index = origin + row * width + column
            sums.index_add_(0, index.flatten(), (grad * row_weight * column_weight).flatten())
    return sums.view(shape)


def _axis_corners(coords: Tensor, size: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the lower and the upper pixel around each coordinate on an axis, and their interpolation weights.

    Up to one pixel outside the map the border value is used; beyond, all weights are 0.
    """
    inside = (coords >= -1) & (coords <= size)
    coords = coords.clamp(0, size - 1)
    lower = coords.floor()
    fraction = coords - lower
    index = lower.long()
    return (index, (1 - fraction) * inside), ((index + 1).clamp(max=size - 1), fraction * inside)


def check_rois(rois: Tensor, batch: int, aligned: bool = False) -> None:
    """Raise an error for regions with which kernels would read or allocate out of bounds."""
    if rois.device.type != 'cpu':
        return
    wrong = ~rois.isfinite().all(dim=1) | (rois[:, 0] < 0) | (rois[:, 0] >= batch)
    if aligned:
        wrong |= (rois[:, 3:] < rois[:, 1:3]).any(dim=1)
    if wrong.any():
        k = int(wrong.nonzero()[0])
        raise ValueError(
            f'region {k} of {rois.size(0)} is (image, x1, y1, x2, y2) = {tuple(rois[k].tolist())}: expected '
            f'finite values, an image index from 0 to {batch - 1}'
            + (', x1 <= x2 and y1 <= y2' if aligned else '')
        )
