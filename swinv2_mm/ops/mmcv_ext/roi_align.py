"""RoIAlign of the mmcv stand-in (He et al., "Mask R-CNN", ICCV 2017).

The average mode runs on torchvision's kernels, but for the gradient on a CPU: theirs takes one sample of one channel
after the other, on one core. They have no max mode, which is written with torch on the sample points of `roi_samples`.

Shape legend: B images, C channels, H W feature height and width, K regions, (Ph, Pw) bins of a region.
"""

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

from swinv2_mm.ops.mmcv_ext.dtype import working_dtype
from swinv2_mm.ops.mmcv_ext.roi_samples import OUTSIDE, axis_corners, bin_weights, sample_groups

MAX, AVERAGE = 0, 1

# Of rows and columns, to bound memory (float32: 32 MB).
_WEIGHTS_AT_A_TIME = 2**23


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

    Args:
        input: (B, C, H, W) features.
        rois: (K, 5) regions: image index, then x1, y1, x2, y2 in image pixels.
        output: (K, C, Ph, Pw), overwritten. A bin without a sample (a region without area) gives 0.
        argmax_y: (K, C, Ph, Pw), overwritten in max mode: the row of the greatest sample.
        argmax_x: likewise its column.
        aligned_height: Ph.
        aligned_width: Pw.
        spatial_scale: feature pixels per image pixel.
        sampling_ratio: samples per bin and direction; 0 takes about one per feature pixel.
        pool_mode: 0 takes the greatest sample of a bin, 1 their average.
        aligned: whether pixel centres lie at half coordinates (and regions may be smaller than a pixel).

    Raises:
        ValueError: a region is not finite, names no image, or ends before it begins (CPU only: looking at the
            values would stall a GPU).
    """
    if output.numel() == 0:
        return
    dtype = working_dtype(input)
    rois = rois.to(dtype)
    _check_rois(rois, input.size(0), aligned)
    if pool_mode == AVERAGE:
        pooled = torch.ops.torchvision.roi_align(
            input.to(dtype),
            rois,
            spatial_scale,
            aligned_height,
            aligned_width,
            sampling_ratio,
            aligned,
        )
        output.copy_(pooled)
        return
    output.zero_()
    argmax_y.fill_(OUTSIDE)
    argmax_x.fill_(OUTSIDE)
    rows = input.to(dtype).permute(0, 2, 3, 1).reshape(-1, input.size(1))  # (B * H * W, C)
    bins = (aligned_height, aligned_width)
    size = (input.size(2), input.size(3))
    for group in sample_groups(
        rois, size, bins, spatial_scale, sampling_ratio, aligned, rows.size(1)
    ):
        greatest, where = _interpolate(rows, group.corners).max(dim=3)  # the first of equal ones
        output[group.inds] = greatest.permute(0, 3, 1, 2).to(output.dtype)
        argmax_y[group.inds] = group.y.gather(3, where).permute(0, 3, 1, 2).to(argmax_y.dtype)
        argmax_x[group.inds] = group.x.gather(3, where).permute(0, 3, 1, 2).to(argmax_x.dtype)


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
    """Add the gradient of the features to `grad_input`, (B, C, H, W). See `roi_align_forward`.

    Under `torch.use_deterministic_algorithms`, which torchvision's CUDA kernel refuses, the sums are made with
    torch.
    """
    if grad_output.numel() == 0:
        return
    dtype = working_dtype(grad_output)
    rois = rois.to(dtype)
    grad = grad_output.to(dtype)
    if pool_mode == MAX:
        grad_input += _scatter_to_greatest(grad, rois, argmax_y, argmax_x, grad_input.shape)
    elif grad.device.type == 'cpu':
        _add_by_products(grad, rois, grad_input, spatial_scale, sampling_ratio, aligned)
    elif grad.is_cuda and torch.are_deterministic_algorithms_enabled():
        grad_input += scatter_to_all(
            grad, rois, grad_input.shape, spatial_scale, sampling_ratio, aligned
        )
    else:
        grad_input += torch.ops.torchvision._roi_align_backward(
            grad,
            rois,
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )


def _interpolate(rows: Tensor, corners: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Sample values (k, Ph, Pw, S, C) from the map's pixels (B * H * W, C) around each sample."""
    (index, weight), *others = corners
    values = rows[index] * weight[..., None]
    for index, weight in others:
        values += rows[index] * weight[..., None]
    return values


def scatter_to_all(
    grad: Tensor,
    rois: Tensor,
    shape: torch.Size,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """The gradient of average pooling in plain torch, summed in an order that does not vary.

    Args:
        grad: (K, C, Ph, Pw) gradient of the output.
        rois: (K, 5) regions.
        shape: (B, C, H, W) of the features.
        spatial_scale: feature pixels per image pixel.
        sampling_ratio: samples per bin and direction; 0 takes about one per feature pixel.
        aligned: whether pixel centres lie at half coordinates.

    Returns:
        (B, C, H, W) gradient of the features.
    """
    batch, channels, height, width = shape
    sums = grad.new_zeros(batch * height * width, channels)
    bins = (grad.size(2), grad.size(3))
    for group in sample_groups(
        rois, (height, width), bins, spatial_scale, sampling_ratio, aligned, channels
    ):
        samples = group.y.size(3)
        share = grad[group.inds].permute(0, 2, 3, 1).unsqueeze(3) / samples  # (k, Ph, Pw, 1, C)
        for index, weight in group.corners:
            sums.index_add_(0, index.flatten(), (share * weight[..., None]).flatten(0, 3))
    return sums.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _add_by_products(
    grad: Tensor,
    rois: Tensor,
    grad_input: Tensor,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> None:
    """The gradient of average pooling as two small matrix products per region, added where the region lies."""
    size, bins = (grad_input.size(2), grad_input.size(3)), (grad.size(2), grad.size(3))
    at_a_time = max(1, _WEIGHTS_AT_A_TIME // (size[0] * bins[0] + size[1] * bins[1]))
    for part, grads in zip(rois.split(at_a_time), grad.split(at_a_time)):
        rows, columns = bin_weights(part, size, bins, spatial_scale, sampling_ratio, aligned)
        spans = zip(part[:, 0].long().tolist(), _spans(rows), _spans(columns))
        for k, (image, (top, bottom), (left, right)) in enumerate(spans):
            if top < bottom and left < right:
                across = grads[k] @ columns[k, :, left:right]  # (C, Ph, right - left)
                grad_input[image, :, top:bottom, left:right] += rows[k, :, top:bottom].t() @ across


def _spans(weights: Tensor) -> list[list[int]]:
    """The range of pixels that have weight in any bin, for each region of (K, bins, pixels): 0, 0 for none."""
    counts = weights.ne(0).any(dim=1)
    index = torch.arange(weights.size(2), device=weights.device)
    first = torch.where(counts, index, weights.size(2)).amin(dim=1)
    behind = torch.where(counts, index + 1, 0).amax(dim=1)
    return torch.stack((first, behind), dim=1).tolist()


def _scatter_to_greatest(
    grad: Tensor, rois: Tensor, y: Tensor, x: Tensor, shape: torch.Size
) -> Tensor:
    """The gradient of max pooling: each bin's goes to the four pixels around its greatest sample."""
    _, channels, height, width = shape
    planes = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=rois.device)
    origin = planes[:, :, None, None] * (
        height * width
    )  # (K, C, 1, 1): where a plane begins in the flat map
    rows, columns = axis_corners(y.to(grad.dtype), height), axis_corners(x.to(grad.dtype), width)
    sums = grad.new_zeros(shape.numel())
    for row, row_weight in rows:
        for column, column_weight in columns:
            index = origin + row * width + column
            sums.index_add_(0, index.flatten(), (grad * row_weight * column_weight).flatten())
    return sums.view(shape)


def _check_rois(rois: Tensor, batch: int, aligned: bool) -> None:
    """Refuse regions by which kernels would read or allocate without looking."""
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
