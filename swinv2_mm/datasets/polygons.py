"""From a mask to COCO polygons that give back the same mask, pixel for pixel."""

from __future__ import annotations

import numpy as np

Point = tuple[int, int]


def mask_to_polygons(mask: np.ndarray) -> list[list[int]]:
    """Outline a mask along the edges between its pixels.

    A contour through pixel centres (what ``cv2.findContours`` gives) loses half a pixel all around; an outline that
    runs along pixel edges has integer corners and rasterises back to exactly the mask. COCO polygons know no holes, so
    a part with a hole is cut in two through the hole.

    Args:
        mask: (H, W) boolean array.

    Returns:
        One flat list ``[x0, y0, x1, y1, ...]`` per part, in pixels with the origin at the top left corner of the image;
        empty for an empty mask. Pixels that touch only at a corner belong to different parts.

    Raises:
        ValueError: If ``mask`` is not a two-dimensional boolean array.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(
            f'a mask must be a two-dimensional boolean array, got shape {mask.shape} of {mask.dtype}; '
            'index a batch of masks, or compare labels with `==`, before the call'
        )
    loops = _boundary_loops(mask)
    holes = [loop for loop in loops if _signed_area(loop) < 0]
    if not holes:
        return [[coordinate for point in loop for coordinate in point] for loop in loops]
    columns = [x for x, _ in holes[0]]
    cut = (min(columns) + max(columns) + 1) // 2
    left, right = mask.copy(), mask.copy()
    left[:, cut:] = False
    right[:, :cut] = False
    return mask_to_polygons(left) + mask_to_polygons(right)


def _boundary_loops(mask: np.ndarray) -> list[list[Point]]:
    """Follow the boundary, the mask on the right hand: outer loops run clockwise on screen, holes the other way."""
    exits: dict[Point, list[Point]] = {}
    inside = np.pad(mask, 1)
    core = inside[1:-1, 1:-1]
    sides = (  # neighbour outside the mask, start corner and end corner of the edge, relative to the pixel
        (inside[:-2, 1:-1], (0, 0), (1, 0)),
        (inside[1:-1, 2:], (1, 0), (1, 1)),
        (inside[2:, 1:-1], (1, 1), (0, 1)),
        (inside[1:-1, :-2], (0, 1), (0, 0)),
    )
    for neighbour, (start_x, start_y), (end_x, end_y) in sides:
        rows, columns = np.nonzero(core & ~neighbour)
        for y, x in zip(rows.tolist(), columns.tolist(), strict=True):
            exits.setdefault((x + start_x, y + start_y), []).append((x + end_x, y + end_y))
    loops = []
    while exits:
        loops.append(_take_loop(exits))
    return loops


def _take_loop(exits: dict[Point, list[Point]]) -> list[Point]:
    """Remove one closed loop from ``exits`` and return its corners, without the points in the middle of a side."""
    # The leftmost point is a real corner and never one where two parts touch, so arriving there closes the loop.
    start = point = min(exits)
    corners: list[Point] = []
    heading = (0, 0)
    while not corners or point != start:
        ends = exits[point]
        # Where two pixels touch at a corner, turn right: stay with the same pixel, so that the parts stay apart.
        turn = (point[0] - heading[1], point[1] + heading[0])
        end = turn if turn in ends else ends[0]
        ends.remove(end)
        if not ends:
            del exits[point]
        step = (end[0] - point[0], end[1] - point[1])
        if step != heading:
            corners.append(point)
        point, heading = end, step
    return corners


def _signed_area(loop: list[Point]) -> int:
    """Twice the enclosed area, in pixels: positive for an outer loop, negative for a hole."""
    following = loop[1:] + loop[:1]
    return sum(
        x * next_y - next_x * y for (x, y), (next_x, next_y) in zip(loop, following, strict=True)
    )
