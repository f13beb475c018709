"""Compare overlaps of rotated boxes to shapely's polygons, and their suppression to its definition."""

import importlib
import math

import pytest
import torch
from shapely import Polygon
from shapely.affinity import rotate
from shapely.geometry import box as upright

from swinv2_mm.ops import mmcv_ext

pytestmark = pytest.mark.skipif(
    not mmcv_ext.install(), reason='mmcv has compiled operators: its stand-in is not in use'
)
ops = importlib.import_module('mmcv.ops')  # must follow install()

FIRST = [[1.0, 1, 3, 4, 0.5], [2, 2, 3, 4, 0.6], [7, 7, 8, 8, 0.4]]
SECOND = [[0.0, 2, 2, 5, 0.3], [2, 1, 3, 3, 0.5], [5, 5, 6, 7, 0.4]]
# Results of mmcv's compiled operators, from its own tests (open-mmlab/mmcv, tests/test_ops).
IOUS = [[0.3708, 0.4351, 0.0000], [0.1104, 0.4487, 0.0424], [0.0000, 0.0000, 0.3622]]
IOFS = [[0.4959, 0.5306, 0.0000], [0.1823, 0.5420, 0.1832], [0.0000, 0.0000, 0.4404]]
DETECTIONS = [[6.0, 3, 8, 7, 0.5], [3, 6, 9, 11, 0.6], [3, 7, 10, 12, 0.3], [1, 4, 13, 7, 0.6]]
SCORES = [0.7, 0.8, 0.5, 0.9]


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(('mode', 'expected'), [('iou', IOUS), ('iof', IOFS)])
@pytest.mark.parametrize('clockwise', [True, False])
def test_overlaps_are_those_of_compiled_mmcv(mode, expected, clockwise, dtype):
    turn = torch.tensor([1, 1, 1, 1, 1 if clockwise else -1])
    first, second = (torch.tensor(given, dtype=dtype) * turn for given in (FIRST, SECOND))
    expected = torch.tensor(expected, dtype=dtype)
    tolerance = dict(atol=1e-3 if dtype == torch.float16 else 1e-4, rtol=0)
    found = ops.box_iou_rotated(first, second, mode, False, clockwise)
    torch.testing.assert_close(found, expected, **tolerance)
    aligned = ops.box_iou_rotated(first, second, mode, True, clockwise)
    torch.testing.assert_close(aligned, expected.diagonal(), **tolerance)


def polygon(box):
    x, y, width, height, angle = box
    sides = upright(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return rotate(sides, angle, origin=(x, y), use_radians=True)


def iou_of(first: Polygon, second: Polygon) -> float:
    return first.intersection(second).area / first.union(second).area


def some_boxes(count, on_a_grid):
    boxes = torch.rand(count, 5, dtype=torch.float64)
    boxes = boxes * torch.tensor([60, 60, 40, 40, 6.3]) + torch.tensor([0, 0, 1e-3, 1e-3, -3])
    if on_a_grid:  # many sides and corners coincide
        boxes = boxes.round().clamp(min=1)
        boxes[:, 4] *= math.pi / 4
    return boxes


@pytest.mark.parametrize('on_a_grid', [False, True])
@pytest.mark.parametrize('shift', [0, 1e5])
def test_overlaps_are_those_of_polygons(on_a_grid, shift):
    torch.manual_seed(0)
    first, second = some_boxes(30, on_a_grid), some_boxes(40, on_a_grid)
    second[:10] = first[:10]  # the same boxes,
    second[10:15] = first[10:15] + torch.tensor([0, 0, 0, 0, math.pi])  # turned around,
    second[15:20] = first[15:20] + torch.tensor([0, 0, 0, 0, 1e-10])  # nearly the same,
    second[20:25] = first[20:25] * torch.tensor([1, 1, 0.5, 0.5, 1])  # and inside of each other
    sides = [[polygon(box) for box in given.tolist()] for given in (first, second)]
    expected = torch.tensor([[iou_of(a, b) for b in sides[1]] for a in sides[0]]).double()
    offset = torch.tensor([shift, shift, 0, 0, 0])
    found = ops.box_iou_rotated(first + offset, second + offset)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)


def test_boxes_without_area_overlap_with_nothing():
    boxes = torch.tensor([[1.0, 1, 0, 4, 0.5], [1, 1, 3, 4, 0.5], [math.nan, 1, 3, 4, 0.5]])
    overlaps = ops.box_iou_rotated(boxes, boxes)
    assert overlaps.tolist()[0] == [0, 0, 0] and overlaps[1].tolist() == [0, 1, 0]
    assert ops.box_iou_rotated(boxes[:0], boxes).shape == (0, 3)
    assert ops.box_iou_rotated(boxes[:0], boxes[:0], aligned=True).shape == (0,)


def test_large_overlaps_are_computed_in_parts(monkeypatch):
    rotated_boxes = importlib.import_module('swinv2_mm.ops.mmcv_ext.rotated_boxes')
    first, second = some_boxes(30, False), some_boxes(50, False)
    whole = ops.box_iou_rotated(first, second)
    aligned = ops.box_iou_rotated(first, second[:30], aligned=True)
    monkeypatch.setattr(rotated_boxes, '_PAIRS_AT_A_TIME', 7)
    assert torch.equal(ops.box_iou_rotated(first, second), whole)
    assert torch.equal(ops.box_iou_rotated(first, second[:30], aligned=True), aligned)


@pytest.mark.parametrize('labels', [None, torch.tensor([1, 0, 1, 0])])
@pytest.mark.parametrize('clockwise', [True, False])
def test_suppression_is_that_of_compiled_mmcv(labels, clockwise):
    turn = torch.tensor([1, 1, 1, 1, 1 if clockwise else -1])
    boxes, scores = torch.tensor(DETECTIONS) * turn, torch.tensor(SCORES)
    found, kept = ops.nms_rotated(boxes, scores, 0.5, labels, clockwise)
    assert kept.tolist() == [3, 1, 0]
    assert torch.equal(found, torch.cat((boxes, scores[:, None]), dim=1)[kept])


def test_classes_are_suppressed_apart_by_batched_nms():
    boxes, scores = torch.tensor(DETECTIONS), torch.tensor(SCORES)
    labels, settings = torch.tensor([1, 0, 1, 0]), dict(type='nms_rotated', iou_threshold=0.5)
    for agnostic, expected in ((True, [3, 1, 0]), (False, [3, 1, 0, 2])):
        found, kept = ops.batched_nms(boxes, scores, labels, settings, agnostic)
        assert kept.tolist() == expected
        torch.testing.assert_close(found[:, :5], boxes[kept])


@pytest.mark.parametrize('block', [512, 16])
def test_suppression_of_many_boxes(block, monkeypatch):
    rotated_boxes = importlib.import_module('swinv2_mm.ops.mmcv_ext.rotated_boxes')
    monkeypatch.setattr(rotated_boxes, '_BOXES_AT_A_TIME', block)
    torch.manual_seed(1)
    boxes, scores = some_boxes(150, False), torch.rand(150)
    overlaps, expected = ops.box_iou_rotated(boxes, boxes), []
    for index in scores.argsort(descending=True).tolist():
        if not any(overlaps[index, better] > 0.2 for better in expected):
            expected.append(index)
    assert ops.nms_rotated(boxes, scores.double(), 0.2)[1].tolist() == expected
    assert 10 < len(expected) < 100
