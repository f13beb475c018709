"""Compare `soft_nms` of mmcv on the stand-in to a loop over a Python list in float32."""

import importlib

import numpy as np
import pytest
import torch

from swinv2_mm.ops import mmcv_ext

pytestmark = pytest.mark.skipif(
    not mmcv_ext.install(), reason='mmcv has compiled operators: its stand-in is not in use'
)
ops = importlib.import_module('mmcv.ops')  # must follow install()
extension = importlib.import_module('mmcv._ext')

F = np.float32


def iou(a, b, offset):
    o = F(offset)
    width = max(F(0), min(a[2], b[2]) - max(a[0], b[0]) + o)
    height = max(F(0), min(a[3], b[3]) - max(a[1], b[1]) + o)
    area_a, area_b = ((c[2] - c[0] + o) * (c[3] - c[1] + o) for c in (a, b))
    inter = width * height
    union = area_a + area_b - inter
    return inter / union if union != 0 else F(0)


def naive_soft_nms(boxes, scores, threshold, sigma, min_score, method, offset):
    """Return (indices, scores). As in the compiled operator, a dropped box is replaced by the last one."""
    left = [[box, score, i] for i, (box, score) in enumerate(zip(boxes.numpy(), scores.numpy()))]
    taken = []
    while left:
        best = max(range(len(left)), key=lambda k: left[k][1])  # the first of equal scores
        left[0], left[best] = left[best], left[0]
        box, score, i = left.pop(0)
        taken.append((i, float(score)))
        k = 0
        while k < len(left):
            overlap = iou(box, left[k][0], offset)
            if method == 'gaussian':
                left[k][1] = left[k][1] * np.exp(-(overlap * overlap) / F(sigma))
            elif overlap >= F(threshold):
                left[k][1] = left[k][1] * (F(1) - overlap if method == 'linear' else F(0))
            if left[k][1] < F(min_score):
                left[k] = left[-1]
                left.pop()
            else:
                k += 1
    return [i for i, _ in taken], torch.tensor([s for _, s in taken])


def random_boxes(count, seed, ties=False):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 30
    boxes = torch.cat((corner, corner + torch.rand(count, 2, generator=generator) * 20), dim=1)
    scores = torch.rand(count, generator=generator)
    return boxes, (scores * 4).round() / 4 if ties else scores


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_equals_the_loop(method, offset):
    shrunk = 0
    for seed, count in enumerate((1, 2, 7, 23, 37, 23, 37)):
        boxes, scores = random_boxes(count, seed, ties=seed > 4)
        settings = dict(sigma=(0.5, 0.3)[seed % 2], min_score=(1e-3, 0.05, 0.3)[seed % 3])
        threshold = (0.1, 1 / 3, 0.5)[seed % 3]
        dets, inds = ops.soft_nms(
            boxes, scores, threshold, method=method, offset=offset, **settings
        )
        expected_inds, expected_scores = naive_soft_nms(
            boxes, scores, threshold, method=method, offset=offset, **settings
        )
        assert inds.tolist() == expected_inds and inds.dtype == torch.int64
        assert torch.equal(dets[:, :4], boxes[inds])
        torch.testing.assert_close(dets[:, 4], expected_scores, rtol=1e-5, atol=1e-7)
        shrunk += len(inds) < count
    assert shrunk >= 3  # the cases above drop boxes


def test_an_iou_equal_to_the_threshold_lowers_the_score():
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 1, 1]])  # IoU 0.1
    scores = torch.tensor([0.9, 0.8])
    dets, _ = ops.soft_nms(boxes, scores, 0.1, method='linear')
    torch.testing.assert_close(dets[:, 4], torch.tensor([0.9, 0.72]))
    assert ops.soft_nms(boxes, scores, 0.1, method='naive')[1].tolist() == [0]
    assert ops.soft_nms(boxes, scores, 0.1001, method='naive')[1].tolist() == [0, 1]


def test_the_given_buffer_is_written_and_the_inputs_are_not():
    boxes, scores = random_boxes(23, seed=3)
    before = boxes.clone(), scores.clone()
    dets = torch.full((23, 5), -7.0)
    inds = extension.softnms(boxes, scores, dets, 0.3, 0.5, 0.2, method=1, offset=0)
    kept = len(inds)
    assert 0 < kept < 23
    assert torch.equal(dets[:kept, :4], boxes[inds])
    assert (dets[:kept, 4] >= 0.2).all() and (dets[:kept, 4] <= scores[inds]).all()
    assert (dets[kept:] == -7).all()
    assert torch.equal(boxes, before[0]) and torch.equal(scores, before[1])


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_boxes_without_area_give_no_nan(method):
    boxes = torch.tensor([[3.0, 3, 3, 3], [3, 3, 3, 3], [0, 0, 4, 4]])
    dets, inds = ops.soft_nms(boxes, torch.tensor([0.2, 0.9, 0.5]), 0.3, method=method)
    assert inds.tolist() == [1, 2, 0]
    assert dets[:, 4].tolist() == pytest.approx([0.9, 0.5, 0.2])


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_no_boxes(method):
    dets, inds = ops.soft_nms(torch.zeros(0, 4), torch.zeros(0), method=method)
    assert dets.shape == (0, 5) and inds.shape == (0,) and inds.dtype == torch.int64


def test_the_best_box_stays_even_below_the_minimum():
    # As in the compiled operator: the minimum is checked when a score is lowered.
    boxes = torch.tensor([[0.0, 0, 4, 4], [9, 9, 12, 12]])
    assert ops.soft_nms(boxes, torch.tensor([0.01, 0.02]), min_score=0.05)[1].tolist() == [1]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype):
    boxes, scores = (t.to(dtype) for t in random_boxes(37, seed=5))
    exact_dets, exact_inds = ops.soft_nms(boxes.float(), scores.float(), 0.3, min_score=0.05)
    dets, inds = ops.soft_nms(boxes, scores, 0.3, min_score=0.05)
    assert torch.equal(inds, exact_inds)
    assert dets.dtype == dtype and torch.equal(dets, exact_dets.to(dtype))


def test_numpy_in_numpy_out():
    boxes, scores = random_boxes(7, seed=6)
    dets, inds = ops.soft_nms(boxes.numpy(), scores.numpy(), 0.3)
    assert (
        isinstance(dets, np.ndarray)
        and isinstance(inds, np.ndarray)
        and dets.shape == (len(inds), 5)
    )


@pytest.mark.parametrize('split_thr', [10000, 5])
def test_batched_soft_nms_acts_within_classes_only(split_thr):
    boxes, scores = random_boxes(37, seed=7)
    classes = torch.arange(37) % 3
    config = dict(
        type='soft_nms', iou_threshold=0.3, min_score=0.1, split_thr=split_thr, max_num=30
    )
    dets, keep = ops.batched_nms(
        boxes,
        scores,
        classes,
        config if split_thr == 5 else {k: v for k, v in config.items() if k != 'max_num'},
    )
    expected = {}
    for c in range(3):
        members = (classes == c).nonzero()[:, 0]
        inds, lowered = naive_soft_nms(
            boxes[members],
            scores[members],
            0.3,
            sigma=0.5,
            min_score=0.1,
            method='linear',
            offset=0,
        )
        expected.update({int(members[i]): float(s) for i, s in zip(inds, lowered)})
    best = sorted(expected, key=expected.__getitem__, reverse=True)
    assert keep.tolist() == (best[:30] if split_thr == 5 else best)
    assert dets[:, 4].tolist() == pytest.approx([expected[i] for i in keep.tolist()], rel=1e-4)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r'method must be 0 .*, got 3'):
        extension.softnms(torch.zeros(1, 4), torch.zeros(1), torch.zeros(1, 5), 0.3, 0.5, 0.1, 3, 0)
