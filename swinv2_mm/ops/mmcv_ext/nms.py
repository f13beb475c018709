"""Hard non-maximum suppression of the mmcv stand-in: `nms` and `nms_match`.

Boxes are (x1, y1, x2, y2) in pixels. Equal scores keep their order: of two boxes with the same score the one
with the smaller index is taken first. (mmcv's compiled operators leave that to a sort which is not stable, so
that their choice among equals may differ from this one, and from one machine to the next.)
"""

import struct

import torch
import torchvision
from torch import Tensor

from swinv2_mm.ops.mmcv_ext.dtype import working_dtype


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that no better box overlaps by more than the threshold.

    Args:
        boxes: (N, 4) boxes, of any number format.
        scores: (N,) scores.
        iou_threshold: a box is dropped when its IoU with a kept one is greater.
        offset: 0, or 1 where a box covers the pixels from x1 to x2 inclusive (width x2 - x1 + 1).

    Returns:
        int64 indices of the kept boxes, best score first.
    """
    dtype = working_dtype(boxes, scores)
    boxes = boxes.to(dtype)
    if offset:
        # Moving the far corner is the same as adding the offset to every width and height: of the boxes and of
        # their intersections.
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    # mmcv takes the threshold as a C float. An IoU of exactly 0.1f is above the double 0.1, so it matters.
    threshold = (
        struct.unpack('f', struct.pack('f', iou_threshold))[0]
        if dtype == torch.float32
        else iou_threshold
    )
    return torchvision.ops.nms(boxes, scores.to(dtype), threshold)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group every suppressed box with the box that suppressed it.

    Args:
        dets: (N, 5) boxes with their score last.
        iou_threshold: a box joins the group of a better one when their IoU is at least this.

    Returns:
        One list of indices per kept box, in the order of their scores: the kept box first, then the boxes it
        suppressed.
    """
    dets = dets.to(working_dtype(dets))
    coords, scores = dets[:, :4].t(), dets[:, 4]
    areas = (coords[2] - coords[0]) * (coords[3] - coords[1])
    remaining = scores.sort(descending=True, stable=True).indices
    groups = []
    while remaining.numel():
        best, others = remaining[0], remaining[1:]
        overlap = overlaps(coords[:, best], areas[best], coords[:, others], areas[others])
        suppressed = overlap >= iou_threshold
        groups.append([int(best), *others[suppressed].tolist()])
        remaining = others[~suppressed]
    return groups


def overlaps(box: Tensor, area: Tensor, others: Tensor, areas: Tensor, offset: int = 0) -> Tensor:
    """IoU of one box with others.

    Args:
        box: (4,) a box.
        area: () its area, counted with the same offset.
        others: (4, N) the other boxes, one per column.
        areas: (N,) their areas.
        offset: what a width is longer than x2 - x1.

    Returns:
        (N,) IoU; NaN where the union is empty, which compares false with every threshold.
    """
    near = torch.maximum(others[:2], box[:2, None])
    far = torch.minimum(others[2:], box[2:, None])
    sides = (far - near + offset).clamp_(min=0)
    intersection = sides[0] * sides[1]
    return intersection / (area + areas - intersection)
