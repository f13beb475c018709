"""Compare the operators of the stand-in on a GPU to those on the CPU, which other tests compare to loops."""

import importlib
import os

import pytest
import torch

from swinv2_mm.ops import mmcv_ext

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device'),
    pytest.mark.skipif(
        not mmcv_ext.install(), reason='mmcv has compiled operators: its stand-in is not in use'
    ),
]
ops = importlib.import_module('mmcv.ops')  # must follow install()

DEVICE = 'cuda'
# Deterministic matrix products need it before the first one; mmengine sets it too.
os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')


def random_boxes(count):
    corner = torch.rand(count, 2) * 100
    return torch.cat((corner, corner + torch.rand(count, 2) * 40), dim=1), torch.randperm(
        count
    ) / count


def random_regions():
    feats = torch.randn(2, 3, 13, 17, dtype=torch.float64)
    boxes, _ = random_boxes(9)
    return feats, torch.cat((torch.randint(0, 2, (9, 1)), boxes), dim=1).double()


def roi_align(feats, rois, mode, ratio=0, aligned=True):
    feats = feats.detach().requires_grad_()
    output = ops.roi_align(feats, rois, (3, 2), 0.125, ratio, mode, aligned)
    output.backward(torch.linspace(-1, 1, output.numel()).view(output.shape).to(output))
    return output.detach().cpu(), feats.grad.cpu()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('offset', [0, 1])
def test_nms(offset, dtype):
    boxes, scores = random_boxes(200)
    boxes = boxes.to(dtype)
    assert torch.equal(
        ops.nms(boxes.to(DEVICE), scores.to(DEVICE), 0.3, offset=offset)[1].cpu(),
        ops.nms(boxes, scores, 0.3, offset=offset)[1],
    )


def test_equal_scores_keep_their_order():
    boxes = torch.arange(300.0)[:, None] * 10 + torch.tensor([0.0, 0, 4, 4])
    inds = ops.nms(boxes.to(DEVICE), torch.full((300,), 0.5, device=DEVICE), 0.5)[1]
    assert inds.tolist() == list(range(300))


def test_soft_nms_and_nms_match():
    boxes, scores = random_boxes(50)
    for ours, theirs in zip(
        ops.soft_nms(boxes.to(DEVICE), scores.to(DEVICE)), ops.soft_nms(boxes, scores)
    ):
        assert ours.is_cuda
        assert torch.equal(ours.cpu(), theirs)
    dets = torch.cat((boxes, scores[:, None]), dim=1)
    groups = ops.nms_match(dets.to(DEVICE), 0.3)
    assert [g.tolist() for g in groups] == [g.tolist() for g in ops.nms_match(dets, 0.3)]


@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('aligned', [True, False])
def test_roi_align(mode, ratio, aligned):
    feats, rois = random_regions()
    expected = roi_align(feats, rois, mode, ratio, aligned)
    for ours, theirs in zip(
        roi_align(feats.to(DEVICE), rois.to(DEVICE), mode, ratio, aligned), expected
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_roi_align_in_half_precision(dtype, mode):
    feats, rois = (t.to(dtype) for t in random_regions())
    output, grad = roi_align(feats.to(DEVICE), rois.to(DEVICE), mode)
    exact, exact_grad = roi_align(feats, rois, mode)
    assert output.dtype == grad.dtype == dtype
    torch.testing.assert_close(output.float(), exact.float(), rtol=0.01, atol=0.01)
    torch.testing.assert_close(grad.float(), exact_grad.float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_trains_with_deterministic_algorithms(mode):
    feats, rois = random_regions()
    expected = roi_align(feats, rois, mode)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [roi_align(feats.to(DEVICE), rois.to(DEVICE), mode) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    for first, second, theirs in zip(*runs, expected):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, theirs, rtol=1e-9, atol=1e-10)


def test_deformable_convolution():
    n = 2 * 3 * 3
    x, offset = (
        torch.randn(2, 4, 7, 6, dtype=torch.float64),
        torch.randn(2, 2 * n, 7, 6, dtype=torch.float64),
    )
    mask, weight = (
        torch.rand(2, n, 7, 6, dtype=torch.float64),
        torch.randn(6, 4, 3, 3, dtype=torch.float64),
    )
    results = []
    for device in ('cpu', DEVICE):
        inputs = [t.to(device).requires_grad_() for t in (x, offset, mask, weight)]
        outputs = (
            ops.modulated_deform_conv2d(*inputs, None, 1, 1, 1, 1, 2),
            ops.deform_conv2d(inputs[0], inputs[1], inputs[3], 1, 1, 1, 1, 2),
        )
        loss = sum(
            (o * torch.linspace(-1, 1, o.numel()).view(o.shape).to(o)).sum() for o in outputs
        )
        results.append([t.detach().cpu() for t in (*outputs, *torch.autograd.grad(loss, inputs))])
    for theirs, ours in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_deformable_attention_module():
    module = ops.MultiScaleDeformableAttention(
        16, num_heads=2, num_levels=2, num_points=3, batch_first=True
    )
    module.eval()
    query = torch.randn(2, 5, 16)
    value = torch.randn(2, 3 * 4 + 2 * 2, 16)
    points, shapes = torch.rand(2, 5, 2, 2), torch.tensor([[3, 4], [2, 2]])
    results = []
    for device in ('cpu', DEVICE):
        module.to(device).zero_grad()
        output = module(
            query.to(device),
            value=value.to(device),
            reference_points=points.to(device),
            spatial_shapes=shapes.to(device),
            level_start_index=torch.tensor([0, 12], device=device),
        )
        output.square().sum().backward()
        results.append(
            [output.detach().cpu(), *(p.grad.cpu().clone() for p in module.parameters())]
        )
    for theirs, ours in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_focal_loss():
    logits, target = torch.randn(7, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 3, 0, 1])
    results = []
    for device in ('cpu', DEVICE):
        x = logits.clone().to(device).requires_grad_()
        loss = ops.sigmoid_focal_loss(x, target.to(device), 2.0, 0.25, None, 'sum')
        loss.backward()
        results.append([loss.detach().cpu(), x.grad.cpu()])
    for theirs, ours in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_no_boxes(mode):
    boxes, scores = torch.zeros(0, 4, device=DEVICE), torch.zeros(0, device=DEVICE)
    for suppress in (ops.nms, ops.soft_nms):
        dets, inds = suppress(boxes, scores, 0.5)
        assert dets.shape == (0, 5) and inds.shape == (0,) and dets.is_cuda and inds.is_cuda
    assert ops.nms_match(torch.zeros(0, 5, device=DEVICE), 0.5) == []
    x = torch.randn(2, 3, 8, 8, device=DEVICE, requires_grad=True)
    pooled = ops.roi_align(x, torch.zeros(0, 5, device=DEVICE), (2, 2), 1.0, 0, mode, True)
    assert pooled.shape == (0, 3, 2, 2)
    pooled.sum().backward()
    assert not x.grad.any()


def strided(x):
    """Return the same values in channels-last format."""
    return x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_pooling_maps_with_channels_last(mode):
    x = torch.randn(2, 3, 9, 11)
    rois = torch.tensor([[0.0, 0, 0, 5, 5], [1, 1, 1, 7, 6]])
    results = []
    for device in ('cpu', DEVICE):
        map_ = strided(x.to(device))
        pooled = ops.roi_align(map_, rois.to(device), (3, 2), 1.0, 0, mode, True)
        pooled.backward(
            strided(torch.linspace(-1, 1, pooled.numel()).view(pooled.shape)).to(device)
        )
        results.append((pooled.detach().cpu(), map_.grad.cpu()))
    for mine, theirs in zip(*reversed(results)):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_deformable_convolution_under_autocast(dtype):
    layer = ops.ModulatedDeformConv2dPack(4, 6, 3, padding=1)
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.1)
    x, results = torch.randn(2, 4, 7, 6), []
    for device in ('cpu', DEVICE):
        layer.to(device).zero_grad()
        image = strided(x.to(device))
        with torch.autocast(device, dtype=dtype):
            out = layer(image)
        assert out.dtype == dtype
        out.float().square().mean().backward()
        grads = [image.grad, *(weight.grad for weight in layer.parameters())]
        assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)
        # Moving the layer moves its gradients in place: keep copies.
        results.append([out.detach().float().cpu(), *(grad.clone().cpu() for grad in grads)])
    for mine, theirs in zip(*reversed(results)):
        error = (mine - theirs).norm() / theirs.norm().clamp(min=1e-3)
        assert error < (0.02 if dtype == torch.float16 else 0.1)
