"""Operators of the mmcv stand-in on boxes: overlaps and non-maximum suppression; for the shapes, see `operators`."""

import numpy as np
import torch
import torchvision
from torch import Tensor
from torchvision.ops import box_iou

from swinv2_mm.ops.mmcv_ext.operators import working_dtype


def bbox_overlaps(
    boxes: Tensor, others: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """Compute the overlaps of all pairs, or of row i with row i if `aligned`, into `ious`.

    `mode` is 0 for intersection over union, or 1 for intersection over the area of the first box.
    """
    dtype = working_dtype(boxes, others)
    first, second = (_with_offset(given.to(dtype), offset) for given in (boxes, others))
    areas = [(given[:, 2] - given[:, 0]) * (given[:, 3] - given[:, 1]) for given in (first, second)]
    if not aligned:
        first, areas[0] = first[:, None], areas[0][:, None]
    width, height = (
        (
            torch.minimum(first[..., x + 2], second[..., x + 2])
            - torch.maximum(first[..., x], second[..., x])
        ).clamp(min=0)
        for x in (0, 1)
    )
    common = width * height
    whole = areas[0] if mode == 1 else areas[0] + areas[1] - common
    ious.copy_(common / whole.clamp(min=offset))


# Non-maximum suppression. Equal scores keep their order in `nms` and `nms_match`; mmcv's compiled operators use an
# unstable sort, so theirs may differ.


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes whose IoU with better kept boxes is at most the threshold, best score first."""
    dtype = working_dtype(boxes, scores)
    if dtype == torch.float32:
        # mmcv passes the threshold as a C float; an IoU of exactly 0.1f is above the double 0.1.
        iou_threshold = float(np.float32(iou_threshold))
    boxes = _with_offset(boxes.to(dtype), offset)
    return torchvision.ops.nms(boxes, scores.to(dtype), iou_threshold)


def _with_offset(boxes: Tensor, offset: int) -> Tensor:
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
    """Soft-NMS (Bodla et al., ICCV 2017): select the best box, lower the scores of overlapping boxes, and repeat.

    The first K rows of `dets` (N, 5) become the remaining boxes with their scores, and their (K,) indices are returned;
    boxes below `min_score` are dropped. `method` is 0 (naive, sets scores to 0), 1 (linear, times 1 - IoU), both from
    `iou_threshold`, or 2 (gaussian, times exp(-IoU^2 / sigma)).

    Equal scores are ordered as in mmcv's compiled operator: by position in a list where a selected box swaps places
    with the first remaining one and a dropped box is replaced by the last one. Two boxes without area do not lower
    scores; the gaussian method of the compiled operator returns NaN in this case.

    Raises:
        ValueError: `method` is not 0, 1 or 2.
    """
    if method not in (0, 1, 2):
        raise ValueError(f'method must be 0 (naive), 1 (linear) or 2 (gaussian), got {method!r}')
    dtype = working_dtype(boxes, scores)
    areas, lowered = _with_offset(boxes.to(dtype), offset), scores.to(dtype, copy=True)
    order = torch.arange(len(boxes))
    taken, alive = 0, len(boxes)
    while taken < alive:
        best = taken + int(lowered[order[taken:alive]].argmax())
        order[[taken, best]] = order[[best, taken]]
        box, rest = order[taken : taken + 1], order[taken + 1 : alive]
        overlap = box_iou(areas[box], areas[rest])[0]
        if method == 2:
            decay = torch.exp(-overlap.nan_to_num(nan=0.0).square() / sigma)
        else:
            decay = 1 - overlap if method == 1 else torch.zeros_like(overlap)
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
