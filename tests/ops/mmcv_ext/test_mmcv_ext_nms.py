"""Compare `nms`, `batched_nms` and `nms_match` of mmcv on the stand-in to loops in float32."""

import importlib

import numpy as np
import pytest
import torch

from swinv2_mm.ops import mmcv_ext

pytestmark = pytest.mark.skipif(
    not mmcv_ext.install(), reason='mmcv has compiled operators: its stand-in is not in use'
)
ops = importlib.import_module('mmcv.ops')  # must follow install()

F = np.float32


def iou(a, b, offset=0):
    """Compute the IoU of two boxes in float32; NaN for an empty union."""
    o = F(offset)
    width = max(F(0), min(a[2], b[2]) - max(a[0], b[0]) + o)
    height = max(F(0), min(a[3], b[3]) - max(a[1], b[1]) + o)
    area_a, area_b = ((c[2] - c[0] + o) * (c[3] - c[1] + o) for c in (a, b))
    inter = width * height
    with np.errstate(invalid='ignore', divide='ignore'):
        return inter / (area_a + area_b - inter)


def by_score(scores):
    """Return indices by decreasing score; equal scores keep their order."""
    return sorted(range(len(scores)), key=lambda i: -scores[i])


def naive_nms(boxes, scores, threshold, offset=0):
    boxes, kept = boxes.numpy().astype(F), []
    for i in by_score(scores.tolist()):
        if not any(iou(boxes[i], boxes[k], offset) > F(threshold) for k in kept):
            kept.append(i)
    return kept


def naive_match(boxes, scores, threshold):
    boxes, groups = boxes.numpy().astype(F), []
    for i in by_score(scores.tolist()):
        for group in groups:
            if iou(boxes[group[0]], boxes[i]) >= F(threshold):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def random_boxes(count, seed, whole=False, ties=False, size=40.0):
    """Return random boxes and scores; `whole` uses integer corners (exact IoUs, zero areas), `ties` repeats scores."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size
    boxes = torch.cat(
        (corner, corner + torch.rand(count, 2, generator=generator) * size / 2), dim=1
    )
    scores = torch.rand(count, generator=generator)
    return boxes.round() if whole else boxes, (scores * 4).round() / 4 if ties else scores


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.0, 0.1, 1 / 3, 0.5, 0.7, 1.0])
def test_nms_equals_the_loop(threshold, offset):
    for seed, count in enumerate((1, 2, 7, 23, 41, 23)):
        boxes, scores = random_boxes(count, seed, whole=seed % 2 == 1, ties=seed > 3)
        dets, inds = ops.nms(boxes, scores, threshold, offset=offset)
        assert inds.dtype == torch.int64
        assert inds.tolist() == naive_nms(boxes, scores, threshold, offset)
        assert torch.equal(dets, torch.cat((boxes[inds], scores[inds, None]), dim=1))


def test_nms_keeps_an_iou_equal_to_the_threshold():
    # 1 of 10 pixels: the IoU is 0.1 in float32, which is greater than the double 0.1.
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 1, 1]])
    scores = torch.tensor([0.9, 0.8])
    assert ops.nms(boxes, scores, 0.1)[1].tolist() == [0, 1]
    assert ops.nms(boxes, scores, 0.0999999)[1].tolist() == [0]


def test_nms_offset_counts_the_last_pixel():
    # Pixels 0..4 and 2..6: 3 of 7 shared; as lengths 2 of 6.
    boxes = torch.tensor([[0.0, 0, 4, 0.5], [2, 0, 6, 0.5]])
    scores = torch.tensor([0.9, 0.8])
    assert ops.nms(boxes, scores, 0.4, offset=1)[1].tolist() == [0]
    assert ops.nms(boxes, scores, 0.4, offset=0)[1].tolist() == [0, 1]


def test_nms_takes_equal_scores_in_their_order():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [9, 9, 12, 12], [0, 0, 4, 4]]).repeat(20, 1)
    inds = ops.nms(boxes, torch.full((80,), 0.5), 0.5)[1]
    assert inds.tolist() == [0, 2]
    lonely = torch.arange(80.0)[:, None] * 10 + torch.tensor([0.0, 0, 4, 4])
    assert ops.nms(lonely, torch.full((80,), 0.5), 0.5)[1].tolist() == list(range(80))


@pytest.mark.parametrize('offset', [0, 1])
def test_nms_of_no_boxes(offset):
    dets, inds = ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5, offset=offset)
    assert dets.shape == (0, 5) and inds.shape == (0,) and inds.dtype == torch.int64


def test_nms_boxes_without_area_suppress_nothing():
    boxes = torch.tensor([[3.0, 3, 3, 3], [3, 3, 3, 3], [3, 3, 3, 3]])
    dets, inds = ops.nms(boxes, torch.tensor([0.2, 0.9, 0.5]), 0.5)
    assert inds.tolist() == [1, 2, 0]
    assert dets.isfinite().all()


def test_nms_filters_by_score_and_limits_the_number():
    boxes, scores = random_boxes(41, seed=3)
    above = (scores > 0.3).nonzero().squeeze(1)
    expected = [int(above[i]) for i in naive_nms(boxes[above], scores[above], 0.4)]
    assert len(expected) > 5
    assert ops.nms(boxes, scores, 0.4, score_threshold=0.3)[1].tolist() == expected
    assert ops.nms(boxes, scores, 0.4, score_threshold=0.3, max_num=5)[1].tolist() == expected[:5]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_nms_of_other_formats_is_that_of_their_values(dtype):
    boxes, scores = (t.to(dtype) for t in random_boxes(41, seed=4))
    expected = naive_nms(boxes.float(), scores.float(), 0.4)
    dets, inds = ops.nms(boxes, scores, 0.4)
    assert inds.tolist() == expected and dets.dtype == dtype
    # As under autocast: boxes in float32, scores in half precision.
    assert ops.nms(boxes.float(), scores, 0.4)[1].tolist() == expected
    with torch.autocast('cpu', dtype=dtype, enabled=dtype != torch.float64):
        assert ops.nms(boxes, scores, 0.4)[1].tolist() == expected


def test_nms_does_not_round_scores_of_a_wider_format():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5]])
    scores = torch.tensor([0.5, 0.5 + 1e-12], dtype=torch.float64)
    assert ops.nms(boxes, scores, 0.5)[1].tolist() == [1]


def test_nms_takes_and_returns_numpy():
    boxes, scores = random_boxes(23, seed=5)
    dets, inds = ops.nms(boxes.numpy(), scores.numpy(), 0.4)
    assert isinstance(dets, np.ndarray) and inds.tolist() == naive_nms(boxes, scores, 0.4)


@pytest.mark.parametrize('split_thr', [10000, 10])
@pytest.mark.parametrize('class_agnostic', [False, True])
def test_batched_nms_acts_within_classes_only(class_agnostic, split_thr):
    for seed in range(4):
        boxes, scores = random_boxes(61, seed)
        classes = torch.randint(0, 1 if class_agnostic and split_thr == 10 else 5, (61,))
        config = dict(
            type='nms', iou_threshold=0.3, split_thr=split_thr, class_agnostic=class_agnostic
        )
        dets, keep = ops.batched_nms(boxes, scores, classes, config)
        groups = (
            [torch.arange(61)]
            if class_agnostic
            else [(classes == c).nonzero()[:, 0] for c in range(5)]
        )
        expected = {int(g[i]) for g in groups for i in naive_nms(boxes[g], scores[g], 0.3)}
        assert set(keep.tolist()) == expected and len(keep) == len(expected)
        assert torch.equal(dets, torch.cat((boxes[keep], scores[keep, None]), dim=1))
        assert (dets[:-1, 4] >= dets[1:, 4]).all()


@pytest.mark.parametrize('threshold', [0.1, 1 / 3, 0.5])
def test_nms_match_equals_the_loop(threshold):
    for seed, count in enumerate((1, 2, 7, 23, 41, 23)):
        boxes, scores = random_boxes(count, seed, whole=seed % 2 == 1, ties=seed > 3)
        groups = ops.nms_match(torch.cat((boxes, scores[:, None]), dim=1), threshold)
        assert [group.tolist() for group in groups] == naive_match(boxes, scores, threshold)
        assert all(group.dtype == torch.int64 for group in groups)


def test_nms_match_groups_an_iou_equal_to_the_threshold():
    dets = torch.tensor(
        [[0.0, 0, 1, 1, 0.8], [0, 0, 10, 1, 0.9], [3, 3, 3, 3, 0.1], [3, 3, 3, 3, 0.2]]
    )
    groups = [group.tolist() for group in ops.nms_match(dets, 0.1)]
    assert groups == [[1, 0], [3], [2]]


def test_nms_match_of_no_boxes_and_of_numpy():
    assert ops.nms_match(torch.zeros(0, 5), 0.5) == []
    groups = ops.nms_match(np.array([[0, 0, 4, 4, 0.5], [0, 0, 4, 5, 0.9]]), 0.5)
    assert [group.tolist() for group in groups] == [[1, 0]]
