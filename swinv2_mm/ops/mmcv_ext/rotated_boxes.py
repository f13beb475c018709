"""Overlaps of rotated boxes and their non-maximum suppression for the mmcv stand-in, on torch's operators.

Boxes are (x, y, width, height, angle): centre, sides in pixels and radians, clockwise in an image. Areas are computed
in float64 and in parts, so that memory is bounded.
"""

from typing import Any

import torch
from torch import Tensor

from swinv2_mm.ops.mmcv_ext.operators import working_dtype

_PAIRS_AT_A_TIME = 2**16  # 25 MB for the points of the intersections
_BOXES_AT_A_TIME = 512
_TOLERANCE = 1e-12  # of a box's sides: corners on the border of the other box are inside
_PARALLEL = 1e-9  # sine of the angle below which sides do not cross
_SMALLEST_AREA = 1e-14  # boxes below it overlap with nothing, as in mmcv


def box_iou_rotated(
    boxes: Tensor, others: Tensor, ious: Tensor, mode_flag: int, aligned: bool
) -> None:
    """Compute the overlaps of all N * M pairs, row by row, or of row i with row i if `aligned`, into `ious`.

    `mode_flag` is 0 for intersection over union, or 1 for intersection over the area of the first box.
    """
    if aligned:
        for part in range(0, len(boxes), _PAIRS_AT_A_TIME):
            pairs = slice(part, part + _PAIRS_AT_A_TIME)
            ious[pairs] = _overlaps(boxes[pairs].double(), others[pairs].double(), mode_flag)
    else:
        ious.copy_(_all_overlaps(boxes, others, mode_flag).flatten())


def nms_rotated(
    boxes: Tensor, scores: Tensor, order: Tensor, sorted_boxes: Tensor, *settings: Any
) -> Tensor:
    """Return the indices of the boxes whose IoU with better kept boxes is at most the threshold, best score first.

    `order` (N,) sorts `boxes` by score. `settings` are labels, which mmcv's compiled operators do not use either, the
    threshold, and whether the boxes have a sixth column with the label.
    """
    boxes, iou_threshold = sorted_boxes[:, :5], settings[1]
    alive = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    for start in range(0, len(boxes), _BOXES_AT_A_TIME):
        end = start + _BOXES_AT_A_TIME
        block = alive[start:end].nonzero()[:, 0] + start
        suppresses = (_all_overlaps(boxes[block], boxes[block], 0) > iou_threshold).cpu()
        kept = torch.ones(len(block), dtype=torch.bool)
        for row, suppressed in enumerate(suppresses):
            if kept[row]:
                kept[row + 1 :] &= ~suppressed[row + 1 :]
        alive[block] = kept.to(alive.device)
        rest = alive[end:].nonzero()[:, 0] + end
        better = _all_overlaps(boxes[block[kept.to(block.device)]], boxes[rest], 0)
        alive[rest] = ~(better > iou_threshold).any(dim=0)
    return order[alive]


def _all_overlaps(boxes: Tensor, others: Tensor, mode: int) -> Tensor:
    """Return the overlaps of all pairs, (N, M); only those of pairs whose bounding boxes overlap are computed."""
    dtype = working_dtype(boxes, others)
    boxes, others = boxes.double(), others.double()
    (centre, reach), (other_centre, other_reach) = (_bounds(given) for given in (boxes, others))
    overlaps = boxes.new_zeros(len(boxes), len(others), dtype=dtype)
    rows = max(1, _PAIRS_AT_A_TIME // max(1, len(others)))
    for part in range(0, len(boxes), rows):
        distance = (centre[part : part + rows, None] - other_centre).abs()
        near = (distance < reach[part : part + rows, None] + other_reach).all(dim=2)
        for i, j in zip(*(index.split(_PAIRS_AT_A_TIME) for index in near.nonzero(as_tuple=True))):
            overlaps[i + part, j] = _overlaps(boxes[i + part], others[j], mode).to(dtype)
    return overlaps


def _bounds(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centres and the half sides of the upright boxes around rotated ones, (N, 2) each."""
    cos, sin = boxes[:, 4].cos().abs(), boxes[:, 4].sin().abs()
    width, height = boxes[:, 2], boxes[:, 3]
    sides = torch.stack((width * cos + height * sin, width * sin + height * cos), dim=1)
    return boxes[:, :2], sides / 2


def _overlaps(boxes: Tensor, others: Tensor, mode: int) -> Tensor:
    """Return the overlaps of boxes with the others in the same rows."""
    areas = [given[:, 2] * given[:, 3] for given in (boxes, others)]
    common = _common_area(boxes, others)
    whole = areas[0] if mode == 1 else areas[0] + areas[1] - common
    exists = (areas[0] >= _SMALLEST_AREA) & (areas[1] >= _SMALLEST_AREA)
    return torch.where(exists, common / whole, 0)


def _common_area(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the areas of the intersections, (P,), by the corners of these polygons sorted by angle.

    The corners are those of a box inside of the other one, and the crossings of sides. They may repeat.
    """
    middle = (boxes[:, :2] + others[:, :2]) / 2  # small coordinates are more precise
    pairs = [torch.cat((box[:, :2] - middle, box[:, 2:]), dim=1) for box in (boxes, others)]
    first, second = (_corners(box) for box in pairs)
    crossings, cross = _crossings(first, second)
    points = torch.cat((first, second, crossings), dim=1)
    valid = torch.cat((_inside(first, pairs[1]), _inside(second, pairs[0]), cross), dim=1)

    # Other points are moved onto a valid one: points that repeat do not change the area.
    chosen = valid.to(points.dtype).argmax(dim=1)[:, None, None]
    points = torch.where(valid[..., None], points, points.take_along_dim(chosen, dim=1))
    points = points - points.mean(dim=1, keepdim=True)
    order = torch.atan2(points[..., 1], points[..., 0]).argsort(dim=1)
    points = points.gather(1, order[..., None].expand_as(points))
    area = _cross(points, points.roll(-1, dims=1)).sum(dim=1).abs() / 2
    return torch.where(valid.any(dim=1), area, 0)


def _corners(boxes: Tensor) -> Tensor:
    """Return the four corners of each box, (P, 4, 2), in order."""
    signs = boxes.new_tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    return boxes[:, None, :2] + _rotate(signs * boxes[:, None, 2:4], boxes[:, 4])


def _rotate(points: Tensor, angles: Tensor) -> Tensor:
    """Return the points (P, n, 2) turned about the origin by the angles (P,)."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    x, y = points.unbind(-1)
    return torch.stack((x * cos - y * sin, x * sin + y * cos), dim=-1)


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Return which points (P, n, 2) are in their box or on its border, (P, n)."""
    at = _rotate(points - boxes[:, None, :2], -boxes[:, 4]).abs()
    slack = _TOLERANCE * boxes[:, 2:4].sum(dim=1)[:, None, None]
    return (at <= boxes[:, None, 2:4] / 2 + slack).all(dim=2)


def _crossings(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the points where the sides of two polygons cross, (P, 16, 2), and which of them exist, (P, 16)."""
    side, other = first.roll(-1, dims=1) - first, second.roll(-1, dims=1) - second
    between = second[:, None] - first[:, :, None]
    determinant = _cross(side[:, :, None], other[:, None])
    lengths = side.norm(dim=2)[:, :, None] * other.norm(dim=2)[:, None]
    parallel = determinant.abs() <= _PARALLEL * lengths
    determinant = determinant.masked_fill(parallel, 1)
    at = _cross(between, other[:, None]) / determinant
    at_other = _cross(between, side[:, :, None]) / determinant
    exists = (at >= 0) & (at <= 1) & (at_other >= 0) & (at_other <= 1) & ~parallel
    points = first[:, :, None] + at[..., None] * side[:, :, None]
    return points.flatten(1, 2), exists.flatten(1, 2)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
