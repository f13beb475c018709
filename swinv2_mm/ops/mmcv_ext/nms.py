"""Hard non-maximum suppression of the mmcv stand-in: `nms` and `nms_match`.

Boxes are (x1, y1, x2, y2) in pixels. Equal scores keep their order; mmcv's compiled operators use an unstable sort, so
theirs may differ.
"""

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.ops import nms as torchvision_nms

from swinv2_mm.ops.mmcv_ext.dtype import working_dtype


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes whose IoU with better kept boxes is at most the threshold, best score first.

    `boxes` are (N, 4). `offset` is 1 where a box covers the pixels from x1 to x2 inclusive (width x2 - x1 + 1), else 0.
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
    """Group every suppressed box with the better box whose IoU with it is at least the threshold.

    `dets` are (N, 5), boxes with their score last. Returns one list of indices per kept box, by decreasing score.
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
