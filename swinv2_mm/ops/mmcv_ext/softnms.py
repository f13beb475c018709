"""Soft non-maximum suppression of the mmcv stand-in (Bodla et al., "Soft-NMS", ICCV 2017)."""

import torch
from torch import Tensor
from torchvision.ops import box_iou

from swinv2_mm.ops.mmcv_ext.dtype import working_dtype
from swinv2_mm.ops.mmcv_ext.nms import with_offset

NAIVE, LINEAR, GAUSSIAN = 0, 1, 2


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Select the best box, lower the scores of overlapping boxes, drop low scores, and repeat.

    Equal scores are ordered as in mmcv's compiled operator: by position in a list where a selected box swaps places
    with the first remaining one and a dropped box is replaced by the last one. Two boxes without area do not lower
    scores; the gaussian method of the compiled operator returns NaN in this case.

    Args:
        boxes: (N, 4) boxes on the CPU.
        scores: (N,) scores; not changed.
        dets: (N, 5) output: the first K rows are the remaining boxes and their lowered scores, best first.
        iou_threshold: IoU from which the naive and the linear method lower scores.
        sigma: width of the gaussian method.
        min_score: boxes with a lower score are dropped.
        method: 0 naive (set the score to 0), 1 linear (times 1 - IoU), 2 gaussian (times exp(-IoU^2 / sigma)).
        offset: 0, or 1 where a box covers the pixels from x1 to x2 inclusive.

    Returns:
        (K,) int64 indices of the remaining boxes in `boxes`.

    Raises:
        ValueError: `method` is not 0, 1 or 2.
    """
    if method not in (NAIVE, LINEAR, GAUSSIAN):
        raise ValueError(f'method must be 0 (naive), 1 (linear) or 2 (gaussian), got {method!r}')
    dtype = working_dtype(boxes, scores)
    areas, lowered = with_offset(boxes.to(dtype), offset), scores.to(dtype, copy=True)
    order = torch.arange(len(boxes))
    taken, alive = 0, len(boxes)
    while taken < alive:
        best = taken + int(lowered[order[taken:alive]].argmax())
        order[[taken, best]] = order[[best, taken]]
        box, rest = order[taken : taken + 1], order[taken + 1 : alive]
        overlap = box_iou(areas[box], areas[rest])[0]
        if method == GAUSSIAN:
            decay = torch.exp(-overlap.nan_to_num(nan=0.0).square() / sigma)
        else:
            decay = 1 - overlap if method == LINEAR else torch.zeros_like(overlap)
            decay = torch.where(overlap >= iou_threshold, decay, 1.0)
        lowered[rest] *= decay
        stays = ~(lowered[rest] < min_score)
        count = int(stays.sum())
        # Dropped boxes are replaced from the end.
        rest[:count][~stays[:count]] = rest[count:][stays[count:]].flip(0)
        taken, alive = taken + 1, taken + 1 + count
    kept = order[:alive]
    dets[:alive] = torch.cat((boxes[kept], lowered[kept, None]), dim=1)
    return kept
