"""Hard non-maximum suppression of the mmcv stand-in: `nms` and `nms_match`.

Boxes are (x1, y1, x2, y2) in pixels. Equal scores keep their order: of two boxes with the same score, the one with the
smaller index comes first. (mmcv's compiled operators use an unstable sort, so their order of equal scores may differ
from this one and between machines.)
"""

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.ops import nms as torchvision_nms

from swinv2_mm.ops.mmcv_ext.dtype import working_dtype


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes that do not overlap a better kept box by more than the threshold.

    Args:
        boxes: (N, 4) boxes of any dtype.
        scores: (N,) scores.
        iou_threshold: a box is dropped when its IoU with a kept one is greater.
        offset: 0, or 1 where a box covers the pixels from x1 to x2 inclusive (width x2 - x1 + 1).

    Returns:
        int64 indices of the kept boxes, best score first.
    """
    dtype = working_dtype(boxes, scores)
    if dtype == torch.float32:
        # mmcv passes the threshold as a C float; an IoU of exactly 0.1f is above the double 0.1.
        iou_threshold = float(np.float32(iou_threshold))
    return torchvision_nms(with_offset(boxes.to(dtype), offset), scores.to(dtype), iou_threshold)


def with_offset(boxes: Tensor, offset: int) -> Tensor:
    """Add `offset` to the far corners, and so to the sides of boxes and intersections."""
    return torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1) if offset else boxes


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group every suppressed box with the box that suppressed it.

    Args:
        dets: (N, 5) boxes with their score last.
        iou_threshold: a box joins the group of a better one when their IoU is at least this value.

    Returns:
        One list of indices per kept box, by decreasing score: the kept box, then the boxes that it suppressed.
    """
    boxes = dets[:, :4].to(working_dtype(dets))
    remaining = dets[:, 4].sort(descending=True, stable=True).indices
    groups = []
    while remaining.numel():
        best, others = remaining[:1], remaining[1:]
        suppressed = box_iou(boxes[best], boxes[others])[0] >= iou_threshold
        groups.append([*best.tolist(), *others[suppressed].tolist()])
        remaining = others[~suppressed]
    return groups
