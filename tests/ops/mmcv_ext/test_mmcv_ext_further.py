"""Compare further operators of mmcv on the stand-in to loops over their definitions."""

import importlib
import math
import warnings

import pytest
import torch
import torch.nn.functional as F

from swinv2_mm.ops import mmcv_ext

pytestmark = pytest.mark.skipif(
    not mmcv_ext.install(), reason='mmcv has compiled operators: its stand-in is not in use'
)
ops = importlib.import_module('mmcv.ops')  # must follow install()


def naive_carafe(features, masks, kernel, groups, scale):
    batch, channels, height, width = features.shape
    out = features.new_zeros(batch, channels, height * scale, width * scale)
    for c in range(channels):
        group = c // (channels // groups)
        for y in range(height * scale):
            for x in range(width * scale):
                for k in range(kernel**2):
                    row = y // scale + k // kernel - kernel // 2
                    column = x // scale + k % kernel - kernel // 2
                    if 0 <= row < height and 0 <= column < width:
                        weight = masks[:, group * kernel**2 + k, y, x]
                        out[:, c, y, x] += weight * features[:, c, row, column]
    return out


@pytest.mark.parametrize(
    ('kernel', 'groups', 'scale'), [(3, 1, 2), (5, 2, 2), (3, 2, 3), (1, 1, 1)]
)
def test_carafe_and_its_gradients(kernel, groups, scale):
    features = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    masks = torch.randn(
        2, groups * kernel**2, 3 * scale, 5 * scale, dtype=torch.float64, requires_grad=True
    )
    found = ops.carafe(features, masks, kernel, groups, scale)
    expected = naive_carafe(features, masks, kernel, groups, scale)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    for mine, theirs in zip(
        torch.autograd.grad(found, (features, masks), upstream),
        torch.autograd.grad(expected, (features, masks), upstream),
    ):
        torch.testing.assert_close(mine, theirs)


def test_a_neck_with_carafe_trains():
    from mmdet.models.necks import FPN_CARAFE

    upsampling = dict(
        type='carafe', up_kernel=5, up_group=1, encoder_kernel=3, compressed_channels=8
    )
    neck = FPN_CARAFE([8, 16], out_channels=8, num_outs=2, start_level=0, upsample_cfg=upsampling)
    maps = neck([torch.randn(1, 8, 16, 12), torch.randn(1, 16, 8, 6)])
    sum(x.square().mean() for x in maps).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in neck.parameters())


@pytest.mark.parametrize('gamma, alpha', [(2.0, 0.25), (0.5, 0.6), (0.0, 1.0)])
@pytest.mark.parametrize('weighted', [False, True])
def test_softmax_focal_loss_and_its_gradient(gamma, alpha, weighted):
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, -1, 1, 0])
    weight = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64) if weighted else None
    p = logits.softmax(dim=1)[torch.arange(6), target.clamp(min=0)]
    expected = -alpha * (1 - p) ** gamma * p.log() * (target >= 0)
    expected = expected if weight is None else expected * weight[target.clamp(min=0)]
    for reduction, reduced in (('sum', expected.sum()), ('mean', expected.mean())):
        loss = ops.softmax_focal_loss(logits, target, gamma, alpha, weight, reduction)
        torch.testing.assert_close(loss, reduced)
        ours, theirs = (
            torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (loss, reduced)
        )
        torch.testing.assert_close(ours, theirs)


def test_softmax_focal_loss_of_certain_samples_is_finite():
    logits = torch.tensor([[200.0, -200.0], [200.0, -200.0]], requires_grad=True)
    loss = ops.softmax_focal_loss(logits, torch.tensor([0, 1]), 2.0, 0.25, None, 'sum')
    loss.backward()
    assert loss.isfinite() and loss > 10 and logits.grad.isfinite().all()


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('mode', ['iou', 'iof'])
def test_overlaps_of_boxes(mode, offset):
    corners = torch.randint(0, 20, (9, 2, 2)).sort(dim=1).values
    boxes = corners.flatten(1).float() + torch.tensor([0, 0, 1, 1])
    first, second = boxes[:4], boxes[4:]

    def overlap(a, b):
        width = max(0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
        height = max(0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
        area, other = ((x[2] - x[0] + offset) * (x[3] - x[1] + offset) for x in (a, b))
        whole = area if mode == 'iof' else area + other - width * height
        return width * height / max(whole, offset)

    expected = torch.tensor([[overlap(a, b) for b in second.tolist()] for a in first.tolist()])
    found = ops.bbox_overlaps(first, second, mode, False, offset)
    torch.testing.assert_close(found, expected)
    aligned = ops.bbox_overlaps(first, second[:4], mode, True, offset)
    torch.testing.assert_close(aligned, expected.diagonal())
    assert ops.bbox_overlaps(first[:0], second).shape == (0, 5)


def naive_roi_pool(feats, rois, bins, scale):
    out = feats.new_zeros(len(rois), feats.size(1), *bins)
    for k, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        start, end = (y1 * scale, x1 * scale), ((y2 + 1) * scale, (x2 + 1) * scale)
        if start[0] >= end[0] or start[1] >= end[1]:
            continue
        for i in range(bins[0]):
            for j in range(bins[1]):
                pixels = feats[int(image)]
                for axis, step in enumerate((i, j)):
                    side = (end[axis] - start[axis]) / bins[axis]
                    first = max(0, math.floor(step * side + start[axis]))
                    last = max(0, math.ceil((step + 1) * side + start[axis]))
                    pixels = pixels[(slice(None),) * (axis + 1) + (slice(first, last),)]
                if pixels.numel():
                    out[k, :, i, j] = pixels.amax(dim=(1, 2))
    return out


@pytest.mark.parametrize('bins', [(2, 2), (7, 3), (1, 1)])
@pytest.mark.parametrize('scale', [1.0, 0.5, 0.3])
def test_roi_pool_and_its_gradient(bins, scale):
    torch.manual_seed(0)
    feats = torch.randn(2, 3, 9, 11, dtype=torch.float64, requires_grad=True)
    corner, sides = torch.rand(12, 2) * 14 - 3, torch.rand(12, 2) * 12
    rois = torch.cat((torch.arange(12)[:, None] % 2, corner, corner + sides), dim=1).double()
    rois[0, 1:] = torch.tensor([8, 8, 2, 2])  # turned inside out
    rois[1, 1:] = torch.tensor([90, 90, 99, 99])  # outside of the map
    rois[2, 1:] = torch.tensor([3, 3, 3, 3])
    found = ops.roi_pool(feats, rois, bins, scale)
    expected = naive_roi_pool(feats, rois, bins, scale)
    torch.testing.assert_close(found, expected)
    assert (found[:2] == 0).all() and (found[2] != 0).all()
    upstream = torch.randn_like(found)
    mine, theirs = (torch.autograd.grad(out, feats, upstream)[0] for out in (found, expected))
    torch.testing.assert_close(mine, theirs)


def test_roi_pool_in_half_precision_and_of_nothing():
    feats, rois = torch.randn(1, 2, 5, 5), torch.tensor([[0.0, 0, 0, 4, 4]])
    half = ops.roi_pool(feats.half(), rois.half(), 2, 1.0)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), ops.roi_pool(feats.half().float(), rois, 2, 1.0))
    assert ops.roi_pool(feats, rois[:0], 2, 1.0).shape == (0, 2, 2, 2)


@pytest.mark.parametrize('image', [-1.0, 1.0, math.nan])
def test_roi_pool_of_an_image_that_does_not_exist_is_refused(image):
    with pytest.raises(ValueError, match='image index from 0 to 0'):
        ops.roi_pool(torch.zeros(1, 1, 4, 4), torch.tensor([[image, 0, 0, 3, 3]]), 2, 1.0)


@pytest.mark.parametrize(
    ('kernel', 'padding'), [((3, 3), (1, 1)), ((3, 5), (1, 2)), ((1, 1), (0, 0))]
)
def test_masked_convolution(kernel, padding):
    torch.manual_seed(0)
    conv = ops.MaskedConv2d(4, 6, kernel, padding=padding)
    features, mask = torch.randn(1, 4, 7, 9), torch.rand(1, 7, 9) > 0.6
    with torch.no_grad():
        whole = F.conv2d(features, conv.weight, conv.bias, padding=padding)
        torch.testing.assert_close(conv(features, mask), whole * mask[:, None])
        assert (conv(features, torch.zeros_like(mask)) == 0).all()
        assert torch.equal(conv(features), whole)


def test_masked_convolution_of_other_sizes_and_under_autocast():
    features, mask = torch.randn(1, 4, 7, 9), torch.ones(1, 7, 9)
    with torch.no_grad(), pytest.raises(ValueError, match='outside of the output of 5 x 7'):
        ops.MaskedConv2d(4, 6, 3)(features, mask)
    conv = ops.MaskedConv2d(4, 6, 3, padding=1)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        found = conv(features, mask)
    torch.testing.assert_close(found.float(), conv(features), rtol=0.02, atol=0.02)


def test_slow_operators_warn_once_on_a_gpu():
    class OnGpu(torch.Tensor):
        is_cuda = True

    dets = torch.tensor([[0.0, 0, 10, 10, 0.9], [1, 1, 10, 10, 0.8]])
    extension = importlib.import_module('mmcv._ext')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        expected = extension.nms_match(dets, 0.5)
        assert not caught
        assert [extension.nms_match(dets.as_subclass(OnGpu), 0.5) for _ in range(2)] == [
            expected
        ] * 2
    assert len(caught) == 1 and "'nms_match'" in str(caught[0].message)
