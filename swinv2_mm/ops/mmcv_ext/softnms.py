"""Soft non-maximum suppression of the mmcv stand-in (Bodla et al., "Soft-NMS", ICCV 2017)."""

import torch
from torch import Tensor

from swinv2_mm.ops.mmcv_ext.dtype import working_dtype
from swinv2_mm.ops.mmcv_ext.nms import overlaps

NAIVE, LINEAR, GAUSSIAN = 0, 1, 2
_AREA, _SCORE = 4, 5  # rows of the working table; rows 0 to 3 are the box


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
    """Take the best box, lower the scores of those it overlaps, drop what falls too low, and repeat.

    Equal scores are resolved as mmcv's compiled operator does: by position in a list where a taken box trades
    places with the first of the rest and a dropped box is replaced by the last one. An empty union (two boxes
    without area) lowers nothing; the compiled operator's gaussian method turns such scores into NaN.

    Args:
        boxes: (N, 4) boxes on the CPU.
        scores: (N,) scores; not changed.
        dets: (N, 5) output. Its first K rows are overwritten with the remaining boxes and their lowered scores,
            best first; the other rows are left as they are.
        iou_threshold: IoU from which the naive and the linear method act.
        sigma: width of the gaussian method.
        min_score: boxes are dropped when their score falls below.
        method: 0 naive (a score becomes 0), 1 linear (times 1 - IoU), 2 gaussian (times exp(-IoU^2 / sigma)).
        offset: 0, or 1 where a box covers the pixels from x1 to x2 inclusive.

    Returns:
        (K,) int64 indices of the remaining boxes in `boxes`.

    Raises:
        ValueError: `method` is none of 0, 1, 2.
    """
    if method not in (NAIVE, LINEAR, GAUSSIAN):
        raise ValueError(f'method must be 0 (naive), 1 (linear) or 2 (gaussian), got {method!r}')
    table, inds = _table(boxes, scores, offset)
    taken, alive = 0, boxes.size(0)
    while taken < alive:
        best = taken + int(table[_SCORE, taken:alive].argmax())
        if best != taken:
            table[:, [taken, best]] = table[:, [best, taken]]
            inds[[taken, best]] = inds[[best, taken]]
        box = table[:, taken]
        taken += 1
        rest = table[:, taken:alive]
        overlap = overlaps(box[:4], box[_AREA], rest[:4], rest[_AREA], offset)
        rest[_SCORE] *= _decay(overlap, iou_threshold, sigma, method)
        alive = taken + _drop(rest, inds[taken:alive], rest[_SCORE] < min_score)
    dets[:alive, :4] = table[:4, :alive].t()
    dets[:alive, 4] = table[_SCORE, :alive]
    return inds[:alive]


def _table(boxes: Tensor, scores: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """A (6, N) working copy, one column per box (x1, y1, x2, y2, area, score), and the boxes' indices."""
    table = boxes.new_empty((6, boxes.size(0)), dtype=working_dtype(boxes, scores))
    table[:4] = boxes.t()
    table[_AREA] = (table[2] - table[0] + offset) * (table[3] - table[1] + offset)
    table[_SCORE] = scores
    return table, torch.arange(boxes.size(0), device=boxes.device)


def _decay(overlap: Tensor, iou_threshold: float, sigma: float, method: int) -> Tensor:
    """What each score is multiplied with, given its box's IoU with the one that was taken."""
    if method == GAUSSIAN:
        return torch.exp(-overlap.nan_to_num(nan=0.0).square() / sigma)
    lowered = 1 - overlap if method == LINEAR else torch.zeros_like(overlap)
    return torch.where(overlap >= iou_threshold, lowered, 1.0)


def _drop(rest: Tensor, inds: Tensor, dropped: Tensor) -> int:
    """Move the columns that stay to the front, in place: holes are filled from the end. Returns their number."""
    count = dropped.numel() - int(dropped.sum())
    if count < dropped.numel():
        holes = dropped[:count].nonzero().squeeze(1)
        fillers = (~dropped[count:]).nonzero().squeeze(1).flip(0) + count
        rest[:, holes] = rest[:, fillers]
        inds[holes] = inds[fillers]
    return count
