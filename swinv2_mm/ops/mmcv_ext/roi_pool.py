"""RoIPool of the mmcv stand-in (Girshick, "Fast R-CNN", ICCV 2015); for the shapes, see `roi_align`.

torchvision's kernel rounds regions to whole pixels before it divides them into bins, and mmcv's does not. Here each bin
is a region of torchvision's.
"""

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

from swinv2_mm.ops.mmcv_ext.operators import working_dtype
from swinv2_mm.ops.mmcv_ext.roi_align import check_rois


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Compute the greatest value of each bin into `output`, and its position in the map, y * W + x, into `argmax`.

    Both are (K, C, Ph, Pw). A region includes the pixels x2 and y2. A bin without pixels is 0, its position -1.

    Raises:
        ValueError: a region is not finite or has an invalid image index (checked on the CPU only: the check would
            synchronise a GPU).
    """
    if output.numel() == 0:
        return
    dtype = working_dtype(input)
    input, rois = input.to(dtype), rois.to(dtype)
    check_rois(rois, input.size(0))
    start, end = rois[:, 1:3] * spatial_scale, (rois[:, 3:] + 1) * spatial_scale
    (left, right), (top, bottom) = (
        _bins(start[:, axis], end[:, axis], bins, input.size(3 - axis))
        for axis, bins in enumerate((pooled_width, pooled_height))
    )
    columns, rows = (left[:, None], right[:, None]), (top[:, :, None], bottom[:, :, None])
    image = rois[:, 0, None, None]
    regions = torch.stack(
        torch.broadcast_tensors(image, columns[0], rows[0], columns[1] - 1, rows[1] - 1), dim=-1
    )
    greatest, where = torch.ops.torchvision.roi_pool(input, regions.flatten(0, 2), 1.0, 1, 1)
    empty = (columns[1] <= columns[0]) | (rows[1] <= rows[0])
    for buffer, values, missing in ((output, greatest, 0), (argmax, where, -1)):
        bins = values.view(*empty.shape, -1).masked_fill(empty[..., None], missing)
        buffer.copy_(bins.permute(0, 3, 1, 2))


def roi_pool_backward(
    grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, **unused: object
) -> None:
    """Add the gradient of each bin to that of its greatest pixel; `grad_input` is (B, C, H, W)."""
    channels, height, width = grad_input.shape[1:]
    planes = rois[:, :1].long() * channels + torch.arange(channels, device=rois.device)
    where = planes[..., None, None] * (height * width) + argmax.clamp(min=0)
    grads = grad_output.masked_fill(argmax < 0, 0).to(grad_input.dtype)
    grad_input.view(-1).scatter_add_(0, where.flatten(), grads.flatten())


def _bins(start: Tensor, end: Tensor, bins: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the first pixel of each bin and the one after its last, (K, bins) each, along one axis."""
    side = (end - start).clamp(min=0)[:, None]  # no pixels if the region is turned inside out
    steps = torch.arange(bins + 1, device=start.device)
    edges = steps * (side / bins) + start[:, None]
    first, last = edges[:, :-1].floor().clamp(0, size), edges[:, 1:].ceil().clamp(0, size)
    return first, torch.where(side > 0, last, first)
